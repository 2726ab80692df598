//! Copies of a store that is in use.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use serde::{Deserialize, Serialize};
use silo_core::{ContentHash, Epoch, RootHash, ShardId, SourceId, merkle};

use crate::boundary::Boundary;
use crate::catalog::{BackupRecord, Catalog, now_unix_ms};
use crate::files::entry_of;
use crate::format::FileEntry;
use crate::store::unpoisoned;
use crate::write::{HashedFile, create_directory, sync_directory};
use crate::{Shard, ShardState, Store, StoreError};

pub(crate) const CATALOG: &str = "catalog.sqlite";
pub(crate) const SHARDS: &str = "shards";
const MANIFEST: &str = "backup.json";
const FORMAT: &str = "silo-backup";
const VERSION: u32 = 2;

/// What a backup is; `backup.json` beside its catalog and shards.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BackupManifest {
    /// `silo-backup`.
    pub format: String,
    /// Version of the format.
    pub version: u32,
    /// Its name.
    pub name: String,
    /// When it was made, in milliseconds since 1970.
    pub at_unix_ms: i64,
    /// The epoch that it holds.
    pub epoch: Epoch,
    /// Root of what its catalog calls live.
    pub root: RootHash,
    /// The newest entry of its log of removals.
    pub last_removal: u64,
    /// Its catalog, as a file.
    pub catalog: FileEntry,
    /// Shards.
    pub n_shards: u64,
    /// Size of their files.
    pub n_bytes: u64,
    /// Shards that were damaged when it was made.
    pub damaged: Vec<ShardId>,
}

impl Store {
    /// Copies the store as it is now to `folder/name`, while it serves; no file is deleted meanwhile. The copy holds what is withdrawn after
    /// the moment that it shows, so it is entered in the catalog, and withdrawals name it until it is forgotten.
    pub fn backup(
        &self,
        folder: &Path,
        name: &str,
        cancel: &AtomicBool,
        progress: &dyn Fn(u64, u64),
    ) -> Result<BackupManifest, StoreError> {
        // A name must not lead out of the folder.
        let _: SourceId = name.parse().map_err(|_| StoreError::BackupName { name: name.to_owned() })?;
        let target = folder.join(name);
        if target.exists() || self.catalog.backups()?.iter().any(|b| b.name == name) {
            return Err(StoreError::BackupExists { path: target });
        }
        let partial = Partial(folder.join(format!("{name}.partial")));
        partial.clear()?;
        create_directory(&partial.0.join(SHARDS))?;
        let _maintenance = unpoisoned(&self.maintenance);
        // What was withdrawn before has no bytes in the copy, where it can be helped.
        self.purge_alone(cancel, &|_, _| {})?;
        // Entered before anything is copied: whatever is withdrawn from now on may be in it.
        let record = self.enter_backup(name)?;
        let copied = self.copy_all(&partial.0, &record, cancel, progress);
        let made = copied.and_then(|manifest| {
            self.at(Boundary::BackupCopied);
            fs::rename(&partial.0, &target).map_err(StoreError::io(&target))?;
            self.at(Boundary::BackupNamed);
            Ok(manifest)
        });
        // Directories of shards that were rebuilt meanwhile; what cannot be deleted now is deleted by the next purge.
        let _ = self.delete_retired();
        if made.is_err() {
            // Only once its bytes are gone is it forgotten.
            partial.clear()?;
            self.catalog.forget_backup(name)?;
        } else {
            sync_directory(folder)?;
        }
        made
    }

    fn enter_backup(&self, name: &str) -> Result<BackupRecord, StoreError> {
        // With the lock of changes: nothing is withdrawn between the look and the entry.
        let _change = self.change();
        let epoch = self.catalog.epoch()?;
        let unpurged = self.catalog.removals(0)?.into_iter().find(|r| r.is_unpurged()).map(|r| r.epoch);
        let clean_epoch = unpurged.unwrap_or(Epoch(epoch.0 + 1));
        let record = BackupRecord { name: name.to_owned(), epoch, clean_epoch, at_unix_ms: now_unix_ms() };
        self.catalog.add_backup(&record)?;
        Ok(record)
    }

    fn copy_all(
        &self,
        target: &Path,
        record: &BackupRecord,
        cancel: &AtomicBool,
        progress: &dyn Fn(u64, u64),
    ) -> Result<BackupManifest, StoreError> {
        let copy = target.join(CATALOG);
        self.catalog.copy_to(&copy)?;
        let catalog = Catalog::open_read_only(&copy)?;
        let manifest = self.copy_shards(&catalog, target, record, cancel, progress)?;
        let mut file = HashedFile::create(target, MANIFEST)?;
        file.write(&serde_json::to_vec_pretty(&manifest).map_err(|e| StoreError::damaged(target, e))?)?;
        file.finish()?;
        sync_directory(&target.join(SHARDS))?;
        sync_directory(target)?;
        Ok(manifest)
    }

