//! `config.json` of a Hugging Face directory.
//!
//! candle-transformers has a type for it, but that one passes over `rope_parameters` (where transformers 5 writes the rotary
//! base), `head_dim`, biases and activations, and would run such a model wrongly without a word.

use serde::{Deserialize, Serialize};
use silo_core::TokenId;

use super::{LlamaShape, Rope, RopeScaling, RopeStyle};

/// `config.json`, as far as it decides how a Llama model computes.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the fields are those of transformers' LlamaConfig")]
pub struct HfConfig {
    #[serde(default)]
    pub architectures: Vec<String>,
    pub model_type: String,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    pub num_key_value_heads: Option<usize>,
    pub head_dim: Option<usize>,
    pub vocab_size: usize,
    pub max_position_embeddings: usize,
    pub rms_norm_eps: f64,
    #[serde(default = "silu")]
    pub hidden_act: String,
    #[serde(default)]
    pub tie_word_embeddings: bool,
    #[serde(default)]
    pub attention_bias: bool,
    #[serde(default)]
    pub mlp_bias: bool,
    #[serde(default)]
    pub bos_token_id: Option<TokenId>,
    #[serde(default)]
    pub eos_token_id: Option<OneOrMany>,
    #[serde(default)]
    pub rope_theta: Option<f32>,
    #[serde(default)]
    pub rope_scaling: Option<RopeParameters>,
    #[serde(default)]
    pub rope_parameters: Option<RopeParameters>,
}

fn silu() -> String {
    "silu".into()
}

/// One token or several.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(untagged)]
#[allow(missing_docs, reason = "the variants say what they are")]
pub enum OneOrMany {
    One(TokenId),
    Many(Vec<TokenId>),
}

/// `rope_scaling` (until transformers 4) or `rope_parameters` (from 5 on).
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the fields are those of transformers' RopeParameters")]
pub struct RopeParameters {
    #[serde(alias = "type", default)]
    pub rope_type: Option<String>,
    #[serde(default)]
    pub rope_theta: Option<f32>,
    #[serde(default)]
    pub factor: Option<f32>,
    #[serde(default)]
    pub low_freq_factor: Option<f32>,
    #[serde(default)]
    pub high_freq_factor: Option<f32>,
    #[serde(default)]
    pub original_max_position_embeddings: Option<f32>,
}

impl HfConfig {
    /// The shape, or what of it cannot be run.
    pub fn shape(&self) -> Result<LlamaShape, String> {
        if self.model_type != "llama" {
            return Err(format!("the architecture '{}'", self.model_type));
        }
        if self.attention_bias || self.mlp_bias {
            return Err("a model with biases".into());
        }
        if self.hidden_act != "silu" {
            return Err(format!("the activation '{}'", self.hidden_act));
        }
        if self.num_attention_heads == 0 {
            return Err("a model without attention heads".into());
        }
        let shape = LlamaShape {
            dim: self.hidden_size,
            ffn_dim: self.intermediate_size,
            n_layers: self.num_hidden_layers,
            n_heads: self.num_attention_heads,
            n_kv_heads: self.num_key_value_heads.unwrap_or(self.num_attention_heads),
            head_dim: self.head_dim.unwrap_or(self.hidden_size / self.num_attention_heads),
            vocab_size: self.vocab_size,
            context_tokens: self.max_position_embeddings,
            norm_eps: self.rms_norm_eps as f32,
            rope: self.rope()?,
            tied_head: self.tie_word_embeddings,
            beginning_of_text: self.bos_token_id,
            end_of_text: match &self.eos_token_id {
                None => Vec::new(),
                Some(OneOrMany::One(t)) => vec![*t],
                Some(OneOrMany::Many(t)) => t.clone(),
            },
        };
        shape.check()?;
        Ok(shape)
    }

    fn rope(&self) -> Result<Rope, String> {
        let parameters = self.rope_parameters.clone().or(self.rope_scaling.clone()).unwrap_or_default();
        let theta = parameters.rope_theta.or(self.rope_theta).unwrap_or(10_000.0);
        let mut rope = Rope::plain(theta, RopeStyle::Halves);
        let field = |value: Option<f32>, name: &str| value.ok_or_else(|| format!("rope scaling without '{name}'"));
        rope.scaling = match parameters.rope_type.as_deref() {
            None | Some("default") => RopeScaling::None,
            Some("linear") => RopeScaling::Linear { factor: field(parameters.factor, "factor")? },
            Some("llama3") => RopeScaling::Llama3 {
                factor: field(parameters.factor, "factor")?,
                low_freq_factor: field(parameters.low_freq_factor, "low_freq_factor")?,
                high_freq_factor: field(parameters.high_freq_factor, "high_freq_factor")?,
                original_context: field(
                    parameters.original_max_position_embeddings,
                    "original_max_position_embeddings",
                )?,
            },
            Some(other) => return Err(format!("rope scaling of type '{other}'")),
        };
        Ok(rope)
    }
}
