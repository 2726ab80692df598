//! The backward pass of one row: the gradient of the residual stream goes down through the blocks.

use super::forward::{linear, room};
use super::layers::{NormInput, Turn, rms_norm_again, rms_norm_backward, swiglu, swiglu_backward};
use super::weights::Weights;
use super::{Fixed, Lane};
use crate::data::Row;
use crate::gemm::{Kernel, Layout, Output, Panel, Then, multiply};

/// dW += dyᵀ · x for `n` rows.
fn weight_gradient(kernel: Kernel, dy: &[f32], x: &[f32], n: usize, panels: [&mut Panel; 2], dw: &mut [f32]) {
    let [left, right] = panels;
    let (n_out, n_in) = (dy.len() / n, x.len() / n);
    left.pack_left(dy, Layout::Strided(n_out), n_out, n);
    right.pack_right(x, Layout::Strided(n_in), n_in, n);
    let depth = left.depth_tiles();
    multiply(kernel, (&*left).into(), (&*right).into(), depth, &mut Output::whole(dw, n_in), Then::Add);
}

impl Lane {
    /// Takes the gradient of the last block's output in `stream`, adds up the gradients of all weights.
    pub(super) fn backward(&mut self, fixed: &Fixed, weights: &Weights, parameters: &[f32], row: &Row) {
        for layer in (0..fixed.shape.n_layers).rev() {
            self.ffn_backward(fixed, weights, parameters, row, layer);
            self.attention_backward(fixed, weights, parameters, row, layer);
        }
        let dim = fixed.shape.dim;
        let embedding = &mut self.gradients[fixed.layout.embedding.clone()];
        for (dx, &token) in self.stream.chunks_exact(dim).zip(&row.tokens) {
            let out = &mut embedding[token as usize * dim..][..dim];
            out.iter_mut().zip(dx).for_each(|(o, d)| *o += d);
        }
    }

    fn ffn_backward(&mut self, fixed: &Fixed, weights: &Weights, parameters: &[f32], row: &Row, layer: usize) {
        let (t, dim, ffn_dim, kernel) = (row.tokens.len(), fixed.shape.dim, fixed.shape.ffn_dim, fixed.kernel);
        let (kept, packed, block) = (&self.kept[layer], &weights.blocks[layer], &fixed.layout.blocks[layer]);
        let (gradients, dx, scratch) = (&mut self.gradients, &mut self.stream[..t * dim], &mut self.scratch);
        let gate_up = &kept.gate_up[..t * 2 * ffn_dim];

        let act = room(&mut scratch.wide, t * ffn_dim);
        swiglu(gate_up, ffn_dim, act);
        let panels = [&mut scratch.left, &mut scratch.right];
        weight_gradient(kernel, dx, act, t, panels, &mut gradients[block.down.clone()]);
        let out = &mut Output::whole(act, ffn_dim);
        linear(kernel, dx, &packed.down.backward, &mut scratch.left, out, Then::Overwrite);

        let dgate_up = room(&mut scratch.wide_gradient, t * 2 * ffn_dim);
        swiglu_backward(gate_up, ffn_dim, act, dgate_up);
        let normed = room(&mut scratch.normed, t * dim);
        let (norm, x) = (&parameters[block.ffn_norm.clone()], &kept.middle[..t * dim]);
        rms_norm_again(x, norm, &kept.ffn_scale, normed);
        let panels = [&mut scratch.left, &mut scratch.right];
        weight_gradient(kernel, dgate_up, normed, t, panels, &mut gradients[block.gate_up.clone()]);
        let dnormed = &mut Output::whole(normed, dim);
        linear(kernel, dgate_up, &packed.gate_up.backward, &mut scratch.left, dnormed, Then::Overwrite);
        let input = NormInput { x, weight: norm, scales: &kept.ffn_scale };
        rms_norm_backward(input, normed, dx, &mut gradients[block.ffn_norm.clone()]);
    }

    fn attention_backward(&mut self, fixed: &Fixed, weights: &Weights, parameters: &[f32], row: &Row, layer: usize) {
        let (t, dim, kernel) = (row.tokens.len(), fixed.shape.dim, fixed.kernel);
        let (q_dim, qkv_dim) = (fixed.q_dim(), fixed.qkv_dim());
        let (kept, packed, block) = (&self.kept[layer], &weights.blocks[layer], &fixed.layout.blocks[layer]);
        let (gradients, dx, scratch) = (&mut self.gradients, &mut self.stream[..t * dim], &mut self.scratch);

        let attended = &kept.attended[..t * q_dim];
        let panels = [&mut scratch.left, &mut scratch.right];
        weight_gradient(kernel, dx, attended, t, panels, &mut gradients[block.output.clone()]);
        let dattended = room(&mut scratch.wide, t * q_dim);
        let out = &mut Output::whole(dattended, q_dim);
        linear(kernel, dx, &packed.output.backward, &mut scratch.left, out, Then::Overwrite);

        let dqkv = room(&mut scratch.wide_gradient, t * qkv_dim);
        scratch.attention.backward(fixed, row, kept, dattended, dqkv);
        let n_rotated = fixed.shape.n_heads + fixed.shape.n_kv_heads;
        fixed.rope.rotate(dqkv, qkv_dim, n_rotated, &row.positions, Turn::Back);

        let normed = room(&mut scratch.normed, t * dim);
        let (norm, x) = (&parameters[block.attention_norm.clone()], &kept.input[..t * dim]);
        rms_norm_again(x, norm, &kept.attention_scale, normed);
        let panels = [&mut scratch.left, &mut scratch.right];
        weight_gradient(kernel, dqkv, normed, t, panels, &mut gradients[block.qkv.clone()]);
        let dnormed = &mut Output::whole(normed, dim);
        linear(kernel, dqkv, &packed.qkv.backward, &mut scratch.left, dnormed, Then::Overwrite);
        let input = NormInput { x, weight: norm, scales: &kept.attention_scale };
        rms_norm_backward(input, normed, dx, &mut gradients[block.attention_norm.clone()]);
    }
}
