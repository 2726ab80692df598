//! What sources may be used for after they were declared.

use silo_core::{Permissions, Signal, Source, SourceId, SourcePolicy, Term};
use silo_store::now_unix_ms;

use crate::signals::{SignalFile, read_signal};
use crate::{Caller, GovernError, Governor};

/// A change of what is said about a source. What is not set stays.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SourceUpdate {
    /// What is permitted at most; never more than the declaration permits.
    pub permissions: Option<Permissions>,
    /// From when until when.
    pub term: Option<Term>,
    /// Files that say something about it. They join those that were recorded, or replace them.
    pub signals: Vec<SignalFile>,
    /// Whether they replace those that were recorded.
    pub replace_signals: bool,
}

/// A source with what is said about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceState {
    /// The source; its permissions are those in force.
    pub source: Source,
    /// What its declaration permits.
    pub declared: Permissions,
    /// What was said since.
    pub policy: SourcePolicy,
}

impl Governor {
    /// A source with what is said about it.
    pub fn source_state(&self, id: &SourceId) -> Result<SourceState, GovernError> {
        let (source, policy) = (self.store().source(id)?, self.store().policy(id)?);
        Ok(SourceState { source: (*source).clone(), declared: self.store().declared_permissions(id)?, policy })
    }

    /// Changes what is said about a source; with `validate_only` it only says what would be.
    pub fn update_source(
        &self,
        caller: &Caller,
        id: &SourceId,
        update: &SourceUpdate,
        validate_only: bool,
    ) -> Result<SourceState, GovernError> {
        let read = |file: &SignalFile| {
            let limit = self.config().max_signal_bytes;
            if file.text.len() > limit {
                let (what, got, setting) = ("the file of a signal in bytes", file.text.len(), "max_signal_bytes");
                return Err(GovernError::Limit { what, got, limit, setting });
            }
            read_signal(file, now_unix_ms()).map_err(|reason| GovernError::Signal { kind: file.kind, reason })
        };
        let signals = update.signals.iter().map(read).collect::<Result<Vec<Signal>, _>>()?;
        if let Some(Term { starts_unix_ms: Some(starts), ends_unix_ms: Some(ends) }) = update.term
            && starts >= ends
        {
            return Err(GovernError::Term { starts, ends });
        }
        let changed = |before: SourcePolicy| {
            let mut all = if update.replace_signals { Vec::new() } else { before.signals };
            all.extend(signals);
            SourcePolicy {
                revision: before.revision,
                permissions: update.permissions.or(before.permissions),
                term: update.term.unwrap_or(before.term),
                signals: all,
            }
        };
        if !validate_only {
            self.store().by(&caller.name).update_source(id, changed)?;
            return self.source_state(id);
        }
        let before = self.source_state(id)?;
        let policy = changed(before.policy);
        let permissions = policy.permits(before.declared, now_unix_ms());
        Ok(SourceState { source: Source { permissions, ..before.source }, policy, ..before })
    }

    /// Lets terms begin and end whose time has come.
    pub fn apply_terms(&self) -> Result<Vec<SourceId>, GovernError> {
        Ok(self.store().apply_terms()?)
    }
}
