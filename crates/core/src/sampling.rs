//! From log p to one token: repetition penalty and bias, temperature, top-k, top-p, min-p, draw; in this order, as every
//! response reports it.

use crate::TokenId;

/// How a token is drawn. The defaults draw from p itself.
#[derive(Debug, Clone, PartialEq)]
pub struct SamplingParameters {
    /// 0 takes the most probable token; otherwise log p is divided by it.
    pub temperature: f64,
    /// Keep the k most probable tokens; 0 keeps all.
    pub top_k: usize,
    /// Keep the smallest set of most probable tokens whose mass reaches this; 1 keeps all.
    pub top_p: f64,
    /// Drop tokens less probable than this share of the most probable one; 0 keeps all.
    pub min_p: f64,
    /// Multiplies log p of tokens that already stand in the prompt or output; 1 changes nothing, more makes them rarer.
    pub repetition_penalty: f64,
    /// Added to log p of single tokens, after the penalty.
    pub bias: Vec<(TokenId, f64)>,
}

impl Default for SamplingParameters {
    fn default() -> Self {
        Self { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0, repetition_penalty: 1.0, bias: Vec::new() }
    }
}

impl SamplingParameters {
    /// The most probable token, always.
    pub fn greedy() -> Self {
        Self { temperature: 0.0, ..Self::default() }
    }
}

/// Draws a token from `log_p` (one value per token of the vocabulary), which is changed on the way. `history` holds the
/// tokens that the repetition penalty sees; `u` is uniform in [0, 1). Ties go to the smaller token id.
pub fn sample(log_p: &mut [f64], parameters: &SamplingParameters, history: &[TokenId], u: f64) -> TokenId {
    penalise(log_p, parameters, history);
    if parameters.temperature == 0.0 {
        return argmax(log_p);
    }
    // Relative to the greatest one, so that a tiny temperature drives all others to −∞, and not all of them.
    let max = log_p.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let scaled = |lp: f64| if lp == max { 0.0 } else { (lp - max) / parameters.temperature };
    let mut kept: Vec<(TokenId, f64)> = log_p.iter().enumerate().map(|(i, &lp)| (i as TokenId, scaled(lp))).collect();
    let unfiltered = parameters.top_k == 0 && parameters.top_p >= 1.0 && parameters.min_p == 0.0;
    if !unfiltered {
        kept.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        filter(&mut kept, parameters);
    }
    draw(&kept, u)
}

fn penalise(log_p: &mut [f64], parameters: &SamplingParameters, history: &[TokenId]) {
    if parameters.repetition_penalty != 1.0 {
        let mut seen = history.to_vec();
        seen.sort_unstable();
        seen.dedup();
        for token in seen {
            if let Some(lp) = log_p.get_mut(token as usize) {
                *lp *= parameters.repetition_penalty;
            }
        }
    }
    for &(token, bias) in &parameters.bias {
        if let Some(lp) = log_p.get_mut(token as usize) {
            *lp += bias;
        }
    }
}

/// `sorted` is in the order most probable first.
fn filter(sorted: &mut Vec<(TokenId, f64)>, parameters: &SamplingParameters) {
    if parameters.top_k > 0 {
        sorted.truncate(parameters.top_k);
    }
    let Some(&(_, max)) = sorted.first() else { return };
    if parameters.top_p < 1.0 {
        let total: f64 = sorted.iter().map(|(_, lp)| (lp - max).exp()).sum();
        let mut mass = 0.0;
        let reached = sorted.iter().position(|(_, lp)| {
            mass += (lp - max).exp() / total;
            mass >= parameters.top_p
        });
        sorted.truncate(reached.map_or(sorted.len(), |i| i + 1));
    }
    if parameters.min_p > 0.0 {
        let floor = max + parameters.min_p.ln();
        sorted.retain(|&(_, lp)| lp >= floor);
    }
}

