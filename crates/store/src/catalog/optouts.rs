//! Opt-out requests, and what they keep out.

use rand::random;
use rusqlite::{Connection, OptionalExtension, Row, Transaction, params};
use serde::{Deserialize, Serialize};
use silo_core::{ContentHash, OptOut, OptOutEvent, OptOutRequest, OptOutState, SourceId};

use super::changes::append;
use super::policies::PolicyRow;
use super::removals::{RemovalKind, RemovalRecord};
use super::{Catalog, conversion, parsed};
use crate::StoreError;

/// What must not come in again: keyed hashes, from which no text can be read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Suppression {
    /// The request that it follows from.
    pub optout: u64,
    /// Keyed hash of the normalised text.
    pub text: ContentHash,
    /// Whether it is a passage, which must not be a part of a text either.
    pub is_part: bool,
    /// Runs of words that the text has.
    pub n_shingles: u64,
    /// Keyed hashes of some of them, rising.
    pub sketch: Vec<u64>,
}

/// All requests of a store, what they keep out, and what was said about its sources.
#[derive(Clone, Default, PartialEq)]
pub struct Workflow {
    /// By number.
    pub optouts: Vec<OptOut>,
    /// In the order in which they came.
    pub suppressions: Vec<Suppression>,
    /// What their hashes are keyed with.
    pub key: Vec<u8>,
    /// What was said about sources since they were declared.
    pub policies: Vec<(SourceId, PolicyRow)>,
}

impl std::fmt::Debug for Workflow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} requests, {} suppressions", self.optouts.len(), self.suppressions.len())
    }
}

/// A step that is about to be entered.
pub(crate) struct NewStep<'a> {
    pub(crate) id: u64,
    pub(crate) event: &'a OptOutEvent,
    pub(crate) legal_hold: bool,
    pub(crate) request: &'a OptOutRequest,
    pub(crate) suppress: &'a [Suppression],
    /// Texts that are kept out no longer, by their keyed hashes.
    pub(crate) unsuppress: &'a [ContentHash],
    /// What it kept out may come in again.
    pub(crate) lift: bool,
}

/// Draws the key of a store.
pub(super) fn new_key(t: &Transaction<'_>) -> rusqlite::Result<()> {
    t.execute("INSERT INTO suppression_key (key) VALUES (?1)", [random::<[u8; 32]>()]).map(drop)
}

/// What of a request is entered with a change of what is retrieved.
#[derive(Clone, Copy)]
pub(crate) enum WithRemoval<'a> {
    /// A new one.
    Submission(&'a OptOut),
    /// A step.
    Step(&'a NewStep<'a>),
}

impl WithRemoval<'_> {
    pub(super) fn enter(self, t: &Transaction<'_>, removal: &RemovalRecord) -> rusqlite::Result<()> {
        match self {
            Self::Submission(new) => submit(t, new),
            Self::Step(new) => step(t, new, (removal.kind == RemovalKind::Remove).then_some(removal.id)),
        }
    }
}

fn json(value: &impl Serialize) -> rusqlite::Result<String> {
    serde_json::to_string(value).map_err(|e| rusqlite::Error::ToSqlConversionFailure(e.into()))
}

fn from_json<T: for<'a> Deserialize<'a>>(row: &Row<'_>, column: usize) -> rusqlite::Result<T> {
    parsed(row, column, |text| serde_json::from_str(text).map_err(|e| e.to_string()))
}

fn change(id: u64, event: &OptOutEvent) -> silo_core::Change {
    let OptOutEvent { action, becomes, reason, .. } = *event;
    silo_core::Change::OptOut { request: id, action, becomes, reason }
}

/// Enters a request; its steps so far are in it.
fn insert(t: &Transaction<'_>, new: &OptOut, stale: bool) -> rusqlite::Result<()> {
    let sql = "INSERT INTO optouts (id, state, legal_hold, hold_id, removal_id, request, stale)
               VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)";
    let number = |id: Option<u64>| id.map(|id| id as i64);
    let row = params![
        new.id as i64,
        new.state.name(),
        new.legal_hold,
        number(new.hold),
        number(new.removal),
        json(&new.request)?,
        stale
    ];
    t.execute(sql, row)?;
    new.events.iter().zip(1..).try_for_each(|(event, n)| insert_event(t, new.id, n, event))
}

