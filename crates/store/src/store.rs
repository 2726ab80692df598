//! The store: its directory, its changes, its snapshots.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwap;
use silo_core::{
    ContentHash, Document, Epoch, LanguageModel, ModelCard, RootHash, ShardId, ShardMask, ShardView, Snapshot,
    SnapshotProvider, Source, SourceId, Tokenizer,
};

use crate::build::{create_directory, sync_directory};
use crate::catalog::Catalog;
use crate::live::Live;
use crate::lock::Lock;
use crate::shard::read_manifest;
use crate::{Manifest, Recipe, Shard, ShardBuilder, ShardRecord, ShardState, StoreError};

/// An open store, bound to one model and recipe.
pub struct Store {
    root: PathBuf,
    card: ModelCard,
    recipe: Recipe,
    tokenizer: Arc<dyn Tokenizer>,
    catalog: Catalog,
    live: ArcSwap<Live>,
    /// Changes happen one after the other; readers never wait for them.
    changes: Mutex<()>,
    /// Shards that are being rebuilt, each with the flag that stops it.
    rebuilds: Mutex<HashMap<ShardId, Arc<AtomicBool>>>,
    rebuild_ended: Condvar,
    threads: rayon::ThreadPool,
    _lock: Lock,
}

/// Documents to add as a shard.
pub struct NewShard<'a> {
    /// Their source.
    pub source: &'a SourceId,
    /// The documents.
    pub documents: &'a [Document],
}

/// What an addition did.
#[derive(Debug, Clone, PartialEq)]
pub struct AddedShard {
    /// The shard.
    pub id: ShardId,
    /// The epoch that it made.
    pub epoch: Epoch,
    /// Root after it.
    pub root: RootHash,
    /// What it is.
    pub manifest: Manifest,
    /// Documents whose text the source holds elsewhere, or that stood twice among them: each text counts once.
    pub n_duplicates: u64,
}

/// What a removal did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Removal {
    /// The shard.
    pub shard: ShardId,
    /// Its source.
    pub source: SourceId,
    /// The epoch that it made.
    pub epoch: Epoch,
    /// Root before it.
    pub root_before: RootHash,
    /// Root after it.
    pub root_after: RootHash,
    /// Whether its files are gone. If not, they are deleted when the store is opened next.
    pub purged: bool,
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
    /// Shards that are in the store but not retrieved from, and why.
    pub unavailable: BTreeMap<ShardId, String>,
}

impl Store {
    /// Opens the store at `root`, or makes an empty one. It is bound to a model and a recipe: shards of others stay on disk but
    /// are not retrieved from until they are rebuilt. A damaged shard is left out; the rest serves.
    pub fn open(
        root: &Path,
        card: &ModelCard,
        recipe: Recipe,
        tokenizer: Arc<dyn Tokenizer>,
        n_threads: usize,
    ) -> Result<Self, StoreError> {
        recipe.check_model(card)?;
        create_directory(&root.join("shards"))?;
        create_directory(&root.join("tmp"))?;
        let lock = Lock::take(root)?;
        let catalog = Catalog::open(&root.join("catalog.sqlite"))?;
        let records = catalog.shards()?;
        sweep(root, &records)?;
        let mut shards = HashMap::new();
        let mut unavailable = BTreeMap::new();
        for record in records.iter().filter(|r| r.state == ShardState::Live) {
            match open_live(root, record, card, &recipe) {
                Ok(shard) => drop(shards.insert(record.id, Arc::new(shard))),
                Err(error) => drop(unavailable.insert(record.id, error.to_string())),
            }
        }
        let sources: Vec<Arc<Source>> = catalog.sources()?.into_iter().map(Arc::new).collect();
        let last_shard = records.last().map_or(ShardId(0), |r| r.id);
        let snapshot = Snapshot { epoch: catalog.epoch()?, sources, last_shard, ..Snapshot::empty() };
        let live = Live::new(snapshot, shards, unavailable, card.key_dim);
        let threads = rayon::ThreadPoolBuilder::new()
            .num_threads(n_threads)
            .thread_name(|i| format!("search-{i}"))
            .build()
            .map_err(|e| StoreError::Io { path: root.to_owned(), source: std::io::Error::other(e) })?;
        Ok(Self {
            root: root.to_owned(),
            card: card.clone(),
            recipe,
            tokenizer,
            catalog,
            live: ArcSwap::from_pointee(live),
            changes: Mutex::new(()),
            rebuilds: Mutex::default(),
            rebuild_ended: Condvar::new(),
            threads,
            _lock: lock,
        })
    }

