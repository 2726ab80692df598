//! The opt-out workflow: requests, their plans, their steps, and what they keep out.

mod machine;
mod plan;
mod statement;
mod steps;
mod suppress;

use std::collections::BTreeSet;
use std::sync::PoisonError;

use serde::{Deserialize, Serialize};
use silo_core::{Document, OptOut, OptOutSelection, OptOutState, SourceId};

pub use machine::{Refusal, after, becomes};
pub use plan::{OptOutPlan, Quote};
pub(crate) use steps::some;
pub use steps::{Decision, Verdict, Why};
pub use suppress::{Hit, Sketch, Suppressed};

use crate::{Caller, GovernError, Governor};

/// Timers and limits of the workflow.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct OptOutConfig {
    /// Days after its submission until which a request should be decided (GDPR art. 12(3): one month).
    pub decide_days: u32,
    /// Days after a counter-notice from which on a request can be restored without a decision (17 U.S.C. § 512(g): 10 to 14 business days).
    pub restore_after_counter_days: u32,
    /// Days after a decision until which it can be appealed.
    pub appeal_days: u32,
    /// Fewest words of a passage.
    pub min_passage_words: usize,
    /// Longest passage, in bytes.
    pub max_passage_bytes: usize,
    /// Longest note, claimant or contact, in bytes.
    pub max_note_bytes: usize,
    /// Documents that hold this part of a passage's runs of words, or more, are found by it, from above 0 to 1.
    pub passage_overlap: f64,
    /// Documents that have this part of their runs of words in common with something that is kept out, or more, are kept out, from above 0 to 1.
    pub suppression_overlap: f64,
    /// Documents of a request of which quotes elsewhere are looked for; of more, only these.
    pub max_quoted_documents: usize,
}

impl Default for OptOutConfig {
    fn default() -> Self {
        Self {
            decide_days: 30,
            restore_after_counter_days: 14,
            appeal_days: 30,
            min_passage_words: 8,
            max_passage_bytes: 1 << 20,
            max_note_bytes: 8 << 10,
            passage_overlap: 0.5,
            suppression_overlap: 0.5,
            max_quoted_documents: 200,
        }
    }
}

/// A request that is to be made.
#[derive(Debug, Clone, PartialEq)]
pub struct NewOptOut {
    /// What it wants out.
    pub selection: OptOutSelection,
    /// Who asks.
    pub claimant: String,
    /// How they are reached.
    pub contact: String,
    /// Why.
    pub why: Why,
}

/// A document that must not come in.
#[derive(Debug, Clone, PartialEq)]
pub struct KeptOut {
    /// Its place among those that were given.
    pub index: usize,
    /// Its URI.
    pub uri: String,
    /// Why.
    pub hit: Hit,
}

impl Governor {
    /// Whether a source takes no documents, by which request: all of it is in quarantine, or was granted.
    fn closed_by(&self, source: &SourceId) -> Result<Option<u64>, GovernError> {
        use OptOutState as S;
        for optout in self.store().optouts()? {
            let all = matches!(&optout.request.selection, OptOutSelection::Source { source: named } if named == source);
            let granted = matches!(optout.state, S::Upheld | S::Purged | S::Proven)
                || optout.removal.is_some() && matches!(optout.state, S::UnderReview | S::Appealed);
            if all && (granted || optout.removal.is_none() && self.is_held(&optout)?) {
                return Ok(Some(optout.id));
            }
        }
        Ok(None)
    }

    /// Whether a request withholds something now.
    pub(crate) fn is_held(&self, optout: &OptOut) -> Result<bool, GovernError> {
        Ok(!self.store().held(optout)?.is_empty())
    }

