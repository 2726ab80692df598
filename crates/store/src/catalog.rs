//! The catalog: what was declared, added and removed. It alone says what is live.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use rusqlite::{Connection, OptionalExtension, Row, Transaction, params};
use silo_core::{Epoch, Permissions, ShardId, Source, SourceId};

use crate::{Manifest, StoreError};

/// Version of the schema.
const SCHEMA_VERSION: u32 = 1;

const SCHEMA: &str = "
CREATE TABLE sources (
    id INTEGER PRIMARY KEY AUTOINCREMENT,   -- never reused
    name TEXT NOT NULL UNIQUE,
    owner TEXT NOT NULL,
    licence TEXT NOT NULL,
    licence_stated_at TEXT NOT NULL,
    tier TEXT NOT NULL,
    permissions TEXT NOT NULL               -- JSON object, one boolean per purpose
) STRICT;
CREATE TABLE shards (
    id INTEGER PRIMARY KEY AUTOINCREMENT,   -- never reused
    source_id INTEGER NOT NULL REFERENCES sources (id),
    state TEXT NOT NULL CHECK (state IN ('live', 'removed')),
    directory TEXT NOT NULL UNIQUE,
    manifest_sha256 TEXT NOT NULL,
    model_hash TEXT NOT NULL,
    recipe_hash TEXT NOT NULL,
    n_documents INTEGER NOT NULL,
    n_tokens INTEGER NOT NULL,
    n_entries INTEGER NOT NULL,
    added_epoch INTEGER NOT NULL REFERENCES epochs (epoch),
    removed_epoch INTEGER REFERENCES epochs (epoch)
) STRICT;
CREATE TABLE epochs (
    epoch INTEGER PRIMARY KEY AUTOINCREMENT,
    at_unix_ms INTEGER NOT NULL,
    change TEXT NOT NULL                    -- 'add shard', 'rebuild shard', 'remove shard'
) STRICT;
";

/// Whether a shard is in the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ShardState {
    /// It is retrieved from.
    Live,
    /// It was withdrawn.
    Removed,
}

/// A shard's row in the catalog.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardRecord {
    /// Row number.
    pub id: ShardId,
    /// Its source.
    pub source: SourceId,
    /// Whether it is live.
    pub state: ShardState,
    /// Name of its directory below `shards/`.
    pub directory: String,
    /// SHA-256 of its manifest.
    pub manifest_sha256: String,
    /// Hash of its model.
    pub model_hash: String,
    /// Hash of its recipe.
    pub recipe_hash: String,
    /// Documents.
    pub n_documents: u64,
    /// Tokens.
    pub n_tokens: u64,
    /// Entries.
    pub n_entries: u64,
    /// When it came.
    pub added_epoch: Epoch,
    /// When it went.
    pub removed_epoch: Option<Epoch>,
}

#[derive(Debug)]
pub(crate) struct Catalog {
    path: PathBuf,
    connection: Mutex<Connection>,
}

impl Catalog {
    pub(crate) fn open(path: &Path) -> Result<Self, StoreError> {
        let connection = Connection::open(path).map_err(|e| Self::error(path, e))?;
        let catalog = Self { path: path.to_owned(), connection: Mutex::new(connection) };
        catalog.prepare()?;
        Ok(catalog)
    }

    fn error(path: &Path, source: rusqlite::Error) -> StoreError {
        StoreError::Catalog { path: path.to_owned(), source }
    }

