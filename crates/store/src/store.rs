//! The store: its directory, its changes, its snapshots.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwap;
use silo_core::{
    ContentHash, Document, Epoch, LanguageModel, ModelCard, RootHash, ShardId, ShardView, Snapshot, SnapshotProvider,
    Source, SourceId, Tokenizer, merkle,
};

use crate::build::{create_directory, sync_directory};
use crate::catalog::Catalog;
use crate::lock::Lock;
use crate::shard::read_manifest;
use crate::{Manifest, Recipe, Shard, ShardBuilder, ShardRecord, ShardState, StoreError};

/// What is live at one epoch.
pub(crate) struct Live {
    pub(crate) snapshot: Arc<Snapshot>,
    pub(crate) shards: HashMap<ShardId, Arc<Shard>>,
    pub(crate) key_dim: usize,
    /// Live by the catalog, but not retrieved from: why.
    unavailable: BTreeMap<ShardId, String>,
}

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
    /// Documents that were left out because the source holds their text already.
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
        let live = assemble(&catalog, shards, unavailable, card.key_dim)?;
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
        let live = self.live.load();
        self.publish(live.shards.clone(), live.unavailable.clone())?;
        Ok(())
    }

    fn publish(
        &self,
        shards: HashMap<ShardId, Arc<Shard>>,
        unavailable: BTreeMap<ShardId, String>,
    ) -> Result<Arc<Snapshot>, StoreError> {
        let live = assemble(&self.catalog, shards, unavailable, self.card.key_dim)?;
        let snapshot = live.snapshot.clone();
        self.live.store(Arc::new(live));
        Ok(snapshot)
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
        let held = self.held_documents(&source.id);
        let fresh: Vec<Document> = new.documents.iter().filter(|d| !held.contains(&d.hash())).cloned().collect();
        let n_duplicates = (new.documents.len() - fresh.len()) as u64;
        if fresh.is_empty() {
            let reason = if n_duplicates > 0 { "the source holds all of them already" } else { "none was given" };
            return Err(StoreError::Empty(reason));
        }
        let staging = Staging::create(&self.root)?;
        let builder =
            ShardBuilder { model, tokenizer: self.tokenizer.as_ref(), recipe: &self.recipe, cancel, progress };
        let manifest = builder.build(&staging.path, &source.id, &fresh)?;
        self.check_compatible(&manifest)?;
        let (id, snapshot) = self.enter(&staging, &manifest)?;
        Ok(AddedShard { id, epoch: snapshot.epoch, root: snapshot.root, manifest, n_duplicates })
    }

    /// Publishes staged files: one rename, one transaction.
    fn enter(&self, staging: &Staging, manifest: &Manifest) -> Result<(ShardId, Arc<Snapshot>), StoreError> {
        let _change = self.change();
        let (_, sha256) = read_manifest(&staging.path)?;
        let target = self.root.join("shards").join(&staging.name);
        fs::rename(&staging.path, &target).map_err(StoreError::io(&target))?;
        sync_directory(&self.root.join("shards"))?;
        let entered = Shard::open(&target).and_then(|shard| {
            let (id, _) = self.catalog.add_shard(&staging.name, manifest, &sha256)?;
            Ok((id, shard))
        });
        let (id, shard) = match entered {
            Ok(entered) => entered,
            Err(error) => {
                let _ = fs::remove_dir_all(&target); // swept at the next start otherwise
                return Err(error);
            }
        };
        let live = self.live.load();
        let mut shards = live.shards.clone();
        shards.insert(id, Arc::new(shard));
        let snapshot = self.publish(shards, live.unavailable.clone())?;
        Ok((id, snapshot))
    }

    /// Withdraws a shard. When this returns it is durable, no new search can find the shard in any snapshot, and its files are
    /// deleted.
    pub fn remove_shard(&self, id: ShardId) -> Result<Removal, StoreError> {
        let _change = self.change();
        let record = self.shard(id)?;
        let live = self.live.load();
        let epoch = self.catalog.remove_shard(id)?.ok_or(StoreError::ShardRemoved(id))?;
        let mut shards = live.shards.clone();
        shards.remove(&id);
        let mut unavailable = live.unavailable.clone();
        unavailable.remove(&id);
        let root_before = live.snapshot.root;
        let snapshot = self.publish(shards, unavailable)?;
        let directory = self.root.join("shards").join(&record.directory);
        let purged = fs::remove_dir_all(&directory).is_ok() && sync_directory(&self.root.join("shards")).is_ok();
        Ok(Removal { shard: id, source: record.source, epoch, root_before, root_after: snapshot.root, purged })
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

    fn held_documents(&self, source: &SourceId) -> BTreeSet<ContentHash> {
        let live = self.live.load();
        let ours = live.shards.values().filter(|s| s.manifest().source == *source);
        ours.flat_map(|s| s.document_hashes().collect::<Vec<_>>()).collect()
    }

    fn check_compatible(&self, manifest: &Manifest) -> Result<(), StoreError> {
        compatible(manifest, &self.card, &self.recipe)
    }
}

