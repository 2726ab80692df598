//! The tokenizer inside a GGUF file: a byte-level BPE vocabulary, and the name of the way in which text is cut into words.

use ahash::AHashMap;
use silo_core::TokenId;
use tokenizers::models::bpe::BPE;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
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

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Ways to cut text into words, of which each of llama.cpp's names means one.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Words {
    /// Of files without a name, or with "default".
    Unnamed,
    Gpt2,
    /// The same, each digit apart.
    Digits,
    /// Of Llama 3's own vocabulary: a word that is a token is that token, whatever merges say, and texts begin with a token of their own unless the
    /// file says otherwise.
    Llama3,
    /// Cut in the same way, and nothing else.
    LikeLlama3,
    Qwen2,
    DeepSeekCoder,
}

impl Words {
    /// As llama.cpp's `llama_vocab::impl::load` and `llm_tokenizer_bpe` have them, of the names that most files of the architecture "llama" have.
    fn of(name: &str) -> Option<Self> {
        Some(match name {
            "default" => Self::Unnamed,
            "gpt-2" | "mellum" | "trillion" => Self::Gpt2,
            "smollm" | "starcoder" | "refact" | "command-r" | "minerva-7b" => Self::Digits,
            "llama-bpe" | "llama3" | "llama-v3" | "falcon3" | "pixtral" | "midm-2.0" => Self::Llama3,
            "smaug-bpe" => Self::LikeLlama3,
            "qwen2" | "deepseek-r1-qwen" | "megrez" => Self::Qwen2,
            "deepseek-coder" => Self::DeepSeekCoder,
            _ => return None,
        })
    }

    /// Each pattern cuts what the ones before it have left whole, and what lies between its matches is kept.
    fn patterns(self) -> &'static [&'static str] {
        match self {
            Self::Unnamed => &[r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"],
            Self::Gpt2 => &[GPT2],
            Self::Digits => &[r"\p{N}", GPT2],
            Self::Llama3 | Self::LikeLlama3 => &[LLAMA3],
            Self::Qwen2 => &[QWEN2],
            Self::DeepSeekCoder => &[r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", r"\p{N}"],
        }
    }

    fn pre_tokenizer(self) -> Result<PreTokenizerWrapper, String> {
        let split = |pattern: &&str| {
            Split::new(SplitPattern::Regex((*pattern).into()), SplitDelimiterBehavior::Isolated, false)
                .map(PreTokenizerWrapper::from)
                .map_err(|e| e.to_string())
        };
        let mut parts = self.patterns().iter().map(split).collect::<Result<Vec<_>, String>>()?;
        parts.push(ByteLevel::new(false, false, false).into());
        Ok(Sequence::new(parts).into())
    }
}

impl GgufVocabulary {
    /// Whether texts begin with a token of their own where the file does not say it.
    pub(crate) fn begins_texts(pre: &str) -> bool {
        Words::of(pre) == Some(Words::Llama3)
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
        let model = BPE::builder().vocab_and_merges(vocab, merges).ignore_merges(words == Words::Llama3);
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

    /// A vocabulary of bytes, some pairs of characters, and one word that no merges lead to.
    fn tokens(pre: &str, text: &str) -> Vec<String> {
        let bytes = ByteLevel::alphabet().into_iter().map(String::from);
        let merges = ["1 2", "3 4", "' T", "Ċ Ċ", "Ġ a", "( a", "Ġ 1"].map(str::to_owned).to_vec();
        let pairs = merges.iter().map(|merge| merge.replace(' ', ""));
        let tokens: Vec<String> = bytes.chain(pairs).chain(["xyz".to_owned()]).collect();
        let kinds = vec![1; tokens.len()];
        let pre = pre.to_owned();
        let vocabulary =
            GgufVocabulary { tokens, kinds, merges, pre, beginning_of_text: None, end_of_text: Vec::new() };
        vocabulary.build().unwrap().encode(text, false).unwrap().get_tokens().to_vec()
    }

    /// What may not be merged was cut.
    #[test]
    fn words_are_cut_as_each_name_says() {
        let cuts = |pre: &str| {
            // Digits by three; each apart; an upper-case contraction; line ends; a bracket and its letter; a space and its letter or digit.
            ["1234", "12", "'T", "x\n\ny", "(a", " a", " 1"].map(|text| tokens(pre, text).len())
        };
        assert_eq!(cuts("gpt-2"), [2, 1, 2, 4, 2, 1, 1]);
        assert_eq!(cuts("smollm"), [4, 2, 2, 4, 2, 1, 2]);
        assert_eq!(cuts("llama-bpe"), [3, 1, 1, 3, 1, 1, 2]);
        assert_eq!(cuts("qwen2"), [4, 2, 1, 3, 1, 1, 2]);
        assert_eq!(cuts("deepseek-coder"), [4, 2, 2, 4, 2, 1, 2]);
        assert_eq!(cuts("default"), [3, 1, 2, 4, 2, 1, 2]);
        assert!(Words::of("no such name").is_none());
    }

    #[test]
    fn a_word_that_is_a_token_of_llama_3_needs_no_merges() {
        for (pre, whole) in [("llama-bpe", true), ("pixtral", true), ("smaug-bpe", false), ("gpt-2", false)] {
            assert_eq!(tokens(pre, "xyz").len() == 1, whole, "{pre}");
            assert_eq!(GgufVocabulary::begins_texts(pre), whole, "{pre}");
        }
    }
}
