//! The forward pass of one row.

use super::layers::{Turn, rms_norm, swiglu};
use super::weights::Weights;
use super::{Fixed, Lane};
use crate::data::Row;
use crate::gemm::{Kernel, Layout, Output, Panel, Then, multiply};

/// Makes room for `n` values whose contents do not matter.
pub(super) fn room(buffer: &mut Vec<f32>, n: usize) -> &mut [f32] {
    if buffer.len() < n {
        buffer.resize(n, 0.0);
    }
    &mut buffer[..n]
}

/// out (+)= x · Wᵀ, with W packed.
pub(super) fn linear(kernel: Kernel, x: &[f32], weights: &Panel, left: &mut Panel, out: &mut Output<'_>, then: Then) {
    let n_in = x.len() / out.n_rows;
    left.pack_left(x, Layout::Contiguous(n_in), out.n_rows, n_in);
    multiply(kernel, (&*left).into(), weights.into(), left.depth_tiles(), out, then);
}

impl Lane {
    /// Runs the blocks over a row; leaves what the backward pass needs, and the residual stream in `stream`.
    pub(super) fn forward(&mut self, fixed: &Fixed, weights: &Weights, parameters: &[f32], row: &Row) {
        let dim = fixed.shape.dim;
        let embedding = &parameters[fixed.layout.embedding.clone()];
        let stream = room(&mut self.stream, row.tokens.len() * dim);
        for (out, &token) in stream.chunks_exact_mut(dim).zip(&row.tokens) {
            out.copy_from_slice(&embedding[token as usize * dim..][..dim]);
        }
        for layer in 0..fixed.shape.n_layers {
            self.attention_forward(fixed, weights, parameters, row, layer);
            self.ffn_forward(fixed, weights, parameters, row, layer);
        }
    }

    fn attention_forward(&mut self, fixed: &Fixed, weights: &Weights, parameters: &[f32], row: &Row, layer: usize) {
        let (t, dim, q_dim, qkv_dim) = (row.tokens.len(), fixed.shape.dim, fixed.q_dim(), fixed.qkv_dim());
        let (kept, packed, block) = (&mut self.kept[layer], &weights.blocks[layer], &fixed.layout.blocks[layer]);
        let stream = &mut self.stream[..t * dim];
        room(&mut kept.input, t * dim).copy_from_slice(stream);
        let normed = room(&mut self.scratch.normed, t * dim);
        let norm = &parameters[block.attention_norm.clone()];
        rms_norm(stream, norm, fixed.shape.norm_eps, normed, room(&mut kept.attention_scale, t));
        let qkv = room(&mut kept.qkv, t * qkv_dim);
        let left = &mut self.scratch.left;
        linear(fixed.kernel, normed, &packed.qkv.forward, left, &mut Output::whole(qkv, qkv_dim), Then::Overwrite);
        let n_rotated = fixed.shape.n_heads + fixed.shape.n_kv_heads;
        fixed.rope.rotate(qkv, qkv_dim, n_rotated, &row.positions, Turn::Forward);
        let attended = room(&mut kept.attended, t * q_dim);
        let log_sums = room(&mut kept.log_sums, t * fixed.shape.n_heads);
        self.scratch.attention.forward(fixed, row, qkv, attended, log_sums);
        let out = &mut Output::whole(stream, dim);
        linear(fixed.kernel, attended, &packed.output.forward, left, out, Then::Add);
    }

    fn ffn_forward(&mut self, fixed: &Fixed, weights: &Weights, parameters: &[f32], row: &Row, layer: usize) {
        let (t, dim, ffn_dim) = (row.tokens.len(), fixed.shape.dim, fixed.shape.ffn_dim);
        let (kept, packed, block) = (&mut self.kept[layer], &weights.blocks[layer], &fixed.layout.blocks[layer]);
        let stream = &mut self.stream[..t * dim];
        room(&mut kept.middle, t * dim).copy_from_slice(stream);
        let normed = room(&mut self.scratch.normed, t * dim);
        let norm = &parameters[block.ffn_norm.clone()];
        rms_norm(stream, norm, fixed.shape.norm_eps, normed, room(&mut kept.ffn_scale, t));
        let gate_up = room(&mut kept.gate_up, t * 2 * ffn_dim);
        let left = &mut self.scratch.left;
        let out = &mut Output::whole(gate_up, 2 * ffn_dim);
        linear(fixed.kernel, normed, &packed.gate_up.forward, left, out, Then::Overwrite);
        let act = room(&mut self.scratch.wide, t * ffn_dim);
        swiglu(gate_up, ffn_dim, act);
        linear(fixed.kernel, act, &packed.down.forward, left, &mut Output::whole(stream, dim), Then::Add);
    }
}
