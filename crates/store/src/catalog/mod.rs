//! The catalog: what was declared, added and withdrawn. It alone says what is live.

mod changes;
mod head;
mod ledger;
mod optouts;
mod policies;
mod removals;
mod resolve;
mod schema;
mod shards;
mod wipe;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::{FairMutex, FairMutexGuard, Mutex};
use rusqlite::{Connection, OpenFlags, Row, Transaction, params};
use serde::{Deserialize, Serialize};
use silo_core::{Change, Epoch, Permissions, ShardId, Source};

pub use changes::{Moments, SILO};
pub(crate) use head::{HEAD, Head};
pub use ledger::LedgerRow;
pub(crate) use optouts::{NewStep, WithRemoval};
pub use optouts::{Suppression, Workflow};
pub(crate) use policies::PolicyRow;
pub(crate) use removals::{NewRemoval, chain_is_whole};
pub use removals::{RemovalKind, RemovalPart, RemovalRecord};
pub(crate) use shards::Files;
pub use shards::{ShardRecord, ShardState};

use self::head::HeadFile;
use crate::backup::CATALOG;
use crate::boundary::{AtBoundary, Boundary};
use crate::{StoreError, StoreOptions};

/// How long a reader of another process is waited for. Nobody else writes.
const BUSY: Duration = Duration::from_millis(50);

/// Rows that are changed in one transaction of bulk work, where nothing else is said.
const DEFAULT_BATCH: usize = 2000;

pub(crate) struct Catalog {
    path: PathBuf,
    /// Fair: a removal gets its turn between the batches of bulk work.
    connection: FairMutex<Connection>,
    /// Rows of documents are entered, struck out and wiped by one at a time, in batches.
    bulk: Mutex<()>,
    /// Rows that are changed in one transaction of bulk work.
    batch: usize,
    /// Since when withdrawals are in force: entered with the next change.
    pending: Mutex<Vec<Change>>,
    /// Of a catalog that is in force.
    head: Mutex<Option<HeadFile>>,
    at_boundary: Option<Arc<AtBoundary>>,
}

/// A backup that was made, by the catalog of the store that it was made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BackupRecord {
    /// Name of its directory.
    pub name: String,
    /// The epoch that it holds, or an earlier one.
    pub epoch: Epoch,
    /// Withdrawals from this epoch on may have bytes in it.
    pub clean_epoch: Epoch,
    /// When it was made, in milliseconds since 1970.
    pub at_unix_ms: i64,
}

impl Catalog {
    /// Opens the catalog, makes it, or brings it to the version of today.
    pub(crate) fn open(path: &Path) -> Result<Self, StoreError> {
        let connection = Connection::open(path).map_err(|e| Self::error(path, e))?;
        let catalog = Self::of(path, connection);
        catalog.prepare()?;
        Ok(catalog)
    }

    /// Opens the catalog of the store at `root`, which must not end before a change that was acknowledged.
    pub(crate) fn open_in_force(root: &Path, options: &StoreOptions) -> Result<Self, StoreError> {
        let path = root.join(CATALOG);
        if let Some(acknowledged) = Head::read(root)? {
            // Looked at without touching it: what a damaged one still holds may be of use.
            let own = Self::look(&path)?.newest()?;
            if let Some(reason) = own.lacks(&acknowledged) {
                return Err(StoreError::Head { path: root.join(HEAD), reason });
            }
        }
        let batch = if options.batch == 0 { DEFAULT_BATCH } else { options.batch };
        let catalog = Self { at_boundary: options.at_boundary.clone(), batch, ..Self::open(&path)? };
        catalog.redo()?;
        catalog.run(|c| {
            let gone = "directory NOT IN (SELECT directory FROM shards WHERE state != 'removed')";
            c.execute(&format!("DELETE FROM quarantined WHERE {gone}"), []).map(drop)
        })?;
        let head = HeadFile::open(root, &catalog.newest()?)?;
        *catalog.head.lock() = Some(head);
        Ok(catalog)
    }

