//! `configs/train.toml`: everything that a run depends on.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use silo_core::Tier;
use silo_model::{LlamaShape, Rope, RopeStyle};

use crate::TrainError;
use crate::gemm::TILE_DEPTH;

/// A training run. All of it but [`Paths`] and [`Logging`] decides what comes out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrainConfig {
    /// The model's name.
    pub name: String,
    /// Draws first weights and the order of documents.
    pub seed: u64,
    /// A model of the same architecture and tokenizer to begin with, a Hugging Face directory; fresh weights, if there is none. What it was
    /// trained on must be known, and counts as what this one was trained on too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_from: Option<PathBuf>,
    /// Where everything lies.
    pub paths: Paths,
    /// The text.
    pub data: DataConfig,
    /// The tokenizer.
    pub tokenizer: TokenizerConfig,
    /// The architecture.
    pub model: ModelShape,
    /// The optimiser.
    pub optimizer: OptimizerConfig,
    /// How often something is written.
    #[serde(default)]
    pub log: Logging,
}

/// Where everything lies; relative paths are relative to the working directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Paths {
    /// A corpus built by `silo corpus build`.
    pub corpus: PathBuf,
    /// Declarations of its sources, for the model card.
    pub declarations: PathBuf,
    /// Checkpoints, log, tokenizer of the run.
    pub work: PathBuf,
    /// The finished model, as a Hugging Face directory.
    pub output: PathBuf,
}

/// Which text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataConfig {
    /// Open tiers to train on.
    pub tiers: Vec<Tier>,
    /// Sources to train on; if empty, all whose role is train and whose documents are all of open tiers.
    #[serde(default)]
    pub sources: Vec<String>,
    /// About so many bytes of validation text per tier: whole documents, until there are as many.
    #[serde(default = "validation_bytes")]
    pub validation_bytes: usize,
    /// A file of documents that are left out whatever else is asked for: the SHA-256 of a text per line (`silo optout left-out`).
    #[serde(default)]
    pub left_out: Option<PathBuf>,
    /// About so many bytes of open training text: documents in the order of their hashes, which is a random one, until there are as many;
    /// 0 for all.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub open_bytes: usize,
    /// Makes the model a reference: see [`ReferenceText`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference: Option<ReferenceText>,
}

/// Text that a model must not learn from to be of use, and that a reference to measure against does learn from: what of restricted
/// sources an evaluation puts into the store. Its name begins with [`REFERENCE_PREFIX`], and its `silo.json` names the restricted tier.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReferenceText {
    /// Sources.
    pub sources: Vec<String>,
    /// Of each, as `eval.sizes.store_bytes`.
    pub store_bytes: usize,
}

/// How the names of references begin.
pub const REFERENCE_PREFIX: &str = "reference-";

fn is_zero(n: &usize) -> bool {
    *n == 0
}

fn validation_bytes() -> usize {
    200_000
}

/// Byte-level BPE.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenizerConfig {
    /// Tokens, the special one included.
    pub vocab_size: usize,
    /// A `tokenizer.json` to use as it is; trained on the run's open text, if there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
}

/// A Llama model whose head is its embedding.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the fields are those of LlamaShape")]
pub struct ModelShape {
    pub dim: usize,
    pub ffn_dim: usize,
    pub n_layers: usize,
    pub n_heads: usize,
    pub n_kv_heads: usize,
    pub context_tokens: usize,
    #[serde(default = "rope_theta")]
    pub rope_theta: f32,
    #[serde(default = "norm_eps")]
    pub norm_eps: f32,
}

fn rope_theta() -> f32 {
    10_000.0
}

fn norm_eps() -> f32 {
    1e-5
}

/// AdamW (Loshchilov and Hutter 2019), warm-up, cosine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OptimizerConfig {
    /// Steps in all.
    pub steps: u64,
    /// Rows of `model.context_tokens` tokens in a step.
    pub rows_per_step: usize,
    /// Greatest learning rate.
    pub learning_rate: f64,
    /// Steps until it is reached.
    pub warmup_steps: u64,
    /// What the cosine ends at, as a share of the greatest.
    #[serde(default = "final_share")]
    pub final_share: f64,
    /// Decay of both moments.
    #[serde(default = "betas")]
    pub betas: [f64; 2],
    /// Added to the root of the second moment.
    #[serde(default = "epsilon")]
    pub epsilon: f64,
    /// Of all but norms.
    #[serde(default = "weight_decay")]
    pub weight_decay: f64,
    /// Longest gradient.
    #[serde(default = "clip")]
    pub clip: f64,
    /// Rows of a step go to so many lanes, each of which works on one thread with gradients of its own. The number decides the order of
    /// sums, so it is a part of the run; more lanes than rows or cores are of no use. (CPU only.)
    #[serde(default = "lanes")]
    pub lanes: usize,
}

fn final_share() -> f64 {
    0.1
}
fn betas() -> [f64; 2] {
    [0.9, 0.95]
}
fn epsilon() -> f64 {
    1e-8
}
fn weight_decay() -> f64 {
    0.1
}
fn clip() -> f64 {
    1.0
}
fn lanes() -> usize {
    2
}

