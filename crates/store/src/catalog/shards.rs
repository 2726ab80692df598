//! Shards and their documents.

use std::collections::BTreeSet;

use rusqlite::{Connection, OptionalExtension, Row, Transaction, params};
use silo_core::{Change, ContentHash, Epoch, ShardId, SourceId};

use super::{Catalog, conversion, parsed};
use crate::boundary::Boundary;
use crate::shard::StoredDocument;
use crate::{Manifest, Numbers, StoreError};

/// Whether a shard is in the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ShardState {
    /// It is retrieved from.
    Live,
    /// It is kept, but not retrieved from until it is resumed.
    Suspended,
    /// It was withdrawn.
    Removed,
}

/// A shard's row in the catalog.
#[derive(Debug, Clone, PartialEq)]
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
    /// Documents in its files.
    pub n_documents: u64,
    /// Tokens in its files.
    pub n_tokens: u64,
    /// Entries in its files.
    pub n_entries: u64,
    /// When it came.
    pub added_epoch: Epoch,
    /// When it went.
    pub removed_epoch: Option<Epoch>,
    /// Documents that are withdrawn and still in its files.
    pub withdrawn: Numbers,
    /// Documents that are gone from its files, of which the catalog still has the URIs.
    pub(crate) gone: Numbers,
}

/// Published files.
pub(crate) struct Files<'a> {
    pub(crate) directory: &'a str,
    pub(crate) manifest: &'a Manifest,
    pub(crate) sha256: &'a str,
}

pub(super) const COLUMNS: &str = "SELECT shards.id, name, state, directory, manifest_sha256, model_hash, recipe_hash,
                              n_documents, n_tokens, n_entries, added_epoch, removed_epoch, withdrawn, gone
                       FROM shards LEFT JOIN sources ON sources.id = source_id WHERE state != 'entering'";

impl Catalog {
    /// Gives a shard that is about to be entered its number, and enters its documents; it is not in the store yet.
    pub(crate) fn prepare_shard(&self, files: &Files<'_>, documents: &[StoredDocument]) -> Result<ShardId, StoreError> {
        let _alone = self.bulk.lock();
        let id = self.reserve_shard(files)?;
        for batch in documents.chunks(self.batch) {
            if let Err(error) = self.transaction(|t| batch.iter().try_for_each(|d| add_document(t, id, d))) {
                let _ = self.drop_documents(id); // struck out at the next start otherwise
                return Err(error);
            }
            self.at(Boundary::BatchCommitted);
        }
        Ok(id)
    }

    fn reserve_shard(&self, files: &Files<'_>) -> Result<ShardId, StoreError> {
        let Files { directory, manifest, sha256 } = files;
        self.transaction(|t| {
            t.execute(
                "INSERT INTO shards (source_id, state, directory, manifest_sha256, model_hash, recipe_hash,
                                     n_documents, n_tokens, n_entries)
                 VALUES ((SELECT id FROM sources WHERE name = ?1), 'entering', ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
                params![
                    manifest.source.as_str(),
                    directory,
                    sha256,
                    manifest.model_hash.to_string(),
                    manifest.recipe_hash.to_string(),
                    manifest.n_documents as i64,
                    manifest.n_tokens as i64,
                    manifest.n_entries as i64,
                ],
            )?;
            Ok(ShardId(t.last_insert_rowid() as u64))
        })
    }

    /// Makes a prepared shard live, in the epoch that the change makes.
    pub(crate) fn enter_shard(&self, id: ShardId, actor: &str, change: &Change) -> Result<(), StoreError> {
        self.change(actor, change, |t| {
            let sql = "UPDATE shards SET state = 'live', added_epoch = (SELECT max(epoch) FROM epochs)
                       WHERE id = ?1 AND state = 'entering'";
            t.execute(sql, [id.0 as i64]).map(drop)
        })
    }

    /// Strikes out the documents of a shard that was prepared and not entered, or of all such. Its row stays until the pages are wiped.
    pub(crate) fn drop_prepared(&self, id: Option<ShardId>) -> Result<(), StoreError> {
        let _alone = self.bulk.lock();
        let sql = "SELECT id FROM shards WHERE state = 'entering' AND (?1 IS NULL OR id = ?1)";
        let read = |r: &Row<'_>| r.get::<_, i64>(0).map(|id| ShardId(id as u64));
        let entering: Vec<ShardId> =
            self.run(|c| c.prepare(sql)?.query_map([id.map(|id| id.0 as i64)], read)?.collect())?;
        entering.into_iter().try_for_each(|id| self.drop_documents(id))
    }

    fn drop_documents(&self, id: ShardId) -> Result<(), StoreError> {
        for (table, key) in [("other_uris", "uri, number"), ("documents", "number")] {
            let some = format!("SELECT {key} FROM {table} WHERE shard_id = ?1 LIMIT {}", self.batch);
            let sql = format!("DELETE FROM {table} WHERE shard_id = ?1 AND ({key}) IN ({some})");
            while self.transaction(|t| t.execute(&sql, [id.0 as i64]))? > 0 {
                self.at(Boundary::BatchCommitted);
            }
        }
        Ok(())
    }

