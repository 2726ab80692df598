//! What receipts are made of: the log of changes, and what the store holds at the moment that it ends.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use silo_core::merkle::{ProofStep, SourceTree};
use silo_core::{ContentHash, Epoch, RootHash, SourceId};

use crate::backup::CATALOG;
use crate::catalog::{Catalog, Moments, RemovalRecord};
use crate::live::Live;
use crate::{Store, StoreError};

/// What the store holds at one epoch, and where its log ends then.
pub struct Contents {
    live: Arc<Live>,
    sources: SourceTree,
    /// Entries of the log of changes.
    pub n_changes: u64,
    /// The time of the newest, in milliseconds since 1970.
    pub last_change_at_unix_ms: i64,
}

impl Contents {
    /// The epoch.
    pub fn epoch(&self) -> Epoch {
        self.live.snapshot.epoch
    }

    /// Root of what can be retrieved.
    pub fn root(&self) -> RootHash {
        self.live.snapshot.root
    }

    /// Whether a live shard of a source holds a document.
    pub fn holds(&self, source: &SourceId, document: &ContentHash) -> bool {
        self.live.holds(source, document)
    }

    /// Shows that documents are not in it: where their source stands, and if it is there, where they would.
    pub fn prove(&self, source: &SourceId, documents: &[ContentHash]) -> [Vec<ProofStep>; 2] {
        [self.sources.prove(source), self.live.prove(source, documents)]
    }
}

impl Store {
    /// Its directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Its id, which its backups share.
    pub fn id(&self) -> Result<String, StoreError> {
        self.catalog.store_id()
    }

    /// Id of its log of changes: another one after a restore.
    pub fn log_id(&self) -> Result<String, StoreError> {
        self.catalog.log_id()
    }

    /// So many entries of the log of changes from this one on, as they were written.
    pub fn changes(&self, from: u64, at_most: u64) -> Result<Vec<String>, StoreError> {
        self.catalog.changes(from, at_most)
    }

    /// What the store holds now.
    pub fn contents(&self) -> Result<Contents, StoreError> {
        let (live, n_changes, last_change_at_unix_ms) = {
            let _change = self.change();
            self.catalog.settle()?;
            (self.live().clone(), self.catalog.n_changes()?, self.catalog.last_change_at()?)
        };
        Ok(Contents { sources: live.source_tree(), live, n_changes, last_change_at_unix_ms })
    }

    /// Where the log of changes speaks of a withdrawal; `None` if it began later.
    pub fn moments(&self, removal: u64) -> Result<Option<Moments>, StoreError> {
        self.catalog.moments(removal)
    }

    /// An entry of the log of removals.
    pub fn removal(&self, id: u64) -> Result<Option<RemovalRecord>, StoreError> {
        self.catalog.removal(id)
    }

    /// The documents that left their sources by a withdrawal, source by source, sorted.
    pub fn left_by(&self, removal: &RemovalRecord) -> Result<BTreeMap<SourceId, Vec<ContentHash>>, StoreError> {
        self.catalog.left_by(removal)
    }
}

/// The log of changes of a store that is not in use, for looking.
pub struct ChangeLog {
    catalog: Catalog,
}

impl ChangeLog {
    /// That of the store at `root`.
    pub fn open(root: &Path) -> Result<Self, StoreError> {
        Ok(Self { catalog: Catalog::open_read_only(&root.join(CATALOG))? })
    }

    /// Its id.
    pub fn id(&self) -> Result<String, StoreError> {
        self.catalog.log_id()
    }

    /// So many entries from this one on, as they are.
    pub fn entries(&self, from: u64, at_most: u64) -> Result<Vec<String>, StoreError> {
        self.catalog.changes(from, at_most)
    }
}
