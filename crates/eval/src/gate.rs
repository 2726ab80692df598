//! Fitting a gate: a logistic regression by the loss of the mixture that it makes.

use silo_core::{Gate, GateFeatures};
use silo_engine::{Evidence, Weighed};

/// Steps at most; on text a dozen are the rule.
const MAX_STEPS: usize = 500;
/// A step that gains less than this, in nats per token, is the last.
const LEAST_GAIN: f64 = 1e-12;
/// Keeps coefficients small that nothing speaks for, in nats per token for a coefficient of 1.
const RIDGE: f64 = 1e-6;
/// Halvings of a step that does not gain.
const MAX_HALVINGS: usize = 30;
/// Halvings and doublings of one that does.
const MAX_DOUBLINGS: usize = 20;

const N: usize = 4;

/// The gate with the least Σ −ln((1 − w)·p_lm + w·p_knn), w the gate's part of `weight` at each token; and that sum. Gauss–Newton steps, each
/// halved until it gains, and then halved or doubled as long as that gains more.
pub(crate) fn fit_gate(tokens: &[(&Evidence, Weighed)], weight: f64) -> (Gate, f64) {
    let (mut at, mut loss) = start(tokens, weight);
    for _ in 0..MAX_STEPS {
        let step = gauss_newton(tokens, weight, &at);
        let by = |scale: f64| {
            let next = std::array::from_fn(|j| at[j] - step[j] * scale);
            (next, penalised(tokens, weight, &next))
        };
        let scales = (0..MAX_HALVINGS).map(|i| 0.5f64.powi(i as i32));
        let Some(scale) = { scales }.find(|scale| by(*scale).1 < loss) else { break };
        // Steps are too long where the gate curves, and too short where the Hessian's other part is negative.
        let (next, less) = [0.5, 2.0].into_iter().fold(by(scale), |best, factor| further(best, (scale, factor), &by));
        let gain = loss - less;
        (at, loss) = (next, less);
        if gain < LEAST_GAIN * tokens.len() as f64 {
            break;
        }
    }
    let gate = Gate::of_coefficients(at);
    (gate, nats(tokens, weight, &gate))
}

/// The best of this step and of those that are shorter or longer by a factor again and again, as long as that gains.
fn further(
    mut best: (GateFeatures, f64),
    (scale, factor): (f64, f64),
    by: &dyn Fn(f64) -> (GateFeatures, f64),
) -> (GateFeatures, f64) {
    for i in 1..=MAX_DOUBLINGS {
        let next = by(scale * factor.powi(i as i32));
        if next.1.is_nan() || next.1 >= best.1 {
            break;
        }
        best = next;
    }
    best
}

/// The best weight that is the same at every token, of a few.
fn start(tokens: &[(&Evidence, Weighed)], weight: f64) -> (GateFeatures, f64) {
    let of = |bias| {
        let at = Gate { bias, ..Gate::default() }.coefficients();
        (at, penalised(tokens, weight, &at))
    };
    let others = [-6.0, -4.0, -2.0, 2.0, 4.0, 6.0].map(of);
    others.into_iter().fold(of(0.0), |best, other| if other.1 < best.1 { other } else { best })
}

fn nats(tokens: &[(&Evidence, Weighed)], weight: f64, gate: &Gate) -> f64 {
    tokens.iter().map(|(e, weighed)| -e.mixed(weighed, weight * gate.part(&weighed.features))).sum()
}

fn penalised(tokens: &[(&Evidence, Weighed)], weight: f64, at: &GateFeatures) -> f64 {
    let squares: f64 = at.iter().map(|c| c * c).sum();
    nats(tokens, weight, &Gate::of_coefficients(*at)) + RIDGE * tokens.len() as f64 * squares
}

