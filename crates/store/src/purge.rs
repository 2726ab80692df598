//! Getting the bytes of what was withdrawn out of all files, in the background.

use std::collections::BTreeMap;
use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};

use silo_core::ShardId;

use crate::add::{Rewrite, Staging};
use crate::backup::SHARDS;
use crate::boundary::Boundary;
use crate::store::unpoisoned;
use crate::write::{About, ShardWriter, Written, sync_directory};
use crate::{Manifest, Numbers, Shard, ShardRecord, ShardState, Store, StoreError};

/// What a purge did.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Purged {
    /// Entries of the log whose bytes are gone now.
    pub removals: Vec<u64>,
    /// Entries (key, next token) that were in the deleted files and are in none now.
    pub n_entries: u64,
    /// Shards whose files still hold withdrawn text, and why.
    pub failures: BTreeMap<ShardId, String>,
}

impl Store {
    /// Deletes the files of removed shards, writes those of the others anew without the documents that were withdrawn from them, and strikes
    /// out what the catalog knew of these; readers and changes go on meanwhile. What was withdrawn before the call is purged when
    /// it returns. A shard whose files are damaged is reported, and is purged when it is rebuilt or removed. If `cancel` stops it, what
    /// is left is done by the next one.
    pub fn purge(&self, cancel: &AtomicBool, progress: &dyn Fn(u64, u64)) -> Result<Purged, StoreError> {
        let _maintenance = unpoisoned(&self.maintenance);
        self.purge_alone(cancel, progress)
    }

    /// The same for a caller who holds the lock of maintenance.
    pub(crate) fn purge_alone(&self, cancel: &AtomicBool, progress: &dyn Fn(u64, u64)) -> Result<Purged, StoreError> {
        let unpurged = self.catalog.unpurged()?;
        self.catalog.settle()?;
        let concerned = |r: &ShardRecord| unpurged.values().any(|shards| shards.contains(&r.id));
        let records: Vec<ShardRecord> = self.catalog.shards()?.into_iter().filter(concerned).collect();
        let total = records.iter().map(|r| r.n_entries).sum();
        let mut purged = Purged::default();
        let mut done = 0;
        for record in &records {
            progress(done, total);
            let result = match record.state {
                ShardState::Removed => self.delete(record),
                _ => self.rewrite(record, cancel),
            };
            match result {
                Ok(n) => purged.n_entries += n,
                Err(StoreError::Cancelled) => return Err(StoreError::Cancelled),
                // It was removed or rebuilt meanwhile: the next purge sees what is left.
                Err(error) => drop(purged.failures.insert(record.id, error.to_string())),
            }
            done += record.n_entries;
        }
        progress(total, total);
        self.delete_retired()?;
        if !unpurged.is_empty() || self.catalog.is_stale()? {
            self.catalog.wipe()?;
        }
        self.at(Boundary::LogEmptied);
        let whole = |(_, shards): &(&u64, &Vec<ShardId>)| !shards.iter().any(|s| purged.failures.contains_key(s));
        purged.removals = unpurged.iter().filter(whole).map(|(id, _)| *id).collect();
        self.catalog.mark_purged(&purged.removals)?;
        self.at(Boundary::PurgeMarked);
        Ok(purged)
    }

    /// Deletes the files of a removed shard.
    fn delete(&self, record: &ShardRecord) -> Result<u64, StoreError> {
        // A rebuild under way holds copies of the text. The removal has told it to stop, and it deletes them before it ends.
        let _rewrite = Rewrite::wait(self, record.id);
        {
            let _change = self.change();
            self.show(self.changed(self.live().snapshot.epoch, |live| live.drop_lists_of(record.id)));
        }
        let there = self.directory(&record.directory).exists();
        self.delete_directory(&record.directory)?;
        self.at(Boundary::FilesDeleted);
        self.forget(record)?;
        Ok(if there { record.n_entries } else { 0 })
    }

