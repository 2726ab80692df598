//! The ledger: what sources gave to answers. It holds numbers under sources' names, and stays when their text has gone.

use std::ops::Range;

use silo_core::{Change, SourceId};

use crate::{LedgerRow, Store, StoreError};

impl Store {
    /// Adds to the ledger, all or nothing.
    pub fn add_to_ledger(&self, rows: &[LedgerRow]) -> Result<(), StoreError> {
        self.catalog.add_to_ledger(rows)
    }

    /// Enters in the log of changes what was stated about a source's report; gives the position of the entry.
    pub fn log_statement(&self, actor: &str, statement: &Change) -> Result<u64, StoreError> {
        self.catalog.note_at(actor, statement)
    }

    /// What a source, or each, gave in some hours since 1970, by hour and name.
    pub fn ledger(&self, source: Option<&SourceId>, hours: Range<i64>) -> Result<Vec<LedgerRow>, StoreError> {
        self.catalog.ledger(source, hours)
    }
}
