//! Statements: what a source gave to answers in some time, signed, and entered in the log.

use serde::{Deserialize, Serialize};
use silo_core::{Change, ContentHash, SourceId};

use crate::note::{self, SigningKey, VerifyingKey};
use crate::receipt::{canonical, ensure, wrong};
use crate::{Checkpoint, LogError, Logged};

const TITLE: &str = "silo statement v1\n";
/// Milliseconds of an hour.
const HOUR_MS: i64 = 3_600_000;

/// A signed report. As text: a title, this as JSON, and the signature ([`note`]) over both. The log has the hash of the report: whoever signs
/// two different ones of the same time has both in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Statement {
    /// Id of the store.
    pub store: String,
    /// When it was made, in milliseconds since 1970.
    pub issued_at_unix_ms: i64,
    /// What is stated.
    pub report: LedgerReport,
    /// The entry of the log that has the report's hash.
    pub logged: Logged,
    /// The log at a moment after it: a signed note of its own.
    pub checkpoint: String,
}

/// What a source gave to answers in some time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LedgerReport {
    /// The source.
    pub source: SourceId,
    /// From this hour's beginning on, in milliseconds since 1970.
    pub from_unix_ms: i64,
    /// To before this hour.
    pub to_unix_ms: i64,
    /// Hours in which it gave something, in their order.
    pub hours: Vec<LedgerHour>,
}

/// What it gave in an hour. Whole numbers only, so that there is one way to write them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LedgerHour {
    /// Beginning of the hour.
    pub start_unix_ms: i64,
    /// Answers that it had a share in.
    pub n_responses: u64,
    /// Tokens in which it had one.
    pub n_tokens: u64,
    /// Its shares, summed, in millionths of a token.
    pub share_millionths: u64,
    /// Answers before which passages of it stood.
    pub n_passage_responses: u64,
    /// Tokens of answers in runs of its words.
    pub n_verbatim_tokens: u64,
}

/// What a statement says, and by whom.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct VerifiedStatement {
    /// The key that signed it.
    pub signed_by: String,
    /// The report.
    pub report: LedgerReport,
    /// Who asked for it.
    pub actor: String,
    /// When it was entered in the log, in milliseconds since 1970, and where.
    pub logged_at_unix_ms: i64,
    #[allow(missing_docs, reason = "see above")]
    pub position: u64,
    /// The log.
    pub origin: String,
    #[allow(missing_docs, reason = "see above")]
    pub log_size: u64,
}

impl LedgerReport {
    /// SHA-256 of its JSON, without spaces.
    pub fn hash(&self) -> ContentHash {
        ContentHash::of(&serde_json::to_vec(self).unwrap_or_default())
    }

    /// The entry of the log for it.
    pub fn entry(&self) -> Change {
        let Self { source, from_unix_ms, to_unix_ms, .. } = self.clone();
        Change::Statement { source, from_unix_ms, to_unix_ms, report: self.hash() }
    }

    fn is_ordered(&self) -> bool {
        let starts = || self.hours.iter().map(|hour| hour.start_unix_ms);
        let inside = starts().all(|start| (self.from_unix_ms..self.to_unix_ms).contains(&start));
        let mut times = starts().chain([self.from_unix_ms, self.to_unix_ms]);
        let whole = times.all(|at| at % HOUR_MS == 0) && self.from_unix_ms < self.to_unix_ms;
        whole && inside && starts().is_sorted_by(|a, b| a < b)
    }
}

impl Statement {
    /// Its text, signed.
    pub fn sign(&self, key: &SigningKey) -> Result<String, LogError> {
        let json = serde_json::to_string_pretty(self).map_err(|e| wrong(e.to_string()))?;
        Ok(note::sign(&format!("{TITLE}{json}\n"), &[key]))
    }

    /// Reads a statement. It is not checked by whom it is, or anything else.
    pub fn read(text: &str) -> Result<Self, LogError> {
        let (signed, _) = text.rsplit_once("\n\n").ok_or_else(|| wrong("it is not signed"))?;
        Self::of_text(&format!("{signed}\n"))
    }

    fn of_text(signed: &str) -> Result<Self, LogError> {
        let json = signed.strip_prefix(TITLE).ok_or_else(|| wrong("its title is not 'silo statement v1'"))?;
        canonical(json.strip_suffix('\n').unwrap_or(json), serde_json::to_string_pretty)
    }

    /// Checks a statement against the keys of the one who issued it, and says what it says.
    pub fn verify(text: &str, keys: &[VerifyingKey]) -> Result<VerifiedStatement, LogError> {
        let (signed, by) = note::open(text, keys)?;
        let statement = Self::of_text(signed)?;
        let checkpoint = Checkpoint::open(&statement.checkpoint, keys)?;
        let entry = statement.logged.open(&checkpoint)?;
        let report = statement.report;
        ensure(entry.change == report.entry(), "the log has another report")?;
        ensure(report.is_ordered(), "its hours are not whole, not in their order, or not in its time")?;
        let ordered = entry.at_unix_ms <= checkpoint.at_unix_ms && checkpoint.at_unix_ms <= statement.issued_at_unix_ms;
        ensure(ordered && report.to_unix_ms <= entry.at_unix_ms, "its moments are not in their order")?;
        Ok(VerifiedStatement {
            signed_by: by[0].name().to_owned(),
            report,
            actor: entry.actor,
            logged_at_unix_ms: entry.at_unix_ms,
            position: statement.logged.position,
            origin: checkpoint.origin,
            log_size: checkpoint.size,
        })
    }
}
