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

/// Ways to cut text into words, of which each of llama.cpp's names means one.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Words {
    Gpt2,
    /// The same, each digit apart.
    Digits,
    Llama3,
    Qwen2,
}

impl Words {
    /// As llama.cpp's `llama_vocab::impl::load` and `llm_tokenizer_bpe` have them. "default", or no name, is what files written before there were names have.
    fn of(name: &str) -> Option<Self> {
        Some(match name {
            "default" | "gpt-2" | "gpt2" | "phi-2" | "gigachat" | "mellum" | "exaone4" | "mpt" | "olmo" | "jais"
            | "trillion" | "granite-docling" => Self::Gpt2,
            "smollm" | "starcoder" | "refact" | "command-r" | "codeshell" | "exaone" | "minerva-7b" => Self::Digits,
            "llama-bpe" | "llama3" | "llama-v3" | "falcon3" | "pixtral" | "dbrx" | "smaug-bpe" => Self::Llama3,
            "qwen2" | "deepseek-r1-qwen" | "stablelm2" | "megrez" | "hunyuan" => Self::Qwen2,
            _ => return None,
        })
    }

    fn pre_tokenizer(self) -> Result<PreTokenizerWrapper, String> {
        let split = |pattern: &str| -> Result<PreTokenizerWrapper, String> {
            let split = Split::new(SplitPattern::Regex(pattern.into()), SplitDelimiterBehavior::Isolated, false);
            let parts = vec![split.map_err(|e| e.to_string())?.into(), ByteLevel::new(false, false, false).into()];
            Ok(Sequence::new(parts).into())
        };
        let gpt2 = ByteLevel::new(false, false, true);
        match self {
            Self::Gpt2 => Ok(gpt2.into()),
            Self::Digits => Ok(Sequence::new(vec![Digits::new(true).into(), gpt2.into()]).into()),
            Self::Llama3 => split(LLAMA3),
            Self::Qwen2 => split(QWEN2),
        }
    }
}

/// The names that llama.cpp takes for Llama 3's own vocabulary: a word that is a token is that token, whatever merges say, and texts begin with a
/// token of their own unless the file says otherwise.
fn is_llama3_vocabulary(pre: &str) -> bool {
    Words::of(pre) == Some(Words::Llama3) && !matches!(pre, "dbrx" | "smaug-bpe")
}

impl GgufVocabulary {
    /// Whether texts begin with a token of their own where the file does not say it.
    pub(crate) fn begins_texts(pre: &str) -> bool {
        is_llama3_vocabulary(pre)
    }

    /// Builds the tokenizer; the error says what of it is not supported.
    pub(crate) fn build(self) -> Result<Tokenizer, String> {
        let merges = self.merges.iter().map(|m| {
            let (a, b) = m.split_once(' ').ok_or_else(|| format!("the merge '{m}'"))?;
            Ok((a.to_owned(), b.to_owned()))
        });
        let merges = merges.collect::<Result<Vec<_>, String>>()?;
        let vocab: AHashMap<String, TokenId> = self.tokens.iter().cloned().zip(0..).collect();
        let words = Words::of(&self.pre).ok_or_else(|| format!("the pre-tokenizer '{}'", self.pre))?;
        let model = BPE::builder().vocab_and_merges(vocab, merges).ignore_merges(is_llama3_vocabulary(&self.pre));
        let mut tokenizer = Tokenizer::new(model.build().map_err(|e| format!("its merges ({e})"))?);
        tokenizer.with_pre_tokenizer(Some(words.pre_tokenizer()?));
        for (token, kind) in self.tokens.iter().zip(&self.kinds) {
            if matches!(*kind, CONTROL | USER_DEFINED) {
                let added = AddedToken::from(token.clone(), *kind == CONTROL);
                let _ = tokenizer.add_tokens([added]);
            }
        }
        Ok(tokenizer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A vocabulary of bytes, pairs of letters, and one word that no merges lead to.
    fn tokens(pre: &str, text: &str) -> Vec<String> {
        let bytes: Vec<String> = ByteLevel::alphabet().into_iter().map(String::from).collect();
        let made = ["ab", "cd", "12", "xyz"].map(str::to_owned);
        let tokens: Vec<String> = bytes.into_iter().chain(made).collect();
        let kinds = vec![1; tokens.len()];
        let merges = ["a b", "c d", "1 2"].map(str::to_owned).to_vec();
        let pre = pre.to_owned();
        let vocabulary =
            GgufVocabulary { tokens, kinds, merges, pre, beginning_of_text: None, end_of_text: Vec::new() };
        vocabulary.build().unwrap().encode(text, false).unwrap().get_tokens().to_vec()
    }

    #[test]
    fn words_are_cut_as_each_name_says() {
        assert_eq!(tokens("gpt-2", "12abcd"), ["12", "ab", "cd"]);
        assert_eq!(tokens("smollm", "12abcd"), ["1", "2", "ab", "cd"]);
        assert_eq!(tokens("llama-bpe", "12abcd"), ["12", "ab", "cd"]);
        assert_eq!(tokens("qwen2", "12abcd"), ["1", "2", "ab", "cd"]);
    }

    #[test]
    fn a_word_that_is_a_token_of_llama_3_needs_no_merges() {
        assert_eq!(tokens("llama-bpe", "xyz"), ["xyz"]);
        assert_eq!(tokens("dbrx", "xyz"), ["x", "y", "z"]);
        assert_eq!(tokens("gpt-2", "xyz"), ["x", "y", "z"]);
    }
}