    fn of(path: &Path, connection: Connection) -> Self {
        let (connection, bulk, head) = (FairMutex::new(connection), Mutex::default(), Mutex::default());
        let (pending, batch) = (Mutex::default(), DEFAULT_BATCH);
        Self { path: path.to_owned(), connection, bulk, batch, pending, head, at_boundary: None }
    }

    /// Opens a catalog for looking only, also that of a store in use.
    pub(crate) fn open_read_only(path: &Path) -> Result<Self, StoreError> {
        let catalog = Self::look(path)?;
        catalog.check_version(catalog.version()?)?;
        Ok(catalog)
    }

    /// The same, of whatever version.
    fn look(path: &Path) -> Result<Self, StoreError> {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(path, flags).map_err(|e| Self::error(path, e))?;
        Ok(Self::of(path, connection))
    }

    fn error(path: &Path, source: rusqlite::Error) -> StoreError {
        StoreError::Catalog { path: path.to_owned(), source }
    }

    fn version(&self) -> Result<u32, StoreError> {
        self.run(|c| c.query_row("PRAGMA user_version", [], |row| row.get(0)))
    }

    fn check_version(&self, found: u32) -> Result<(), StoreError> {
        let expected = schema::VERSION;
        if found == expected { Ok(()) } else { Err(StoreError::Version { path: self.path.clone(), found, expected }) }
    }

    fn prepare(&self) -> Result<(), StoreError> {
        self.run(|c| {
            c.busy_timeout(BUSY)?;
            c.pragma_update(None, "journal_mode", "WAL")?;
            c.pragma_update(None, "synchronous", "FULL")?; // acknowledged means on disk
            c.pragma_update(None, "secure_delete", true)?; // deleted bytes are overwritten
            c.pragma_update(None, "foreign_keys", false) // until the tables are those of today
        })?;
        let set_version = |t: &Transaction<'_>| t.pragma_update(None, "user_version", schema::VERSION);
        match self.version()? {
            0 => self.transaction(|t| {
                t.execute_batch(schema::SCHEMA)?;
                new_store_id(t)?;
                optouts::new_key(t)?;
                changes::new_log(t)?;
                set_version(t)
            })?,
            1 => self.transaction(|t| {
                t.execute_batch(schema::FROM_1)?;
                t.execute_batch(schema::SCHEMA)?;
                t.execute_batch(schema::FROM_1_COPY)?;
                new_store_id(t)?;
                optouts::new_key(t)?;
                changes::new_log(t)?;
                removals::chain_anew(t)?;
                set_version(t)
            })?,
            version @ 2..=5 => self.transaction(|t| {
                if version == 2 {
                    t.execute_batch(schema::FROM_2)?;
                }
                if version < 4 {
                    t.execute_batch(schema::FROM_3)?;
                    changes::new_log(t)?;
                }
                if version < 5 {
                    t.execute_batch(schema::FROM_4)?;
                    optouts::new_key(t)?;
                }
                t.execute_batch(schema::FROM_5)?;
                set_version(t)
            })?,
            found => self.check_version(found)?,
        }
        let expected = tables_of_today().map_err(|e| Self::error(&self.path, e))?;
        if self.run(tables)? != expected || !self.run(small_tables_are_whole)? {
            return Err(StoreError::Tables { path: self.path.clone() });
        }
        self.run(|c| c.pragma_update(None, "foreign_keys", true))
    }