/// What to subtract: the gradient, divided by the part of the Hessian that no curvature of the gate enters, which is never negative.
fn gauss_newton(tokens: &[(&Evidence, Weighed)], weight: f64, at: &GateFeatures) -> GateFeatures {
    let gate = Gate::of_coefficients(*at);
    let ridge = 2.0 * RIDGE * tokens.len() as f64;
    let mut gradient = at.map(|c| ridge * c);
    let mut hessian = [[0.0; N]; N];
    (0..N).for_each(|i| hessian[i][i] = ridge);
    for (e, Weighed { probability, features }) in tokens {
        let (p_lm, part) = (e.parametric_log_probability.exp(), gate.part(features));
        let mixed = p_lm + weight * part * (probability - p_lm);
        // −∂ ln p / ∂x, where x is what the gate's sigmoid is taken of.
        let slope = -(probability - p_lm) / mixed * weight * part * (1.0 - part);
        if !slope.is_finite() {
            continue; // neither says anything of the token
        }
        for i in 0..N {
            gradient[i] += slope * features[i];
            for j in 0..N {
                hessian[i][j] += slope * slope * features[i] * features[j];
            }
        }
    }
    solve(hessian, gradient)
}

/// x with `a`·x = `b`, `a` symmetric and positive definite: Cholesky.
fn solve(a: [[f64; N]; N], b: [f64; N]) -> [f64; N] {
    let mut l = [[0.0; N]; N];
    for i in 0..N {
        for j in 0..=i {
            let sum: f64 = (0..j).map(|k| l[i][k] * l[j][k]).sum();
            l[i][j] = if i == j { (a[i][i] - sum).max(f64::MIN_POSITIVE).sqrt() } else { (a[i][j] - sum) / l[j][j] };
        }
    }
    let mut y = [0.0; N];
    for i in 0..N {
        y[i] = (b[i] - (0..i).map(|k| l[i][k] * y[k]).sum::<f64>()) / l[i][i];
    }
    let mut x = [0.0; N];
    for i in (0..N).rev() {
        x[i] = (y[i] - (i + 1..N).map(|k| l[k][i] * x[k]).sum::<f64>()) / l[i][i];
    }
    x
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use silo_core::KnnParameters;
    use silo_engine::Sums;

    use super::*;
    use crate::tests::evidence;

    proptest! {
        #[test]
        fn systems_are_solved(rows in prop::array::uniform4(prop::array::uniform4(-3.0f64..3.0)), x in prop::array::uniform4(-3.0f64..3.0)) {
            // R·Rᵀ + 1
            let a: [[f64; N]; N] = std::array::from_fn(|i| std::array::from_fn(|j| {
                (0..N).map(|k| rows[i][k] * rows[j][k]).sum::<f64>() + f64::from(u8::from(i == j))
            }));
            let b = std::array::from_fn(|i| (0..N).map(|j| a[i][j] * x[j]).sum());
            let solved = solve(a, b);
            prop_assert!((0..N).all(|i| (solved[i] - x[i]).abs() < 1e-8), "{solved:?} {x:?}");
        }

        /// No gate near the fitted one is better, and no fixed weight that a gate can be.
        #[test]
        fn nothing_near_a_fitted_gate_is_better(evidence in prop::collection::vec(evidence(), 150..250), weight in 0.5f64..1.0) {
            let (knn, mut sums) = (KnnParameters::new(8, 1.0, 10.0), Sums::default());
            let tokens: Vec<(&Evidence, Weighed)> =
                evidence.iter().filter_map(|e| Some((e, e.weigh(&knn, &mut sums)?))).collect();
            let (gate, found) = fit_gate(&tokens, weight);
            let at = gate.coefficients();
            let best = penalised(&tokens, weight, &at);
            prop_assert!((nats(&tokens, weight, &gate) - found).abs() < 1e-9);
            for i in 0..N {
                for by in [-1e-3, 1e-3] {
                    let mut near = at;
                    near[i] += by * (1.0 + at[i].abs());
                    prop_assert!(penalised(&tokens, weight, &near) > best - 1e-6 * tokens.len() as f64, "{at:?} {near:?}");
                }
            }
            for bias in [-6.0, -2.0, 0.0, 2.0, 6.0] {
                let fixed = Gate { bias, ..Gate::default() };
                prop_assert!(nats(&tokens, weight, &fixed) > found - 1e-6 * tokens.len() as f64, "{bias}");
            }
        }
    }
}