impl SnapshotProvider for Store {
    fn snapshot(&self) -> Arc<Snapshot> {
        self.live.load().snapshot.clone()
    }

    fn is_live(&self, snapshot: &Snapshot) -> bool {
        let live = self.live.load();
        live.snapshot.epoch == snapshot.epoch || snapshot.shards.iter().all(|s| live.shards.contains_key(&s.id))
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
    let live: BTreeSet<&str> =
        records.iter().filter(|r| r.state == ShardState::Live).map(|r| r.directory.as_str()).collect();
    for (place, keep) in [("tmp", BTreeSet::new()), ("shards", live)] {
        let place = root.join(place);
        for entry in fs::read_dir(&place).map_err(StoreError::io(&place))? {
            let entry = entry.map_err(StoreError::io(&place))?;
            if !entry.file_name().to_str().is_some_and(|n| keep.contains(n)) {
                fs::remove_dir_all(entry.path()).map_err(StoreError::io(&entry.path()))?;
            }
        }
        sync_directory(&place)?;
    }
    Ok(())
}

fn open_live(root: &Path, record: &ShardRecord, card: &ModelCard, recipe: &Recipe) -> Result<Shard, StoreError> {
    let path = root.join("shards").join(&record.directory);
    let (manifest, sha256) = read_manifest(&path)?;
    if sha256 != record.manifest_sha256 {
        return Err(StoreError::damaged(&path, "its manifest is not the one that was added"));
    }
    compatible(&manifest, card, recipe)?;
    Shard::open(&path)
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

/// Makes the snapshot of what is live.
fn assemble(
    catalog: &Catalog,
    shards: HashMap<ShardId, Arc<Shard>>,
    unavailable: BTreeMap<ShardId, String>,
    key_dim: usize,
) -> Result<Live, StoreError> {
    let sources: Vec<Arc<Source>> = catalog.sources()?.into_iter().map(Arc::new).collect();
    let mut documents: BTreeMap<&SourceId, BTreeSet<ContentHash>> = BTreeMap::new();
    for shard in shards.values() {
        documents.entry(&shard.manifest().source).or_default().extend(shard.document_hashes());
    }
    let roots = documents.iter().map(|(id, hashes)| {
        let hashes: Vec<ContentHash> = hashes.iter().copied().collect();
        (*id, merkle::documents_root(&hashes))
    });
    let root = merkle::store_root(roots);
    let mut views = Vec::with_capacity(shards.len());
    for (id, shard) in &shards {
        let manifest = shard.manifest();
        // The catalog's foreign key says that the source is there.
        let Some(source) = sources.iter().find(|s| s.id == manifest.source) else { continue };
        views.push(ShardView {
            id: *id,
            source: source.clone(),
            model: manifest.model_hash,
            n_documents: manifest.n_documents,
            n_entries: manifest.n_entries,
            n_passages: manifest.n_passages,
        });
    }
    views.sort_by_key(|v| v.id);
    let snapshot = Arc::new(Snapshot { epoch: catalog.epoch()?, root, sources, shards: views });
    Ok(Live { snapshot, shards, key_dim, unavailable })
}
