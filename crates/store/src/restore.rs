//! From a backup to a store, with everything that was withdrawn since.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use silo_core::{Epoch, RootHash, ShardId};

use crate::backup::{BackupManifest, CATALOG, SHARDS, copy_directory, root_of};
use crate::boundary::{AtBoundary, Boundary};
use crate::catalog::{BackupRecord, Catalog, HEAD, Head, RemovalRecord, chain_is_whole};
use crate::lock::Lock;
use crate::write::{create_directory, sync_directory};
use crate::{Shard, ShardState, StoreError, Workflow};

/// The catalog that a restore makes before it takes the other's place.
pub(crate) const RESTORED: &str = "catalog.restored.sqlite";

const FORMAT: &str = "silo-removals";
const VERSION: u32 = 2;

/// The log of removals of a store, with the greatest numbers that it is known to have given out.
#[derive(Debug, Clone, PartialEq)]
pub struct RemovalLog {
    /// Id of the store.
    pub store_id: String,
    /// The backups that it knows of.
    pub backups: Vec<BackupRecord>,
    /// The greatest number of a shard.
    pub last_shard: ShardId,
    /// The epoch.
    pub last_epoch: Epoch,
    /// All entries.
    pub records: Vec<RemovalRecord>,
    /// The opt-out requests, and what they keep out.
    pub workflow: Workflow,
}

/// First line of a log as a file of JSON lines; the entries follow, and then the requests and what they keep out.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    format: String,
    version: u32,
    store_id: String,
    backups: Vec<BackupRecord>,
    last_shard: ShardId,
    last_epoch: Epoch,
    n_records: u64,
    n_optouts: u64,
    n_suppressions: u64,
    n_policies: u64,
    suppression_key: String,
}

/// Where the withdrawals since the backup are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Later<'a> {
    /// In the log of a store (its directory) or in one that was written to a file.
    Log(&'a Path),
    /// There were none, or they are lost: said in so many words.
    None,
}

/// What a restore did.
#[derive(Debug, Clone, PartialEq)]
pub struct Restored {
    /// The epoch that it made.
    pub epoch: Epoch,
    /// Root of what the catalog calls live.
    pub root: RootHash,
    /// Shards that are in the store now.
    pub n_shards: u64,
    /// Changes since the backup that were done again.
    pub n_replayed: u64,
    /// Shards that are damaged in the backup.
    pub damaged: Vec<ShardId>,
}

impl RemovalLog {
    /// Reads the log of a store, in use or not, or of a file that [`RemovalLog::write`] made. A log with a gap or a changed entry is refused.
    pub fn read(path: &Path) -> Result<Self, StoreError> {
        let catalog = if path.is_dir() { path.join(CATALOG) } else { path.to_owned() };
        let log = if catalog.extension().is_some_and(|e| e == "sqlite") {
            Self::of(&Catalog::open_read_only(&catalog)?)?
        } else {
            Self::from_lines(path)?
        };
        if !chain_is_whole(&log.store_id, &log.records) {
            return Err(StoreError::RemovalLog {
                path: path.to_owned(),
                reason: "an entry is missing or was changed: its chain of hashes is broken".into(),
            });
        }
        Ok(log)
    }

    fn of(catalog: &Catalog) -> Result<Self, StoreError> {
        Ok(Self {
            store_id: catalog.store_id()?,
            backups: catalog.backups()?,
            last_shard: catalog.last_shard()?,
            last_epoch: catalog.epoch()?,
            records: catalog.removals(0)?,
            workflow: catalog.workflow()?,
        })
    }

