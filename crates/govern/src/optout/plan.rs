//! What a request would do, before it does it.

use std::collections::{BTreeMap, BTreeSet};

use silo_core::{ContentHash, OptOutSelection, PassageMatch, Selection, SourceId, units};
use silo_log::TrainedOn;
use silo_store::{PartDocument, RemovalPart, StoreError, TextMatch};

use super::NewOptOut;
use crate::{Caller, GovernError, Governor};

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
    /// Shards that could not be looked into.
    pub n_unavailable: u64,
    /// What is withdrawn by them.
    pub(super) what: Vec<Selection>,
}

impl OptOutPlan {
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
    /// What a request would do; changes nothing. A caller with own sources sees and puts in quarantine what is in those only: what a passage is
    /// found in elsewhere is noted for the decision.
    pub fn plan_optout(&self, caller: &Caller, new: &NewOptOut) -> Result<OptOutPlan, GovernError> {
        let store = self.store();
        let mut matches = Vec::new();
        let what = match &new.selection {
            OptOutSelection::Source { source } => vec![Selection::Source(source.clone())],
            OptOutSelection::Documents { source, documents } => {
                vec![Selection::Documents { source: source.clone(), documents: documents.clone() }]
            }
            OptOutSelection::UriPrefix { source, prefix } => {
                let prefix = prefix.clone().unwrap_or_default();
                vec![Selection::UriPrefix { source: source.clone(), prefix }]
            }
            OptOutSelection::Passage { text, .. } => {
                let text = text.as_deref().unwrap_or_default();
                self.check_passage(text)?;
                let found = store.find_text(text, self.config().optout.passage_overlap)?;
                matches = found.into_iter().map(|m| (caller.sees(&m.source), m)).map(|(own, m)| (m, own)).collect();
                selections(matches.iter().filter(|(_, own)| *own).map(|(m, _)| (m.source.clone(), m.document)))
            }
        };
        let parts = match store.plan_all(&what) {
            // A passage may be kept out before it ever came.
            Err(StoreError::NothingSelected) if what.is_empty() => Vec::new(),
            other => other?,
        };
        let most = self.config().optout.max_quoted_documents;
        let documents = store.documents_of_parts(&parts, usize::MAX)?;
        let n_tokens = documents.iter().filter_map(|d| d.stored.as_ref()).map(|d| d.tokens.len() as u64).sum();
        let quotes = self.quotes(caller, &documents[..documents.len().min(most)], &documents)?;
        let sources: BTreeSet<SourceId> = documents.iter().map(|d| d.source.clone()).collect();
        Ok(OptOutPlan {
            n_tokens,
            n_not_compared: documents.len().saturating_sub(most) as u64,
            model: self.model_trained_on(&sources),
            n_unavailable: store.unavailable().len() as u64,
            parts,
            documents,
            matches,
            quotes,
            what,
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
