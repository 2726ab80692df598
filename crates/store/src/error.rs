//! What can go wrong in the store.

use std::path::{Path, PathBuf};

use silo_core::{ModelError, ShardId, SourceId, TokenizerError};
use silo_lexical::LexicalError;

use crate::ShardState;

/// What can go wrong in the store. Each variant says what, where, and what to do.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages document the variants and their fields")]
pub enum StoreError {
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
    #[error("the store at {} is in use by process {pid}; stop it, or open another store", path.display())]
    Locked { path: PathBuf, pid: String },
    #[error("the catalog at {} failed: {source}", path.display())]
    Catalog { path: PathBuf, source: rusqlite::Error },
    #[error("another process reads the catalog at {}: old pages of it are emptied by the next purge", path.display())]
    CatalogRead { path: PathBuf },
    #[error("{} has the format version {found}, this program reads version {expected}; use the program that wrote it, or \
             rebuild the store", path.display())]
    Version { path: PathBuf, found: u32, expected: u32 },
    #[error("{} is damaged: {reason}; if its text is whole, `silo shard rebuild` makes the shard anew, else remove it and add it again", path.display())]
    Damaged { path: PathBuf, reason: String },
    #[error("there is no source '{0}'; create it first")]
    UnknownSource(SourceId),
    #[error("the source '{0}' exists already")]
    SourceExists(SourceId),
    #[error("there is no shard {0}")]
    UnknownShard(ShardId),
    #[error("shard {0} was removed")]
    ShardRemoved(ShardId),
    #[error("shard {id} is {}", match found { ShardState::Live => "live: it is not suspended", _ => "suspended already" })]
    ShardState { id: ShardId, found: ShardState },
    #[error("the store holds nothing of this; look with `silo shard ls` and `silo source ls`")]
    NothingSelected,
    #[error("the beginning of the URIs is empty; to withdraw all of a source, name the source")]
    EmptyPrefix,
    #[error(
        "the shard was built with the {what} {got}, the store uses {expected}; encode its stored documents \
             again with `silo shard rebuild`, or serve it with those"
    )]
    Incompatible { what: &'static str, got: String, expected: String },
    #[error("shard {0} was changed by someone else meanwhile; look at it, and try again")]
    Changed(ShardId),
    #[error(
        "'{name}' is no name for a backup: use 1 to 63 of a-z, 0-9, '-', '_', '.', starting with a letter or digit"
    )]
    BackupName { name: String },
    #[error("{} exists already; choose another name", path.display())]
    BackupExists { path: PathBuf },
    #[error("{} is not what was written when the backup was made; restore another backup", path.display())]
    BackupDamaged { path: PathBuf },
    #[error("there is no backup '{0}' in the catalog")]
    UnknownBackup(String),
    #[error("the log of removals at {} cannot be used: {reason}", path.display())]
    RemovalLog { path: PathBuf, reason: String },
    #[error(
        "{reason} ({}): it was damaged, or an old copy took its place, and what was withdrawn might come back; restore the store from a \
             backup with the newest log of removals, or delete that file to go on without what is lost", path.display()
    )]
    Head { path: PathBuf, reason: String },
    #[error(
        "the catalog at {} is damaged: its tables are not well formed, or not those that were made; restore the store from a backup with the newest \
             log of removals", path.display()
    )]
    Tables { path: PathBuf },
    #[error("the store at {} has shards but no catalog; restore it from a backup, or delete the directory", path.display())]
    NoCatalog { path: PathBuf },
    #[error("there is no store at {}", path.display())]
    NoStore { path: PathBuf },
    #[error(
        "documents of it must be kept as evidence, by the legal hold of opt-out {0}; they are in quarantine. End that hold first"
    )]
    LegalHold(u64),
    #[error("there is no opt-out {0}")]
    UnknownOptOut(u64),
    #[error("opt-out {0} was changed by someone else meanwhile; look at it, and try again")]
    OptOutChanged(u64),
    #[error("the files of shard {0} are being written anew by another operation; wait for it")]
    Rewriting(ShardId),
    #[error("there is no document to add")]
    Empty,
    #[error("the recipe {} is not usable: {reason}", path.display())]
    Recipe { path: PathBuf, reason: String },
    #[error("the recipe '{recipe}' does not fit the model: {reason}")]
    RecipeForModel { recipe: String, reason: String },
    #[error("the document {uri} cannot be encoded: {source}")]
    Tokenizer { uri: String, source: TokenizerError },
    #[error("the document {uri} cannot be encoded: {source}")]
    Model { uri: String, source: ModelError },
    #[error(transparent)]
    Lexical(#[from] LexicalError),
    #[error("the work was cancelled")]
    Cancelled,
}

impl StoreError {
    /// Whether it came of a full disk, by whichever library: the innermost cause says so.
    pub fn is_disk_full(&self) -> bool {
        let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(self);
        while let Some(error) = cause {
            let io = error.downcast_ref::<std::io::Error>();
            let sqlite = error.downcast_ref::<rusqlite::Error>().and_then(rusqlite::Error::sqlite_error_code);
            if io.is_some_and(|e| e.kind() == std::io::ErrorKind::StorageFull)
                || sqlite == Some(rusqlite::ErrorCode::DiskFull)
                || error.to_string().contains("No space left on device")
            {
                return true;
            }
            cause = error.source();
        }
        false
    }

    pub(crate) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self + '_ {
        move |source| Self::Io { path: path.to_owned(), source }
    }

    pub(crate) fn damaged(path: &Path, reason: impl ToString) -> Self {
        Self::Damaged { path: path.to_owned(), reason: reason.to_string() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_seen_behind_every_library() {
        let full = || std::io::Error::from(std::io::ErrorKind::StorageFull);
        let path = PathBuf::from("x");
        let sqlite = rusqlite::Error::SqliteFailure(rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_FULL), None);
        assert!(StoreError::Io { path: path.clone(), source: full() }.is_disk_full());
        assert!(StoreError::Catalog { path: path.clone(), source: sqlite }.is_disk_full());
        assert!(StoreError::Lexical(LexicalError::Io { path: path.clone(), source: full() }).is_disk_full());
        let other = std::io::Error::from(std::io::ErrorKind::PermissionDenied);
        assert!(!StoreError::Io { path: path.clone(), source: other }.is_disk_full());
        assert!(!StoreError::damaged(&path, "a bit").is_disk_full());
    }
}
