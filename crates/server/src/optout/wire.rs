//! Opt-outs: messages → requests, answers → messages.

use silo_core::{ContentHash, OptOut, OptOutSelection, OptOutState, PassageMatch, ReasonCode, SourceId};
use silo_govern::{Decision, OptOutPlan, Quote, RemovalPart, Suppression, TextMatch, Verdict, Why, now_unix_ms};
use silo_proto::v1;

use crate::from_proto::{self, source_id};
use crate::status::{BadField, unknown_enum};
use crate::to_proto;

type Result<T> = std::result::Result<T, BadField>;

/// Most documents of a plan that are listed.
const MAX_PLANNED: usize = 1000;

pub(super) fn why(m: Option<v1::Why>) -> Result<Why> {
    use v1::ReasonCode as M;
    let m = m.ok_or_else(|| BadField::new("why", "it is missing; say the reason"))?;
    let reason = match M::try_from(m.reason).map_err(|_| unknown_enum("why.reason", m.reason))? {
        M::Unspecified => return Err(BadField::new("why.reason", "it is missing; say the reason")),
        M::Copyright => ReasonCode::Copyright,
        M::Privacy => ReasonCode::Privacy,
        M::Contract => ReasonCode::Contract,
        M::Licence => ReasonCode::Licence,
        M::Reservation => ReasonCode::Reservation,
        M::CourtOrder => ReasonCode::CourtOrder,
        M::Insufficient => ReasonCode::Insufficient,
        M::Unfounded => ReasonCode::Unfounded,
        M::Authorised => ReasonCode::Authorised,
        M::Duplicate => ReasonCode::Duplicate,
        M::TakenBack => ReasonCode::TakenBack,
        M::Other => ReasonCode::Other,
    };
    Ok(Why { reason, note: m.note })
}

fn reason(code: ReasonCode) -> v1::ReasonCode {
    use v1::ReasonCode as M;
    match code {
        ReasonCode::Copyright => M::Copyright,
        ReasonCode::Privacy => M::Privacy,
        ReasonCode::Contract => M::Contract,
        ReasonCode::Licence => M::Licence,
        ReasonCode::Reservation => M::Reservation,
        ReasonCode::CourtOrder => M::CourtOrder,
        ReasonCode::Insufficient => M::Insufficient,
        ReasonCode::Unfounded => M::Unfounded,
        ReasonCode::Authorised => M::Authorised,
        ReasonCode::Duplicate => M::Duplicate,
        ReasonCode::TakenBack => M::TakenBack,
        ReasonCode::Other => M::Other,
    }
}

fn state(state: OptOutState) -> v1::OptOutState {
    use v1::OptOutState as M;
    match state {
        OptOutState::Acknowledged => M::Acknowledged,
        OptOutState::Quarantined => M::Quarantined,
        OptOutState::UnderReview => M::UnderReview,
        OptOutState::Countered => M::Countered,
        OptOutState::Upheld => M::Upheld,
        OptOutState::Purged => M::Purged,
        OptOutState::Proven => M::Proven,
        OptOutState::Rejected => M::Rejected,
        OptOutState::Restored => M::Restored,
        OptOutState::Appealed => M::Appealed,
    }
}

pub(super) fn selection(m: Option<v1::submit_opt_out_request::Selection>) -> Result<OptOutSelection> {
    use silo_core::Selection as S;
    use v1::remove_documents_request::Selection as R;
    use v1::submit_opt_out_request::Selection as M;
    let m = m.ok_or_else(|| {
        BadField::new("selection", "it is missing: name a source, documents, a URI prefix or a passage")
    })?;
    let named = match m {
        M::Passage(text) => {
            let sha256 = ContentHash::of(text.as_bytes());
            return Ok(OptOutSelection::Passage { text: Some(text), sha256 });
        }
        M::Source(name) => R::Source(name),
        M::Documents(list) => R::Documents(list),
        M::UriPrefix(prefix) => R::UriPrefix(prefix),
    };
    Ok(match from_proto::selection(named)? {
        S::Documents { source, documents } => OptOutSelection::Documents { source, documents },
        S::UriPrefix { source, prefix } => OptOutSelection::UriPrefix { source, prefix: Some(prefix) },
        S::Source(source) => OptOutSelection::Source { source },
        S::Shard(_) => return Err(BadField::new("selection", "a shard is nothing that somebody has rights in")),
    })
}

fn name(m: &v1::DocumentName) -> Result<(SourceId, ContentHash)> {
    let document =
        m.document.parse().map_err(|e: silo_core::InvalidId| BadField::new("spare.document", e.to_string()))?;
    Ok((source_id(&m.source, "spare.source")?, document))
}

pub(super) fn decision(m: v1::DecideOptOutRequest) -> Result<Decision> {
    use v1::decide_opt_out_request::Verdict as M;
    let verdict = match M::try_from(m.verdict).map_err(|_| unknown_enum("verdict", m.verdict))? {
        M::Unspecified => return Err(BadField::new("verdict", "it is missing: REVIEW, UPHOLD or REJECT")),
        M::Review => Verdict::Review,
        M::Uphold => Verdict::Uphold,
        M::Reject => Verdict::Reject,
    };
    let spare = m.spare.iter().map(name).collect::<Result<_>>()?;
    Ok(Decision { verdict, spare, why: why(m.why)? })
}

