//! Logits and keys of small random models, as Hugging Face transformers computes them (scripts/golden_models.py).

use std::sync::atomic::AtomicBool;

use safetensors::SafeTensors;
use silo_core::{KeySite, LanguageModel, Positions, SequenceStep, Tokenizer};
use silo_model::{LoadedModel, Precision};

use super::{MODELS, cpu, golden_path, tensor};

/// Greatest difference of a logit or of a key's value.
const TOLERANCE: f32 = 1e-4;

struct Expected {
    tokens: Vec<u32>,
    logits: Vec<f32>,
    key: Vec<f32>,
}

fn expected(name: &str, site: KeySite) -> Expected {
    let name = name.trim_end_matches(".gguf");
    let bytes = std::fs::read(golden_path(&format!("{name}.expected.safetensors"))).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let floats = |name: &str| -> Vec<f32> {
        file.tensor(name).unwrap().data().as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
    };
    let tokens = file.tensor("tokens").unwrap().data().as_chunks().0.iter().map(|b| i64::from_le_bytes(*b) as u32);
    Expected { tokens: tokens.collect(), logits: floats("logits"), key: floats(site.name()) }
}

#[track_caller]
fn check(model: &dyn LanguageModel, name: &str, site: KeySite, tolerance: f32) {
    let expected = expected(name, site);
    let mut cache = model.new_cache();
    let all = Positions::From(0);
    let mut batch = [SequenceStep { cache: cache.as_mut(), tokens: &expected.tokens, logits: all, keys: all }];
    let output = model.step(&mut batch, &AtomicBool::new(false)).unwrap().remove(0);
    for (what, ours, theirs) in
        [("logit", &output.logits.data, &expected.logits), ("key", &output.keys.data, &expected.key)]
    {
        assert_eq!(ours.len(), theirs.len(), "{name} {site} {what}");
        let worst = ours.iter().zip(theirs).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        println!("{name} {site}: greatest difference of a {what} {worst:e}");
        assert!(worst <= tolerance, "{name} {site}: a {what} differs by {worst}");
    }
}

#[test]
fn cpu_kernels_compute_what_transformers_computes() {
    for name in MODELS {
        for site in KeySite::ALL {
            check(&cpu(name, site), name, site, TOLERANCE);
        }
    }
}

#[test]
fn candle_operations_compute_what_transformers_computes() {
    for name in MODELS {
        for site in KeySite::ALL {
            check(&tensor(name, site, candle_core::Device::Cpu, Precision::F32), name, site, TOLERANCE);
        }
    }
}

#[cfg(feature = "cuda")]
#[test]
fn cuda_computes_what_transformers_computes() {
    let device = candle_core::Device::new_cuda(0).expect("the cuda feature is tested on a machine with a GPU");
    for name in MODELS {
        for site in KeySite::ALL {
            check(&tensor(name, site, device.clone(), Precision::F32), name, site, 5e-4);
        }
    }
}

#[test]
fn the_tokenizer_in_a_gguf_file_is_the_one_beside_the_weights() {
    let gguf = LoadedModel::open(&golden_path("gqa.gguf")).unwrap().tokenizer;
    let json = LoadedModel::open(&golden_path("gqa")).unwrap().tokenizer;
    for text in ["", "the thing", " in the other, a\n\n\tend", "<|endoftext|> é 🦀 \u{0}", "of a  then  "] {
        let tokens = gguf.encode(text).unwrap();
        assert_eq!(tokens, json.encode(text).unwrap(), "{text:?}");
        assert_eq!(gguf.decode(&tokens), text);
        assert!(!tokens.contains(&0), "text that looks like a special token is plain text");
    }
    assert_eq!(gguf.beginning_of_text(), Some(0));
    assert_eq!(gguf.bytes(0), b"");
}
