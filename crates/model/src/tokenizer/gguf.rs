//! The tokenizer inside a GGUF file: a byte-level BPE vocabulary, and the name of the way in which text is cut into words.

use ahash::AHashMap;
use silo_core::TokenId;
use tokenizers::models::bpe::BPE;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::tokenizer::SplitDelimiterBehavior;
use tokenizers::{AddedToken, Tokenizer};

/// `tokenizer.ggml.*`.
pub(crate) struct GgufVocabulary {
    pub(crate) tokens: Vec<String>,
    /// llama.cpp's token types.
    pub(crate) kinds: Vec<i32>,
    pub(crate) merges: Vec<String>,
    /// llama.cpp's name of the pre-tokenizer.
    pub(crate) pre: String,
    pub(crate) beginning_of_text: Option<TokenId>,
    pub(crate) end_of_text: Vec<TokenId>,
}

/// `LLAMA_TOKEN_TYPE_CONTROL`: a special token.
const CONTROL: i32 = 3;
/// `LLAMA_TOKEN_TYPE_USER_DEFINED`: added, but plain text.
const USER_DEFINED: i32 = 4;

const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

impl GgufVocabulary {
    /// Builds the tokenizer; the error says what of it is not supported.
    pub(crate) fn build(self) -> Result<Tokenizer, String> {
        let merges = self.merges.iter().map(|m| {
            let (a, b) = m.split_once(' ').ok_or_else(|| format!("the merge '{m}'"))?;
            Ok((a.to_owned(), b.to_owned()))
        });
        let merges = merges.collect::<Result<Vec<_>, String>>()?;
        let vocab: AHashMap<String, TokenId> = self.tokens.iter().cloned().zip(0..).collect();
        let model = BPE::builder().vocab_and_merges(vocab, merges).build().map_err(|e| format!("its merges ({e})"))?;
        let mut tokenizer = Tokenizer::new(model);
        tokenizer.with_pre_tokenizer(Some(pre_tokenizer(&self.pre)?));
        for (token, kind) in self.tokens.iter().zip(&self.kinds) {
            if matches!(*kind, CONTROL | USER_DEFINED) {
                let added = AddedToken::from(token.clone(), *kind == CONTROL);
                let _ = tokenizer.add_tokens([added]);
            }
        }
        Ok(tokenizer)
    }
}

fn pre_tokenizer(name: &str) -> Result<PreTokenizerWrapper, String> {
    let split = |pattern: &str| -> Result<PreTokenizerWrapper, String> {
        let split = Split::new(SplitPattern::Regex(pattern.into()), SplitDelimiterBehavior::Isolated, false);
        let parts = vec![split.map_err(|e| e.to_string())?.into(), ByteLevel::new(false, false, false).into()];
        Ok(Sequence::new(parts).into())
    };
    let gpt2 = ByteLevel::new(false, false, true);
    match name {
        "gpt-2" | "gpt2" | "default" => Ok(gpt2.into()),
        "smollm" | "starcoder" | "refact" | "command-r" => {
            Ok(Sequence::new(vec![Digits::new(true).into(), gpt2.into()]).into())
        }
        "llama-bpe" | "llama3" | "llama-v3" => split(LLAMA3),
        "qwen2" => split(QWEN2),
        other => Err(format!("the pre-tokenizer '{other}'")),
    }
}
