//! A text scored with and without some sources, side by side: what they did to it, computed and not guessed.

use std::collections::HashSet;
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
    /// No more than this can the total variation be: weight times mass (or times that of the neighbours that come in their place, if those have
    /// more), and the change of the weight where a gate sets it. Only where all neighbours were compared by their distances, the parameters are the
    /// same with and without, no passages are read, and a cap holds the same other sources with and without.
    pub bound: Option<f64>,
}

/// What one view says of a token.
struct Said {
    log_p: Vec<f64>,
    /// Part of the neighbours' weight that those have which the other view does not see or, where a bound is wanted, find.
    mass: f64,
    /// Part of their weight that the gate leaves neighbours; `None` without neighbours.
    part: Option<f64>,
    /// Sources that the cap holds.
    capped: Vec<SourceId>,
}

impl Said {
    /// Whether the cap holds the sources that it holds for `with`, but for those that are gone.
    fn holds_the_rest_of(&self, with: &Self, gone: &[SourceId]) -> bool {
        let mut rest = with.capped.iter().filter(|source| !gone.contains(source));
        rest.clone().count() == self.capped.len() && rest.all(|source| self.capped.contains(source))
    }

    /// How much more or less the gate leaves neighbours than in `with`.
    fn other_part(&self, with: &Self) -> f64 {
        self.part.zip(with.part).map_or(0.0, |(without, with)| (with - without).abs())
    }
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
        let other = Pinned::at(with.snapshot.clone(), &retrieval, |s| self.defaults(s));
        let _place = Place::take(self)?;
        let mut tokens = Vec::with_capacity(request.tokens.len());
        let bounded = self.is_bounded(request, &with, &other);
        for span in self.spans(request)? {
            self.compare_span(request, (&with, &other), (&span, bounded), cancel, &mut |position, a, b| {
                let token = request.tokens[position] as usize;
                tokens.push(ComparedToken {
                    position,
                    log_probability: a.log_p[token],
                    without: b.log_p[token],
                    total_variation: mixture::total_variation(&a.log_p, &b.log_p),
                    mass: a.mass,
                    bound: (bounded && b.holds_the_rest_of(&a, without))
                        .then(|| with.knn.knn_weight * (a.mass.max(b.mass) + b.other_part(&a))),
                });
            })?;
        }
        let context = self.context_parameters(&request.retrieval);
        let in_force = |pinned: &Pinned| pinned.in_force(&request.retrieval, context);
        Ok(Comparison { tokens, with: in_force(&with), without: in_force(&other), snapshot: with.snapshot })
    }

    fn is_bounded(&self, request: &ScoreRequest, with: &Pinned, without: &Pinned) -> bool {
        !request.retrieval.mode.context() && with.knn == without.knn && self.shared.store.compares_all()
    }

    fn compare_span(
        &self,
        request: &ScoreRequest,
        (with, without): (&Pinned, &Pinned),
        (span, bounded): (&Span, bool),
        cancel: &AtomicBool,
        each: &mut dyn FnMut(usize, Said, Said),
    ) -> Result<(), EngineError> {
        let gone = |neighbor: &Neighbor| !without.knn_mask.sees(neighbor.shard.0 as usize);
        if !request.retrieval.mode.context() {
            // The model says the same with and without: it reads once.
            return self.visit_span(request, &[with, without], span, cancel, &mut |seen| {
                let (logits, found) = (seen.logits, seen.found);
                let known = found[0].neighbors.iter().filter(|_| bounded).map(|n| (n.shard, n.row));
                let known: HashSet<_> = known.collect();
                let comes = |neighbor: &Neighbor| bounded && !known.contains(&(neighbor.shard, neighbor.row));
                each(seen.position, said(logits, found[0], with, gone), said(logits, found[1], without, comes));
            });
        }
        // Few tokens are read between two searches for passages, so few distributions are held.
        let mut first = Vec::with_capacity(span.len());
        self.visit_span(request, &[with], span, cancel, &mut |seen| {
            first.push(said(seen.logits, seen.found[0], with, gone));
        })?;
        let mut first = first.into_iter();
        self.visit_span(request, &[without], span, cancel, &mut |seen| {
            if let Some(with) = first.next() {
                each(seen.position, with, said(seen.logits, seen.found[0], without, |_| false));
            }
        })
    }
}

fn said(logits: &[f32], found: &Found, pinned: &Pinned, other: impl Fn(&Neighbor) -> bool) -> Said {
    let weight = pinned.knn.knn_weight;
    let log_p = mixture::interpolate(&mixture::log_softmax(logits), &found.knn, weight);
    let theirs = found.neighbors.iter().zip(found.knn.weights()).filter(|(n, _)| other(n));
    // Of the whole weight, of which a cap or a gate may leave a part to the model.
    let mass = theirs.map(|(_, a)| a).sum::<f64>() * found.knn.mass();
    Said { log_p, mass, part: found.part, capped: found.capped.clone() }
}
