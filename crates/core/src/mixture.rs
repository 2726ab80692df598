//! From logits and neighbours to p(y), and the exact share of every source in it.
//!
//! kNN-LM (Khandelwal et al. 2020, eq. 2–3): p(y) = (1 − w)·p_lm(y) + w·p_knn(y), with
//! p_knn(y) ∝ Σ over neighbours i with value y of exp(−d_i / τ), d the squared L2 distance. `knn_weight` is w, the weight of
//! the neighbours; `knn_temperature` is τ. All sums run in f64 and in the order of the slices, so the same inputs give the
//! same bits.

use crate::{Neighbor, TokenId};

/// log softmax of `logits` at temperature 1.
pub fn log_softmax(logits: &[f32]) -> Vec<f64> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let max = f64::from(max);
    let sum: f64 = logits.iter().map(|&x| (f64::from(x) - max).exp()).sum();
    let log_z = max + sum.ln();
    logits.iter().map(|&x| f64::from(x) - log_z).collect()
}

/// The neighbour softmax: one weight per neighbour, and their sum per token.
#[derive(Debug, Clone, Default)]
pub struct NeighborDistribution {
    /// Weight a_i of each neighbour, in the order given; they sum to 1, or there are none.
    weights: Vec<f64>,
    /// (token, p_knn(token)), sorted by token.
    tokens: Vec<(TokenId, f64)>,
}

impl NeighborDistribution {
    /// Softmax of −distance / `temperature` over `neighbors`, which are in the order nearest first.
    pub fn new(neighbors: &[Neighbor], temperature: f64) -> Self {
        let Some(nearest) = neighbors.first() else { return Self::default() };
        let nearest = f64::from(nearest.distance);
        let mut weights: Vec<f64> =
            neighbors.iter().map(|n| (-(f64::from(n.distance) - nearest) / temperature).exp()).collect();
        let sum: f64 = weights.iter().sum();
        weights.iter_mut().for_each(|w| *w /= sum);
        let mut pairs: Vec<(TokenId, f64)> = neighbors.iter().map(|n| n.value).zip(weights.iter().copied()).collect();
        pairs.sort_by_key(|&(token, _)| token); // stable: equal tokens keep the order of the neighbours
        let mut tokens: Vec<(TokenId, f64)> = Vec::new();
        for (token, weight) in pairs {
            match tokens.last_mut() {
                Some((last, sum)) if *last == token => *sum += weight,
                _ => tokens.push((token, weight)),
            }
        }
        Self { weights, tokens }
    }

    /// Whether there was no neighbour.
    pub fn is_empty(&self) -> bool {
        self.weights.is_empty()
    }

    /// Weight of each neighbour, in the order given.
    pub fn weights(&self) -> &[f64] {
        &self.weights
    }

    /// (token, p_knn(token)) of all tokens that have any, sorted by token.
    pub fn tokens(&self) -> &[(TokenId, f64)] {
        &self.tokens
    }

    /// p_knn(`token`).
    pub fn probability(&self, token: TokenId) -> f64 {
        match self.tokens.binary_search_by_key(&token, |&(t, _)| t) {
            Ok(i) => self.tokens[i].1,
            Err(_) => 0.0,
        }
    }
}

/// The weight that is in force: no neighbour means that the parametric model stands alone.
pub fn effective_weight(knn: &NeighborDistribution, knn_weight: f64) -> f64 {
    if knn.is_empty() { 0.0 } else { knn_weight }
}

/// log p(token) of the mixture at one token.
pub fn mix_one(log_p_lm: f64, p_knn: f64, weight: f64) -> f64 {
    if weight == 0.0 {
        log_p_lm // exactly the model's own, to the last bit
    } else if p_knn == 0.0 {
        log_p_lm + (-weight).ln_1p()
    } else {
        ((1.0 - weight) * log_p_lm.exp() + weight * p_knn).ln()
    }
}

/// log p of the mixture over the whole vocabulary. Tokens of neighbours outside the vocabulary would be lost; the store
/// refuses shards of another model, so there are none.
pub fn interpolate(log_p_lm: &[f64], knn: &NeighborDistribution, knn_weight: f64) -> Vec<f64> {
    let weight = effective_weight(knn, knn_weight);
    let mut out: Vec<f64> = if weight == 0.0 {
        log_p_lm.to_vec()
    } else {
        let shift = (-weight).ln_1p();
        log_p_lm.iter().map(|&lp| lp + shift).collect()
    };
    for &(token, p_knn) in knn.tokens() {
        if let Some(slot) = out.get_mut(token as usize) {
            *slot = mix_one(log_p_lm[token as usize], p_knn, weight);
        }
    }
    out
}

