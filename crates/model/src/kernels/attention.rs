//! Causal attention of one query head over the cached keys and values of its key-value head.
//!
//! Every score is one chain of fused multiply-adds over the head's dimensions, every output one over the positions, both in order: the
//! bits do not depend on how many of them are computed side by side.

use super::math::softmax;

/// Positions whose keys stand side by side in the cache: `[block][dimension][position]`.
pub(crate) const KEY_BLOCK: usize = 16;
/// Blocks of positions that are scored side by side, to keep the multiply-add units busy.
const BLOCKS: usize = 4;

/// out = softmax(q·Kᵀ / √d)·V over the `n` cached positions; `keys` holds blocks of [`KEY_BLOCK`] positions, `values` rows of `q.len()`
/// values. `scores` is scratch space.
pub(crate) fn attend(q: &[f32], keys: &[f32], values: &[f32], n: usize, scores: &mut Vec<f32>, out: &mut [f32]) {
    let scale = 1.0 / (q.len() as f32).sqrt();
    scores.clear();
    let block = q.len() * KEY_BLOCK;
    let keys = &keys[..n.div_ceil(KEY_BLOCK) * block];
    let mut groups = keys.chunks_exact(BLOCKS * block);
    for group in groups.by_ref() {
        let blocks: [&[f32]; BLOCKS] = std::array::from_fn(|b| &group[b * block..(b + 1) * block]);
        score_blocks(q, blocks).iter().for_each(|s| scores.extend(s.map(|x| x * scale)));
    }
    for keys in groups.remainder().chunks_exact(block) {
        let [s] = score_blocks(q, [keys]);
        scores.extend(s.map(|x| x * scale));
    }
    scores.truncate(n);
    softmax(scores);
    weigh(scores, values, q.len(), out);
}

/// q·k for every position of the blocks.
#[inline(always)]
fn score_blocks<const N: usize>(q: &[f32], blocks: [&[f32]; N]) -> [[f32; KEY_BLOCK]; N] {
    let mut acc = [[0.0f32; KEY_BLOCK]; N];
    let blocks = blocks.map(|b| b.as_chunks::<KEY_BLOCK>().0);
    for (d, &x) in q.iter().enumerate() {
        for (acc, block) in acc.iter_mut().zip(blocks) {
            for (a, k) in acc.iter_mut().zip(&block[d]) {
                *a = x.mul_add(*k, *a);
            }
        }
    }
    acc
}

/// out = Σ p_i · v_i.
fn weigh(weights: &[f32], values: &[f32], head_dim: usize, out: &mut [f32]) {
    let mut at = 0;
    while at < head_dim {
        at += match head_dim - at {
            64.. => weigh_columns::<64>(weights, values, head_dim, at, out),
            16.. => weigh_columns::<16>(weights, values, head_dim, at, out),
            _ => weigh_columns::<1>(weights, values, head_dim, at, out),
        };
    }
}

/// The same for `W` columns from `at` on, in registers.
#[inline(always)]
fn weigh_columns<const W: usize>(
    weights: &[f32],
    values: &[f32],
    head_dim: usize,
    at: usize,
    out: &mut [f32],
) -> usize {
    let mut acc = [0.0f32; W];
    for (p, row) in weights.iter().zip(values.chunks_exact(head_dim)) {
        for (a, v) in acc.iter_mut().zip(&row[at..at + W]) {
            *a = p.mul_add(*v, *a);
        }
    }
    out[at..at + W].copy_from_slice(&acc);
    W
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn attention_is_its_formula(head_dim in prop::sample::select(vec![2usize, 16, 18, 64, 82]), n in 1usize..150, seed in any::<u32>()) {
            let number = |i: usize| ((i as u32).wrapping_mul(2_654_435_761).wrapping_add(seed) >> 8) as f32 / (1 << 23) as f32 - 1.0;
            let q: Vec<f32> = (0..head_dim).map(number).collect();
            let key = |position: usize, d: usize| number(7 + position * 83 + d);
            let mut keys = vec![0.0; n.div_ceil(KEY_BLOCK) * KEY_BLOCK * head_dim];
            for position in 0..n {
                for d in 0..head_dim {
                    keys[position / KEY_BLOCK * KEY_BLOCK * head_dim + d * KEY_BLOCK + position % KEY_BLOCK] = key(position, d);
                }
            }
            let values: Vec<f32> = (0..n * head_dim).map(|i| number(i + 100_000)).collect();
            let mut out = vec![f32::NAN; head_dim];
            attend(&q, &keys, &values, n, &mut Vec::new(), &mut out);
            let scores: Vec<f64> = (0..n).map(|p| (0..head_dim).map(|d| f64::from(q[d]) * f64::from(key(p, d))).sum::<f64>() / (head_dim as f64).sqrt()).collect();
            let z: f64 = scores.iter().map(|s| s.exp()).sum();
            for (d, got) in out.iter().enumerate() {
                let expected: f64 = scores.iter().enumerate().map(|(p, s)| s.exp() / z * f64::from(values[p * head_dim + d])).sum();
                prop_assert!((f64::from(*got) - expected).abs() < 1e-5, "{} {}", got, expected);
            }
        }
    }
}
