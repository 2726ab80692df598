//! The forward pass on CPU, on our own kernels.
//!
//! All sequences of a step share one matrix of activations, a row per token; only attention looks at one sequence at a time.
//! Since every kernel computes a row alone and in a fixed order, a sequence gets the same bits in any batch and in any cutting
//! of its tokens into steps.

use std::sync::atomic::{AtomicBool, Ordering};

use rayon::prelude::*;
use silo_core::{
    KeySite, LanguageModel, Matrix, ModelCard, ModelError, SequenceCache, SequenceStep, StepOutput, TokenId,
};

use super::LlamaShape;
use super::cache::CpuCache;
use super::rope::RopeTable;
use crate::kernels::{PackedMatrix, add_into, attend, rms_norm, silu_multiply};
use crate::load::{LayerPart, LoadError, LoadedModel, Part};

struct Layer {
    attention_norm: Vec<f32>,
    query: PackedMatrix,
    key: PackedMatrix,
    value: PackedMatrix,
    output: PackedMatrix,
    ffn_norm: Vec<f32>,
    gate: PackedMatrix,
    up: PackedMatrix,
    down: PackedMatrix,
}

/// A Llama model on CPU.
pub struct CpuLlama {
    card: ModelCard,
    shape: LlamaShape,
    embedding: PackedMatrix,
    layers: Vec<Layer>,
    final_norm: Vec<f32>,
    /// `None` when the embedding is the head.
    head: Option<PackedMatrix>,
    rope: RopeTable,
    /// Model work has its own threads, so that nothing else in the process gets in its way.
    pool: rayon::ThreadPool,
}

/// A row of the step: which sequence it belongs to and its position there.
#[derive(Clone, Copy)]
struct Row {
    sequence: usize,
    position: usize,
}

impl CpuLlama {
    /// Packs a loaded model for `n_threads` threads.
    pub fn new(model: &LoadedModel, key_site: KeySite, n_threads: usize) -> Result<Self, LoadError> {
        let mut shape = model.shape.clone();
        if model.weights.has(Part::RopeFactors) {
            shape.rope.factors = Some(model.vector(Part::RopeFactors, shape.head_dim / 2)?);
        }
        let matrix = |part, n_out: usize, n_in: usize| -> Result<PackedMatrix, LoadError> {
            Ok(PackedMatrix::pack(n_out, n_in, &model.weights.tensor(part, &[n_out, n_in])?))
        };
        let layer = |i| -> Result<Layer, LoadError> {
            let part = |p| Part::Layer(i, p);
            Ok(Layer {
                attention_norm: model.vector(part(LayerPart::AttentionNorm), shape.dim)?,
                query: matrix(part(LayerPart::Query), shape.q_dim(), shape.dim)?,
                key: matrix(part(LayerPart::Key), shape.kv_dim(), shape.dim)?,
                value: matrix(part(LayerPart::Value), shape.kv_dim(), shape.dim)?,
                output: matrix(part(LayerPart::Output), shape.dim, shape.q_dim())?,
                ffn_norm: model.vector(part(LayerPart::FfnNorm), shape.dim)?,
                gate: matrix(part(LayerPart::Gate), shape.ffn_dim, shape.dim)?,
                up: matrix(part(LayerPart::Up), shape.ffn_dim, shape.dim)?,
                down: matrix(part(LayerPart::Down), shape.dim, shape.ffn_dim)?,
            })
        };
        let head = if shape.tied_head { None } else { Some(matrix(Part::Head, shape.vocab_size, shape.dim)?) };
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(n_threads)
            .thread_name(|i| format!("model-{i}"))
            .build()
            .map_err(|e| LoadError::Io { path: "threads".into(), source: std::io::Error::other(e) })?;
        Ok(Self {
            card: shape.card(model.name.clone(), model.hash, key_site, model.provenance.clone()),
            embedding: matrix(Part::Embedding, shape.vocab_size, shape.dim)?,
            layers: (0..shape.n_layers).map(layer).collect::<Result<_, _>>()?,
            final_norm: model.vector(Part::FinalNorm, shape.dim)?,
            head,
            rope: RopeTable::new(&shape.rope, shape.head_dim, shape.context_tokens),
            pool,
            shape,
        })
    }

    fn embed(&self, tokens: impl Iterator<Item = TokenId>, n_rows: usize) -> Vec<f32> {
        let mut x = vec![0.0; n_rows * self.shape.dim];
        for (row, token) in x.chunks_exact_mut(self.shape.dim).zip(tokens) {
            self.embedding.copy_row(token as usize, row);
        }
        x
    }

