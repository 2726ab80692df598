//! Why something was refused.

use silo_core::{
    ContentHash, InvalidId, ModelError, SearchError, SourceId, Tier, TokenizerError, UnknownLicence, UnknownName,
};
use silo_log::LogError;
use silo_store::StoreError;

use crate::optout::{KeptOut, Refusal};
use crate::signals::SignalKind;

/// Why something was refused.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages document the variants and their fields")]
pub enum GovernError {
    #[error(transparent)]
    Id(#[from] InvalidId),
    #[error(transparent)]
    Licence(#[from] UnknownLicence),
    #[error(
        "the source is declared as {declared}, but its licence '{licence}' makes it {by_licence}; a declaration may be more \
             restrictive than the licence, never less"
    )]
    TierTooOpen { declared: Tier, licence: String, by_licence: Tier },
    #[error("{field} is missing; {rule}")]
    Missing { field: &'static str, rule: &'static str },
    #[error("{field} has {bytes} bytes; it may have at most {limit} bytes")]
    Long { field: &'static str, bytes: usize, limit: usize },
    #[error("document {uri}: {reason}")]
    Document { uri: String, reason: String },
    #[error("these documents are kept out by opt-outs, leave them out: {}", crate::optout::some(found, *in_full))]
    KeptOut { found: Vec<KeptOut>, in_full: bool },
    #[error("the source '{source_id}' takes no documents: all of it is the subject of opt-out {optout}")]
    Closed { source_id: SourceId, optout: u64 },
    #[error("opt-out {id}: {refusal}")]
    OptOutStep { id: u64, refusal: Refusal },
    #[error("opt-out {id} concerns sources that are not within the caller's limits: somebody else decides it")]
    BeyondScope { id: u64 },
    #[error("document {document} of the source '{source_id}' is not part of opt-out {id}")]
    NotOfOptOut { id: u64, source_id: SourceId, document: ContentHash },
    #[error("documents can be spared only by a decision that grants the request")]
    SpareWithoutUphold,
    #[error(
        "the passage has {got} words, the least is {least} (optout.min_passage_words): fewer stand in too many texts"
    )]
    ShortPassage { got: usize, least: usize },
    #[error("the file of kind {kind} says nothing that can be read: {reason}")]
    Signal { kind: SignalKind, reason: String },
    #[error("the term begins at {starts} and ends at {ends} (milliseconds since 1970): it must begin before it ends")]
    Term { starts: i64, ends: i64 },
    #[error("{what} is {got}, the limit is {limit} ({setting})")]
    Limit { what: &'static str, got: usize, limit: usize, setting: &'static str },
    #[error("the store changed {tries} times while it was looked into; try again")]
    Changing { tries: usize },
    #[error("there is no answer '{0}': it is not kept any more, or somebody else got it")]
    UnknownAnswer(String),
    #[error(transparent)]
    Threads(#[from] rayon::ThreadPoolBuildError),
    #[error("the server has no folder for backups; name one as govern.backups in its configuration")]
    NoBackups,
    #[error(
        "the server has no key to sign receipts with; make one with `silo key create` and name it as govern.signing_key in its \
             configuration"
    )]
    NoKey,
    #[error("{limit} statements about this source were signed in this hour; ask again in the next one")]
    TooManyStatements { limit: u32 },
    #[error("statements are signed of hours that are over, and none of these is")]
    HourNotOver,
    #[error("answers of these hours are still looked through for runs of words; ask again in a moment")]
    AnswersWait,
    #[error("there is no receipt of change {removal}: {reason}")]
    NoReceipt { removal: u64, reason: &'static str },
    #[error(
        "the log of changes is not the one that was signed at {size} entries: entries were changed or are missing; restore the \
             store from a backup"
    )]
    LogAltered { size: u64 },
    #[error("entry or size {got} is beyond the end of the log, which has {size} entries")]
    LogEnd { got: u64, size: u64 },
    #[error(transparent)]
    Log(#[from] LogError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    UnknownName(#[from] UnknownName),
    #[error(transparent)]
    Model(#[from] ModelError),
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    #[error(transparent)]
    Search(#[from] SearchError),
}
