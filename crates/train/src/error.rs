//! What can go wrong in a run.

use std::path::{Path, PathBuf};

/// What can go wrong in a run.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages document the variants and their fields")]
pub enum TrainError {
    #[error("the configuration is refused:\n  - {}", .0.join("\n  - "))]
    Config(Vec<String>),
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
    #[error(transparent)]
    Corpus(#[from] silo_corpus::CorpusError),
    #[error("the corpus at {} has no {what}; build it with `silo corpus build`, or name other sources or tiers", path.display())]
    NoText { path: PathBuf, what: String },
    #[error("the tokenizer: {0}")]
    Tokenizer(String),
    #[error("the checkpoint {} is damaged: {reason}; delete it, and the run goes on from the one before it", path.display())]
    Checkpoint { path: PathBuf, reason: String },
    #[error(
        "{} holds a run with another {what}; give this one another paths.work, or delete that directory to start anew",
        path.display()
    )]
    OtherRun { path: PathBuf, what: &'static str },
    #[error("another process is at work in {}; wait for it, or give this run another paths.work", .0.display())]
    Locked(PathBuf),
    #[error("the loss of step {step} is {loss}: the learning rate is too high, or the text is broken")]
    Diverged { step: u64, loss: f64 },
    #[error("the device failed: {0}")]
    Device(#[from] candle_core::Error),
    #[error(transparent)]
    Save(#[from] silo_model::LoadError),
    #[error("the curve cannot be drawn: {0}")]
    Curve(String),
}

impl TrainError {
    pub(crate) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self + '_ {
        move |source| Self::Io { path: path.to_owned(), source }
    }
}
