//! Checking everything, and mending what can be mended.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use silo_core::{Change, LanguageModel, ShardId};

use crate::add::Rewrite;
use crate::backup::{CATALOG, SHARDS, copy_directory};
use crate::catalog::{Catalog, Head, chain_is_whole};
use crate::live_shard::LiveShard;
use crate::lock::Lock;
use crate::store::{check_withdrawn, unpoisoned};
use crate::{By, Numbers, Shard, ShardRecord, ShardState, StoreError, StoredDocument};

/// Something that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The shard that it concerns, if it is one's.
    pub shard: Option<ShardId>,
    /// What it is.
    pub what: String,
}

/// What a look at the whole store found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    /// Shards that were looked at.
    pub n_shards: u64,
    /// What is wrong.
    pub faults: Vec<Fault>,
    /// Directories that no shard has, left by a crash or a replaced store; they are deleted when the store is opened next.
    pub orphans: Vec<String>,
}

/// Checks the catalog, every file against its checksum, and the catalog against the files. The store must not be in use; nothing is changed.
pub fn verify(root: &Path) -> Result<Verified, StoreError> {
    let path = root.join(CATALOG);
    if !path.exists() {
        return Err(StoreError::NoStore { path: root.to_owned() });
    }
    let _lock = Lock::take(root)?;
    let catalog = Catalog::open_read_only(&path)?;
    let mut faults: Vec<Fault> = catalog.check()?.into_iter().map(|what| Fault { shard: None, what }).collect();
    if !chain_is_whole(&catalog.store_id()?, &catalog.removals(0)?) {
        faults.push(Fault { shard: None, what: "the log of removals lacks an entry, or one was changed".into() });
    }
    if let Some(acknowledged) = Head::read(root)?
        && let Some(what) = catalog.newest()?.lacks(&acknowledged)
    {
        faults.push(Fault { shard: None, what });
    }
    faults.extend(catalog.check_changes()?.into_iter().map(|what| Fault { shard: None, what }));
    let purging: BTreeSet<ShardId> = catalog.unpurged()?.into_values().flatten().collect();
    let shards: Vec<ShardRecord> = catalog.shards()?;
    let kept = || shards.iter().filter(|s| s.state != ShardState::Removed);
    let log = catalog.withdrawn_by_log()?;
    for record in kept() {
        if let Err(error) = check_shard(root, &catalog, record, log.get(&record.id)) {
            faults.push(Fault { shard: Some(record.id), what: error.to_string() });
        }
    }
    let names: BTreeSet<&str> = shards
        .iter()
        .filter(|s| s.state != ShardState::Removed || purging.contains(&s.id))
        .map(|s| s.directory.as_str())
        .collect();
    let (place, mut orphans) = (root.join(SHARDS), Vec::new());
    for entry in fs::read_dir(&place).map_err(StoreError::io(&place))? {
        let name = entry.map_err(StoreError::io(&place))?.file_name();
        if !name.to_str().is_some_and(|n| names.contains(n)) {
            orphans.push(format!("{SHARDS}/{}", name.display()));
        }
    }
    Ok(Verified { n_shards: kept().count() as u64, faults, orphans })
}

fn check_shard(
    root: &Path,
    catalog: &Catalog,
    record: &ShardRecord,
    log: Option<&Option<Numbers>>,
) -> Result<(), StoreError> {
    let path = root.join(SHARDS).join(&record.directory);
    let shard = Shard::verify_at(&path, &record.manifest_sha256)?;
    if !shard.numbers().eq(catalog.documents(record)?) {
        return Err(StoreError::damaged(&path, "its documents are not those that the catalog has"));
    }
    // By them it is found what to withdraw.
    let uris = |d: StoredDocument| {
        let number = d.number;
        std::iter::once(d.document.uri).chain(d.other_uris).map(move |uri| (number, uri))
    };
    if shard.all_documents()?.into_iter().flat_map(uris).collect::<BTreeSet<_>>() != catalog.uris(record)? {
        return Err(StoreError::damaged(&path, "the URIs of its documents are not those that the catalog has"));
    }
    check_withdrawn(&shard, record, log)?;
    let missing = record.withdrawn.iter().find(|number| shard.index_of(*number).is_none());
    match missing {
        Some(number) => Err(StoreError::damaged(&path, format!("it lacks document {number}"))),
        None => Ok(()),
    }
}

/// What became of a shard that could not be retrieved from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Repair {
    /// Its files were copied from a backup.
    Copied,
    /// It was encoded again from its text.
    Rebuilt,
    /// It is what it was.
    Failed(String),
}

impl By<'_> {
    /// Mends the shards that cannot be retrieved from: with the same files from a backup, if one is given and has them, else by encoding their
    /// text again.
    pub fn repair(
        &self,
        backup: Option<&Path>,
        model: &dyn LanguageModel,
        progress: &dyn Fn(ShardId),
    ) -> Result<Vec<(ShardId, Repair)>, StoreError> {
        let mut out = Vec::new();
        for id in self.store.unavailable().into_keys() {
            progress(id);
            let copied = backup.map(|b| self.copy_from(b, id));
            let repair = match copied {
                Some(Ok(())) => Repair::Copied,
                other => match self.rebuild_shard(id, model, &AtomicBool::new(false), &|_, _| {}) {
                    Ok(_) => Repair::Rebuilt,
                    Err(error) => {
                        let of_backup = other.and_then(Result::err).map(|e| format!("; in the backup: {e}"));
                        Repair::Failed(format!("{error}{}", of_backup.unwrap_or_default()))
                    }
                },
            };
            out.push((id, repair));
        }
        Ok(out)
    }

    /// Puts a shard's own files from a backup in the place of damaged ones.
    fn copy_from(&self, backup: &Path, id: ShardId) -> Result<(), StoreError> {
        let store = self.store;
        let _maintenance = unpoisoned(&store.maintenance);
        let _rewrite = Rewrite::enter(store, id)?;
        let record = store.shard(id)?;
        let from = backup.join(SHARDS).join(&record.directory);
        let manifest = Shard::verify_at(&from, &record.manifest_sha256)?.manifest().clone();
        store.check_compatible(&manifest)?;
        let staged = store.root.join("tmp").join(&record.directory);
        copy_directory(&from, &staged)?;
        let target = store.directory(&record.directory);
        fs::remove_dir_all(&target).map_err(StoreError::io(&target))?;
        fs::rename(&staged, &target).map_err(StoreError::io(&target))?;
        let shard = Arc::new(Shard::open(&target)?);
        let _change = store.change();
        let record = store.shard(id)?;
        if record.state == ShardState::Removed {
            return Err(StoreError::ShardRemoved(id));
        }
        let suspended = record.state == ShardState::Suspended;
        let shard = LiveShard::new(shard, &record.withdrawn, &store.withheld_of(id)?);
        let epoch = store.catalog.next_epoch()?;
        let after = store.changed(epoch, |live| live.insert(id, shard, suspended, epoch));
        store.catalog.note(self.actor, &Change::Repair { shard: id.0, state: store.state_of(&after) })?;
        store.catalog.end_quarantine(&record.directory)?;
        store.show(after);
        Ok(())
    }
}
