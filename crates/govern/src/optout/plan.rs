//! What a request would do, before it does it.

use std::collections::{BTreeMap, BTreeSet};

use silo_core::{ContentHash, OptOutSelection, PassageMatch, Selection, SourceId, units};
use silo_log::TrainedOn;
use silo_store::{PartDocument, RemovalPart, StoreError, TextMatch};

use super::NewOptOut;
use crate::{Caller, GovernError, Governor};

/// Documents of a plan of which the titles are read.
const LISTED: usize = 1000;

/// A document elsewhere that holds much of one that a request names.
#[derive(Debug, Clone, PartialEq)]
pub struct Quote {
    /// The document of the request.
    pub of: ContentHash,
    /// Its source.
    pub of_source: SourceId,
    /// What holds much of it.
    pub found: TextMatch,
}

/// What a request would do.
#[derive(Debug, Clone, PartialEq)]
pub struct OptOutPlan {
    /// What would be put in quarantine, shard by shard.
    pub parts: Vec<RemovalPart>,
    /// The documents of it.
    pub documents: Vec<PartDocument>,
    /// Their tokens.
    pub n_tokens: u64,
    /// Where a passage was found, in quarantine at once or for decision.
    pub matches: Vec<(TextMatch, bool)>,
    /// Documents that are not part of the request and hold much of one that is.
    pub quotes: Vec<Quote>,
    /// So many documents were not compared with others, since there are more than `max_quoted_documents`.
    pub n_not_compared: u64,
    /// The model in use, and which of the sources are in its training text.
    pub model: TrainedOn,
    /// Shards of the caller's sources that could not be looked into.
    pub n_unavailable: u64,
}

/// What a request names.
pub(super) struct Named {
    /// As selections; none, if a passage stands nowhere.
    pub(super) what: Vec<Selection>,
    /// Where a passage was found, and whether that is within the caller's sources.
    pub(super) matches: Vec<(TextMatch, bool)>,
}

impl Named {
    /// Matches as they are kept.
    pub(super) fn kept_matches(&self) -> Vec<PassageMatch> {
        let kept = |(m, quarantined): &(TextMatch, bool)| PassageMatch {
            source: m.source.clone(),
            document: m.document,
            exact: m.exact,
            overlap: m.overlap,
            quarantined: *quarantined,
        };
        self.matches.iter().map(kept).collect()
    }
}

impl Governor {
    /// What a selection names now. A caller with own sources names what is in those only: what a passage is found in elsewhere is noted.
    pub(super) fn named(&self, caller: &Caller, selection: &OptOutSelection) -> Result<Named, GovernError> {
        let mut matches = Vec::new();
        let what = match selection {
            OptOutSelection::Source { source } => vec![Selection::Source(source.clone())],
            OptOutSelection::Documents { source, documents } => {
                vec![Selection::Documents { source: source.clone(), documents: documents.clone() }]
            }
            OptOutSelection::UriPrefix { source, prefix: Some(prefix) } => {
                vec![Selection::UriPrefix { source: source.clone(), prefix: prefix.clone() }]
            }
            OptOutSelection::Passage { text: Some(text), .. } => {
                self.check_passage(text)?;
                let found = self.store().find_text(text, self.config().optout.passage_overlap)?;
                matches = found.into_iter().map(|m| (caller.sees(&m.source), m)).map(|(own, m)| (m, own)).collect();
                selections(matches.iter().filter(|(_, own)| *own).map(|(m, _)| (m.source.clone(), m.document)))
            }
            // It was granted: what was written in it is gone.
            OptOutSelection::UriPrefix { prefix: None, .. } | OptOutSelection::Passage { text: None, .. } => Vec::new(),
        };
        Ok(Named { what, matches })
    }

    /// What a request would do; changes nothing.
    pub fn plan_optout(&self, caller: &Caller, new: &NewOptOut) -> Result<OptOutPlan, GovernError> {
        let named = self.named(caller, &new.selection)?;
        let parts = match self.store().plan_all(&named.what) {
            // A passage may be kept out before it ever came.
            Err(StoreError::NothingSelected) if named.what.is_empty() => Vec::new(),
            other => other?,
        };
        self.plan_of(caller, named, parts)
    }

    /// The plan of what is in these parts.
    pub(super) fn plan_of(
        &self,
        caller: &Caller,
        named: Named,
        parts: Vec<RemovalPart>,
    ) -> Result<OptOutPlan, GovernError> {
        let most = self.config().optout.max_quoted_documents;
        let documents = self.store().documents_of_parts(&parts, most.max(LISTED))?;
        let quotes = self.quotes(caller, &documents[..documents.len().min(most)], &documents)?;
        let sources: BTreeSet<SourceId> = documents.iter().map(|d| d.source.clone()).collect();
        let mut n_unavailable = 0;
        for id in self.store().unavailable().into_keys() {
            n_unavailable += u64::from(caller.sees(&self.store().shard(id)?.source));
        }
        Ok(OptOutPlan {
            n_tokens: documents.iter().map(|d| d.n_tokens).sum(),
            n_not_compared: documents.len().saturating_sub(most) as u64,
            model: self.model_trained_on(&sources),
            n_unavailable,
            parts,
            documents,
            matches: named.matches,
            quotes,
        })
    }

    fn check_passage(&self, text: &str) -> Result<(), GovernError> {
        let limits = &self.config().optout;
        let (bytes, n_words) = (text.len(), units::words(text).count());
        if bytes > limits.max_passage_bytes {
            let limit = limits.max_passage_bytes;
            return Err(GovernError::Limit {
                what: "the passage in bytes",
                got: bytes,
                limit,
                setting: "optout.max_passage_bytes",
            });
        }
        if n_words < limits.min_passage_words {
            return Err(GovernError::ShortPassage { got: n_words, least: limits.min_passage_words });
        }
        Ok(())
    }

    /// Documents that are not among `all` and hold much of one of `of`.
    fn quotes(&self, caller: &Caller, of: &[PartDocument], all: &[PartDocument]) -> Result<Vec<Quote>, GovernError> {
        let named: BTreeSet<(&SourceId, ContentHash)> = all.iter().map(|d| (&d.source, d.hash)).collect();
        let mut out = Vec::new();
        for document in of {
            let Some(stored) = &document.stored else { continue };
            let found = self.store().find_text(&stored.document.text, self.config().optout.passage_overlap)?;
            let others =
                found.into_iter().filter(|m| !named.contains(&(&m.source, m.document)) && caller.sees(&m.source));
            let quote = |found| Quote { of: document.hash, of_source: document.source.clone(), found };
            out.extend(others.map(quote));
        }
        Ok(out)
    }
}

/// Documents as selections, source by source.
pub(super) fn selections(documents: impl IntoIterator<Item = (SourceId, ContentHash)>) -> Vec<Selection> {
    let mut of_source: BTreeMap<SourceId, Vec<ContentHash>> = BTreeMap::new();
    documents.into_iter().for_each(|(source, document)| of_source.entry(source).or_default().push(document));
    of_source.into_iter().map(|(source, documents)| Selection::Documents { source, documents }).collect()
}
