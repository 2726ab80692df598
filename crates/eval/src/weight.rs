//! How much neighbours weigh at a token: the same everywhere, by how near the nearest one is, by how much nearer it is than the farthest, or as a
//! gate says.

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use silo_core::{Gate, KnnParameters};
use silo_engine::{Evidence, Sums, Weighed};

use crate::gate::fit_gate;
use crate::tune::Point;
use crate::{EvalError, Gathered, Grid, Points};

/// A rule for the neighbours' weight at a token.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
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
    /// By how near neighbours are and how sure of themselves they and the model are, at two temperatures.
    Gate {
        /// What the gate leaves a part of.
        weight: f64,
        /// The gate.
        gate: Gate,
    },
}

impl WeightRule {
    /// The weight at a token with these neighbours, and at most so many; a gate's is that without its gate.
    fn weight(&self, evidence: &Evidence, k: usize) -> f64 {
        let neighbors = &evidence.neighbors[..evidence.neighbors.len().min(k)];
        let [nearest, farthest] = [neighbors.first(), neighbors.last()].map(|n| n.map_or(0.0, |n| n.distance));
        match self {
            Self::Fixed { weight } | Self::Gate { weight, .. } => *weight,
            Self::Distance { ends, weights } => {
                weights[ends.partition_point(|end| *end < nearest).min(weights.len() - 1)]
            }
            Self::Confidence { alpha, scale } => {
                let ratio = if farthest > 0.0 { f64::from(nearest) / f64::from(farthest) } else { 1.0 };
                1.0 / (1.0 + ((ratio - alpha) / scale).exp())
            }
        }
    }
}

/// A rule with the neighbours' parameters that it was tuned with.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Ruled {
    /// How neighbours weigh among themselves; their weight among all is the rule's.
    pub knn: KnnParameters,
    /// The rule.
    pub rule: WeightRule,
}

impl Ruled {
    /// log p of the token.
    pub fn log_probability(&self, evidence: &Evidence, sums: &mut Sums) -> f64 {
        let weight = self.rule.weight(evidence, self.knn.k);
        let gate = if let WeightRule::Gate { gate, .. } = self.rule { Some(gate) } else { None };
        evidence.log_probability(&KnnParameters { knn_weight: weight, gate, ..self.knn }, sums)
    }

    /// What a server weighs neighbours like that with; `None` for a rule that servers do not have.
    pub fn parameters(&self) -> Option<KnnParameters> {
        match self.rule {
            WeightRule::Fixed { weight } => Some(KnnParameters { knn_weight: weight, ..self.knn }),
            WeightRule::Gate { weight, gate } => {
                Some(KnnParameters { knn_weight: weight, gate: Some(gate), ..self.knn })
            }
            WeightRule::Distance { .. } | WeightRule::Confidence { .. } => None,
        }
    }
}

/// Kinds of rules that are tuned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
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
    /// [`WeightRule::Gate`].
    Gate,
}

impl RuleKind {
    /// Those that servers have, among which a calibration chooses.
    pub const SERVED: [Self; 2] = [Self::Fixed, Self::Gate];

    /// What tables call it.
    pub fn name(self) -> String {
        match self {
            Self::Fixed => "fixed".into(),
            Self::Distance { bins } => format!("by distance, {bins} bins"),
            Self::Confidence => "by relative confidence".into(),
            Self::Gate => "gate".into(),
        }
    }
}

const ALPHAS: [f64; 12] = [0.1, 0.2, 0.3, 0.4, 0.5, 0.55, 0.6, 0.65, 0.7, 0.8, 0.9, 1.0];
const SCALES: [f64; 6] = [0.02, 0.05, 0.1, 0.2, 0.4, 0.8];

