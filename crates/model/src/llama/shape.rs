//! The numbers that define a Llama model.

use crate::Provenance;
use silo_core::{ContentHash, KeySite, ModelCard, ModelError, SequenceStep, TokenId};

use super::Rope;

/// The numbers that define a Llama model.
#[derive(Debug, Clone, PartialEq)]
pub struct LlamaShape {
    /// Width of the residual stream.
    pub dim: usize,
    /// Width of the feed-forward layers.
    pub ffn_dim: usize,
    /// Blocks.
    pub n_layers: usize,
    /// Query heads.
    pub n_heads: usize,
    /// Key-value heads; divides `n_heads`.
    pub n_kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Tokens in the vocabulary.
    pub vocab_size: usize,
    /// Longest sequence.
    pub context_tokens: usize,
    /// Added under the root of a norm.
    pub norm_eps: f32,
    /// Rotary embedding.
    pub rope: Rope,
    /// Whether the head is the embedding.
    pub tied_head: bool,
    /// The token that texts begin with, if any.
    pub beginning_of_text: Option<TokenId>,
    /// Tokens that end a text.
    pub end_of_text: Vec<TokenId>,
}

/// Greatest width, depth, vocabulary or window: far beyond any model, and small enough that products of two do not overflow.
const MAX_SIZE: usize = 1 << 24;

impl LlamaShape {
    /// Whether the numbers fit together; the error says which do not.
    pub fn check(&self) -> Result<(), String> {
        let sizes =
            [self.dim, self.ffn_dim, self.n_layers, self.n_heads, self.n_kv_heads, self.head_dim, self.vocab_size];
        if sizes.contains(&0) || self.context_tokens == 0 {
            return Err("a size of the model is 0".into());
        }
        if let Some(size) = sizes.iter().find(|s| **s > MAX_SIZE) {
            return Err(format!("a size of the model is {size}, more than {MAX_SIZE}"));
        }
        if self.context_tokens > MAX_SIZE {
            return Err(format!("a window of {} tokens, more than {MAX_SIZE}", self.context_tokens));
        }
        let special = self.beginning_of_text.iter().chain(&self.end_of_text);
        if let Some(token) = special.copied().find(|t| *t as usize >= self.vocab_size) {
            return Err(format!("the special token {token} is outside the vocabulary of {}", self.vocab_size));
        }
        if !(self.norm_eps > 0.0 && self.norm_eps.is_finite()) {
            return Err(format!("an epsilon of the norms of {}", self.norm_eps));
        }
        self.rope.check()?;
        if !self.n_heads.is_multiple_of(self.n_kv_heads) {
            return Err(format!("{} query heads do not divide into {} key-value heads", self.n_heads, self.n_kv_heads));
        }
        if !self.head_dim.is_multiple_of(2) {
            return Err(format!("a head width of {} cannot be rotated in pairs", self.head_dim));
        }
        Ok(())
    }

    /// Width of all query heads.
    pub(crate) fn q_dim(&self) -> usize {
        self.n_heads * self.head_dim
    }

    /// Width of all key (or value) heads.
    pub(crate) fn kv_dim(&self) -> usize {
        self.n_kv_heads * self.head_dim
    }

    /// Number of parameters.
    pub fn n_parameters(&self) -> u64 {
        let attention = self.dim * (2 * self.q_dim() + 2 * self.kv_dim());
        let layer = attention + 3 * self.dim * self.ffn_dim + 2 * self.dim;
        let heads = if self.tied_head { 1 } else { 2 };
        (self.n_layers * layer + heads * self.vocab_size * self.dim + self.dim) as u64
    }

    pub(crate) fn card(
        &self,
        name: String,
        hash: ContentHash,
        key_site: KeySite,
        provenance: Option<Provenance>,
    ) -> ModelCard {
        let (training_tiers, training_sources) =
            provenance.map_or((None, None), |p| (Some(p.training_tiers), p.training_sources));
        ModelCard {
            name,
            hash,
            architecture: "llama".into(),
            vocab_size: self.vocab_size,
            key_dim: self.dim,
            key_site,
            context_tokens: self.context_tokens,
            n_parameters: self.n_parameters(),
            training_tiers,
            training_sources,
        }
    }

    /// Refuses a step that no sequence may change for.
    pub(crate) fn check_step(&self, batch: &[SequenceStep<'_>]) -> Result<(), ModelError> {
        for step in batch {
            if step.tokens.is_empty() {
                return Err(ModelError::Misuse("a sequence without a token in the step"));
            }
            let got = step.cache.len() + step.tokens.len();
            if got > self.context_tokens {
                return Err(ModelError::ContextOverflow { got, limit: self.context_tokens });
            }
            if let Some(&token) = step.tokens.iter().find(|&&t| t as usize >= self.vocab_size) {
                return Err(ModelError::UnknownToken { token, vocab_size: self.vocab_size });
            }
        }
        Ok(())
    }
}
