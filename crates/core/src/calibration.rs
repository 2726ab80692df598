//! Weights and temperatures that were tuned on validation text, and when they may be used.

use serde::{Deserialize, Serialize};

use crate::{ContentHash, Snapshot, SourceId};

/// How neighbours weigh in p(y): the three numbers of kNN-LM (Khandelwal et al. 2020, eq. 2–3), and what may be known of a neighbour besides its
/// distance.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KnnParameters {
    /// Neighbours per token.
    pub k: usize,
    /// Weight of the neighbours in p(y), from 0 to 1; with a gate, the greatest that they can have.
    pub knn_weight: f64,
    /// Divides the negative squared L2 distance; above 0.
    pub knn_temperature: f64,
    /// So many tokens before a neighbour's value are compared with the last ones of the text, from 0 to 65,535.
    #[serde(default = "match_tokens")]
    pub match_tokens: usize,
    /// Added to the logarithm of a neighbour's weight, in nats, for each of them that is the same, counted back from the last one up to the first
    /// that is not; from −100 to 100. 0: only the distance counts. Below 0: copies of the text are kept away.
    #[serde(default)]
    pub match_bonus: f64,
    /// What part of `knn_weight` neighbours have at a token; all of it, if there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gate: Option<Gate>,
}

/// Keeps the sums of a gate finite.
const MAX_COEFFICIENT: f64 = 1e6;

/// Whether a neighbour may gain so much for a token that matches.
pub fn is_match_bonus(bonus: f64) -> bool {
    bonus.abs() <= KnnParameters::MAX_MATCH_BONUS
}

fn match_tokens() -> usize {
    KnnParameters::MATCH_TOKENS
}

impl KnnParameters {
    /// The default of `match_tokens`.
    pub const MATCH_TOKENS: usize = 16;
    /// The greatest `match_bonus`, and the negative of the least.
    pub const MAX_MATCH_BONUS: f64 = 100.0;

    /// Those of kNN-LM as it was published: a fixed weight, and only the distance counts.
    pub fn new(k: usize, knn_weight: f64, knn_temperature: f64) -> Self {
        Self { k, knn_weight, knn_temperature, match_tokens: Self::MATCH_TOKENS, match_bonus: 0.0, gate: None }
    }

    /// The logarithm of what a neighbour weighs beside the nearest one, had that nothing that matches: never above what its matches give it, so that
    /// no temperature, however small, makes all of them infinitely light.
    pub fn log_weight(&self, nearest: f32, distance: f32, matched: u16) -> f64 {
        self.match_bonus * f64::from(matched) - (f64::from(distance) - f64::from(nearest)) / self.knn_temperature
    }

    /// What is wrong with them, each beginning with the name of what it is.
    pub fn faults(&self) -> Vec<&'static str> {
        let moderate = |gate: Gate| gate.coefficients().iter().all(|c| c.abs() <= MAX_COEFFICIENT);
        let all = [
            (self.k == 0, "k must be 1 or more"),
            (!(0.0..=1.0).contains(&self.knn_weight), "knn_weight must be from 0 to 1"),
            (!(self.knn_temperature > 0.0 && self.knn_temperature.is_finite()), "knn_temperature must be above 0"),
            (self.match_tokens > usize::from(u16::MAX), "match_tokens must be at most 65535"),
            (!is_match_bonus(self.match_bonus), "match_bonus must be from -100 to 100"),
            (!self.gate.is_none_or(moderate), "gate must have numbers from -1000000 to 1000000"),
        ];
        all.into_iter().filter(|(wrong, _)| *wrong).map(|(_, what)| what).collect()
    }
}

/// What part of `knn_weight` neighbours have at a token: σ(bias + Σ coefficient · what is known there), a logistic regression (as the networks that
/// choose the weight in He et al. 2021, over fewer and plainer features).
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gate {
    /// Where nothing is known.
    pub bias: f64,
    /// For each unit of L2 distance (not squared) of the nearest neighbour.
    pub distance: f64,
    /// For each nat of the entropy of p_lm.
    pub model_entropy: f64,
    /// For each nat of the entropy of p_knn.
    pub neighbor_entropy: f64,
}

/// What a [`Gate`] knows at a token, with a 1 in front for its bias.
pub type GateFeatures = [f64; 4];

impl Gate {
    /// What a gate knows at a token: the squared distance of the nearest neighbour, and both entropies in nats.
    pub fn features(nearest: f32, model_entropy: f64, neighbor_entropy: f64) -> GateFeatures {
        [1.0, f64::from(nearest).max(0.0).sqrt(), model_entropy, neighbor_entropy]
    }