    fn lock(&self) -> FairMutexGuard<'_, Connection> {
        // A panic in another call left no transaction behind: it was rolled back when its guard was dropped.
        self.connection.lock()
    }

    fn at(&self, boundary: Boundary) {
        self.at_boundary.iter().for_each(|at| at(boundary));
    }

    fn run<T>(&self, f: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T, StoreError> {
        f(&self.lock()).map_err(|e| Self::error(&self.path, e))
    }

    fn transaction<T>(&self, f: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T>) -> Result<T, StoreError> {
        in_transaction(&mut self.lock(), f).map_err(|e| Self::error(&self.path, e))
    }

    /// A transaction that is entered in the log of changes, and makes the epoch that the entry names. Once its head is written, no catalog
    /// without it is opened any more.
    fn change<T>(
        &self,
        actor: &str,
        change: &Change,
        f: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T>,
    ) -> Result<T, StoreError> {
        let mut connection = self.lock();
        let mut pending = self.pending.lock();
        let value = in_transaction(&mut connection, |t| {
            pending.iter().try_for_each(|change| changes::append(t, SILO, change))?;
            if let Some(state) = change.state() {
                let sql = "INSERT INTO epochs (epoch, at_unix_ms, change) VALUES (?1, ?2, ?3)";
                t.execute(sql, params![state.epoch.0 as i64, now_unix_ms(), changes::name(change)])?;
            }
            let value = f(t)?;
            changes::append(t, actor, change)?;
            Ok(value)
        })
        .map_err(|e| Self::error(&self.path, e))?;
        pending.clear();
        self.at(Boundary::CatalogCommitted);
        if let Some(head) = &mut *self.head.lock() {
            // The change is done and must be answered as done. Without its head a loss of it would not be noticed until the next change is.
            let _ = newest(&connection).map(|newest| head.write(&newest));
        }
        Ok(value)
    }

    /// The newest change that it holds.
    pub(crate) fn newest(&self) -> Result<Head, StoreError> {
        self.run(newest)
    }

    /// The store's own name, which its backups share.
    pub(crate) fn store_id(&self) -> Result<String, StoreError> {
        self.run(|c| c.query_row("SELECT id FROM store", [], |r| r.get(0)))
    }

    pub(crate) fn epoch(&self) -> Result<Epoch, StoreError> {
        self.run(|c| {
            c.query_row("SELECT coalesce(max(epoch), 0) FROM epochs", [], |r| Ok(Epoch(r.get::<_, i64>(0)? as u64)))
        })
    }

    /// Notes that files are damaged.
    pub(crate) fn quarantine(&self, directory: &str, change: &Change) -> Result<(), StoreError> {
        let sql = "INSERT OR IGNORE INTO quarantined (directory) VALUES (?1)";
        self.change(SILO, change, |t| t.execute(sql, [directory]).map(drop))
    }

    /// Files that were found damaged.
    pub(crate) fn quarantined(&self) -> Result<BTreeSet<String>, StoreError> {
        self.run(|c| c.prepare("SELECT directory FROM quarantined")?.query_map([], |r| r.get(0))?.collect())
    }

    /// Files that were damaged are whole.
    pub(crate) fn end_quarantine(&self, directory: &str) -> Result<(), StoreError> {
        self.run(|c| c.execute("DELETE FROM quarantined WHERE directory = ?1", [directory]).map(drop))
    }

    /// Adds a source; false if its name is taken.
    pub(crate) fn add_source(&self, source: &Source, actor: &str) -> Result<bool, StoreError> {
        let taken = "SELECT EXISTS (SELECT 1 FROM sources WHERE name = ?1)";
        if self.run(|c| c.query_row(taken, [source.id.as_str()], |r| r.get(0)))? {
            return Ok(false);
        }
        let sql = "INSERT INTO sources (name, owner, licence, licence_stated_at, tier, permissions, notice)
                   VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)";
        let permissions = serde_json::json!(source.permissions).to_string();
        let (name, tier) = (source.id.as_str(), source.tier.name());
        let stated = &source.licence_stated_at;
        let row = params![name, source.owner, source.licence, stated, tier, permissions, source.notice];
        let (id, licence, tier) = (source.id.clone(), source.licence.clone(), source.tier);
        let change = Change::CreateSource { source: id, licence, tier };
        self.change(actor, &change, |t| t.execute(sql, row).map(drop))?;
        Ok(true)
    }

    /// All sources with what they may be used for, sorted by name.
    pub(crate) fn sources(&self) -> Result<Vec<Source>, StoreError> {
        let sql =
            "SELECT name, owner, licence, licence_stated_at, tier, permissions, notice FROM sources ORDER BY name";
        let mut all: Vec<Source> = self.run(|c| c.prepare(sql)?.query_map([], read_source)?.collect())?;
        for (id, _, row) in self.policies()? {
            all.iter_mut().filter(|source| source.id == id).for_each(|source| source.permissions = row.in_force);
        }
        Ok(all)
    }

    /// What SQLite itself finds wrong with its file; nothing, if it is whole.
    pub(crate) fn check(&self) -> Result<Vec<String>, StoreError> {
        self.run(|c| {
            let mut found: Vec<String> =
                c.prepare("PRAGMA integrity_check")?.query_map([], |r| r.get(0))?.collect::<rusqlite::Result<_>>()?;
            found.retain(|line| line != "ok");
            let dangling = |r: &Row<'_>| Ok(format!("a row of {} points nowhere", r.get::<_, String>(0)?));
            let mut dangling: Vec<String> =
                c.prepare("PRAGMA foreign_key_check")?.query_map([], dangling)?.collect::<rusqlite::Result<_>>()?;
            found.append(&mut dangling);
            let known = tables(c)? == tables_of_today()?;
            found.extend((!known).then(|| "its tables are not those that this program makes".to_owned()));
            Ok(found)
        })
    }

    /// Writes a copy of the catalog as it is now to a new file, by a connection of its own: no change waits for it.
    pub(crate) fn copy_to(&self, path: &Path) -> Result<(), StoreError> {
        let target = path.to_string_lossy().into_owned();
        Self::open_read_only(&self.path)?.run(|c| c.execute("VACUUM INTO ?1", [target]).map(drop))
    }

    /// Closes the catalog with all its pages in one file, for it to be renamed.
    pub(crate) fn close(self) -> Result<(), StoreError> {
        self.run(|c| c.pragma_update(None, "journal_mode", "DELETE"))?;
        let path = self.path;
        let connection = self.connection.into_inner();
        connection.close().map_err(|(_, e)| Self::error(&path, e))
    }

    /// Enters a backup; false if its name is known.
    pub(crate) fn add_backup(&self, backup: &BackupRecord) -> Result<bool, StoreError> {
        let sql =
            "INSERT INTO backups (name, epoch, clean_epoch, at_unix_ms) VALUES (?1, ?2, ?3, ?4) ON CONFLICT DO NOTHING";
        let (epoch, clean) = (backup.epoch.0 as i64, backup.clean_epoch.0 as i64);
        self.run(|c| c.execute(sql, params![backup.name, epoch, clean, backup.at_unix_ms]).map(|n| n == 1))
    }

    /// Strikes a backup out, after it was deleted; false if it is not known.
    pub(crate) fn forget_backup(&self, name: &str) -> Result<bool, StoreError> {
        self.run(|c| c.execute("DELETE FROM backups WHERE name = ?1", [name]).map(|n| n == 1))
    }

    /// The backups that are known, oldest first.
    pub(crate) fn backups(&self) -> Result<Vec<BackupRecord>, StoreError> {
        let read = |r: &Row<'_>| {
            let epoch = |column| r.get::<_, i64>(column).map(|n| Epoch(n as u64));
            Ok(BackupRecord { name: r.get(0)?, epoch: epoch(1)?, clean_epoch: epoch(2)?, at_unix_ms: r.get(3)? })
        };
        let sql = "SELECT name, epoch, clean_epoch, at_unix_ms FROM backups ORDER BY epoch, name";
        self.run(|c| c.prepare(sql)?.query_map([], read)?.collect())
    }
}