/// What a request is, as `ListOptOuts` filters by it.
pub(super) fn is_in(optout: &OptOut, m: &v1::ListOptOutsRequest) -> bool {
    let wanted = m.states.is_empty() || m.states.contains(&state(optout.state).into());
    wanted && (!m.overdue || is_overdue(optout))
}

fn is_overdue(optout: &OptOut) -> bool {
    use OptOutState as S;
    let open = matches!(optout.state, S::Acknowledged | S::Quarantined | S::UnderReview | S::Countered | S::Appealed);
    open && optout.request.decide_by_unix_ms < now_unix_ms()
}

fn found(m: &TextMatch, quarantined: bool, may_display: &dyn Fn(&SourceId) -> bool) -> v1::PassageMatch {
    let shown = |text: &String| if may_display(&m.source) { text.clone() } else { String::new() };
    v1::PassageMatch {
        source: m.source.to_string(),
        document: m.document.to_string(),
        exact: m.exact,
        overlap: m.overlap,
        quarantined,
        uri: shown(&m.uri),
        title: shown(&m.title),
    }
}

pub(super) fn plan(plan: &OptOutPlan, may_display: &dyn Fn(&SourceId) -> bool) -> v1::OptOutPlan {
    let document = |d: &silo_govern::PartDocument| {
        let shown = d.stored.as_ref().filter(|_| may_display(&d.source));
        v1::PlannedDocument {
            source: d.source.to_string(),
            document: d.hash.to_string(),
            n_tokens: d.n_tokens,
            uri: shown.map(|s| s.document.uri.clone()).unwrap_or_default(),
            title: shown.map(|s| s.document.title.clone()).unwrap_or_default(),
        }
    };
    let quote = |q: &Quote| v1::Quote {
        of_source: q.of_source.to_string(),
        of_document: q.of.to_string(),
        found: Some(found(&q.found, false, may_display)),
    };
    let sources = plan.model.sources.as_ref();
    v1::OptOutPlan {
        parts: to_proto::parts(&plan.parts),
        n_documents: plan.documents.len() as u64,
        n_tokens: plan.n_tokens,
        documents: plan.documents.iter().take(MAX_PLANNED).map(document).collect(),
        // What lies in sources that do not exist for the caller is for the decision.
        matches: plan.matches.iter().filter(|(_, own)| *own).map(|(m, own)| found(m, *own, may_display)).collect(),
        quotes: plan.quotes.iter().map(quote).collect(),
        n_not_compared: plan.n_not_compared,
        model: plan.model.model.clone(),
        training_sources_known: sources.is_some(),
        trained_on: sources.into_iter().flatten().map(ToString::to_string).collect(),
        n_unavailable_shards: plan.n_unavailable,
    }
}

fn kept_match(m: &PassageMatch) -> v1::PassageMatch {
    v1::PassageMatch {
        source: m.source.to_string(),
        document: m.document.to_string(),
        exact: m.exact,
        overlap: m.overlap,
        quarantined: m.quarantined,
        uri: String::new(),
        title: String::new(),
    }
}

/// `withheld` is what it withholds now.
pub(super) fn optout(optout: &OptOut, withheld: &[RemovalPart]) -> v1::OptOut {
    let request = &optout.request;
    let mut m = v1::OptOut {
        id: optout.id,
        state: state(optout.state).into(),
        legal_hold: optout.legal_hold,
        kind: request.selection.kind().to_owned(),
        claimant: request.claimant.clone(),
        contact: request.contact.clone(),
        matches: request.matches.iter().map(kept_match).collect(),
        withheld: to_proto::parts(withheld),
        removal: optout.removal,
        decide_by_unix_ms: request.decide_by_unix_ms,
        restore_from_unix_ms: request.restore_from_unix_ms,
        appeal_until_unix_ms: request.appeal_until_unix_ms,
        overdue: is_overdue(optout),
        ..v1::OptOut::default()
    };
    let spared = |(source, document): &(SourceId, ContentHash)| v1::DocumentName {
        source: source.to_string(),
        document: document.to_string(),
    };
    m.spared = request.spared.iter().map(spared).collect();
    match &request.selection {
        OptOutSelection::Source { source } => m.source = source.to_string(),
        OptOutSelection::Documents { source, documents } => {
            m.source = source.to_string();
            m.documents = documents.iter().map(ToString::to_string).collect();
        }
        OptOutSelection::UriPrefix { source, prefix } => {
            m.source = source.as_ref().map(ToString::to_string).unwrap_or_default();
            m.uri_prefix = prefix.clone().unwrap_or_default();
        }
        OptOutSelection::Passage { text, sha256 } => {
            m.passage = text.clone().unwrap_or_default();
            m.passage_sha256 = sha256.to_string();
        }
    }
    let event = |event: &silo_core::OptOutEvent| v1::OptOutEvent {
        at_unix_ms: event.at_unix_ms,
        actor: event.actor.clone(),
        action: event.action.to_string(),
        becomes: state(event.becomes).into(),
        reason: reason(event.reason).into(),
        note: event.note.clone(),
    };
    m.events = optout.events.iter().map(event).collect();
    m
}

pub(super) fn suppression(s: &Suppression) -> v1::Suppression {
    v1::Suppression { opt_out: s.optout, is_part: s.is_part, n_runs: s.n_shingles, n_kept: s.sketch.len() as u64 }
}
