//! Index recipes: how documents become entries.

use std::path::Path;

use serde::{Deserialize, Serialize};
use silo_core::{ContentHash, KeySite, ModelCard};

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
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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
            return Err(format!("stride_tokens is {}, it must be from 1 to window_tokens ({})", self.stride_tokens, self.window_tokens));
        }
        Ok(())
    }

    /// Whether it can be used with a model.
    pub fn check_model(&self, card: &ModelCard) -> Result<(), StoreError> {
        let refuse = |reason| Err(StoreError::RecipeForModel { recipe: self.name.clone(), reason });
        if self.window_tokens > card.context_tokens {
            return refuse(format!("window_tokens is {}, the model's window has {}", self.window_tokens, card.context_tokens));
        }
        if self.key_site != card.key_site {
            return refuse(format!("its key site is {}, the model was opened with {}", self.key_site, card.key_site));
        }
        Ok(())
    }

    /// SHA-256 of its canonical form: of everything but its name.
    pub fn hash(&self) -> ContentHash {
        let Self { name: _, key_site, key_type, window_tokens, stride_tokens } = self;
        let key_type = match key_type {
            KeyType::F32 => "f32",
            KeyType::F16 => "f16",
        };
        let canonical = format!(
            "silo-recipe 1\nkey_site {key_site}\nkey_type {key_type}\nwindow {window_tokens}\nstride {stride_tokens}\ndistance squared-l2\n"
        );
        ContentHash::of(canonical.as_bytes())
    }
}
