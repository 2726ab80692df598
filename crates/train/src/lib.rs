//! Training the parametric half on openly licensed text.
//!
//! What it is: a byte-level BPE tokenizer, a Llama model and its optimiser ([`train`]), behind the licence gate of `silo-corpus`; a pass
//! written by hand for CPUs (bfloat16 products on AMX) and one in candle's operations for GPUs; checkpoints that a run goes on from with
//! the same bits; a Hugging Face directory with training record and model card as the result.
//!
//! What it is not: it trains no model that may be used on anything of the restricted tier, whatever is asked of it. A reference
//! ([`ReferenceText`]), which others are measured against, is marked as one by its name, its card and its `silo.json`.

mod card;
mod checkpoint;
mod config;
mod cpu;
mod curve;
mod data;
mod device;
mod error;
mod export;
mod gemm;
mod log;
mod optimizer;
mod params;
mod run;
mod text;
mod tokenizer;

pub use config::{
    DataConfig, Logging, ModelShape, OptimizerConfig, Paths, REFERENCE_PREFIX, ReferenceText, TokenizerConfig,
    TrainConfig,
};
pub use error::TrainError;
pub use log::{LogLine, Validation};
pub use run::{Outcome, TrainDevice, export_checkpoint, train};
