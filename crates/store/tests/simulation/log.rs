//! What the log of changes and receipts must say.

use std::collections::BTreeSet;

use silo_core::{ChangeEntry, ContentHash, Epoch, SnapshotProvider, SourceId};
use silo_store::RemovalRecord;

use super::super::reference::{RefShard, Reference, State};
use super::World;

/// What is in the store, retrieved or not: source and hash of each document.
pub(super) fn held(reference: &Reference) -> BTreeSet<(SourceId, ContentHash)> {
    let shards = reference.shards.values().filter(|s| s.state != State::Removed);
    let documents = |s: &RefShard| {
        let source = s.source.clone();
        let kept = s.docs.iter().filter(|d| !d.withdrawn);
        kept.map(|d| (source.clone(), ContentHash::of(d.text.as_bytes()))).collect::<Vec<_>>()
    };
    shards.flat_map(documents).collect()
}

impl World {
    /// A receipt is of what was in the store before, and is not any more.
    pub(super) fn check_receipt(&self, removal: &RemovalRecord, before: &BTreeSet<(SourceId, ContentHash)>) {
        let left = self.store().left_by(removal).unwrap();
        let left = left.into_iter().flat_map(|(s, all)| all.into_iter().map(move |d| (s.clone(), d)));
        assert_eq!(left.collect::<BTreeSet<_>>(), before - &held(&self.reference), "what a receipt says");
    }

    /// The newest entry of the log of changes that says so says what can be retrieved.
    pub(super) fn check_log(&self) {
        let (snapshot, contents) = (self.store().snapshot(), self.store().contents().unwrap());
        assert_eq!((contents.epoch(), contents.root()), (snapshot.epoch, snapshot.root));
        let state = |position| {
            let text = self.store().changes(position, 1).unwrap().remove(0);
            let entry: ChangeEntry = serde_json::from_str(&text).unwrap();
            entry.change.state().copied()
        };
        let logged = (0..contents.n_changes).rev().find_map(state);
        let logged = logged.map_or((Epoch(0), silo_core::merkle::empty_root()), |state| (state.epoch, state.root));
        assert_eq!(logged, (snapshot.epoch, snapshot.root));
    }
}
