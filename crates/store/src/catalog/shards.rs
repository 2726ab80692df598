//! Shards and their documents.

use std::collections::HashMap;

use rusqlite::{OptionalExtension, Row, Transaction, params};
use silo_core::{ContentHash, Epoch, Selection, ShardId, SourceId};

use super::{Catalog, RemovalPart, conversion, new_epoch, parsed};
use crate::shard::StoredDocument;
use crate::{Manifest, Numbers, StoreError};

/// Documents that are entered or struck out in one transaction: a removal never waits for more.
const ROWS_PER_TRANSACTION: usize = 2000;

/// So many documents are read one by one, whichever shards they lie in.
const FEW_DOCUMENTS: u64 = 4000;

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

/// A shard whose files were replaced.
pub(crate) struct Switched {
    pub(crate) epoch: Option<Epoch>,
    /// What is withdrawn and stands in the new files too.
    pub(crate) withdrawn: Numbers,
    pub(crate) suspended: bool,
}

const COLUMNS: &str = "SELECT shards.id, name, state, directory, manifest_sha256, model_hash, recipe_hash,
                              n_documents, n_tokens, n_entries, added_epoch, removed_epoch, withdrawn, gone
                       FROM shards JOIN sources ON sources.id = source_id WHERE state != 'entering'";

impl Catalog {
    /// Gives a shard that is about to be entered its number, and enters its documents; it is not in the store yet.
    pub(crate) fn prepare_shard(
        &self,
        directory: &str,
        manifest: &Manifest,
        sha256: &str,
        documents: &[StoredDocument],
    ) -> Result<ShardId, StoreError> {
        let id = self.transaction(|t| {
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
        })?;
        for chunk in documents.chunks(ROWS_PER_TRANSACTION) {
            self.transaction(|t| chunk.iter().try_for_each(|d| add_document(t, id, d)))?;
        }
        Ok(id)
    }

    /// Makes a prepared shard live, and its epoch.
    pub(crate) fn enter_shard(&self, id: ShardId) -> Result<Epoch, StoreError> {
        self.transaction(|t| {
            let epoch = new_epoch(t, "add shard")?;
            let sql = "UPDATE shards SET state = 'live', added_epoch = ?2 WHERE id = ?1 AND state = 'entering'";
            t.execute(sql, params![id.0 as i64, epoch.0 as i64])?;
            Ok(epoch)
        })
    }

    /// Strikes out a shard that was prepared and not entered, or all such.
    pub(crate) fn drop_prepared(&self, id: Option<ShardId>) -> Result<(), StoreError> {
        let id = id.map(|id| id.0 as i64);
        let entering = "state = 'entering' AND (?1 IS NULL OR id = ?1)";
        self.transaction(|t| {
            for table in ["other_uris", "documents"] {
                let sql = format!("DELETE FROM {table} WHERE shard_id IN (SELECT id FROM shards WHERE {entering})");
                t.execute(&sql, [id])?;
            }
            t.execute(&format!("DELETE FROM shards WHERE {entering}"), [id]).map(drop)
        })
    }

