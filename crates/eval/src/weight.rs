//! How much neighbours weigh at a token: the same everywhere, by how near the nearest one is, or by how much nearer it is than the farthest.

use serde::Serialize;
use silo_core::{KnnParameters, TrustByDistance, mixture};
use silo_engine::Evidence;

use crate::{EvalError, Gathered, Grid};

/// A rule for the neighbours' weight at a token.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "rule", rename_all = "kebab-case")]
pub enum WeightRule {
    /// The same at every token.
    Fixed {
        /// The weight.
        weight: f64,
    },
    /// By the distance of the nearest neighbour (Drozdov et al. 2022): that of the first bin whose end it is not beyond.
    Distance {
        /// Ends of the bins, rising; the last one is endless.
        ends: Vec<f32>,
        /// Their weights.
        weights: Vec<f64>,
    },
    /// By relative retrieval confidence (Li et al. 2024, NEST, eq. 4): 1 − sigmoid((nearest / farthest − alpha) / scale), distances squared.
    Confidence {
        /// Where the weight is a half.
        alpha: f64,
        /// How slowly it falls.
        scale: f64,
    },
}

impl WeightRule {
    /// The weight at a token with such neighbours among its first `k`.
    pub fn weight(&self, evidence: &Evidence, k: usize) -> f64 {
        let neighbors = &evidence.neighbors[..evidence.neighbors.len().min(k)];
        let (Some((nearest, _)), Some((farthest, _))) = (neighbors.first(), neighbors.last()) else { return 0.0 };
        match self {
            Self::Fixed { weight } => *weight,
            Self::Distance { ends, weights } => {
                weights[ends.partition_point(|end| end < nearest).min(weights.len() - 1)]
            }
            Self::Confidence { alpha, scale } => {
                let ratio = if *farthest > 0.0 { f64::from(*nearest) / f64::from(*farthest) } else { 1.0 };
                1.0 / (1.0 + ((ratio - alpha) / scale).exp())
            }
        }
    }
}

/// A rule with the neighbours' parameters that it was tuned with.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Ruled {
    /// Neighbours per token.
    pub k: usize,
    /// What squared distances are divided by.
    pub knn_temperature: f64,
    /// The rule.
    pub rule: WeightRule,
}

impl Ruled {
    /// The same weight at every token.
    pub fn fixed(parameters: KnnParameters) -> Self {
        let KnnParameters { k, knn_weight: weight, knn_temperature } = parameters;
        Self { k, knn_temperature, rule: WeightRule::Fixed { weight } }
    }

    /// log p of the token.
    pub fn log_probability(&self, evidence: &Evidence) -> f64 {
        let weight = self.rule.weight(evidence, self.k);
        log_p(evidence, evidence.neighbor_probability(self.k, self.knn_temperature), weight)
    }

    /// What of it lies at an end of the grid.
    pub fn edges(&self, grid: &Grid) -> Vec<&'static str> {
        let weights = match &self.rule {
            WeightRule::Fixed { weight } => std::slice::from_ref(weight),
            WeightRule::Distance { weights, .. } => weights,
            WeightRule::Confidence { .. } => &[],
        };
        grid.edges(self.k, self.knn_temperature, weights)
    }

    /// What a server is calibrated with, so that it weighs neighbours like that; `None` for a rule that servers do not have.
    pub fn calibrated(&self) -> Option<(KnnParameters, Option<TrustByDistance>)> {
        let with = |knn_weight| KnnParameters { k: self.k, knn_weight, knn_temperature: self.knn_temperature };
        match &self.rule {
            WeightRule::Fixed { weight } => Some((with(*weight), None)),
            WeightRule::Confidence { .. } => None,
            WeightRule::Distance { ends, weights } => {
                let greatest = weights.iter().copied().fold(0.0, f64::max);
                if greatest == 0.0 {
                    return Some((with(0.0), None));
                }
                let parts = weights.iter().map(|weight| weight / greatest).collect();
                let ends = ends[..ends.len() - 1].to_vec();
                Some((with(greatest), Some(TrustByDistance { ends, parts })))
            }
        }
    }
}

