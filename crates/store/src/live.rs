//! What is live at one epoch. Values are never changed: a change makes a new one and swaps it in.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use silo_core::{ContentHash, Epoch, Permissions, Purpose, ShardId, ShardView, Snapshot, SourceId, merkle};
use silo_vector::{Lists, MergedLists};

use crate::live_shard::LiveShard;
use crate::policy::permitted;
use crate::{Numbers, Shard};

/// The inverted lists of all live shards as one.
pub(crate) struct Merged {
    /// The shard of each slot, by rising numbers. Some may have gone since.
    pub(crate) slots: Vec<ShardId>,
    pub(crate) lists: MergedLists,
}

/// What is live at one epoch.
#[derive(Clone)]
pub(crate) struct Live {
    pub(crate) snapshot: Arc<Snapshot>,
    pub(crate) shards: HashMap<ShardId, LiveShard>,
    /// Whole, but not retrieved from until they are resumed.
    pub(crate) suspended: HashMap<ShardId, LiveShard>,
    /// When something last came back, or changed otherwise than by going, since the store was opened.
    grown: Epoch,
    /// Sources with live documents.
    pub(crate) sources: BTreeMap<SourceId, Arc<SourceState>>,
    pub(crate) key_dim: usize,
    /// With a recipe of inverted lists: their number, and the lists.
    n_lists: Option<usize>,
    pub(crate) merged: Option<Arc<Merged>>,
    /// Live or suspended by the catalog, but not retrieved from: why.
    pub(crate) unavailable: BTreeMap<ShardId, String>,
}

/// Where a document lies.
pub(crate) type Place = (ShardId, u32);

/// The live documents of a source.
#[derive(Clone, Default)]
pub(crate) struct SourceState {
    tree: merkle::DocumentTree,
    /// Documents that several live shards hold, each with its places in the order of the shards.
    pub(crate) copies: BTreeMap<ContentHash, Vec<Place>>,
}

impl SourceState {
    /// Documents of a shard that other shards hold too.
    pub(crate) fn n_copies(&self, shard: ShardId) -> u64 {
        self.copies.values().filter(|places| places.iter().any(|(id, _)| *id == shard)).count() as u64
    }

    /// Adds documents of a shard; `others` finds where the source's other shards hold theirs.
    fn add(&mut self, id: ShardId, documents: &[(ContentHash, u32)], others: impl Fn() -> HashMap<ContentHash, Place>) {
        let hashes: Vec<ContentHash> = documents.iter().map(|d| d.0).collect();
        let (tree, again) = self.tree.with(&hashes);
        self.tree = tree;
        if again.is_empty() {
            return;
        }
        let others = others();
        for hash in again {
            let places = self.copies.entry(hash).or_default();
            if places.is_empty() {
                places.extend(others.get(&hash));
            }
            // It was found in the sorted documents a moment ago.
            places.extend(documents.binary_search_by_key(&hash, |d| d.0).map(|i| (id, documents[i].1)));
            places.sort_unstable();
        }
    }

    fn take(&mut self, id: ShardId, hashes: &[ContentHash]) {
        self.tree = self.tree.without(hashes);
        if self.copies.is_empty() {
            return;
        }
        for hash in hashes {
            if let Some(places) = self.copies.get_mut(hash) {
                places.retain(|(shard, _)| *shard != id);
                if places.len() < 2 {
                    self.copies.remove(hash);
                }
            }
        }
    }
}

impl Live {
    /// What is live when a store is opened. `snapshot` holds the epoch, the sources and the last shard id.
    pub(crate) fn new(
        snapshot: Snapshot,
        shards: HashMap<ShardId, LiveShard>,
        suspended: HashMap<ShardId, LiveShard>,
        unavailable: BTreeMap<ShardId, String>,
        key_dim: usize,
        n_lists: Option<usize>,
    ) -> Self {
        let epoch = snapshot.epoch;
        let (sources, snapshot) = (BTreeMap::new(), Arc::new(snapshot));
        let no_shards = HashMap::new();
        let (grown, merged) = (Epoch(0), None);
        let mut live =
            Self { snapshot, shards: no_shards, suspended, grown, sources, key_dim, n_lists, merged, unavailable };
        let mut shards: Vec<(ShardId, LiveShard)> = shards.into_iter().collect();
        shards.sort_by_key(|(id, _)| *id);
        for (id, shard) in shards {
            live.show(id, shard);
        }
        live.merge_lists();
        live.renew_snapshot(epoch);
        live
    }