    /// Puts other files in the place of a shard's, in one transaction: encoded again, or without the documents `gone`. `None` if the shard
    /// has other files meanwhile, or is removed. A `change` of what is retrieved makes an epoch.
    pub(crate) fn replace_files(
        &self,
        old: &ShardRecord,
        directory: &str,
        manifest: &Manifest,
        sha256: &str,
        gone: &Numbers,
        change: Option<&str>,
    ) -> Result<Option<Switched>, StoreError> {
        self.transaction(|t| {
            let sql = "SELECT withdrawn, gone, state = 'suspended' FROM shards
                       WHERE id = ?1 AND directory = ?2 AND state IN ('live', 'suspended')";
            let read = |r: &Row<'_>| Ok((read_numbers(r, 0)?, read_numbers(r, 1)?, r.get(2)?));
            let found = t.query_row(sql, params![old.id.0 as i64, old.directory], read).optional()?;
            let Some((before, gone_before, suspended)) = found else { return Ok(None) };
            let withdrawn = before.without(gone);
            let sql = "UPDATE shards SET directory = ?2, manifest_sha256 = ?3, model_hash = ?4, recipe_hash = ?5, n_documents = ?6,
                                         n_tokens = ?7, n_entries = ?8, withdrawn = ?9, gone = ?10
                       WHERE id = ?1";
            t.execute(
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
                    numbers_column(&withdrawn),
                    numbers_column(&gone_before.union(gone)),
                ],
            )?;
            let epoch = change.map(|change| new_epoch(t, change)).transpose()?;
            Ok(Some(Switched { epoch, withdrawn, suspended }))
        })
    }

    /// Strikes out the URIs of documents whose bytes are gone: those that a shard's record says, or all of a removed one. Their hashes stay,
    /// for receipts.
    pub(crate) fn forget_documents(&self, record: &ShardRecord) -> Result<(), StoreError> {
        let shard = record.id;
        let of_shard = "SELECT number FROM documents WHERE shard_id = ?1 AND uri IS NOT NULL";
        let all: Vec<i64> = match record.state {
            ShardState::Removed => {
                self.run(|c| c.prepare(of_shard)?.query_map([shard.0 as i64], |r| r.get(0))?.collect())?
            }
            ShardState::Live | ShardState::Suspended => record.gone.iter().map(i64::from).collect(),
        };
        for chunk in all.chunks(ROWS_PER_TRANSACTION) {
            self.transaction(|t| {
                let mut forget = t.prepare("UPDATE documents SET uri = NULL WHERE shard_id = ?1 AND number = ?2")?;
                let mut others = t.prepare("DELETE FROM other_uris WHERE shard_id = ?1 AND number = ?2")?;
                for number in chunk {
                    others.execute(params![shard.0 as i64, number])?;
                    forget.execute(params![shard.0 as i64, number])?;
                }
                Ok(())
            })?;
        }
        // What is gone is added to by the one who calls this only.
        self.run(|c| c.execute("UPDATE shards SET gone = NULL WHERE id = ?1", [shard.0 as i64]).map(drop))
    }

    /// All shards that ever were, in the order of their ids.
    pub(crate) fn shards(&self) -> Result<Vec<ShardRecord>, StoreError> {
        self.run(|c| c.prepare(&format!("{COLUMNS} ORDER BY shards.id"))?.query_map([], read_shard)?.collect())
    }

    /// One shard.
    pub(crate) fn shard(&self, id: ShardId) -> Result<Option<ShardRecord>, StoreError> {
        let sql = format!("{COLUMNS} AND shards.id = ?1");
        self.run(|c| c.query_row(&sql, [id.0 as i64], read_shard).optional())
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

    /// What a selection means now: the documents that are in the store and not withdrawn, shard by shard.
    pub(crate) fn resolve(&self, selection: &Selection) -> Result<Vec<RemovalPart>, StoreError> {
        let shards: Vec<ShardRecord> = match selection {
            Selection::Shard(id) => self.shard(*id)?.into_iter().filter(|s| s.state != ShardState::Removed).collect(),
            Selection::Source(source) | Selection::Documents { source, .. } => self.shards_of(Some(source))?,
            Selection::UriPrefix { source, .. } => self.shards_of(source.as_ref())?,
        };
        let mut found = match selection {
            Selection::Shard(_) | Selection::Source(_) => None,
            Selection::Documents { documents, .. } => Some(self.with_hashes(documents)?),
            Selection::UriPrefix { prefix, .. } => Some(self.with_prefix(&shards, prefix)?),
        };
        let mut parts = Vec::new();
        for shard in &shards {
            let n_live: u64 = shard.n_documents - shard.withdrawn.len();
            let Some(found) = &mut found else {
                parts.push(RemovalPart { shard: shard.id, numbers: None, n_documents: n_live });
                continue;
            };
            let Some(numbers) = found.remove(&shard.id) else { continue };
            let numbers = numbers.without(&shard.withdrawn).without(&shard.gone);
            let n_documents = numbers.len();
            if n_documents > 0 {
                // All that is left of a shard is the shard.
                let numbers = (n_documents < n_live).then_some(numbers);
                parts.push(RemovalPart { shard: shard.id, numbers, n_documents });
            }
        }
        Ok(parts)
    }

    fn shards_of(&self, source: Option<&SourceId>) -> Result<Vec<ShardRecord>, StoreError> {
        let sql = format!("{COLUMNS} AND state != 'removed' AND (?1 IS NULL OR name = ?1) ORDER BY shards.id");
        let name = source.map(SourceId::as_str);
        self.run(|c| c.prepare(&sql)?.query_map([name], read_shard)?.collect())
    }

    fn with_hashes(&self, hashes: &[ContentHash]) -> Result<HashMap<ShardId, Numbers>, StoreError> {
        let sql = "SELECT shard_id, number FROM documents WHERE hash = ?1 AND uri IS NOT NULL";
        self.run(|c| {
            let (mut find, mut found) = (c.prepare(sql)?, HashMap::new());
            for hash in hashes {
                collect(&mut found, find.query([hash.0])?, u64::MAX)?;
            }
            Ok(found)
        })
    }

    /// Documents of which a URI begins so. Few are read one by one; of many it is asked, shard by shard, where they begin and end.
    fn with_prefix(&self, shards: &[ShardRecord], prefix: &str) -> Result<HashMap<ShardId, Numbers>, StoreError> {
        let end = after_prefix(prefix);
        let few = self.run(|c| {
            let (mut found, mut n) = (HashMap::new(), 0);
            for table in ["documents", "other_uris"] {
                let sql = format!("SELECT shard_id, number FROM {table} WHERE uri >= ?1 AND (?2 IS NULL OR uri < ?2)");
                n += collect(&mut found, c.prepare(&sql)?.query(params![prefix, end])?, FEW_DOCUMENTS)?;
            }
            Ok((n < FEW_DOCUMENTS).then_some(found))
        })?;
        if let Some(found) = few {
            return Ok(found);
        }
        let of_shard = |s: &ShardRecord| Ok((s.id, self.of_shard_with_prefix(s.id, prefix, end.as_deref())?));
        shards.iter().map(of_shard).collect()
    }

    /// Numbers follow the first URIs, so that those with a common beginning are a range, which is read as one where nothing of the shard was
    /// purged.
    fn of_shard_with_prefix(&self, shard: ShardId, prefix: &str, end: Option<&str>) -> Result<Numbers, StoreError> {
        let within = "shard_id = ?1 AND uri >= ?2 AND (?3 IS NULL OR uri < ?3)";
        self.run(|c| {
            let bounds = params![shard.0 as i64, prefix, end];
            let mut numbers = Numbers::default();
            let sql = format!("SELECT number FROM other_uris WHERE {within}");
            for number in c.prepare(&sql)?.query_map(bounds, |r| r.get(0))? {
                numbers.insert(number?);
            }
            let edge = |order: &str| {
                let sql = format!(
                    "SELECT number FROM documents INDEXED BY documents_of_shard_by_uri WHERE {within}
                     ORDER BY uri {order}, number {order} LIMIT 1"
                );
                c.query_row(&sql, bounds, |r| r.get::<_, u32>(0)).optional()
            };
            let (Some(first), Some(last)) = (edge("ASC")?, edge("DESC")?) else { return Ok(numbers) };
            let purged = "SELECT EXISTS (SELECT 1 FROM documents WHERE shard_id = ?1 AND uri IS NULL)";
            if c.query_row(purged, [shard.0 as i64], |r| r.get(0))? {
                let sql = format!("SELECT number FROM documents INDEXED BY documents_of_shard_by_uri WHERE {within}");
                for number in c.prepare(&sql)?.query_map(bounds, |r| r.get(0))? {
                    numbers.insert(number?);
                }
            } else {
                numbers.insert_range(first..last + 1);
            }
            Ok(numbers)
        })
    }
}

