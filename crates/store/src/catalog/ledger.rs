//! What sources gave to answers, hour by hour.

use std::ops::Range;

use rusqlite::{Row, params};
use silo_core::SourceId;

use super::{Catalog, parsed};
use crate::StoreError;

/// What a source gave to answers in an hour.
#[derive(Debug, Clone, PartialEq)]
pub struct LedgerRow {
    /// Hours since 1970, UTC.
    pub hour: i64,
    /// The source.
    pub source: SourceId,
    /// Answers that it had a share in.
    pub n_responses: u64,
    /// Tokens in which it had one.
    pub n_tokens: u64,
    /// Its shares, summed, in tokens.
    pub share: f64,
    /// Answers before which passages of it stood.
    pub n_passage_responses: u64,
    /// Tokens of answers that stand in long runs of its words.
    pub n_verbatim_tokens: u64,
}

impl Catalog {
    /// Adds to what is there, in one transaction. What sources that the store does not know gave is passed over.
    pub(crate) fn add_to_ledger(&self, rows: &[LedgerRow]) -> Result<(), StoreError> {
        let sql = "INSERT INTO ledger SELECT ?1, id, ?3, ?4, ?5, ?6, ?7 FROM sources WHERE name = ?2
            ON CONFLICT (hour, source_id) DO UPDATE SET n_responses = n_responses + excluded.n_responses,
            n_tokens = n_tokens + excluded.n_tokens, share = share + excluded.share,
            n_passage_responses = n_passage_responses + excluded.n_passage_responses,
            n_verbatim_tokens = n_verbatim_tokens + excluded.n_verbatim_tokens";
        self.transaction(|t| {
            let mut add = t.prepare_cached(sql)?;
            rows.iter().try_for_each(|r| {
                let (responses, tokens) = (r.n_responses as i64, r.n_tokens as i64);
                let (passages, verbatim) = (r.n_passage_responses as i64, r.n_verbatim_tokens as i64);
                add.execute(params![r.hour, r.source.as_str(), responses, tokens, r.share, passages, verbatim])?;
                Ok(())
            })
        })
    }

    /// Rows of some hours, of one source or of all, by hour and name.
    pub(crate) fn ledger(&self, source: Option<&SourceId>, hours: Range<i64>) -> Result<Vec<LedgerRow>, StoreError> {
        let sql = "SELECT hour, name, n_responses, n_tokens, share, n_passage_responses, n_verbatim_tokens
            FROM ledger JOIN sources ON id = source_id
            WHERE hour >= ?1 AND hour < ?2 AND (?3 IS NULL OR name = ?3) ORDER BY hour, name";
        let count = |r: &Row<'_>, column: usize| Ok::<_, rusqlite::Error>(r.get::<_, i64>(column)? as u64);
        let read = |r: &Row<'_>| {
            Ok(LedgerRow {
                hour: r.get(0)?,
                source: parsed(r, 1, |text| text.parse().map_err(|e: silo_core::InvalidId| e.to_string()))?,
                n_responses: count(r, 2)?,
                n_tokens: count(r, 3)?,
                share: r.get(4)?,
                n_passage_responses: count(r, 5)?,
                n_verbatim_tokens: count(r, 6)?,
            })
        };
        let source = source.map(SourceId::as_str);
        self.run(|c| c.prepare_cached(sql)?.query_map(params![hours.start, hours.end, source], read)?.collect())
    }
}