    pub(crate) fn live(&self) -> arc_swap::Guard<Arc<Live>> {
        self.live.load()
    }

    pub(crate) fn threads(&self) -> &rayon::ThreadPool {
        &self.threads
    }

    pub(crate) fn tokenizer(&self) -> &dyn Tokenizer {
        self.tokenizer.as_ref()
    }

    /// The recipe that it is bound to.
    pub fn recipe(&self) -> &Recipe {
        &self.recipe
    }

    fn change(&self) -> MutexGuard<'_, ()> {
        // What a panicking change left behind is what a crash leaves behind: the catalog is whole, files are swept later.
        self.changes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Declares a source.
    pub fn create_source(&self, source: &Source) -> Result<(), StoreError> {
        let _change = self.change();
        if !self.catalog.add_source(source)? {
            return Err(StoreError::SourceExists(source.id.clone()));
        }
        let mut live = (**self.live.load()).clone();
        let mut snapshot = (*live.snapshot).clone();
        snapshot.sources.push(Arc::new(source.clone()));
        snapshot.sources.sort_by(|a, b| a.id.cmp(&b.id));
        live.snapshot = Arc::new(snapshot);
        self.live.store(Arc::new(live));
        Ok(())
    }

    /// Encodes documents and adds them as a shard, which new requests see as soon as this returns. Nothing is left behind if it
    /// fails or is cancelled.
    pub fn add_shard(
        &self,
        new: &NewShard<'_>,
        model: &dyn LanguageModel,
        cancel: &AtomicBool,
        progress: &dyn Fn(u64, u64),
    ) -> Result<AddedShard, StoreError> {
        let source = self.source(new.source)?;
        if new.documents.is_empty() {
            return Err(StoreError::Empty);
        }
        let staging = Staging::create(&self.root)?;
        let builder =
            ShardBuilder { model, tokenizer: self.tokenizer.as_ref(), recipe: &self.recipe, cancel, progress };
        let manifest = builder.build(&staging.path, &source.id, new.documents)?;
        self.check_compatible(&manifest)?;
        let (id, live) = self.enter(&staging, &manifest, None)?;
        let copies = live.sources.get(&source.id).map_or(0, |s| s.n_copies(id));
        let n_duplicates = copies + new.documents.len() as u64 - manifest.n_documents;
        Ok(AddedShard { id, epoch: live.snapshot.epoch, root: live.snapshot.root, manifest, n_duplicates })
    }

    /// Publishes staged files, as a new shard or in the place of an old one: one rename, one transaction.
    fn enter(
        &self,
        staging: &Staging,
        manifest: &Manifest,
        old: Option<&ShardRecord>,
    ) -> Result<(ShardId, Arc<Live>), StoreError> {
        let _change = self.change();
        let (_, sha256) = read_manifest(&staging.path)?;
        let target = self.root.join("shards").join(&staging.name);
        fs::rename(&staging.path, &target).map_err(StoreError::io(&target))?;
        sync_directory(&self.root.join("shards"))?;
        let entered = Shard::open(&target).and_then(|shard| {
            let (id, epoch) = match old {
                None => self.catalog.add_shard(&staging.name, manifest, &sha256)?,
                Some(old) => {
                    let epoch = self.catalog.replace_shard(old, &staging.name, manifest, &sha256)?;
                    (old.id, epoch.ok_or(StoreError::Changed(old.id))?)
                }
            };
            Ok((id, epoch, shard))
        });
        let (id, epoch, shard) = match entered {
            Ok(entered) => entered,
            Err(error) => {
                let _ = fs::remove_dir_all(&target); // swept at the next start otherwise
                return Err(error);
            }
        };
        // From here on nothing can fail: what the catalog holds is what is live.
        let mut live = (**self.live.load()).clone();
        live.insert(id, Arc::new(shard), epoch);
        let live = Arc::new(live);
        self.live.store(live.clone());
        if let Some(old) = old {
            // What cannot be deleted now goes with the next removal, or at the next start.
            let _ = fs::remove_dir_all(self.root.join("shards").join(&old.directory));
        }
        Ok((id, live))
    }