/// How often something is written, in steps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Logging {
    /// Validation.
    pub validate_every: u64,
    /// Checkpoints.
    pub checkpoint_every: u64,
    /// Checkpoints that are kept.
    pub keep: usize,
}

impl Default for Logging {
    fn default() -> Self {
        Self { validate_every: 100, checkpoint_every: 100, keep: 2 }
    }
}

impl TrainConfig {
    /// Whether the numbers fit together; the error lists all faults.
    pub fn check(&self) -> Result<(), TrainError> {
        let mut faults = Vec::new();
        let mut fault = |wrong: bool, text: &str| {
            if wrong {
                faults.push(text.to_owned());
            }
        };
        let (m, o, l) = (&self.model, &self.optimizer, &self.log);
        let safe = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        fault(
            self.name.is_empty() || !self.name.chars().all(safe),
            "name must be of letters, digits, '-', '_' and '.'",
        );
        fault(self.data.tiers.is_empty(), "data.tiers is empty");
        fault(
            self.data.tiers.contains(&Tier::Restricted),
            "data.tiers: restricted text is never trained on (but see data.reference)",
        );
        let is_reference = self.data.reference.is_some();
        fault(
            is_reference != self.name.starts_with(REFERENCE_PREFIX),
            "a model has a name that begins with 'reference-' if, and only if, it has data.reference",
        );
        fault(
            is_reference && self.tokenizer.path.is_none(),
            "data.reference needs tokenizer.path: a tokenizer is trained on open text, and both models need the same",
        );
        fault(
            self.start_from.is_some() && self.data.left_out.is_some(),
            "data.left_out cannot hold with start_from: nobody knows what the model that is begun with has learnt of it",
        );
        fault(self.data.validation_bytes == 0, "data.validation_bytes must be 1 or more");
        fault(
            !(257..=1 << 20).contains(&self.tokenizer.vocab_size),
            "tokenizer.vocab_size must be from 257 to 1048576",
        );
        fault(m.n_heads == 0 || m.dim % m.n_heads.max(1) != 0, "model.dim must be a multiple of model.n_heads");
        fault(
            o.steps == 0 || o.rows_per_step == 0 || o.lanes == 0,
            "optimizer: steps, rows_per_step and lanes must be 1 or more",
        );
        fault(o.learning_rate <= 0.0 || !o.learning_rate.is_finite(), "optimizer.learning_rate must be above 0");
        fault(o.warmup_steps >= o.steps, "optimizer.warmup_steps must be less than optimizer.steps");
        fault(!(0.0..=1.0).contains(&o.final_share), "optimizer.final_share must be from 0 to 1");
        fault(o.betas.iter().any(|b| !(0.0..1.0).contains(b)), "optimizer.betas must be from 0 to less than 1");
        fault(
            o.epsilon <= 0.0 || o.clip <= 0.0 || o.weight_decay < 0.0,
            "optimizer: epsilon and clip must be above 0, weight_decay not below",
        );
        fault(l.validate_every == 0 || l.checkpoint_every == 0 || l.keep == 0, "log: all numbers must be 1 or more");
        let p = &self.paths;
        let inside = [&p.work, &p.corpus, &p.declarations].into_iter().any(|other| other.starts_with(&p.output));
        fault(inside, "paths.output must not be, or hold, one of the other paths: it is replaced as a whole");
        let unfit = m.context_tokens % TILE_DEPTH != 0 || m.context_tokens == 0;
        fault(unfit, &format!("model.context_tokens must be a multiple of {TILE_DEPTH}"));
        if faults.is_empty()
            && let Err(what) = self.shape().check()
        {
            faults.push(format!("model: {what}"));
        }
        if faults.is_empty() { Ok(()) } else { Err(TrainError::Config(faults)) }
    }

    /// The architecture.
    pub fn shape(&self) -> LlamaShape {
        let m = &self.model;
        LlamaShape {
            dim: m.dim,
            ffn_dim: m.ffn_dim,
            n_layers: m.n_layers,
            n_heads: m.n_heads,
            n_kv_heads: m.n_kv_heads,
            head_dim: m.dim / m.n_heads.max(1),
            vocab_size: self.tokenizer.vocab_size,
            context_tokens: m.context_tokens,
            norm_eps: m.norm_eps,
            rope: Rope::plain(m.rope_theta, RopeStyle::Halves),
            tied_head: true,
            beginning_of_text: Some(crate::tokenizer::END_OF_TEXT),
            end_of_text: vec![crate::tokenizer::END_OF_TEXT],
        }
    }

    /// What decides the result, as JSON: everything but places and how often something is written.
    pub(crate) fn identity(&self) -> serde_json::Value {
        let mut out = serde_json::json!({
            "name": self.name, "seed": self.seed, "data": self.data, "tokenizer": self.tokenizer, "model": self.model,
            "optimizer": self.optimizer,
        });
        if let Some(path) = &self.start_from {
            out["start_from"] = serde_json::json!(path);
        }
        out
    }
}
