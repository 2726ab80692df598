//! The store: its directory, what is open, its snapshots.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwap;
use rayon::prelude::*;
use silo_core::{
    Change, ContentHash, Epoch, ModelCard, ShardId, ShardMask, ShardView, Snapshot, SnapshotProvider, Source, SourceId,
    StoreState, Tokenizer, merkle,
};

use crate::backup::{CATALOG, SHARDS};
use crate::boundary::{AtBoundary, Boundary};
use crate::catalog::{BackupRecord, Catalog, RemovalRecord, SILO};
use crate::files::read_added_manifest;
use crate::live::Live;
use crate::live_shard::LiveShard;
use crate::lock::Lock;
use crate::restore::{RESTORED, remove_catalog};
use crate::write::{create_directory, sync_directory};
use crate::{Manifest, Numbers, Recipe, Shard, ShardRecord, ShardState, StoreError, StoredDocument};

/// An open store, bound to one model and recipe.
pub struct Store {
    pub(crate) root: PathBuf,
    card: ModelCard,
    recipe: Recipe,
    tokenizer: Arc<dyn Tokenizer>,
    pub(crate) catalog: Catalog,
    live: ArcSwap<Live>,
    /// Changes happen one after the other; readers never wait for them.
    changes: Mutex<()>,
    /// Held while files are deleted or copied away, so that a backup never misses one; no change of what is retrieved waits for it.
    pub(crate) maintenance: Mutex<()>,
    /// Shards of which files are being written anew, each with the flag that stops it.
    pub(crate) rewrites: Mutex<HashMap<ShardId, Arc<AtomicBool>>>,
    pub(crate) rewrite_ended: Condvar,
    /// Directories that no shard has any more, and that are not deleted yet.
    pub(crate) retired: Mutex<Vec<String>>,
    threads: rayon::ThreadPool,
    at_boundary: Option<Arc<AtBoundary>>,
    _lock: Lock,
}

/// A store in the hands of somebody: every change has the name of who made it in the log of changes.
#[derive(Clone, Copy)]
pub struct By<'a> {
    pub(crate) store: &'a Store,
    pub(crate) actor: &'a str,
}

/// How a store is opened.
#[derive(Clone, Default)]
pub struct StoreOptions {
    /// Threads that search; 0 is one per core.
    pub n_threads: usize,
    /// Rows of the catalog that are changed in one transaction when a shard is entered or its documents are struck out, and eight times the
    /// pages that are wiped in one, so that removals get their turn between. 0 is 2,000.
    pub batch: usize,
    /// Called at each [`Boundary`].
    pub at_boundary: Option<Arc<AtBoundary>>,
}

/// The store at a glance.
#[derive(Debug, Clone, PartialEq)]
pub struct StoreStatus {
    /// The snapshot of new requests.
    pub snapshot: Arc<Snapshot>,
    /// The model that its shards belong to.
    pub model: ContentHash,
    /// The recipe.
    pub recipe: Recipe,
    /// Shards that are in the store but cannot be retrieved from, and why.
    pub unavailable: BTreeMap<ShardId, String>,
    /// Backups that were made of it.
    pub backups: Vec<BackupRecord>,
    /// Withdrawals whose bytes are not gone from all files yet.
    pub n_unpurged: u64,
}

