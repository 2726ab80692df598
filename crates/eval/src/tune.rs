//! Choosing k, weight and temperature on validation text.

use serde::{Deserialize, Serialize};
use silo_core::{KnnParameters, mixture};
use silo_engine::Evidence;

use crate::EvalError;

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
    /// Temperatures of the model alone: what is gained without a store, for control.
    #[serde(default = "model_temperatures")]
    pub model_temperature: Vec<f64>,
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
            (self.model_temperature.is_empty(), "model_temperature"),
        ];
        if let Some((_, what)) = empty.iter().find(|(empty, _)| *empty) {
            return Err(EvalError::EmptyGrid(what));
        }
        if self.k.contains(&0) {
            return Err(EvalError::Grid("k must be 1 or more"));
        }
        if !self.knn_temperature.iter().all(|t| *t > 0.0 && t.is_finite()) || !self.knn_temperature.is_sorted() {
            return Err(EvalError::Grid("knn_temperature must be above 0 and rise"));
        }
        if !self.model_temperature.iter().all(|t| *t > 0.0 && t.is_finite()) {
            return Err(EvalError::Grid("model_temperature must be above 0"));
        }
        if !self.knn_weight.iter().all(|w| (0.0..=1.0).contains(w)) {
            return Err(EvalError::Grid("knn_weight must be from 0 to 1"));
        }
        Ok(())
    }

    /// Which of the parameters lie at an end of what was tried, so that something beyond it may be better: the greatest k, either temperature, the
    /// greatest weight.
    pub fn edges(&self, k: usize, knn_temperature: f64, weights: &[f64]) -> Vec<&'static str> {
        let temperatures = &self.knn_temperature;
        let greatest = self.knn_weight.iter().copied().fold(0.0, f64::max);
        let is_end = [temperatures.first(), temperatures.last()].contains(&Some(&knn_temperature));
        let all = [
            (self.k.len() > 1 && k == self.max_k(), "k"),
            (temperatures.len() > 1 && is_end, "knn_temperature"),
            (self.knn_weight.len() > 1 && greatest < 1.0 && weights.contains(&greatest), "knn_weight"),
        ];
        all.into_iter().filter(|(at_the_end, _)| *at_the_end).map(|(_, name)| name).collect()
    }

    /// The greatest k: what has to be searched for.
    pub fn max_k(&self) -> usize {
        self.k.iter().copied().max().unwrap_or(0)
    }
}

/// The best of a grid.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Tuned {
    /// Where it lies.
    pub parameters: KnnParameters,
    /// Σ −ln p there.
    pub nats: f64,
    /// What of it lies at an end of the grid, which may then be too narrow.
    pub edges: Vec<&'static str>,
}

/// The point of the grid with the least loss; the first one of several.
pub fn tune(grid: &Grid, evidence: &[&Evidence]) -> Result<Tuned, EvalError> {
    grid.check()?;
    let mut best: Option<Tuned> = None;
    for &k in &grid.k {
        for &knn_temperature in &grid.knn_temperature {
            let found: Vec<Option<f64>> = evidence.iter().map(|e| e.neighbor_probability(k, knn_temperature)).collect();
            for &knn_weight in &grid.knn_weight {
                let of_token = |(e, p): (&&Evidence, &Option<f64>)| match p {
                    Some(p) => -mixture::mix_one(e.parametric_log_probability, *p, knn_weight),
                    None => -e.parametric_log_probability,
                };
                let nats: f64 = evidence.iter().zip(&found).map(of_token).sum();
                if best.as_ref().is_none_or(|b| nats < b.nats) {
                    let parameters = KnnParameters { k, knn_weight, knn_temperature };
                    best = Some(Tuned { parameters, nats, edges: grid.edges(k, knn_temperature, &[knn_weight]) });
                }
            }
        }
    }
    best.ok_or(EvalError::EmptyGrid("point"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn evidence() -> impl Strategy<Value = Vec<Evidence>> {
        let neighbors = prop::collection::vec((0.0f32..50.0, any::<bool>()), 0..8);
        let one = (-9.0f64..-0.01, neighbors).prop_map(|(parametric_log_probability, mut neighbors)| {
            neighbors.sort_by(|a, b| a.0.total_cmp(&b.0));
            Evidence { parametric_log_probability, tempered: Vec::new(), neighbors }
        });
        prop::collection::vec(one, 1..12)
    }

    proptest! {
        /// Against scoring every point by itself, as the engine scores a token.
        #[test]
        fn the_best_point_is_the_best_of_all(evidence in evidence()) {
            let (k, knn_temperature, knn_weight) = (vec![2, 5], vec![1.0, 10.0, 100.0], vec![0.0, 0.3, 0.8]);
            let grid = Grid { k, knn_temperature, knn_weight, model_temperature: vec![1.0] };
            let all: Vec<&Evidence> = evidence.iter().collect();
            let tuned = tune(&grid, &all).unwrap();
            let loss = |p: &KnnParameters| all.iter().map(|e| -e.log_probability(p)).sum::<f64>();
            prop_assert!((loss(&tuned.parameters) - tuned.nats).abs() < 1e-9);
            for &k in &grid.k {
                for &knn_temperature in &grid.knn_temperature {
                    for &knn_weight in &grid.knn_weight {
                        let other = loss(&KnnParameters { k, knn_weight, knn_temperature });
                        prop_assert!(other >= tuned.nats - 1e-9);
                    }
                }
            }
        }
    }

    #[test]
    fn ends_of_the_grid_are_named() {
        let (k, knn_temperature, knn_weight) = (vec![4, 16], vec![1.0, 2.0, 4.0], vec![0.0, 0.5, 0.9]);
        let grid = Grid { k, knn_temperature, knn_weight, model_temperature: vec![1.0] };
        assert_eq!(grid.edges(4, 2.0, &[0.0, 0.5]), Vec::<&str>::new());
        assert_eq!(grid.edges(16, 4.0, &[0.0, 0.9]), ["k", "knn_temperature", "knn_weight"]);
        let one = Grid { k: vec![4], knn_temperature: vec![2.0], knn_weight: vec![1.0, 0.5], ..grid };
        assert_eq!(one.edges(4, 2.0, &[1.0]), Vec::<&str>::new(), "nothing lies beyond");
    }

    #[test]
    fn senseless_grids_are_refused() {
        let grid = Grid { k: vec![1], knn_temperature: vec![], knn_weight: vec![0.5], model_temperature: vec![1.0] };
        assert!(tune(&grid, &[]).unwrap_err().to_string().contains("no knn_temperature"));
        let zero = Grid { knn_temperature: vec![0.0, 1.0], ..grid.clone() };
        assert!(tune(&zero, &[]).unwrap_err().to_string().contains("must be above 0"));
        let heavy = Grid { knn_temperature: vec![1.0], knn_weight: vec![2.0], ..grid };
        assert!(tune(&heavy, &[]).unwrap_err().to_string().contains("from 0 to 1"));
    }
}
