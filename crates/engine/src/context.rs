//! Retrieve-in-context: which passages stand before a text, and what the model then reads.

use std::ops::Range;

use silo_core::{Datastore, Passage, PassageQuery, SearchError, ShardMask, Snapshot, TokenId, Tokenizer};

use crate::{ContextParameters, PassageId};

/// The best passages for the end of `text`, best first.
pub(crate) fn retrieve(
    store: &dyn Datastore,
    tokenizer: &dyn Tokenizer,
    snapshot: &Snapshot,
    mask: &ShardMask,
    text: &[TokenId],
    parameters: &ContextParameters,
) -> Result<Vec<Passage>, SearchError> {
    let from = text.len().saturating_sub(parameters.query_tokens);
    let query = tokenizer.decode(&text[from..]);
    if query.trim().is_empty() || mask.is_empty() {
        return Ok(Vec::new());
    }
    store.passages(&PassageQuery { snapshot, mask, text: &query, k: parameters.passages })
}

/// What the model reads, and which passages stand in it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Layout {
    pub(crate) tokens: Vec<TokenId>,
    /// Passages that had room, and where they stand with their line breaks.
    pub(crate) passages: Vec<(PassageId, Range<usize>)>,
}

impl Layout {
    /// The same without one of its passages.
    pub(crate) fn without(&self, passage: usize) -> Vec<TokenId> {
        let range = &self.passages[passage].1;
        self.tokens[..range.start].iter().chain(&self.tokens[range.end..]).copied().collect()
    }
}

/// What the model reads: the beginning of text, the passages (best last, next to the text), a line break after each, and as much
/// of the text's end as fits. `room` tokens of the window stay free. Passages get at most half of the window, so that the text
/// always has the other half.
pub(crate) fn lay_out(
    (tokenizer, snapshot): (&dyn Tokenizer, &Snapshot),
    passages: &[Passage],
    text: &[TokenId],
    parameters: &ContextParameters,
    window: usize,
    room: usize,
) -> Layout {
    let mut out = Layout { tokens: tokenizer.beginning_of_text().into_iter().collect(), passages: Vec::new() };
    let line_break = tokenizer.encode("\n\n").unwrap_or_default();
    let budget = window / 2;
    let mut kept: Vec<(&Passage, &[TokenId])> = Vec::new();
    let mut used = 0;
    for passage in passages {
        let tokens = &passage.tokens[..passage.tokens.len().min(parameters.max_passage_tokens)];
        if used + tokens.len() + line_break.len() > budget {
            break;
        }
        used += tokens.len() + line_break.len();
        kept.push((passage, tokens));
    }
    for (passage, tokens) in kept.into_iter().rev() {
        let start = out.tokens.len();
        out.tokens.extend_from_slice(tokens);
        out.tokens.extend_from_slice(&line_break);
        out.passages.push((PassageId::of(passage, snapshot), start..out.tokens.len()));
    }
    let left = window.saturating_sub(out.tokens.len() + room);
    out.tokens.extend_from_slice(&text[text.len().saturating_sub(left)..]);
    out
}