impl Store {
    /// Opens the store at `root`, or makes an empty one. It is bound to a model and a recipe: shards of others stay on disk but
    /// are not retrieved from until they are rebuilt. A damaged shard is left out; the rest serves.
    pub fn open(
        root: &Path,
        card: &ModelCard,
        recipe: Recipe,
        tokenizer: Arc<dyn Tokenizer>,
        options: StoreOptions,
    ) -> Result<Self, StoreError> {
        recipe.check_model(card)?;
        create_directory(&root.join(SHARDS))?;
        create_directory(&root.join("tmp"))?;
        let lock = Lock::take(root)?;
        check_catalog_is_there(root)?;
        remove_catalog(&root.join(RESTORED))?;
        let catalog = Catalog::open_in_force(root, &options)?;
        catalog.empty_log()?;
        catalog.drop_prepared(None)?; // additions that a crash cut off
        if catalog.is_stale()? {
            // While another process reads it is left to the next purge.
            catalog.wipe().or_else(|e| if matches!(e, StoreError::CatalogRead { .. }) { Ok(()) } else { Err(e) })?;
        }
        let records = catalog.shards()?;
        sweep(root, &records)?;
        let threads = rayon::ThreadPoolBuilder::new()
            .num_threads(options.n_threads)
            .thread_name(|i| format!("search-{i}"))
            .build()
            .map_err(|e| StoreError::Io { path: root.to_owned(), source: std::io::Error::other(e) })?;
        let live = threads.install(|| open_all(root, &catalog, &records, card, &recipe))?;
        let store = Self {
            root: root.to_owned(),
            card: card.clone(),
            recipe,
            tokenizer,
            catalog,
            live: ArcSwap::from_pointee(live),
            changes: Mutex::new(()),
            maintenance: Mutex::new(()),
            rewrites: Mutex::default(),
            rewrite_ended: Condvar::new(),
            retired: Mutex::default(),
            threads,
            at_boundary: options.at_boundary,
            _lock: lock,
        };
        store.catalog.note_in_force_anew()?;
        store.note_open()?;
        store.apply_terms()?; // before anything is served
        Ok(store)
    }

    /// Makes an epoch if what can be retrieved is not what the log says.
    fn note_open(&self) -> Result<(), StoreError> {
        let live = self.live().clone();
        let own = (live.snapshot.epoch, live.snapshot.root);
        let logged = self.catalog.last_state()?.map(|state| (state.epoch, state.root));
        if own == logged.unwrap_or((Epoch(0), merkle::empty_root())) {
            return Ok(());
        }
        let after = self.changed(self.catalog.next_epoch()?, |_| ());
        self.catalog.note(SILO, &Change::Open { state: self.state_of(&after) })?;
        self.show(after);
        Ok(())
    }

    /// The store in the hands of somebody who changes it.
    pub fn by<'a>(&'a self, actor: &'a str) -> By<'a> {
        By { store: self, actor }
    }

    pub(crate) fn live(&self) -> arc_swap::Guard<Arc<Live>> {
        self.live.load()
    }

    /// What will be live after a change that makes an epoch. The caller holds the lock of changes.
    pub(crate) fn changed(&self, epoch: Epoch, change: impl FnOnce(&mut Live)) -> Arc<Live> {
        let mut live = (**self.live.load()).clone();
        change(&mut live);
        live.renew_snapshot(epoch);
        Arc::new(live)
    }

    /// Makes it seen. The caller holds the lock of changes.
    pub(crate) fn show(&self, live: Arc<Live>) {
        let before = self.live.swap(live);
        // What only the old one held is thousands of small things after a large change. Nobody need wait for their end.
        self.threads.spawn(move || drop(before));
    }

    /// What the log of changes says of it.
    pub(crate) fn state_of(&self, live: &Live) -> StoreState {
        let (epoch, root) = (live.snapshot.epoch, live.snapshot.root);
        StoreState { epoch, root, model: self.card.hash, recipe: self.recipe.hash() }
    }

    pub(crate) fn threads(&self) -> &rayon::ThreadPool {
        &self.threads
    }

    pub(crate) fn tokenizer(&self) -> &dyn Tokenizer {
        self.tokenizer.as_ref()
    }

    pub(crate) fn at(&self, boundary: Boundary) {
        if let Some(at_boundary) = &self.at_boundary {
            at_boundary(boundary);
        }
    }

    pub(crate) fn directory(&self, name: &str) -> PathBuf {
        self.root.join(SHARDS).join(name)
    }

    /// The recipe that it is bound to.
    pub fn recipe(&self) -> &Recipe {
        &self.recipe
    }

