//! The head: logits, loss, and the gradient of the residual stream that it starts.

use silo_model::math::exp;

use super::forward::{linear, room};
use super::layers::{NormInput, rms_norm, rms_norm_backward};
use super::weights::Weights;
use super::{Fixed, Lane, Loss};
use crate::data::{NO_TARGET, Row};
use crate::gemm::{Layout, Output, Then, multiply};

/// Rows whose logits are held at once.
const CHUNK_ROWS: usize = 64;

impl Lane {
    /// The loss of the row; with `scale`, also the gradient of `scale` times the loss: in `stream`, and in those of the embedding (as the
    /// head) and of the last norm.
    pub(super) fn head(
        &mut self,
        fixed: &Fixed,
        weights: &Weights,
        parameters: &[f32],
        row: &Row,
        scale: Option<f32>,
    ) -> Loss {
        let (t, dim, vocab) = (row.tokens.len(), fixed.shape.dim, fixed.shape.vocab_size);
        let Self { gradients, stream, final_scale, scratch, .. } = self;
        let norm = &parameters[fixed.layout.final_norm.clone()];
        let scales = room(final_scale, t);
        let normed = room(&mut scratch.normed, t * dim);
        let stream = &mut stream[..t * dim];
        rms_norm(stream, norm, fixed.shape.norm_eps, normed, scales);
        let dnormed = room(&mut scratch.narrow, t * dim);
        let mut loss = Loss::default();
        scratch.dlogits.resize(vocab, t);
        for from in (0..t).step_by(CHUNK_ROWS) {
            let n = CHUNK_ROWS.min(t - from);
            let logits = room(&mut scratch.logits, n * vocab);
            let x = &normed[from * dim..(from + n) * dim];
            let out = &mut Output::whole(logits, vocab);
            linear(fixed.kernel, x, &weights.head.forward, &mut scratch.left, out, Then::Overwrite);
            for (logits, &target) in logits.chunks_exact_mut(vocab).zip(&row.targets[from..]) {
                loss = loss + cross_entropy(logits, target, scale);
            }
            if scale.is_none() {
                continue;
            }
            let out = &mut Output::whole(&mut dnormed[from * dim..(from + n) * dim], dim);
            linear(fixed.kernel, logits, &weights.head.backward, &mut scratch.left, out, Then::Overwrite);
            scratch.dlogits.pack_left_part(logits, Layout::Strided(vocab), vocab, from, n);
        }
        if scale.is_some() {
            scratch.right.pack_right(normed, Layout::Strided(dim), dim, t);
            let (left, right) = ((&scratch.dlogits).into(), (&scratch.right).into());
            let out = &mut Output::whole(&mut gradients[fixed.layout.embedding.clone()], dim);
            multiply(fixed.kernel, left, right, scratch.dlogits.depth_tiles(), out, Then::Add);
            let x = room(&mut scratch.wide, t * dim);
            x.copy_from_slice(stream);
            let input = NormInput { x, weight: norm, scales };
            stream.fill(0.0);
            rms_norm_backward(input, dnormed, stream, &mut gradients[fixed.layout.final_norm.clone()]);
        }
        loss
    }
}

/// Loss of one row of logits, which become its gradient if there is a scale.
fn cross_entropy(logits: &mut [f32], target: u32, scale: Option<f32>) -> Loss {
    if target == NO_TARGET {
        logits.fill(0.0);
        return Loss::default();
    }
    let target = target as usize;
    let max = maximum(logits);
    let of_target = logits[target];
    let sum = exponentials(logits, max);
    let nats = f64::from(sum.ln()) + f64::from(max) - f64::from(of_target);
    if let Some(scale) = scale {
        let factor = scale / sum;
        logits.iter_mut().for_each(|l| *l *= factor);
        logits[target] -= scale;
    }
    Loss { nats, n_tokens: 1 }
}

/// Lanes of a reduction.
const LANES: usize = 16;

fn maximum(values: &[f32]) -> f32 {
    let (whole, rest) = values.as_chunks::<LANES>();
    let mut lanes = [f32::NEG_INFINITY; LANES];
    for chunk in whole {
        for (l, v) in lanes.iter_mut().zip(chunk) {
            *l = if *v > *l { *v } else { *l };
        }
    }
    lanes.iter().chain(rest).copied().fold(f32::NEG_INFINITY, f32::max)
}

/// Replaces values with e^(value − max) and sums them.
pub(super) fn exponentials(values: &mut [f32], max: f32) -> f32 {
    let (whole, rest) = values.as_chunks_mut::<LANES>();
    let mut lanes = [0.0f32; LANES];
    for chunk in whole {
        for (l, v) in lanes.iter_mut().zip(chunk) {
            *v = exp(*v - max);
            *l += *v;
        }
    }
    let mut sum: f32 = lanes.iter().sum();
    for v in rest {
        *v = exp(*v - max);
        sum += *v;
    }
    sum
}
