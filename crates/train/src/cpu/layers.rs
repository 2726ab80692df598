//! Row-wise operations and their gradients.

use silo_model::math::{dot, exp, silu_multiply};

/// out = x · s · weight with s = 1/√(mean(x²) + eps), which is kept in `scales` (Zhang and Sennrich 2019).
pub(super) fn rms_norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32], scales: &mut [f32]) {
    let dim = weight.len();
    for ((x, out), scale) in x.chunks_exact(dim).zip(out.chunks_exact_mut(dim)).zip(scales) {
        *scale = 1.0 / (dot(x, x) / dim as f32 + eps).sqrt();
        normed(x, weight, *scale, out);
    }
}

/// The same with scales that are known.
pub(super) fn rms_norm_again(x: &[f32], weight: &[f32], scales: &[f32], out: &mut [f32]) {
    let dim = weight.len();
    for ((x, out), scale) in x.chunks_exact(dim).zip(out.chunks_exact_mut(dim)).zip(scales) {
        normed(x, weight, *scale, out);
    }
}

fn normed(x: &[f32], weight: &[f32], scale: f32, out: &mut [f32]) {
    for ((o, x), w) in out.iter_mut().zip(x).zip(weight) {
        *o = x * scale * w;
    }
}

/// What a norm read.
pub(super) struct NormInput<'a> {
    pub(super) x: &'a [f32],
    pub(super) weight: &'a [f32],
    pub(super) scales: &'a [f32],
}

/// Adds the gradient of a norm's input to `dx` and that of its weight to `dweight`.
pub(super) fn rms_norm_backward(input: NormInput<'_>, dy: &[f32], dx: &mut [f32], dweight: &mut [f32]) {
    let dim = input.weight.len();
    let rows = input.x.chunks_exact(dim).zip(dy.chunks_exact(dim)).zip(dx.chunks_exact_mut(dim)).zip(input.scales);
    let mut weighted = vec![0.0; dim];
    for (((x, dy), dx), &scale) in rows {
        for (((dw, p), (x, dy)), w) in dweight.iter_mut().zip(&mut weighted).zip(x.iter().zip(dy)).zip(input.weight) {
            *dw += dy * x * scale;
            *p = dy * w;
        }
        let along = dot(&weighted, x) * scale * scale * scale / dim as f32;
        for ((dx, p), x) in dx.iter_mut().zip(&weighted).zip(x) {
            *dx += p * scale - x * along;
        }
    }
}

/// out = silu(gate) · up for rows `[gate; up]` (Shazeer 2020).
pub(super) fn swiglu(gate_up: &[f32], ffn_dim: usize, out: &mut [f32]) {
    for (row, out) in gate_up.chunks_exact(2 * ffn_dim).zip(out.chunks_exact_mut(ffn_dim)) {
        silu_multiply(row, out);
    }
}

/// Gradient of [`swiglu`]'s input.
pub(super) fn swiglu_backward(gate_up: &[f32], ffn_dim: usize, dy: &[f32], out: &mut [f32]) {
    let rows = gate_up.chunks_exact(2 * ffn_dim).zip(dy.chunks_exact(ffn_dim)).zip(out.chunks_exact_mut(2 * ffn_dim));
    for ((row, dy), out) in rows {
        let (gate, up) = row.split_at(ffn_dim);
        let (dgate, dup) = out.split_at_mut(ffn_dim);
        let values = gate.iter().zip(up).zip(dy);
        for (((g, u), dy), (dg, du)) in values.zip(dgate.iter_mut().zip(dup)) {
            let sigmoid = 1.0 / (1.0 + exp(-g));
            *du = dy * g * sigmoid;
            *dg = dy * u * sigmoid * (1.0 + g * (1.0 - sigmoid));
        }
    }
}

/// cos and sin of every position and pair of a rotary embedding (Su et al. 2021).
pub(crate) struct RopeTable {
    half: usize,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

/// Which way to rotate.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    Forward,
    Back,
}

impl RopeTable {
    pub(super) fn new(frequencies: &[f32], n_positions: usize) -> Self {
        let angles = (0..n_positions).flat_map(|p| frequencies.iter().map(move |f| p as f32 * f));
        let (sin, cos) = angles.map(f32::sin_cos).unzip();
        Self { half: frequencies.len(), cos, sin }
    }

    /// Rotates the first `n_heads` heads of every row of `width` values.
    pub(super) fn rotate(&self, rows: &mut [f32], width: usize, n_heads: usize, positions: &[u32], turn: Turn) {
        for (row, &position) in rows.chunks_exact_mut(width).zip(positions) {
            let range = position as usize * self.half..(position as usize + 1) * self.half;
            let (cos, sin) = (&self.cos[range.clone()], &self.sin[range]);
            let sign = if turn == Turn::Forward { 1.0 } else { -1.0 };
            for head in row.chunks_exact_mut(2 * self.half).take(n_heads) {
                let (a, b) = head.split_at_mut(self.half);
                for (((a, b), c), s) in a.iter_mut().zip(b).zip(cos).zip(sin) {
                    (*a, *b) = (*a * c - *b * s * sign, *b * c + *a * s * sign);
                }
            }
        }
    }
}
