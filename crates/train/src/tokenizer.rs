//! A byte-level BPE tokenizer (Sennrich et al. 2016, Radford et al. 2019), trained on the training text and on nothing else.

use silo_core::TokenId;
use tokenizers::models::bpe::{BPE, BpeTrainerBuilder};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, NormalizerWrapper, PostProcessorWrapper, Tokenizer, TokenizerBuilder};

use crate::TrainError;

/// Begins and ends every text. Its number is 0, as special tokens come first.
pub(crate) const END_OF_TEXT: TokenId = 0;
/// How it is written.
pub(crate) const END_OF_TEXT_NAME: &str = "<|endoftext|>";
/// Pairs that are rarer than this become no token.
const MIN_FREQUENCY: u64 = 2;

/// Trains a tokenizer; gives its `tokenizer.json`.
pub(crate) fn train<'a>(texts: impl Iterator<Item = &'a str> + Send, vocab_size: usize) -> Result<String, TrainError> {
    let fail = |e: tokenizers::Error| TrainError::Tokenizer(e.to_string());
    // A model without normaliser and prefix space changes no text.
    let byte_level = ByteLevel::new(false, false, true);
    let mut tokenizer = TokenizerBuilder::<BPE, NormalizerWrapper, ByteLevel, PostProcessorWrapper, ByteLevel>::new()
        .with_model(BPE::default())
        .with_pre_tokenizer(Some(byte_level))
        .with_decoder(Some(byte_level))
        .build()
        .map_err(fail)?;
    let mut trainer = BpeTrainerBuilder::new()
        .show_progress(false)
        .vocab_size(vocab_size)
        .min_frequency(MIN_FREQUENCY)
        .special_tokens(vec![AddedToken::from(END_OF_TEXT_NAME, true)])
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .build();
    tokenizer.train(&mut trainer, texts).map_err(fail)?;
    Tokenizer::from(tokenizer).to_string(true).map_err(fail)
}