    fn from_lines(path: &Path) -> Result<Self, StoreError> {
        let wrong = |reason: String| StoreError::RemovalLog { path: path.to_owned(), reason };
        let file = fs::File::open(path).map_err(StoreError::io(path))?;
        let mut lines = BufReader::new(file).lines();
        let first = lines.next().transpose().map_err(StoreError::io(path))?.unwrap_or_default();
        let header: Header = serde_json::from_str(&first).map_err(|e| wrong(format!("line 1 is no header: {e}")))?;
        if (header.format.as_str(), header.version) != (FORMAT, VERSION) {
            return Err(wrong(format!("it is a '{}' of version {}", header.format, header.version)));
        }
        let lines = lines.collect::<Result<Vec<String>, _>>().map_err(StoreError::io(path))?;
        let parts = [header.n_records, header.n_optouts, header.n_suppressions, header.n_policies];
        if lines.len() as u64 != parts.iter().sum::<u64>() {
            return Err(wrong(format!("it holds {} lines, its header says {parts:?}", lines.len())));
        }
        let (records, rest) = lines.split_at(parts[0] as usize);
        let (optouts, rest) = rest.split_at(parts[1] as usize);
        let (suppressions, policies) = rest.split_at(parts[2] as usize);
        let key = hex::decode(&header.suppression_key).map_err(|e| wrong(format!("its key is no key: {e}")))?;
        let (optouts, suppressions) = (parse(optouts, &wrong)?, parse(suppressions, &wrong)?);
        let workflow = Workflow { optouts, suppressions, key, policies: parse(policies, &wrong)? };
        let Header { store_id, backups, last_shard, last_epoch, .. } = header;
        Ok(Self { store_id, backups, last_shard, last_epoch, records: parse(records, &wrong)?, workflow })
    }

    /// Writes the log as JSON lines, for keeping it away from the store.
    pub fn write(&self, mut to: impl Write) -> std::io::Result<()> {
        let header = Header {
            format: FORMAT.into(),
            version: VERSION,
            store_id: self.store_id.clone(),
            backups: self.backups.clone(),
            last_shard: self.last_shard,
            last_epoch: self.last_epoch,
            n_records: self.records.len() as u64,
            n_optouts: self.workflow.optouts.len() as u64,
            n_suppressions: self.workflow.suppressions.len() as u64,
            n_policies: self.workflow.policies.len() as u64,
            suppression_key: hex::encode(&self.workflow.key),
        };
        writeln!(to, "{}", serde_json::to_string(&header)?)?;
        self.records.iter().try_for_each(|r| writeln!(to, "{}", serde_json::to_string(r)?))?;
        self.workflow.optouts.iter().try_for_each(|o| writeln!(to, "{}", serde_json::to_string(o)?))?;
        self.workflow.suppressions.iter().try_for_each(|s| writeln!(to, "{}", serde_json::to_string(s)?))?;
        self.workflow.policies.iter().try_for_each(|p| writeln!(to, "{}", serde_json::to_string(p)?))
    }

    /// Whether it goes on from where the other one ends, or ends there too.
    fn continues(&self, other: &Self) -> bool {
        let newest = other.records.last();
        self.store_id == other.store_id
            && newest.is_none_or(|last| self.records.iter().any(|r| r.id == last.id && r.chain == last.chain))
    }
}

fn parse<T: for<'a> Deserialize<'a>>(
    lines: &[String],
    wrong: &dyn Fn(String) -> StoreError,
) -> Result<Vec<T>, StoreError> {
    let number = |(i, line): (usize, &String)| {
        // What stands in it may be what somebody wants out.
        serde_json::from_str(line).map_err(|e| wrong(format!("line {} of its kind: {e}", i + 1)))
    };
    lines.iter().enumerate().map(number).collect()
}