    fn norm(&self, x: &[f32], weight: &[f32]) -> Vec<f32> {
        let mut out = vec![0.0; x.len()];
        let rows = out.par_chunks_exact_mut(self.shape.dim).zip(x.par_chunks_exact(self.shape.dim));
        rows.with_min_len(16).for_each(|(out, x)| rms_norm(x, weight, self.shape.norm_eps, out));
        out
    }

    /// x += attention(norm(x)), and the caches grow.
    fn attention(&self, i: usize, x: &mut [f32], rows: &[Row], caches: &mut [&mut CpuCache]) {
        let shape = &self.shape;
        let layer = &self.layers[i];
        let (q_dim, kv_dim, head_dim) = (shape.q_dim(), shape.kv_dim(), shape.head_dim);
        let h = self.norm(x, &layer.attention_norm);
        let width = q_dim + 2 * kv_dim;
        let mut qkv = vec![0.0; rows.len() * width];
        PackedMatrix::apply_all(&[&layer.query, &layer.key, &layer.value], &h, &mut qkv);
        for (row, qkv) in rows.iter().zip(qkv.chunks_exact_mut(width)) {
            self.rope.rotate(&mut qkv[..q_dim + kv_dim], row.position);
            caches[row.sequence].push(i, &qkv[q_dim..q_dim + kv_dim], &qkv[q_dim + kv_dim..]);
        }
        let caches: &[&mut CpuCache] = caches;
        let group = shape.n_heads / shape.n_kv_heads;
        let mut attended = vec![0.0; rows.len() * q_dim];
        let heads = attended.par_chunks_exact_mut(head_dim).enumerate().with_min_len(4);
        heads.for_each_init(Vec::new, |scores, (at, out)| {
            let (row, head) = (at / shape.n_heads, at % shape.n_heads);
            let q = &qkv[row * width + head * head_dim..][..head_dim];
            let row = rows[row];
            let (keys, values) = caches[row.sequence].head(i, head / group);
            attend(q, keys, values, row.position + 1, scores, out);
        });
        let mut out = h; // of the same size, and no longer needed
        layer.output.apply(&attended, &mut out);
        add_into(x, &out);
    }

    /// x += down(silu(gate(h)) · up(h)), h the normed x.
    fn feed_forward(&self, layer: &Layer, x: &mut [f32], h: &[f32]) {
        let n_rows = x.len() / self.shape.dim;
        let mut gate_up = vec![0.0; n_rows * 2 * self.shape.ffn_dim];
        PackedMatrix::apply_all(&[&layer.gate, &layer.up], h, &mut gate_up);
        let mut hidden = vec![0.0; n_rows * self.shape.ffn_dim];
        let rows =
            hidden.par_chunks_exact_mut(self.shape.ffn_dim).zip(gate_up.par_chunks_exact(2 * self.shape.ffn_dim));
        rows.with_min_len(4).for_each(|(out, gate_up)| silu_multiply(gate_up, out));
        let mut out = vec![0.0; x.len()];
        layer.down.apply(&hidden, &mut out);
        add_into(x, &out);
    }

    fn forward(
        &self,
        tokens: &[TokenId],
        rows: &[Row],
        wanted: &Wanted,
        caches: &mut [&mut CpuCache],
        interrupt: &AtomicBool,
    ) -> Result<(Vec<f32>, Vec<f32>), ModelError> {
        let dim = self.shape.dim;
        let mut x = self.embed(tokens.iter().copied(), rows.len());
        let last = self.layers.len() - 1;
        for (i, layer) in self.layers.iter().enumerate() {
            if interrupt.load(Ordering::Relaxed) {
                return Err(ModelError::Interrupted);
            }
            self.attention(i, &mut x, rows, caches);
            if i == last {
                break;
            }
            let h = self.norm(&x, &layer.ffn_norm);
            self.feed_forward(layer, &mut x, &h);
        }
        // Beyond the last attention only rows that were asked for are worked on.
        let mut x: Vec<f32> = wanted.rows.iter().flat_map(|&r| &x[r * dim..(r + 1) * dim]).copied().collect();
        let h = self.norm(&x, &self.layers[last].ffn_norm);
        let site = self.card.key_site;
        if !wanted.any_logits && site == KeySite::LastFfnInput {
            return Ok((h, Vec::new()));
        }
        self.feed_forward(&self.layers[last], &mut x, &h);
        let normed = self.norm(&x, &self.final_norm);
        let logit_rows: Vec<f32> = (wanted.logits.iter().enumerate())
            .filter(|&(_, wanted)| *wanted)
            .flat_map(|(r, _)| &normed[r * dim..(r + 1) * dim])
            .copied()
            .collect();
        let mut logits = vec![0.0; logit_rows.len() / dim * self.shape.vocab_size];
        self.head.as_ref().unwrap_or(&self.embedding).apply(&logit_rows, &mut logits);
        let keys = match site {
            KeySite::LastFfnInput => h,
            KeySite::LastBlockOutput => x,
            KeySite::FinalNorm => normed,
        };
        Ok((keys, logits))
    }
}

