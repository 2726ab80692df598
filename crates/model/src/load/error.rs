//! Why a model could not be loaded: which file, what is wrong with it, what to do.

use std::path::{Path, PathBuf};

/// Why a model could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A file could not be read.
    #[error("cannot read {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file is not what it should be.
    #[error("{} is damaged or of another format: {reason}; fetch it again, or name a Hugging Face directory or GGUF file",
            path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A model of a kind that this build cannot run.
    #[error("{} cannot be run: {what} is not supported; models of the Llama architecture with a byte-level BPE tokenizer are",
            path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// What is not supported.
        what: String,
    },
    /// A tensor is missing.
    #[error("{} has no tensor '{name}'; the file is incomplete or of another architecture", path.display())]
    MissingTensor {
        /// The file or directory.
        path: PathBuf,
        /// The tensor.
        name: String,
    },
    /// A tensor does not fit the configuration.
    #[error("tensor '{name}' of {} has the shape {got:?}, the configuration asks for {expected:?}", path.display())]
    Shape {
        /// The file or directory.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Its shape.
        got: Vec<usize>,
        /// The shape that the configuration asks for.
        expected: Vec<usize>,
    },
}

impl LoadError {
    pub(crate) fn io(path: &Path, source: std::io::Error) -> Self {
        Self::Io { path: path.to_owned(), source }
    }

    pub(crate) fn format(path: &Path, reason: impl ToString) -> Self {
        Self::Format { path: path.to_owned(), reason: reason.to_string() }
    }

    pub(crate) fn unsupported(path: &Path, what: impl ToString) -> Self {
        Self::Unsupported { path: path.to_owned(), what: what.to_string() }
    }
}
