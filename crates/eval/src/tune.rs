//! Choosing how neighbours weigh, on validation text.

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use silo_core::{KnnParameters, is_match_bonus};
use silo_engine::{Evidence, Sums};

use crate::{EvalError, RuleKind, tune_rule};

/// What is tried: every combination.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Grid {
    /// Neighbours per token.
    pub k: Vec<usize>,
    /// Temperatures: what squared distances are divided by.
    pub knn_temperature: Vec<f64>,
    /// Weights of the neighbours.
    pub knn_weight: Vec<f64>,
    /// What a neighbour gains for each token before it that is the text's as well.
    #[serde(default = "only_distance")]
    pub match_bonus: Vec<f64>,
    /// At most so many tokens before a neighbour are compared with the text.
    #[serde(default = "match_tokens")]
    pub match_tokens: usize,
    /// Temperatures of the model alone: what is gained without a store, for control.
    #[serde(default = "model_temperatures")]
    pub model_temperature: Vec<f64>,
}

fn only_distance() -> Vec<f64> {
    vec![0.0]
}

fn match_tokens() -> usize {
    KnnParameters::MATCH_TOKENS
}

fn model_temperatures() -> Vec<f64> {
    vec![0.8, 0.85, 0.9, 0.95, 1.0, 1.05, 1.1, 1.15, 1.2, 1.3]
}

impl Grid {
    /// Whether something can be tried.
    pub fn check(&self) -> Result<(), EvalError> {
        let empty = [
            (self.k.is_empty(), "k"),
            (self.knn_temperature.is_empty(), "knn_temperature"),
            (self.knn_weight.is_empty(), "knn_weight"),
            (self.match_bonus.is_empty(), "match_bonus"),
            (self.model_temperature.is_empty(), "model_temperature"),
        ];
        if let Some((_, what)) = empty.iter().find(|(empty, _)| *empty) {
            return Err(EvalError::EmptyGrid(what));
        }
        let senseless = [
            (self.k.contains(&0), "k must be 1 or more"),
            (is_repeated(&self.k), "k has a value twice"),
            (is_repeated(&self.knn_weight), "knn_weight has a value twice"),
            (is_repeated(&self.match_bonus), "match_bonus has a value twice"),
            (is_repeated(&self.model_temperature), "model_temperature has a value twice"),
            (!rises(&self.knn_temperature), "knn_temperature must be above 0 and rise"),
            (!self.model_temperature.iter().all(|t| is_temperature(*t)), "model_temperature must be above 0"),
            (!self.knn_weight.iter().all(|w| (0.0..=1.0).contains(w)), "knn_weight must be from 0 to 1"),
            (
                self.gated_weight() == 0.0,
                "knn_weight must have one above 0 and below 1 among them: of it a gate leaves a part",
            ),
            (!self.match_bonus.iter().all(|b| is_match_bonus(*b)), "match_bonus must be from -100 to 100"),
            (!self.match_bonus.contains(&0.0), "match_bonus must have 0 among them: what matching is compared with"),
            (self.match_tokens > usize::from(u16::MAX), "match_tokens must be at most 65535"),
        ];
        match senseless.iter().find(|(wrong, _)| *wrong) {
            Some((_, what)) => Err(EvalError::Grid(what)),
            None => Ok(()),
        }
    }