    /// Puts other files in the place of a shard's, in one transaction: encoded again, or without the documents `gone`, which are all that was
    /// withdrawn but `withdrawn`. `old` is what the catalog has now. A `change` of what is retrieved makes an epoch.
    pub(crate) fn replace_files(
        &self,
        old: &ShardRecord,
        files: &Files<'_>,
        (gone, withdrawn): (&Numbers, &Numbers),
        change: Option<(&str, &Change)>,
    ) -> Result<(), StoreError> {
        let Files { directory, manifest, sha256 } = files;
        let replace = |t: &Transaction<'_>| {
            let sql = "UPDATE shards SET directory = ?2, manifest_sha256 = ?3, model_hash = ?4, recipe_hash = ?5, n_documents = ?6,
                                         n_tokens = ?7, n_entries = ?8, withdrawn = ?9, gone = ?10
                       WHERE id = ?1 AND directory = ?11 AND state IN ('live', 'suspended')";
            let n = t.execute(
                sql,
                params![
                    old.id.0 as i64,
                    directory,
                    sha256,
                    manifest.model_hash.to_string(),
                    manifest.recipe_hash.to_string(),
                    manifest.n_documents as i64,
                    manifest.n_tokens as i64,
                    manifest.n_entries as i64,
                    numbers_column(withdrawn),
                    numbers_column(&old.gone.union(gone)),
                    old.directory,
                ],
            )?;
            if n == 1 { Ok(()) } else { Err(rusqlite::Error::StatementChangedRows(n)) }
        };
        match change {
            Some((actor, change)) => self.change(actor, change, replace),
            None => self.transaction(replace),
        }
    }

    /// Strikes out the URIs of documents whose bytes are gone: those that a shard's record says, or all of a removed one. Their hashes stay,
    /// for receipts.
    pub(crate) fn forget_documents(&self, record: &ShardRecord) -> Result<(), StoreError> {
        let shard = record.id;
        let of_shard = "SELECT number FROM documents WHERE shard_id = ?1 AND uri IS NOT NULL";
        let all: Vec<u32> = match record.state {
            ShardState::Removed => {
                self.run(|c| c.prepare(of_shard)?.query_map([shard.0 as i64], |r| r.get(0))?.collect())?
            }
            ShardState::Live | ShardState::Suspended => record.gone.iter().collect(),
        };
        let _alone = self.bulk.lock();
        let others = self.other_uris(shard, &all)?;
        for batch in others.chunks(self.batch) {
            let sql = "DELETE FROM other_uris WHERE shard_id = ?1 AND uri = ?2 AND number = ?3";
            self.transaction(|t| {
                let mut forget = t.prepare(sql)?;
                batch.iter().try_for_each(|(uri, n)| forget.execute(params![shard.0 as i64, uri, n]).map(drop))
            })?;
            self.at(Boundary::BatchCommitted);
        }
        for batch in all.chunks(self.batch) {
            self.transaction(|t| {
                let mut forget = t.prepare("UPDATE documents SET uri = NULL WHERE shard_id = ?1 AND number = ?2")?;
                batch.iter().try_for_each(|n| forget.execute(params![shard.0 as i64, n]).map(drop))
            })?;
            self.at(Boundary::BatchCommitted);
        }
        // What is gone is added to by the one who calls this only.
        self.run(|c| c.execute("UPDATE shards SET gone = NULL WHERE id = ?1", [shard.0 as i64]).map(drop))
    }

    /// The further URIs of documents of a shard. They are found by a look at all of the shard: there is no index by number.
    fn other_uris(&self, shard: ShardId, numbers: &[u32]) -> Result<Vec<(String, u32)>, StoreError> {
        let numbers: Numbers = numbers.iter().copied().collect();
        let sql = "SELECT uri, number FROM other_uris WHERE shard_id = ?1";
        let read = |r: &Row<'_>| Ok((r.get(0)?, r.get(1)?));
        let mut all: Vec<(String, u32)> = self.run(|c| c.prepare(sql)?.query_map([shard.0 as i64], read)?.collect())?;
        all.retain(|(_, number)| numbers.contains(*number));
        Ok(all)
    }

    /// All shards that ever were, in the order of their ids.
    pub(crate) fn shards(&self) -> Result<Vec<ShardRecord>, StoreError> {
        self.run(|c| c.prepare(&format!("{COLUMNS} ORDER BY shards.id"))?.query_map([], read_shard)?.collect())
    }

    /// One shard.
    pub(crate) fn shard(&self, id: ShardId) -> Result<Option<ShardRecord>, StoreError> {
        self.run(|c| shard_in(c, id))
    }

    /// The greatest number that a shard was ever given.
    pub(crate) fn last_shard(&self) -> Result<ShardId, StoreError> {
        let sql = "SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = 'shards'";
        self.run(|c| c.query_row(sql, [], |r| Ok(ShardId(r.get::<_, i64>(0)? as u64))))
    }

    /// Number and hash of the documents that a shard's files hold, in the order of the numbers.
    pub(crate) fn documents(&self, shard: &ShardRecord) -> Result<Vec<(u32, ContentHash)>, StoreError> {
        let sql = "SELECT number, hash FROM documents WHERE shard_id = ?1 AND uri IS NOT NULL ORDER BY number";
        let read = |r: &Row<'_>| Ok((r.get(0)?, ContentHash(r.get(1)?)));
        let mut all: Vec<(u32, ContentHash)> =
            self.run(|c| c.prepare(sql)?.query_map([shard.id.0 as i64], read)?.collect())?;
        all.retain(|(number, _)| !shard.gone.contains(*number));
        Ok(all)
    }

    /// Number and URIs of the same documents.
    pub(crate) fn uris(&self, shard: &ShardRecord) -> Result<BTreeSet<(u32, String)>, StoreError> {
        let sql = "SELECT number, uri FROM documents WHERE shard_id = ?1 AND uri IS NOT NULL
                   UNION ALL SELECT number, uri FROM other_uris WHERE shard_id = ?1";
        let read = |r: &Row<'_>| Ok((r.get(0)?, r.get(1)?));
        let mut all: BTreeSet<(u32, String)> =
            self.run(|c| c.prepare(sql)?.query_map([shard.id.0 as i64], read)?.collect())?;
        all.retain(|(number, _)| !shard.gone.contains(*number));
        Ok(all)
    }
}

