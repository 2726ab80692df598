//! From logits and neighbours to p(y), and the exact share of every source in it.
//!
//! kNN-LM (Khandelwal et al. 2020, eq. 2–3): p(y) = (1 − w)·p_lm(y) + w·p_knn(y), with
//! p_knn(y) ∝ Σ over neighbours i with value y of exp(β·m_i − d_i / τ), d the squared L2 distance. `knn_weight` is w, the weight of
//! the neighbours; `knn_temperature` is τ. Beyond kNN-LM, m is the number of tokens before the neighbour's value that are the text's last ones,
//! and `match_bonus` is β. All sums run in f64 and in the order of the slices, so the same inputs give the same bits.

use std::collections::HashMap;

use crate::{KnnParameters, Neighbor, ShardIndex, TokenId};

/// log softmax of `logits` at temperature 1.
pub fn log_softmax(logits: &[f32]) -> Vec<f64> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let max = f64::from(max);
    let sum: f64 = logits.iter().map(|&x| (f64::from(x) - max).exp()).sum();
    let log_z = max + sum.ln();
    logits.iter().map(|&x| f64::from(x) - log_z).collect()
}

/// The neighbour softmax: one weight per neighbour, and their sum per token.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct NeighborDistribution {
    /// Weight a_i of each neighbour, in the order given; they sum to 1, or there are none.
    weights: Vec<f64>,
    /// (token, p_knn(token)), sorted by token.
    tokens: Vec<(TokenId, f64)>,
    /// Part of the neighbours' weight that they have: 1, unless a cap on sources or a gate leaves the rest to the model.
    mass: f64,
}

impl NeighborDistribution {
    /// The softmax of what `neighbors` weigh, which are in the order nearest first.
    pub fn new(neighbors: &[Neighbor], knn: &KnnParameters) -> Self {
        Self::blended(neighbors, &[(1.0, *knn)])
    }

    /// The same of several softmaxes, each with a share of the mass; shares are at most 1 together, and the rest is the model's.
    pub fn blended(neighbors: &[Neighbor], kernels: &[(f64, KnnParameters)]) -> Self {
        Self::of_weights(neighbors, weights(neighbors, kernels), mass_of(kernels))
    }

    /// The answers of several searches as one: each has its part of the mass and its own softmaxes within it. Parts without an answer
    /// leave their mass to the model. Also gives the neighbours of all, nearest first, those of equal distance in the order of the parts.
    pub fn of_parts(parts: &[(f64, &[Neighbor])], kernels: &[(f64, KnnParameters)]) -> (Vec<Neighbor>, Self) {
        let found = || parts.iter().filter(|(mass, neighbors)| *mass > 0.0 && !neighbors.is_empty());
        let mass: f64 = found().map(|(mass, _)| mass).sum();
        let weigh = |(part, neighbors): &(f64, &[Neighbor])| {
            let weights = weights(neighbors, kernels).into_iter().map(|a| a * part / mass);
            neighbors.iter().copied().zip(weights).collect::<Vec<_>>()
        };
        let mut all: Vec<(Neighbor, f64)> = found().flat_map(weigh).collect();
        all.sort_by(|(a, _), (b, _)| a.distance.total_cmp(&b.distance));
        let (neighbors, weights): (Vec<_>, Vec<_>) = all.into_iter().unzip();
        let distribution = Self::of_weights(&neighbors, weights, mass * mass_of(kernels));
        (neighbors, distribution)
    }

    fn of_weights(neighbors: &[Neighbor], weights: Vec<f64>, mass: f64) -> Self {
        let mut pairs: Vec<(TokenId, f64)> = neighbors.iter().map(|n| n.value).zip(weights.iter().copied()).collect();
        pairs.sort_by_key(|&(token, _)| token); // stable: equal tokens keep the order of the neighbours
        let mut tokens: Vec<(TokenId, f64)> = Vec::new();
        for (token, weight) in pairs {
            match tokens.last_mut() {
                Some((last, sum)) if *last == token => *sum += weight,
                _ => tokens.push((token, weight)),
            }
        }
        Self { weights, tokens, mass }
    }

    /// Whether there was no neighbour.
    pub fn is_empty(&self) -> bool {
        self.weights.is_empty()
    }