fn draw(kept: &[(TokenId, f64)], u: f64) -> TokenId {
    let max = kept.iter().map(|&(_, lp)| lp).fold(f64::NEG_INFINITY, f64::max);
    let total: f64 = kept.iter().map(|(_, lp)| (lp - max).exp()).sum();
    let mut left = u * total;
    let mut last = 0;
    for &(token, lp) in kept {
        let mass = (lp - max).exp();
        if mass > 0.0 {
            last = token;
            if left < mass {
                return token;
            }
            left -= mass;
        }
    }
    last // rounding left a crumb over: the last token that had any mass
}

/// The index of the greatest value; the first of equals.
pub fn argmax(values: &[f64]) -> TokenId {
    let mut best = 0;
    for (i, v) in values.iter().enumerate() {
        if *v > values[best] {
            best = i;
        }
    }
    best as TokenId
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn log(p: &[f64]) -> Vec<f64> {
        p.iter().map(|x| x.ln()).collect()
    }

    #[test]
    fn greedy_takes_the_first_of_equals() {
        assert_eq!(sample(&mut log(&[0.2, 0.4, 0.4]), &SamplingParameters::greedy(), &[], 0.99), 1);
    }

    #[test]
    fn a_draw_follows_the_distribution() {
        let p = log(&[0.1, 0.6, 0.3]);
        let at = |u| sample(&mut p.clone(), &SamplingParameters::default(), &[], u);
        assert_eq!([at(0.0), at(0.09), at(0.11), at(0.69), at(0.71), at(0.999_999)], [0, 0, 1, 1, 2, 2]);
    }

    #[test]
    fn the_smallest_temperature_is_greedy() {
        let parameters = SamplingParameters { temperature: 5e-324, ..Default::default() };
        assert_eq!(sample(&mut log(&[0.3, 0.6, 0.1]), &parameters, &[], 0.99), 1);
    }

    #[test]
    fn filters_keep_what_they_say() {
        let p = [0.1, 0.4, 0.3, 0.2];
        let possible = |parameters: SamplingParameters| -> Vec<TokenId> {
            let mut seen: Vec<_> =
                (0..1000).map(|i| sample(&mut log(&p), &parameters, &[], f64::from(i) / 1000.0)).collect();
            seen.sort_unstable();
            seen.dedup();
            seen
        };
        let base = SamplingParameters::default();
        assert_eq!(possible(SamplingParameters { top_k: 2, ..base.clone() }), [1, 2]);
        assert_eq!(possible(SamplingParameters { top_p: 0.7, ..base.clone() }), [1, 2]);
        assert_eq!(possible(SamplingParameters { top_p: 0.71, ..base.clone() }), [1, 2, 3]);
        assert_eq!(possible(SamplingParameters { min_p: 0.45, ..base.clone() }), [1, 2, 3]);
        assert_eq!(possible(SamplingParameters { bias: vec![(1, f64::NEG_INFINITY)], ..base }), [0, 2, 3]);
    }

    #[test]
    fn the_penalty_makes_repeated_tokens_rarer_once() {
        let mut p = log(&[0.5, 0.5]);
        let parameters = SamplingParameters { repetition_penalty: 2.0, temperature: 0.0, ..Default::default() };
        assert_eq!(sample(&mut p, &parameters, &[0, 0], 0.0), 1);
        assert!((p[0] - 0.25f64.ln()).abs() < 1e-12);
    }

    proptest! {
        #[test]
        fn a_drawn_token_always_has_mass(
            p in prop::collection::vec(prop_oneof![Just(0.0), 0.0f64..1.0], 2..30),
            u in 0.0f64..1.0, top_k in 0usize..5, top_p in 0.05f64..=1.0, min_p in 0.0f64..0.9,
        ) {
            prop_assume!(p.iter().any(|&x| x > 0.0));
            let parameters = SamplingParameters { top_k, top_p, min_p, ..Default::default() };
            let token = sample(&mut log(&p), &parameters, &[], u);
            prop_assert!(p[token as usize] > 0.0);
        }
    }
}
