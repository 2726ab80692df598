//! What was said about sources since they were declared.

use rusqlite::{OptionalExtension, Row, Transaction, params};
use serde::{Deserialize, Serialize};
use silo_core::{Change, Permissions, SourceId, SourcePolicy};

use super::{Catalog, parsed};
use crate::StoreError;

/// A policy, and what it made of the permissions when it was last looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PolicyRow {
    /// What was said.
    pub policy: SourcePolicy,
    /// What is permitted, as the log of changes says it.
    pub in_force: Permissions,
}

fn row(r: &Row<'_>, column: usize) -> rusqlite::Result<PolicyRow> {
    parsed(r, column, |text| serde_json::from_str(text).map_err(|e| e.to_string()))
}

fn source(r: &Row<'_>, column: usize) -> rusqlite::Result<SourceId> {
    parsed(r, column, |text| text.parse().map_err(|e: silo_core::InvalidId| e.to_string()))
}

fn put(t: &Transaction<'_>, source: &SourceId, new: &PolicyRow) -> rusqlite::Result<()> {
    let text = serde_json::to_string(new).map_err(|e| rusqlite::Error::ToSqlConversionFailure(e.into()))?;
    let sql = "INSERT INTO policies (source_id, policy) VALUES ((SELECT id FROM sources WHERE name = ?1), ?2)
               ON CONFLICT (source_id) DO UPDATE SET policy = ?2";
    t.execute(sql, params![source.as_str(), text]).map(drop)
}

impl Catalog {
    /// What was said about a source.
    pub(crate) fn policy(&self, id: &SourceId) -> Result<Option<PolicyRow>, StoreError> {
        let sql = "SELECT policy FROM policies JOIN sources ON id = source_id WHERE name = ?1";
        self.run(|c| c.query_row(sql, [id.as_str()], |r| row(r, 0)).optional())
    }

    /// What the declaration of a source permits.
    pub(crate) fn declared(&self, id: &SourceId) -> Result<Option<Permissions>, StoreError> {
        let permissions = |text: &str| serde_json::from_str::<Permissions>(text).map_err(|e| e.to_string());
        let sql = "SELECT permissions FROM sources WHERE name = ?1";
        self.run(|c| c.query_row(sql, [id.as_str()], |r| parsed(r, 0, permissions)).optional())
    }

    /// All sources about which something was said: with what their declarations permit.
    pub(crate) fn policies(&self) -> Result<Vec<(SourceId, Permissions, PolicyRow)>, StoreError> {
        self.policies_where("TRUE")
    }

    /// The same of sources with a term: only what these permit changes by itself.
    pub(crate) fn policies_with_terms(&self) -> Result<Vec<(SourceId, Permissions, PolicyRow)>, StoreError> {
        let term = |end: &str| format!("policy ->> '$.policy.term.{end}' IS NOT NULL");
        self.policies_where(&format!("{} OR {}", term("starts_unix_ms"), term("ends_unix_ms")))
    }

    fn policies_where(&self, condition: &str) -> Result<Vec<(SourceId, Permissions, PolicyRow)>, StoreError> {
        let permissions = |text: &str| serde_json::from_str::<Permissions>(text).map_err(|e| e.to_string());
        let from = "SELECT name, permissions, policy FROM policies JOIN sources ON id = source_id";
        let sql = format!("{from} WHERE {condition} ORDER BY name");
        let read = |r: &Row<'_>| Ok((source(r, 0)?, parsed(r, 1, permissions)?, row(r, 2)?));
        self.run(|c| c.prepare_cached(&sql)?.query_map([], read)?.collect())
    }

    /// Enters a policy, with the change that it makes.
    pub(crate) fn put_policy(
        &self,
        actor: &str,
        change: &Change,
        id: &SourceId,
        new: &PolicyRow,
    ) -> Result<(), StoreError> {
        self.change(actor, change, |t| put(t, id, new))
    }

    /// Takes over what a later catalog says about the sources that are here.
    pub(super) fn take_policies(&self, t: &Transaction<'_>, later: &[(SourceId, PolicyRow)]) -> rusqlite::Result<()> {
        for (source, theirs) in later {
            let sql = "SELECT policy FROM sources LEFT JOIN policies ON id = source_id WHERE name = ?1";
            let own =
                t.query_row(sql, [source.as_str()], |r| r.get::<_, Option<String>>(0)?.map(|_| row(r, 0)).transpose());
            let newer = match own.optional()? {
                None => false, // the backup does not have this source
                Some(own) => own.is_none_or(|own| own.policy.revision < theirs.policy.revision),
            };
            if newer {
                put(t, source, theirs)?;
            }
        }
        Ok(())
    }
}
