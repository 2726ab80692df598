//! The ledger: what sources gave to answers. It holds numbers under sources' names, and stays when their text has gone.

use std::ops::Range;

use silo_core::SourceId;

use crate::{LedgerRow, Store, StoreError};

impl Store {
    /// Adds to the ledger, all or nothing.
    pub fn add_to_ledger(&self, rows: &[LedgerRow]) -> Result<(), StoreError> {
        self.catalog.add_to_ledger(rows)
    }

    /// What a source, or each, gave in some hours since 1970, by hour and name.
    pub fn ledger(&self, source: Option<&SourceId>, hours: Range<i64>) -> Result<Vec<LedgerRow>, StoreError> {
        self.catalog.ledger(source, hours)
    }
}