    /// Which of the parameters lie at an end of what was tried, so that something beyond it may be better: the greatest k, either temperature, the
    /// greatest weight if it is the same at every token, the greatest bonus.
    pub fn edges(&self, knn: &KnnParameters) -> Vec<&'static str> {
        let temperatures = &self.knn_temperature;
        let is_end = [temperatures.first(), temperatures.last()].contains(&Some(&knn.knn_temperature));
        let weight = self.knn_weight.iter().copied().fold(0.0, f64::max);
        let bonus = self.match_bonus.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let heaviest = self.knn_weight.len() > 1 && weight < 1.0 && knn.gate.is_none() && knn.knn_weight == weight;
        let all = [
            (self.k.len() > 1 && knn.k == self.max_k(), "k"),
            (temperatures.len() > 1 && is_end, "knn_temperature"),
            (heaviest, "knn_weight"),
            (self.match_bonus.len() > 1 && knn.match_bonus == bonus, "match_bonus"),
        ];
        all.into_iter().filter(|(at_the_end, _)| *at_the_end).map(|(_, name)| name).collect()
    }

    /// The greatest k: what has to be searched for.
    pub fn max_k(&self) -> usize {
        self.k.iter().copied().max().unwrap_or(0)
    }

    /// The greatest weight that leaves the model some: what a gate leaves a part of.
    pub fn gated_weight(&self) -> f64 {
        self.knn_weight.iter().copied().filter(|w| *w < 1.0).fold(0.0, f64::max)
    }

    /// Points one step away from a point: the next k, temperature or bonus that is tried, down and up.
    pub(crate) fn beside(&self, knn: &KnnParameters) -> Vec<KnnParameters> {
        let k = next_to(&self.k, &knn.k).map(|k| KnnParameters { k, ..*knn });
        let temperature = next_to(&self.knn_temperature, &knn.knn_temperature);
        let temperature = temperature.map(|knn_temperature| KnnParameters { knn_temperature, ..*knn });
        let bonus =
            next_to(&self.match_bonus, &knn.match_bonus).map(|match_bonus| KnnParameters { match_bonus, ..*knn });
        k.chain(temperature).chain(bonus).collect()
    }

    /// All combinations but for the weight, which is 1.
    fn points(&self) -> Vec<KnnParameters> {
        let mut out = Vec::new();
        for &k in &self.k {
            for &knn_temperature in &self.knn_temperature {
                for &match_bonus in &self.match_bonus {
                    let knn = KnnParameters::new(k, 1.0, knn_temperature);
                    out.push(KnnParameters { match_tokens: self.match_tokens, match_bonus, ..knn });
                }
            }
        }
        out
    }
}

/// The values beside this one, which is among them.
fn next_to<T: Copy + PartialOrd>(values: &[T], this: &T) -> impl Iterator<Item = T> {
    let below = values.iter().filter(|v| *v < this).copied().reduce(|a, b| if b > a { b } else { a });
    let above = values.iter().filter(|v| *v > this).copied().reduce(|a, b| if b < a { b } else { a });
    below.into_iter().chain(above)
}

/// Whether a value stands there twice: what is tried, named or looked at, so that it would count twice.
pub fn is_repeated<T: PartialEq>(values: &[T]) -> bool {
    values.iter().enumerate().any(|(i, value)| values[..i].contains(value))
}

fn is_temperature(t: f64) -> bool {
    t > 0.0 && t.is_finite()
}

fn rises(temperatures: &[f64]) -> bool {
    temperatures.iter().all(|t| is_temperature(*t)) && temperatures.is_sorted()
}

/// p_knn of each token of some evidence that has neighbours, at a point of the grid.
pub(crate) struct Point {
    pub(crate) knn: KnnParameters,
    pub(crate) p_knn: Vec<Option<f64>>,
}

/// All points of a grid: rules of many kinds are tuned on them.
pub struct Points<'a> {
    pub(crate) grid: &'a Grid,
    pub(crate) evidence: &'a [&'a Evidence],
    pub(crate) points: Vec<Point>,
}

impl<'a> Points<'a> {
    /// Weighs the neighbours of each token at each point.
    pub fn of(grid: &'a Grid, evidence: &'a [&'a Evidence]) -> Result<Self, EvalError> {
        grid.check()?;
        let weigh = |knn: KnnParameters| {
            let mut sums = Sums::default();
            Point { knn, p_knn: evidence.iter().map(|e| e.probability(&knn, &mut sums)).collect() }
        };
        Ok(Self { grid, evidence, points: grid.points().into_par_iter().map(weigh).collect() })
    }
}

/// The best of a grid.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Tuned {
    /// Where it lies.
    pub parameters: KnnParameters,
    /// Σ −ln p there.
    pub nats: f64,
}

