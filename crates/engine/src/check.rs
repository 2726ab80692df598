//! What is refused before it begins.

use silo_core::{ModelError, TokenId, is_match_bonus};

use crate::{Engine, EngineError, GenerateRequest, Retrieval};

impl Engine {
    /// Refuses tokens that the model does not know.
    pub(crate) fn check_tokens(&self, tokens: &[TokenId]) -> Result<(), EngineError> {
        let vocab_size = self.shared.model.card().vocab_size;
        match tokens.iter().find(|&&t| t as usize >= vocab_size) {
            Some(&token) => Err(ModelError::UnknownToken { token, vocab_size }.into()),
            None => Ok(()),
        }
    }

    /// Passages can be left out where there are some, and not too many.
    pub(crate) fn check_left_out(&self, asked_for: bool, retrieval: &Retrieval) -> Result<(), EngineError> {
        let refuse =
            |value: String, rule: String| Err(EngineError::Invalid { field: "leave_one_passage_out", value, rule });
        if asked_for && !retrieval.mode.context() {
            let rule = "no passages are read in this mode; ask for CONTEXT or KNN_AND_CONTEXT";
            return refuse("true".into(), rule.into());
        }
        let (passages, most) = (self.context_parameters(retrieval).passages, self.config.max_left_out_passages);
        if asked_for && passages > most {
            return refuse(
                format!("{passages} passages"),
                format!("at most {most} are left out in turn; ask for fewer"),
            );
        }
        Ok(())
    }

    /// Checks what depends on the configuration.
    pub(crate) fn check_retrieval(&self, retrieval: &Retrieval) -> Result<(), EngineError> {
        let invalid = |field, value: String, rule: String| Err(EngineError::Invalid { field, value, rule });
        if let Some(k) = retrieval.knn.k.filter(|&k| k == 0 || k > self.config.max_k) {
            return invalid("retrieval.k", k.to_string(), format!("it must be from 1 to {}", self.config.max_k));
        }
        if let Some(w) = retrieval.knn.knn_weight.filter(|w| !(0.0..=1.0).contains(w)) {
            return invalid("retrieval.knn_weight", w.to_string(), "it must be from 0 to 1".into());
        }
        if let Some(t) = retrieval.knn.knn_temperature.filter(|t| !(*t > 0.0 && t.is_finite())) {
            return invalid("retrieval.knn_temperature", t.to_string(), "it must be above 0".into());
        }
        let most = self.config.max_match_tokens;
        if let Some(n) = retrieval.knn.match_tokens.filter(|n| *n > most) {
            return invalid("retrieval.match_tokens", n.to_string(), format!("it must be at most {most}"));
        }
        if let Some(b) = retrieval.knn.match_bonus.filter(|b| !is_match_bonus(*b)) {
            return invalid("retrieval.match_bonus", b.to_string(), "it must be from -100 to 100".into());
        }
        let (least, most) = (self.config.min_influence_cap, self.config.influence_cap);
        if let Some(c) = retrieval.influence_cap.filter(|c| !(least..=most).contains(c)) {
            let rule = format!("it must be from {least} to {most}, which are configured");
            return invalid("retrieval.influence_cap", c.to_string(), rule);
        }
        if let Some(c) = retrieval.context {
            let most = self.config.max_context_passages;
            if c.passages == 0 || c.passages > most {
                return invalid(
                    "retrieval.context.passages",
                    c.passages.to_string(),
                    format!("it must be from 1 to {most}"),
                );
            }
            if c.stride_tokens == 0 || c.query_tokens == 0 || c.max_passage_tokens == 0 {
                return invalid(
                    "retrieval.context",
                    "0 tokens".into(),
                    "stride, query and passage lengths must be above 0".into(),
                );
            }
        }
        Ok(())
    }
}

pub(crate) fn check_generate(request: &GenerateRequest) -> Result<(), EngineError> {
    let invalid = |field, value: f64, rule: &str| {
        Err(EngineError::Invalid { field, value: value.to_string(), rule: rule.into() })
    };
    let s = &request.sampling;
    if !(s.temperature >= 0.0 && s.temperature.is_finite()) {
        return invalid("sampling.temperature", s.temperature, "it must be 0 (greedy) or more");
    }
    if !(s.top_p > 0.0 && s.top_p <= 1.0) {
        return invalid("sampling.top_p", s.top_p, "it must be above 0 and at most 1");
    }
    if !(0.0..1.0).contains(&s.min_p) {
        return invalid("sampling.min_p", s.min_p, "it must be from 0 to under 1");
    }
    if !(s.repetition_penalty > 0.0 && s.repetition_penalty.is_finite()) {
        return invalid("sampling.repetition_penalty", s.repetition_penalty, "it must be above 0; 1 changes nothing");
    }
    if let Some((_, b)) = s.bias.iter().find(|(_, b)| b.is_nan() || *b == f64::INFINITY) {
        return invalid("sampling.bias", *b, "it must be a number, or minus infinity to forbid a token");
    }
    if request.max_new_tokens == 0 {
        return invalid("max_new_tokens", 0.0, "it must be 1 or more");
    }
    Ok(())
}