fn log_p(evidence: &Evidence, p_knn: Option<f64>, weight: f64) -> f64 {
    p_knn.map_or(evidence.parametric_log_probability, |p| {
        mixture::mix_one(evidence.parametric_log_probability, p, weight)
    })
}

/// Kinds of rules that are tuned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum RuleKind {
    /// [`WeightRule::Fixed`].
    Fixed,
    /// [`WeightRule::Distance`] with so many bins of equally many tokens.
    Distance {
        /// Bins.
        bins: usize,
    },
    /// [`WeightRule::Confidence`].
    Confidence,
}

impl RuleKind {
    /// Those that servers have, among which a calibration chooses.
    pub const SERVED: [Self; 4] =
        [Self::Fixed, Self::Distance { bins: 8 }, Self::Distance { bins: 64 }, Self::Distance { bins: 256 }];

    /// What tables call it.
    pub fn name(self) -> String {
        match self {
            Self::Fixed => "fixed".into(),
            Self::Distance { bins } => format!("by distance, {bins} bins"),
            Self::Confidence => "by relative confidence".into(),
        }
    }
}

const ALPHAS: [f64; 12] = [0.1, 0.2, 0.3, 0.4, 0.5, 0.55, 0.6, 0.65, 0.7, 0.8, 0.9, 1.0];
const SCALES: [f64; 6] = [0.02, 0.05, 0.1, 0.2, 0.4, 0.8];

/// Evidence with p_knn of each token at a point of the grid.
struct Point<'a> {
    k: usize,
    knn_temperature: f64,
    tokens: Vec<(&'a Evidence, Option<f64>)>,
}

/// All points of a grid: rules of many kinds are tuned on them.
pub struct Points<'a> {
    grid: &'a Grid,
    points: Vec<Point<'a>>,
}

impl<'a> Points<'a> {
    /// Computes p_knn of each token at each point.
    pub fn of(grid: &'a Grid, evidence: &[&'a Evidence]) -> Result<Self, EvalError> {
        grid.check()?;
        let at = |k: usize, knn_temperature: f64| {
            let tokens = evidence.iter().map(|e| (*e, e.neighbor_probability(k, knn_temperature))).collect();
            Point { k, knn_temperature, tokens }
        };
        let points = grid.k.iter().flat_map(|k| grid.knn_temperature.iter().map(move |t| at(*k, *t)));
        Ok(Self { grid, points: points.collect() })
    }
}

/// The rule of a kind that is best on some evidence, over all k and temperatures of the grid; and Σ −ln p there.
pub fn tune_rule(kind: RuleKind, points: &Points<'_>) -> Result<(Ruled, f64), EvalError> {
    let mut best: Option<(Ruled, f64)> = None;
    for Point { k, knn_temperature, tokens } in &points.points {
        for rule in candidates(kind, points.grid, tokens) {
            let nats = tokens.iter().map(|(e, p)| -log_p(e, *p, rule.weight(e, *k))).sum();
            if best.as_ref().is_none_or(|(_, least)| nats < *least) {
                best = Some((Ruled { k: *k, knn_temperature: *knn_temperature, rule }, nats));
            }
        }
    }
    best.ok_or(EvalError::EmptyGrid("point"))
}

/// A rule that was chosen.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Chosen {
    /// Of which kind it is.
    pub kind: RuleKind,
    /// The rule, tuned on all text.
    pub ruled: Ruled,
    /// Σ −ln p of each kind that servers have, on each half of the text with what was tuned on the other.
    pub between_halves: Vec<f64>,
}

/// Of the rules that servers have, the one of the kind that holds best between the first and second halves of the texts.
pub fn choose_rule(grid: &Grid, texts: &[Gathered]) -> Result<Chosen, EvalError> {
    let halves = texts.iter().map(|g| g.evidence.split_at(g.evidence.len() / 2));
    let (first, second): (Vec<&[Evidence]>, Vec<&[Evidence]>) = halves.unzip();
    let [first, second] = [first, second].map(|half| half.into_iter().flatten().collect::<Vec<_>>());
    let (kind, between_halves) = choose_kind(&RuleKind::SERVED, grid, [&first, &second])?;
    let all: Vec<&Evidence> = texts.iter().flat_map(|g| &g.evidence).collect();
    Ok(Chosen { kind, ruled: tune_rule(kind, &Points::of(grid, &all)?)?.0, between_halves })
}

