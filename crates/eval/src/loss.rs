//! Sums of −ln p, and what is reported of them.

use serde::{Deserialize, Serialize};

/// Σ −ln p over some text.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Loss {
    /// Nats.
    pub nats: f64,
    /// Tokens that were scored.
    pub n_tokens: u64,
    /// Bytes of the text.
    pub n_bytes: u64,
}

impl Loss {
    /// This and another, of other text.
    pub fn and(self, other: Self) -> Self {
        Self {
            nats: self.nats + other.nats,
            n_tokens: self.n_tokens + other.n_tokens,
            n_bytes: self.n_bytes + other.n_bytes,
        }
    }

    /// Bits per byte: comparable between tokenizers.
    pub fn bits_per_byte(&self) -> f64 {
        self.nats / std::f64::consts::LN_2 / self.n_bytes.max(1) as f64
    }

    /// Perplexity per token.
    pub fn perplexity(&self) -> f64 {
        (self.nats / self.n_tokens.max(1) as f64).exp()
    }
}
