//! Writing a Llama model as a Hugging Face directory that transformers loads as a LlamaForCausalLM.

use std::path::Path;

use half::bf16;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::json;

use crate::llama::LlamaShape;
use crate::load::{LayerPart, LoadError, Part};

/// A tensor in f32, rows first.
#[derive(Debug, Clone, PartialEq)]
pub struct NamedTensor {
    /// Which one it is.
    pub part: Part,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its values.
    pub data: Vec<f32>,
}

/// The tensors of a model with a tied head, in the order they are written.
pub fn parts(n_layers: usize) -> impl Iterator<Item = Part> {
    use LayerPart::*;
    let of_layers = [AttentionNorm, Query, Key, Value, Output, FfnNorm, Gate, Up, Down];
    let layers = (0..n_layers).flat_map(move |i| of_layers.map(|p| Part::Layer(i, p)));
    [Part::Embedding].into_iter().chain(layers).chain([Part::FinalNorm])
}

/// Writes `config.json`, `generation_config.json`, `tokenizer.json`, `tokenizer_config.json` and `model.safetensors` (bf16, rounded to
/// nearest). The model's head is its embedding and its rotary embedding plain.
pub fn save_huggingface(
    directory: &Path,
    shape: &LlamaShape,
    tokenizer_json: &str,
    tensors: &[NamedTensor],
) -> Result<(), LoadError> {
    let write = |name: &str, bytes: &[u8]| {
        let path = directory.join(name);
        std::fs::write(&path, bytes).map_err(|e| LoadError::io(&path, e))
    };
    let end = shape.end_of_text.first();
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "torch_dtype": "bfloat16",
        "hidden_size": shape.dim, "intermediate_size": shape.ffn_dim, "num_hidden_layers": shape.n_layers,
        "num_attention_heads": shape.n_heads, "num_key_value_heads": shape.n_kv_heads, "head_dim": shape.head_dim,
        "vocab_size": shape.vocab_size, "max_position_embeddings": shape.context_tokens, "rms_norm_eps": shape.norm_eps,
        "rope_theta": shape.rope.theta, "tie_word_embeddings": shape.tied_head, "attention_bias": false, "mlp_bias": false,
        "bos_token_id": shape.beginning_of_text, "eos_token_id": end,
    });
    let generation = json!({"bos_token_id": shape.beginning_of_text, "eos_token_id": end, "do_sample": true});
    let name = end.and_then(|t| token_name(tokenizer_json, *t));
    let tokenizer_config = json!({
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": name, "eos_token": name,
        "model_max_length": shape.context_tokens, "clean_up_tokenization_spaces": false,
    });
    let pretty = |value: &serde_json::Value| format!("{value:#}\n").into_bytes();
    write("config.json", &pretty(&config))?;
    write("generation_config.json", &pretty(&generation))?;
    write("tokenizer_config.json", &pretty(&tokenizer_config))?;
    write("tokenizer.json", tokenizer_json.as_bytes())?;

    let weights_path = directory.join("model.safetensors");
    let fail = |e: safetensors::SafeTensorError| LoadError::format(&weights_path, e);
    let rounded: Vec<Vec<bf16>> = tensors.iter().map(|t| t.data.iter().map(|x| bf16::from_f32(*x)).collect()).collect();
    let mut views = Vec::new();
    for (tensor, data) in tensors.iter().zip(&rounded) {
        let view = TensorView::new(Dtype::BF16, tensor.shape.clone(), bytemuck::cast_slice(data)).map_err(fail)?;
        views.push((tensor.part.huggingface(), view));
    }
    // transformers asks for this field.
    let metadata = [("format".to_owned(), "pt".to_owned())].into();
    write("model.safetensors", &safetensors::serialize(views, Some(metadata)).map_err(fail)?)
}

/// What a special token is called in `tokenizer.json`.
fn token_name(tokenizer_json: &str, token: u32) -> Option<String> {
    let json: serde_json::Value = serde_json::from_str(tokenizer_json).ok()?;
    let added = json["added_tokens"].as_array()?;
    Some(added.iter().find(|t| t["id"] == token)?["content"].as_str()?.to_owned())
}
