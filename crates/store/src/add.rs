//! Additions, and shards that are encoded again.

use std::collections::hash_map::Entry;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use silo_core::{Change, ContentHash, Document, DocumentSet, Epoch, LanguageModel, RootHash, ShardId, SourceId};

use crate::backup::SHARDS;
use crate::boundary::Boundary;
use crate::build::Numbered;
use crate::catalog::Files;
use crate::files::{read_added_manifest, read_manifest};
use crate::live::Live;
use crate::live_shard::LiveShard;
use crate::store::unpoisoned;
use crate::write::{create_directory, sync_directory};
use crate::{By, Manifest, Shard, ShardBuilder, ShardRecord, ShardState, Store, StoreError, StoredDocument};

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

/// Files that are published and not yet in the catalog.
pub(crate) struct Published {
    /// Name of their directory.
    pub(crate) name: String,
    pub(crate) sha256: String,
    pub(crate) shard: Arc<Shard>,
    path: PathBuf,
    kept: bool,
}

impl Published {
    fn files<'a>(&'a self, manifest: &'a Manifest) -> Files<'a> {
        Files { directory: &self.name, manifest, sha256: &self.sha256 }
    }

    /// Says that the catalog has them now.
    pub(crate) fn keep(&mut self) {
        self.kept = true;
    }
}

impl Drop for Published {
    fn drop(&mut self) {
        if !self.kept {
            let _ = fs::remove_dir_all(&self.path); // swept at the next start otherwise
        }
    }
}

/// A shard that lies ready, and is not in the store yet. Dropped, it leaves nothing behind.
pub struct PreparedShard<'a> {
    store: &'a Store,
    id: ShardId,
    source: SourceId,
    published: Published,
    manifest: Manifest,
    n_given: u64,
    entered: bool,
}

impl Drop for PreparedShard<'_> {
    fn drop(&mut self) {
        if !self.entered {
            let _ = self.store.catalog.drop_prepared(Some(self.id)); // struck out at the next start otherwise
        }
    }
}

impl<'a> By<'a> {
    /// Encodes documents and adds them as a shard, which new requests see as soon as this returns. Nothing is left behind if it
    /// fails or is cancelled.
    pub fn add_shard(
        &self,
        new: &NewShard<'_>,
        model: &dyn LanguageModel,
        cancel: &AtomicBool,
        progress: &dyn Fn(u64, u64),
    ) -> Result<AddedShard, StoreError> {
        self.enter_shard(self.prepare_shard(new, model, cancel, progress)?)
    }

    /// Encodes documents, which takes its time, and lays them ready.
    pub fn prepare_shard(
        &self,
        new: &NewShard<'_>,
        model: &dyn LanguageModel,
        cancel: &AtomicBool,
        progress: &dyn Fn(u64, u64),
    ) -> Result<PreparedShard<'a>, StoreError> {
        let store = self.store;
        let source = store.source(new.source)?.id.clone();
        if new.documents.is_empty() {
            return Err(StoreError::Empty);
        }
        let staging = Staging::create(&store.root)?;
        let builder = ShardBuilder { model, tokenizer: store.tokenizer(), recipe: store.recipe(), cancel, progress };
        let manifest = builder.build(&staging.path, &source, new.documents)?;
        store.check_compatible(&manifest)?;
        store.at(Boundary::ShardBuilt);
        let published = store.publish(staging)?;
        store.at(Boundary::ShardRenamed);
        let documents = published.shard.all_documents()?;
        let id = store.catalog.prepare_shard(&published.files(&manifest), &documents)?;
        store.at(Boundary::ShardPrepared);
        let n_given = new.documents.len() as u64;
        Ok(PreparedShard { store, id, source, published, manifest, n_given, entered: false })
    }

    /// Adds a shard that lies ready: new requests see it as soon as this returns.
    pub fn enter_shard(&self, mut new: PreparedShard<'_>) -> Result<AddedShard, StoreError> {
        let _change = self.store.change();
        let live = self.enter(new.id, &mut new.published)?;
        new.entered = true;
        let copies = live.sources.get(&new.source).map_or(0, |s| s.n_copies(new.id));
        let n_duplicates = copies + new.n_given - new.manifest.n_documents;
        let manifest = new.manifest.clone();
        Ok(AddedShard { id: new.id, epoch: live.snapshot.epoch, root: live.snapshot.root, manifest, n_duplicates })
    }

    /// Makes a prepared shard live. The caller holds the lock of changes.
    fn enter(&self, id: ShardId, published: &mut Published) -> Result<Arc<Live>, StoreError> {
        let (store, files) = (self.store, &published.shard);
        let epoch = store.catalog.next_epoch()?;
        let shard = LiveShard::new(files.clone(), &Default::default(), &Default::default());
        let after = store.changed(epoch, |live| live.insert(id, shard, false, epoch));
        let mut hashes: Vec<ContentHash> = files.numbers().map(|(_, hash)| hash).collect();
        hashes.sort_unstable();
        let documents = DocumentSet::of(files.manifest().source.clone(), &hashes);
        let change = Change::AddShard { shard: id.0, documents, state: store.state_of(&after) };
        store.catalog.enter_shard(id, self.actor, &change)?;
        published.keep();
        store.at(Boundary::ShardEntered);
        // From here on nothing can fail: what the catalog holds is what is live.
        store.show(after.clone());
        Ok(after)
    }
}