/// The texts that our tables and indexes were made of, without comments and spaces, and all triggers. SQLite believes them whatever they
/// say. What others have added (statistics, an index, a view) is their own.
fn tables(c: &Connection) -> rusqlite::Result<Vec<String>> {
    let plain = |r: &Row<'_>| {
        let sql: Option<String> = r.get(0)?; // indexes that SQLite makes itself have none
        let lines = sql.iter().flat_map(|sql| sql.lines()).map(|line| line.split("--").next().unwrap_or_default());
        Ok(lines.flat_map(str::split_whitespace).collect())
    };
    let ours = format!("type = 'trigger' OR name IN ({})", schema::NAMES);
    c.prepare(&format!("SELECT sql FROM sqlite_schema WHERE {ours} ORDER BY name"))?.query_map([], plain)?.collect()
}

/// Whether the tables that say what is live are well formed and agree with their indexes. Those with a row per document are `verify`'s.
fn small_tables_are_whole(c: &Connection) -> rusqlite::Result<bool> {
    for table in [
        "store",
        "log",
        "sources",
        "shards",
        "removals",
        "removal_parts",
        "quarantined",
        "optouts",
        "suppressions",
        "policies",
        "ledger",
    ] {
        let answer: String = c.query_row(&format!("PRAGMA integrity_check({table})"), [], |r| r.get(0))?;
        if answer != "ok" {
            return Ok(false);
        }
    }
    Ok(true)
}

