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
    #[error("{} does not say which documents are left out: {reason}; it has the SHA-256 of a text per line (`silo optout left-out`)", path.display())]
    LeftOut { path: PathBuf, reason: String },
    #[error("{} declares no source '{name}', so the model card could not give it credit; name the directory of its declaration",
            path.display())]
    Undeclared { path: PathBuf, name: String },
    #[error("start_from: {} cannot be begun with: {reason}", path.display())]
    Start { path: PathBuf, reason: String },
    #[error("the tokenizer: {0}")]
    Tokenizer(String),
    #[error("the checkpoint {} is damaged: {reason}; delete it, and the run goes on from the one before it", path.display())]
    Checkpoint { path: PathBuf, reason: String },
    #[error("{} exists and is no model of ours; name another directory for the model", .0.display())]
    OutputTaken(PathBuf),
    #[error("there is no checkpoint at {}; train first", .0.display())]
    NoCheckpoint(PathBuf),
    #[error("{}, line {line} is no line of a log: the file was changed; restore it, or delete it and lose the curve so far", path.display())]
    Log { path: PathBuf, line: usize },
    #[error(
        "{} holds a run with another {what}; give this one another paths.work, or go on with that one as it was begun",
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