    fn copy_shards(
        &self,
        catalog: &Catalog,
        target: &Path,
        record: &BackupRecord,
        cancel: &AtomicBool,
        progress: &dyn Fn(u64, u64),
    ) -> Result<BackupManifest, StoreError> {
        let shards: Vec<_> = catalog.shards()?.into_iter().filter(|s| s.state != ShardState::Removed).collect();
        let total = shards.iter().map(|s| s.n_entries).sum();
        let (mut done, mut n_bytes, mut damaged) = (0, 0, Vec::new());
        for shard in &shards {
            progress(done, total);
            if cancel.load(Ordering::Relaxed) {
                return Err(StoreError::Cancelled);
            }
            let to = target.join(SHARDS).join(&shard.directory);
            n_bytes += copy_directory(&self.directory(&shard.directory), &to)?;
            if Shard::verify_at(&to, &shard.manifest_sha256).is_err() {
                damaged.push(shard.id);
            }
            done += shard.n_entries;
        }
        progress(total, total);
        Ok(BackupManifest {
            format: FORMAT.into(),
            version: VERSION,
            name: record.name.clone(),
            at_unix_ms: record.at_unix_ms,
            epoch: catalog.epoch()?,
            root: root_of(catalog)?,
            last_removal: catalog.removals(0)?.last().map_or(0, |r| r.id),
            catalog: entry_of(&target.join(CATALOG))?,
            n_shards: shards.len() as u64,
            n_bytes,
            damaged,
        })
    }

    /// Strikes a backup out of the catalog, once it is deleted everywhere. Nothing is deleted by this.
    pub fn forget_backup(&self, name: &str) -> Result<(), StoreError> {
        if self.catalog.forget_backup(name)? { Ok(()) } else { Err(StoreError::UnknownBackup(name.to_owned())) }
    }

    /// The backups that may hold something of a withdrawal, by its epoch: those that were made before it, or before its bytes were gone from all files.
    pub fn backups_with(&self, removal: Epoch) -> Result<Vec<String>, StoreError> {
        let holds = |b: &BackupRecord| b.clean_epoch <= removal;
        Ok(self.catalog.backups()?.into_iter().filter(holds).map(|b| b.name).collect())
    }
}

impl BackupManifest {
    /// Whether the catalog beside it is the one that was written.
    pub(crate) fn check_catalog(&self, backup: &Path) -> Result<(), StoreError> {
        let path = backup.join(CATALOG);
        if entry_of(&path)? == self.catalog { Ok(()) } else { Err(StoreError::BackupDamaged { path }) }
    }

    /// Reads what a backup says of itself.
    pub fn read(backup: &Path) -> Result<Self, StoreError> {
        let path = backup.join(MANIFEST);
        let bytes = fs::read(&path).map_err(StoreError::io(&path))?;
        /// Read first, because a manifest of another version may have other fields.
        #[derive(Deserialize)]
        struct Version {
            format: String,
            version: u32,
        }
        let Version { format, version } = serde_json::from_slice(&bytes).map_err(|e| StoreError::damaged(&path, e))?;
        match (format == FORMAT, version) {
            (true, VERSION) => serde_json::from_slice(&bytes).map_err(|e| StoreError::damaged(&path, e)),
            (true, found) => Err(StoreError::Version { path, found, expected: VERSION }),
            (false, _) => Err(StoreError::damaged(&path, format!("it describes a '{format}', not a backup"))),
        }
    }
}

/// Root of what a catalog calls live, whether the files are whole or not.
pub(crate) fn root_of(catalog: &Catalog) -> Result<RootHash, StoreError> {
    let mut sources: BTreeMap<SourceId, BTreeSet<ContentHash>> = BTreeMap::new();
    let withheld = catalog.withheld(None)?;
    for shard in catalog.shards()?.into_iter().filter(|s| s.state == ShardState::Live) {
        let documents = catalog.documents(&shard)?;
        let withheld = withheld.get(&shard.id);
        let hidden = |n: u32| shard.withdrawn.contains(n) || withheld.is_some_and(|w| w.contains(n));
        let live = documents.into_iter().filter(|(number, _)| !hidden(*number)).map(|d| d.1);
        sources.entry(shard.source).or_default().extend(live);
    }
    let roots: Vec<(SourceId, merkle::Hash)> = sources
        .into_iter()
        .filter_map(|(id, hashes)| {
            let hashes: Vec<ContentHash> = hashes.into_iter().collect();
            Some((id, merkle::DocumentTree::default().with(&hashes).0.root()?))
        })
        .collect();
    Ok(merkle::SourceTree::new(roots.iter().map(|(id, root)| (id, *root))).root())
}

/// A directory that is deleted unless it gets its name.
struct Partial(PathBuf);

impl Partial {
    fn clear(&self) -> Result<(), StoreError> {
        if self.0.exists() { fs::remove_dir_all(&self.0).map_err(StoreError::io(&self.0)) } else { Ok(()) }
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        let _ = self.clear(); // gone already after a rename; the next backup of this name clears it otherwise
    }
}

/// Copies a directory with all below it, and brings it to disk; the bytes copied.
pub(crate) fn copy_directory(from: &Path, to: &Path) -> Result<u64, StoreError> {
    create_directory(to)?;
    let mut bytes = 0;
    for entry in fs::read_dir(from).map_err(StoreError::io(from))? {
        let entry = entry.map_err(StoreError::io(from))?;
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        if source.is_dir() {
            bytes += copy_directory(&source, &target)?;
        } else {
            bytes += fs::copy(&source, &target).map_err(StoreError::io(&target))?;
            fs::File::open(&target).and_then(|f| f.sync_all()).map_err(StoreError::io(&target))?;
        }
    }
    sync_directory(to)?;
    Ok(bytes)
}
