//! Wrong, truncated and damaged files: a clear error, never a panic and never a wrong model.

use std::fs;
use std::path::Path;

use silo_core::KeySite;
use silo_model::{CpuLlama, LoadError, LoadedModel};

use super::golden_path;

fn copy(from: &str, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(golden_path(from)).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
    }
}

fn load(path: &Path) -> Result<(), LoadError> {
    let model = LoadedModel::open(path)?;
    CpuLlama::new(&model, KeySite::default(), 1)?;
    Ok(())
}

/// Loads a copy of the "gqa" directory after `change`, which must fail; returns the message.
fn changed(change: impl FnOnce(&Path)) -> String {
    let directory = tempfile::tempdir().unwrap();
    copy("gqa", directory.path());
    change(directory.path());
    let message = load(directory.path()).expect_err("a damaged model").to_string();
    assert!(message.contains(directory.path().to_str().unwrap()), "the message names the file: {message}");
    message
}

fn edit_config(directory: &Path, from: &str, to: &str) {
    let path = directory.join("config.json");
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.contains(from), "{from}");
    fs::write(path, text.replace(from, to)).unwrap();
}

#[test]
fn a_directory_says_what_is_wrong_with_it() {
    let contains = |message: String, part: &str| assert!(message.contains(part), "{message:?} should say {part:?}");
    contains(changed(|d| fs::remove_file(d.join("config.json")).unwrap()), "cannot read");
    contains(changed(|d| fs::remove_file(d.join("model.safetensors")).unwrap()), "no *.safetensors");
    contains(changed(|d| edit_config(d, "\"llama\"", "\"gpt_neox\"")), "the architecture 'gpt_neox' is not supported");
    contains(changed(|d| edit_config(d, "\"hidden_size\": 32", "\"hidden_size\": 64")), "shape");
    contains(
        changed(|d| edit_config(d, "\"num_hidden_layers\": 2", "\"num_hidden_layers\": 3")),
        "no tensor 'model.layers.2",
    );
    contains(changed(|d| edit_config(d, "\"num_key_value_heads\": 2", "\"num_key_value_heads\": 3")), "do not divide");
    contains(changed(|d| edit_config(d, "\"default\"", "\"yarn\"")), "rope scaling of type 'yarn'");
    contains(changed(|d| edit_config(d, "\"attention_bias\": false", "\"attention_bias\": true")), "biases");
    contains(changed(|d| edit_config(d, "\"num_attention_heads\": 4", "\"num_attention_heads\": 0")), "heads");
    contains(changed(|d| fs::write(d.join("tokenizer.json"), "{}").unwrap()), "tokenizer");
    contains(changed(|d| fs::write(d.join("model.safetensors"), "GGUF").unwrap()), "damaged");
}

#[test]
fn truncated_weights_are_refused_wherever_they_end() {
    let whole = fs::read(golden_path("gqa/model.safetensors")).unwrap();
    for cut in [0, 1, 7, 8, 100, 2_000, whole.len() / 2, whole.len() - 1] {
        changed(|d| fs::write(d.join("model.safetensors"), &whole[..cut]).unwrap());
    }
}

#[test]
fn truncated_gguf_files_are_refused_wherever_they_end() {
    let whole = fs::read(golden_path("gqa.gguf")).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("cut.gguf");
    for cut in [0, 3, 4, 20, 100, 3_000, 10_000, whole.len() / 2, whole.len() - 1] {
        fs::write(&path, &whole[..cut]).unwrap();
        let message = load(&path).expect_err("a truncated file").to_string();
        assert!(message.contains("cut.gguf"), "{message}");
    }
    fs::write(&path, b"{\"not\": \"a model\"}").unwrap();
    assert!(load(&path).unwrap_err().to_string().contains("does not begin with 'GGUF'"));
}

#[test]
fn flipped_bits_in_a_gguf_header_never_panic() {
    let whole = fs::read(golden_path("gqa.gguf")).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("flipped.gguf");
    for byte in (4..1200).step_by(7) {
        let mut damaged = whole.clone();
        damaged[byte] ^= 1 << (byte % 8);
        fs::write(&path, &damaged).unwrap();
        let _ = load(&path); // an error, or a file that is still a model: a changed name or number
    }
}
