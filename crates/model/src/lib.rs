//! The parametric half: Llama-family models on candle and on our own CPU kernels.
//!
//! What it is: loading ([`LoadedModel`]: Hugging Face directories and GGUF files), the byte-level tokenizers of both, and a
//! batched, ragged forward pass with a key tap and caches that their callers own, behind [`silo_core::LanguageModel`]:
//! [`CpuLlama`] on our kernels, [`TensorLlama`] in plain candle operations on any device.
//!
//! What it is not: it decides nothing about retrieval or sampling, and holds no state between steps.

mod kernels;
mod llama;
mod load;
mod save;
mod tokenizer;

pub use kernels::math;
pub use kernels::{PackedMatrix, QuantizedBlocks, Stored};
pub use llama::{CpuLlama, HfConfig, LlamaShape, Precision, Rope, RopeScaling, RopeStyle, TensorLlama};
pub use load::{LayerPart, LoadError, LoadedModel, PROVENANCE_FILE, Part, Provenance};
pub use save::{NamedTensor, parts, save_huggingface};
pub use tokenizer::ByteLevelTokenizer;
