//! Why something was refused.

use silo_core::{InvalidId, ModelError, SearchError, Tier, TokenizerError, UnknownLicence, UnknownName};
use silo_store::StoreError;

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
    #[error("document {uri}: {reason}")]
    Document { uri: String, reason: String },
    #[error("{what} is {got}, the limit is {limit} ({setting})")]
    Limit { what: &'static str, got: usize, limit: usize, setting: &'static str },
    #[error("the store changed {tries} times while it was looked into; try again")]
    Changing { tries: usize },
    #[error("the server has no folder for backups; name one as govern.backups in its configuration")]
    NoBackups,
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
