//! What sources may be used for, now and later.

use std::sync::Arc;

use silo_core::{Change, Permissions, SourceId, SourcePolicy};

use crate::catalog::{PolicyRow, SILO, now_unix_ms};
use crate::{By, Store, StoreError};

impl Store {
    /// What was said about a source since it was declared.
    pub fn policy(&self, id: &SourceId) -> Result<SourcePolicy, StoreError> {
        self.source(id)?;
        Ok(self.catalog.policy(id)?.map(|row| row.policy).unwrap_or_default())
    }

    /// What the declaration of a source permits.
    pub fn declared_permissions(&self, id: &SourceId) -> Result<Permissions, StoreError> {
        self.catalog.declared(id)?.ok_or_else(|| StoreError::UnknownSource(id.clone()))
    }

    /// The time by which terms begin and end: never before that of the newest change. A clock that went back revives nothing.
    fn time(&self) -> Result<i64, StoreError> {
        Ok(now_unix_ms().max(self.catalog.last_change_at()?))
    }

    /// Lets terms begin and end whose time has come; gives the sources that it concerns.
    pub fn apply_terms(&self) -> Result<Vec<SourceId>, StoreError> {
        let due = |now: i64| -> Result<Vec<(SourceId, PolicyRow)>, StoreError> {
            let mut due = Vec::new();
            for (id, declared, row) in self.catalog.policies_with_terms()? {
                if row.policy.permits(declared, now) != row.in_force {
                    due.push((id, row));
                }
            }
            Ok(due)
        };
        if due(self.time()?)?.is_empty() {
            return Ok(Vec::new());
        }
        let _change = self.change();
        let mut changed = Vec::new();
        for (id, row) in due(self.time()?)? {
            self.put_policy(SILO, &id, row.policy)?;
            changed.push(id);
        }
        Ok(changed)
    }

    /// Enters a policy and puts it in force. The caller holds the lock of changes.
    fn put_policy(&self, actor: &str, id: &SourceId, policy: SourcePolicy) -> Result<Permissions, StoreError> {
        let in_force = policy.permits(self.declared_permissions(id)?, self.time()?);
        let epoch = self.catalog.next_epoch()?;
        let after = self.changed(epoch, |live| live.permit(id, in_force, epoch));
        let change = Change::UpdateSource {
            source: id.clone(),
            permissions: in_force,
            term: policy.term,
            signals: policy.signals.iter().map(|signal| signal.sha256).collect(),
            state: self.state_of(&after),
        };
        self.catalog.put_policy(actor, &change, id, &PolicyRow { policy, in_force })?;
        self.show(after);
        Ok(in_force)
    }
}

impl By<'_> {
    /// Changes what is said about a source; gives what is permitted since. It holds for all requests and running streams when this returns.
    pub fn update_source(
        &self,
        id: &SourceId,
        change: impl FnOnce(SourcePolicy) -> SourcePolicy,
    ) -> Result<Permissions, StoreError> {
        let _change = self.store.change();
        let before = self.store.policy(id)?;
        let revision = before.revision + 1;
        self.store.put_policy(self.actor, id, SourcePolicy { revision, ..change(before) })
    }
}

/// A source with other permissions.
pub(crate) fn permitted(source: &silo_core::Source, permissions: Permissions) -> Arc<silo_core::Source> {
    Arc::new(silo_core::Source { permissions, ..source.clone() })
}