/// The rule of a kind that is best on some evidence, over the points of the grid; and Σ −ln p there. Without `matches`, only over those where what
/// stands before a neighbour does not count. A gate is fitted where a fixed weight is best, and from there at the points beside it as long as
/// one is better: at each it takes a search of its own.
pub fn tune_rule(kind: RuleKind, points: &Points<'_>, matches: bool) -> Result<(Ruled, f64), EvalError> {
    let allowed = |knn: &KnnParameters| matches || knn.match_bonus == 0.0;
    if kind == RuleKind::Gate {
        let (fixed, _) = tune_rule(RuleKind::Fixed, points, matches)?;
        return Ok(climb(points, &allowed, fixed.knn));
    }
    let of_point = |point: &Point| {
        let rules = candidates(kind, points.grid, points.evidence, point).into_iter();
        let tuned = rules.map(|rule| (loss(points.evidence, point, &rule), Ruled { knn: point.knn, rule }));
        tuned.reduce(|best, other| if other.0 < best.0 { other } else { best })
    };
    let wanted = points.points.par_iter().filter(|point| allowed(&point.knn));
    let best: Vec<Option<(f64, Ruled)>> = wanted.map(of_point).collect();
    let best = best.into_iter().flatten().reduce(|best, other| if other.0 < best.0 { other } else { best });
    best.map(|(nats, ruled)| (ruled, nats)).ok_or(EvalError::EmptyGrid("point"))
}

/// The best gate of those at a point of the grid and at points to which each step is to one beside the best so far.
fn climb(points: &Points<'_>, allowed: &dyn Fn(&KnnParameters) -> bool, from: KnnParameters) -> (Ruled, f64) {
    let fit = |knn: &KnnParameters| gated(points, knn);
    let mut best = fit(&from);
    let mut tried = vec![from];
    loop {
        let beside = points.grid.beside(&best.0.knn);
        let new: Vec<KnnParameters> = beside.into_iter().filter(|knn| allowed(knn) && !tried.contains(knn)).collect();
        let fitted: Vec<(Ruled, f64)> = new.par_iter().map(fit).collect();
        tried.extend(new);
        let Some(next) = fitted.into_iter().filter(|(_, nats)| *nats < best.1).min_by(|a, b| a.1.total_cmp(&b.1))
        else {
            return best;
        };
        best = next;
    }
}

fn gated(points: &Points<'_>, knn: &KnnParameters) -> (Ruled, f64) {
    let (mut sums, weight) = (Sums::default(), points.grid.gated_weight());
    let weighed: Vec<(&Evidence, Weighed)> =
        points.evidence.iter().filter_map(|e| Some((*e, e.weigh(knn, &mut sums)?))).collect();
    let gate = fit_gate(&weighed, weight);
    let with: f64 = weighed.iter().map(|(e, weighed)| -e.gated(weighed, weight, &gate)).sum();
    let alone = points.evidence.iter().filter(|e| e.neighbors.is_empty());
    let nats = with - alone.map(|e| e.parametric_log_probability).sum::<f64>();
    (Ruled { knn: *knn, rule: WeightRule::Gate { weight, gate } }, nats)
}

fn loss(evidence: &[&Evidence], point: &Point, rule: &WeightRule) -> f64 {
    let of_token = |(e, p_knn): (&&Evidence, &Option<f64>)| match p_knn {
        Some(p_knn) => -e.mixed(*p_knn, rule.weight(e, point.knn.k)),
        None => -e.parametric_log_probability,
    };
    evidence.iter().zip(&point.p_knn).map(of_token).sum()
}

/// A rule that was chosen.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Chosen {
    /// Of which kind it is.
    pub kind: RuleKind,
    /// What servers are calibrated with: the rule, tuned on all text.
    pub parameters: KnnParameters,
    /// Σ −ln p of each kind that servers have, on each half of the text with what was tuned on the other.
    pub between_halves: Vec<f64>,
}

/// Of the rules that servers have, the one of the kind that holds best between the first and second halves of each domain's texts.
pub(crate) fn choose_rule(grid: &Grid, texts: &[&Gathered]) -> Result<Chosen, EvalError> {
    let (first, second): (Vec<&[Evidence]>, Vec<&[Evidence]>) = texts.iter().map(|g| g.halves()).unzip();
    let [first, second] = [first, second].map(|half| half.into_iter().flatten().collect::<Vec<_>>());
    let (kind, between_halves) = choose_kind(&RuleKind::SERVED, grid, [&first, &second])?;
    let all: Vec<&Evidence> = texts.iter().flat_map(|g| &g.evidence).collect();
    let (ruled, _) = tune_rule(kind, &Points::of(grid, &all)?, true)?;
    let parameters = ruled.parameters().ok_or(EvalError::EmptyGrid("rule that servers have"))?;
    Ok(Chosen { kind, parameters, between_halves })
}