/// Makes the store at `root` what the backup holds, without what was withdrawn or suspended since. A store that is there already is
/// replaced in one rename at the end; its own log counts as known. Refused if the log that is given ends before one that is known, since then
/// something that was withdrawn would come back.
pub fn restore(
    backup: &Path,
    root: &Path,
    later: Later<'_>,
    at_boundary: Option<&AtBoundary>,
) -> Result<Restored, StoreError> {
    let at = |boundary| at_boundary.iter().for_each(|f| f(boundary));
    let manifest = BackupManifest::read(backup)?;
    manifest.check_catalog(backup)?;
    create_directory(&root.join(SHARDS))?;
    create_directory(&root.join("tmp"))?;
    let _lock = Lock::take(root)?;
    let held = RemovalLog::of(&Catalog::open_read_only(&backup.join(CATALOG))?)?;
    let head = match Head::read(root) {
        // One that cannot be read says nothing against a log that is given.
        Err(_) if matches!(later, Later::Log(_)) => None,
        other => other?,
    };
    let (log, known) = logs(&held, root, head.as_ref(), later)?;
    let made = make(backup, root, &manifest, [&held, &log], (known.as_ref(), head.as_ref()), &at);
    if made.is_err() {
        remove_catalog(&root.join(RESTORED))?;
    }
    made
}

/// Makes the new catalog and copies the shards, and puts it in the place of the old one.
fn make(
    backup: &Path,
    root: &Path,
    manifest: &BackupManifest,
    [held, log]: [&RemovalLog; 2],
    (known, head): (Option<&RemovalLog>, Option<&Head>),
    at: &dyn Fn(Boundary),
) -> Result<Restored, StoreError> {
    let restored = root.join(RESTORED);
    copy_catalog(&backup.join(CATALOG), &restored)?;
    let catalog = Catalog::open(&restored)?;
    catalog.drop_prepared(None)?; // an addition that was under way when the backup was made
    let later = &log.records[held.records.len()..];
    let greatest = |f: fn(&RemovalLog) -> u64| known.into_iter().chain([log, held]).map(f).max().unwrap_or_default();
    let (last_shard, last_epoch) = head.map_or((ShardId(0), Epoch(0)), |h| (h.last_shard, h.epoch));
    let last_shard = last_shard.max(ShardId(greatest(|l| l.last_shard.0)));
    catalog.replay(later, last_shard, last_epoch.max(Epoch(greatest(|l| l.last_epoch.0))))?;
    // Steps that changed nothing of what is retrieved are in no entry of the log: whoever has more of them knows more.
    let steps = |l: &&RemovalLog| {
        let events = l.workflow.optouts.iter().map(|o| o.events.len() as u64).sum::<u64>();
        events + l.workflow.policies.iter().map(|(_, row)| row.policy.revision).sum::<u64>()
    };
    let newest = [log, held].into_iter().chain(known).max_by_key(steps).unwrap_or(log);
    catalog.replace_workflow(&newest.workflow)?;
    for backup in known.into_iter().chain([log]).flat_map(|l| &l.backups) {
        catalog.add_backup(backup)?; // those that are known already stay
    }
    at(Boundary::RestoreReplayed);
    let shards: Vec<_> = catalog.shards()?.into_iter().filter(|s| s.state != ShardState::Removed).collect();
    for shard in &shards {
        copy_shard(backup, root, &shard.directory, &shard.manifest_sha256)?;
    }
    sync_directory(&root.join(SHARDS))?;
    at(Boundary::RestoreCopied);
    let (epoch, made) = (catalog.epoch()?, root_of(&catalog)?);
    catalog.close()?;
    replace_catalog(root, &restored)?;
    at(Boundary::RestoreSwitched);
    let damaged = manifest.damaged.iter().copied().filter(|id| shards.iter().any(|s| s.id == *id)).collect();
    Ok(Restored { epoch, root: made, n_shards: shards.len() as u64, n_replayed: later.len() as u64, damaged })
}

