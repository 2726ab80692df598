//! The log of changes: what the Merkle log is made of.

use rusqlite::{Connection, OptionalExtension, Row, Transaction, params};
use silo_core::{Change, ChangeEntry, Epoch, StoreState};

use super::{Catalog, now_unix_ms};
use crate::StoreError;

/// Who does what nobody asked for.
pub const SILO: &str = "silo";

/// Where the log of changes speaks of a withdrawal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moments {
    /// The place of the withdrawal.
    pub logged: u64,
    /// Of the entry that says since when it is in force.
    pub in_force: Option<u64>,
    /// Of the purge.
    pub purged: Option<u64>,
}

/// The kind of a change, for those who read the tables.
pub(super) fn name(change: &Change) -> &'static str {
    match change {
        Change::CreateSource { .. } => "create source",
        Change::AddShard { .. } => "add shard",
        Change::RebuildShard { .. } => "rebuild shard",
        Change::Remove { .. } => "remove",
        Change::SuspendShard { .. } => "suspend",
        Change::ResumeShard { .. } => "resume",
        Change::Hold { .. } => "hold",
        Change::Release { .. } => "release",
        Change::UpdateSource { .. } => "update source",
        Change::OptOut { .. } => "opt-out",
        Change::Quarantine { .. } => "quarantine",
        Change::Repair { .. } => "repair",
        Change::Open { .. } => "open",
        Change::InForce { .. } => "in force",
        Change::Purge { .. } => "purge",
        Change::Statement { .. } => "statement",
    }
}

/// Appends an entry to the log.
pub(super) fn append(t: &Transaction<'_>, actor: &str, change: &Change) -> rusqlite::Result<()> {
    let sql = "SELECT position + 1, at_unix_ms FROM changes ORDER BY position DESC LIMIT 1";
    let last = t.prepare_cached(sql)?.query_row([], |r| Ok((r.get(0)?, r.get(1)?))).optional()?;
    let (position, before): (i64, i64) = last.unwrap_or((0, 0));
    // A clock that went back does not turn the order of the entries round.
    let at_unix_ms = now_unix_ms().max(before);
    let entry = ChangeEntry { at_unix_ms, actor: actor.to_owned(), change: change.clone() };
    let text = serde_json::to_string(&entry).map_err(|e| rusqlite::Error::ToSqlConversionFailure(e.into()))?;
    let sql = "INSERT INTO changes (position, at_unix_ms, epoch, entry) VALUES (?1, ?2, ?3, ?4)";
    let epoch = change.state().map(|state| state.epoch.0 as i64);
    t.prepare_cached(sql)?.execute(params![position, at_unix_ms, epoch, text])?;
    let (moment, removals) = match change {
        Change::Remove { removal, .. } => ("logged", std::slice::from_ref(removal)),
        Change::InForce { removal, .. } => ("in-force", std::slice::from_ref(removal)),
        Change::Purge { removals } => ("purged", &removals[..]),
        _ => return Ok(()),
    };
    let sql = "INSERT INTO moments (removal_id, moment, position) VALUES (?1, ?2, ?3)";
    removals.iter().try_for_each(|id| t.prepare_cached(sql)?.execute(params![*id as i64, moment, position]).map(drop))
}

/// Gives the log an id of its own.
pub(super) fn new_log(t: &Transaction<'_>) -> rusqlite::Result<()> {
    t.execute("DELETE FROM log", [])?;
    t.execute("INSERT INTO log (id) VALUES (?1)", [uuid::Uuid::new_v4().to_string()]).map(drop)
}

impl Catalog {
    /// Enters a change that the other tables do not hold.
    pub(crate) fn note(&self, actor: &str, change: &Change) -> Result<(), StoreError> {
        self.change(actor, change, |_| Ok(()))
    }

    /// The same; gives its position.
    pub(crate) fn note_at(&self, actor: &str, change: &Change) -> Result<u64, StoreError> {
        self.change(actor, change, |t| t.query_row("SELECT coalesce(max(position) + 1, 0) FROM changes", [], number))
    }

    /// Notes since when a withdrawal is in force. It is entered in the log with the next change, or by [`Catalog::settle`].
    pub(crate) fn note_in_force(&self, removal: u64, durable_at_unix_ms: i64, effective_at_unix_ms: i64) {
        self.pending.lock().push(Change::InForce { removal, durable_at_unix_ms, effective_at_unix_ms });
    }

    /// A withdrawal of which a crash took the note is in force since now at the latest. It is the newest one: every change enters the notes of
    /// those before it.
    pub(crate) fn note_in_force_anew(&self) -> Result<(), StoreError> {
        let sql = "SELECT removal_id FROM moments ORDER BY removal_id DESC LIMIT 1";
        let newest = self.run(|c| c.query_row(sql, [], number).optional())?;
        let Some(newest) = newest else { return Ok(()) };
        if self.moments(newest)?.is_some_and(|moments| moments.in_force.is_none()) {
            self.note_in_force(newest, now_unix_ms(), now_unix_ms());
        }
        Ok(())
    }