    fn prepare(&self) -> Result<(), StoreError> {
        let version = self.run(|c| {
            c.pragma_update(None, "journal_mode", "WAL")?;
            c.pragma_update(None, "synchronous", "FULL")?; // acknowledged means on disk
            c.pragma_update(None, "foreign_keys", true)?;
            c.pragma_update(None, "secure_delete", true)?; // deleted bytes are overwritten
            c.query_row("PRAGMA user_version", [], |row| row.get::<_, u32>(0))
        })?;
        match version {
            0 => self.transaction(|t| {
                t.execute_batch(SCHEMA)?;
                t.pragma_update(None, "user_version", SCHEMA_VERSION)
            }),
            SCHEMA_VERSION => Ok(()),
            found => Err(StoreError::Version { path: self.path.clone(), found, expected: SCHEMA_VERSION }),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Connection> {
        // A panic in another call left no transaction behind: it was rolled back when its guard was dropped.
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run<T>(&self, f: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T, StoreError> {
        f(&self.lock()).map_err(|e| Self::error(&self.path, e))
    }

    fn transaction<T>(&self, f: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T>) -> Result<T, StoreError> {
        in_transaction(&mut self.lock(), f).map_err(|e| Self::error(&self.path, e))
    }

    pub(crate) fn epoch(&self) -> Result<Epoch, StoreError> {
        self.run(|c| {
            c.query_row("SELECT coalesce(max(epoch), 0) FROM epochs", [], |r| Ok(Epoch(r.get::<_, i64>(0)? as u64)))
        })
    }

    /// Adds a source; false if its name is taken.
    pub(crate) fn add_source(&self, source: &Source) -> Result<bool, StoreError> {
        let sql = "INSERT INTO sources (name, owner, licence, licence_stated_at, tier, permissions)
                   VALUES (?1, ?2, ?3, ?4, ?5, ?6) ON CONFLICT (name) DO NOTHING";
        let permissions = serde_json::json!(source.permissions).to_string();
        let tier = source.tier.name();
        self.run(|c| {
            c.execute(
                sql,
                params![source.id.as_str(), source.owner, source.licence, source.licence_stated_at, tier, permissions],
            )
        })
        .map(|n| n == 1)
    }

    /// All sources, sorted by name.
    pub(crate) fn sources(&self) -> Result<Vec<Source>, StoreError> {
        let sql = "SELECT name, owner, licence, licence_stated_at, tier, permissions FROM sources ORDER BY name";
        self.run(|c| c.prepare(sql)?.query_map([], read_source)?.collect())
    }

    /// Enters a published shard and makes its epoch, in one transaction.
    pub(crate) fn add_shard(
        &self,
        directory: &str,
        manifest: &Manifest,
        sha256: &str,
    ) -> Result<(ShardId, Epoch), StoreError> {
        self.transaction(|t| {
            let epoch = new_epoch(t, "add shard")?;
            t.execute(
                "INSERT INTO shards (source_id, state, directory, manifest_sha256, model_hash, recipe_hash,
                                     n_documents, n_tokens, n_entries, added_epoch)
                 VALUES ((SELECT id FROM sources WHERE name = ?1), 'live', ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
                params![
                    manifest.source.as_str(),
                    directory,
                    sha256,
                    manifest.model_hash.to_string(),
                    manifest.recipe_hash.to_string(),
                    manifest.n_documents as i64,
                    manifest.n_tokens as i64,
                    manifest.n_entries as i64,
                    epoch.0 as i64
                ],
            )?;
            Ok((ShardId(t.last_insert_rowid() as u64), epoch))
        })
    }

    /// Puts a rebuilt shard in the place of an old one and makes the epoch, in one transaction; `None` if the old one is not live any more.
    pub(crate) fn replace_shard(
        &self,
        old: &ShardRecord,
        directory: &str,
        manifest: &Manifest,
        sha256: &str,
    ) -> Result<Option<Epoch>, StoreError> {
        self.transaction(|t| {
            let sql = "UPDATE shards SET directory = ?3, manifest_sha256 = ?4, model_hash = ?5, recipe_hash = ?6, n_documents = ?7,
                                         n_tokens = ?8, n_entries = ?9
                       WHERE id = ?1 AND directory = ?2 AND state = 'live'";
            let changed = t.execute(
                sql,
                params![
                    old.id.0 as i64,
                    old.directory,
                    directory,
                    sha256,
                    manifest.model_hash.to_string(),
                    manifest.recipe_hash.to_string(),
                    manifest.n_documents as i64,
                    manifest.n_tokens as i64,
                    manifest.n_entries as i64,
                ],
            )?;
            if changed == 0 { Ok(None) } else { new_epoch(t, "rebuild shard").map(Some) }
        })
    }

    /// Marks a live shard removed and makes the epoch, in one transaction; `None` if it was not live.
    pub(crate) fn remove_shard(&self, id: ShardId) -> Result<Option<Epoch>, StoreError> {
        self.transaction(|t| {
            let live = "SELECT 1 FROM shards WHERE id = ?1 AND state = 'live'";
            if t.query_row(live, [id.0 as i64], |_| Ok(())).optional()?.is_none() {
                return Ok(None);
            }
            let epoch = new_epoch(t, "remove shard")?;
            let sql = "UPDATE shards SET state = 'removed', removed_epoch = ?2 WHERE id = ?1";
            t.execute(sql, params![id.0 as i64, epoch.0 as i64])?;
            Ok(Some(epoch))
        })
    }

    /// All shards that ever were, in the order of their ids.
    pub(crate) fn shards(&self) -> Result<Vec<ShardRecord>, StoreError> {
        let sql = "SELECT shards.id, name, state, directory, manifest_sha256, model_hash, recipe_hash,
                          n_documents, n_tokens, n_entries, added_epoch, removed_epoch
                   FROM shards JOIN sources ON sources.id = source_id ORDER BY shards.id";
        self.run(|c| c.prepare(sql)?.query_map([], read_shard)?.collect())
    }
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

fn new_epoch(t: &Transaction<'_>, change: &str) -> rusqlite::Result<Epoch> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as i64;
    t.execute("INSERT INTO epochs (at_unix_ms, change) VALUES (?1, ?2)", params![now, change])?;
    Ok(Epoch(t.last_insert_rowid() as u64))
}

/// Reads a column that holds the text form of something.
fn parsed<T>(row: &Row<'_>, column: usize, parse: impl FnOnce(&str) -> Result<T, String>) -> rusqlite::Result<T> {
    let text: String = row.get(column)?;
    parse(&text).map_err(|e| rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Text, e.into()))
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
    })
}

fn read_shard(row: &Row<'_>) -> rusqlite::Result<ShardRecord> {
    let number = |column| row.get::<_, i64>(column).map(|n| n as u64);
    Ok(ShardRecord {
        id: ShardId(number(0)?),
        source: parsed(row, 1, |t| t.parse().map_err(|e: silo_core::InvalidId| e.to_string()))?,
        state: if row.get::<_, String>(2)? == "live" { ShardState::Live } else { ShardState::Removed },
        directory: row.get(3)?,
        manifest_sha256: row.get(4)?,
        model_hash: row.get(5)?,
        recipe_hash: row.get(6)?,
        n_documents: number(7)?,
        n_tokens: number(8)?,
        n_entries: number(9)?,
        added_epoch: Epoch(number(10)?),
        removed_epoch: row.get::<_, Option<i64>>(11)?.map(|n| Epoch(n as u64)),
    })
}
