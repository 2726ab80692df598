//! Llama (Touvron et al. 2023) and its variants: grouped-query attention, tied or untied head, Llama 3's rope scaling.

mod cache;
mod config;
mod cpu;
mod rope;
mod shape;
mod tensor;

pub use config::HfConfig;
pub use cpu::CpuLlama;
pub use rope::{Rope, RopeScaling, RopeStyle};
pub use shape::LlamaShape;
pub use tensor::{Precision, TensorLlama};
