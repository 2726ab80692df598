//! What the model has read of a text so far: with all its passages, or with one of them left out.

use silo_core::{LanguageModel, Positions, SequenceCache, SequenceStep, StepOutput, TokenId};

/// An input of the model and how far it was read.
pub(crate) struct Reader {
    cache: Box<dyn SequenceCache>,
    /// Its first `cache.len()` tokens have been read.
    input: Vec<TokenId>,
}

impl Reader {
    pub(crate) fn new(model: &dyn LanguageModel) -> Self {
        Self { cache: model.new_cache(), input: Vec::new() }
    }

    /// Reads another input from now on; what is the same at the beginning stays read.
    pub(crate) fn turn_to(&mut self, input: Vec<TokenId>) {
        let same = self.input.iter().zip(&input).take_while(|(a, b)| a == b).count();
        // At least one token must be read to have logits.
        self.cache.truncate(same.min(input.len() - 1));
        self.input = input;
    }

    pub(crate) fn push(&mut self, token: TokenId) {
        self.input.push(token);
    }

    /// Length of the input.
    pub(crate) fn len(&self) -> usize {
        self.input.len()
    }

    /// Tokens of the input that were not read yet.
    pub(crate) fn unread(&self) -> usize {
        self.input.len() - self.cache.len()
    }

    /// Has the model read the last token again, for what it says there was not used.
    pub(crate) fn read_last_again(&mut self) {
        self.cache.truncate(self.cache.len() - 1);
    }

    /// The next `n` tokens as a part of a step.
    pub(crate) fn step(&mut self, n: usize, logits: Positions, keys: Positions) -> SequenceStep<'_> {
        let read = self.cache.len();
        SequenceStep { cache: self.cache.as_mut(), tokens: &self.input[read..read + n], logits, keys }
    }
}

/// Outputs of a step for a text: of its own reader first, then of those that leave a passage out.
pub(crate) type Outputs = Vec<StepOutput>;
