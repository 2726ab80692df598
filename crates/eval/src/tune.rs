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

    /// The greatest k: what has to be searched for.
    pub fn max_k(&self) -> usize {
        self.k.iter().copied().max().unwrap_or(0)
    }
}

/// The best of a grid.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Tuned {
    /// Where it lies.
    pub parameters: KnnParameters,
    /// Σ −ln p there.
    pub nats: f64,
    /// Whether it lies at an end of the temperatures: the grid is then too narrow.
    pub at_the_edge: bool,
}

/// The point of the grid with the least loss; the first one of several.
pub fn tune(grid: &Grid, evidence: &[&Evidence]) -> Result<Tuned, EvalError> {
    grid.check()?;
    let mut best: Option<Tuned> = None;
    for &k in &grid.k {
        for (t, &knn_temperature) in grid.knn_temperature.iter().enumerate() {
            let found: Vec<Option<f64>> = evidence.iter().map(|e| e.neighbor_probability(k, knn_temperature)).collect();
            for &knn_weight in &grid.knn_weight {
                let of_token = |(e, p): (&&Evidence, &Option<f64>)| match p {
                    Some(p) => -mixture::mix_one(e.parametric_log_probability, *p, knn_weight),
                    None => -e.parametric_log_probability,
                };
                let nats: f64 = evidence.iter().zip(&found).map(of_token).sum();
                if best.is_none_or(|b| nats < b.nats) {
                    let parameters = KnnParameters { k, knn_weight, knn_temperature };
                    let several = grid.knn_temperature.len() > 1;
                    let at_the_edge = several && (t == 0 || t + 1 == grid.knn_temperature.len());
                    best = Some(Tuned { parameters, nats, at_the_edge });
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
    fn senseless_grids_are_refused() {
        let grid = Grid { k: vec![1], knn_temperature: vec![], knn_weight: vec![0.5], model_temperature: vec![1.0] };
        assert!(tune(&grid, &[]).unwrap_err().to_string().contains("no knn_temperature"));
        let zero = Grid { knn_temperature: vec![0.0, 1.0], ..grid.clone() };
        assert!(tune(&zero, &[]).unwrap_err().to_string().contains("must be above 0"));
        let heavy = Grid { knn_temperature: vec![1.0], knn_weight: vec![2.0], ..grid };
        assert!(tune(&heavy, &[]).unwrap_err().to_string().contains("from 0 to 1"));
    }
}
