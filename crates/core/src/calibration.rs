//! Weights and temperatures that were tuned on validation text, and when they may be used.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::{ContentHash, Filter, KeySite, Purpose, Snapshot, SourceId};

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
    /// What part of `knn_weight` neighbours have at a token, and how sharply they weigh; all of it at `knn_temperature`, if there is none.
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

    /// Neighbours as a gate's shares see them: sharp, at half of the temperature, and broad, at twice of it.
    pub fn kernels(&self) -> [Self; 2] {
        let least = f64::from_bits(1); // of those above 0
        [0.5, 2.0]
            .map(|factor| Self { knn_temperature: (self.knn_temperature * factor).clamp(least, f64::MAX), ..*self })
    }

    /// What is wrong with them, each beginning with the name of what it is.
    pub fn faults(&self) -> Vec<&'static str> {
        let terms = |gate: Gate| [gate.sharp, gate.broad];
        let moderate =
            |gate: Gate| terms(gate).iter().flat_map(GateTerms::coefficients).all(|c| c.abs() <= MAX_COEFFICIENT);
        let falls = |gate: Gate| terms(gate).iter().all(|terms| terms.nearest <= 0.0);
        let all = [
            (self.k == 0, "k must be 1 or more"),
            (!(0.0..=1.0).contains(&self.knn_weight), "knn_weight must be from 0 to 1"),
            (!(self.knn_temperature > 0.0 && self.knn_temperature.is_finite()), "knn_temperature must be above 0"),
            (self.match_tokens > usize::from(u16::MAX), "match_tokens must be at most 65535"),
            (!is_match_bonus(self.match_bonus), "match_bonus must be from -100 to 100"),
            (!self.gate.is_none_or(moderate), "gate must have numbers from -1000000 to 1000000"),
            (
                !self.gate.is_none_or(falls),
                "gate must have nearest of 0 or less: farther neighbours weigh no more than nearer ones",
            ),
        ];
        all.into_iter().filter(|(wrong, _)| *wrong).map(|(_, what)| what).collect()
    }
}

/// How much of `knn_weight` neighbours have at a token, and how sharply they weigh among themselves: p(y) = (1 − w·(s + b))·p_lm(y) +
/// w·s·p_sharp(y) + w·b·p_broad(y), where w is `knn_weight`, p_sharp is kNN-LM's p_knn at half of `knn_temperature` and p_broad at twice of it.
/// Shares 1 − s − b, s and b are a softmax of 0 and of the two terms' sums: a mixture of experts (Jacobs et al. 1991) with a linear gate. (He et
/// al. 2021 choose one weight, at one temperature, by a network.)
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gate {
    /// For neighbours at half of the temperature.
    pub sharp: GateTerms,
    /// For neighbours at twice the temperature.
    pub broad: GateTerms,
}

/// What a [`Gate`] sums up: each number times what is known at a token.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GateTerms {
    /// Where nothing is known.
    pub bias: f64,
    /// For each unit of L2 distance (not squared) of the nearest neighbour; 0 or less.
    pub nearest: f64,
    /// For each unit of L2 distance by which the 64th nearest, or the last one if there are fewer, is farther than that.
    pub spread: f64,
    /// For each nat of the entropy of p_lm.
    pub model_entropy: f64,
    /// For the entropy of p_knn at `knn_temperature`, divided by the greatest that so many neighbours can have, which is ln n; 1 for one neighbour.
    pub neighbor_entropy: f64,
    /// For the natural logarithm of how many of the neighbours' values are different, as a part of the neighbours: 0 where all are.
    pub log_distinct: f64,
}

/// What a [`Gate`] knows at a token, with a 1 in front for the biases.
pub type GateFeatures = [f64; GateTerms::N];

impl GateTerms {
    /// Number of terms.
    pub const N: usize = 6;

    /// What each of the features is multiplied with.
    pub fn coefficients(&self) -> GateFeatures {
        let Self { bias, nearest, spread, model_entropy, neighbor_entropy, log_distinct } = *self;
        [bias, nearest, spread, model_entropy, neighbor_entropy, log_distinct]
    }

    /// Those that multiply with these.
    pub fn of_coefficients(coefficients: GateFeatures) -> Self {
        let [bias, nearest, spread, model_entropy, neighbor_entropy, log_distinct] = coefficients;
        Self { bias, nearest, spread, model_entropy, neighbor_entropy, log_distinct }
    }

    fn sum(&self, features: &GateFeatures) -> f64 {
        self.coefficients().iter().zip(features).map(|(c, f)| c * f).sum()
    }
}

impl Gate {
    /// Which neighbour's distance a gate knows besides that of the nearest, counted from 1.
    pub const RANK: usize = 64;

