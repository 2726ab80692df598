//! What sources gave to answers, hour by hour.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

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
    noted: Mutex<Noted>,
    /// One writes at a time: who has waited for it finds all written.
    writing: Mutex<()>,
}

#[derive(Default)]
struct Noted {
    rows: BTreeMap<(i64, SourceId), LedgerRow>,
    /// Nothing is added to hours before this one: something may have been stated about them.
    open_from: i64,
    /// Answers of each hour that wait to be looked through.
    waiting: BTreeMap<i64, usize>,
    /// Statements of each source in the hour that is.
    statements: BTreeMap<SourceId, (i64, u32)>,
}

impl Noted {
    fn add(&mut self, hour: i64, source: &SourceId, add: impl FnOnce(&mut LedgerRow)) {
        let nothing = || LedgerRow {
            hour,
            source: source.clone(),
            n_responses: 0,
            n_tokens: 0,
            share: 0.0,
            n_passage_responses: 0,
            n_verbatim_tokens: 0,
        };
        add(self.rows.entry((hour, source.clone())).or_insert_with(nothing));
    }

    fn put_back(&mut self, rows: Vec<LedgerRow>) {
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

    /// Statements about a source in this hour.
    fn statements(&mut self, source: &SourceId) -> &mut u32 {
        let hour = this_hour();
        self.statements.retain(|_, (of, _)| *of == hour);
        &mut self.statements.entry(source.clone()).or_insert((hour, 0)).1
    }
}

impl Ledger {
    /// A ledger of a store that was changed last at this time, in milliseconds since 1970: statements about hours before are among its changes.
    pub(crate) fn since(last_change_at_unix_ms: i64) -> Self {
        let open_from = last_change_at_unix_ms.div_euclid(HOUR_MS);
        if open_from > this_hour() {
            tracing::warn!(
                "the store was changed last in an hour that is to come: what sources give until then counts for that hour"
            );
        }
        Self { noted: Mutex::new(Noted { open_from, ..Noted::default() }), writing: Mutex::default() }
    }

    fn noted(&self) -> MutexGuard<'_, Noted> {
        self.noted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn this_hour() -> i64 {
    now_unix_ms().div_euclid(HOUR_MS)
}

/// An answer of this hour that waits to be looked through, until it is dropped.
struct Waits(Arc<Governor>, i64);

impl Drop for Waits {
    fn drop(&mut self) {
        let mut noted = self.0.ledger.noted();
        if let Some(n) = noted.waiting.get_mut(&self.1) {
            *n -= 1;
        }
        noted.waiting.retain(|_, n| *n > 0);
    }
}

impl Governor {
    /// Notes what sources gave to an answer. Runs of their words are counted in the background.
    pub fn note_answer(self: &Arc<Self>, answer: PartOfAnswer) {
        let config = &self.config().attribution;
        if config.ledger_seconds == 0 {
            return;
        }
        let mut noted = self.ledger.noted();
        // A clock that went back adds nothing to what may have been stated.
        let hour = this_hour().max(noted.open_from);
        for part in &answer.parts {
            noted.add(hour, &part.source, |row| {
                row.n_responses += 1;
                row.n_tokens += part.n_tokens;
                row.share += part.share;
            });
        }
        for source in answer.context_sources.iter().collect::<BTreeSet<_>>() {
            noted.add(hour, source, |row| row.n_passage_responses += 1);
        }
        if answer.parts.is_empty() && answer.context_sources.is_empty() {
            return;
        }
        if noted.waiting.values().sum::<usize>() >= config.max_queued_answers {
            tracing::warn!(
                "too many answers wait to be looked through for runs of words: those of one are not counted"
            );
            return;
        }
        *noted.waiting.entry(hour).or_default() += 1;
        drop(noted);
        let waits = Waits(Arc::clone(self), hour);
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
            self.ledger.noted().add(hour, source, |row| row.n_verbatim_tokens += n);
        }
    }

    /// Writes what was noted since the last time, all or nothing.
    pub fn write_ledger(&self) -> Result<(), GovernError> {
        let _one = self.ledger.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let rows: Vec<LedgerRow> = std::mem::take(&mut self.ledger.noted().rows).into_values().collect();
        if rows.is_empty() {
            return Ok(());
        }
        self.store().add_to_ledger(&rows).map_err(|error| {
            self.ledger.noted().put_back(rows);
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

    /// The same, signed ([`silo_log::Statement`]), of hours that are over and to which nothing is added any more; its hash is entered in the log
    /// of changes first.
    pub fn source_statement(
        &self,
        caller: &Caller,
        source: &SourceId,
        hours: Range<i64>,
    ) -> Result<String, GovernError> {
        if !caller.sees(source) {
            return Err(silo_store::StoreError::UnknownSource(source.clone()).into());
        }
        self.store().source(source)?;
        self.check_notary()?;
        let hours = hours.start..hours.end.min(this_hour());
        if hours.is_empty() {
            return Err(GovernError::HourNotOver);
        }
        let limit = self.config().attribution.statements_per_hour;
        {
            let mut noted = self.ledger.noted();
            if noted.waiting.range(..hours.end).next().is_some() {
                return Err(GovernError::AnswersWait);
            }
            if *noted.statements(source) >= limit {
                return Err(GovernError::TooManyStatements { limit });
            }
            // It may be entered in the log and fail afterwards: it counts from here on.
            *noted.statements(source) += 1;
            noted.open_from = noted.open_from.max(hours.end);
        }
        let report = self.source_report(caller, source, hours)?;
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
