//! The forward pass in plain candle operations, on any device that candle has: the path for CUDA, and the oracle of the CPU
//! kernels. Its scope is narrower than theirs: on a GPU the last bits may depend on the batch.

use std::any::Any;
use std::sync::atomic::{AtomicBool, Ordering};

use candle_core::{D, DType, Device, Result as CandleResult, Tensor};
use silo_core::{
    KeySite, LanguageModel, Matrix, ModelCard, ModelError, SequenceCache, SequenceStep, StepOutput, TokenId,
};

use super::rope::RopeTable;
use super::{LlamaShape, RopeStyle};
use crate::load::{LayerPart, LoadError, LoadedModel, Part};

/// Precision of weights and activations on the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    /// 32 bits.
    F32,
    /// 16 bits with the range of 32.
    Bf16,
}

impl Precision {
    fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::Bf16 => DType::BF16,
        }
    }
}

struct Layer {
    attention_norm: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
    ffn_norm: Tensor,
    gate: Tensor,
    up: Tensor,
    down: Tensor,
}

/// A Llama model as candle tensors.
pub struct TensorLlama {
    card: ModelCard,
    shape: LlamaShape,
    embedding: Tensor,
    layers: Vec<Layer>,
    final_norm: Tensor,
    head: Tensor,
    rope: RopeTable,
    device: Device,
    dtype: DType,
}

/// Per layer the keys and values, `[n_kv_heads, len, head_dim]`.
#[derive(Default)]
struct TensorCache {
    layers: Vec<Option<(Tensor, Tensor)>>,
    len: usize,
}

impl SequenceCache for TensorCache {
    fn len(&self) -> usize {
        self.len
    }

    fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
        for layer in &mut self.layers {
            *layer = layer.take().and_then(|(k, v)| {
                let cut = |t: Tensor| t.narrow(1, 0, self.len.min(t.dim(1).ok()?)).ok();
                if self.len == 0 { None } else { Some((cut(k)?, cut(v)?)) }
            });
        }
    }

    fn as_any_mut(&mut self) -> &mut dyn Any {
        self
    }
}

fn device_error(error: candle_core::Error) -> ModelError {
    ModelError::Device(error.to_string())
}

impl TensorLlama {
    /// Puts a loaded model on a device.
    pub fn new(
        model: &LoadedModel,
        key_site: KeySite,
        device: Device,
        precision: Precision,
    ) -> Result<Self, LoadError> {
        let mut shape = model.shape.clone();
        if model.weights.has(Part::RopeFactors) {
            shape.rope.factors = Some(model.vector(Part::RopeFactors, shape.head_dim / 2)?);
        }
        let dtype = precision.dtype();
        let tensor = |part, dims: &[usize]| -> Result<Tensor, LoadError> {
            let values = model.weights.tensor(part, dims)?.to_f32();
            let made = Tensor::from_vec(values, dims, &device).and_then(|t| t.to_dtype(dtype));
            made.map_err(|e| LoadError::format("device".as_ref(), e))
        };
        let layer = |i| -> Result<Layer, LoadError> {
            let part = |p, dims: &[usize]| tensor(Part::Layer(i, p), dims);
            let (dim, ffn) = (shape.dim, shape.ffn_dim);
            Ok(Layer {
                attention_norm: part(LayerPart::AttentionNorm, &[dim])?,
                query: part(LayerPart::Query, &[shape.q_dim(), dim])?,
                key: part(LayerPart::Key, &[shape.kv_dim(), dim])?,
                value: part(LayerPart::Value, &[shape.kv_dim(), dim])?,
                output: part(LayerPart::Output, &[dim, shape.q_dim()])?,
                ffn_norm: part(LayerPart::FfnNorm, &[dim])?,
                gate: part(LayerPart::Gate, &[ffn, dim])?,
                up: part(LayerPart::Up, &[ffn, dim])?,
                down: part(LayerPart::Down, &[dim, ffn])?,
            })
        };
        let embedding = tensor(Part::Embedding, &[shape.vocab_size, shape.dim])?;
        let head =
            if shape.tied_head { embedding.clone() } else { tensor(Part::Head, &[shape.vocab_size, shape.dim])? };
        Ok(Self {
            card: shape.card(model.name.clone(), model.hash, key_site, model.provenance.clone()),
            embedding,
            layers: (0..shape.n_layers).map(layer).collect::<Result<_, _>>()?,
            final_norm: tensor(Part::FinalNorm, &[shape.dim])?,
            head,
            rope: RopeTable::new(&shape.rope, shape.head_dim, shape.context_tokens),
            device: device.clone(),
            dtype,
            shape,
        })
    }

    fn norm(&self, x: &Tensor, weight: &Tensor) -> CandleResult<Tensor> {
        let wide = x.to_dtype(DType::F32)?;
        let mean_square = wide.sqr()?.mean_keepdim(D::Minus1)?;
        let scale = (mean_square + f64::from(self.shape.norm_eps))?.sqrt()?.recip()?;
        wide.broadcast_mul(&scale)?.to_dtype(self.dtype)?.broadcast_mul(weight)
    }

