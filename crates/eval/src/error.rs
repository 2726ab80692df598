//! What can go wrong in an evaluation.

use std::path::{Path, PathBuf};

/// What can go wrong in an evaluation.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages document the variants and their fields")]
pub enum EvalError {
    #[error(transparent)]
    Corpus(#[from] silo_corpus::CorpusError),
    #[error(transparent)]
    Engine(#[from] silo_engine::EngineError),
    #[error(transparent)]
    Store(#[from] silo_store::StoreError),
    #[error(transparent)]
    Tokenizer(#[from] silo_core::TokenizerError),
    #[error("the corpus at {} has no {what}; build it with `silo corpus build`, or name other domains", path.display())]
    NoText { path: PathBuf, what: String },
    #[error(
        "{uri} of '{source_id}' is governed, or text that models learn, and eval.sizes.neutral is set: correct the declaration of its source, and build the corpus again"
    )]
    NotNeutral { source_id: String, uri: String },
    #[error(
        "the role of '{source_id}' is not \"neutral\", and eval.sizes.neutral is set: name sources whose role is \"neutral\""
    )]
    NoNeutralRole { source_id: String },
    #[error(
        "no test text of '{source_id}' is left behind what eval.sizes.passed_over_bytes and passed_over_tokens pass over: lower them"
    )]
    PassedOver { source_id: String },
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
    #[error("the grid has no {0}; name at least one")]
    EmptyGrid(&'static str),
    #[error("eval.overlap: {0}")]
    SenselessOverlap(String),
    #[error("eval.attribution: {0}")]
    SenselessAttribution(String),
    #[error(
        "engine.knn asks for k = {k} and match_tokens = {match_tokens}, and eval.grid for no more than {max_k} and {max_match_tokens}: what a server \
         has without a calibration cannot be scored from so little; raise the grid, or lower engine.knn"
    )]
    NeutralBeyondGrid { k: usize, match_tokens: usize, max_k: usize, max_match_tokens: usize },
    #[error("the grid is refused: {0}")]
    Grid(&'static str),
}

impl EvalError {
    pub(crate) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self + '_ {
        move |source| Self::Io { path: path.to_owned(), source }
    }
}
