//! A text scored with and without some sources, side by side: what they did to it, computed and not guessed.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use silo_core::mixture::{self, NeighborDistribution};
use silo_core::{Neighbor, Snapshot, SourceId};

use crate::score::{Place, Span};
use crate::sequence::Pinned;
use crate::{ContextParameters, Engine, EngineError, InForce, Retrieval, ScoreRequest};

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
    /// Part of the neighbour softmax that is theirs.
    pub mass: f64,
    /// No more than this can the total variation be: weight times mass. Only where all neighbours were compared by their distances, weight,
    /// temperature and k are the same with and without, and no passages are read.
    pub bound: Option<f64>,
}

/// What one view says of a token.
struct Said {
    log_p: Vec<f64>,
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
        let with = self.pin_for_score(request)?;
        let retrieval = Retrieval { without: without.to_vec(), ..request.retrieval.clone() };
        self.check_retrieval(&retrieval)?;
        with.snapshot.check_names(&silo_core::Filter { deny_sources: without.to_vec(), ..Default::default() })?;
        let other = Pinned::at(with.snapshot.clone(), &retrieval, |s| self.knn_parameters(s));
        let _place = Place::take(self)?;
        let mut tokens = Vec::with_capacity(request.tokens.len());
        let bounded = self.is_bounded(request, &with, &other);
        for span in self.spans(request)? {
            self.compare_span(request, (&with, &other), &span, cancel, &mut |position, a, b| {
                let token = request.tokens[position] as usize;
                tokens.push(ComparedToken {
                    position,
                    log_probability: a.log_p[token],
                    without: b.log_p[token],
                    total_variation: mixture::total_variation(&a.log_p, &b.log_p),
                    mass: a.mass,
                    bound: bounded.then_some(with.knn.knn_weight * a.mass),
                });
            })?;
        }
        let context = self.context_parameters(&request.retrieval);
        let in_force = |pinned: &Pinned| in_force(request, pinned, context);
        Ok(Comparison { tokens, with: in_force(&with), without: in_force(&other), snapshot: with.snapshot })
    }

    fn is_bounded(&self, request: &ScoreRequest, with: &Pinned, without: &Pinned) -> bool {
        !request.retrieval.mode.context() && with.knn == without.knn && self.shared.store.compares_all()
    }

    fn compare_span(
        &self,
        request: &ScoreRequest,
        (with, without): (&Pinned, &Pinned),
        span: &Span,
        cancel: &AtomicBool,
        each: &mut dyn FnMut(usize, Said, Said),
    ) -> Result<(), EngineError> {
        let gone = |neighbor: &Neighbor| !without.knn_mask.sees(neighbor.shard.0 as usize);
        if !request.retrieval.mode.context() {
            // The model says the same with and without: it reads once.
            return self.visit_span(request, &[with, without], span, cancel, &mut |position, logits, found| {
                each(position, said(logits, found[0], with, gone), said(logits, found[1], without, gone));
            });
        }
        // Few tokens are read between two searches for passages, so few distributions are held.
        let mut first = Vec::with_capacity(span.len());
        self.visit_span(request, &[with], span, cancel, &mut |_, logits, found| {
            first.push(said(logits, found[0], with, gone));
        })?;
        let mut first = first.into_iter();
        self.visit_span(request, &[without], span, cancel, &mut |position, logits, found| {
            if let Some(with) = first.next() {
                each(position, with, said(logits, found[0], without, gone));
            }
        })
    }
}

fn said(logits: &[f32], neighbors: &[Neighbor], pinned: &Pinned, gone: impl Fn(&Neighbor) -> bool) -> Said {
    let knn = NeighborDistribution::new(neighbors, pinned.knn.knn_temperature);
    let log_p = mixture::interpolate(&mixture::log_softmax(logits), &knn, pinned.knn.knn_weight);
    let theirs = neighbors.iter().zip(knn.weights()).filter(|(n, _)| gone(n));
    Said { log_p, mass: theirs.map(|(_, a)| a).sum() }
}

fn in_force(request: &ScoreRequest, pinned: &Pinned, context: ContextParameters) -> InForce {
    InForce { mode: request.retrieval.mode, knn: pinned.knn, context }
}