    /// Enters in the log what was noted.
    pub(crate) fn settle(&self) -> Result<(), StoreError> {
        let mut connection = self.lock();
        let mut pending = self.pending.lock();
        if !pending.is_empty() {
            let append = |t: &Transaction<'_>| pending.iter().try_for_each(|change| append(t, SILO, change));
            super::in_transaction(&mut connection, append).map_err(|e| Self::error(&self.path, e))?;
            pending.clear();
        }
        Ok(())
    }

    /// Id of the log.
    pub(crate) fn log_id(&self) -> Result<String, StoreError> {
        self.run(|c| c.query_row("SELECT id FROM log", [], |r| r.get(0)))
    }

    /// How many entries the log has.
    pub(crate) fn n_changes(&self) -> Result<u64, StoreError> {
        self.run(|c| c.query_row("SELECT coalesce(max(position) + 1, 0) FROM changes", [], number))
    }

    /// So many entries from this one on.
    pub(crate) fn changes(&self, from: u64, at_most: u64) -> Result<Vec<String>, StoreError> {
        let sql = "SELECT entry FROM changes WHERE position >= ?1 ORDER BY position LIMIT ?2";
        let range = params![from as i64, at_most as i64];
        self.run(|c| c.prepare_cached(sql)?.query_map(range, |r| r.get(0))?.collect())
    }

    /// What the newest entry about it says that the store is; `None` if there is no such entry, or none that can be read.
    pub(crate) fn last_state(&self) -> Result<Option<StoreState>, StoreError> {
        let sql = "SELECT entry FROM changes WHERE epoch IS NOT NULL ORDER BY epoch DESC LIMIT 1";
        let entry = self.run(|c| c.query_row(sql, [], |r| r.get::<_, String>(0)).optional())?;
        let entry = entry.and_then(|text| serde_json::from_str::<ChangeEntry>(&text).ok());
        Ok(entry.and_then(|entry| entry.change.state().copied()))
    }

    /// The time of the newest entry; 0 if there is none.
    pub(crate) fn last_change_at(&self) -> Result<i64, StoreError> {
        let sql = "SELECT at_unix_ms FROM changes ORDER BY position DESC LIMIT 1";
        Ok(self.run(|c| c.query_row(sql, [], |r| r.get(0)).optional())?.unwrap_or_default())
    }

    /// Where the log speaks of a withdrawal; `None` if it began later.
    pub(crate) fn moments(&self, removal: u64) -> Result<Option<Moments>, StoreError> {
        let sql = "SELECT position FROM moments WHERE removal_id = ?1 AND moment = ?2";
        let at = |c: &Connection, moment| c.query_row(sql, params![removal as i64, moment], number).optional();
        self.run(|c| {
            let Some(logged) = at(c, "logged")? else { return Ok(None) };
            Ok(Some(Moments { logged, in_force: at(c, "in-force")?, purged: at(c, "purged")? }))
        })
    }

    /// The epoch of the next change of what may be retrieved. The caller holds the lock of changes.
    pub(crate) fn next_epoch(&self) -> Result<Epoch, StoreError> {
        let sql = "SELECT coalesce(max(seq), 0) + 1 FROM sqlite_sequence WHERE name = 'epochs'";
        self.run(|c| Ok(Epoch(c.query_row(sql, [], number)?)))
    }

    /// What is wrong with the log of changes by itself: gaps, entries that are none, an order that is none.
    pub(crate) fn check_changes(&self) -> Result<Vec<String>, StoreError> {
        const BATCH: u64 = 10_000;
        let (n, mut from, mut found, mut before) = (self.n_changes()?, 0, Vec::new(), (i64::MIN, Epoch(0)));
        while from < n {
            let entries = self.changes(from, BATCH)?;
            for (entry, position) in entries.iter().zip(from..) {
                match serde_json::from_str::<ChangeEntry>(entry) {
                    Err(e) => found.push(format!("entry {position} of the log of changes is none: {e}")),
                    Ok(entry) => {
                        let epoch = entry.change.state().map_or(Epoch(before.1.0 + 1), |s| s.epoch);
                        if entry.at_unix_ms < before.0 || epoch <= before.1 {
                            found
                                .push(format!("entry {position} of the log of changes is not after the one before it"));
                        }
                        before = (entry.at_unix_ms, entry.change.state().map_or(before.1, |s| s.epoch));
                    }
                }
            }
            from += BATCH;
        }
        let rows = self.run(|c| c.query_row("SELECT count(*) FROM changes", [], number))?;
        if rows != n {
            found.push(format!("the log of changes has {rows} entries, the last is number {}", n - 1));
        }
        Ok(found)
    }
}

fn number(row: &Row<'_>) -> rusqlite::Result<u64> {
    row.get::<_, i64>(0).map(|n| n as u64)
}