/// Adds documents to those of their shards, until there are `most`; gives how many were read.
fn collect(found: &mut HashMap<ShardId, Numbers>, mut rows: rusqlite::Rows<'_>, most: u64) -> rusqlite::Result<u64> {
    let mut n = 0;
    while let Some(row) = rows.next()?.filter(|_| n < most) {
        found.entry(ShardId(row.get::<_, i64>(0)? as u64)).or_default().insert(row.get(1)?);
        n += 1;
    }
    Ok(n)
}

/// The least text that is greater than all that begin with `prefix`; `None` if there is none. UTF-8 is compared as its characters are.
fn after_prefix(prefix: &str) -> Option<String> {
    let mut characters: Vec<char> = prefix.chars().collect();
    while let Some(last) = characters.pop() {
        if let Some(next) = (u32::from(last) + 1..=u32::from(char::MAX)).find_map(char::from_u32) {
            characters.push(next);
            return Some(characters.into_iter().collect());
        }
    }
    None
}

fn add_document(t: &Transaction<'_>, shard: ShardId, d: &StoredDocument) -> rusqlite::Result<()> {
    let sql = "INSERT INTO documents (shard_id, number, hash, uri) VALUES (?1, ?2, ?3, ?4)";
    t.prepare_cached(sql)?.execute(params![shard.0 as i64, d.number, d.hash.0, d.document.uri])?;
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

fn read_shard(row: &Row<'_>) -> rusqlite::Result<ShardRecord> {
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

#[cfg(test)]
mod tests {
    use super::after_prefix;

    #[test]
    fn what_begins_so_ends_there() {
        assert_eq!(after_prefix("pkg:a").unwrap(), "pkg:b");
        assert_eq!(after_prefix("x\u{d7ff}").unwrap(), "x\u{e000}");
        assert_eq!(after_prefix(&format!("a{}", char::MAX)).unwrap(), "b");
        assert_eq!(after_prefix(&char::MAX.to_string()), None);
        for text in ["pkg:a", "pkg:a/b", "pkg:a\u{10ffff}z"] {
            assert!(*text < *after_prefix("pkg:a").unwrap());
        }
    }
}