impl Store {
    /// Renames staged files to their place and opens them. They are deleted again unless they are kept.
    pub(crate) fn publish(&self, staging: Staging) -> Result<Published, StoreError> {
        let (_, sha256) = read_manifest(&staging.path)?;
        let path = self.directory(&staging.name);
        fs::rename(&staging.path, &path).map_err(StoreError::io(&path))?;
        let name = staging.name.clone();
        let opened = sync_directory(&self.root.join(SHARDS)).and_then(|()| Shard::open(&path));
        match opened {
            Ok(shard) => Ok(Published { name, sha256, shard: Arc::new(shard), path, kept: false }),
            Err(error) => {
                let _ = fs::remove_dir_all(&path); // swept at the next start otherwise
                Err(error)
            }
        }
    }

    /// Puts published files in the place of a shard's, which no longer hold what was withdrawn by `record`. What was withdrawn since stays
    /// so. A rebuild makes an epoch, because it may change what is retrieved; files with the same entries do not.
    pub(crate) fn switch(
        &self,
        record: &ShardRecord,
        mut published: Published,
        manifest: &Manifest,
        rebuilt_by: Option<&str>,
    ) -> Result<(Epoch, RootHash), StoreError> {
        self.at(Boundary::FilesRenamed);
        let live = {
            let _change = self.change();
            let gone = &record.withdrawn;
            let now = self.shard(record.id)?;
            if now.state == ShardState::Removed || now.directory != record.directory {
                return Err(StoreError::Changed(record.id));
            }
            let left = now.withdrawn.without(gone);
            let files = published.shard.clone();
            let after = match rebuilt_by {
                Some(_) => {
                    let (epoch, suspended) = (self.catalog.next_epoch()?, now.state == ShardState::Suspended);
                    let shard = LiveShard::new(files, &left, &self.withheld_of(now.id)?);
                    self.changed(epoch, |live| live.insert(now.id, shard, suspended, epoch))
                }
                None => self.changed(self.live().snapshot.epoch, |live| live.replace(now.id, &files, gone)),
            };
            let change = Change::RebuildShard { shard: now.id.0, state: self.state_of(&after) };
            let change = rebuilt_by.map(|actor| (actor, &change));
            self.catalog.replace_files(&now, &published.files(manifest), (gone, &left), change)?;
            published.keep();
            self.at(Boundary::FilesSwitched);
            // From here on nothing can fail.
            self.show(after.clone());
            after
        };
        unpoisoned(&self.retired).push(record.directory.clone());
        Ok((live.snapshot.epoch, live.snapshot.root))
    }
}