    /// Rotates `[n, heads, head_dim]` by `[n, 1, head_dim / 2]` cosines and sines.
    fn rotate(&self, x: &Tensor, cos: &Tensor, sin: &Tensor) -> CandleResult<Tensor> {
        let (n, heads, head_dim) = x.dims3()?;
        let half = head_dim / 2;
        let x = x.to_dtype(DType::F32)?;
        let (a, b) = match self.shape.rope.style {
            RopeStyle::Halves => (x.narrow(2, 0, half)?, x.narrow(2, half, half)?),
            RopeStyle::Interleaved => {
                let pairs = x.reshape((n, heads, half, 2))?;
                (pairs.narrow(3, 0, 1)?.squeeze(3)?, pairs.narrow(3, 1, 1)?.squeeze(3)?)
            }
        };
        let first = (a.broadcast_mul(cos)? - b.broadcast_mul(sin)?)?;
        let second = (b.broadcast_mul(cos)? + a.broadcast_mul(sin)?)?;
        let rotated = match self.shape.rope.style {
            RopeStyle::Halves => Tensor::cat(&[first, second], 2)?,
            RopeStyle::Interleaved => Tensor::stack(&[first, second], 3)?.reshape((n, heads, head_dim))?,
        };
        rotated.to_dtype(self.dtype)
    }

    /// Attention of one sequence: `q` is `[n, n_heads, head_dim]`, `k` and `v` the new `[n, n_kv_heads, head_dim]`.
    fn attend(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        past: Option<&(Tensor, Tensor)>,
    ) -> CandleResult<(Tensor, (Tensor, Tensor))> {
        let (n, n_heads, head_dim) = q.dims3()?;
        let (k, v) = (k.transpose(0, 1)?.contiguous()?, v.transpose(0, 1)?.contiguous()?);
        let (k, v) = match past {
            Some((pk, pv)) => (Tensor::cat(&[pk, &k], 1)?, Tensor::cat(&[pv, &v], 1)?),
            None => (k, v),
        };
        let len = k.dim(1)?;
        let group = n_heads / self.shape.n_kv_heads;
        // Query heads that share a key-value head become rows of one product.
        let q = q.transpose(0, 1)?.contiguous()?.reshape((self.shape.n_kv_heads, group * n, head_dim))?;
        let scores = (q.matmul(&k.transpose(1, 2)?)?.to_dtype(DType::F32)? / (head_dim as f64).sqrt())?;
        let mask: Vec<f32> = (0..group * n)
            .flat_map(|row| (0..len).map(move |j| if j > len - n + row % n { f32::NEG_INFINITY } else { 0.0 }))
            .collect();
        let scores = scores.broadcast_add(&Tensor::from_vec(mask, (1, group * n, len), &self.device)?)?;
        let max = scores.max_keepdim(D::Minus1)?;
        let e = scores.broadcast_sub(&max)?.exp()?;
        let p = e.broadcast_div(&e.sum_keepdim(D::Minus1)?)?.to_dtype(self.dtype)?;
        let out = p.matmul(&v)?.reshape((n_heads, n, head_dim))?.transpose(0, 1)?.reshape((n, n_heads * head_dim))?;
        Ok((out, (k, v)))
    }

