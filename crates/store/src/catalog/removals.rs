//! The log of withdrawals. Entries hold resolved ids, never filters: what a filter means may change.

use std::collections::BTreeMap;

use rusqlite::{Connection, OptionalExtension, Row, Transaction, params};
use serde::{Deserialize, Serialize};
use silo_core::{Change, ContentHash, Epoch, ShardId, SourceId};

use super::optouts::WithRemoval;
use super::shards::{numbers_column, read_numbers};
use super::{Catalog, changes, conversion, now_unix_ms, parsed};
use crate::{Numbers, StoreError};

/// What an entry of the log did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RemovalKind {
    /// Withdrew for good.
    Remove,
    /// Took out of what is retrieved.
    Suspend,
    /// Put back what was suspended.
    Resume,
    /// Withheld documents, until it is ended.
    Hold,
    /// Ended a hold.
    Release,
}

impl RemovalKind {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Remove => "remove",
            Self::Suspend => "suspend",
            Self::Resume => "resume",
            Self::Hold => "hold",
            Self::Release => "release",
        }
    }
}

/// What an entry concerns of one shard.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RemovalPart {
    /// The shard.
    pub shard: ShardId,
    /// Numbers of documents; all of the shard, now and in any backup, if there are none.
    pub numbers: Option<Numbers>,
    /// How many documents that were.
    pub n_documents: u64,
}

/// An entry of the log.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RemovalRecord {
    /// From 1, without gaps.
    pub id: u64,
    /// The epoch that it made.
    pub epoch: Epoch,
    /// When, in milliseconds since 1970.
    pub at_unix_ms: i64,
    /// What it did.
    pub kind: RemovalKind,
    /// How it was asked for.
    pub selector: String,
    /// What it concerns.
    pub parts: Vec<RemovalPart>,
    /// SHA-256 of this entry, without this field and the next, and the chain of the entry before it; before the first stands the store's id.
    pub chain: String,
    /// When its bytes were gone from all files.
    pub purged_at_unix_ms: Option<i64>,
    /// The hold that it ends: what was withheld by it is put back, or withdrawn.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ends: Option<u64>,
}

/// A change that is about to be entered.
pub(crate) struct NewRemoval<'a> {
    pub(crate) actor: &'a str,
    pub(crate) change: &'a Change,
    pub(crate) epoch: Epoch,
    pub(crate) kind: RemovalKind,
    pub(crate) selector: &'a str,
    pub(crate) parts: Vec<RemovalPart>,
    /// Documents among them that other shards of their source hold.
    pub(crate) kept: &'a BTreeMap<ShardId, Numbers>,
    /// The hold that it ends.
    pub(crate) ends: Option<u64>,
    /// What is entered with it.
    pub(crate) also: Option<WithRemoval<'a>>,
}

impl RemovalRecord {
    /// Whether bytes of what it withdrew may be in a file.
    pub(crate) fn is_unpurged(&self) -> bool {
        self.kind == RemovalKind::Remove && self.purged_at_unix_ms.is_none()
    }

    fn chain_after(&self, previous: &str) -> String {
        let content = (self.id, self.epoch, self.at_unix_ms, self.kind, &self.selector, &self.parts);
        let text = match self.ends {
            None => serde_json::to_string(&content),
            Some(ends) => serde_json::to_string(&(content, ends)),
        };
        let text = text.expect("numbers and texts are JSON");
        ContentHash::of(format!("{previous}\n{text}").as_bytes()).to_string()
    }
}

/// Whether each entry follows from the one before it, and the first from the store's own name.
pub(crate) fn chain_is_whole(store_id: &str, log: &[RemovalRecord]) -> bool {
    let mut previous = store_id;
    log.iter().zip(1..).all(|(record, id)| {
        let follows = record.id == id && record.chain == record.chain_after(previous);
        previous = &record.chain;
        follows
    })
}

impl Catalog {
    /// The number of the next entry. The caller holds the lock of changes.
    pub(crate) fn next_removal(&self) -> Result<u64, StoreError> {
        self.run(|c| Ok(head(c)?.0 + 1))
    }

