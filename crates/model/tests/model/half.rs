//! Weights of 16 bits are what they stand for: a file of them computes what a file of the same numbers in 32 bits does.

use std::fs;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use half::{bf16, f16};
use safetensors::tensor::{Dtype, TensorView};
use safetensors::{SafeTensors, serialize_to_file};
use silo_core::{KeySite, LanguageModel, Positions, SequenceStep};
use silo_model::{CpuLlama, LoadedModel, Precision, TensorLlama};

use super::golden_path;

/// A value rounded to a type, as bytes of it and as bytes of 32 bits.
fn rounded(x: f32, of: Dtype) -> (Vec<u8>, Vec<u8>) {
    match of {
        Dtype::F16 => (f16::from_f32(x).to_le_bytes().into(), f16::from_f32(x).to_f32().to_le_bytes().into()),
        _ => (bf16::from_f32(x).to_le_bytes().into(), bf16::from_f32(x).to_f32().to_le_bytes().into()),
    }
}

/// A golden model with its weights rounded, written in that type and in 32 bits.
fn write(of: Dtype, half: &Path, whole: &Path) {
    let from = golden_path("mha");
    for (name, to) in ["config.json", "tokenizer.json"].iter().flat_map(|name| [(name, half), (name, whole)]) {
        fs::copy(from.join(name), to.join(name)).unwrap();
    }
    let bytes = fs::read(from.join("model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let (mut small, mut large) = (Vec::new(), Vec::new());
    for (name, view) in file.tensors() {
        let values = view.data().as_chunks().0.iter().map(|b| rounded(f32::from_le_bytes(*b), of));
        let (a, b): (Vec<Vec<u8>>, Vec<Vec<u8>>) = values.unzip();
        small.push((name.clone(), view.shape().to_vec(), a.concat()));
        large.push((name, view.shape().to_vec(), b.concat()));
    }
    for (tensors, dtype, to) in [(&small, of, half), (&large, Dtype::F32, whole)] {
        let view = |(name, shape, data): &'_ (String, Vec<usize>, Vec<u8>)| {
            // They live as long as the list of them.
            (name.clone(), TensorView::new(dtype, shape.clone(), data.clone().leak()).unwrap())
        };
        serialize_to_file(tensors.iter().map(view), None, &to.join("model.safetensors")).unwrap();
    }
}

fn logits(model: &dyn LanguageModel) -> Vec<u32> {
    let (mut cache, tokens) = (model.new_cache(), [1, 5, 9, 2, 30, 7]);
    let (logits, keys) = (Positions::From(0), Positions::From(0));
    let mut batch = [SequenceStep { cache: cache.as_mut(), tokens: &tokens, logits, keys }];
    let output = model.step(&mut batch, &AtomicBool::new(false)).unwrap().remove(0);
    output.logits.data.iter().chain(&output.keys.data).map(|x| x.to_bits()).collect()
}

#[test]
fn files_of_16_bits_compute_what_their_numbers_do() {
    let site = KeySite::default();
    for of in [Dtype::F16, Dtype::BF16] {
        let (half, whole) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        write(of, half.path(), whole.path());
        let open = |path: &Path| LoadedModel::open(path).unwrap();
        let cpu = |path: &Path| logits(&CpuLlama::new(&open(path), site, 2).unwrap());
        assert_eq!(cpu(half.path()), cpu(whole.path()), "{of:?}");
        assert_ne!(cpu(half.path()), cpu(&golden_path("mha")), "rounding is felt");
        let device = || candle_core::Device::Cpu;
        let tensor = |path: &Path| logits(&TensorLlama::new(&open(path), site, device(), Precision::F32).unwrap());
        assert_eq!(tensor(half.path()), tensor(whole.path()), "{of:?}");
    }
}
