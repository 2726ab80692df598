//! Weights as packed operands, packed once a step for all lanes.

use rayon::prelude::*;

use super::Fixed;
use crate::gemm::{Layout, Panel};

/// One matrix `[out, in]`, as the right operand of x·Wᵀ and of dy·W.
#[derive(Default)]
pub(super) struct Packed {
    pub(super) forward: Panel,
    pub(super) backward: Panel,
}

impl Packed {
    fn pack(&mut self, weights: &[f32], n_in: usize, backward: bool) {
        let n_out = weights.len() / n_in;
        self.forward.pack_right(weights, Layout::Contiguous(n_in), n_out, n_in);
        if backward {
            self.backward.pack_right(weights, Layout::Strided(n_in), n_in, n_out);
        }
    }
}

#[derive(Default)]
pub(super) struct BlockWeights {
    pub(super) qkv: Packed,
    pub(super) output: Packed,
    pub(super) gate_up: Packed,
    pub(super) down: Packed,
}

#[derive(Default)]
pub(super) struct Weights {
    pub(super) blocks: Vec<BlockWeights>,
    pub(super) head: Packed,
}

impl Weights {
    pub(super) fn pack(&mut self, fixed: &Fixed, parameters: &[f32], backward: bool) {
        let (dim, ffn_dim, q_dim) = (fixed.shape.dim, fixed.shape.ffn_dim, fixed.q_dim());
        self.blocks.resize_with(fixed.shape.n_layers, BlockWeights::default);
        let (head, blocks) = (&mut self.head, &mut self.blocks);
        let pack_blocks = || {
            blocks.par_iter_mut().zip(&fixed.layout.blocks).for_each(|(packed, block)| {
                packed.qkv.pack(&parameters[block.qkv.clone()], dim, backward);
                packed.output.pack(&parameters[block.output.clone()], q_dim, backward);
                packed.gate_up.pack(&parameters[block.gate_up.clone()], dim, backward);
                packed.down.pack(&parameters[block.down.clone()], ffn_dim, backward);
            });
        };
        rayon::join(|| head.pack(&parameters[fixed.layout.embedding.clone()], dim, backward), pack_blocks);
    }
}