/// Rows at which something was asked for.
struct Wanted {
    rows: Vec<usize>,
    /// Per such row.
    logits: Vec<bool>,
    keys: Vec<bool>,
    /// Per such row: its sequence.
    sequence: Vec<usize>,
    any_logits: bool,
}

impl Wanted {
    fn new(batch: &[SequenceStep<'_>]) -> Self {
        let mut wanted =
            Self { rows: Vec::new(), logits: Vec::new(), keys: Vec::new(), sequence: Vec::new(), any_logits: false };
        let mut first = 0;
        for (sequence, step) in batch.iter().enumerate() {
            let n = step.tokens.len();
            let (logits, keys) = (step.logits.first(n), step.keys.first(n));
            for i in logits.min(keys)..n {
                wanted.rows.push(first + i);
                wanted.logits.push(i >= logits);
                wanted.keys.push(i >= keys);
                wanted.sequence.push(sequence);
                wanted.any_logits |= i >= logits;
            }
            first += n;
        }
        wanted
    }

    /// Hands the computed rows to their sequences.
    fn distribute(
        &self,
        n_sequences: usize,
        keys: &[f32],
        dim: usize,
        logits: &[f32],
        vocab: usize,
    ) -> Vec<StepOutput> {
        let empty = |n_cols| Matrix { n_cols, data: Vec::new() };
        let mut out: Vec<StepOutput> =
            (0..n_sequences).map(|_| StepOutput { logits: empty(vocab), keys: empty(dim) }).collect();
        let mut logit_rows = logits.chunks_exact(vocab);
        for (r, &sequence) in self.sequence.iter().enumerate() {
            if self.keys[r] {
                out[sequence].keys.data.extend_from_slice(&keys[r * dim..(r + 1) * dim]);
            }
            if let Some(row) = self.logits[r].then(|| logit_rows.next()).flatten() {
                out[sequence].logits.data.extend_from_slice(row);
            }
        }
        out
    }
}

impl LanguageModel for CpuLlama {
    fn card(&self) -> &ModelCard {
        &self.card
    }

    fn new_cache(&self) -> Box<dyn SequenceCache> {
        Box::new(CpuCache::new(self.shape.n_layers, self.shape.n_kv_heads, self.shape.head_dim))
    }

    fn step(&self, batch: &mut [SequenceStep<'_>], interrupt: &AtomicBool) -> Result<Vec<StepOutput>, ModelError> {
        self.shape.check_step(batch)?;
        let wanted = Wanted::new(batch);
        let tokens: Vec<TokenId> = batch.iter().flat_map(|s| s.tokens).copied().collect();
        let mut rows = Vec::with_capacity(tokens.len());
        let mut caches = Vec::with_capacity(batch.len());
        for (sequence, step) in batch.iter_mut().enumerate() {
            let start = step.cache.len();
            rows.extend((0..step.tokens.len()).map(|i| Row { sequence, position: start + i }));
            let cache = step.cache.as_any_mut().downcast_mut::<CpuCache>();
            let cache = cache.filter(|c| c.fits(self.shape.n_layers, self.shape.n_kv_heads, self.shape.head_dim));
            caches.push(cache.ok_or(ModelError::Misuse("a cache of another model"))?);
        }
        let result = self.pool.install(|| self.forward(&tokens, &rows, &wanted, &mut caches, interrupt));
        match result {
            Ok((keys, logits)) => {
                caches.iter_mut().zip(&*batch_lengths(&rows)).for_each(|(c, n)| c.commit(*n));
                let outputs = wanted.distribute(caches.len(), &keys, self.shape.dim, &logits, self.shape.vocab_size);
                outputs.iter().try_for_each(StepOutput::check_finite)?;
                Ok(outputs)
            }
            Err(error) => {
                for cache in caches {
                    let len = cache.len();
                    cache.truncate(len); // drops what the layers before the interruption have added
                }
                Err(error)
            }
        }
    }
}

/// Number of rows of each sequence.
fn batch_lengths(rows: &[Row]) -> Vec<usize> {
    rows.chunk_by(|a, b| a.sequence == b.sequence).map(<[Row]>::len).collect()
}
