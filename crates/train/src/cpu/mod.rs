//! Forward and backward pass on the CPU, written out by hand: every product in bfloat16 tiles with f32 sums, everything else in f32.
//!
//! Rows of a batch go to a fixed number of lanes. A lane works through its rows one after the other on one thread and adds up gradients
//! of its own; these are then summed in the order of the lanes. So a step gives the same bits with any number of threads.

mod attention;
mod backward;
mod forward;
mod head;
mod layers;
mod weights;

use rayon::prelude::*;
use silo_model::LlamaShape;

use crate::data::Row;
use crate::gemm::{Kernel, Panel};
use crate::params::Layout;
use attention::Attention;
use layers::RopeTable;
use weights::Weights;

/// Loss of some rows: summed over their targets, so that it can be averaged over any set.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Loss {
    /// Σ −ln p, nats.
    pub nats: f64,
    /// Number of tokens it is over.
    pub n_tokens: usize,
}

impl Loss {
    /// Nats per token.
    pub fn mean(self) -> f64 {
        self.nats / self.n_tokens.max(1) as f64
    }
}

impl std::ops::Add for Loss {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { nats: self.nats + other.nats, n_tokens: self.n_tokens + other.n_tokens }
    }
}

/// What never changes during a run.
pub(crate) struct Fixed {
    pub(crate) shape: LlamaShape,
    pub(crate) layout: Layout,
    pub(crate) kernel: Kernel,
    rope: RopeTable,
}

impl Fixed {
    fn q_dim(&self) -> usize {
        self.shape.n_heads * self.shape.head_dim
    }

    fn kv_dim(&self) -> usize {
        self.shape.n_kv_heads * self.shape.head_dim
    }

    fn qkv_dim(&self) -> usize {
        self.q_dim() + 2 * self.kv_dim()
    }
}

/// Computes losses and gradients.
pub(crate) struct CpuPass {
    pub(crate) fixed: Fixed,
    weights: Weights,
    lanes: Vec<Lane>,
}

/// What one block keeps of the forward pass for the backward pass; `t` rows each.
#[derive(Default)]
struct Kept {
    /// `[t, dim]`: what the block read.
    input: Vec<f32>,
    attention_scale: Vec<f32>,
    /// `[t, q_dim + 2 kv_dim]`, rotated.
    qkv: Vec<f32>,
    /// `[t, n_heads]`: log of the sum of exponentials of the scores.
    log_sums: Vec<f32>,
    /// `[t, q_dim]`
    attended: Vec<f32>,
    /// `[t, dim]`: the residual stream between attention and feed-forward.
    middle: Vec<f32>,
    ffn_scale: Vec<f32>,
    /// `[t, 2 ffn_dim]`
    gate_up: Vec<f32>,
}

/// The state of one lane.
pub(crate) struct Lane {
    gradients: Vec<f32>,
    kept: Vec<Kept>,
    /// `[t, dim]`: the residual stream, then its gradient.
    stream: Vec<f32>,
    final_scale: Vec<f32>,
    scratch: Scratch,
}

/// Buffers whose contents nobody relies on.
#[derive(Default)]
struct Scratch {
    normed: Vec<f32>,
    wide: Vec<f32>,
    wide_gradient: Vec<f32>,
    narrow: Vec<f32>,
    logits: Vec<f32>,
    left: Panel,
    right: Panel,
    /// Gradient of the logits of a whole row, tokens along the depth.
    dlogits: Panel,
    attention: Attention,
}

impl CpuPass {
    pub(crate) fn new(shape: LlamaShape, kernel: Kernel, row_tokens: usize, n_lanes: usize) -> Self {
        let layout = Layout::new(&shape);
        let rope = RopeTable::new(&shape.rope.frequencies(shape.head_dim), row_tokens);
        let fixed = Fixed { shape, layout, kernel, rope };
        let lanes = (0..n_lanes).map(|_| Lane::new(&fixed)).collect();
        Self { fixed, weights: Weights::default(), lanes }
    }

    /// Mean loss over the rows' targets, and its gradients in `out`.
    pub(crate) fn gradients(&mut self, parameters: &[f32], rows: &[Row], out: &mut [f32]) -> Loss {
        let Self { fixed, weights, lanes } = self;
        weights.pack(fixed, parameters, true);
        let n_targets: usize = rows.iter().map(Row::n_targets).sum();
        let scale = 1.0 / n_targets.max(1) as f32;
        let n_lanes = lanes.len();
        let losses: Vec<Loss> = lanes
            .par_iter_mut()
            .enumerate()
            .map(|(lane_number, lane)| {
                lane.gradients.fill(0.0);
                let mut loss = Loss::default();
                for row in rows.iter().skip(lane_number).step_by(n_lanes) {
                    lane.forward(fixed, weights, parameters, row);
                    loss = loss + lane.head(fixed, weights, parameters, row, Some(scale));
                    lane.backward(fixed, weights, parameters, row);
                }
                loss
            })
            .collect();
        out.copy_from_slice(&lanes[0].gradients);
        for lane in &lanes[1..] {
            out.iter_mut().zip(&lane.gradients).for_each(|(o, g)| *o += g);
        }
        losses.into_iter().fold(Loss::default(), |a, b| a + b)
    }

    /// Loss of each row.
    pub(crate) fn losses(&mut self, parameters: &[f32], rows: &[Row]) -> Vec<Loss> {
        let Self { fixed, weights, lanes } = self;
        weights.pack(fixed, parameters, false);
        let n_lanes = lanes.len();
        let mut out = vec![Loss::default(); rows.len()];
        let mut of_lanes: Vec<Vec<(&Row, &mut Loss)>> = (0..n_lanes).map(|_| Vec::new()).collect();
        for (i, pair) in rows.iter().zip(&mut out).enumerate() {
            of_lanes[i % n_lanes].push(pair);
        }
        lanes.par_iter_mut().zip(of_lanes).for_each(|(lane, rows)| {
            for (row, loss) in rows {
                lane.forward(fixed, weights, parameters, row);
                *loss = lane.head(fixed, weights, parameters, row, None);
            }
        });
        out
    }
}

impl Lane {
    fn new(fixed: &Fixed) -> Self {
        let kept = (0..fixed.shape.n_layers).map(|_| Kept::default()).collect();
        Self {
            gradients: vec![0.0; fixed.layout.len],
            kept,
            stream: Vec::new(),
            final_scale: Vec::new(),
            scratch: Scratch::default(),
        }
    }
}