/// Who made a token: shares of the parametric model and of others, which sum to 1.
#[derive(Debug, Clone, PartialEq)]
pub struct Shares<S> {
    /// Share of the parametric model.
    pub parametric: f64,
    /// Share of each source that has one, in order of first appearance among the neighbours.
    pub sources: Vec<(S, f64)>,
}

/// Total variation of two distributions over one vocabulary, given as log p: half the sum of |p − q|.
pub fn total_variation(log_p: &[f64], log_q: &[f64]) -> f64 {
    log_p.iter().zip(log_q).map(|(p, q)| (p.exp() - q.exp()).abs()).sum::<f64>() / 2.0
}

/// Shares of `token` in p(token) = (1 − w)·p_lm + w·p_knn: the model's part is (1 − w)·p_lm / p, a source's is
/// w·Σ a_i / p over its neighbours with that value; `of` says whose a neighbour is (its source's, its document's, its own). Sums go in the neighbours' order, so that the shards in which a source's entries lie
/// change no bit.
pub fn shares<S: PartialEq>(
    log_p_lm: f64,
    neighbors: &[Neighbor],
    knn: &NeighborDistribution,
    knn_weight: f64,
    token: TokenId,
    of: impl Fn(&Neighbor) -> S,
) -> Shares<S> {
    let weight = effective_weight(knn, knn_weight);
    let mut sources: Vec<(S, f64)> = Vec::new();
    if weight > 0.0 {
        // Weights may be so small that nothing is left of them.
        let of_token = neighbors.iter().zip(knn.weights()).filter(|(n, a)| n.value == token && weight * **a > 0.0);
        for (neighbor, a) in of_token {
            let source = of(neighbor);
            match sources.iter_mut().find(|(known, _)| *known == source) {
                Some((_, sum)) => *sum += weight * a,
                None => sources.push((source, weight * a)),
            }
        }
    }
    let from_model = (1.0 - weight) * log_p_lm.exp();
    let total = from_model + sources.iter().map(|(_, s)| s).sum::<f64>();
    if sources.is_empty() || total == 0.0 {
        return Shares { parametric: 1.0, sources: Vec::new() };
    }
    sources.iter_mut().for_each(|(_, s)| *s /= total);
    Shares { parametric: from_model / total, sources }
}