/// The point of the grid, with a weight that is the same at every token, with the least loss; the first one of several.
pub fn tune(grid: &Grid, evidence: &[&Evidence]) -> Result<Tuned, EvalError> {
    let (ruled, nats) = tune_rule(RuleKind::Fixed, &Points::of(grid, evidence)?, true)?;
    let parameters = ruled.parameters().ok_or(EvalError::EmptyGrid("point"))?;
    Ok(Tuned { parameters, nats })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use silo_core::Gate;

    use super::*;
    use crate::tests::evidence;

    proptest! {
        /// Against scoring every point by itself, as the engine scores a token.
        #[test]
        fn the_best_point_is_the_best_of_all(evidence in prop::collection::vec(evidence(), 1..12)) {
            let (k, knn_temperature, knn_weight) = (vec![2, 5], vec![1.0, 10.0, 100.0], vec![0.0, 0.3, 0.8]);
            let match_bonus = vec![0.0, 0.7, -0.2];
            let grid = Grid { k, knn_temperature, knn_weight, match_bonus, match_tokens: 16, model_temperature: vec![1.0] };
            let all: Vec<&Evidence> = evidence.iter().collect();
            let tuned = tune(&grid, &all).unwrap();
            let mut sums = Sums::default();
            let mut loss = |p: &KnnParameters| all.iter().map(|e| -e.log_probability(p, &mut sums)).sum::<f64>();
            prop_assert!((loss(&tuned.parameters) - tuned.nats).abs() < 1e-9);
            for point in grid.points() {
                for &knn_weight in &grid.knn_weight {
                    let other = loss(&KnnParameters { knn_weight, ..point });
                    prop_assert!(other >= tuned.nats - 1e-9);
                }
            }
        }
    }

    fn grid() -> Grid {
        let (k, knn_temperature, knn_weight) = (vec![4, 16], vec![1.0, 2.0, 4.0], vec![0.0, 0.5, 0.9]);
        Grid {
            k,
            knn_temperature,
            knn_weight,
            match_bonus: vec![0.0, 0.4],
            match_tokens: 16,
            model_temperature: vec![1.0],
        }
    }

    #[test]
    fn ends_of_the_grid_are_named() {
        let grid = grid();
        assert_eq!(grid.edges(&KnnParameters::new(4, 0.5, 2.0)), Vec::<&str>::new());
        let end = KnnParameters { match_bonus: 0.4, ..KnnParameters::new(16, 0.9, 4.0) };
        assert_eq!(grid.edges(&end), ["k", "knn_temperature", "knn_weight", "match_bonus"]);
        let gated = KnnParameters { gate: Some(Gate::default()), ..KnnParameters::new(4, 0.9, 2.0) };
        assert_eq!(grid.edges(&gated), Vec::<&str>::new(), "a gate never leaves all of the weight");
        let (k, knn_temperature, knn_weight) = (vec![4], vec![2.0], vec![1.0, 0.5]);
        let one = Grid { k, knn_temperature, knn_weight, match_bonus: vec![0.0], ..grid };
        assert_eq!(one.edges(&KnnParameters::new(4, 1.0, 2.0)), Vec::<&str>::new(), "nothing lies beyond");
    }

    #[test]
    fn senseless_grids_are_refused() {
        let refused = |grid: Grid| tune(&grid, &[]).unwrap_err().to_string();
        assert!(refused(Grid { knn_temperature: vec![], ..grid() }).contains("no knn_temperature"));
        assert!(refused(Grid { knn_temperature: vec![0.0, 1.0], ..grid() }).contains("must be above 0"));
        assert!(refused(Grid { knn_weight: vec![2.0], ..grid() }).contains("from 0 to 1"));
        assert!(refused(Grid { match_bonus: vec![f64::NAN], ..grid() }).contains("-100 to 100"));
        assert!(refused(Grid { match_bonus: vec![0.4], ..grid() }).contains("0 among them"));
    }
}