    /// Enters a change and does it, in one transaction. Nothing is checked: the caller has resolved it while no one else changes anything.
    pub(crate) fn log(&self, new: NewRemoval<'_>) -> Result<RemovalRecord, StoreError> {
        let NewRemoval { actor, change, epoch, kind, selector, parts, kept, ends, also } = new;
        self.change(actor, change, |t| {
            let (last, previous) = head(t)?;
            let (id, chain, at_unix_ms) = (last + 1, String::new(), now_unix_ms());
            let selector = selector.to_owned();
            let mut record =
                RemovalRecord { id, epoch, at_unix_ms, kind, selector, parts, chain, purged_at_unix_ms: None, ends };
            record.chain = record.chain_after(&previous);
            write(t, &record)?;
            apply(t, &record)?;
            for (shard, numbers) in kept {
                let sql = "INSERT INTO kept_parts (removal_id, shard_id, numbers) VALUES (?1, ?2, ?3)";
                t.execute(sql, params![id as i64, shard.0 as i64, numbers.to_bytes()])?;
            }
            also.map_or(Ok(()), |also| also.enter(t, &record))?;
            Ok(record)
        })
    }

    /// One entry of the log.
    pub(crate) fn removal(&self, id: u64) -> Result<Option<RemovalRecord>, StoreError> {
        if id == 0 { Ok(None) } else { self.run(|c| Ok(removals_in(c, id - 1, id)?.pop())) }
    }

    /// The documents that left their sources by a withdrawal, source by source, sorted. They are known after their bytes are gone. Reads by a
    /// connection of its own: no change waits for it.
    pub(crate) fn left_by(&self, removal: &RemovalRecord) -> Result<BTreeMap<SourceId, Vec<ContentHash>>, StoreError> {
        Self::open_read_only(&self.path)?.run(|c| {
            let mut out: BTreeMap<SourceId, Vec<ContentHash>> = BTreeMap::new();
            for part in &removal.parts {
                let (source, hashes) = left_of(c, removal.id, part)?;
                out.entry(source).or_default().extend(hashes);
            }
            for hashes in out.values_mut() {
                hashes.sort_unstable();
                hashes.dedup();
            }
            out.retain(|_, hashes| !hashes.is_empty());
            Ok(out)
        })
    }

    /// The log after entry `after`.
    pub(crate) fn removals(&self, after: u64) -> Result<Vec<RemovalRecord>, StoreError> {
        self.run(|c| removals_in(c, after, i64::MAX as u64))
    }

    /// What was withdrawn and may still have bytes in a file: each entry with its shards.
    pub(crate) fn unpurged(&self) -> Result<BTreeMap<u64, Vec<ShardId>>, StoreError> {
        let sql = "SELECT id, shard_id FROM removals JOIN removal_parts ON removal_id = id
                   WHERE kind = 'remove' AND purged_at_unix_ms IS NULL";
        self.run(|c| {
            let mut out: BTreeMap<u64, Vec<ShardId>> = BTreeMap::new();
            let read = |r: &Row<'_>| Ok((r.get::<_, i64>(0)? as u64, ShardId(r.get::<_, i64>(1)? as u64)));
            for row in c.prepare(sql)?.query_map([], read)? {
                let (id, shard) = row?;
                out.entry(id).or_default().push(shard);
            }
            Ok(out)
        })
    }

    /// Whether a hold was not ended.
    pub(crate) fn is_held(&self, hold: u64) -> Result<bool, StoreError> {
        let sql = "SELECT NOT EXISTS (SELECT 1 FROM removals WHERE ends = ?1)";
        self.run(|c| c.query_row(sql, [hold as i64], |r| r.get(0)))
    }

    /// What is withheld of each shard by holds that were not ended, all `but` one.
    pub(crate) fn withheld(&self, but: Option<u64>) -> Result<BTreeMap<ShardId, Numbers>, StoreError> {
        let sql = "SELECT shard_id, numbers FROM removals h JOIN removal_parts ON removal_id = h.id
                   WHERE h.kind = 'hold' AND h.id IS NOT ?1 AND h.id NOT IN (SELECT ends FROM removals WHERE ends IS NOT NULL)";
        self.run(|c| {
            let mut out: BTreeMap<ShardId, Numbers> = BTreeMap::new();
            let mut statement = c.prepare(sql)?;
            let mut rows = statement.query([but.map(|id| id as i64)])?;
            while let Some(row) = rows.next()? {
                out.entry(ShardId(row.get::<_, i64>(0)? as u64)).or_default().extend(&read_numbers(row, 1)?);
            }
            Ok(out)
        })
    }