    /// Merges the lists of the live shards. Needed when a shard comes or gets other files; one that goes is passed over.
    fn merge_lists(&mut self) {
        let Some(n_lists) = self.n_lists else { return };
        let mut slots: Vec<ShardId> = self.shards.keys().copied().collect();
        slots.sort_unstable();
        let parts: Vec<Option<Lists<'_>>> = slots.iter().map(|id| self.lists_of(*id)).collect();
        let lists = MergedLists::new(n_lists, &parts);
        self.keep_merged(slots, lists);
    }

    fn keep_merged(&mut self, slots: Vec<ShardId>, lists: MergedLists) {
        let copied = slots.iter().zip(0..).filter(|(_, slot)| lists.copies(*slot));
        copied.filter_map(|(id, _)| self.shards.get(id)).for_each(|live| live.shard.let_go_of_codes());
        self.merged = Some(Arc::new(Merged { slots, lists }));
    }

    fn lists_of(&self, id: ShardId) -> Option<Lists<'_>> {
        self.shards.get(&id)?.shard.lists()
    }

    /// Drops from memory what the lists of a shard that has gone left there.
    pub(crate) fn drop_lists_of(&mut self, id: ShardId) {
        if self.merged.as_ref().is_some_and(|merged| merged.slots.binary_search(&id).is_ok()) {
            self.merge_lists_of(id);
        }
    }

    /// Merges the lists anew where only one shard came, or has other files.
    fn merge_lists_of(&mut self, id: ShardId) {
        let Some(merged) = &self.merged else { return self.merge_lists() };
        let mut slots = merged.slots.clone();
        let slot = slots.binary_search(&id).unwrap_or_else(|slot| slot);
        let between = slots.get(slot).is_some_and(|there| *there != id);
        // Slots of shards that have gone are cleared away when they are many.
        if between || slots.len() > 2 * self.shards.len() {
            return self.merge_lists();
        }
        if slot == slots.len() {
            slots.push(id);
        }
        let lists = merged.lists.with(slot as u32, &|slot| self.lists_of(slots[slot as usize]));
        self.keep_merged(slots, lists);
    }

    /// Adds a shard, or puts it in the place of one with the same number.
    pub(crate) fn insert(&mut self, id: ShardId, mut shard: LiveShard, suspended: bool, epoch: Epoch) {
        self.grown = epoch;
        // What a running stream saw of it may be withdrawn: other files do not bring it back.
        let old = self.shards.get(&id).or_else(|| self.suspended.get(&id));
        shard.shrunk = old.map_or(epoch, |old| old.shrunk);
        self.remove(id);
        if suspended {
            self.suspended.insert(id, shard);
        } else {
            self.show(id, shard);
            self.merge_lists_of(id);
        }
        Arc::make_mut(&mut self.snapshot).last_shard = self.snapshot.last_shard.max(id);
    }

    /// Puts other files with the same live documents in the place of a shard's, without those that are gone from them. The shard stays live
    /// or suspended.
    pub(crate) fn replace(&mut self, id: ShardId, shard: &Arc<Shard>, gone: &Numbers) {
        for place in [&mut self.shards, &mut self.suspended] {
            if let Some(old) = place.get_mut(&id) {
                let (left, withheld) = (old.withdrawn().without(gone), old.withheld.clone());
                *old = LiveShard { shrunk: old.shrunk, ..LiveShard::new(shard.clone(), &left, &withheld) };
            }
        }
        if self.shards.contains_key(&id) {
            self.merge_lists_of(id);
        }
    }

    /// Takes a shard away for good.
    pub(crate) fn remove(&mut self, id: ShardId) {
        self.hide(id);
        self.suspended.remove(&id);
        self.unavailable.remove(&id);
    }

    /// Takes documents of a shard away.
    pub(crate) fn withdraw(&mut self, id: ShardId, numbers: &Numbers, epoch: Epoch) {
        self.take(id, epoch, |shard| shard.withdraw(numbers));
    }

    /// Takes documents of a shard out of what is retrieved, and keeps them.
    pub(crate) fn withhold(&mut self, id: ShardId, numbers: &Numbers, epoch: Epoch) {
        self.take(id, epoch, |shard| shard.withhold(numbers));
    }

    fn take(&mut self, id: ShardId, epoch: Epoch, take: impl Fn(&mut LiveShard) -> Vec<ContentHash>) {
        if let Some(shard) = self.suspended.get_mut(&id) {
            take(shard);
            shard.shrunk = epoch;
        }
        let Some(shard) = self.shards.get_mut(&id) else { return };
        let mut hashes = take(shard);
        shard.shrunk = epoch;
        hashes.sort_unstable();
        let source = shard.shard.manifest().source.clone();
        self.change_source(&source, |state| state.take(id, &hashes));
    }

    /// Puts documents of a shard back that were withheld, all but `still`.
    pub(crate) fn release(&mut self, id: ShardId, still: &Numbers, epoch: Epoch) {
        self.grown = epoch;
        let renewed = |old: &LiveShard| {
            let shard = LiveShard::new(old.shard.clone(), &old.withdrawn(), still);
            // Snapshots from before show them, but searches did not find them for a time.
            LiveShard { shrunk: epoch, ..shard }
        };
        if let Some(shard) = self.suspended.get_mut(&id) {
            *shard = renewed(shard);
        }
        if let Some(old) = self.hide(id) {
            self.show(id, renewed(&old));
        }
    }

    /// Changes what a source may be used for. Searches in snapshots from before may find less than these show, or more.
    pub(crate) fn permit(&mut self, id: &SourceId, permissions: Permissions, epoch: Epoch) {
        self.grown = epoch;
        for source in &mut Arc::make_mut(&mut self.snapshot).sources {
            if source.id == *id {
                *source = permitted(source, permissions);
            }
        }
        let shards = self.shards.values_mut().chain(self.suspended.values_mut());
        shards.filter(|s| s.shard.manifest().source == *id).for_each(|s| s.shrunk = epoch);
    }

    /// Whether nothing else can be found than before: all that may have happened is that something went.
    pub(crate) fn only_shrank_since(&self, before: &Self) -> bool {
        self.grown <= before.snapshot.epoch
    }

    /// Whether an entry of a shard's files is still found, in the same files.
    pub(crate) fn shows_as(&self, before: &Self, id: ShardId, row: u32) -> bool {
        let same = |a: &LiveShard, b: &LiveShard| Arc::ptr_eq(&a.shard, &b.shard);
        let hides = |s: &LiveShard| s.hidden.as_ref().is_some_and(|h| h.entries.contains(row as usize));
        before.shards.get(&id).zip(self.shards.get(&id)).is_some_and(|(old, new)| same(old, new) && !hides(new))
    }

    /// What the source of a live shard may be used for now.
    pub(crate) fn allows(&self, id: ShardId, purpose: Purpose) -> bool {
        let found = self.snapshot.shards.binary_search_by_key(&id, |view| view.id);
        found.is_ok_and(|i| self.snapshot.shards[i].source.permissions.allows(purpose))
    }

    /// Takes a shard out of what is retrieved, and keeps it.
    pub(crate) fn suspend(&mut self, id: ShardId) {
        if let Some(shard) = self.hide(id) {
            self.suspended.insert(id, shard);
        }
    }

    /// Puts a suspended shard back.
    pub(crate) fn resume(&mut self, id: ShardId, epoch: Epoch) {
        if let Some(shard) = self.suspended.remove(&id) {
            self.grown = epoch;
            // Snapshots from before show it, but searches did not find it for a time.
            self.show(id, LiveShard { shrunk: epoch, ..shard });
            self.merge_lists_of(id);
        }
    }

    /// Takes a damaged shard out of what is retrieved.
    pub(crate) fn quarantine(&mut self, id: ShardId, reason: String) {
        self.hide(id);
        self.suspended.remove(&id);
        self.unavailable.insert(id, reason);
    }

    /// Whether a shard, live or suspended, still has these files.
    pub(crate) fn has(&self, id: ShardId, files: &Arc<Shard>) -> bool {
        let found = self.shards.get(&id).or_else(|| self.suspended.get(&id));
        found.is_some_and(|live| Arc::ptr_eq(&live.shard, files))
    }

    fn show(&mut self, id: ShardId, shard: LiveShard) {
        let source = shard.shard.manifest().source.clone();
        let mut documents: Vec<(ContentHash, u32)> = shard.documents().map(|(number, hash)| (hash, number)).collect();
        documents.sort_unstable();
        let mut state = self.sources.get(&source).map(|s| (**s).clone()).unwrap_or_default();
        state.add(id, &documents, || {
            let of_source = self.shards.iter().filter(|(_, s)| s.shard.manifest().source == source);
            of_source.flat_map(|(id, s)| s.documents().map(|(number, hash)| (hash, (*id, number)))).collect()
        });
        self.shards.insert(id, shard);
        self.put_source(source, state);
    }

    fn hide(&mut self, id: ShardId) -> Option<LiveShard> {
        let shard = self.shards.remove(&id)?;
        let source = &shard.shard.manifest().source;
        if !self.shards.values().any(|s| s.shard.manifest().source == *source) {
            self.sources.remove(source);
            return Some(shard);
        }
        let mut hashes: Vec<ContentHash> = shard.documents().map(|d| d.1).collect();
        hashes.sort_unstable();
        self.change_source(&source.clone(), |state| state.take(id, &hashes));
        Some(shard)
    }

    fn change_source(&mut self, source: &SourceId, change: impl FnOnce(&mut SourceState)) {
        let mut state = self.sources.get(source).map(|s| (**s).clone()).unwrap_or_default();
        change(&mut state);
        self.put_source(source.clone(), state);
    }

    /// A source without a document is as if it had never been there.
    fn put_source(&mut self, source: SourceId, state: SourceState) {
        match state.tree.root() {
            Some(_) => drop(self.sources.insert(source, Arc::new(state))),
            None => drop(self.sources.remove(&source)),
        }
    }

    /// The sources with the roots of their documents.
    pub(crate) fn source_tree(&self) -> merkle::SourceTree {
        merkle::SourceTree::new(self.sources.iter().filter_map(|(id, state)| Some((id, state.tree.root()?))))
    }

    /// Whether a live shard of a source holds a document.
    pub(crate) fn holds(&self, source: &SourceId, document: &ContentHash) -> bool {
        self.sources.get(source).is_some_and(|state| state.tree.contains(document))
    }

    /// Shows of documents whether they are among those of a source; nothing, if it has none.
    pub(crate) fn prove(&self, source: &SourceId, documents: &[ContentHash]) -> Vec<merkle::ProofStep> {
        self.sources.get(source).map(|state| state.tree.prove(documents)).unwrap_or_default()
    }

    /// Brings the snapshot up to what is live now.
    pub(crate) fn renew_snapshot(&mut self, epoch: Epoch) {
        let declared = &self.snapshot.sources;
        let view = |(id, shard): (&ShardId, &LiveShard)| {
            // The catalog's foreign key says that the source is there; they are sorted.
            let source = declared.binary_search_by(|s| s.id.cmp(&shard.shard.manifest().source)).ok()?;
            Some(shard.view(*id, declared[source].clone()))
        };
        let mut shards: Vec<ShardView> = self.shards.iter().filter_map(view).collect();
        shards.sort_by_key(|v| v.id);
        let root = self.source_tree().root();
        let (sources, last_shard) = (declared.clone(), self.snapshot.last_shard);
        self.snapshot = Arc::new(Snapshot { epoch, root, sources, shards, last_shard });
    }
}
