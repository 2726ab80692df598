//! A text scored with and without some sources, side by side: what they did to it, computed and not guessed.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use silo_core::{Neighbor, Snapshot, SourceId, mixture};

use crate::found::Found;
use crate::pinned::Pinned;
use crate::score::{Place, Span};
use crate::{Engine, EngineError, InForce, Retrieval, ScoreRequest};

/// A text with and without some sources.
#[derive(Debug, Clone, PartialEq)]
pub struct Comparison {
    /// One per token that could be scored.
    pub tokens: Vec<ComparedToken>,
    /// The store that it was made from.
    pub snapshot: Arc<Snapshot>,
    /// The parameters in force with the sources.
    pub with: InForce,
    /// And without them: what was tuned on them does not hold.
    pub without: InForce,
}

/// A token with and without some sources.
#[derive(Debug, Clone, PartialEq)]
pub struct ComparedToken {
    /// Its position in the text.
    pub position: usize,
    /// log p of it with them, as [`Engine::score`] gives it.
    pub log_probability: f64,
    /// log p of it without them, as a store that never had them gives it, to the last bit.
    pub without: f64,
    /// Total variation of the two distributions of the token, over the whole vocabulary.
    pub total_variation: f64,
    /// Part of the neighbours' weight that is theirs.
    pub mass: f64,
    /// No more than this can the total variation be, whatever the model says: half of what the weight of the model and those of single neighbours differ by, all
    /// together. With a fixed weight and nobody in their place it is their part of that. `None` where passages are read, for then the model itself says something else.
    pub bound: Option<f64>,
}

/// What one view says of a token.
struct Said {
    log_p: Vec<f64>,
    /// Part of the neighbours' weight that those have which the other view does not see.
    mass: f64,
}

impl Engine {
    /// Scores a text with and without sources. Given up as [`Self::score`] is.
    pub fn compare_without(
        &self,
        request: &ScoreRequest,
        without: &[SourceId],
        cancel: &AtomicBool,
    ) -> Result<Comparison, EngineError> {
        if request.leave_one_passage_out {
            let rule = "sources are compared here, not passages; ask Score for that".into();
            return Err(EngineError::Invalid { field: "leave_one_passage_out", value: "true".into(), rule });
        }
        let with = self.pin_for_score(request)?;
        let retrieval = Retrieval { without: without.to_vec(), ..request.retrieval.clone() };
        self.check_retrieval(&retrieval)?;
        with.snapshot.check_names(&silo_core::Filter { deny_sources: without.to_vec(), ..Default::default() })?;
        let other = Pinned::at(with.snapshot.clone(), &retrieval, |s, filter| self.defaults(s, filter));
        let _place = Place::take(self)?;
        let mut tokens = Vec::with_capacity(request.tokens.len());
        for span in self.spans(request)? {
            self.compare_span(request, (&with, &other), &span, cancel, &mut |position, a, b, bound| {
                let token = request.tokens[position] as usize;
                tokens.push(ComparedToken {
                    position,
                    log_probability: a.log_p[token],
                    without: b.log_p[token],
                    total_variation: mixture::total_variation(&a.log_p, &b.log_p),
                    mass: a.mass,
                    bound,
                });
            })?;
        }
        let context = self.context_parameters(&request.retrieval);
        let in_force = |pinned: &Pinned| pinned.in_force(&request.retrieval, context);
        Ok(Comparison { tokens, with: in_force(&with), without: in_force(&other), snapshot: with.snapshot })
    }

    fn compare_span(
        &self,
        request: &ScoreRequest,
        (with, without): (&Pinned, &Pinned),
        span: &Span,
        cancel: &AtomicBool,
        each: &mut dyn FnMut(usize, Said, Said, Option<f64>),
    ) -> Result<(), EngineError> {
        let gone = |neighbor: &Neighbor| !without.knn_mask.sees(neighbor.shard.0 as usize);
        if !request.retrieval.mode.context() {
            // The model says the same with and without: it reads once.
            return self.visit_span(request, &[with, without], span, cancel, &mut |seen| {
                let [a, b] = [(seen.found[0], with), (seen.found[1], without)];
                let bound =
                    mixture::most_moved([a, b].map(|(found, p)| (&found.neighbors[..], &found.knn, p.knn.knn_weight)));
                each(seen.position, said(seen.logits, a, gone), said(seen.logits, b, |_| false), Some(bound));
            });
        }
        // Few tokens are read between two searches for passages, so few distributions are held.
        let mut first = Vec::with_capacity(span.len());
        self.visit_span(request, &[with], span, cancel, &mut |seen| {
            first.push(said(seen.logits, (seen.found[0], with), gone));
        })?;
        let mut first = first.into_iter();
        self.visit_span(request, &[without], span, cancel, &mut |seen| {
            if let Some(with) = first.next() {
                each(seen.position, with, said(seen.logits, (seen.found[0], without), |_| false), None);
            }
        })
    }
}

fn said(logits: &[f32], (found, pinned): (&Found, &Pinned), gone: impl Fn(&Neighbor) -> bool) -> Said {
    let log_p = mixture::interpolate(&mixture::log_softmax(logits), &found.knn, pinned.knn.knn_weight);
    let theirs = found.neighbors.iter().zip(found.knn.weights()).filter(|(n, _)| gone(n));
    // Of the whole weight, of which a cap or a gate may leave a part to the model.
    Said { log_p, mass: theirs.map(|(_, a)| a).sum::<f64>() * found.knn.mass() }
}