    /// What is withdrawn of each shard by the entries that are not purged; all of it, if the shard itself was withdrawn.
    pub(crate) fn withdrawn_by_log(&self) -> Result<BTreeMap<ShardId, Option<Numbers>>, StoreError> {
        let sql = "SELECT shard_id, numbers FROM removals JOIN removal_parts ON removal_id = id
                   WHERE kind = 'remove' AND (numbers IS NULL OR purged_at_unix_ms IS NULL)";
        self.run(|c| {
            let mut out: BTreeMap<ShardId, Option<Numbers>> = BTreeMap::new();
            let read = |r: &Row<'_>| Ok((ShardId(r.get::<_, i64>(0)? as u64), r.get::<_, Option<Vec<u8>>>(1)?));
            for row in c.prepare(sql)?.query_map([], read)? {
                let (shard, bytes) = row?;
                let numbers = bytes.map(|b| Numbers::from_bytes(&b)).transpose().map_err(|e| conversion(1, e))?;
                let before = out.entry(shard).or_insert_with(|| Some(Numbers::default()));
                match (&mut *before, numbers) {
                    (Some(before), Some(numbers)) => before.extend(&numbers),
                    _ => *before = None,
                }
            }
            Ok(out)
        })
    }

    /// Withdraws again what the log says is withdrawn, where the tables of the shards do not say so: a flipped bit there must not bring it
    /// back, neither to searches nor into files that are written anew.
    pub(super) fn redo(&self) -> Result<(), StoreError> {
        let sql = "SELECT withdrawn, gone FROM shards WHERE id = ?1 AND state != 'removed'";
        let read = |r: &Row<'_>| Ok((read_numbers(r, 0)?, read_numbers(r, 1)?));
        let mut log_is_whole = false;
        for (shard, by_log) in self.withdrawn_by_log()? {
            let id = shard.0 as i64;
            let Some((withdrawn, gone)) = self.run(|c| c.query_row(sql, [id], read).optional())? else { continue };
            let missing = by_log.map(|by_log| by_log.without(&withdrawn).without(&gone));
            if missing.as_ref().is_some_and(Numbers::is_empty) {
                continue;
            }
            // The two differ: one of them is damaged, or a purge was cut off.
            log_is_whole = log_is_whole || chain_is_whole(&self.store_id()?, &self.removals(0)?);
            if !log_is_whole {
                return Err(StoreError::Tables { path: self.path.clone() });
            }
            let Some(missing) = missing else {
                let sql = "UPDATE shards SET state = 'removed', withdrawn = NULL, removed_epoch =
                               (SELECT max(epoch) FROM removals JOIN removal_parts ON removal_id = id WHERE shard_id = ?1)
                           WHERE id = ?1";
                self.run(|c| c.execute(sql, [id]).map(drop))?;
                continue;
            };
            let in_files =
                "SELECT EXISTS (SELECT 1 FROM documents WHERE shard_id = ?1 AND number = ?2 AND uri IS NOT NULL)";
            let still = self.run(|c| {
                let (mut in_files, mut still) = (c.prepare(in_files)?, Numbers::default());
                for number in missing.iter() {
                    if in_files.query_row(params![id, number], |r| r.get(0))? {
                        still.insert(number);
                    }
                }
                Ok(still)
            })?;
            if !still.is_empty() {
                self.transaction(|t| withdraw(t, shard, &still))?;
            }
        }
        Ok(())
    }

    /// The bytes of these entries are gone from all files.
    pub(crate) fn mark_purged(&self, ids: &[u64]) -> Result<(), StoreError> {
        ids.chunks(self.batch).try_for_each(|batch| self.mark_some_purged(batch))
    }

    fn mark_some_purged(&self, ids: &[u64]) -> Result<(), StoreError> {
        // Those of before the log of changes began are not in it.
        let mut removals = Vec::new();
        for id in ids {
            removals.extend(self.moments(*id)?.map(|_| *id));
        }
        let sql = "UPDATE removals SET purged_at_unix_ms = ?2 WHERE id = ?1";
        let mark = |t: &Transaction<'_>| {
            ids.iter().try_for_each(|id| t.execute(sql, params![*id as i64, now_unix_ms()]).map(drop))
        };
        if removals.is_empty() {
            self.transaction(mark)
        } else {
            self.change(changes::SILO, &Change::Purge { removals }, mark)
        }
    }

    /// Enters and does what a log holds beyond this catalog's own, and takes care that no number is given out again that the log's
    /// store, or the one that this catalog was copied from, may have given out.
    pub(crate) fn replay(
        &self,
        later: &[RemovalRecord],
        last_shard: ShardId,
        last_epoch: Epoch,
    ) -> Result<(), StoreError> {
        self.transaction(|t| {
            for record in later {
                let sql = "INSERT OR IGNORE INTO epochs (epoch, at_unix_ms, change) VALUES (?1, ?2, ?3)";
                t.execute(sql, params![record.epoch.0 as i64, record.at_unix_ms, record.kind.name()])?;
                write(t, record)?;
                apply(t, record)?;
            }
            for (table, known) in [("shards", last_shard.0), ("epochs", last_epoch.0), ("sources", 0)] {
                let sql = "SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = ?1";
                let own = t.query_row(sql, [table], |r| r.get::<_, i64>(0))? as u64;
                let minutes = now_unix_ms() as u64 / 60_000;
                let next = (own.max(known) / RESTORE_STEP + 1).max(minutes) * RESTORE_STEP;
                t.execute("DELETE FROM sqlite_sequence WHERE name = ?1", [table])?;
                t.execute("INSERT INTO sqlite_sequence (name, seq) VALUES (?1, ?2)", params![table, next as i64])?;
            }
            let sql = "INSERT INTO epochs (at_unix_ms, change) VALUES (?1, 'restore')";
            t.execute(sql, [now_unix_ms()])?;
            // The entries of the backup go on in another way than those of the store that it was made of.
            changes::new_log(t)
        })
    }
}

