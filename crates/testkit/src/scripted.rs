//! A model and a tokenizer whose answers are plain functions of their input.

use std::any::Any;
use std::sync::atomic::{AtomicBool, Ordering};

use silo_core::{
    ContentHash, KeySite, LanguageModel, Matrix, ModelCard, ModelError, SequenceCache, SequenceStep, StepOutput, Tier,
    TokenId, Tokenizer, TokenizerError,
};

/// A model over bytes and one special token (0, the beginning of text; byte b is token b + 1). Its key and logits at a
/// position are functions of the last two tokens, so that its neighbours can be worked out by hand.
#[derive(Debug)]
pub struct ScriptedModel {
    card: ModelCard,
}

impl ScriptedModel {
    /// Tokens in the vocabulary.
    pub const VOCAB_SIZE: usize = 257;
    /// Length of a key.
    pub const KEY_DIM: usize = 8;

    /// A model with a window of `context_tokens`.
    pub fn new(context_tokens: usize) -> Self {
        let card = ModelCard {
            name: "scripted".into(),
            hash: ContentHash::of(b"scripted"),
            architecture: "scripted".into(),
            vocab_size: Self::VOCAB_SIZE,
            key_dim: Self::KEY_DIM,
            key_site: KeySite::LastFfnInput,
            context_tokens,
            n_parameters: 0,
            training_tiers: Some(vec![Tier::PublicDomain]),
            training_sources: Some(vec!["speeches".parse().expect("a plain name")]),
        };
        Self { card }
    }

    /// The key after the tokens `previous` and `last`.
    pub fn key(previous: TokenId, last: TokenId) -> Vec<f32> {
        let (a, b) = (previous as f32, last as f32);
        (0..Self::KEY_DIM).map(|i| ((i as f32 + 1.0) * (0.37 * b + 0.11 * a)).sin()).collect()
    }

    fn logits(previous: TokenId, last: TokenId) -> Vec<f32> {
        (0..Self::VOCAB_SIZE)
            .map(|y| (y as f32 * 0.7 + last as f32 * 1.3 + previous as f32 * 0.4).sin() * 3.0)
            .collect()
    }
}

#[derive(Default)]
struct ScriptedCache(Vec<TokenId>);

impl SequenceCache for ScriptedCache {
    fn len(&self) -> usize {
        self.0.len()
    }

    fn truncate(&mut self, len: usize) {
        self.0.truncate(len);
    }

    fn as_any_mut(&mut self) -> &mut dyn Any {
        self
    }
}

impl LanguageModel for ScriptedModel {
    fn card(&self) -> &ModelCard {
        &self.card
    }

    fn new_cache(&self) -> Box<dyn SequenceCache> {
        Box::<ScriptedCache>::default()
    }

    fn step(&self, batch: &mut [SequenceStep<'_>], interrupt: &AtomicBool) -> Result<Vec<StepOutput>, ModelError> {
        for step in batch.iter() {
            let got = step.cache.len() + step.tokens.len();
            if step.tokens.is_empty() {
                return Err(ModelError::Misuse("an empty step"));
            }
            if got > self.card.context_tokens {
                return Err(ModelError::ContextOverflow { got, limit: self.card.context_tokens });
            }
            if let Some(&token) = step.tokens.iter().find(|&&t| t as usize >= Self::VOCAB_SIZE) {
                return Err(ModelError::UnknownToken { token, vocab_size: Self::VOCAB_SIZE });
            }
        }
        if interrupt.load(Ordering::Relaxed) {
            return Err(ModelError::Interrupted);
        }
        batch.iter_mut().map(one).collect()
    }
}

fn one(step: &mut SequenceStep<'_>) -> Result<StepOutput, ModelError> {
    let cache = step.cache.as_any_mut().downcast_mut::<ScriptedCache>();
    let cache = cache.ok_or(ModelError::Misuse("a cache of another model"))?;
    let n = step.tokens.len();
    let (first_logits, first_keys) = (step.logits.first(n), step.keys.first(n));
    let mut out = StepOutput {
        logits: Matrix { n_cols: ScriptedModel::VOCAB_SIZE, data: Vec::new() },
        keys: Matrix { n_cols: ScriptedModel::KEY_DIM, data: Vec::new() },
    };
    for (i, &token) in step.tokens.iter().enumerate() {
        let previous = cache.0.last().copied().unwrap_or(0);
        cache.0.push(token);
        if i >= first_logits {
            out.logits.data.extend(ScriptedModel::logits(previous, token));
        }
        if i >= first_keys {
            out.keys.data.extend(ScriptedModel::key(previous, token));
        }
    }
    Ok(out)
}

/// Token b + 1 is byte b; token 0 begins a text.
#[derive(Debug)]
pub struct ByteTokenizer {
    bytes: Vec<[u8; 1]>,
}

impl Default for ByteTokenizer {
    fn default() -> Self {
        Self { bytes: (0..=255).map(|b| [b]).collect() }
    }
}

impl Tokenizer for ByteTokenizer {
    fn encode(&self, text: &str) -> Result<Vec<TokenId>, TokenizerError> {
        Ok(text.bytes().map(|b| TokenId::from(b) + 1).collect())
    }

    fn bytes(&self, token: TokenId) -> &[u8] {
        match token.checked_sub(1).and_then(|b| self.bytes.get(b as usize)) {
            Some(byte) => byte,
            None => &[],
        }
    }

    fn beginning_of_text(&self) -> Option<TokenId> {
        Some(0)
    }

    fn end_of_text(&self) -> &[TokenId] {
        &[0]
    }

    fn vocab_size(&self) -> usize {
        ScriptedModel::VOCAB_SIZE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_doubles_keep_their_contracts() {
        crate::contract::language_model(&ScriptedModel::new(64), 0.0);
        crate::contract::tokenizer(&ByteTokenizer::default());
    }
}