fn tables_of_today() -> rusqlite::Result<Vec<String>> {
    let fresh = Connection::open_in_memory()?;
    fresh.execute_batch(schema::SCHEMA)?;
    tables(&fresh)
}

fn newest(c: &Connection) -> rusqlite::Result<Head> {
    let sql = "SELECT store.id, (SELECT coalesce(max(epoch), 0) FROM epochs),
                      (SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = 'shards'),
                      (SELECT count(*) FROM shards NOT INDEXED WHERE state IN ('live', 'suspended')) FROM store";
    let (removal, chain) = removals::head(c)?;
    let number = |r: &Row<'_>, column| r.get::<_, i64>(column).map(|n| n as u64);
    c.query_row(sql, [], |r| {
        let (epoch, last_shard, n_shards) = (Epoch(number(r, 1)?), ShardId(number(r, 2)?), number(r, 3)?);
        Ok(Head { store_id: r.get(0)?, epoch, last_shard, n_shards, removal, chain })
    })
}

/// Commits what `f` did, or nothing of it.
fn in_transaction<T>(
    connection: &mut Connection,
    f: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T>,
) -> rusqlite::Result<T> {
    let transaction = connection.transaction()?;
    let value = f(&transaction)?;
    transaction.commit()?;
    Ok(value)
}

fn new_store_id(t: &Transaction<'_>) -> rusqlite::Result<()> {
    t.execute("INSERT INTO store (id) VALUES (?1)", [uuid::Uuid::new_v4().to_string()]).map(drop)
}

/// The time, in milliseconds since 1970.
pub fn now_unix_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as i64
}

/// A value that cannot be what it says.
fn conversion(column: usize, reason: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Text, reason.into())
}

/// Reads a column that holds the text form of something.
fn parsed<T>(row: &Row<'_>, column: usize, parse: impl FnOnce(&str) -> Result<T, String>) -> rusqlite::Result<T> {
    let text: String = row.get(column)?;
    parse(&text).map_err(|e| conversion(column, e))
}

fn read_source(row: &Row<'_>) -> rusqlite::Result<Source> {
    let permissions = |t: &str| serde_json::from_str::<Permissions>(t).map_err(|e| e.to_string());
    Ok(Source {
        id: parsed(row, 0, |t| t.parse().map_err(|e: silo_core::InvalidId| e.to_string()))?,
        owner: row.get(1)?,
        licence: row.get(2)?,
        licence_stated_at: row.get(3)?,
        tier: parsed(row, 4, str::parse)?,
        permissions: parsed(row, 5, permissions)?,
        notice: row.get(6)?,
    })
}
