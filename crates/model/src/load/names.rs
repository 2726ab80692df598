//! The tensors of a Llama model and what the two formats call them.

/// One tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are those of the architecture")]
pub enum Part {
    Embedding,
    FinalNorm,
    Head,
    /// Factors by which Llama 3's GGUF files divide the rotary frequencies.
    RopeFactors,
    Layer(usize, LayerPart),
}

/// One tensor of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are those of the architecture")]
pub enum LayerPart {
    AttentionNorm,
    Query,
    Key,
    Value,
    Output,
    FfnNorm,
    Gate,
    Up,
    Down,
}

impl LayerPart {
    const ALL: [Self; 9] = {
        use LayerPart::*;
        [AttentionNorm, Query, Key, Value, Output, FfnNorm, Gate, Up, Down]
    };
}

impl Part {
    /// All that a model of so many layers may have.
    pub(crate) fn all(n_layers: usize) -> impl Iterator<Item = Self> {
        let layers = (0..n_layers).flat_map(|i| LayerPart::ALL.map(|part| Self::Layer(i, part)));
        [Self::Embedding, Self::FinalNorm, Self::Head, Self::RopeFactors].into_iter().chain(layers)
    }

    /// The name in Hugging Face's LlamaForCausalLM.
    pub(crate) fn huggingface(self) -> String {
        use LayerPart::*;
        match self {
            Self::Embedding => "model.embed_tokens.weight".into(),
            Self::FinalNorm => "model.norm.weight".into(),
            Self::Head => "lm_head.weight".into(),
            Self::RopeFactors => "rope_freqs.weight".into(),
            Self::Layer(i, part) => {
                let name = match part {
                    AttentionNorm => "input_layernorm",
                    Query => "self_attn.q_proj",
                    Key => "self_attn.k_proj",
                    Value => "self_attn.v_proj",
                    Output => "self_attn.o_proj",
                    FfnNorm => "post_attention_layernorm",
                    Gate => "mlp.gate_proj",
                    Up => "mlp.up_proj",
                    Down => "mlp.down_proj",
                };
                format!("model.layers.{i}.{name}.weight")
            }
        }
    }

    /// The name in GGUF files.
    pub(crate) fn gguf(self) -> String {
        use LayerPart::*;
        match self {
            Self::Embedding => "token_embd.weight".into(),
            Self::FinalNorm => "output_norm.weight".into(),
            Self::Head => "output.weight".into(),
            Self::RopeFactors => "rope_freqs.weight".into(),
            Self::Layer(i, part) => {
                let name = match part {
                    AttentionNorm => "attn_norm",
                    Query => "attn_q",
                    Key => "attn_k",
                    Value => "attn_v",
                    Output => "attn_output",
                    FfnNorm => "ffn_norm",
                    Gate => "ffn_gate",
                    Up => "ffn_up",
                    Down => "ffn_down",
                };
                format!("blk.{i}.{name}.weight")
            }
        }
    }
}
