//! What can go wrong while a corpus is built.

use std::path::{Path, PathBuf};

/// What can go wrong while a corpus is built.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages document the variants and their fields")]
pub enum CorpusError {
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
    #[error("the declaration {} is refused: {reason}", path.display())]
    Declaration { path: PathBuf, reason: String },
    #[error("the package '{package}' could not be fetched: `{command}` said: {reason}")]
    Fetch { package: String, command: String, reason: String },
    #[error("the package file {} cannot be unpacked: {reason}", path.display())]
    Unpack { path: PathBuf, reason: String },
    #[error("{}, line {line}: {reason}", path.display())]
    Line { path: PathBuf, line: usize, reason: String },
    #[error("the source '{name}' gave no document: no file matched {patterns:?}")]
    NoDocument { name: String, patterns: Vec<String> },
    #[error(
        "the licence gate is shut: {n} documents may not be trained on. The first are:\n{list}\nLeave them out, or correct their \
             source's declaration if it is wrong"
    )]
    Gate { n: usize, list: String },
    #[error("there is no corpus at {}; build one with `silo corpus build`", path.display())]
    NoCorpus { path: PathBuf },
    #[error("{} is damaged ({reason}); delete the directory, and build the corpus again", path.display())]
    Report { path: PathBuf, reason: String },
    #[error(
        "{} has other texts than the corpus's report says: a build was stopped, or the file was changed; build the corpus again",
        path.display()
    )]
    NotAsBuilt { path: PathBuf },
    #[error(
        "the corpus at {} has no '{name}', which is declared: how much of neutral sources is governed cannot be told without it; build the corpus \
         from all declarations",
        path.display()
    )]
    NotWhole { path: PathBuf, name: String },
    #[error(
        "the corpus at {} holds {others} too, with which the sources of this build must be compared for repeated text; build them as well, give another \
         --corpus, or delete the directory if they are to go",
        path.display()
    )]
    HoldsOthers { path: PathBuf, others: String },
    #[error(
        "{percent:.2} % of {what} stand word for word in restricted sources (limit: {limit:.2} %), and the role of '{name}' is neutral: whatever its \
         licence says, the text is others'; leave it out by the importer's patterns, take the source out of the declarations, or make it a domain"
    )]
    Governed { what: String, name: String, percent: f64, limit: f64 },
    #[error(
        "{uri} of '{name}', whose role is neutral, has the licence '{licence}', which is not open; leave it out by the importer's patterns, or \
         correct its licence by an override if it is wrong"
    )]
    NotOpen { name: String, uri: String, licence: String },
}

impl CorpusError {
    pub(crate) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self + '_ {
        move |source| Self::Io { path: path.to_owned(), source }
    }
}
