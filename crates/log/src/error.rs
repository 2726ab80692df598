//! What can go wrong.

use std::path::PathBuf;

/// Why something of the log cannot be read, made or believed.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A key is none.
    #[error("this is no key: {0}")]
    Key(String),
    /// A signed note is not well formed, or not signed by a key that was given.
    #[error("the signature does not hold: {0}")]
    Signature(String),
    /// A checkpoint is not well formed.
    #[error("this is no checkpoint of a log: {0}")]
    Checkpoint(String),
    /// A proof does not prove what it should.
    #[error("the proof does not hold: {0}")]
    Proof(String),
    /// A receipt or a statement is not well formed, or contradicts itself.
    #[error("it does not hold: {0}")]
    Receipt(String),
}

impl LogError {
    /// About a file.
    pub fn io(path: &std::path::Path) -> impl FnOnce(std::io::Error) -> Self + '_ {
        move |source| Self::Io { path: path.to_owned(), source }
    }
}
