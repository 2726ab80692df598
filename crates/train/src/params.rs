//! Where each tensor of a model lies in one flat vector of parameters.

use std::ops::Range;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use silo_model::{LayerPart, LlamaShape, LoadedModel, Part, parts};

use crate::TrainError;

/// Standard deviation of fresh weights (Radford et al. 2019).
const INITIAL_DEVIATION: f64 = 0.02;

/// The tensors of a block. Query, key and value stand under each other in `qkv`, gate and up in `gate_up`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Block {
    /// `[dim]`
    pub(crate) attention_norm: Range<usize>,
    /// `[q_dim + 2 kv_dim, dim]`
    pub(crate) qkv: Range<usize>,
    /// `[dim, q_dim]`
    pub(crate) output: Range<usize>,
    /// `[dim]`
    pub(crate) ffn_norm: Range<usize>,
    /// `[2 ffn_dim, dim]`
    pub(crate) gate_up: Range<usize>,
    /// `[dim, ffn_dim]`
    pub(crate) down: Range<usize>,
}

/// Where each tensor lies. The head is the embedding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Layout {
    /// `[vocab_size, dim]`
    pub(crate) embedding: Range<usize>,
    pub(crate) blocks: Vec<Block>,
    /// `[dim]`
    pub(crate) final_norm: Range<usize>,
    /// Parameters in all.
    pub(crate) len: usize,
}

impl Layout {
    pub(crate) fn new(shape: &LlamaShape) -> Self {
        let mut len = 0;
        let mut take = |n: usize| {
            len += n;
            len - n..len
        };
        let (q_dim, kv_dim) = (shape.n_heads * shape.head_dim, shape.n_kv_heads * shape.head_dim);
        let embedding = take(shape.vocab_size * shape.dim);
        let blocks = (0..shape.n_layers)
            .map(|_| Block {
                attention_norm: take(shape.dim),
                qkv: take((q_dim + 2 * kv_dim) * shape.dim),
                output: take(shape.dim * q_dim),
                ffn_norm: take(shape.dim),
                gate_up: take(2 * shape.ffn_dim * shape.dim),
                down: take(shape.dim * shape.ffn_dim),
            })
            .collect();
        let final_norm = take(shape.dim);
        Self { embedding, blocks, final_norm, len }
    }

    /// Where a tensor of a model of this shape lies, and its dimensions.
    pub(crate) fn place(&self, shape: &LlamaShape, part: Part) -> (Range<usize>, Vec<usize>) {
        let (dim, ffn_dim) = (shape.dim, shape.ffn_dim);
        let (q_dim, kv_dim) = (shape.n_heads * shape.head_dim, shape.n_kv_heads * shape.head_dim);
        let rows = |of: &Range<usize>, first: usize, n: usize| {
            (of.start + first * dim..of.start + (first + n) * dim, vec![n, dim])
        };
        match part {
            Part::Embedding => (self.embedding.clone(), vec![shape.vocab_size, dim]),
            Part::Head | Part::RopeFactors => unreachable!("a tied model with plain rotary embedding has no such part"),
            Part::FinalNorm => (self.final_norm.clone(), vec![dim]),
            Part::Layer(i, part) => {
                let block = &self.blocks[i];
                match part {
                    LayerPart::AttentionNorm => (block.attention_norm.clone(), vec![dim]),
                    LayerPart::FfnNorm => (block.ffn_norm.clone(), vec![dim]),
                    LayerPart::Query => rows(&block.qkv, 0, q_dim),
                    LayerPart::Key => rows(&block.qkv, q_dim, kv_dim),
                    LayerPart::Value => rows(&block.qkv, q_dim + kv_dim, kv_dim),
                    LayerPart::Output => (block.output.clone(), vec![dim, q_dim]),
                    LayerPart::Gate => rows(&block.gate_up, 0, ffn_dim),
                    LayerPart::Up => rows(&block.gate_up, ffn_dim, ffn_dim),
                    LayerPart::Down => (block.down.clone(), vec![dim, ffn_dim]),
                }
            }
        }
    }

    /// The parameters of a model of this shape.
    pub(crate) fn of_model(&self, shape: &LlamaShape, model: &LoadedModel) -> Result<Vec<f32>, TrainError> {
        let mut out = vec![0.0; self.len];
        for part in parts(shape.n_layers) {
            let (range, dimensions) = self.place(shape, part);
            out[range].copy_from_slice(&model.values(part, &dimensions)?);
        }
        Ok(out)
    }

    /// The norms, which no weight decay shrinks.
    pub(crate) fn norms(&self) -> impl Iterator<Item = Range<usize>> {
        let of_blocks = self.blocks.iter().flat_map(|b| [b.attention_norm.clone(), b.ffn_norm.clone()]);
        of_blocks.chain([self.final_norm.clone()])
    }

    /// Fresh parameters: normal, those that write into the residual stream scaled down by its depth (Radford et al. 2019).
    pub(crate) fn initial(&self, seed: u64) -> Vec<f32> {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let mut out: Vec<f32> = (0..self.len).map(|_| (normal(&mut random) * INITIAL_DEVIATION) as f32).collect();
        let scale = 1.0 / (2.0 * self.blocks.len() as f32).sqrt();
        for block in &self.blocks {
            for range in [block.output.clone(), block.down.clone()] {
                out[range].iter_mut().for_each(|w| *w *= scale);
            }
        }
        for range in self.norms() {
            out[range].fill(1.0);
        }
        out
    }
}

/// A draw of the standard normal distribution (Box and Muller 1958).
fn normal(random: &mut ChaCha8Rng) -> f64 {
    let (a, b): (f64, f64) = (random.random(), random.random());
    (-2.0 * (1.0 - a).ln()).sqrt() * (2.0 * std::f64::consts::PI * b).cos()
}
