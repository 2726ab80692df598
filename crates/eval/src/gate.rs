//! Fitting a gate by the loss of the mixture that it makes.

use silo_core::{Gate, GateFeatures, GateTerms};
use silo_engine::{Evidence, Weighed};

/// Steps at most; on text two dozen are the rule.
const MAX_STEPS: usize = 500;
/// A step that gains less than this, in nats per token, is the last.
const LEAST_GAIN: f64 = 1e-12;
/// Keeps coefficients small that nothing speaks for, in nats per token for a coefficient of 1.
const RIDGE: f64 = 1e-6;
/// Damping of the first step, of the features' mean squares; then a tenth after each step, and tenfold for each try that does not gain.
const DAMPING: f64 = 1e-3;
/// Where damping begins and gives up: so little changes nothing, and after so much no step gains.
const DAMPINGS: (f64, f64) = (1e-12, 1e12);

/// Coefficients of both of a gate's terms, those of sharp neighbours first.
const N: usize = 2 * GateTerms::N;

type Coefficients = [f64; N];

/// What is farther weighs no more: the coefficients of the nearest neighbour's distance are 0 at most, whatever the text they are fitted to says of
/// distances that it has. Beyond those, they would open the gate for whatever is far enough.
fn is_at_most_0(i: usize) -> bool {
    i % GateTerms::N == 1
}

/// A token whose neighbours' weight is fitted: p_lm of it, and what the neighbours say.
struct Token {
    p_lm: f64,
    kernels: [f64; 2],
    features: GateFeatures,
}

fn gate(at: &Coefficients) -> Gate {
    let terms = |from: usize| GateTerms::of_coefficients(std::array::from_fn(|i| at[from + i]));
    Gate { sharp: terms(0), broad: terms(GateTerms::N) }
}

impl Token {
    fn of((e, weighed): &(&Evidence, Weighed)) -> Self {
        Self { p_lm: e.parametric_log_probability.exp(), kernels: weighed.kernels, features: weighed.features }
    }

    /// p where neighbours have shares of a weight.
    fn mixed(&self, weight: f64, shares: [f64; 2]) -> f64 {
        let more: f64 = shares.iter().zip(self.kernels).map(|(share, p)| share * (p - self.p_lm)).sum();
        self.p_lm + weight * more
    }
}

/// A gate with a small Σ −ln p, of p where it leaves neighbours a part of `weight` at each token: no other near it that is allowed has less. Newton's
/// steps from the best of a few that say the same everywhere, damped as Levenberg and Marquardt do until the Hessian is positive definite and the step
/// gains, and projected to what is allowed (Bertsekas 1982).
pub(crate) fn fit_gate(tokens: &[(&Evidence, Weighed)], weight: f64) -> Gate {
    // A token that nobody can say tells nothing of them.
    let possible = |t: &Token| t.p_lm > 0.0 || t.kernels.iter().any(|p| *p > 0.0);
    let tokens: Vec<Token> = tokens.iter().map(Token::of).filter(possible).collect();
    let (mut at, mut loss) = start(&tokens, weight);
    let mut damping = DAMPING;
    for _ in 0..MAX_STEPS {
        let Some((next, less, damped)) = step(&tokens, weight, (&at, loss), damping) else { break };
        let gain = loss - less;
        (at, loss, damping) = (next, less, (damped / 10.0).max(DAMPINGS.0));
        if gain < LEAST_GAIN * tokens.len() as f64 {
            break;
        }
    }
    gate(&at)
}

