//! Index recipes: how documents become entries.

use std::path::Path;

use serde::{Deserialize, Serialize};
use silo_core::{ContentHash, KeySite, ModelCard};
use silo_lexical::Bm25;

use crate::StoreError;

/// Type of the stored keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KeyType {
    /// As the model made them.
    F32,
    /// Half the memory; the rounding is far under the distance of neighbours.
    F16,
}

impl KeyType {
    /// Bytes of one value.
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 => 2,
        }
    }
}

/// How documents become entries. All shards of a store share one recipe.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// Its name.
    pub name: String,
    /// Which hidden state is the key.
    pub key_site: KeySite,
    /// Type of the stored keys.
    pub key_type: KeyType,
    /// Documents are encoded in windows of this many tokens …
    pub window_tokens: usize,
    /// … that move by this many: every key but a document's first ones sees at least `window_tokens − stride_tokens` tokens.
    pub stride_tokens: usize,
    /// Passages are this many tokens of a document …
    pub passage_tokens: usize,
    /// … and begin this many tokens apart.
    pub passage_stride_tokens: usize,
    /// How passages are scored.
    pub bm25: Bm25,
}

impl Recipe {
    /// Reads a recipe file. Unknown keys and senseless numbers are refused.
    pub fn read(path: &Path) -> Result<Self, StoreError> {
        let text = std::fs::read_to_string(path).map_err(StoreError::io(path))?;
        let recipe: Self = toml::from_str(&text).map_err(|e| Self::refuse(path, e.to_string().trim()))?;
        recipe.check().map_err(|reason| Self::refuse(path, &reason))?;
        Ok(recipe)
    }

    fn refuse(path: &Path, reason: &str) -> StoreError {
        StoreError::Recipe { path: path.to_owned(), reason: reason.to_owned() }
    }

    fn check(&self) -> Result<(), String> {
        if self.window_tokens < 2 {
            return Err(format!("window_tokens is {}, it must be 2 or more", self.window_tokens));
        }
        if self.stride_tokens == 0 || self.stride_tokens > self.window_tokens {
            return Err(format!(
                "stride_tokens is {}, it must be from 1 to window_tokens ({})",
                self.stride_tokens, self.window_tokens
            ));
        }
        if self.passage_tokens == 0
            || self.passage_stride_tokens == 0
            || self.passage_stride_tokens > self.passage_tokens
        {
            return Err(
                "passage_tokens and passage_stride_tokens must be above 0, and the stride at most the length".into()
            );
        }
        if !(self.bm25.k1 >= 0.0 && self.bm25.k1.is_finite() && (0.0..=1.0).contains(&self.bm25.b)) {
            return Err("bm25.k1 must be 0 or more, bm25.b from 0 to 1".into());
        }
        Ok(())
    }

    /// Whether it can be used with a model.
    pub fn check_model(&self, card: &ModelCard) -> Result<(), StoreError> {
        let refuse = |reason| Err(StoreError::RecipeForModel { recipe: self.name.clone(), reason });
        if self.window_tokens > card.context_tokens {
            return refuse(format!(
                "window_tokens is {}, the model's window has {}",
                self.window_tokens, card.context_tokens
            ));
        }
        if self.key_site != card.key_site {
            return refuse(format!("its key site is {}, the model was opened with {}", self.key_site, card.key_site));
        }
        Ok(())
    }

    /// SHA-256 of its canonical form: of everything but its name.
    pub fn hash(&self) -> ContentHash {
        let Self {
            name: _,
            key_site,
            key_type,
            window_tokens,
            stride_tokens,
            passage_tokens,
            passage_stride_tokens,
            bm25,
        } = self;
        let key_type = match key_type {
            KeyType::F32 => "f32",
            KeyType::F16 => "f16",
        };
        let canonical = format!(
            "silo-recipe 1\nkey_site {key_site}\nkey_type {key_type}\nwindow {window_tokens}\nstride {stride_tokens}\n\
             distance squared-l2\npassage {passage_tokens}\npassage_stride {passage_stride_tokens}\nbm25 {} {}\n",
            bm25.k1, bm25.b
        );
        ContentHash::of(canonical.as_bytes())
    }
}