    /// The hidden states of all rows at the key site and after the final norm; new cache contents per sequence.
    fn forward(&self, batch: &mut [SequenceStep<'_>], interrupt: &AtomicBool) -> Result<Option<Hidden>, ModelError> {
        let tokens: Vec<TokenId> = batch.iter().flat_map(|s| s.tokens).copied().collect();
        let spans = spans(batch);
        let mut caches: Vec<TensorCache> = batch.iter_mut().map(|s| take_cache(s.cache)).collect::<Result<_, _>>()?;
        let result = self.layers(&tokens, &spans, &mut caches, interrupt);
        let grown = matches!(result, Ok(Some(_)));
        for ((step, mut cache), span) in batch.iter_mut().zip(caches).zip(&spans) {
            if grown {
                cache.len = span.start + span.n;
            } else {
                cache.truncate(span.start);
            }
            if let Some(slot) = step.cache.as_any_mut().downcast_mut::<TensorCache>() {
                *slot = cache;
            }
        }
        result.map_err(device_error)
    }

    fn layers(
        &self,
        tokens: &[TokenId],
        spans: &[Span],
        caches: &mut [TensorCache],
        interrupt: &AtomicBool,
    ) -> CandleResult<Option<Hidden>> {
        let shape = &self.shape;
        let n_rows = tokens.len();
        let (mut cos, mut sin) = (Vec::new(), Vec::new());
        for span in spans {
            let (c, s) = self.rope.rows(span.start, span.n);
            cos.extend_from_slice(c);
            sin.extend_from_slice(s);
        }
        let half = shape.head_dim / 2;
        let cos = Tensor::from_vec(cos, (n_rows, 1, half), &self.device)?;
        let sin = Tensor::from_vec(sin, (n_rows, 1, half), &self.device)?;
        let mut x = self.embedding.index_select(&Tensor::from_slice(tokens, n_rows, &self.device)?, 0)?;
        let mut key = None;
        for (i, layer) in self.layers.iter().enumerate() {
            if interrupt.load(Ordering::Relaxed) {
                return Ok(None);
            }
            let h = self.norm(&x, &layer.attention_norm)?;
            let heads = |w: &Tensor, n: usize| h.matmul(&w.t()?)?.reshape((n_rows, n, shape.head_dim));
            let q = self.rotate(&heads(&layer.query, shape.n_heads)?, &cos, &sin)?;
            let k = self.rotate(&heads(&layer.key, shape.n_kv_heads)?, &cos, &sin)?;
            let v = heads(&layer.value, shape.n_kv_heads)?;
            let mut attended = Vec::with_capacity(spans.len());
            for (span, cache) in spans.iter().zip(caches.iter_mut()) {
                let part = |t: &Tensor| t.narrow(0, span.first, span.n);
                cache.layers.resize(self.layers.len(), None);
                let (out, grown) = self.attend(&part(&q)?, &part(&k)?, &part(&v)?, cache.layers[i].as_ref())?;
                cache.layers[i] = Some(grown);
                attended.push(out);
            }
            x = (x + Tensor::cat(&attended, 0)?.matmul(&layer.output.t()?)?)?;
            let h = self.norm(&x, &layer.ffn_norm)?;
            let gate = h.matmul(&layer.gate.t()?)?.silu()?;
            let hidden = (gate * h.matmul(&layer.up.t()?)?)?;
            x = (x + hidden.matmul(&layer.down.t()?)?)?;
            if i + 1 == self.layers.len() && self.card.key_site == KeySite::LastFfnInput {
                key = Some(h);
            }
        }
        let normed = self.norm(&x, &self.final_norm)?;
        let key = match self.card.key_site {
            KeySite::LastFfnInput => key.unwrap_or_else(|| normed.clone()),
            KeySite::LastBlockOutput => x,
            KeySite::FinalNorm => normed.clone(),
        };
        Ok(Some(Hidden { key, normed }))
    }

    fn outputs(&self, batch: &[SequenceStep<'_>], hidden: &Hidden) -> CandleResult<Vec<StepOutput>> {
        let host = |t: Tensor| t.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>();
        let mut out = Vec::with_capacity(batch.len());
        for (step, span) in batch.iter().zip(spans(batch)) {
            let rows = |t: &Tensor, first: usize| t.narrow(0, span.first + first, span.n - first);
            let mut output = StepOutput {
                logits: Matrix { n_cols: self.shape.vocab_size, data: Vec::new() },
                keys: Matrix { n_cols: self.shape.dim, data: Vec::new() },
            };
            let (logits, keys) = (step.logits.first(span.n), step.keys.first(span.n));
            if logits < span.n {
                output.logits.data = host(rows(&hidden.normed, logits)?.matmul(&self.head.t()?)?)?;
            }
            if keys < span.n {
                output.keys.data = host(rows(&hidden.key, keys)?)?;
            }
            out.push(output);
        }
        Ok(out)
    }
}

struct Hidden {
    key: Tensor,
    normed: Tensor,
}

/// Where a sequence's rows lie in the step, and where they begin in the sequence.
struct Span {
    first: usize,
    n: usize,
    start: usize,
}

fn spans(batch: &[SequenceStep<'_>]) -> Vec<Span> {
    let mut first = 0;
    let span = |step: &SequenceStep<'_>| {
        let n = step.tokens.len();
        first += n;
        Span { first: first - n, n, start: step.cache.len() }
    };
    batch.iter().map(span).collect()
}

fn take_cache(cache: &mut dyn SequenceCache) -> Result<TensorCache, ModelError> {
    let cache = cache.as_any_mut().downcast_mut::<TensorCache>();
    cache.map(std::mem::take).ok_or(ModelError::Misuse("a cache of another model"))
}

impl LanguageModel for TensorLlama {
    fn card(&self) -> &ModelCard {
        &self.card
    }

    fn new_cache(&self) -> Box<dyn SequenceCache> {
        Box::new(TensorCache::default())
    }

    fn step(&self, batch: &mut [SequenceStep<'_>], interrupt: &AtomicBool) -> Result<Vec<StepOutput>, ModelError> {
        self.shape.check_step(batch)?;
        let hidden = self.forward(batch, interrupt)?.ok_or(ModelError::Interrupted)?;
        let outputs = self.outputs(batch, &hidden).map_err(device_error)?;
        outputs.iter().try_for_each(StepOutput::check_finite)?;
        Ok(outputs)
    }
}