/// The kind of which rules tuned on one part of the evidence are best on the other, both ways; and Σ −ln p there, of each kind. Rules with many
/// parameters fit whatever they are tuned on, so they are not judged by that.
fn choose_kind(kinds: &[RuleKind], grid: &Grid, parts: [&[&Evidence]; 2]) -> Result<(RuleKind, Vec<f64>), EvalError> {
    let mut losses = vec![0.0; kinds.len()];
    let mut sums = Sums::default();
    for (tuned_on, scored) in [(parts[0], parts[1]), (parts[1], parts[0])] {
        let points = Points::of(grid, tuned_on)?;
        for (kind, nats) in kinds.iter().zip(&mut losses) {
            let (ruled, _) = tune_rule(*kind, &points, true)?;
            *nats -= scored.iter().map(|e| ruled.log_probability(e, &mut sums)).sum::<f64>();
        }
    }
    let best = kinds.iter().zip(&losses).min_by(|a, b| a.1.total_cmp(b.1));
    let (kind, _) = best.ok_or(EvalError::EmptyGrid("kind of rule"))?;
    Ok((*kind, losses))
}

fn candidates(kind: RuleKind, grid: &Grid, evidence: &[&Evidence], point: &Point) -> Vec<WeightRule> {
    match kind {
        RuleKind::Fixed => grid.knn_weight.iter().map(|&weight| WeightRule::Fixed { weight }).collect(),
        RuleKind::Distance { bins } => vec![by_distance(bins, grid, &found(evidence, point))],
        RuleKind::Confidence => ALPHAS
            .iter()
            .flat_map(|&alpha| SCALES.iter().map(move |&scale| WeightRule::Confidence { alpha, scale }))
            .collect(),
        RuleKind::Gate => Vec::new(), // `climb` fits it
    }
}

/// The tokens that have neighbours, and p_knn of them.
fn found<'a>(evidence: &[&'a Evidence], point: &Point) -> Vec<(&'a Evidence, f64)> {
    evidence.iter().zip(&point.p_knn).filter_map(|(e, p_knn)| Some((*e, (*p_knn)?))).collect()
}