/// The kind of which rules tuned on one part of the evidence are best on the other, both ways; and Σ −ln p there, of each kind. Many bins fit
/// whatever they are tuned on, so they are not judged by that.
fn choose_kind(kinds: &[RuleKind], grid: &Grid, parts: [&[&Evidence]; 2]) -> Result<(RuleKind, Vec<f64>), EvalError> {
    let mut losses = vec![0.0; kinds.len()];
    for (tuned_on, scored) in [(parts[0], parts[1]), (parts[1], parts[0])] {
        let points = Points::of(grid, tuned_on)?;
        for (kind, nats) in kinds.iter().zip(&mut losses) {
            let (ruled, _) = tune_rule(*kind, &points)?;
            *nats -= scored.iter().map(|e| ruled.log_probability(e)).sum::<f64>();
        }
    }
    let best = kinds.iter().zip(&losses).min_by(|a, b| a.1.total_cmp(b.1));
    let (kind, _) = best.ok_or(EvalError::EmptyGrid("kind of rule"))?;
    Ok((*kind, losses))
}

fn candidates(kind: RuleKind, grid: &Grid, tokens: &[(&Evidence, Option<f64>)]) -> Vec<WeightRule> {
    match kind {
        RuleKind::Fixed => grid.knn_weight.iter().map(|&weight| WeightRule::Fixed { weight }).collect(),
        RuleKind::Distance { bins } => vec![by_distance(bins, grid, tokens)],
        RuleKind::Confidence => ALPHAS
            .iter()
            .flat_map(|&alpha| SCALES.iter().map(move |&scale| WeightRule::Confidence { alpha, scale }))
            .collect(),
    }
}