    /// What each of the features is multiplied with.
    pub fn coefficients(&self) -> GateFeatures {
        [self.bias, self.distance, self.model_entropy, self.neighbor_entropy]
    }

    /// The gate that multiplies with these.
    pub fn of_coefficients([bias, distance, model_entropy, neighbor_entropy]: GateFeatures) -> Self {
        Self { bias, distance, model_entropy, neighbor_entropy }
    }

    /// The part, from 0 to 1.
    pub fn part(&self, features: &GateFeatures) -> f64 {
        let x: f64 = self.coefficients().iter().zip(features).map(|(c, f)| c * f).sum();
        1.0 / (1.0 + (-x).exp())
    }
}

/// Parameters tuned on the text of named sources. Nothing that was tuned on removable data survives it: as soon as one of the
/// sources is gone, the neutral parameters take over, in the same epoch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Calibration {
    /// The model that it was tuned with.
    pub model: ContentHash,
    /// Sources whose text it was tuned on, if that may be withdrawn.
    pub tuned_on: Vec<SourceId>,
    /// What was found best there.
    pub tuned: KnnParameters,
    /// What holds otherwise; tuned on open text, or chosen by hand.
    pub neutral: KnnParameters,
}

impl Calibration {
    /// What is wrong with it, if something is: an engine takes none with a fault.
    pub fn fault(&self) -> Option<&'static str> {
        self.tuned.faults().into_iter().chain(self.neutral.faults()).next()
    }

    /// The parameters in force for a snapshot.
    pub fn in_force(&self, snapshot: &Snapshot) -> KnnParameters {
        let live = |id: &SourceId| snapshot.shards.iter().any(|s| s.source.id == *id);
        let ours = snapshot.shards.iter().all(|s| s.model == self.model);
        if ours && !self.tuned_on.is_empty() && self.tuned_on.iter().all(live) { self.tuned } else { self.neutral }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gate_is_a_logistic_regression() {
        let gate = Gate { bias: 1.0, distance: -0.5, model_entropy: 0.25, neighbor_entropy: -1.0 };
        // 1 − 0.5·√16 + 0.25·2 − 1·0.5 = −1
        let part = gate.part(&Gate::features(16.0, 2.0, 0.5));
        assert!((part - 1.0 / (1.0 + 1f64.exp())).abs() < 1e-15, "{part}");
        let far = Gate { distance: -1e6, ..gate }.part(&Gate::features(f32::MAX, 0.0, 0.0));
        assert_eq!((far, Gate::default().part(&Gate::features(1.0, 1.0, 1.0))), (0.0, 0.5));
        assert_eq!(Gate::of_coefficients(gate.coefficients()), gate);
    }

    /// What an earlier form said of distances must not be left out in silence.
    #[test]
    fn what_is_not_known_is_refused() {
        let knn = "{\"k\": 1, \"knn_weight\": 0.5, \"knn_temperature\": 1.0}";
        let of = |more: &str| {
            let model = ContentHash::of(b"a model");
            let text =
                format!("{{\"model\": \"{model}\", \"tuned_on\": [], \"tuned\": {knn}, \"neutral\": {knn}{more}}}");
            serde_json::from_str::<Calibration>(&text)
        };
        assert_eq!(of("").unwrap().tuned, KnnParameters::new(1, 0.5, 1.0));
        let error = of(", \"trust_by_distance\": {\"ends\": [], \"parts\": [1.0]}").unwrap_err().to_string();
        assert!(error.contains("trust_by_distance"), "{error}");
    }

    #[test]
    fn senseless_parameters_have_a_fault() {
        let good = KnnParameters::new(1, 1.0, 1.0);
        let calibration = |tuned, neutral| {
            let model = ContentHash::of(b"a model");
            Calibration { model, tuned_on: vec![], tuned, neutral }.fault()
        };
        assert_eq!(calibration(good, good), None);
        assert!(calibration(KnnParameters { k: 0, ..good }, good).unwrap().contains('k'));
        assert!(calibration(good, KnnParameters { knn_weight: 1.5, ..good }).unwrap().contains("knn_weight"));
        assert!(calibration(good, KnnParameters { knn_temperature: 0.0, ..good }).unwrap().contains("temperature"));
        assert!(calibration(good, KnnParameters { match_bonus: f64::NAN, ..good }).unwrap().contains("match_bonus"));
        assert!(calibration(KnnParameters { match_tokens: 1 << 16, ..good }, good).unwrap().contains("match_tokens"));
        let gate = Some(Gate { distance: f64::INFINITY, ..Gate::default() });
        assert!(calibration(KnnParameters { gate, ..good }, good).unwrap().contains("gate"));
    }
}