/// Bins of equally many tokens by the nearest distance, each with the weight that is best for its tokens.
fn by_distance(bins: usize, grid: &Grid, tokens: &[(&Evidence, f64)]) -> WeightRule {
    let nearest = |e: &Evidence| e.neighbors.first().map_or(0.0, |n| n.distance);
    let mut sorted: Vec<(f32, &Evidence, f64)> = tokens.iter().map(|(e, w)| (nearest(e), *e, *w)).collect();
    sorted.sort_by(|a, b| a.0.total_cmp(&b.0));
    let (mut ends, mut weights, mut rest) = (Vec::new(), Vec::new(), &sorted[..]);
    let size = sorted.len().div_ceil(bins.max(1)).max(1);
    while let Some((last, ..)) = rest.get(size - 1).or(rest.last()) {
        // Tokens of one distance fall into one bin.
        let (bin, others) = rest.split_at(rest.partition_point(|(distance, ..)| distance <= last));
        let nats = |weight: f64| bin.iter().map(|(_, e, p_knn)| -e.mixed(*p_knn, weight)).sum::<f64>();
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
    use silo_engine::Retrieved;

    use super::*;

    /// A token with a near neighbour and a far one, of which one has its value.
    fn token(lm: f64, nearest: f32, hit: bool) -> Evidence {
        let neighbor = |distance, hit| Retrieved { distance, value: u32::from(hit), matched: 0 };
        let neighbors = vec![neighbor(nearest, hit), neighbor(10.0, !hit)];
        Evidence { token: 1, parametric_log_probability: lm, model_entropy: -lm, tempered: Vec::new(), neighbors }
    }

    fn grid() -> Grid {
        let knn_weight = (0..10).map(|w| f64::from(w) / 10.0).collect();
        let (match_bonus, match_tokens) = (vec![0.0], 16);
        let (k, knn_temperature, model_temperature) = (vec![1, 2], vec![0.5, 1.0], vec![1.0]);
        Grid { k, knn_temperature, knn_weight, match_bonus, match_tokens, model_temperature }
    }

    fn score(ruled: &Ruled, all: &[&Evidence]) -> f64 {
        let mut sums = Sums::default();
        all.iter().map(|e| -ruled.log_probability(e, &mut sums)).sum()
    }

    /// Near neighbours are right and far ones wrong: a rule that sees the distance gives the near ones all weight and the far ones none.
    #[test]
    fn near_neighbours_are_trusted_where_they_are_right() {
        let near: Vec<Evidence> = (0..50).map(|i| token(-3.0, 0.01 * i as f32, true)).collect();
        let far: Vec<Evidence> = (0..50).map(|i| token(-0.5, 5.0 + 0.01 * i as f32, false)).collect();
        let all: Vec<&Evidence> = near.iter().chain(&far).collect();
        let grid = grid();
        let points = Points::of(&grid, &all).unwrap();
        let tuned = |kind| tune_rule(kind, &points, true).unwrap();
        let kinds = [RuleKind::Fixed, RuleKind::Distance { bins: 4 }, RuleKind::Confidence, RuleKind::Gate];
        let [fixed, distance, confidence, gate] = kinds.map(tuned);
        for seeing in [&distance, &confidence, &gate] {
            assert!(seeing.1 < fixed.1 - 10.0, "{fixed:?} {seeing:?}");
        }
        let WeightRule::Distance { ends, weights } = &distance.0.rule else { panic!("{distance:?}") };
        assert_eq!((ends.len(), weights[0], weights[3]), (4, 0.9, 0.0));
        for (ruled, nats) in [&fixed, &distance, &confidence, &gate] {
            assert!((score(ruled, &all) - nats).abs() < 1e-9, "what was tuned is what is scored");
        }
        let nothing = Evidence { neighbors: Vec::new(), ..near[0].clone() };
        assert_eq!(score(&distance.0, &[&nothing]), 3.0);
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
        let fitted = |kind| tune_rule(kind, &points, true).unwrap().1;
        assert!(fitted(kinds[1]) < fitted(kinds[0]), "64 bins fit better what they were tuned on");
        let (chosen, losses) = choose_kind(&kinds, &grid, [&all[..40], &all[40..]]).unwrap();
        assert_eq!(chosen, RuleKind::Fixed, "{losses:?}");
    }

    /// The neighbours that go on from the same words are right, and no nearer than others.
    #[test]
    fn what_stands_before_counts_where_it_tells() {
        let alike = |i: usize| {
            let matched = |hit: bool| if hit { 3 } else { 0 };
            let mut token = token(-2.0, 10.0, i.is_multiple_of(2));
            token.neighbors.iter_mut().for_each(|n| n.matched = matched(n.value == 1));
            token
        };
        let all: Vec<Evidence> = (0..60).map(alike).collect();
        let all: Vec<&Evidence> = all.iter().collect();
        let grid = Grid { match_bonus: vec![0.0, 0.5], ..grid() };
        let points = Points::of(&grid, &all).unwrap();
        let [with, without] = [true, false].map(|matches| tune_rule(RuleKind::Fixed, &points, matches).unwrap());
        assert_eq!((with.0.knn.match_bonus, without.0.knn.match_bonus), (0.5, 0.0));
        assert!(with.1 < without.1 - 5.0, "{with:?} {without:?}");
    }

    #[test]
    fn servers_weigh_as_the_rules_that_they_have_do() {
        let all: Vec<Evidence> = (0..60).map(|i| token(-2.0, (i / 3 % 13) as f32 * 0.5, i % 3 == 0)).collect();
        let all: Vec<&Evidence> = all.iter().collect();
        let grid = grid();
        let points = Points::of(&grid, &all).unwrap();
        let mut sums = Sums::default();
        for kind in RuleKind::SERVED {
            let ruled = tune_rule(kind, &points, true).unwrap().0;
            let knn = ruled.parameters().unwrap();
            let nats: f64 = all.iter().map(|e| -e.log_probability(&knn, &mut sums)).sum();
            assert!((nats - score(&ruled, &all)).abs() < 1e-9);
        }
        assert_eq!(tune_rule(RuleKind::Confidence, &points, true).unwrap().0.parameters(), None);
    }

    #[test]
    fn one_bin_is_the_fixed_weight() {
        let all: Vec<Evidence> = (0..20).map(|i| token(-2.0, i as f32, i % 3 == 0)).collect();
        let all: Vec<&Evidence> = all.iter().collect();
        let grid = grid();
        let points = Points::of(&grid, &all).unwrap();
        let [fixed, one] =
            [RuleKind::Fixed, RuleKind::Distance { bins: 1 }].map(|kind| tune_rule(kind, &points, true).unwrap().1);
        assert!((fixed - one).abs() < 1e-9);
    }
}
