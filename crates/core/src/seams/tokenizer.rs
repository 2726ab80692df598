//! Text ↔ tokens.

use crate::TokenId;

/// Why a text could not be turned into tokens.
#[derive(Debug, thiserror::Error)]
#[error("the text could not be tokenised: {0}")]
pub struct TokenizerError(pub String);

/// Text ↔ tokens. Contract: the bytes of `encode(text)`'s tokens, joined, are the bytes of `text`, for any text.
pub trait Tokenizer: Send + Sync {
    /// Tokens of a text, without any special token. Text that looks like a special token is plain text.
    fn encode(&self, text: &str) -> Result<Vec<TokenId>, TokenizerError>;

    /// The bytes that a token stands for; empty for special tokens and for ids outside the vocabulary. They may be part of a
    /// character: see [`crate::Detokenizer`].
    fn bytes(&self, token: TokenId) -> &[u8];

    /// The token that every document and prompt begins with, if the model has one.
    fn beginning_of_text(&self) -> Option<TokenId>;

    /// Tokens that end a text.
    fn end_of_text(&self) -> &[TokenId];

    /// Tokens in the vocabulary.
    fn vocab_size(&self) -> usize;

    /// Text of tokens; bytes that are no UTF-8 become U+FFFD.
    fn decode(&self, tokens: &[TokenId]) -> String {
        let bytes: Vec<u8> = tokens.iter().flat_map(|&t| self.bytes(t)).copied().collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}
