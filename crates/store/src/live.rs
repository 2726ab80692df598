//! What is live at one epoch. Values are never changed: a change makes a new one and swaps it in.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use silo_core::{ContentHash, Epoch, ShardId, ShardView, Snapshot, SourceId, merkle};

use crate::Shard;

/// What is live at one epoch.
#[derive(Clone)]
pub(crate) struct Live {
    pub(crate) snapshot: Arc<Snapshot>,
    pub(crate) shards: HashMap<ShardId, Arc<Shard>>,
    /// Sources with live documents.
    pub(crate) sources: BTreeMap<SourceId, Arc<SourceState>>,
    pub(crate) key_dim: usize,
    /// Live by the catalog, but not retrieved from: why.
    pub(crate) unavailable: BTreeMap<ShardId, String>,
}

/// The live documents of a source.
pub(crate) struct SourceState {
    root: merkle::Hash,
    /// Documents that several live shards hold, each with its places in the order of the shards.
    pub(crate) copies: Vec<Vec<(ShardId, u32)>>,
}

impl SourceState {
    /// The state of a source with these live shards; `None` without a document, as if the source had never been there.
    fn new<'a>(shards: impl Iterator<Item = (&'a ShardId, &'a Arc<Shard>)>) -> Option<Arc<Self>> {
        let mut places: BTreeMap<ContentHash, Vec<(ShardId, u32)>> = BTreeMap::new();
        for (id, shard) in shards {
            for (document, hash) in shard.document_hashes().enumerate() {
                places.entry(hash).or_default().push((*id, document as u32));
            }
        }
        let hashes: Vec<ContentHash> = places.keys().copied().collect();
        let mut copies: Vec<Vec<(ShardId, u32)>> = places.into_values().filter(|p| p.len() > 1).collect();
        copies.iter_mut().for_each(|p| p.sort_unstable());
        let state = Self { root: merkle::documents_root(&hashes), copies };
        (!hashes.is_empty()).then(|| Arc::new(state))
    }

    /// Documents of a shard that other shards hold too.
    pub(crate) fn n_copies(&self, shard: ShardId) -> u64 {
        self.copies.iter().filter(|places| places.iter().any(|(id, _)| *id == shard)).count() as u64
    }
}

impl Live {
    /// What is live when a store is opened. `snapshot` holds the epoch, the sources and the last shard id.
    pub(crate) fn new(
        snapshot: Snapshot,
        shards: HashMap<ShardId, Arc<Shard>>,
        unavailable: BTreeMap<ShardId, String>,
        key_dim: usize,
    ) -> Self {
        let epoch = snapshot.epoch;
        let mut live = Self { snapshot: Arc::new(snapshot), shards, sources: BTreeMap::new(), key_dim, unavailable };
        let names: BTreeSet<SourceId> = live.shards.values().map(|s| s.manifest().source.clone()).collect();
        names.iter().for_each(|name| live.renew_source(name));
        live.renew_snapshot(epoch, None);
        live
    }

    /// Adds a shard, or puts it in the place of one with the same number.
    pub(crate) fn insert(&mut self, id: ShardId, shard: Arc<Shard>, epoch: Epoch) {
        let source = shard.manifest().source.clone();
        self.unavailable.remove(&id);
        self.shards.insert(id, shard);
        self.renew_source(&source);
        let newest = self.snapshot.last_shard.max(id);
        self.renew_snapshot(epoch, Some(newest));
    }

    /// Takes a shard away.
    pub(crate) fn remove(&mut self, id: ShardId, source: &SourceId, epoch: Epoch) {
        self.shards.remove(&id);
        self.unavailable.remove(&id);
        self.renew_source(source);
        self.renew_snapshot(epoch, None);
    }

    /// Takes a damaged shard out of what is retrieved; false if it is not live any more: removed, or rebuilt meanwhile.
    pub(crate) fn quarantine(&mut self, id: ShardId, damaged: &Arc<Shard>, reason: String) -> bool {
        if !self.shards.get(&id).is_some_and(|live| Arc::ptr_eq(live, damaged)) {
            return false;
        }
        let Some(shard) = self.shards.remove(&id) else { return false };
        self.unavailable.insert(id, reason);
        self.renew_source(&shard.manifest().source);
        self.renew_snapshot(self.snapshot.epoch, None);
        true
    }

    /// Works out anew what a source holds, after its shards have changed: a change costs what its source costs.
    fn renew_source(&mut self, source: &SourceId) {
        match SourceState::new(self.shards.iter().filter(|(_, s)| s.manifest().source == *source)) {
            Some(state) => drop(self.sources.insert(source.clone(), state)),
            None => drop(self.sources.remove(source)),
        }
    }

    fn renew_snapshot(&mut self, epoch: Epoch, new_shard: Option<ShardId>) {
        let declared = &self.snapshot.sources;
        let view = |(id, shard): (&ShardId, &Arc<Shard>)| {
            let manifest = shard.manifest();
            // The catalog's foreign key says that the source is there.
            let source = declared.iter().find(|s| s.id == manifest.source)?.clone();
            let (n_documents, n_entries, n_passages) = (manifest.n_documents, manifest.n_entries, manifest.n_passages);
            Some(ShardView { id: *id, source, model: manifest.model_hash, n_documents, n_entries, n_passages })
        };
        let mut shards: Vec<ShardView> = self.shards.iter().filter_map(view).collect();
        shards.sort_by_key(|v| v.id);
        let root = merkle::store_root(self.sources.iter().map(|(id, state)| (id, state.root)));
        let (sources, last_shard) = (declared.clone(), new_shard.unwrap_or(self.snapshot.last_shard));
        self.snapshot = Arc::new(Snapshot { epoch, root, sources, shards, last_shard });
    }
}