/// The log to replay, and that of the store which is there, if one is. All that are known must be beginnings of it.
fn logs(
    held: &RemovalLog,
    root: &Path,
    head: Option<&Head>,
    later: Later<'_>,
) -> Result<(RemovalLog, Option<RemovalLog>), StoreError> {
    let there = root.join(CATALOG);
    // One that cannot be read must not be passed over: whoever knows that it knows nothing more moves it away.
    let known = if there.exists() { Some(RemovalLog::read(&there)?) } else { None };
    let (path, log) = match (later, &known) {
        (Later::Log(path), _) => (path.to_owned(), RemovalLog::read(path)?),
        (Later::None, Some(known)) => (there, known.clone()),
        (Later::None, None) => (PathBuf::new(), held.clone()),
    };
    for (name, other) in [("the backup", Some(held)), ("the store that is there", known.as_ref())] {
        let Some(other) = other else { continue };
        if !log.continues(other) {
            let (got, expected) = (log.records.len(), other.records.len());
            let reason = if log.store_id != other.store_id {
                format!("it is the log of another store than that of {name}")
            } else if got < expected {
                format!(
                    "it ends at entry {got}, {name} knows of {expected}: what was withdrawn after {got} would come back"
                )
            } else {
                format!("it is not the log that {name} has: their entries differ")
            };
            return Err(StoreError::RemovalLog { path, reason });
        }
    }
    if let Some(head) = head {
        let has = |r: &RemovalRecord| r.id == head.removal && r.chain == head.chain;
        if head.store_id != log.store_id {
            let reason =
                format!("it is the log of another store than that of {HEAD}; delete that file if its store is gone");
            return Err(StoreError::RemovalLog { path, reason });
        }
        if head.removal > 0 && !log.records.iter().any(has) {
            let (got, expected) = (log.records.len(), head.removal);
            let reason = format!(
                "it ends at entry {got} or goes another way; {HEAD} of the store that is there knows of {expected}"
            );
            return Err(StoreError::RemovalLog { path, reason });
        }
    }
    Ok((log, known))
}

fn copy_catalog(from: &Path, to: &Path) -> Result<(), StoreError> {
    remove_catalog(to)?;
    fs::copy(from, to).map_err(StoreError::io(to)).map(drop)
}

/// Deletes a catalog's file and what SQLite keeps beside it.
pub(crate) fn remove_catalog(path: &Path) -> Result<(), StoreError> {
    for end in ["-wal", "-shm", ""] {
        let file = PathBuf::from(format!("{}{end}", path.display()));
        match fs::remove_file(&file) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(StoreError::Io { path: file, source: e }),
            _ => {}
        }
    }
    Ok(())
}

/// Copies a shard, unless it is there and whole. Its damage, if it has any, comes with it: it is found at opening.
fn copy_shard(backup: &Path, root: &Path, name: &str, sha256: &str) -> Result<(), StoreError> {
    let target = root.join(SHARDS).join(name);
    if Shard::verify_at(&target, sha256).is_ok() {
        return Ok(());
    }
    let staged = root.join("tmp").join(name);
    for path in [&staged, &target] {
        if path.exists() {
            fs::remove_dir_all(path).map_err(StoreError::io(path))?;
        }
    }
    copy_directory(&backup.join(SHARDS).join(name), &staged)?;
    fs::rename(&staged, &target).map_err(StoreError::io(&target))
}

/// Puts a closed catalog in the place of the one that is there, if one is, by one rename. What SQLite kept beside the old one goes first: it
/// must never be taken for the new one's.
fn replace_catalog(root: &Path, restored: &Path) -> Result<(), StoreError> {
    let target = root.join(CATALOG);
    if target.exists() {
        // What its write-ahead log holds goes into its file, so that a crash before the rename leaves the old store whole.
        if let Ok(old) = Catalog::open(&target) {
            old.close()?;
        }
        for end in ["-wal", "-shm"] {
            let _ = fs::remove_file(format!("{}{end}", target.display())); // there only if the old catalog could not be opened
        }
    }
    fs::File::open(restored).and_then(|f| f.sync_all()).map_err(StoreError::io(restored))?;
    fs::rename(restored, &target).map_err(StoreError::io(&target))?;
    sync_directory(root)
}