    /// What a gate knows at a token: squared distances of its neighbours, nearest first, of which there is at least one; the entropies of p_lm and
    /// p_knn, in nats; and how many different values the neighbours have. Few neighbours have few values whether they agree or not, so what
    /// tells of that is given as a part of what so many can have: a gate that was tuned where there are many holds where there are few.
    pub fn features(
        distances: impl ExactSizeIterator<Item = f32>,
        [model_entropy, neighbor_entropy]: [f64; 2],
        n_values: usize,
    ) -> GateFeatures {
        let n = distances.len().max(1);
        let last = n.min(Self::RANK) - 1;
        let (mut nearest, mut at_rank) = (0.0, 0.0);
        for (i, distance) in distances.take(Self::RANK).enumerate() {
            let distance = f64::from(distance).max(0.0).sqrt();
            if i == 0 {
                nearest = distance;
            }
            if i == last {
                at_rank = distance;
            }
        }
        let log_n = (n as f64).ln();
        let entropy = if n > 1 { (neighbor_entropy / log_n).min(1.0) } else { 1.0 };
        [1.0, nearest, at_rank - nearest, model_entropy, entropy, (n_values.max(1) as f64).ln() - log_n]
    }

    /// The shares of sharp and of broad neighbours, from 0 to 1 and together at most 1.
    pub fn shares(&self, features: &GateFeatures) -> [f64; 2] {
        let sums = [self.sharp.sum(features), self.broad.sum(features)];
        let greatest = sums[0].max(sums[1]).max(0.0);
        let [sharp, broad] = sums.map(|sum| (sum - greatest).exp());
        let all = (-greatest).exp() + sharp + broad;
        // Rounding must not take from the model what it does not have.
        [sharp / all, (broad / all).min(1.0 - sharp / all)]
    }
}