/// Bins of equally many tokens by the nearest distance, each with the weight that is best for its tokens.
fn by_distance(bins: usize, grid: &Grid, tokens: &[(&Evidence, Option<f64>)]) -> WeightRule {
    let nearest = |e: &Evidence| e.neighbors.first().map(|(distance, _)| *distance);
    let mut sorted: Vec<(f32, &Evidence, Option<f64>)> =
        tokens.iter().filter_map(|(e, p)| Some((nearest(e)?, *e, *p))).collect();
    sorted.sort_by(|a, b| a.0.total_cmp(&b.0));
    let (mut ends, mut weights, mut rest) = (Vec::new(), Vec::new(), &sorted[..]);
    let size = sorted.len().div_ceil(bins.max(1)).max(1);
    while let Some((last, ..)) = rest.get(size - 1).or(rest.last()) {
        // Tokens of one distance fall into one bin.
        let (bin, others) = rest.split_at(rest.partition_point(|(distance, ..)| distance <= last));
        let nats = |weight: f64| bin.iter().map(|(_, e, p)| -log_p(e, *p, weight)).sum::<f64>();
        let best = grid.knn_weight.iter().copied().min_by(|a, b| nats(*a).total_cmp(&nats(*b)));
        ends.push(*last);
        weights.push(best.unwrap_or_default());
        rest = others;
    }
    if weights.is_empty() {
        return WeightRule::Fixed { weight: 0.0 };
    }
    WeightRule::Distance { ends, weights }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(lm: f64, nearest: f32, hit: bool) -> Evidence {
        let neighbors = vec![(nearest, hit), (10.0, !hit)];
        Evidence { parametric_log_probability: lm, tempered: Vec::new(), neighbors }
    }

    fn grid() -> Grid {
        let weights = (0..10).map(|w| f64::from(w) / 10.0).collect();
        Grid { k: vec![1, 2], knn_temperature: vec![0.5, 1.0], knn_weight: weights, model_temperature: vec![1.0] }
    }

    /// Near neighbours are right and far ones wrong: a rule that sees the distance gives the near ones all weight and the far ones none.
    #[test]
    fn near_neighbours_are_trusted_where_they_are_right() {
        let near: Vec<Evidence> = (0..50).map(|i| token(-3.0, 0.01 * i as f32, true)).collect();
        let far: Vec<Evidence> = (0..50).map(|i| token(-0.5, 5.0 + 0.01 * i as f32, false)).collect();
        let all: Vec<&Evidence> = near.iter().chain(&far).collect();
        let grid = grid();
        let points = Points::of(&grid, &all).unwrap();
        let tuned = |kind| tune_rule(kind, &points).unwrap();
        let (fixed, distance, confidence) =
            (tuned(RuleKind::Fixed), tuned(RuleKind::Distance { bins: 4 }), tuned(RuleKind::Confidence));
        assert!(distance.1 < fixed.1 - 10.0 && confidence.1 < fixed.1 - 10.0, "{fixed:?} {distance:?} {confidence:?}");
        let WeightRule::Distance { ends, weights } = &distance.0.rule else { panic!("{distance:?}") };
        assert_eq!((ends.len(), weights[0], weights[3]), (4, 0.9, 0.0));
        for (ruled, nats) in [&fixed, &distance, &confidence] {
            let sum: f64 = all.iter().map(|e| -ruled.log_probability(e)).sum();
            assert!((sum - nats).abs() < 1e-9, "what was tuned is what is scored");
        }
        let nothing = Evidence { neighbors: Vec::new(), ..near[0].clone() };
        assert_eq!(distance.0.log_probability(&nothing), -3.0);
    }

    /// Few tokens in many bins: what fits the one half best is not what holds for the other.
    #[test]
    fn many_bins_are_not_chosen_for_what_they_fit() {
        let noise = |i: usize| token(-1.0, (i * 37 % 101) as f32, (i * 7919).is_multiple_of(3));
        let all: Vec<Evidence> = (0..80).map(noise).collect();
        let all: Vec<&Evidence> = all.iter().collect();
        let kinds = [RuleKind::Fixed, RuleKind::Distance { bins: 64 }];
        let grid = grid();
        let points = Points::of(&grid, &all).unwrap();
        let fitted = |kind| tune_rule(kind, &points).unwrap().1;
        assert!(fitted(kinds[1]) < fitted(kinds[0]), "64 bins fit better what they were tuned on");
        let (chosen, losses) = choose_kind(&kinds, &grid, [&all[..40], &all[40..]]).unwrap();
        assert_eq!(chosen, RuleKind::Fixed, "{losses:?}");
    }

    #[test]
    fn a_server_weighs_as_the_rule_does() {
        let all: Vec<Evidence> = (0..60).map(|i| token(-2.0, (i / 3 % 13) as f32 * 0.5, i % 3 == 0)).collect();
        let all: Vec<&Evidence> = all.iter().collect();
        let grid = grid();
        let points = Points::of(&grid, &all).unwrap();
        for kind in [RuleKind::Fixed, RuleKind::Distance { bins: 1 }, RuleKind::Distance { bins: 20 }] {
            let ruled = tune_rule(kind, &points).unwrap().0;
            let (knn, trust) = ruled.calibrated().unwrap();
            // Between and beyond the distances that it was tuned on, too.
            for nearest in (0..200).map(|i| i as f32 * 0.05) {
                let e = &token(-2.0, nearest, true);
                let part = trust.as_ref().map_or(1.0, |trust| trust.at(nearest));
                assert!((part * knn.knn_weight - ruled.rule.weight(e, ruled.k)).abs() < 1e-12, "{nearest}");
            }
        }
        assert_eq!(tune_rule(RuleKind::Confidence, &points).unwrap().0.calibrated(), None);
    }

    #[test]
    fn one_bin_is_the_fixed_weight() {
        let all: Vec<Evidence> = (0..20).map(|i| token(-2.0, i as f32, i % 3 == 0)).collect();
        let all: Vec<&Evidence> = all.iter().collect();
        let grid = grid();
        let points = Points::of(&grid, &all).unwrap();
        let fixed = tune_rule(RuleKind::Fixed, &points).unwrap().1;
        let one = tune_rule(RuleKind::Distance { bins: 1 }, &points).unwrap().1;
        assert!((fixed - one).abs() < 1e-9);
    }
}
