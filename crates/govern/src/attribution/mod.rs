//! Whose text made what: credit of answers that were given, where any text stands in the store, and the ledger of what sources gave.

mod ledger;
mod responses;
mod text;

use serde::{Deserialize, Serialize};

pub(crate) use ledger::Ledger;
pub use ledger::{HOUR_MS, Part, PartOfAnswer, SourceReport};
pub(crate) use responses::Responses;
pub use responses::{Answer, CreditedDocument, CreditedToken, KeptAnswer, KeptToken};
pub use text::{SpanLimits, TextSpans};

/// What is kept of answers, and what may be asked about texts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct AttributionConfig {
    /// Answers whose credit is kept, the newest; 0 for none.
    pub kept_answers: usize,
    /// With so many tokens together.
    pub kept_tokens: usize,
    /// For so many seconds.
    pub kept_seconds: u64,
    /// So many documents of each of their tokens are kept, those with the greatest shares.
    pub kept_documents: usize,
    /// Whether their text is kept too.
    pub keep_text: bool,
    /// Seconds between two writings of the ledger: so much of it a crash may lose. 0 keeps none.
    pub ledger_seconds: u64,
    /// Signed statements about one source in an hour: each is an entry of the log.
    pub statements_per_hour: u32,
    /// Words of the shortest runs that the ledger counts as verbatim.
    pub verbatim_words: usize,
    /// Answers that wait to be looked through for runs; of one more, runs are not counted.
    pub max_queued_answers: usize,
    /// Threads that look for runs of words; generation has its own.
    pub threads: usize,
    /// Longest text that may be asked about, in bytes.
    pub max_text_bytes: usize,
    /// Runs of words: what holds where a request does not say, and the most that it may say.
    pub spans: SpanLimits,
}

impl Default for AttributionConfig {
    fn default() -> Self {
        Self {
            kept_answers: 1000,
            kept_tokens: 200_000,
            kept_seconds: 3600,
            kept_documents: 8,
            keep_text: false,
            ledger_seconds: 10,
            statements_per_hour: 60,
            verbatim_words: 8,
            max_queued_answers: 64,
            threads: 1,
            max_text_bytes: 64 << 10,
            spans: SpanLimits::default(),
        }
    }
}