    /// Encodes the stored documents of a shard again, with the store's model and recipe, and puts the result in its place: one rename, one
    /// transaction. Until then the shard stays what it was; it keeps its number. This is how a shard of another model or recipe, or one
    /// whose text is whole but not its other files, is retrieved from again. A removal of the shard sets `cancel`.
    pub fn rebuild_shard(
        &self,
        id: ShardId,
        model: &dyn LanguageModel,
        cancel: &Arc<AtomicBool>,
        progress: &dyn Fn(u64, u64),
    ) -> Result<AddedShard, StoreError> {
        let _entered = Rebuild::enter(self, id, cancel)?;
        let record = self.shard(id)?;
        if record.state == ShardState::Removed {
            return Err(StoreError::ShardRemoved(id));
        }
        let old_path = self.root.join("shards").join(&record.directory);
        let (old_manifest, sha256) = read_manifest(&old_path)?;
        if sha256 != record.manifest_sha256 {
            return Err(StoreError::damaged(&old_path, "its manifest is not the one that was added"));
        }
        let documents = Shard::read_documents(&old_path, &old_manifest)?;
        let staging = Staging::create(&self.root)?;
        let builder =
            ShardBuilder { model, tokenizer: self.tokenizer.as_ref(), recipe: &self.recipe, cancel, progress };
        let manifest = builder.build(&staging.path, &record.source, &documents)?;
        self.check_compatible(&manifest)?;
        let (_, live) = self.enter(&staging, &manifest, Some(&record))?;
        let n_duplicates = live.sources.get(&record.source).map_or(0, |s| s.n_copies(id));
        Ok(AddedShard { id, epoch: live.snapshot.epoch, root: live.snapshot.root, manifest, n_duplicates })
    }

    /// Withdraws a shard. When this returns it is durable, no new search can find the shard in any snapshot, and its files are
    /// deleted.
    pub fn remove_shard(&self, id: ShardId) -> Result<Removal, StoreError> {
        let (source, epoch, root_before, root_after) = {
            let _change = self.change();
            let record = self.shard(id)?;
            let epoch = self.catalog.remove_shard(id)?.ok_or(StoreError::ShardRemoved(id))?;
            // From here on nothing can fail: what the catalog calls removed is gone for every search.
            let mut live = (**self.live.load()).clone();
            let root_before = live.snapshot.root;
            live.remove(id, &record.source, epoch);
            let root_after = live.snapshot.root;
            self.live.store(Arc::new(live));
            (record.source, epoch, root_before, root_after)
        };
        // A rebuild under way holds copies of the text: it is stopped, and deletes them before it ends.
        let mut rebuilds = self.rebuilds();
        while let Some(stop) = rebuilds.get(&id) {
            stop.store(true, Ordering::Relaxed);
            rebuilds = self.rebuild_ended.wait(rebuilds).unwrap_or_else(PoisonError::into_inner);
        }
        drop(rebuilds);
        let _change = self.change();
        let purged = self.catalog.shards().and_then(|records| sweep_shards(&self.root, &records)).is_ok();
        Ok(Removal { shard: id, source, epoch, root_before, root_after, purged })
    }

    fn rebuilds(&self) -> MutexGuard<'_, HashMap<ShardId, Arc<AtomicBool>>> {
        // The map is changed in single steps: a panic cannot leave half of one.
        self.rebuilds.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Checks the keys of all live shards, which opening does not, and takes damaged shards out of what is retrieved. Returns their
    /// reasons. Meant for a thread of its own while the store serves.
    pub fn scrub(&self) -> BTreeMap<ShardId, String> {
        let shards: Vec<(ShardId, Arc<Shard>)> = self.live.load().shards.iter().map(|(i, s)| (*i, s.clone())).collect();
        let mut damaged = BTreeMap::new();
        for (id, shard) in shards {
            let Err(error) = shard.verify() else { continue };
            let _change = self.change();
            let mut live = (**self.live.load()).clone();
            // It may have been removed or rebuilt meanwhile, and its files with it.
            if live.quarantine(id, &shard, error.to_string()) {
                self.live.store(Arc::new(live));
                damaged.insert(id, error.to_string());
            }
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
        self.catalog.shards()?.into_iter().find(|r| r.id == id).ok_or(StoreError::UnknownShard(id))
    }

    /// All shards that ever were.
    pub fn shards(&self) -> Result<Vec<ShardRecord>, StoreError> {
        self.catalog.shards()
    }

    /// The store at a glance.
    pub fn status(&self) -> StoreStatus {
        let live = self.live.load();
        StoreStatus {
            snapshot: live.snapshot.clone(),
            model: self.card.hash,
            recipe: self.recipe.clone(),
            unavailable: live.unavailable.clone(),
        }
    }

    /// A live shard, for reading its documents.
    pub fn open_shard(&self, id: ShardId) -> Option<Arc<Shard>> {
        self.live.load().shards.get(&id).cloned()
    }

    fn check_compatible(&self, manifest: &Manifest) -> Result<(), StoreError> {
        compatible(manifest, &self.card, &self.recipe)
    }
}

impl SnapshotProvider for Store {
    fn snapshot(&self) -> Arc<Snapshot> {
        self.live.load().snapshot.clone()
    }