    pub(crate) fn change(&self) -> MutexGuard<'_, ()> {
        unpoisoned(&self.changes)
    }

    /// Checks the keys of all shards, which opening does not, and takes damaged shards out of what is retrieved. Returns their
    /// reasons. Meant for a thread of its own while the store serves.
    pub fn scrub(&self) -> BTreeMap<ShardId, String> {
        let live = self.live.load_full();
        let mut damaged = BTreeMap::new();
        for (id, shard) in live.shards.iter().chain(&live.suspended).map(|(i, s)| (*i, &s.shard)) {
            let Err(error) = shard.verify() else { continue };
            let _change = self.change();
            // It may have been removed or rewritten meanwhile, and its files with it.
            if !self.live().has(id, shard) {
                continue;
            }
            let epoch = self.catalog.next_epoch().unwrap_or(self.live().snapshot.epoch);
            let after = self.changed(epoch, |live| live.quarantine(id, error.to_string()));
            let change = Change::Quarantine { shard: id.0, state: self.state_of(&after) };
            // Where the catalog cannot say it, searches must not go on finding damaged entries all the same.
            let _ = self.shard(id).and_then(|record| self.catalog.quarantine(&record.directory, &change));
            self.show(after);
            damaged.insert(id, error.to_string());
        }
        damaged
    }

    /// A declared source.
    pub fn source(&self, id: &SourceId) -> Result<Arc<Source>, StoreError> {
        let live = self.live.load();
        let found = live.snapshot.sources.iter().find(|s| s.id == *id).cloned();
        found.ok_or_else(|| StoreError::UnknownSource(id.clone()))
    }

    /// A shard's record, whether it is live or was removed.
    pub fn shard(&self, id: ShardId) -> Result<ShardRecord, StoreError> {
        self.catalog.shard(id)?.ok_or(StoreError::UnknownShard(id))
    }

    /// All shards that ever were.
    pub fn shards(&self) -> Result<Vec<ShardRecord>, StoreError> {
        self.catalog.shards()
    }

    /// The log of withdrawals after entry `after`; 0 is all of it.
    pub fn removals(&self, after: u64) -> Result<Vec<RemovalRecord>, StoreError> {
        self.catalog.removals(after)
    }

    /// The store at a glance.
    pub fn status(&self) -> Result<StoreStatus, StoreError> {
        let live = self.live.load();
        Ok(StoreStatus {
            snapshot: live.snapshot.clone(),
            model: self.card.hash,
            recipe: self.recipe.clone(),
            unavailable: live.unavailable.clone(),
            backups: self.catalog.backups()?,
            n_unpurged: self.catalog.unpurged()?.len() as u64,
        })
    }

    /// Whether bytes of something that was withdrawn, or of an addition that was not finished, may be in a file; true if that cannot be told.
    pub fn has_unpurged(&self) -> bool {
        !self.catalog.unpurged().is_ok_and(|u| u.is_empty()) || self.catalog.is_stale().unwrap_or(true)
    }

    /// Shards that are in the store but cannot be retrieved from, and why.
    pub fn unavailable(&self) -> BTreeMap<ShardId, String> {
        self.live.load().unavailable.clone()
    }

    /// What the files of a live or suspended shard are; `None` if they are not open.
    pub fn manifest(&self, id: ShardId) -> Option<Manifest> {
        let live = self.live.load();
        let found = live.shards.get(&id).or_else(|| live.suspended.get(&id))?;
        Some(found.shard.manifest().clone())
    }

    /// The documents of a live shard, in the order of their URIs; nothing of a shard that is not live.
    pub fn documents(&self, id: ShardId) -> Result<Vec<StoredDocument>, StoreError> {
        let live = self.live.load();
        let Some(found) = live.shards.get(&id) else { return Ok(Vec::new()) };
        let shown = found.documents().filter_map(|(number, _)| found.shard.index_of(number));
        shown.map(|i| found.shard.document(i)).collect()
    }

    /// What is withheld of a shard.
    pub(crate) fn withheld_of(&self, id: ShardId) -> Result<Numbers, StoreError> {
        Ok(self.catalog.withheld(None)?.remove(&id).unwrap_or_default())
    }

    pub(crate) fn check_compatible(&self, manifest: &Manifest) -> Result<(), StoreError> {
        compatible(manifest, &self.card, &self.recipe)
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        let _ = self.catalog.settle(); // the next start says when it was at the latest
    }
}

