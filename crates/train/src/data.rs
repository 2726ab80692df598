//! Training text as rows of tokens: documents are packed one after the other, and none sees another.

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use silo_core::TokenId;

/// The target of a token whose next one is not to be learnt.
pub(crate) const NO_TARGET: u32 = u32::MAX;

/// Tokens that one pass of the model reads.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Row {
    pub(crate) tokens: Vec<u32>,
    /// The next token of each, or [`NO_TARGET`].
    pub(crate) targets: Vec<u32>,
    /// Position of each within its piece.
    pub(crate) positions: Vec<u32>,
    /// Where in the row each token's piece begins.
    pub(crate) starts: Vec<u32>,
}

impl Row {
    pub(crate) fn n_targets(&self) -> usize {
        self.targets.iter().filter(|t| **t != NO_TARGET).count()
    }

    /// Adds a piece: inputs and what follows each.
    fn push(&mut self, inputs: &[u32], targets: &[u32]) {
        let start = self.tokens.len() as u32;
        self.tokens.extend_from_slice(inputs);
        self.targets.extend_from_slice(targets);
        self.positions.extend(0..inputs.len() as u32);
        self.starts.extend(std::iter::repeat_n(start, inputs.len()));
    }
}

/// Tokens of documents, one after the other.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Documents {
    tokens: Vec<u32>,
    /// End of each document.
    ends: Vec<usize>,
}

impl Documents {
    pub(crate) fn push(&mut self, tokens: &[TokenId]) {
        self.tokens.extend_from_slice(tokens);
        self.ends.push(self.tokens.len());
    }

    pub(crate) fn len(&self) -> usize {
        self.ends.len()
    }

    pub(crate) fn n_tokens(&self) -> usize {
        self.tokens.len()
    }

    fn get(&self, document: usize) -> &[u32] {
        let start = if document == 0 { 0 } else { self.ends[document - 1] };
        &self.tokens[start..self.ends[document]]
    }

    /// The rows of an epoch: documents in an order drawn from `seed` and the epoch, `end_of_text` before and after each, cut where a row
    /// is full; then the rows in an order drawn likewise, for those of a long document would fill whole steps. What is left at the end of the
    /// epoch and fills no row is dropped.
    pub(crate) fn epoch(&self, end_of_text: u32, row_tokens: usize, seed: u64, epoch: u64) -> Vec<Row> {
        let mut order: Vec<usize> = (0..self.len()).collect();
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        random.set_stream(epoch + 1);
        order.shuffle(&mut random);
        let mut rows = self.pack(order.into_iter(), end_of_text, row_tokens, false);
        rows.shuffle(&mut random);
        rows
    }

    /// The rows of documents that a loss is measured on: in their order, the last row padded.
    pub(crate) fn in_order(&self, end_of_text: u32, row_tokens: usize) -> Vec<Row> {
        self.pack(0..self.len(), end_of_text, row_tokens, true)
    }

    fn pack(&self, order: impl Iterator<Item = usize>, end_of_text: u32, row_tokens: usize, pad: bool) -> Vec<Row> {
        let mut rows = Vec::new();
        let mut row = Row::default();
        let mut text = Vec::new();
        for document in order {
            text.clear();
            text.push(end_of_text);
            text.extend_from_slice(self.get(document));
            text.push(end_of_text);
            let mut at = 0;
            while at + 1 < text.len() {
                let n = (text.len() - 1 - at).min(row_tokens - row.tokens.len());
                row.push(&text[at..at + n], &text[at + 1..at + n + 1]);
                at += n;
                if row.tokens.len() == row_tokens {
                    rows.push(std::mem::take(&mut row));
                }
            }
        }
        if pad && !row.tokens.is_empty() {
            let missing = row_tokens - row.tokens.len();
            row.push(&vec![end_of_text; missing], &vec![NO_TARGET; missing]);
            rows.push(row);
        }
        rows
    }
}
