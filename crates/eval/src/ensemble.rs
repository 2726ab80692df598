//! Two passages, each alone before the text, as an ensemble.

use std::sync::atomic::AtomicBool;

use serde_json::json;
use silo_engine::{ContextParameters, Mode, Retrieval, ScoreRequest, ScoredToken};

use crate::{Domain, EvalError, Gatherer, Loss, Text};

/// Passages of an ensemble: each is read without the other.
const PASSAGES: usize = 2;

impl Gatherer<'_> {
    /// The loss of each text where p is the mean of what the model says with each of the two best passages alone before the text (REPLUG, Shi et al.
    /// 2024, with equal weights), instead of with both one after the other.
    pub fn ensemble(
        &self,
        domain: &Domain,
        texts: &[Text],
        context: ContextParameters,
    ) -> Result<Vec<Loss>, EvalError> {
        let context = ContextParameters { passages: PASSAGES, ..context };
        let tokens: Vec<&[u32]> = texts.iter().map(|text| &text.tokens[..]).collect();
        let question = json!({"ensemble": context, "texts": tokens, "window_tokens": domain.window_tokens});
        self.choice(&question, || {
            (self.progress)(&format!("{}: ensemble, {} texts", domain.source, texts.len()));
            texts.iter().map(|text| self.ensemble_of(domain, text, context)).collect()
        })
    }

    fn ensemble_of(&self, domain: &Domain, text: &Text, context: ContextParameters) -> Result<Loss, EvalError> {
        let retrieval = Retrieval { mode: Mode::Context, context: Some(context), ..Retrieval::default() };
        let mut request = ScoreRequest::new(text.tokens.clone(), retrieval);
        (request.window_tokens, request.leave_one_passage_out) = (domain.window_tokens, true);
        let score = self.engine.score(&request, &AtomicBool::new(false))?;
        let nats = -score.tokens.iter().map(mean).sum::<f64>();
        Ok(Loss { nats, n_tokens: score.tokens.len() as u64, n_bytes: text.n_bytes })
    }
}

/// log of the mean of p without either passage, which is with the other one alone; as it is where no two were found.
fn mean(token: &ScoredToken) -> f64 {
    match &token.left_out[..] {
        [a, b] => ((a.log_probability.exp() + b.log_probability.exp()) / 2.0).ln(),
        _ => token.log_probability,
    }
}

#[cfg(test)]
mod tests {
    use silo_core::{ContentHash, ShardId};
    use silo_engine::{DocumentId, LeftOut, PassageId};

    use super::*;

    fn token(own: f64, without: &[f64]) -> ScoredToken {
        let document = DocumentId { source: "s".parse().unwrap(), shard: ShardId(0), document: ContentHash::of(b"") };
        let passage = PassageId { document, start: 0 };
        let left_out = without.iter().map(|p| LeftOut { passage: passage.clone(), log_probability: p.ln() }).collect();
        ScoredToken {
            position: 0,
            log_probability: own.ln(),
            parametric_log_probability: own.ln(),
            knn_weight: 0.0,
            credit: None,
            capped: Vec::new(),
            left_out,
        }
    }

    #[test]
    fn two_passages_are_averaged_and_one_stands_for_itself() {
        assert!((mean(&token(0.9, &[0.2, 0.6])) - 0.4f64.ln()).abs() < 1e-12);
        assert_eq!(mean(&token(0.9, &[0.1])), 0.9f64.ln());
        assert_eq!(mean(&token(0.9, &[])), 0.9f64.ln());
    }
}
