//! What receipts are made of: the log of changes, and what the store holds at the moment that it ends.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use silo_core::merkle::ProofStep;
use silo_core::{ChangeEntry, ContentHash, SourceId};

use crate::catalog::Moments;
use crate::live::Live;
use crate::{Store, StoreError};

/// What the store holds at one epoch, and where its log ends then.
pub struct Contents {
    live: Arc<Live>,
    /// Entries of the log of changes.
    pub n_changes: u64,
    /// The newest entry that says what the store is, and its place; `None` if nothing was ever added.
    pub state: Option<(u64, ChangeEntry)>,
}

impl Contents {
    /// Whether a live shard of a source holds a document.
    pub fn holds(&self, source: &SourceId, document: &ContentHash) -> bool {
        self.live.holds(source, document)
    }

    /// Shows that documents are not in it: where their source stands, and if it is there, where they would.
    pub fn prove(&self, source: &SourceId, documents: &[ContentHash]) -> [Vec<ProofStep>; 2] {
        self.live.prove(source, documents)
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
        let _change = self.change();
        self.catalog.settle()?;
        let (n_changes, state) = (self.catalog.n_changes()?, self.catalog.last_state()?);
        Ok(Contents { live: self.live().clone(), n_changes, state })
    }

    /// Where the log of changes speaks of a withdrawal; `None` if it began later.
    pub fn moments(&self, removal: u64) -> Result<Option<Moments>, StoreError> {
        self.catalog.moments(removal)
    }

    /// The documents that left the store by a withdrawal, source by source, sorted.
    pub fn left_by(&self, removal: u64) -> Result<BTreeMap<SourceId, Vec<ContentHash>>, StoreError> {
        self.catalog.left_by(removal)
    }
}