/// Where a step leads that gains, the loss there, and its damping; `None` if none does.
fn step(
    tokens: &[Token],
    weight: f64,
    (at, loss): (&Coefficients, f64),
    mut damping: f64,
) -> Option<(Coefficients, f64, f64)> {
    let Curvature { mut gradient, mut hessian, squares } = curvature(tokens, weight, at);
    let leaves = |i: &usize| is_at_most_0(*i) && at[*i] >= 0.0 && gradient[*i] < 0.0;
    for i in (0..N).filter(leaves).collect::<Vec<_>>() {
        // It would leave what is allowed: it stays, and the others move as if it were not there.
        (0..N).for_each(|j| hessian[i.max(j)][i.min(j)] = f64::from(u8::from(i == j)));
        gradient[i] = 0.0;
    }
    while damping <= DAMPINGS.1 {
        let mut damped = hessian;
        (0..N).for_each(|i| damped[i][i] += damping * squares[i % GateTerms::N]);
        if let Some(step) = solve(&damped, &gradient) {
            let next = |i: usize| at[i] - step[i];
            let next = std::array::from_fn(|i| if is_at_most_0(i) { next(i).min(0.0) } else { next(i) });
            let less = penalised(tokens, weight, &next);
            if less < loss {
                return Some((next, less, damping));
            }
        }
        damping *= 10.0;
    }
    None
}

/// The best shares that are the same at every token, of a few.
fn start(tokens: &[Token], weight: f64) -> (Coefficients, f64) {
    let of = |biases: [f64; 2]| {
        let mut at = [0.0; N];
        (at[0], at[GateTerms::N]) = (biases[0], biases[1]);
        (at, penalised(tokens, weight, &at))
    };
    let some = [-6.0, -4.0, -2.0, 2.0, 4.0, 6.0];
    let others = some.into_iter().flat_map(|bias| [[bias, bias], [bias, 0.0], [0.0, bias]]).map(of);
    others.into_iter().fold(of([0.0, 0.0]), |best, other| if other.1 < best.1 { other } else { best })
}

fn nats(tokens: &[Token], weight: f64, at: &Coefficients) -> f64 {
    let gate = gate(at);
    tokens.iter().map(|t| -t.mixed(weight, gate.shares(&t.features)).ln()).sum()
}

fn penalised(tokens: &[Token], weight: f64, at: &Coefficients) -> f64 {
    let squares: f64 = at.iter().map(|c| c * c).sum();
    nats(tokens, weight, at) + RIDGE * tokens.len() as f64 * squares
}

/// First and second derivatives of the penalised loss, the lower half of the latter; and the sum of each feature's squares.
struct Curvature {
    gradient: Coefficients,
    hessian: [[f64; N]; N],
    squares: GateFeatures,
}

fn curvature(tokens: &[Token], weight: f64, at: &Coefficients) -> Curvature {
    const F: usize = GateTerms::N;
    let gate = gate(at);
    let ridge = 2.0 * RIDGE * tokens.len() as f64;
    let mut gradient = at.map(|c| ridge * c);
    let mut hessian = [[0.0; N]; N];
    (0..N).for_each(|i| hessian[i][i] = ridge);
    let mut squares = [0.0; F];
    for token in tokens {
        let f = &token.features;
        (0..F).for_each(|i| squares[i] += f[i] * f[i]);
        let Some((slope, curve)) = derivatives(token, weight, gate.shares(f)) else { continue };
        for i in 0..N {
            gradient[i] += slope[i / F] * f[i % F];
            for j in 0..=i {
                hessian[i][j] += curve[i / F][j / F] * f[i % F] * f[j % F];
            }
        }
    }
    Curvature { gradient, hessian, squares }
}

/// First and second derivatives of −ln p by both sums that the softmax is taken of: with the shares s, and r what each has in p (the model that of 1 − Σ s),
/// s − r and (diag s − s·sᵀ) − (diag r − r·rᵀ). `None` where nobody says anything of the token.
fn derivatives(token: &Token, weight: f64, s: [f64; 2]) -> Option<([f64; 2], [[f64; 2]; 2])> {
    let mixed = token.mixed(weight, s);
    let of = |j: usize| s[j] * (token.p_lm + weight * (token.kernels[j] - token.p_lm)) / mixed;
    let r = [of(0), of(1)];
    let curve = |i: usize, j: usize| {
        let diagonal = if i == j { s[i] - r[i] } else { 0.0 };
        diagonal - s[i] * s[j] + r[i] * r[j]
    };
    let all = ([s[0] - r[0], s[1] - r[1]], [[curve(0, 0), curve(0, 1)], [curve(1, 0), curve(1, 1)]]);
    r.iter().all(|r| r.is_finite()).then_some(all)
}