    /// Writes the files of a shard anew without what was withdrawn from it.
    fn rewrite(&self, record: &ShardRecord, cancel: &AtomicBool) -> Result<u64, StoreError> {
        // One that is being rebuilt is left alone: the rebuild leaves out what is withdrawn, and may take long.
        let rewrite = Rewrite::enter(self, record.id)?;
        // It may have been rebuilt a moment ago.
        let record = self.shard(record.id)?;
        match record.state {
            ShardState::Removed => {
                drop(rewrite);
                return self.delete(&record);
            }
            _ if record.withdrawn.is_empty() => return self.forget(&record),
            ShardState::Live | ShardState::Suspended => {}
        }
        // Every file is checked before it is copied: damage must not get a new checksum.
        let shard = Shard::verify_at(&self.directory(&record.directory), &record.manifest_sha256)?;
        let manifest = shard.manifest();
        let staging = Staging::create(&self.root)?;
        let stopped = || cancel.load(Ordering::Relaxed) || rewrite.stop.load(Ordering::Relaxed);
        let written = match self.write_without(&shard, manifest, &record.withdrawn, &staging, &stopped) {
            // It was removed meanwhile.
            Err(StoreError::Cancelled) if !cancel.load(Ordering::Relaxed) => {
                drop((staging, rewrite));
                return self.delete(&self.shard(record.id)?);
            }
            other => other?,
        };
        self.at(Boundary::FilesWritten);
        let published = self.publish(staging)?;
        self.switch(&record, published, &written, None)?;
        self.delete_retired()?;
        self.at(Boundary::FilesDeleted);
        self.forget(&self.shard(record.id)?)?;
        Ok(manifest.n_entries - written.n_entries)
    }

    fn forget(&self, record: &ShardRecord) -> Result<u64, StoreError> {
        self.catalog.forget_documents(record)?;
        self.at(Boundary::DocumentsForgotten);
        Ok(0)
    }

    fn write_without(
        &self,
        shard: &Shard,
        manifest: &Manifest,
        withdrawn: &Numbers,
        staging: &Staging,
        stopped: &dyn Fn() -> bool,
    ) -> Result<Manifest, StoreError> {
        let lists = shard.list_of_each();
        let n_lists = shard.lists().map(|l| l.offsets.len() - 1);
        let mut writer = ShardWriter::create(&staging.path, self.tokenizer(), &manifest.recipe, n_lists)?;
        for i in 0..shard.numbers().len() {
            if stopped() {
                return Err(StoreError::Cancelled);
            }
            let document = shard.written(i)?;
            if withdrawn.contains(document.number) {
                continue;
            }
            let entries = shard.entries_of(i);
            let of_document = lists.as_ref().map(|(of_row, codes)| {
                let width = codes.len() / of_row.len().max(1);
                let (from, to) = (entries.start as usize, entries.end as usize);
                (&of_row[from..to], &codes[from * width..to * width])
            });
            writer.put(&Written { lists: of_document, ..document })?;
        }
        let (model, model_hash, key_dim) = (&manifest.model[..], manifest.model_hash, manifest.key_dim);
        writer.finish(&About { source: &manifest.source, model, model_hash, key_dim })
    }

    /// Deletes directories that no shard has any more, unless files are being copied or deleted: who does that deletes these as well.
    pub(crate) fn delete_retired_if_idle(&self) {
        if let Ok(_maintenance) = self.maintenance.try_lock() {
            // What cannot be deleted now is deleted by the next purge, or at the next start.
            let _ = self.delete_retired();
        }
    }

    /// Deletes directories that no shard has any more.
    pub(crate) fn delete_retired(&self) -> Result<(), StoreError> {
        let retired = std::mem::take(&mut *unpoisoned(&self.retired));
        for (i, name) in retired.iter().enumerate() {
            if let Err(error) = self.delete_directory(name) {
                unpoisoned(&self.retired).extend_from_slice(&retired[i..]);
                return Err(error);
            }
        }
        Ok(())
    }

    fn delete_directory(&self, name: &str) -> Result<(), StoreError> {
        let path = self.directory(name);
        match fs::remove_dir_all(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(StoreError::Io { path, source: e }),
            _ => sync_directory(&self.root.join(SHARDS)),
        }
    }
}
