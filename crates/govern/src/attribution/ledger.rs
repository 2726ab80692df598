//! What sources gave to answers, hour by hour.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use silo_core::{Filter, SourceId};
use silo_log::{LedgerHour, LedgerReport};
use silo_store::{LedgerRow, now_unix_ms};

use super::SpanLimits;
use crate::{Caller, GovernError, Governor};

/// Milliseconds of an hour.
pub const HOUR_MS: i64 = 3_600_000;

/// What a source gave to an answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Part {
    /// The source.
    pub source: SourceId,
    /// Its share, summed over the tokens.
    pub share: f64,
    /// Tokens in which it had one.
    pub n_tokens: u64,
}

/// What goes into the ledger of an answer.
#[derive(Debug, Clone, PartialEq)]
pub struct PartOfAnswer {
    /// Of each source.
    pub parts: Vec<Part>,
    /// Sources whose passages stood before it.
    pub context_sources: Vec<SourceId>,
    /// Its text, token by token, to be looked through for long runs.
    pub pieces: Vec<String>,
    /// What the request could see.
    pub filter: Filter,
}

/// What a source gave in a time.
#[derive(Debug, Clone, PartialEq)]
pub struct SourceReport {
    /// The source.
    pub source: SourceId,
    /// The hours since 1970 that it is about.
    pub hours: Range<i64>,
    /// Hour by hour; hours in which it gave nothing are left out.
    pub rows: Vec<LedgerRow>,
}

/// What is not written yet.
#[derive(Default)]
pub(crate) struct Ledger {
    rows: Mutex<BTreeMap<(i64, SourceId), LedgerRow>>,
    waiting: AtomicUsize,
    /// Statements of each source in the hour that is.
    statements: Mutex<BTreeMap<SourceId, (i64, u32)>>,
}

impl Ledger {
    fn add(&self, hour: i64, source: &SourceId, add: impl FnOnce(&mut LedgerRow)) {
        let mut rows = self.rows.lock().unwrap_or_else(PoisonError::into_inner);
        let nothing = || LedgerRow {
            hour,
            source: source.clone(),
            n_responses: 0,
            n_tokens: 0,
            share: 0.0,
            n_passage_responses: 0,
            n_verbatim_tokens: 0,
        };
        add(rows.entry((hour, source.clone())).or_insert_with(nothing));
    }

    fn take(&self) -> Vec<LedgerRow> {
        let rows = std::mem::take(&mut *self.rows.lock().unwrap_or_else(PoisonError::into_inner));
        rows.into_values().collect()
    }

    /// Counts a statement about a source.
    fn state(&self, source: &SourceId, limit: u32) -> Result<(), GovernError> {
        let hour = now_unix_ms().div_euclid(HOUR_MS);
        let mut all = self.statements.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|_, (of, _)| *of == hour);
        let (_, n) = all.entry(source.clone()).or_insert((hour, 0));
        if *n >= limit {
            return Err(GovernError::TooManyStatements { limit });
        }
        *n += 1;
        Ok(())
    }

    fn put_back(&self, rows: Vec<LedgerRow>) {
        for row in rows {
            self.add(row.hour, &row.source, |there| {
                there.n_responses += row.n_responses;
                there.n_tokens += row.n_tokens;
                there.share += row.share;
                there.n_passage_responses += row.n_passage_responses;
                there.n_verbatim_tokens += row.n_verbatim_tokens;
            });
        }
    }
}

/// An answer that waits to be looked through, until it is dropped.
struct Waits(Arc<Governor>);