/// x with `a`·x = `b`, `a` symmetric, of which the lower half is read: Cholesky. `None` unless it is positive definite.
fn solve(a: &[[f64; N]; N], b: &[f64; N]) -> Option<[f64; N]> {
    let mut l = [[0.0; N]; N];
    for i in 0..N {
        for j in 0..=i {
            let rest = a[i][j] - (0..j).map(|k| l[i][k] * l[j][k]).sum::<f64>();
            if i == j && rest.partial_cmp(&0.0) != Some(std::cmp::Ordering::Greater) {
                return None;
            }
            l[i][j] = if i == j { rest.sqrt() } else { rest / l[j][j] };
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
    Some(x)
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
        fn systems_are_solved(
            rows in prop::array::uniform12(prop::array::uniform12(-3.0f64..3.0)), x in prop::array::uniform12(-3.0f64..3.0),
        ) {
            // R·Rᵀ + 1
            let a: [[f64; N]; N] = std::array::from_fn(|i| std::array::from_fn(|j| {
                (0..N).map(|k| rows[i][k] * rows[j][k]).sum::<f64>() + f64::from(u8::from(i == j))
            }));
            let b = std::array::from_fn(|i| (0..N).map(|j| a[i][j] * x[j]).sum());
            let solved = solve(&a, &b).unwrap();
            let mut indefinite = a;
            indefinite[N - 1][N - 1] = -1.0;
            prop_assert!(solve(&indefinite, &b).is_none());
            prop_assert!((0..N).all(|i| (solved[i] - x[i]).abs() < 1e-6), "{solved:?} {x:?}");
        }

        /// No gate near the fitted one is better, and no fixed weight that a gate can be.
        #[test]
        fn nothing_near_a_fitted_gate_is_better(evidence in prop::collection::vec(evidence(), 150..250), weight in 0.5f64..1.0) {
            let (knn, mut sums) = (KnnParameters::new(8, 1.0, 10.0), Sums::default());
            let tokens: Vec<(&Evidence, Weighed)> =
                evidence.iter().filter_map(|e| Some((e, e.weigh(&knn, &mut sums)?))).collect();
            let fitted = fit_gate(&tokens, weight);
            let direct: f64 = tokens.iter().map(|(e, weighed)| -e.gated(weighed, weight, &fitted)).sum();
            // One that is beyond all numbers tells nothing.
            let impossible = Evidence { parametric_log_probability: -800.0, ..tokens[0].0.clone() };
            let unheard = Weighed { kernels: [0.0; 2], ..tokens[0].1 };
            let more: Vec<_> = tokens.iter().copied().chain([(&impossible, unheard)]).collect();
            prop_assert_eq!(fit_gate(&more, weight), fitted);
            let tokens: Vec<Token> = tokens.iter().map(Token::of).collect();
            let [sharp, broad] = [fitted.sharp, fitted.broad].map(|terms| terms.coefficients());
            let at: Coefficients = std::array::from_fn(|i| if i < GateTerms::N { sharp[i] } else { broad[i - GateTerms::N] });
            let (best, found) = (penalised(&tokens, weight, &at), nats(&tokens, weight, &at));
            prop_assert!((direct - found).abs() < 1e-9 * found.max(1.0), "what is fitted is what is scored: {direct} {found}");
            for i in 0..N {
                for by in [-1e-3, 1e-3] {
                    let mut near = at;
                    prop_assert!(!is_at_most_0(i) || at[i] <= 0.0);
                    if is_at_most_0(i) && at[i] + by * (1.0 + at[i].abs()) > 0.0 {
                        continue;
                    }
                    near[i] += by * (1.0 + at[i].abs());
                    prop_assert!(penalised(&tokens, weight, &near) > best - 1e-6 * tokens.len() as f64, "{at:?} {near:?}");
                }
            }
            for bias in [-6.0, -2.0, 0.0, 2.0, 6.0] {
                let mut fixed = [0.0; N];
                (fixed[0], fixed[GateTerms::N]) = (bias, bias);
                prop_assert!(nats(&tokens, weight, &fixed) > found - 1e-3, "{bias}");
            }
        }
    }
}
