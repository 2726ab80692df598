//! Reading models from files.

mod error;
mod gguf;
mod gguf_blocks;
mod huggingface;
mod names;

use std::path::Path;

use silo_core::{ContentHash, Tokenizer};

pub use error::LoadError;
pub use huggingface::{PROVENANCE_FILE, Provenance};
pub use names::{LayerPart, Part};

use crate::kernels::Stored;
use crate::llama::LlamaShape;
use crate::tokenizer::ByteLevelTokenizer;

/// A model as it was found in files, before it is put on a device.
pub struct LoadedModel {
    /// A name to show.
    pub name: String,
    /// SHA-256 over weights, configuration and tokenizer.
    pub hash: ContentHash,
    /// Its architecture.
    pub shape: LlamaShape,
    /// What it was trained on; `None` if unknown.
    pub provenance: Option<Provenance>,
    /// Its tokenizer.
    pub tokenizer: ByteLevelTokenizer,
    pub(crate) weights: Box<dyn WeightSource>,
}

impl std::fmt::Debug for LoadedModel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LoadedModel").field("name", &self.name).field("shape", &self.shape).finish_non_exhaustive()
    }
}

/// Where tensors are read from.
pub(crate) trait WeightSource: Send {
    /// The tensor `part`, which must have this shape.
    fn tensor(&self, part: Part, shape: &[usize]) -> Result<Stored, LoadError>;

    /// Whether there is one.
    fn has(&self, part: Part) -> bool;
}

impl LoadedModel {
    /// Opens a Hugging Face directory (`config.json`, `tokenizer.json`, `*.safetensors`) or a GGUF file.
    pub fn open(path: &Path) -> Result<Self, LoadError> {
        let metadata = std::fs::metadata(path).map_err(|e| LoadError::io(path, e))?;
        let loaded = if metadata.is_dir() { huggingface::open(path)? } else { gguf::open(path)? };
        let (tokens, vocab_size) = (loaded.tokenizer.vocab_size(), loaded.shape.vocab_size);
        if tokens > vocab_size {
            let reason = format!("the tokenizer has {tokens} tokens, the model {vocab_size}");
            return Err(LoadError::format(path, reason));
        }
        Ok(loaded)
    }

    /// A tensor of this shape as f32, rows first.
    pub fn values(&self, part: Part, shape: &[usize]) -> Result<Vec<f32>, LoadError> {
        Ok(self.weights.tensor(part, shape)?.to_f32())
    }

    /// A tensor as f32.
    pub(crate) fn vector(&self, part: Part, len: usize) -> Result<Vec<f32>, LoadError> {
        Ok(self.weights.tensor(part, &[len])?.to_f32())
    }
}
