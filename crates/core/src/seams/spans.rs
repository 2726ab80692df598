//! Where runs of words stand.

use crate::{SearchError, Tier};

/// A run of words, of which the last may not be complete.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run<'a> {
    /// The words that are complete ([`crate::units::unit`]).
    pub words: &'a [u32],
    /// The beginning of the next one, normalised; empty if none has begun.
    pub begun: &'a str,
}

/// Search for runs of words.
///
/// Contract: what is found stands in one live document, letter case, spaces and punctuation aside; nothing that was withdrawn or is withheld is
/// found, from the moment since which no search finds it. The answers change with the epoch only.
pub trait SpanSearch: Send + Sync {
    /// Whether a run stands in a live document of a source of one of these tiers whose text may not leave at length
    /// ([`crate::Purpose::Verbatim`]).
    fn is_guarded(&self, run: &Run<'_>, tiers: &[Tier]) -> Result<bool, SearchError>;

    /// Whether a run stands in a live document of a source whose text may leave at length.
    fn is_free(&self, run: &Run<'_>) -> Result<bool, SearchError>;
}