/// The same for a new one, which is also entered in the log of changes.
fn submit(t: &Transaction<'_>, new: &OptOut) -> rusqlite::Result<()> {
    insert(t, new, false)?;
    new.events.iter().try_for_each(|event| append(t, &event.actor, &change(new.id, event)))
}

fn insert_event(t: &Transaction<'_>, id: u64, n: u64, event: &OptOutEvent) -> rusqlite::Result<()> {
    let sql = "INSERT INTO optout_events (optout_id, n, event) VALUES (?1, ?2, ?3)";
    t.execute(sql, params![id as i64, n as i64, json(event)?]).map(drop)
}

/// Enters a step, by which the request was withdrawn if there is a `removal`.
fn step(t: &Transaction<'_>, new: &NewStep<'_>, removal: Option<u64>) -> rusqlite::Result<()> {
    let NewStep { id, event, legal_hold, request, suppress, unsuppress, lift } = *new;
    let sql = "UPDATE optouts SET state = ?2, legal_hold = ?3, removal_id = coalesce(?4, removal_id),
                                  stale = iif(request = ?5, stale, ?6), request = ?5 WHERE id = ?1";
    let (removal, request) = (removal.map(|id| id as i64), json(request)?);
    let n = "SELECT count(*) + 1 FROM optout_events WHERE optout_id = ?1";
    let n: i64 = t.query_row(n, [id as i64], |r| r.get(0))?;
    t.execute(sql, params![id as i64, event.becomes.name(), legal_hold, removal, request, n])?;
    insert_event(t, id, n as u64, event)?;
    if lift {
        t.execute("DELETE FROM suppressions WHERE optout_id = ?1", [id as i64])?;
    }
    for text in unsuppress {
        t.execute("DELETE FROM suppressions WHERE optout_id = ?1 AND text = ?2", params![id as i64, text.0])?;
    }
    suppress.iter().try_for_each(|s| insert_suppression(t, s))?;
    append(t, &event.actor, &change(id, event))
}

fn insert_suppression(t: &Transaction<'_>, s: &Suppression) -> rusqlite::Result<()> {
    let sql = "INSERT INTO suppressions (optout_id, text, is_part, n_shingles, sketch) VALUES (?1, ?2, ?3, ?4, ?5)";
    let sketch: Vec<u8> = s.sketch.iter().flat_map(|h| h.to_le_bytes()).collect();
    t.prepare_cached(sql)?.execute(params![s.optout as i64, s.text.0, s.is_part, s.n_shingles as i64, sketch]).map(drop)
}

fn read_suppression(r: &Row<'_>) -> rusqlite::Result<Suppression> {
    let sketch: Vec<u8> = r.get(4)?;
    if !sketch.len().is_multiple_of(8) {
        return Err(conversion(4, "a sketch is hashes of 8 bytes"));
    }
    let hash = |bytes: &[u8]| bytes.iter().rev().fold(0, |hash, byte| hash << 8 | u64::from(*byte));
    Ok(Suppression {
        optout: r.get::<_, i64>(0)? as u64,
        text: ContentHash(r.get(1)?),
        is_part: r.get(2)?,
        n_shingles: r.get::<_, i64>(3)? as u64,
        sketch: sketch.chunks_exact(8).map(hash).collect(),
    })
}

fn read_optout(c: &Connection, r: &Row<'_>) -> rusqlite::Result<OptOut> {
    let number = |column| r.get::<_, Option<i64>>(column).map(|id| id.map(|id| id as u64));
    let id: i64 = r.get(0)?;
    let sql = "SELECT event FROM optout_events WHERE optout_id = ?1 ORDER BY n";
    let events = c.prepare_cached(sql)?.query_map([id], |r| from_json(r, 0))?.collect::<rusqlite::Result<_>>()?;
    Ok(OptOut {
        id: id as u64,
        state: parsed(r, 1, str::parse::<OptOutState>)?,
        legal_hold: r.get(2)?,
        hold: number(3)?,
        removal: number(4)?,
        request: from_json(r, 5)?,
        events,
    })
}

const COLUMNS: &str = "SELECT id, state, legal_hold, hold_id, removal_id, request FROM optouts";

impl Catalog {
    /// The number of the next request. The caller holds the lock of changes.
    pub(crate) fn next_optout(&self) -> Result<u64, StoreError> {
        let sql = "SELECT coalesce(max(seq), 0) + 1 FROM sqlite_sequence WHERE name = 'optouts'";
        self.run(|c| Ok(c.query_row(sql, [], |r| r.get::<_, i64>(0))? as u64))
    }