pub(super) fn shard_in(c: &Connection, id: ShardId) -> rusqlite::Result<Option<ShardRecord>> {
    c.prepare_cached(&format!("{COLUMNS} AND shards.id = ?1"))?.query_row([id.0 as i64], read_shard).optional()
}

fn add_document(t: &Transaction<'_>, shard: ShardId, d: &StoredDocument) -> rusqlite::Result<()> {
    let sql = "INSERT INTO documents (shard_id, number, hash, uri) VALUES (?1, ?2, ?3, ?4)";
    t.prepare_cached(sql)?.execute(params![shard.0 as i64, d.number, d.hash.0, d.document.uri])?;
    let sql = "INSERT OR IGNORE INTO duplicates (hash) SELECT ?1 WHERE EXISTS (
                   SELECT 1 FROM documents JOIN shards ON shards.id = shard_id
                   WHERE hash = ?1 AND shard_id != ?2 AND source_id = (SELECT source_id FROM shards WHERE id = ?2))";
    t.prepare_cached(sql)?.execute(params![d.hash.0, shard.0 as i64])?;
    for uri in &d.other_uris {
        let sql = "INSERT INTO other_uris (shard_id, uri, number) VALUES (?1, ?2, ?3)";
        t.prepare_cached(sql)?.execute(params![shard.0 as i64, uri, d.number])?;
    }
    Ok(())
}

/// Sets of numbers as a column: NULL is the empty one.
pub(super) fn numbers_column(numbers: &Numbers) -> Option<Vec<u8>> {
    (!numbers.is_empty()).then(|| numbers.to_bytes())
}

pub(super) fn read_numbers(row: &Row<'_>, column: usize) -> rusqlite::Result<Numbers> {
    let bytes: Option<Vec<u8>> = row.get(column)?;
    bytes.map_or_else(|| Ok(Numbers::default()), |b| Numbers::from_bytes(&b).map_err(|e| conversion(column, e)))
}

pub(super) fn read_shard(row: &Row<'_>) -> rusqlite::Result<ShardRecord> {
    let number = |column| row.get::<_, i64>(column).map(|n| n as u64);
    let state = |text: &str| match text {
        "live" => Ok(ShardState::Live),
        "suspended" => Ok(ShardState::Suspended),
        "removed" => Ok(ShardState::Removed),
        other => Err(format!("'{other}' is no state of a shard")),
    };
    Ok(ShardRecord {
        id: ShardId(number(0)?),
        source: parsed(row, 1, |t| t.parse().map_err(|e: silo_core::InvalidId| e.to_string()))?,
        state: parsed(row, 2, state)?,
        directory: row.get(3)?,
        manifest_sha256: row.get(4)?,
        model_hash: row.get(5)?,
        recipe_hash: row.get(6)?,
        n_documents: number(7)?,
        n_tokens: number(8)?,
        n_entries: number(9)?,
        added_epoch: Epoch(number(10)?),
        removed_epoch: row.get::<_, Option<i64>>(11)?.map(|n| Epoch(n as u64)),
        withdrawn: read_numbers(row, 12)?,
        gone: read_numbers(row, 13)?,
    })
}