/// After a restore, numbers go on at so many times the minutes since 1970: what a lost store gave out after its last known change, or another
/// store that was restored from the same backup, is not given out again.
const RESTORE_STEP: u64 = 1_000_000;

/// Number and chain of the newest entry.
pub(super) fn head(t: &Connection) -> rusqlite::Result<(u64, String)> {
    let sql = "SELECT id, chain FROM removals ORDER BY id DESC LIMIT 1";
    let found = t.query_row(sql, [], |r| Ok((r.get::<_, i64>(0)? as u64, r.get(1)?))).optional()?;
    found.map_or_else(|| Ok((0, store_id(t)?)), Ok)
}

fn store_id(t: &Connection) -> rusqlite::Result<String> {
    t.query_row("SELECT id FROM store", [], |r| r.get(0))
}

fn write(t: &Transaction<'_>, record: &RemovalRecord) -> rusqlite::Result<()> {
    let sql =
        "INSERT INTO removals (id, epoch, at_unix_ms, kind, selector, chain, ends) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)";
    let (id, epoch, ends) = (record.id as i64, record.epoch.0 as i64, record.ends.map(|id| id as i64));
    t.execute(sql, params![id, epoch, record.at_unix_ms, record.kind.name(), record.selector, record.chain, ends])?;
    for part in &record.parts {
        let sql = "INSERT INTO removal_parts (removal_id, shard_id, numbers, n_documents) VALUES (?1, ?2, ?3, ?4)";
        let numbers = part.numbers.as_ref().map(Numbers::to_bytes);
        t.execute(sql, params![id, part.shard.0 as i64, numbers, part.n_documents as i64])?;
    }
    Ok(())
}

/// Does what an entry says to the shards that are here.
fn apply(t: &Transaction<'_>, record: &RemovalRecord) -> rusqlite::Result<()> {
    for part in &record.parts {
        let shard = part.shard.0 as i64;
        match (record.kind, &part.numbers) {
            (RemovalKind::Remove, None) => {
                let sql = "UPDATE shards SET state = 'removed', removed_epoch = ?2, withdrawn = NULL
                           WHERE id = ?1 AND state IN ('live', 'suspended')";
                t.execute(sql, params![shard, record.epoch.0 as i64])?;
            }
            (RemovalKind::Remove, Some(numbers)) => withdraw(t, part.shard, numbers)?,
            (RemovalKind::Suspend, _) => {
                t.execute("UPDATE shards SET state = 'suspended' WHERE id = ?1 AND state = 'live'", [shard])?;
            }
            (RemovalKind::Resume, _) => {
                t.execute("UPDATE shards SET state = 'live' WHERE id = ?1 AND state = 'suspended'", [shard])?;
            }
            // What is withheld is read from the log itself.
            (RemovalKind::Hold | RemovalKind::Release, _) => {}
        }
    }
    Ok(())
}

/// Adds to the documents of a shard that are withdrawn and still in its files. What was purged cannot be withdrawn again.
fn withdraw(t: &Transaction<'_>, shard: ShardId, numbers: &Numbers) -> rusqlite::Result<()> {
    let sql = "SELECT withdrawn FROM shards WHERE id = ?1 AND state IN ('live', 'suspended')";
    let found = t.query_row(sql, [shard.0 as i64], |r| read_numbers(r, 0)).optional()?;
    let Some(before) = found else { return Ok(()) };
    let sql = "UPDATE shards SET withdrawn = ?2 WHERE id = ?1";
    t.execute(sql, params![shard.0 as i64, numbers_column(&before.union(numbers))]).map(drop)
}