    /// A request.
    pub(crate) fn optout(&self, id: u64) -> Result<Option<OptOut>, StoreError> {
        let sql = format!("{COLUMNS} WHERE id = ?1");
        self.run(|c| c.query_row(&sql, [id as i64], |r| read_optout(c, r)).optional())
    }

    /// Requests under a legal hold, each with the entry by which it is withheld.
    pub(crate) fn legal_holds(&self) -> Result<Vec<(u64, u64)>, StoreError> {
        let sql = "SELECT id, hold_id FROM optouts WHERE legal_hold AND hold_id IS NOT NULL";
        let read = |r: &Row<'_>| Ok((r.get::<_, i64>(0)? as u64, r.get::<_, i64>(1)? as u64));
        self.run(|c| c.prepare_cached(sql)?.query_map([], read)?.collect())
    }

    /// Requests in a state.
    pub(crate) fn optouts_in(&self, state: OptOutState) -> Result<Vec<OptOut>, StoreError> {
        let sql = format!("{COLUMNS} WHERE state = ?1 ORDER BY id");
        self.run(|c| c.prepare(&sql)?.query_map([state.name()], |r| read_optout(c, r))?.collect())
    }

    /// All requests.
    pub(crate) fn optouts(&self) -> Result<Vec<OptOut>, StoreError> {
        let sql = format!("{COLUMNS} ORDER BY id");
        self.run(|c| c.prepare(&sql)?.query_map([], |r| read_optout(c, r))?.collect())
    }

    /// How many steps all requests have.
    pub(crate) fn n_optout_steps(&self) -> Result<u64, StoreError> {
        self.run(|c| c.query_row("SELECT count(*) FROM optout_events", [], |r| Ok(r.get::<_, i64>(0)? as u64)))
    }

    /// Enters a request that withholds nothing.
    pub(crate) fn submit_optout(&self, new: &OptOut) -> Result<(), StoreError> {
        self.transaction(|t| submit(t, new))
    }

    /// Enters a step that changes nothing of what is retrieved.
    pub(crate) fn step_optout(&self, new: &NewStep<'_>) -> Result<(), StoreError> {
        self.transaction(|t| step(t, new, None))
    }

    /// Enters what a request keeps out.
    pub(crate) fn suppress(&self, new: &[Suppression]) -> Result<(), StoreError> {
        self.transaction(|t| new.iter().try_for_each(|s| insert_suppression(t, s)))
    }

    /// What is kept out.
    pub(crate) fn suppressions(&self) -> Result<Vec<Suppression>, StoreError> {
        let sql = "SELECT optout_id, text, is_part, n_shingles, sketch FROM suppressions ORDER BY id";
        self.run(|c| c.prepare(sql)?.query_map([], read_suppression)?.collect())
    }

    /// What the hashes of what is kept out are keyed with.
    pub(crate) fn suppression_key(&self) -> Result<Vec<u8>, StoreError> {
        self.run(|c| c.query_row("SELECT key FROM suppression_key", [], |r| r.get(0)))
    }

    /// All requests, and what they keep out.
    pub(crate) fn workflow(&self) -> Result<Workflow, StoreError> {
        let policies = self.policies()?.into_iter().map(|(id, _, row)| (id, row)).collect();
        let (optouts, suppressions, key) = (self.optouts()?, self.suppressions()?, self.suppression_key()?);
        Ok(Workflow { optouts, suppressions, key, policies })
    }

    /// Puts the requests of a later catalog in the place of those that are here.
    pub(crate) fn replace_workflow(&self, later: &Workflow) -> Result<(), StoreError> {
        self.transaction(|t| {
            for table in ["suppressions", "optout_events", "optouts", "suppression_key"] {
                t.execute(&format!("DELETE FROM {table}"), [])?;
            }
            // Those of the backup may have held what was struck out since.
            later.optouts.iter().try_for_each(|optout| insert(t, optout, true))?;
            later.suppressions.iter().try_for_each(|s| insert_suppression(t, s))?;
            self.take_policies(t, &later.policies)?;
            t.execute("INSERT INTO suppression_key (key) VALUES (?1)", [&later.key]).map(drop)
        })
    }
}