impl By<'_> {
    /// Declares a source.
    pub fn create_source(&self, source: &Source) -> Result<(), StoreError> {
        let store = self.store;
        let _change = store.change();
        if !store.catalog.add_source(source, self.actor)? {
            return Err(StoreError::SourceExists(source.id.clone()));
        }
        let epoch = store.live().snapshot.epoch;
        store.show(store.changed(epoch, |live| {
            let snapshot = Arc::make_mut(&mut live.snapshot);
            snapshot.sources.push(Arc::new(source.clone()));
            snapshot.sources.sort_by(|a, b| a.id.cmp(&b.id));
        }));
        Ok(())
    }
}

impl SnapshotProvider for Store {
    fn snapshot(&self) -> Arc<Snapshot> {
        self.live.load().snapshot.clone()
    }

    fn is_live(&self, snapshot: &Snapshot, mask: &ShardMask) -> bool {
        let live = self.live.load();
        let whole = |view: &ShardView| live.shards.get(&view.id).is_some_and(|s| s.shrunk <= snapshot.epoch);
        live.snapshot.epoch == snapshot.epoch && live.snapshot.shards.len() == snapshot.shards.len()
            || snapshot.shards.iter().enumerate().all(|(i, view)| !mask.sees(i) || whole(view))
    }
}

/// Takes a lock whose state is whole whatever its last holder did: what a panicking change left behind is what a crash leaves behind, and
/// the maps behind the others are changed in single steps.
pub(crate) fn unpoisoned<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Refuses shards without a catalog: an empty one would have them swept away.
fn check_catalog_is_there(root: &Path) -> Result<(), StoreError> {
    let place = root.join(SHARDS);
    let mut shards = fs::read_dir(&place).map_err(StoreError::io(&place))?;
    if !root.join(CATALOG).exists() && shards.next().is_some() {
        return Err(StoreError::NoCatalog { path: root.to_owned() });
    }
    Ok(())
}

/// Deletes what a crash may have left: unfinished builds, and directories that no shard has.
fn sweep(root: &Path, records: &[ShardRecord]) -> Result<(), StoreError> {
    delete_all_but(&root.join("tmp"), &BTreeSet::new())?;
    let kept = records.iter().filter(|r| r.state != ShardState::Removed).map(|r| r.directory.as_str()).collect();
    delete_all_but(&root.join(SHARDS), &kept)
}

fn delete_all_but(place: &Path, keep: &BTreeSet<&str>) -> Result<(), StoreError> {
    for entry in fs::read_dir(place).map_err(StoreError::io(place))? {
        let entry = entry.map_err(StoreError::io(place))?;
        if !entry.file_name().to_str().is_some_and(|n| keep.contains(n)) {
            let is_directory = entry.file_type().map_err(StoreError::io(&entry.path()))?.is_dir();
            let delete = if is_directory { fs::remove_dir_all } else { fs::remove_file };
            delete(entry.path()).map_err(StoreError::io(&entry.path()))?;
        }
    }
    sync_directory(place)
}

