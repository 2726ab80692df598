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

/// What neighbours say of a token, by any gate.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Weighed {
    /// p_knn of the token, sharp and broad.
    pub kernels: [f64; 2],
    /// What a gate knows.
    pub features: GateFeatures,
}

/// Room in which the weights of values are summed up, to be used again for the next token.
#[derive(Debug, Default)]
pub struct Sums {
    /// By value: the last sum that it had a part in, and its part.
    of: Vec<(u64, f64)>,
    /// Values of this sum.
    values: Vec<TokenId>,
    /// Number of this sum.
    n: u64,
}

/// What neighbours say at one temperature.
struct Summed {
    /// p_knn of the token.
    probability: f64,
    /// Entropy of p_knn, in nats.
    entropy: f64,
    /// Different values.
    n_values: usize,
}

impl Evidence {
    /// p_knn of the token by the first k neighbours, of which at least as many tokens were compared as `knn` asks for; `None` without a
    /// neighbour. Whatever a gate says.
    pub fn probability(&self, knn: &KnnParameters, sums: &mut Sums) -> Option<f64> {
        self.summed(knn, sums).map(|summed| summed.probability)
    }

    /// The same for a gate.
    pub fn weigh(&self, knn: &KnnParameters, sums: &mut Sums) -> Option<Weighed> {
        let Summed { entropy, n_values, .. } = self.summed(knn, sums)?;
        let distances = self.first(knn.k).iter().map(|n| n.distance);
        let features = Gate::features(distances, [self.model_entropy, entropy], n_values);
        let [sharp, broad] = knn.kernels();
        Some(Weighed { kernels: [self.probability(&sharp, sums)?, self.probability(&broad, sums)?], features })
    }

    fn first(&self, k: usize) -> &[Retrieved] {
        &self.neighbors[..self.neighbors.len().min(k)]
    }

    fn summed(&self, knn: &KnnParameters, sums: &mut Sums) -> Option<Summed> {
        let neighbors = self.first(knn.k);
        let nearest = neighbors.first()?.distance;
        let at_most = knn.match_tokens.min(usize::from(u16::MAX)) as u16;
        let log_weight = |n: &Retrieved| knn.log_weight(nearest, n.distance, n.matched.min(at_most));
        let greatest = neighbors.iter().map(log_weight).fold(f64::NEG_INFINITY, f64::max);
        sums.begin();
        neighbors.iter().for_each(|n| sums.add(n.value, (log_weight(n) - greatest).exp()));
        Some(sums.end(self.token))
    }

    /// log p of the token with these parameters, as [`Engine::score`] computes it.
    pub fn log_probability(&self, knn: &KnnParameters, sums: &mut Sums) -> f64 {
        let found = match knn.gate {
            None => self.probability(knn, sums).map(|p_knn| self.mixed(p_knn, knn.knn_weight)),
            Some(gate) => self.weigh(knn, sums).map(|weighed| self.gated(&weighed, knn.knn_weight, &gate)),
        };
        found.unwrap_or(self.parametric_log_probability)
    }

    /// log p of the token where neighbours that say this have a weight.
    pub fn mixed(&self, p_knn: f64, weight: f64) -> f64 {
        mixture::mix_one(self.parametric_log_probability, p_knn, weight)
    }

    /// The same where a gate leaves them a part of it.
    pub fn gated(&self, weighed: &Weighed, weight: f64, gate: &Gate) -> f64 {
        let [sharp, broad] = gate.shares(&weighed.features);
        let both = sharp + broad;
        if both == 0.0 {
            return self.parametric_log_probability;
        }
        self.mixed((sharp * weighed.kernels[0] + broad * weighed.kernels[1]) / both, (weight * both).min(1.0))
    }
}

impl Sums {
    fn begin(&mut self) {
        self.n += 1;
        self.values.clear();
    }

    fn add(&mut self, value: TokenId, weight: f64) {
        let at = value as usize;
        if at >= self.of.len() {
            self.of.resize(at + 1, (0, 0.0));
        }
        let (last, sum) = &mut self.of[at];
        if *last == self.n {
            *sum += weight;
        } else {
            (*last, *sum) = (self.n, weight);
            self.values.push(value);
        }
    }

    fn end(&self, token: TokenId) -> Summed {
        let (mut all, mut logs) = (0.0, 0.0);
        for sum in self.values.iter().map(|value| self.of[*value as usize].1).filter(|sum| *sum > 0.0) {
            all += sum;
            logs += sum * sum.ln();
        }
        let of_token = self.of.get(token as usize).filter(|(last, _)| *last == self.n).map_or(0.0, |(_, sum)| *sum);
        Summed { probability: of_token / all, entropy: all.ln() - logs / all, n_values: self.values.len() }
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

    /// What the model alone says of each token and what neighbours would be searched for with, in a mode that has them. Nothing is searched for, and modes
    /// that read passages are refused.
    pub fn observe(&self, request: &ScoreRequest, cancel: &AtomicBool) -> Result<Vec<Observation>, EngineError> {
        let mode = request.retrieval.mode;
        if mode.context() {
            let rule = "what is observed must not depend on the store; ask for a mode without passages".into();
            return Err(EngineError::Invalid { field: "retrieval.mode", value: format!("{mode:?}"), rule });
        }
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