impl By<'_> {
    /// Encodes the stored documents of a shard again, with the store's model and recipe, and puts the result in its place: one rename, one
    /// transaction. Until then the shard stays what it was; it keeps its number, and its documents theirs. This is how a shard of
    /// another model or recipe, or one whose text is whole but not its other files, is retrieved from again. A removal of the shard
    /// stops it.
    pub fn rebuild_shard(
        &self,
        id: ShardId,
        model: &dyn LanguageModel,
        cancel: &AtomicBool,
        progress: &dyn Fn(u64, u64),
    ) -> Result<AddedShard, StoreError> {
        let store = self.store;
        let rewrite = Rewrite::enter(store, id)?;
        let progress = |done, total| {
            if cancel.load(Ordering::Relaxed) {
                rewrite.stop.store(true, Ordering::Relaxed);
            }
            progress(done, total);
        };
        let record = store.shard(id)?;
        if record.state == ShardState::Removed {
            return Err(StoreError::ShardRemoved(id));
        }
        let old_path = store.directory(&record.directory);
        let old_manifest = read_added_manifest(&old_path, &record.manifest_sha256)?;
        let stored = Shard::read_documents(&old_path, &old_manifest)?;
        let kept: Vec<&StoredDocument> = stored.iter().filter(|d| !record.withdrawn.contains(d.number)).collect();
        // Rows last as long as model and recipe do.
        let same = store.check_compatible(&old_manifest).is_ok();
        let staging = Staging::create(&store.root)?;
        let (cancel, progress) = (&*rewrite.stop, &progress);
        let builder = ShardBuilder { model, tokenizer: store.tokenizer(), recipe: store.recipe(), cancel, progress };
        let numbered: Vec<Numbered<'_>> = kept.iter().map(|d| d.numbered(same)).collect();
        let manifest = builder.build_numbered(&staging.path, &record.source, &numbered)?;
        store.check_compatible(&manifest)?;
        store.at(Boundary::FilesWritten);
        let published = store.publish(staging)?;
        let (epoch, root) = store.switch(&record, published, &manifest, Some(self.actor))?;
        store.delete_retired_if_idle();
        let live = store.live();
        let n_duplicates = live.sources.get(&record.source).map_or(0, |s| s.n_copies(id));
        Ok(AddedShard { id, epoch, root, manifest, n_duplicates })
    }
}

/// A shard of which files are being written anew; dropped when nothing of it is left below `tmp/`.
pub(crate) struct Rewrite<'a> {
    store: &'a Store,
    id: ShardId,
    /// Set when the shard is removed.
    pub(crate) stop: Arc<AtomicBool>,
}

impl<'a> Rewrite<'a> {
    /// Begins, unless someone else is at it.
    pub(crate) fn enter(store: &'a Store, id: ShardId) -> Result<Self, StoreError> {
        let stop = Arc::new(AtomicBool::new(false));
        match unpoisoned(&store.rewrites).entry(id) {
            Entry::Occupied(_) => Err(StoreError::Rewriting(id)),
            Entry::Vacant(place) => {
                place.insert(stop.clone());
                Ok(Self { store, id, stop })
            }
        }
    }

    /// Begins as soon as no one else is at it.
    pub(crate) fn wait(store: &'a Store, id: ShardId) -> Self {
        let mut rewrites = unpoisoned(&store.rewrites);
        while rewrites.contains_key(&id) {
            rewrites = store.rewrite_ended.wait(rewrites).unwrap_or_else(std::sync::PoisonError::into_inner);
        }
        let stop = Arc::new(AtomicBool::new(false));
        rewrites.insert(id, stop.clone());
        Self { store, id, stop }
    }
}

impl Drop for Rewrite<'_> {
    fn drop(&mut self) {
        unpoisoned(&self.store.rewrites).remove(&self.id);
        self.store.rewrite_ended.notify_all();
    }
}

impl Store {
    /// Stops what is being written of a removed shard.
    pub(crate) fn stop_rewrite(&self, id: ShardId) {
        if let Some(stop) = unpoisoned(&self.rewrites).get(&id) {
            stop.store(true, Ordering::Relaxed);
        }
    }
}

/// A directory below `tmp/` that is deleted unless it was renamed away.
pub(crate) struct Staging {
    pub(crate) name: String,
    pub(crate) path: PathBuf,
}

impl Staging {
    pub(crate) fn create(root: &Path) -> Result<Self, StoreError> {
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
