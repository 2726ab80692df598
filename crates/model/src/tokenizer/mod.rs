//! Byte-level BPE tokenizers (Radford et al. 2019), from `tokenizer.json` and from inside GGUF files.

mod alphabet;
mod gguf;

use silo_core::{TokenId, Tokenizer, TokenizerError};
use tokenizers::models::ModelWrapper;

pub(crate) use gguf::GgufVocabulary;

/// A byte-level BPE tokenizer: every text has tokens, and their bytes are the text's.
#[derive(Debug)]
pub struct ByteLevelTokenizer {
    inner: tokenizers::Tokenizer,
    /// Bytes of each token; empty for special ones.
    bytes: Vec<Vec<u8>>,
    beginning_of_text: Option<TokenId>,
    end_of_text: Vec<TokenId>,
}

impl ByteLevelTokenizer {
    /// Reads a `tokenizer.json`; the error says what of it is not supported.
    pub fn from_json(json: &[u8], beginning_of_text: Option<TokenId>, end_of_text: &[TokenId]) -> Result<Self, String> {
        let inner = tokenizers::Tokenizer::from_bytes(json).map_err(|e| format!("the tokenizer ({e})"))?;
        Self::new(inner, beginning_of_text, end_of_text.to_vec())
    }

    pub(crate) fn from_gguf(vocabulary: GgufVocabulary) -> Result<Self, String> {
        let (bos, eos) = (vocabulary.beginning_of_text, vocabulary.end_of_text.clone());
        Self::new(vocabulary.build()?, bos, eos)
    }

    fn new(mut inner: tokenizers::Tokenizer, bos: Option<TokenId>, eos: Vec<TokenId>) -> Result<Self, String> {
        // What looks like a special token in a prompt or document is plain text.
        inner.set_encode_special_tokens(true);
        inner.with_padding(None);
        if let ModelWrapper::BPE(bpe) = inner.get_model()
            && bpe.dropout.is_some_and(|dropout| dropout > 0.0)
        {
            return Err("dropout in the tokenizer, which cuts a text otherwise each time (set it to null)".into());
        }
        let byte_of = alphabet::byte_of_char();
        let special = inner.get_added_tokens_decoder();
        let mut bytes = Vec::with_capacity(inner.get_vocab_size(true));
        for id in 0..inner.get_vocab_size(true) as TokenId {
            let text = inner.id_to_token(id).unwrap_or_default();
            bytes.push(match special.get(&id) {
                Some(added) if added.special => Vec::new(),
                Some(_) => text.into_bytes(),
                None => text
                    .chars()
                    .map(|c| byte_of.get(&c).copied())
                    .collect::<Option<_>>()
                    .ok_or_else(|| format!("a tokenizer that is not byte-level (token '{text}')"))?,
            });
        }
        let tokenizer = Self { inner, bytes, beginning_of_text: bos, end_of_text: eos };
        tokenizer.check_round_trip()?;
        Ok(tokenizer)
    }

    /// A tokenizer that changes text (by lower-casing, say) cannot serve: what it stores and quotes would not be the text.
    fn check_round_trip(&self) -> Result<(), String> {
        let sample = " Ünïcode  and\ttabs,\r\n<|x|> CASE 12345 \u{1F980} e\u{301} ﬁ\n\n";
        let tokens = self.encode(sample).map_err(|e| e.to_string())?;
        if self.decode(&tokens) == sample { Ok(()) } else { Err("a tokenizer that changes the text".into()) }
    }

    /// The `tokenizers` object, for saving.
    pub fn inner(&self) -> &tokenizers::Tokenizer {
        &self.inner
    }
}

impl Tokenizer for ByteLevelTokenizer {
    fn encode(&self, text: &str) -> Result<Vec<TokenId>, TokenizerError> {
        let encoding = self.inner.encode_fast(text, false).map_err(|e| TokenizerError(e.to_string()))?;
        Ok(encoding.get_ids().to_vec())
    }

    fn bytes(&self, token: TokenId) -> &[u8] {
        self.bytes.get(token as usize).map_or(&[], Vec::as_slice)
    }

    fn beginning_of_text(&self) -> Option<TokenId> {
        self.beginning_of_text
    }

    fn end_of_text(&self) -> &[TokenId] {
        &self.end_of_text
    }

    fn vocab_size(&self) -> usize {
        self.bytes.len()
    }
}
