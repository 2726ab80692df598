//! Why the engine refused or gave up.

use silo_core::{ModelError, SearchError, TokenizerError, UnknownName};

/// Why the engine refused or gave up.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages document the variants and their fields")]
pub enum EngineError {
    #[error("the request is not valid: {field} is {value}; {rule}")]
    Invalid { field: &'static str, value: String, rule: String },
    #[error(
        "the prompt has {got} tokens, with its beginning; the model's window holds {limit}, and one place must stay free"
    )]
    PromptTooLong { got: usize, limit: usize },
    #[error("all {limit} places are taken; try again in a moment")]
    Overloaded { limit: usize },
    #[error(transparent)]
    UnknownName(#[from] UnknownName),
    #[error("the deadline passed")]
    DeadlineExceeded,
    #[error("the reader took nothing for {seconds} seconds (engine.stalled_reader_seconds)")]
    StalledReader { seconds: u64 },
    #[error("the caller has gone")]
    Cancelled,
    #[error("something that the request may see was removed from the store while it ran")]
    SourceRemoved,
    #[error(transparent)]
    Model(ModelError),
    #[error(transparent)]
    Search(#[from] SearchError),
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    #[error("the engine failed in this step: {0}")]
    Panicked(String),
    #[error("the engine is shutting down")]
    ShuttingDown,
}

/// A step is interrupted when nobody waits for it any more, and for no other reason.
impl From<ModelError> for EngineError {
    fn from(error: ModelError) -> Self {
        match error {
            ModelError::Interrupted => Self::Cancelled,
            other => Self::Model(other),
        }
    }
}