/// The same for each neighbour with that value: its place among the neighbours, and its share.
pub fn neighbor_shares(
    log_p_lm: f64,
    neighbors: &[Neighbor],
    knn: &NeighborDistribution,
    knn_weight: f64,
    token: TokenId,
) -> Vec<(usize, f64)> {
    let weight = effective_weight(knn, knn_weight);
    let counts = |(_, (n, a)): &(usize, (&Neighbor, &f64))| n.value == token && weight * **a > 0.0;
    let of_token = neighbors.iter().zip(knn.weights()).enumerate().filter(counts);
    let mut out: Vec<(usize, f64)> = of_token.map(|(i, (_, a))| (i, weight * a)).collect();
    let total = (1.0 - weight) * log_p_lm.exp() + out.iter().map(|(_, part)| part).sum::<f64>();
    if weight == 0.0 || total == 0.0 {
        return Vec::new();
    }
    out.iter_mut().for_each(|(_, part)| *part /= total);
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ShardIndex;

    fn neighbor(distance: f32, value: TokenId, shard: u32) -> Neighbor {
        Neighbor { distance, value, shard: ShardIndex(shard), row: 0 }
    }

    fn arbitrary_neighbors() -> impl Strategy<Value = Vec<Neighbor>> {
        prop::collection::vec((0.0f32..200.0, 0u32..8, 0u32..3), 0..40).prop_map(|raw| {
            let mut all: Vec<_> = raw.into_iter().map(|(d, v, s)| neighbor(d, v, s)).collect();
            all.sort_by(|a, b| a.distance.total_cmp(&b.distance));
            all
        })
    }

    #[test]
    fn weight_zero_and_no_neighbour_are_the_model_itself() {
        let lm = log_softmax(&[0.3, -1.0, 2.0]);
        let knn = NeighborDistribution::new(&[neighbor(1.0, 2, 0)], 1.0);
        assert_eq!(interpolate(&lm, &knn, 0.0), lm);
        assert_eq!(interpolate(&lm, &NeighborDistribution::default(), 0.7), lm);
    }

    proptest! {
        /// Without the neighbours of one source, with a fixed weight, no more mass moves than theirs was.
        #[test]
        fn what_a_source_moves_is_bounded_by_its_mass(
            logits in prop::collection::vec(-20.0f32..20.0, 8), neighbors in arbitrary_neighbors(), weight in 0.0f64..=1.0,
        ) {
            let lm = log_softmax(&logits);
            let rest: Vec<_> = neighbors.iter().filter(|n| n.shard.0 != 0).copied().collect();
            let (with, without) = (NeighborDistribution::new(&neighbors, 10.0), NeighborDistribution::new(&rest, 10.0));
            let mass: f64 = neighbors.iter().zip(with.weights()).filter(|(n, _)| n.shard.0 == 0).map(|(_, a)| a).sum();
            let moved = total_variation(&interpolate(&lm, &with, weight), &interpolate(&lm, &without, weight));
            prop_assert!((0.0..=weight * mass + 1e-9).contains(&moved), "{moved} of {}", weight * mass);
        }
    }

    #[test]
    fn far_neighbours_do_not_underflow() {
        let knn = NeighborDistribution::new(&[neighbor(1e6, 0, 0), neighbor(1e6, 1, 0)], 1.0);
        assert_eq!(knn.weights(), [0.5, 0.5]);
    }

    proptest! {
        #[test]
        fn mixture_matches_the_formula(
            logits in prop::collection::vec(-20.0f32..20.0, 8),
            neighbors in arbitrary_neighbors(),
            weight in 0.0f64..=1.0,
            temperature in 0.1f64..100.0,
        ) {
            let lm = log_softmax(&logits);
            let knn = NeighborDistribution::new(&neighbors, temperature);
            let mixed = interpolate(&lm, &knn, weight);
            let z: f64 = neighbors.iter().map(|n| (-f64::from(n.distance) / temperature).exp()).sum();
            for y in 0..8u32 {
                let p_lm = lm[y as usize].exp();
                let expected = if neighbors.is_empty() || z == 0.0 {
                    continue; // the direct formula has no value, or has underflown
                } else {
                    let same = neighbors.iter().filter(|n| n.value == y);
                    let p_knn: f64 = same.map(|n| (-f64::from(n.distance) / temperature).exp() / z).sum();
                    (1.0 - weight) * p_lm + weight * p_knn
                };
                prop_assert!((mixed[y as usize].exp() - expected).abs() < 1e-9);
            }
            let total: f64 = mixed.iter().map(|lp| lp.exp()).sum();
            prop_assert!((total - 1.0).abs() < 1e-9);
        }

        #[test]
        fn shares_sum_to_one_and_reproduce_the_probability(
            logits in prop::collection::vec(-20.0f32..20.0, 8),
            neighbors in arbitrary_neighbors(),
            weight in 0.0f64..=1.0,
            token in 0u32..8,
        ) {
            let lm = log_softmax(&logits);
            let knn = NeighborDistribution::new(&neighbors, 10.0);
            let s = shares(lm[token as usize], &neighbors, &knn, weight, token, |n| n.shard);
            let sum = s.parametric + s.sources.iter().map(|(_, x)| x).sum::<f64>();
            prop_assert!((sum - 1.0).abs() < 1e-9);
            let p = mix_one(lm[token as usize], knn.probability(token), effective_weight(&knn, weight)).exp();
            if p > 1e-300 {
                let by_model = (1.0 - effective_weight(&knn, weight)) * lm[token as usize].exp();
                prop_assert!((s.parametric * p - by_model).abs() < 1e-9);
            }
            // Two shards of one source have one share.
            let merged = shares(lm[token as usize], &neighbors, &knn, weight, token, |n| n.shard.0 / 2);
            for (source, share) in &merged.sources {
                let parts = s.sources.iter().filter(|(shard, _)| shard.0 / 2 == *source);
                prop_assert!((share - parts.map(|(_, x)| x).sum::<f64>()).abs() < 1e-9);
            }
            prop_assert!(merged.sources.len() <= 2);
            let each = neighbor_shares(lm[token as usize], &neighbors, &knn, weight, token);
            prop_assert!(each.iter().all(|(i, _)| neighbors[*i].value == token));
            for (shard, share) in &s.sources {
                let parts = each.iter().filter(|(i, _)| neighbors[*i].shard == *shard).map(|(_, x)| x);
                prop_assert!((share - parts.sum::<f64>()).abs() < 1e-9);
            }
        }
    }
}