/// The log of an open catalog after entry `after`, up to `last`.
fn removals_in(c: &Connection, after: u64, last: u64) -> rusqlite::Result<Vec<RemovalRecord>> {
    let sql =
        "SELECT removal_id, shard_id, numbers, n_documents FROM removal_parts WHERE removal_id BETWEEN ?1 + 1 AND ?2
               ORDER BY removal_id, shard_id";
    let mut parts: BTreeMap<i64, Vec<RemovalPart>> = BTreeMap::new();
    let mut statement = c.prepare(sql)?;
    let mut rows = statement.query([after as i64, last as i64])?;
    while let Some(row) = rows.next()? {
        let bytes: Option<Vec<u8>> = row.get(2)?;
        let numbers = bytes.map(|b| Numbers::from_bytes(&b)).transpose().map_err(|e| conversion(2, e))?;
        let shard = ShardId(row.get::<_, i64>(1)? as u64);
        let part = RemovalPart { shard, numbers, n_documents: row.get::<_, i64>(3)? as u64 };
        parts.entry(row.get(0)?).or_default().push(part);
    }
    let sql = "SELECT id, epoch, at_unix_ms, kind, selector, chain, purged_at_unix_ms, ends FROM removals WHERE id BETWEEN ?1 + 1 AND ?2 ORDER BY id";
    let read = |r: &Row<'_>| {
        let id: i64 = r.get(0)?;
        Ok(RemovalRecord {
            id: id as u64,
            epoch: Epoch(r.get::<_, i64>(1)? as u64),
            at_unix_ms: r.get(2)?,
            kind: parsed(r, 3, |t| serde_json::from_value(t.into()).map_err(|e| e.to_string()))?,
            selector: r.get(4)?,
            parts: parts.remove(&id).unwrap_or_default(),
            chain: r.get(5)?,
            purged_at_unix_ms: r.get(6)?,
            ends: r.get::<_, Option<i64>>(7)?.map(|id| id as u64),
        })
    };
    c.prepare(sql)?.query_map([after as i64, last as i64], read)?.collect()
}

/// The source of a part, and the documents of it that left the source: all that it names, without what was withdrawn from the same shard before,
/// and what other shards hold.
fn left_of(c: &Connection, removal: u64, part: &RemovalPart) -> rusqlite::Result<(SourceId, Vec<ContentHash>)> {
    let others = "SELECT numbers FROM removal_parts JOIN removals ON id = removal_id
                  WHERE kind = 'remove' AND shard_id = ?1 AND removal_id < ?2 AND numbers IS NOT NULL
                  UNION ALL SELECT numbers FROM kept_parts WHERE shard_id = ?1 AND removal_id = ?2";
    let shard = part.shard.0 as i64;
    let mut not = Numbers::default();
    let mut statement = c.prepare(others)?;
    let mut rows = statement.query(params![shard, removal as i64])?;
    while let Some(row) = rows.next()? {
        not.extend(&read_numbers(row, 0)?);
    }
    let source = "SELECT name FROM sources WHERE id = (SELECT source_id FROM shards WHERE id = ?1)";
    let read = |r: &Row<'_>| parsed(r, 0, |t| t.parse().map_err(|e: silo_core::InvalidId| e.to_string()));
    let source = c.query_row(source, [shard], read)?;
    let hash = |r: &Row<'_>| Ok((r.get::<_, u32>(0)?, ContentHash(r.get(1)?)));
    let mut documents: Vec<(u32, ContentHash)> = match &part.numbers {
        None => {
            let all = "SELECT number, hash FROM documents WHERE shard_id = ?1";
            c.prepare(all)?.query_map([shard], hash)?.collect::<rusqlite::Result<_>>()?
        }
        Some(numbers) => {
            let mut one = c.prepare("SELECT number, hash FROM documents WHERE shard_id = ?1 AND number = ?2")?;
            numbers.iter().map(|n| one.query_row(params![shard, n], hash)).collect::<rusqlite::Result<_>>()?
        }
    };
    documents.retain(|(number, _)| !not.contains(*number));
    Ok((source, documents.into_iter().map(|d| d.1).collect()))
}

/// Computes the chain of all entries, for a log that had none.
pub(super) fn chain_anew(t: &Transaction<'_>) -> rusqlite::Result<()> {
    let mut previous = store_id(t)?;
    for record in removals_in(t, 0, i64::MAX as u64)? {
        previous = record.chain_after(&previous);
        t.execute("UPDATE removals SET chain = ?2 WHERE id = ?1", params![record.id as i64, previous])?;
    }
    Ok(())
}