    fn is_live(&self, snapshot: &Snapshot, mask: &ShardMask) -> bool {
        let live = self.live.load();
        let is_live = |(i, view): (usize, &ShardView)| !mask.sees(i) || live.shards.contains_key(&view.id);
        live.snapshot.epoch == snapshot.epoch && live.snapshot.shards.len() == snapshot.shards.len()
            || snapshot.shards.iter().enumerate().all(is_live)
    }
}

/// A rebuild under way; dropped when nothing of it is left below `tmp/`.
struct Rebuild<'a> {
    store: &'a Store,
    id: ShardId,
}

impl<'a> Rebuild<'a> {
    fn enter(store: &'a Store, id: ShardId, cancel: &Arc<AtomicBool>) -> Result<Self, StoreError> {
        match store.rebuilds().entry(id) {
            std::collections::hash_map::Entry::Occupied(_) => Err(StoreError::Changed(id)),
            std::collections::hash_map::Entry::Vacant(place) => {
                place.insert(cancel.clone());
                Ok(Self { store, id })
            }
        }
    }
}

impl Drop for Rebuild<'_> {
    fn drop(&mut self) {
        self.store.rebuilds().remove(&self.id);
        self.store.rebuild_ended.notify_all();
    }
}

/// A directory below `tmp/` that is deleted unless it was renamed away.
struct Staging {
    name: String,
    path: PathBuf,
}

impl Staging {
    fn create(root: &Path) -> Result<Self, StoreError> {
        let name = uuid::Uuid::new_v4().to_string();
        let path = root.join("tmp").join(&name);
        create_directory(&path)?;
        Ok(Self { name, path })
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path); // gone already after a rename; swept at the next start otherwise
    }
}

/// Deletes what a crash may have left: unfinished builds, and shards that the catalog does not call live.
fn sweep(root: &Path, records: &[ShardRecord]) -> Result<(), StoreError> {
    delete_all_but(&root.join("tmp"), &BTreeSet::new())?;
    sweep_shards(root, records)
}

/// Deletes the directories of shards that are not live.
fn sweep_shards(root: &Path, records: &[ShardRecord]) -> Result<(), StoreError> {
    let live = records.iter().filter(|r| r.state == ShardState::Live).map(|r| r.directory.as_str()).collect();
    delete_all_but(&root.join("shards"), &live)
}

fn delete_all_but(place: &Path, keep: &BTreeSet<&str>) -> Result<(), StoreError> {
    for entry in fs::read_dir(place).map_err(StoreError::io(place))? {
        let entry = entry.map_err(StoreError::io(place))?;
        if !entry.file_name().to_str().is_some_and(|n| keep.contains(n)) {
            fs::remove_dir_all(entry.path()).map_err(StoreError::io(&entry.path()))?;
        }
    }
    sync_directory(place)
}

fn open_live(root: &Path, record: &ShardRecord, card: &ModelCard, recipe: &Recipe) -> Result<Shard, StoreError> {
    let path = root.join("shards").join(&record.directory);
    let (manifest, sha256) = read_manifest(&path)?;
    if sha256 != record.manifest_sha256 {
        return Err(StoreError::damaged(&path, "its manifest is not the one that was added"));
    }
    compatible(&manifest, card, recipe)?;
    let shard = Shard::open(&path)?;
    match recipe.quantizer() {
        Some((_, q)) if !shard.fits(q.n_lists(), q.projected()) => {
            Err(StoreError::damaged(&path, "its lists are not those of the recipe's quantiser"))
        }
        _ => Ok(shard),
    }
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
