//! The model against Hugging Face transformers, against its contract, and against damaged files.

mod damage;
mod golden;
mod half;

use std::path::PathBuf;

use silo_core::KeySite;
use silo_model::{CpuLlama, LoadedModel, Precision, TensorLlama};

fn golden_path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

fn cpu(name: &str, site: KeySite) -> CpuLlama {
    CpuLlama::new(&LoadedModel::open(&golden_path(name)).unwrap(), site, 2).unwrap()
}

fn tensor(name: &str, site: KeySite, device: candle_core::Device, precision: Precision) -> TensorLlama {
    TensorLlama::new(&LoadedModel::open(&golden_path(name)).unwrap(), site, device, precision).unwrap()
}

const MODELS: [&str; 4] = ["mha", "gqa", "gqa.gguf", "llama3"];

#[test]
fn cpu_models_keep_the_contract_to_the_last_bit() {
    for name in MODELS {
        silo_testkit::contract::language_model(&cpu(name, KeySite::LastFfnInput), 0.0);
    }
}

#[test]
fn tensor_models_keep_the_contract() {
    for name in MODELS {
        let model = tensor(name, KeySite::FinalNorm, candle_core::Device::Cpu, Precision::F32);
        silo_testkit::contract::language_model(&model, 1e-4);
    }
}

#[test]
fn tokenizers_keep_the_contract() {
    let ours = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../models/silo-open-6m");
    for path in MODELS.map(golden_path).into_iter().chain([ours]) {
        silo_testkit::contract::tokenizer(&LoadedModel::open(&path).unwrap().tokenizer);
    }
}