impl Drop for Waits {
    fn drop(&mut self) {
        self.0.ledger.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Governor {
    /// Notes what sources gave to an answer. Runs of their words are counted in the background.
    pub fn note_answer(self: &Arc<Self>, answer: PartOfAnswer) {
        let config = &self.config().attribution;
        if config.ledger_seconds == 0 {
            return;
        }
        let hour = now_unix_ms().div_euclid(HOUR_MS);
        for part in &answer.parts {
            self.ledger.add(hour, &part.source, |row| {
                row.n_responses += 1;
                row.n_tokens += part.n_tokens;
                row.share += part.share;
            });
        }
        for source in answer.context_sources.iter().collect::<BTreeSet<_>>() {
            self.ledger.add(hour, source, |row| row.n_passage_responses += 1);
        }
        if answer.parts.is_empty() && answer.context_sources.is_empty() {
            return;
        }
        if self.ledger.waiting.fetch_add(1, Ordering::Relaxed) >= config.max_queued_answers {
            self.ledger.waiting.fetch_sub(1, Ordering::Relaxed);
            tracing::warn!(
                "too many answers wait to be looked through for runs of words: those of one are not counted"
            );
            return;
        }
        let waits = Waits(Arc::clone(self));
        self.attribution_threads.spawn(move || waits.0.count_verbatim(hour, &answer));
    }

    fn count_verbatim(&self, hour: i64, answer: &PartOfAnswer) {
        let config = &self.config().attribution;
        let text = answer.pieces.concat();
        let limits =
            SpanLimits { min_words: config.verbatim_words, max_spans: usize::MAX, max_documents: 0, context_words: 0 };
        let found = match self.find_spans(&text, &answer.filter, limits, &AtomicBool::new(false)) {
            Ok(found) => found,
            Err(error) => return tracing::warn!("runs of words of an answer were not counted: {error}"),
        };
        let mut of_source: BTreeMap<&SourceId, Vec<&Range<usize>>> = BTreeMap::new();
        for span in &found.spans {
            span.sources.iter().for_each(|source| of_source.entry(source).or_default().push(&span.at));
        }
        for (source, spans) in of_source {
            let mut at = 0;
            let inside = answer.pieces.iter().filter(|piece| {
                let (from, to) = (at, at + piece.len());
                at = to;
                from < to && spans.iter().any(|span| span.start < to && from < span.end)
            });
            let n = inside.count() as u64;
            self.ledger.add(hour, source, |row| row.n_verbatim_tokens += n);
        }
    }

    /// Writes what was noted since the last time, all or nothing.
    pub fn write_ledger(&self) -> Result<(), GovernError> {
        let rows = self.ledger.take();
        if rows.is_empty() {
            return Ok(());
        }
        self.store().add_to_ledger(&rows).map_err(|error| {
            self.ledger.put_back(rows);
            error.into()
        })
    }

    /// What a source gave from one hour since 1970 to before another. Only for callers that the source is there for.
    pub fn source_report(
        &self,
        caller: &Caller,
        source: &SourceId,
        hours: Range<i64>,
    ) -> Result<SourceReport, GovernError> {
        if !caller.sees(source) {
            return Err(silo_store::StoreError::UnknownSource(source.clone()).into());
        }
        self.store().source(source)?;
        self.write_ledger()?;
        Ok(SourceReport { source: source.clone(), rows: self.store().ledger(Some(source), hours.clone())?, hours })
    }

    /// The same, signed ([`silo_log::Statement`]), of hours that are over; its hash is entered in the log of changes first.
    pub fn source_statement(
        &self,
        caller: &Caller,
        source: &SourceId,
        hours: Range<i64>,
    ) -> Result<String, GovernError> {
        let over = now_unix_ms().div_euclid(HOUR_MS);
        let hours = hours.start..hours.end.min(over);
        if hours.is_empty() {
            return Err(GovernError::HourNotOver);
        }
        let report = self.source_report(caller, source, hours)?;
        self.check_notary()?;
        self.ledger.state(source, self.config().attribution.statements_per_hour)?;
        self.state(&caller.name, ledger_report(report))
    }
}

fn ledger_report(report: SourceReport) -> LedgerReport {
    let hour = |row: LedgerRow| LedgerHour {
        start_unix_ms: row.hour * HOUR_MS,
        n_responses: row.n_responses,
        n_tokens: row.n_tokens,
        share_millionths: (row.share * 1e6).round() as u64,
        n_passage_responses: row.n_passage_responses,
        n_verbatim_tokens: row.n_verbatim_tokens,
    };
    LedgerReport {
        source: report.source,
        from_unix_ms: report.hours.start * HOUR_MS,
        to_unix_ms: report.hours.end * HOUR_MS,
        hours: report.rows.into_iter().map(hour).collect(),
    }
}