    /// Weight of each neighbour, in the order given.
    pub fn weights(&self) -> &[f64] {
        &self.weights
    }

    /// Part of the neighbours' weight that they have: 1, unless a cap on sources or a gate leaves the rest to the model.
    pub fn mass(&self) -> f64 {
        self.mass
    }

    /// Entropy of p_knn over tokens, in nats; 0 without neighbours.
    pub fn entropy(&self) -> f64 {
        entropy(self.tokens.iter().map(|(_, p)| p.ln()))
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

/// Of several softmaxes together.
fn mass_of(kernels: &[(f64, KnnParameters)]) -> f64 {
    kernels.iter().map(|(share, _)| share).sum()
}

/// What neighbours weigh among themselves: each softmax by its share; the first one's, if none has any.
fn weights(neighbors: &[Neighbor], kernels: &[(f64, KnnParameters)]) -> Vec<f64> {
    let all = mass_of(kernels);
    let [(_, first), others @ ..] = kernels else { return vec![0.0; neighbors.len()] };
    let mut sums = softmax(neighbors, first);
    if others.is_empty() || all == 0.0 {
        return sums;
    }
    sums.iter_mut().for_each(|sum| *sum *= kernels[0].0 / all);
    for (share, knn) in others {
        sums.iter_mut().zip(softmax(neighbors, knn)).for_each(|(sum, weight)| *sum += weight * share / all);
    }
    sums
}

fn softmax(neighbors: &[Neighbor], knn: &KnnParameters) -> Vec<f64> {
    let Some(nearest) = neighbors.first() else { return Vec::new() };
    let log_weight = |n: &Neighbor| knn.log_weight(nearest.distance, n.distance, n.matched);
    let mut weights: Vec<f64> = neighbors.iter().map(log_weight).collect();
    let max = weights.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    weights.iter_mut().for_each(|w| *w = (*w - max).exp());
    let sum: f64 = weights.iter().sum();
    weights.iter_mut().for_each(|w| *w /= sum);
    weights
}

/// Entropy, in nats, of a distribution that is given as log p.
pub fn entropy(log_p: impl Iterator<Item = f64>) -> f64 {
    // What is impossible adds nothing.
    -log_p.filter(|lp| *lp > f64::NEG_INFINITY).map(|lp| lp.exp() * lp).sum::<f64>()
}

/// The weight that is in force: no neighbour means that the parametric model stands alone, and what a cap on sources or a gate leaves is its.
pub fn effective_weight(knn: &NeighborDistribution, knn_weight: f64) -> f64 {
    if knn.is_empty() { 0.0 } else { (knn_weight * knn.mass).min(1.0) } // the parts of many sources at a cap may sum to a little more
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
    /// Share of each other that has one.
    pub parts: Vec<(S, f64)>,
}

/// Total variation of two distributions over one vocabulary, given as log p: half the sum of |p − q|.
pub fn total_variation(log_p: &[f64], log_q: &[f64]) -> f64 {
    log_p.iter().zip(log_q).map(|(p, q)| (p.exp() - q.exp()).abs()).sum::<f64>() / 2.0
}

/// What the total variation of two mixtures over one model can be at most, each given as neighbours, what they weigh, and `knn_weight`: half of the sum of
/// |W − W'|, the weights of all neighbours, and of |A − A'| over single ones. For p(y) = (1 − W)·p_lm(y) + the sum of A over neighbours with value y. Where some neighbours
/// go, nobody comes in their place and W stays, it is their part of W.
pub fn most_moved([a, b]: [(&[Neighbor], &NeighborDistribution, f64); 2]) -> f64 {
    let weights = |(neighbors, knn, knn_weight): (&[Neighbor], &NeighborDistribution, f64)| {
        let all = effective_weight(knn, knn_weight);
        let of_one = |(n, share): (&Neighbor, &f64)| ((n.shard, n.row), all * share);
        (all, neighbors.iter().zip(knn.weights()).map(of_one).collect::<Vec<_>>())
    };
    let ((all, ones), (of_others, others)) = (weights(a), weights(b));
    let mut known: HashMap<(ShardIndex, u32), f64> = others.iter().copied().collect();
    // In the order of the neighbours, for the same bits.
    let both = ones.iter().map(|(place, x)| (x - known.remove(place).unwrap_or(0.0)).abs()).sum::<f64>();
    let new = others.iter().filter(|(place, _)| known.contains_key(place)).map(|(_, x)| x).sum::<f64>();
    ((all - of_others).abs() + both + new) / 2.0
}

/// Shares of `token` in p(token) = (1 − w)·p_lm + w·p_knn: the model's part is (1 − w)·p_lm / p, that of a neighbour with that value is
/// w·a_i / p, given with its place among the neighbours. Sums go in the neighbours' order, so that the shards in which a source's entries
/// lie change no bit.
pub fn shares(
    log_p_lm: f64,
    neighbors: &[Neighbor],
    knn: &NeighborDistribution,
    knn_weight: f64,
    token: TokenId,
) -> Shares<usize> {
    let weight = effective_weight(knn, knn_weight);
    // Weights may be so small that nothing is left of them.
    let counts = |(_, (n, a)): &(usize, (&Neighbor, &f64))| n.value == token && weight * **a > 0.0;
    let of_token = neighbors.iter().zip(knn.weights()).enumerate().filter(counts);
    let mut parts: Vec<(usize, f64)> = of_token.map(|(i, (_, a))| (i, weight * a)).collect();
    let from_model = (1.0 - weight) * log_p_lm.exp();
    let total = from_model + parts.iter().map(|(_, part)| part).sum::<f64>();
    if parts.is_empty() || total == 0.0 {
        return Shares { parametric: 1.0, parts: Vec::new() };
    }
    parts.iter_mut().for_each(|(_, part)| *part /= total);
    Shares { parametric: from_model / total, parts }
}

impl<S> Shares<S> {
    /// The same with the shares of all that belong to one summed up, in order of first appearance.
    pub fn by<T: PartialEq>(&self, of: impl Fn(&S) -> T) -> Shares<T> {
        let mut parts: Vec<(T, f64)> = Vec::new();
        for (part, share) in &self.parts {
            let whose = of(part);
            match parts.iter_mut().find(|(known, _)| *known == whose) {
                Some((_, sum)) => *sum += share,
                None => parts.push((whose, *share)),
            }
        }
        Shares { parametric: self.parametric, parts }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ShardIndex;

    fn neighbor(distance: f32, value: TokenId, shard: u32) -> Neighbor {
        Neighbor { distance, value, shard: ShardIndex(shard), row: 0, matched: 0 }
    }

    fn parameters(temperature: f64) -> KnnParameters {
        KnnParameters { match_bonus: 0.5, ..KnnParameters::new(8, 0.5, temperature) }
    }

    fn arbitrary_neighbors() -> impl Strategy<Value = Vec<Neighbor>> {
        let one = (0.0f32..200.0, 0u32..8, 0u32..3, 0u16..9);
        prop::collection::vec(one, 0..40).prop_map(|raw| {
            let mut all: Vec<_> =
                raw.into_iter().map(|(d, v, s, matched)| Neighbor { matched, ..neighbor(d, v, s) }).collect();
            all.sort_by(|a, b| a.distance.total_cmp(&b.distance));
            all.iter_mut().enumerate().for_each(|(i, n)| n.row = i as u32);
            all
        })
    }

    #[test]
    fn weight_zero_and_no_neighbour_are_the_model_itself() {
        let lm = log_softmax(&[0.3, -1.0, 2.0]);
        let knn = NeighborDistribution::new(&[neighbor(1.0, 2, 0)], &parameters(1.0));
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
            let (with, without) = [&neighbors, &rest].map(|n| NeighborDistribution::new(n, &parameters(10.0))).into();
            let mass: f64 = neighbors.iter().zip(with.weights()).filter(|(n, _)| n.shard.0 == 0).map(|(_, a)| a).sum();
            let moved = total_variation(&interpolate(&lm, &with, weight), &interpolate(&lm, &without, weight));
            prop_assert!((0.0..=weight * mass + 1e-9).contains(&moved), "{moved} of {}", weight * mass);
        }
    }

    #[test]
    fn entropies_are_those_of_the_formula() {
        let fair = entropy([0.5f64.ln(), 0.5f64.ln(), f64::NEG_INFINITY].into_iter());
        assert!((fair - 2f64.ln()).abs() < 1e-15);
        let alike = [neighbor(3.0, 1, 0), neighbor(3.0, 1, 0), neighbor(3.0, 2, 0), neighbor(3.0, 4, 0)];
        let knn = NeighborDistribution::new(&alike, &parameters(1.0));
        assert!((knn.entropy() - 1.5 * 2f64.ln()).abs() < 1e-15, "of tokens, not of neighbours");
        assert_eq!(NeighborDistribution::default().entropy(), 0.0);
    }

    proptest! {
        /// Whoever goes and comes, and whatever a gate says each time.
        #[test]
        fn no_more_moves_than_weights_differ(
            logits in prop::collection::vec(-20.0f32..20.0, 8), neighbors in arbitrary_neighbors(), weight in 0.0f64..=1.0,
            k in 1usize..30, shares in prop::array::uniform2(prop::array::uniform2(0.0f64..=0.5)),
        ) {
            let lm = log_softmax(&logits);
            let nearest = |gone: &dyn Fn(&Neighbor) -> bool| -> Vec<Neighbor> {
                neighbors.iter().filter(|n| !gone(n)).take(k).copied().collect()
            };
            let views = [nearest(&|_| false), nearest(&|n| n.shard.0 == 0)];
            let blended = |n: &[Neighbor], [a, b]: [f64; 2]| {
                let [sharp, broad] = parameters(10.0).kernels();
                NeighborDistribution::blended(n, &[(a, sharp), (b, broad)])
            };
            let [with, without] = [0, 1].map(|i| blended(&views[i], shares[i]));
            let moved = total_variation(&interpolate(&lm, &with, weight), &interpolate(&lm, &without, weight));
            let most = most_moved([(&views[0], &with, weight), (&views[1], &without, weight)]);
            prop_assert!(moved <= most + 1e-9, "{moved} {most}");
            // With one weight and all of them in view, what goes is all that moves.
            let all = NeighborDistribution::new(&neighbors, &parameters(10.0));
            let rest: Vec<_> = neighbors.iter().filter(|n| n.shard.0 != 0).copied().collect();
            if !rest.is_empty() {
                let fewer = NeighborDistribution::new(&rest, &parameters(10.0));
                let goes: f64 = neighbors.iter().zip(all.weights()).filter(|(n, _)| n.shard.0 == 0).map(|(_, a)| a).sum();
                let most = most_moved([(&neighbors, &all, weight), (&rest, &fewer, weight)]);
                // Weights of those that match are measured from the nearest that is left.
                prop_assert!((most - weight * goes).abs() < 1e-9, "{most} {goes}");
            }
        }

        /// Each kernel with its share, and the rest to the model.
        #[test]
        fn a_blend_is_the_sum_of_its_kernels(neighbors in arbitrary_neighbors(), shares in prop::array::uniform2(0.0f64..=0.5)) {
            let kernels = parameters(10.0).kernels().map(|knn| NeighborDistribution::new(&neighbors, &knn));
            let [sharp, broad] = parameters(10.0).kernels();
            let blend = NeighborDistribution::blended(&neighbors, &[(shares[0], sharp), (shares[1], broad)]);
            prop_assert!((blend.mass() - shares[0] - shares[1]).abs() < 1e-12 || neighbors.is_empty());
            for y in 0..8u32 {
                let expected: f64 = kernels.iter().zip(shares).map(|(kernel, share)| share * kernel.probability(y)).sum();
                prop_assert!((blend.mass() * blend.probability(y) - expected).abs() < 1e-12);
            }
            let sum: f64 = blend.weights().iter().sum();
            prop_assert!(neighbors.is_empty() || (sum - 1.0).abs() < 1e-12);
            let nothing = NeighborDistribution::blended(&neighbors, &[(0.0, sharp), (0.0, broad)]);
            prop_assert_eq!(effective_weight(&nothing, 0.7), 0.0);
        }
    }

    #[test]
    fn the_smallest_temperature_leaves_the_nearest() {
        let neighbors = [neighbor(2.0, 1, 0), neighbor(2.0, 2, 0), Neighbor { matched: 9, ..neighbor(3.0, 3, 0) }];
        for match_bonus in [0.0, -100.0, 100.0] {
            let knn = KnnParameters { match_bonus, ..KnnParameters::new(3, 1.0, f64::from_bits(1)) };
            assert_eq!(NeighborDistribution::new(&neighbors, &knn).weights(), [0.5, 0.5, 0.0]);
        }
    }

    #[test]
    fn far_neighbours_do_not_underflow() {
        let knn = NeighborDistribution::new(&[neighbor(1e6, 0, 0), neighbor(1e6, 1, 0)], &parameters(1.0));
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
            let knn = NeighborDistribution::new(&neighbors, &parameters(temperature));
            let mixed = interpolate(&lm, &knn, weight);
            let weigh = |n: &Neighbor| (0.5 * f64::from(n.matched) - f64::from(n.distance) / temperature).exp();
            let z: f64 = neighbors.iter().map(weigh).sum();
            for y in 0..8u32 {
                let p_lm = lm[y as usize].exp();
                let expected = if neighbors.is_empty() || z == 0.0 {
                    continue; // the direct formula has no value, or has underflown
                } else {
                    let same = neighbors.iter().filter(|n| n.value == y);
                    let p_knn: f64 = same.map(|n| weigh(n) / z).sum();
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
            let knn = NeighborDistribution::new(&neighbors, &parameters(10.0));
            let each = shares(lm[token as usize], &neighbors, &knn, weight, token);
            prop_assert!(each.parts.iter().all(|(i, _)| neighbors[*i].value == token));
            let s = each.by(|i| neighbors[*i].shard);
            let sum = s.parametric + s.parts.iter().map(|(_, x)| x).sum::<f64>();
            prop_assert!((sum - 1.0).abs() < 1e-9);
            let p = mix_one(lm[token as usize], knn.probability(token), effective_weight(&knn, weight)).exp();
            if p > 1e-300 {
                let by_model = (1.0 - effective_weight(&knn, weight)) * lm[token as usize].exp();
                prop_assert!((s.parametric * p - by_model).abs() < 1e-9);
            }
            // Two shards of one source have one share.
            let merged = each.by(|i| neighbors[*i].shard.0 / 2);
            for (source, share) in &merged.parts {
                let parts = s.parts.iter().filter(|(shard, _)| shard.0 / 2 == *source);
                prop_assert!((share - parts.map(|(_, x)| x).sum::<f64>()).abs() < 1e-9);
            }
            prop_assert!(merged.parts.len() <= 2);
        }

        /// Parts keep their mass, and what no part has is the model's.
        #[test]
        fn parts_are_mixed_by_their_mass(
            logits in prop::collection::vec(-20.0f32..20.0, 8),
            searches in prop::collection::vec((0.0f64..0.4, arbitrary_neighbors()), 1..3),
            weight in 0.0f64..=1.0,
        ) {
            let lm = log_softmax(&logits);
            let parts: Vec<(f64, &[Neighbor])> = searches.iter().map(|(m, n)| (*m, &n[..])).collect();
            let (neighbors, knn) = NeighborDistribution::of_parts(&parts, &[(1.0, parameters(10.0))]);
            prop_assert!(neighbors.is_sorted_by(|a, b| a.distance <= b.distance));
            let mixed = interpolate(&lm, &knn, weight);
            for y in 0..8u32 {
                let found = parts.iter().filter(|(m, n)| *m > 0.0 && !n.is_empty());
                let of_part = |(mass, n): &(f64, &[Neighbor])| (*mass, NeighborDistribution::new(n, &parameters(10.0)).probability(y));
                let (mass, p) = found.map(of_part).fold((0.0, 0.0), |(m, p), (mass, q)| (m + mass, p + mass * q));
                let expected = (1.0 - weight * mass) * lm[y as usize].exp() + weight * p;
                prop_assert!((mixed[y as usize].exp() - expected).abs() < 1e-9);
            }
            if let [(_, only)] = &searches[..] && !only.is_empty() {
                let [sharp, broad] = parameters(10.0).kernels();
                for kernels in [vec![(1.0, sharp)], vec![(0.25, sharp), (0.5, broad)]] {
                    let whole = NeighborDistribution::of_parts(&[(1.0, only)], &kernels).1;
                    prop_assert_eq!(whole, NeighborDistribution::blended(only, &kernels));
                }
            }
        }
    }
}