/// Opens all shards that are not removed.
fn open_all(
    root: &Path,
    catalog: &Catalog,
    records: &[ShardRecord],
    card: &ModelCard,
    recipe: &Recipe,
) -> Result<Live, StoreError> {
    let kept: Vec<&ShardRecord> = records.iter().filter(|r| r.state != ShardState::Removed).collect();
    let (log, quarantined, withheld) = (catalog.withdrawn_by_log()?, catalog.quarantined()?, catalog.withheld(None)?);
    let open = |r: &&ShardRecord| {
        let shard = open_one(root, r, quarantined.contains(&r.directory), card, recipe)?;
        check_withdrawn(&shard, r, log.get(&r.id))?;
        Ok(shard)
    };
    let opened: Vec<Result<Shard, StoreError>> = kept.par_iter().map(open).collect();
    let (mut live, mut suspended, mut unavailable) = (HashMap::new(), HashMap::new(), BTreeMap::new());
    for (record, shard) in kept.into_iter().zip(opened) {
        match (shard, record.state) {
            (Err(error), _) => drop(unavailable.insert(record.id, error.to_string())),
            (Ok(shard), state) => {
                if quarantined.contains(&record.directory) {
                    catalog.end_quarantine(&record.directory)?; // it was mended
                }
                let withheld = withheld.get(&record.id).cloned().unwrap_or_default();
                let shard = LiveShard::new(Arc::new(shard), &record.withdrawn, &withheld);
                let place = if state == ShardState::Live { &mut live } else { &mut suspended };
                place.insert(record.id, shard);
            }
        }
    }
    let sources: Vec<Arc<Source>> = catalog.sources()?.into_iter().map(Arc::new).collect();
    let (epoch, last_shard) = (catalog.epoch()?, catalog.last_shard()?);
    let snapshot = Snapshot { epoch, sources, last_shard, ..Snapshot::empty() };
    let n_lists = recipe.quantizer().map(|(_, q)| q.n_lists());
    Ok(Live::new(snapshot, live, suspended, unavailable, card.key_dim, n_lists))
}

fn open_one(
    root: &Path,
    record: &ShardRecord,
    quarantined: bool,
    card: &ModelCard,
    recipe: &Recipe,
) -> Result<Shard, StoreError> {
    let path = root.join(SHARDS).join(&record.directory);
    if quarantined {
        Shard::verify_at(&path, &record.manifest_sha256)?;
    }
    let manifest = read_added_manifest(&path, &record.manifest_sha256)?;
    compatible(&manifest, card, recipe)?;
    let shard = Shard::open(&path)?;
    match recipe.quantizer() {
        Some((_, q)) if !shard.fits(q.n_lists(), q.projected()) => {
            Err(StoreError::damaged(&path, "its lists are not those of the recipe's quantiser"))
        }
        _ => Ok(shard),
    }
}

/// Whether what the catalog says is withdrawn of a shard is what the log of removals says, of the documents that the files hold. A flipped bit
/// in either must not bring a document back.
pub(crate) fn check_withdrawn(
    shard: &Shard,
    record: &ShardRecord,
    log: Option<&Option<Numbers>>,
) -> Result<(), StoreError> {
    let nothing = Some(Numbers::default());
    let same = log.unwrap_or(&nothing).as_ref().is_some_and(|by_log| {
        let differ = by_log.symmetric_difference(&record.withdrawn);
        differ.iter().all(|number| shard.index_of(number).is_none())
    });
    let reason = "what the catalog has as withdrawn of it is not what the log of removals says";
    if same { Ok(()) } else { Err(StoreError::damaged(&Path::new(SHARDS).join(&record.directory), reason)) }
}

fn compatible(manifest: &Manifest, card: &ModelCard, recipe: &Recipe) -> Result<(), StoreError> {
    let differ = |what, got: String, expected: String| Err(StoreError::Incompatible { what, got, expected });
    if manifest.model_hash != card.hash {
        return differ(
            "model",
            format!("{} ({})", manifest.model, manifest.model_hash),
            format!("{} ({})", card.name, card.hash),
        );
    }
    if manifest.recipe_hash != recipe.hash() {
        let name = |r: &Recipe| format!("'{}' ({})", r.name, r.hash());
        return differ("recipe", name(&manifest.recipe), name(recipe));
    }
    Ok(())
}