/// Parameters tuned on the text of named sources. Nothing that was tuned on removable data survives it: as soon as one of the
/// sources is gone, the neutral parameters take over, in the same epoch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Calibration {
    /// The model that it was tuned with.
    pub model: ContentHash,
    /// And which hidden state was the key.
    pub key_site: KeySite,
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

    /// Whether what was tuned may be used with a snapshot.
    fn holds(&self, snapshot: &Snapshot) -> bool {
        let live = |id: &SourceId| snapshot.shards.iter().any(|s| s.source.id == *id);
        let ours = snapshot.shards.iter().all(|s| s.model == self.model);
        ours && !self.tuned_on.is_empty() && self.tuned_on.iter().all(live)
    }

    /// The parameters in force for a snapshot of which a filter shows a part: of the calibrations that may be used, those of the one that was tuned on
    /// what is most like the sources that are seen (by the Jaccard index; the first of equals), so that each source can have its own beside that
    /// of all together. If none may be used, the neutral ones of the first; `None` without a calibration.
    pub fn in_force(all: &[Self], snapshot: &Snapshot, filter: &Filter) -> Option<KnnParameters> {
        let usable: Vec<&Self> = all.iter().filter(|calibration| calibration.holds(snapshot)).collect();
        match usable[..] {
            [] => all.first().map(|calibration| calibration.neutral),
            [only] => Some(only.tuned),
            [..] => Some(Self::most_alike(&usable, snapshot, filter).tuned),
        }
    }

    /// Of several, the one that was tuned on what is most like what a filter shows.
    fn most_alike<'a>(usable: &[&'a Self], snapshot: &Snapshot, filter: &Filter) -> &'a Self {
        let mask = snapshot.mask(filter, Purpose::Knn);
        let shards = snapshot.shards.iter().enumerate().filter(|(i, _)| mask.sees(*i));
        let seen: BTreeSet<&SourceId> = shards.map(|(_, shard)| &shard.source.id).collect();
        let alike = |calibration: &Self| {
            let tuned_on: BTreeSet<&SourceId> = calibration.tuned_on.iter().collect();
            seen.intersection(&tuned_on).count() as f64 / seen.union(&tuned_on).count().max(1) as f64
        };
        usable[1..].iter().fold(usable[0], |best, other| if alike(other) > alike(best) { other } else { best })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gate_is_a_softmax_of_sums() {
        let sharp = GateTerms { bias: 1.0, nearest: -0.5, spread: 0.25, ..GateTerms::default() };
        let broad = GateTerms {
            bias: 0.5,
            model_entropy: 0.25,
            neighbor_entropy: -1.0,
            log_distinct: 2.0,
            ..GateTerms::default()
        };
        let features = Gate::features([16.0, 25.0, 36.0].into_iter(), [2.0, 0.5 * 3f64.ln()], 2);
        assert_eq!(features, [1.0, 4.0, 2.0, 2.0, 0.5, 2f64.ln() - 3f64.ln()]);
        // 1 − 0.5·4 + 0.25·2 = −0.5, and 0.5 + 0.25·2 − 0.5 + 2·ln ⅔ = 0.5 + 2·ln ⅔
        let [a, b] = [(-0.5f64).exp(), 0.5f64.exp() * 4.0 / 9.0];
        let found = Gate { sharp, broad }.shares(&features);
        assert!(
            (found[0] - a / (1.0 + a + b)).abs() < 1e-15 && (found[1] - b / (1.0 + a + b)).abs() < 1e-15,
            "{found:?}"
        );
        let far = Gate::features((0..100).map(|i| if i == 63 { f32::MAX } else { 1.0 }), [0.0, 0.0], 1);
        assert_eq!(far[2], f64::from(f32::MAX).sqrt() - 1.0, "that of the 64th");
        let never = GateTerms { spread: -1e6, ..sharp };
        assert_eq!(Gate { sharp: never, broad: never }.shares(&far), [0.0, 0.0]);
        let always = GateTerms { spread: 1e6, ..sharp };
        assert_eq!(Gate { sharp: always, broad: never }.shares(&far), [1.0, 0.0]);
        assert_eq!(Gate::default().shares(&far), [1.0 / 3.0; 2]);
        for i in 0..1000 {
            let by = |bias| GateTerms { bias, ..GateTerms::default() };
            let [sharp, broad] = Gate { sharp: by(40.0), broad: by(40.0 + f64::from(i) / 99.0) }.shares(&far);
            assert!(sharp + broad <= 1.0 && broad >= 0.0, "{sharp} {broad}");
        }
        assert_eq!(GateTerms::of_coefficients(broad.coefficients()), broad);
    }

    /// One neighbour agrees with itself, and all of a few may happen to be different: that says nothing.
    #[test]
    fn few_neighbours_look_no_surer_than_many() {
        let alike = |n: usize| Gate::features((0..n).map(|_| 9.0), [1.0, (n as f64).ln()], n);
        for n in [1, 2, 17, 63, 1000] {
            let features = alike(n);
            assert!(features[4] > 1.0 - 1e-12 && features[5].abs() < 1e-12, "{n}: {features:?}");
        }
        let agreeing = Gate::features([9.0; 256].into_iter(), [1.0, 0.0], 1);
        assert_eq!((agreeing[4], agreeing[5]), (0.0, -256f64.ln()));
    }

    #[test]
    fn kernels_keep_their_temperature_above_nothing() {
        let kernels = |temperature| KnnParameters::new(1, 1.0, temperature).kernels().map(|knn| knn.knn_temperature);
        assert_eq!(kernels(16.0), [8.0, 32.0]);
        for extreme in [f64::from_bits(1), f64::MAX] {
            assert!(kernels(extreme).iter().all(|t| *t > 0.0 && t.is_finite()), "{extreme}");
        }
    }

    /// What an earlier form said of distances must not be left out in silence.
    #[test]
    fn what_is_not_known_is_refused() {
        let knn = "{\"k\": 1, \"knn_weight\": 0.5, \"knn_temperature\": 1.0}";
        let of = |more: &str| {
            let model = ContentHash::of(b"a model");
            let site = "\"key_site\": \"final-norm\"";
            let text = format!(
                "{{\"model\": \"{model}\", {site}, \"tuned_on\": [], \"tuned\": {knn}, \"neutral\": {knn}{more}}}"
            );
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
            Calibration { model, key_site: KeySite::default(), tuned_on: vec![], tuned, neutral }.fault()
        };
        assert_eq!(calibration(good, good), None);
        assert!(calibration(KnnParameters { k: 0, ..good }, good).unwrap().contains('k'));
        assert!(calibration(good, KnnParameters { knn_weight: 1.5, ..good }).unwrap().contains("knn_weight"));
        assert!(calibration(good, KnnParameters { knn_temperature: 0.0, ..good }).unwrap().contains("temperature"));
        assert!(calibration(good, KnnParameters { match_bonus: f64::NAN, ..good }).unwrap().contains("match_bonus"));
        assert!(calibration(KnnParameters { match_tokens: 1 << 16, ..good }, good).unwrap().contains("match_tokens"));
        let gated = |terms| KnnParameters { gate: Some(Gate { broad: terms, ..Gate::default() }), ..good };
        let terms = GateTerms { log_distinct: f64::INFINITY, ..GateTerms::default() };
        assert!(calibration(gated(terms), good).unwrap().contains("gate must have numbers"));
        let terms = GateTerms { nearest: 0.1, ..GateTerms::default() };
        assert!(calibration(good, gated(terms)).unwrap().contains("nearest"));
        assert_eq!(calibration(gated(GateTerms { nearest: -0.1, ..terms }), good), None);
    }
}
