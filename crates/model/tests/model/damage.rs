//! Wrong, truncated and damaged files: a clear error, never a panic and never a wrong model.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use safetensors::tensor::{Dtype, TensorView};
use safetensors::{SafeTensors, serialize_to_file};
use silo_core::{KeySite, LanguageModel, ModelError, Positions, SequenceStep, Tokenizer};
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
    contains(changed(|d| edit_config(d, "\"num_hidden_layers\": 2", "\"num_hidden_layers\": 1")), "'model.layers.1");
    contains(changed(|d| fs::write(d.join("model.safetensors"), "GGUF").unwrap()), "damaged");
}

/// The tensors of the "gqa" directory.
fn tensors() -> BTreeMap<String, (Vec<usize>, Vec<f32>)> {
    let bytes = fs::read(golden_path("gqa/model.safetensors")).unwrap();
    let parsed = SafeTensors::deserialize(&bytes).unwrap();
    let values = |data: &[u8]| data.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
    parsed.tensors().iter().map(|(name, t)| (name.clone(), (t.shape().to_vec(), values(t.data())))).collect()
}

fn write(tensors: &BTreeMap<String, (Vec<usize>, Vec<f32>)>, path: &Path) {
    let bytes: Vec<(&String, &Vec<usize>, Vec<u8>)> = tensors
        .iter()
        .map(|(name, (shape, values))| (name, shape, values.iter().flat_map(|x| x.to_le_bytes()).collect()))
        .collect();
    let view = |shape: &[usize], data| TensorView::new(Dtype::F32, shape.to_vec(), data).unwrap();
    let views = bytes.iter().map(|(name, shape, data)| (name.as_str(), view(shape, data)));
    serialize_to_file(views, None, path).unwrap();
}

#[test]
fn weights_that_would_be_passed_over_are_refused() {
    let contains = |message: String, part: &str| assert!(message.contains(part), "{message:?} should say {part:?}");
    let bias = "model.layers.0.self_attn.q_proj.bias";
    let with_bias = |d: &Path| {
        let mut all = tensors();
        all.insert(bias.to_owned(), (vec![32], vec![50.0; 32]));
        write(&all, &d.join("model.safetensors"));
    };
    contains(changed(with_bias), bias);
    // Files that are not called model.safetensors are read together, and a tensor stands in one of them.
    let twice = |d: &Path| {
        fs::rename(d.join("model.safetensors"), d.join("a.safetensors")).unwrap();
        fs::copy(d.join("a.safetensors"), d.join("b.safetensors")).unwrap();
    };
    contains(changed(twice), "stands in another file");
    let index = |text: &'static str| {
        move |d: &Path| {
            fs::rename(d.join("model.safetensors"), d.join("a.safetensors")).unwrap();
            fs::write(d.join("model.safetensors.index.json"), text).unwrap();
        }
    };
    contains(changed(index("{}")), "weight_map");
    contains(changed(index(r#"{"weight_map": {}}"#)), "names no file");
    contains(changed(index(r#"{"weight_map": {"x": "../a.safetensors"}}"#)), "no name of a file in the directory");
    contains(changed(index(r#"{"weight_map": {"x": "b.safetensors"}}"#)), "b.safetensors");
    // With the right one, and beside what transformers passes over as well, the model is the same.
    let directory = tempfile::tempdir().unwrap();
    copy("gqa", directory.path());
    fs::copy(directory.path().join("model.safetensors"), directory.path().join("consolidated.safetensors")).unwrap();
    load(directory.path()).unwrap();
    index(r#"{"weight_map": {"lm_head.weight": "a.safetensors"}}"#)(directory.path());
    load(directory.path()).unwrap();
}

#[test]
fn a_model_that_gives_no_numbers_gives_no_answer() {
    for (name, value) in [("model.norm.weight", f32::NAN), ("model.layers.0.mlp.up_proj.weight", f32::INFINITY)] {
        let directory = tempfile::tempdir().unwrap();
        copy("gqa", directory.path());
        let mut all = tensors();
        all.get_mut(name).unwrap().1[0] = value;
        write(&all, &directory.path().join("model.safetensors"));
        let model = CpuLlama::new(&LoadedModel::open(directory.path()).unwrap(), KeySite::default(), 1).unwrap();
        let (mut cache, tokens) = (model.new_cache(), [1, 2, 3]);
        let mut step =
            SequenceStep { cache: &mut *cache, tokens: &tokens, logits: Positions::Last, keys: Positions::Last };
        let error = model.step(std::slice::from_mut(&mut step), &AtomicBool::new(false)).unwrap_err();
        assert!(matches!(error, ModelError::NotFinite), "{error}");
    }
    let message = changed(|d| edit_config(d, "\"rms_norm_eps\": 1e-06", "\"rms_norm_eps\": -1.0"));
    assert!(message.contains("epsilon"), "{message}");
}

#[test]
fn tokenizers_that_cut_at_random_are_refused_and_none_pads() {
    let edit = |d: &Path, key: &str, value: serde_json::Value| {
        let path = d.join("tokenizer.json");
        let mut json: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        if key == "dropout" { &mut json["model"][key] } else { &mut json[key] }.clone_from(&value);
        fs::write(path, json.to_string()).unwrap();
    };
    assert!(changed(|d| edit(d, "dropout", 0.5.into())).contains("dropout"));
    let directory = tempfile::tempdir().unwrap();
    copy("gqa", directory.path());
    let tokens = || LoadedModel::open(directory.path()).unwrap().tokenizer.encode("abc def").unwrap();
    let expected = tokens();
    let padding = serde_json::json!({
        "strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 0, "pad_type_id": 0, "pad_token": "a",
    });
    edit(directory.path(), "padding", padding);
    assert_eq!(tokens(), expected);
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
fn a_gguf_file_names_everything_once_and_in_its_place() {
    let whole = fs::read(golden_path("gqa.gguf")).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("other.gguf");
    let message = |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        load(&path).unwrap_err().to_string()
    };
    let at = |text: &str| whole.windows(text.len()).position(|w| w == text.as_bytes()).unwrap();
    let name = at("blk.1.attn_norm.weight");
    let mut renamed = whole.clone();
    renamed[name + 4] = b'0';
    assert!(message(&renamed).contains("a name of its tensors comes twice"), "{}", message(&renamed));
    renamed[name + 4] = b'7';
    assert!(message(&renamed).contains("the tensor 'blk.7.attn_norm.weight'"), "{}", message(&renamed));
    // Behind a name stand the number of dimensions, each of them, the type and the place.
    let place = name + "blk.1.attn_norm.weight".len() + 4 + 8 + 4;
    for (offset, byte) in [(place, 1), (place, whole[place] ^ 32)] {
        let mut moved = whole.clone();
        moved[offset] = byte;
        assert!(message(&moved).contains("not aligned or within another"), "{}", message(&moved));
    }
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
