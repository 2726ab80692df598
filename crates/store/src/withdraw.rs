//! Withdrawals, suspensions, resumptions: what takes effect at once.

use std::time::Instant;

use silo_core::{Epoch, RootHash, Selection, ShardId};

use crate::boundary::Boundary;
use crate::catalog::{RemovalKind, RemovalPart, RemovalRecord};
use crate::{ShardState, Store, StoreError};

/// What a change of what is retrieved did. When it is returned it is on disk, and no search finds what it took away, in any snapshot.
#[derive(Debug, Clone, PartialEq)]
pub struct Removal {
    /// Its entry in the log.
    pub record: RemovalRecord,
    /// Root before it.
    pub root_before: RootHash,
    /// Root after it.
    pub root_after: RootHash,
    /// From the call to the end of its transaction: since then no crash undoes it.
    pub durable_ms: f64,
    /// From the call to the moment since which no search finds it.
    pub effective_ms: f64,
}

impl Removal {
    /// The epoch that it made.
    pub fn epoch(&self) -> Epoch {
        self.record.epoch
    }
}

impl Store {
    /// What a withdrawal would take away now: documents that are in the store and not withdrawn, shard by shard.
    pub fn plan(&self, selection: &Selection) -> Result<Vec<RemovalPart>, StoreError> {
        match selection {
            Selection::Source(source) | Selection::Documents { source, .. } => drop(self.source(source)?),
            Selection::UriPrefix { source, prefix } => {
                source.as_ref().map(|s| self.source(s)).transpose()?;
                if prefix.is_empty() {
                    return Err(StoreError::EmptyPrefix);
                }
            }
            Selection::Shard(id) => {
                if self.shard(*id)?.state == ShardState::Removed {
                    return Err(StoreError::ShardRemoved(*id));
                }
            }
        }
        let parts = self.catalog.resolve(selection)?;
        if parts.is_empty() { Err(StoreError::NothingSelected) } else { Ok(parts) }
    }

    /// Withdraws what is selected, for good. Its bytes go with the next [`Store::purge`].
    pub fn withdraw(&self, selection: &Selection) -> Result<Removal, StoreError> {
        let selector = match selection {
            Selection::Shard(_) => "shard",
            Selection::Source(_) => "source",
            Selection::Documents { .. } => "documents",
            Selection::UriPrefix { .. } => "uri-prefix",
        };
        self.apply(RemovalKind::Remove, selector, || self.plan(selection))
    }

    /// Takes a live shard out of what is retrieved, until it is resumed.
    pub fn suspend_shard(&self, id: ShardId) -> Result<Removal, StoreError> {
        self.apply(RemovalKind::Suspend, "shard", || self.in_state(id, ShardState::Live))
    }

    /// Puts a suspended shard back.
    pub fn resume_shard(&self, id: ShardId) -> Result<Removal, StoreError> {
        self.apply(RemovalKind::Resume, "shard", || self.in_state(id, ShardState::Suspended))
    }

    fn in_state(&self, id: ShardId, expected: ShardState) -> Result<Vec<RemovalPart>, StoreError> {
        let found = self.shard(id)?.state;
        match found {
            ShardState::Removed => Err(StoreError::ShardRemoved(id)),
            _ if found == expected => self.plan(&Selection::Shard(id)),
            _ => Err(StoreError::ShardState { id, found }),
        }
    }

    /// Resolves a change and does it: first on disk, then for all searches.
    fn apply(
        &self,
        kind: RemovalKind,
        selector: &str,
        resolve: impl FnOnce() -> Result<Vec<RemovalPart>, StoreError>,
    ) -> Result<Removal, StoreError> {
        let start = Instant::now();
        let passed_ms = || start.elapsed().as_secs_f64() * 1000.0;
        let _change = self.change();
        let parts = resolve()?;
        self.at(Boundary::ChangeResolved);
        let record = self.catalog.log(kind, selector, &parts)?;
        let durable_ms = passed_ms();
        self.at(Boundary::ChangeCommitted);
        // From here on nothing can fail: what the catalog holds is what is live.
        let root_before = self.live().snapshot.root;
        let live = self.swap(|live| {
            for part in &record.parts {
                match (kind, &part.numbers) {
                    (RemovalKind::Remove, None) => live.remove(part.shard),
                    (RemovalKind::Remove, Some(numbers)) => live.withdraw(part.shard, numbers, record.epoch),
                    (RemovalKind::Suspend, _) => live.suspend(part.shard),
                    (RemovalKind::Resume, _) => live.resume(part.shard, record.epoch),
                }
            }
            live.renew_snapshot(record.epoch);
        });
        let effective_ms = passed_ms();
        if kind == RemovalKind::Remove {
            record.parts.iter().filter(|p| p.numbers.is_none()).for_each(|p| self.stop_rewrite(p.shard));
        }
        Ok(Removal { record, root_before, root_after: live.snapshot.root, durable_ms, effective_ms })
    }
}
