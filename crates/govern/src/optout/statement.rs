//! The statement of reasons: a decision in words, for those whom it concerns (compare Regulation (EU) 2022/2065, art. 17).

use std::fmt::Write;

use silo_core::{OptOut, OptOutAction, OptOutSelection, OptOutState};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::{Caller, GovernError, Governor};

/// A time as people read it.
fn date(unix_ms: i64) -> String {
    let at = OffsetDateTime::from_unix_timestamp(unix_ms / 1000).ok();
    at.and_then(|at| at.format(&Rfc3339).ok()).unwrap_or_else(|| format!("{unix_ms} ms since 1970"))
}

fn about(selection: &OptOutSelection) -> String {
    match selection {
        OptOutSelection::Source { source } => format!("all of the source '{source}', and what would be added to it"),
        OptOutSelection::Documents { source, documents } => {
            format!("{} documents of the source '{source}', by the hashes of their texts", documents.len())
        }
        OptOutSelection::UriPrefix { source, prefix } => {
            let of = source.as_ref().map(|s| format!(" of the source '{s}'")).unwrap_or_default();
            let prefix = prefix.as_ref().map_or_else(|| "a common beginning".to_owned(), |p| format!("'{p}'"));
            format!("documents{of} of which the address begins with {prefix}")
        }
        OptOutSelection::Passage { sha256, .. } => {
            format!("whatever holds a passage that was submitted (SHA-256 {sha256}), or most of it")
        }
    }
}

fn effect(optout: &OptOut, is_held: bool) -> String {
    use OptOutState as S;
    let open = matches!(optout.state, S::Quarantined | S::UnderReview | S::Countered | S::Appealed);
    match optout.state {
        _ if open && optout.removal.is_some() => {
            "What the request names is withdrawn, and stays so while the decision is looked into again.".into()
        }
        _ if open && is_held => "What the request names is in quarantine: it is kept, and used for nothing.".into(),
        S::UnderReview | S::Countered | S::Appealed | S::Quarantined => {
            "Nothing of what the request names is in quarantine. The decision is open.".into()
        }
        S::Acknowledged => "Nothing that the request names is in the store.".into(),
        S::Upheld if optout.legal_hold => {
            "The request is granted. What it names is in quarantine, and is deleted when the legal hold on it ends.".into()
        }
        S::Upheld => "The request is granted: what it names is withdrawn for good, and its bytes are being deleted.".into(),
        S::Purged | S::Proven => {
            "The request is granted: what it names is withdrawn for good, and its bytes are gone from all files of the store. The receipt says \
             which backups still hold it.".into()
        }
        S::Rejected if optout.removal.is_some() => {
            "The request is not granted after all. What was withdrawn cannot be put back; it may be added again.".into()
        }
        S::Rejected => "The request is not granted. What it names is still in quarantine, until it is put back.".into(),
        S::Restored => "What the request names is in use again.".into(),
    }
}

fn redress(optout: &OptOut) -> String {
    let appealed = optout.events.iter().any(|event| event.action == OptOutAction::Appeal);
    match optout.request.appeal_until_unix_ms {
        Some(_) if appealed => "An appeal was made already; courts and out-of-court bodies remain open.".into(),
        Some(until) => {
            format!("This decision can be appealed until {}; courts and out-of-court bodies remain open.", date(until))
        }
        None => format!("There is no decision yet; there should be one by {}.", date(optout.request.decide_by_unix_ms)),
    }
}

impl Governor {
    /// A request in words: what was asked, what was done and why, and what can be done about it.
    pub fn statement_of_reasons(&self, caller: &Caller, id: u64) -> Result<String, GovernError> {
        let optout = self.optout(caller, id)?;
        let mut out = format!("STATEMENT OF REASONS\n\nOpt-out request {id}\n");
        let _ = writeln!(out, "Store: {}", self.store().id()?);
        let _ = writeln!(out, "Made by: {} ({})", optout.request.claimant, optout.request.contact);
        let _ = writeln!(out, "It concerns: {}", about(&optout.request.selection));
        let _ =
            writeln!(out, "State: {}\n\n{}", optout.state, effect(&optout, !self.store().held(&optout)?.is_empty()));
        if let OptOutSelection::Passage { .. } = optout.request.selection {
            let exact = optout.request.matches.iter().filter(|m| m.exact).count();
            let n = optout.request.matches.len();
            let _ = writeln!(
                out,
                "\nIt was found by automated means: {n} documents, {exact} of which hold all of its words, the others at least {:.0} % of its \
                 runs of {} words.",
                self.config().optout.passage_overlap * 100.0,
                silo_store::SHINGLE_WORDS
            );
        }
        if !optout.request.spared.is_empty() {
            let _ = writeln!(out, "\n{} documents were let stay by the decision.", optout.request.spared.len());
        }
        if optout.legal_hold {
            let _ = writeln!(out, "\nIts bytes are kept as evidence, by a legal hold.");
        }
        let _ = writeln!(out, "\nSteps:");
        for event in &optout.events {
            let (at, note) = (date(event.at_unix_ms), event.note.trim());
            let _ = writeln!(out, "  {at}  {}  by {}  ({})", event.action, event.actor, event.reason);
            for line in note.lines() {
                let _ = writeln!(out, "      {line}");
            }
        }
        if let Some(removal) = optout.removal {
            let _ = writeln!(out, "\nThe withdrawal is change {removal} of the store; its receipt proves it.");
        }
        let _ = writeln!(out, "\n{}", redress(&optout));
        Ok(out)
    }
}
