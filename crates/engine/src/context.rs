//! Retrieve-in-context: which passages stand before a text, and what the model then reads.

use silo_core::{Datastore, Passage, PassageQuery, SearchError, ShardMask, Snapshot, TokenId, Tokenizer};

use crate::ContextParameters;

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

/// What the model reads: the beginning of text, the passages (best last, next to the text), a line break after each, and as much
/// of the text's end as fits. `room` tokens of the window stay free. Passages get at most half of the window, so that the text
/// always has the other half.
pub(crate) fn input(
    tokenizer: &dyn Tokenizer,
    passages: &[Passage],
    text: &[TokenId],
    parameters: &ContextParameters,
    window: usize,
    room: usize,
) -> Vec<TokenId> {
    let mut out: Vec<TokenId> = tokenizer.beginning_of_text().into_iter().collect();
    let line_break = tokenizer.encode("\n\n").unwrap_or_default();
    let budget = window / 2;
    let mut kept: Vec<&[TokenId]> = Vec::new();
    let mut used = 0;
    for passage in passages {
        let tokens = &passage.tokens[..passage.tokens.len().min(parameters.max_passage_tokens)];
        if used + tokens.len() + line_break.len() > budget {
            break;
        }
        used += tokens.len() + line_break.len();
        kept.push(tokens);
    }
    for tokens in kept.into_iter().rev() {
        out.extend_from_slice(tokens);
        out.extend_from_slice(&line_break);
    }
    let left = window.saturating_sub(out.len() + room);
    out.extend_from_slice(&text[text.len().saturating_sub(left)..]);
    out
}
