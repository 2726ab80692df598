//! What the engine answers.

use std::sync::Arc;

use silo_core::{KnnParameters, ShardMask, Snapshot, SnapshotProvider, SourceId, TokenId};

use crate::{ContextParameters, Credit, EngineError, LeftOut, Mode, TokenCredit};

/// What of the store a request sees: nothing, where it asks the model alone.
#[derive(Debug)]
pub struct View {
    /// The store at the pinned epoch.
    pub snapshot: Arc<Snapshot>,
    /// The shards that the request's mode may consult.
    pub mask: ShardMask,
}

impl View {
    /// Whether all of it is still in the store.
    pub fn is_live(&self, store: &dyn SnapshotProvider) -> bool {
        self.mask.is_empty() || store.is_live(&self.snapshot, &self.mask)
    }
}

/// One message of a stream.
#[derive(Debug)]
pub enum Event {
    /// A token, and what it was made from.
    Token(TokenEvent, Arc<View>),
    /// The end of a text.
    Finished(Box<Finished>),
    /// The request failed.
    Failed(EngineError),
}

/// A token.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenEvent {
    /// The token.
    pub token: TokenId,
    /// Text that became certain with it: whole characters, and nothing that may still become a stop string.
    pub text: String,
    /// log p of it in the mixture, before penalties and temperature.
    pub log_probability: f64,
    /// The most probable tokens there, with their log p.
    pub alternatives: Vec<(TokenId, f64)>,
    /// Shares in p of the token.
    pub credit: TokenCredit,
    /// What it would be without each passage, if asked for.
    pub left_out: Vec<LeftOut>,
}

impl PartialEq for View {
    fn eq(&self, other: &Self) -> bool {
        self.snapshot == other.snapshot && self.mask == other.mask
    }
}

/// Why a text ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// `max_new_tokens` was reached.
    Length,
    /// A stop string came up.
    Stop,
    /// The model ended the text.
    EndOfText,
    /// The model's window is full.
    ContextFull,
    /// `time_limit` passed.
    TimeLimit,
    /// Something that the request may see was removed.
    SourceRemoved,
    /// Whatever came next would have been too long a run of a source that may not be reproduced.
    VerbatimLimit,
}

/// What a request used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[allow(missing_docs, reason = "the fields say what they count")]
pub struct Usage {
    pub prompt_tokens: u64,
    pub new_tokens: u64,
    pub neighbor_searches: u64,
    pub passage_searches: u64,
    /// Tokens that were drawn and did not leave, since they would have completed too long a run of a source.
    pub refused_tokens: u64,
}

/// The parameters that were in force at the end.
#[derive(Debug, Clone, PartialEq)]
pub struct InForce {
    /// The mode.
    pub mode: Mode,
    /// Those of the neighbours.
    pub knn: KnnParameters,
    /// Those of the passages.
    pub context: ContextParameters,
    /// Greatest part of the neighbours' weight that one source had at a token.
    pub influence_cap: f64,
}

/// The end of a text.
#[derive(Debug, Clone, PartialEq)]
pub struct Finished {
    /// Why.
    pub reason: FinishReason,
    /// Text that was held back as the possible start of a stop string.
    pub text: String,
    /// What was used.
    pub usage: Usage,
    /// What of the store it was made from (after a re-pin: the last one).
    pub view: Arc<View>,
    /// The parameters in force.
    pub in_force: InForce,
    /// Who made it: every token that was drawn, those that were held back because of a removal too.
    pub credit: Credit,
    /// Whether something that it was made from was removed meanwhile, and it went on without it.
    pub repinned: bool,
    /// Sources whose passages stood before the text at some time. Their part in the model's share is not known.
    pub context_sources: Vec<SourceId>,
}
