//! Named points between writes: where a crash would leave the most.

/// A point between two writes of the store. Each is passed only after what its name says has happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs, reason = "the names say what happened")]
pub enum Boundary {
    ShardBuilt,
    ShardRenamed,
    ShardPrepared,
    ShardEntered,
    ChangeResolved,
    CatalogCommitted,
    ChangeCommitted,
    FilesWritten,
    FilesRenamed,
    FilesSwitched,
    FilesDeleted,
    /// A part of the rows of a shard, or of the pages that are wiped.
    BatchCommitted,
    DocumentsForgotten,
    LogEmptied,
    PurgeMarked,
    BackupCopied,
    BackupNamed,
    RestoreCopied,
    RestoreReplayed,
    RestoreSwitched,
}

impl Boundary {
    /// All of them.
    pub const ALL: [Self; 20] = [
        Self::ShardBuilt,
        Self::ShardRenamed,
        Self::ShardPrepared,
        Self::ShardEntered,
        Self::ChangeResolved,
        Self::CatalogCommitted,
        Self::ChangeCommitted,
        Self::FilesWritten,
        Self::FilesRenamed,
        Self::FilesSwitched,
        Self::FilesDeleted,
        Self::BatchCommitted,
        Self::DocumentsForgotten,
        Self::LogEmptied,
        Self::PurgeMarked,
        Self::BackupCopied,
        Self::BackupNamed,
        Self::RestoreCopied,
        Self::RestoreReplayed,
        Self::RestoreSwitched,
    ];
}

/// Called at each boundary, with the locks held that are held there: for trying what a crash does.
pub type AtBoundary = dyn Fn(Boundary) + Send + Sync;
