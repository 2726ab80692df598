//! What log-probabilities of a text are made of: gathered once, and scored under many settings.

use std::sync::atomic::AtomicBool;

use silo_core::{Gate, GateFeatures, KnnParameters, TokenId, mixture};

use crate::found::Found;
use crate::score::{Place, Seen};
use crate::{Engine, EngineError, ScoreRequest};

/// What the log-probability of one token is made of, for any way to weigh up to as many neighbours as were searched for.
#[derive(Debug, Clone, PartialEq)]
pub struct Evidence {
    /// The token.
    pub token: TokenId,
    /// log p of the token by the model alone.
    pub parametric_log_probability: f64,
    /// Entropy of what the model alone says, in nats.
    pub model_entropy: f64,
    /// log p of the token by the model alone at each of its temperatures that were asked for: what can be had without a store.
    pub tempered: Vec<f64>,
    /// The neighbours, nearest first.
    pub neighbors: Vec<Retrieved>,
}

/// A neighbour, as far as it weighs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Retrieved {
    /// Squared L2 distance.
    pub distance: f32,
    /// Its value.
    pub value: TokenId,
    /// How many tokens before the value are the last ones of the text.
    pub matched: u16,
}

/// A token as the model alone sees it.
#[derive(Debug, Clone, PartialEq)]
pub struct Observation {
    /// The token.
    pub token: TokenId,
    /// log p of it.
    pub parametric_log_probability: f64,
    /// Entropy of what the model says, in nats.
    pub model_entropy: f64,
    /// The hidden state at the configured site that neighbours would be searched for with: `[key_dim]`.
    pub key: Vec<f32>,
}

/// What neighbours say of a token.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Weighed {
    /// p_knn of the token.
    pub probability: f64,
    /// What a gate knows.
    pub features: GateFeatures,
}

/// Room in which the weights of values are summed up, to be used again for the next token.
#[derive(Debug, Default)]
pub struct Sums {
    /// By value; 0 between two uses.
    of: Vec<f64>,
    /// Those that are not 0.
    values: Vec<TokenId>,
}

impl Evidence {
    /// Weighs the first k neighbours, of which at least as many tokens were compared as `knn` asks for; `None` without a neighbour.
    pub fn weigh(&self, knn: &KnnParameters, sums: &mut Sums) -> Option<Weighed> {
        let neighbors = &self.neighbors[..self.neighbors.len().min(knn.k)];
        let nearest = neighbors.first()?.distance;
        let at_most = knn.match_tokens.min(usize::from(u16::MAX)) as u16;
        let log_weight = |n: &Retrieved| knn.log_weight(nearest, n.distance, n.matched.min(at_most));
        let greatest = neighbors.iter().map(log_weight).fold(f64::NEG_INFINITY, f64::max);
        for neighbor in neighbors {
            sums.add(neighbor.value, (log_weight(neighbor) - greatest).exp());
        }
        let (of_token, all, entropy) = sums.take(self.token);
        Some(Weighed { probability: of_token / all, features: Gate::features(nearest, self.model_entropy, entropy) })
    }

    /// log p of the token with these parameters, as [`Engine::score`] computes it.
    pub fn log_probability(&self, knn: &KnnParameters, sums: &mut Sums) -> f64 {
        let part = |weighed: &Weighed| knn.gate.map_or(1.0, |gate| gate.part(&weighed.features));
        let weighed = self.weigh(knn, sums);
        weighed.map_or(self.parametric_log_probability, |w| self.mixed(&w, knn.knn_weight * part(&w)))
    }

    /// log p of the token where neighbours that say this have a weight.
    pub fn mixed(&self, weighed: &Weighed, weight: f64) -> f64 {
        mixture::mix_one(self.parametric_log_probability, weighed.probability, weight)
    }
}

impl Sums {
    fn add(&mut self, value: TokenId, weight: f64) {
        let at = value as usize;
        if at >= self.of.len() {
            self.of.resize(at + 1, 0.0);
        }
        if self.of[at] == 0.0 {
            self.values.push(value); // again, if the weight is 0 as well, which adds nothing
        }
        self.of[at] += weight;
    }

    /// The sum of a value, that of all, and the entropy of their distribution in nats; leaves nothing.
    fn take(&mut self, value: TokenId) -> (f64, f64, f64) {
        let of_value = self.of.get(value as usize).copied().unwrap_or(0.0);
        let (mut all, mut logs) = (0.0, 0.0);
        for value in self.values.drain(..) {
            let sum = std::mem::take(&mut self.of[value as usize]);
            if sum > 0.0 {
                all += sum;
                logs += sum * sum.ln();
            }
        }
        (of_value, all, all.ln() - logs / all)
    }
}

impl Engine {
    /// What [`Self::score`] would compute from, per token: one search, from which many settings can be scored. Without a cap on sources, which
    /// depends on the setting.
    pub fn evidence(
        &self,
        request: &ScoreRequest,
        temperatures: &[f64],
        cancel: &AtomicBool,
    ) -> Result<Vec<Evidence>, EngineError> {
        let mut pinned = self.pin_for_score(request)?;
        pinned.influence_cap = 1.0; // it depends on weights, of which there are many here
        let mut out = Vec::with_capacity(request.tokens.len());
        let _place = Place::take(self)?;
        let mut each = |seen: &Seen<'_>| {
            out.push(evidence(request.tokens[seen.position], seen.logits, seen.found[0], temperatures));
        };
        for span in self.spans(request)? {
            self.visit_span(request, &[&pinned], &span, cancel, &mut each)?;
        }
        Ok(out)
    }

    /// What the model alone says of each token and what neighbours would be searched for with, in a mode that has them. Nothing is searched for.
    pub fn observe(&self, request: &ScoreRequest, cancel: &AtomicBool) -> Result<Vec<Observation>, EngineError> {
        let pinned = self.pin_for_score(request)?;
        let mut out = Vec::with_capacity(request.tokens.len());
        let _place = Place::take(self)?;
        let mut each = |seen: &Seen<'_>| {
            let token = request.tokens[seen.position];
            let log_p = mixture::log_softmax(seen.logits);
            out.push(Observation {
                token,
                parametric_log_probability: log_p[token as usize],
                model_entropy: mixture::entropy(log_p.into_iter()),
                key: seen.key.to_vec(),
            });
        };
        for span in self.spans(request)? {
            let layout = self.layout(request, &pinned, &span)?;
            self.visit_input(request, &[], (&span, &layout.tokens), cancel, &mut each)?;
        }
        Ok(out)
    }
}

fn evidence(token: TokenId, logits: &[f32], found: &Found, temperatures: &[f64]) -> Evidence {
    let log_p = mixture::log_softmax(logits);
    let retrieved = |n: &silo_core::Neighbor| Retrieved { distance: n.distance, value: n.value, matched: n.matched };
    Evidence {
        token,
        parametric_log_probability: log_p[token as usize],
        model_entropy: mixture::entropy(log_p.into_iter()),
        tempered: temperatures.iter().map(|t| tempered(logits, *t, token)).collect(),
        neighbors: found.neighbors.iter().map(retrieved).collect(),
    }
}

/// log p of a token by the model alone at a temperature.
fn tempered(logits: &[f32], temperature: f64, token: TokenId) -> f64 {
    let divided: Vec<f32> = logits.iter().map(|logit| (f64::from(*logit) / temperature) as f32).collect();
    mixture::log_softmax(&divided)[token as usize]
}