    /// The documents that must not come in, by requests that are open or were granted.
    pub fn kept_out(&self, source: &SourceId, documents: &[Document]) -> Result<Vec<KeptOut>, GovernError> {
        if let Some(optout) = self.closed_by(source)? {
            return Err(GovernError::Closed { source_id: source.clone(), optout });
        }
        let suppressed = Suppressed::new(self.store().suppressions()?);
        if suppressed.is_empty() {
            return Ok(Vec::new());
        }
        let key = self.store().suppression_key()?;
        let sketches: Vec<Sketch> = documents.iter().map(|d| Sketch::of(&key, &d.text)).collect();
        let hits = suppressed.check_all(&sketches, self.config().optout.suppression_overlap);
        let found = documents.iter().zip(hits).enumerate();
        Ok(found.filter_map(|(index, (d, hit))| Some(KeptOut { index, uri: d.uri.clone(), hit: hit? })).collect())
    }

    /// A request, for somebody who may see it.
    pub fn optout(&self, caller: &Caller, id: u64) -> Result<OptOut, GovernError> {
        let optout = self.store().optout(id)?;
        let seen = self.shown_to(caller, optout)?;
        seen.ok_or_else(|| silo_store::StoreError::UnknownOptOut(id).into())
    }

    /// The same with all that it found, for a step.
    fn optout_in_full(&self, caller: &Caller, id: u64) -> Result<OptOut, GovernError> {
        self.optout(caller, id)?;
        Ok(self.store().optout(id)?)
    }

    /// The same for somebody who decides about it: all that it concerns must be theirs.
    fn optout_to_decide(&self, caller: &Caller, id: u64) -> Result<OptOut, GovernError> {
        let optout = self.optout_in_full(caller, id)?;
        if !self.sources_of_optout(&optout)?.iter().all(|source| caller.sees(source)) {
            return Err(GovernError::BeyondScope { id });
        }
        Ok(optout)
    }

    /// All requests that somebody may see.
    pub fn optouts(&self, caller: &Caller) -> Result<Vec<OptOut>, GovernError> {
        let all = self.store().optouts()?.into_iter();
        all.filter_map(|optout| self.shown_to(caller, optout).transpose()).collect()
    }

    /// A request as a caller sees it: own ones, and those that name own sources only; of what it found, what is in own sources.
    fn shown_to(&self, caller: &Caller, mut optout: OptOut) -> Result<Option<OptOut>, GovernError> {
        if caller.sources.is_none() {
            return Ok(Some(optout));
        }
        let own = optout.events.first().is_some_and(|event| event.actor == caller.name);
        let named = self.sources_of_optout(&optout)?;
        if !own && (named.is_empty() || !named.iter().all(|source| caller.sees(source))) {
            return Ok(None);
        }
        optout.request.matches.retain(|found| caller.sees(&found.source));
        optout.request.spared.retain(|(source, _)| caller.sees(source));
        // A withdrawal that reached others is not shown: its number alone would tell that they had the text.
        let reached = optout.removal.map(|id| self.sources_of(id)).transpose()?.unwrap_or_default();
        if !reached.iter().all(|source| caller.sees(source)) {
            optout.removal = None;
        }
        Ok(Some(optout))
    }

    /// The sources that a request concerns.
    fn sources_of_optout(&self, optout: &OptOut) -> Result<BTreeSet<SourceId>, GovernError> {
        let mut sources: BTreeSet<SourceId> = optout.request.matches.iter().map(|m| m.source.clone()).collect();
        match &optout.request.selection {
            OptOutSelection::Source { source } | OptOutSelection::Documents { source, .. } => {
                sources.insert(source.clone());
            }
            OptOutSelection::UriPrefix { source, .. } => sources.extend(source.clone()),
            OptOutSelection::Passage { .. } => {}
        }
        let parts = optout.hold.map(|hold| self.store().removal(hold)).transpose()?.flatten();
        for part in parts.map(|record| record.parts).unwrap_or_default() {
            sources.insert(self.store().shard(part.shard)?.source);
        }
        Ok(sources)
    }

    /// One step after the other: a step is decided by what the ones before it made.
    pub(crate) fn workflow(&self) -> std::sync::MutexGuard<'_, ()> {
        self.optout_lock.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
