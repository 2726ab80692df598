//! Causal attention of one query head over the cached keys and values of its key-value head.

use super::math::{axpy, dot, softmax};

/// out = softmax(q·Kᵀ / √d)·V over the `n` cached positions; `keys` and `values` hold rows of `q.len()` values. `scores` is
/// scratch space.
pub(crate) fn attend(q: &[f32], keys: &[f32], values: &[f32], n: usize, scores: &mut Vec<f32>, out: &mut [f32]) {
    let head_dim = q.len();
    let scale = 1.0 / (head_dim as f32).sqrt();
    scores.clear();
    scores.extend(keys.chunks_exact(head_dim).take(n).map(|k| dot(q, k) * scale));
    softmax(scores);
    out.fill(0.0);
    for (p, v) in scores.iter().zip(values.chunks_exact(head_dim)) {
        axpy(*p, v, out);
    }
}
