//! Which steps an opt-out may take: pure, and complete.

use silo_core::{OptOut, OptOutAction, OptOutState};

use OptOutAction as A;
use OptOutState as S;

/// Why a step is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages document the variants and their fields")]
pub enum Refusal {
    #[error("it is {state}, and a step '{action}' follows only {after}")]
    State { state: OptOutState, action: OptOutAction, after: String },
    #[error("its bytes are kept by a legal hold; end the hold first")]
    OnHold,
    #[error("it is on no legal hold")]
    NotOnHold,
    #[error("nothing of it is in the store that could be kept")]
    NothingToKeep,
    #[error(
        "it was withdrawn, and what was withdrawn cannot be put back; add it again, which nothing keeps out any more"
    )]
    Withdrawn,
    #[error("there was a {0} already, and there can be one only")]
    Again(OptOutAction),
    #[error("it is your own request: who made it appeals its decision, or asks for it to be rejected")]
    OwnRequest,
    #[error("after a counter-notice it can be restored from {from} on (milliseconds since 1970), now it is {now}")]
    TooEarly { from: i64, now: i64 },
    #[error("its decision could be appealed until {until} (milliseconds since 1970), now it is {now}")]
    TooLate { until: i64, now: i64 },
}

/// The states that a step may follow.
pub fn after(action: OptOutAction) -> &'static [OptOutState] {
    match action {
        A::Submit => &[],
        A::Review => &[S::Acknowledged, S::Quarantined, S::Countered, S::Appealed],
        A::Uphold | A::Reject => &[S::Acknowledged, S::Quarantined, S::UnderReview, S::Countered, S::Appealed],
        A::Hold => &[S::Quarantined, S::UnderReview, S::Countered, S::Rejected, S::Appealed],
        A::EndHold => &[S::Quarantined, S::UnderReview, S::Countered, S::Rejected, S::Appealed, S::Upheld],
        A::Counter => &[S::Quarantined, S::UnderReview],
        A::Appeal => &[S::Rejected, S::Restored, S::Upheld, S::Purged, S::Proven],
        A::Restore => &[S::Rejected, S::Countered],
        A::Purge => &[S::Upheld],
        A::Prove => &[S::Purged],
    }
}

/// What a request, which withholds something now or not, is after a step at a time.
pub fn becomes(optout: &OptOut, is_held: bool, action: OptOutAction, now: i64) -> Result<OptOutState, Refusal> {
    let states = after(action);
    if !states.contains(&optout.state) {
        let names: Vec<&str> = states.iter().map(|s| s.name()).collect();
        let after = if names.is_empty() { "nothing".into() } else { names.join(", ") };
        return Err(Refusal::State { state: optout.state, action, after });
    }
    let refuse = |when: bool, refusal| if when { Err(refusal) } else { Ok(()) };
    let had = |action| optout.events.iter().any(|event| event.action == action);
    let withdrawn = optout.removal.is_some();
    match action {
        A::Hold => {
            refuse(optout.legal_hold, Refusal::Again(A::Hold))?;
            refuse(!is_held, Refusal::NothingToKeep)?;
        }
        A::EndHold => refuse(!optout.legal_hold, Refusal::NotOnHold)?,
        A::Counter => refuse(had(A::Counter), Refusal::Again(A::Counter))?,
        A::Appeal => {
            refuse(had(A::Appeal), Refusal::Again(A::Appeal))?;
            let until = optout.request.appeal_until_unix_ms.unwrap_or(i64::MAX);
            refuse(now > until, Refusal::TooLate { until, now })?;
        }
        A::Restore => {
            refuse(withdrawn, Refusal::Withdrawn)?;
            refuse(optout.legal_hold, Refusal::OnHold)?;
            let from = optout.request.restore_from_unix_ms.unwrap_or(i64::MIN);
            refuse(optout.state == S::Countered && now < from, Refusal::TooEarly { from, now })?;
        }
        _ => {}
    }
    Ok(match action {
        A::Submit | A::Hold | A::EndHold => optout.state,
        A::Review => S::UnderReview,
        A::Uphold => S::Upheld,
        A::Reject => S::Rejected,
        A::Counter => S::Countered,
        A::Appeal => S::Appealed,
        A::Restore => S::Restored,
        A::Purge => S::Purged,
        A::Prove => S::Proven,
    })
}

#[cfg(test)]
mod tests {
    use silo_core::{ContentHash, OptOutEvent, OptOutRequest, OptOutSelection, ReasonCode};

    use super::*;

    fn optout(state: OptOutState) -> OptOut {
        let selection = OptOutSelection::Passage { text: None, sha256: ContentHash([0; 32]) };
        let request = OptOutRequest {
            selection,
            claimant: String::new(),
            contact: String::new(),
            matches: Vec::new(),
            spared: Vec::new(),
            decide_by_unix_ms: 0,
            restore_from_unix_ms: None,
            appeal_until_unix_ms: None,
        };
        OptOut { id: 1, state, legal_hold: false, hold: Some(1), removal: None, request, events: Vec::new() }
    }

    fn event(action: OptOutAction) -> OptOutEvent {
        let (actor, note) = (String::new(), String::new());
        OptOutEvent { at_unix_ms: 0, actor, action, becomes: S::Quarantined, reason: ReasonCode::Other, note }
    }

    /// The table of docs/opt-out.md, state by state.
    const ALLOWED: &[(OptOutState, &[(OptOutAction, OptOutState)])] = &[
        (S::Acknowledged, &[(A::Review, S::UnderReview), (A::Uphold, S::Upheld), (A::Reject, S::Rejected)]),
        (
            S::Quarantined,
            &[
                (A::Review, S::UnderReview),
                (A::Uphold, S::Upheld),
                (A::Reject, S::Rejected),
                (A::Hold, S::Quarantined),
                (A::Counter, S::Countered),
            ],
        ),
        (
            S::UnderReview,
            &[(A::Uphold, S::Upheld), (A::Reject, S::Rejected), (A::Hold, S::UnderReview), (A::Counter, S::Countered)],
        ),
        (
            S::Countered,
            &[
                (A::Review, S::UnderReview),
                (A::Uphold, S::Upheld),
                (A::Reject, S::Rejected),
                (A::Hold, S::Countered),
                (A::Restore, S::Restored),
            ],
        ),
        (S::Upheld, &[(A::Appeal, S::Appealed), (A::Purge, S::Purged)]),
        (S::Purged, &[(A::Appeal, S::Appealed), (A::Prove, S::Proven)]),
        (S::Proven, &[(A::Appeal, S::Appealed)]),
        (S::Rejected, &[(A::Hold, S::Rejected), (A::Appeal, S::Appealed), (A::Restore, S::Restored)]),
        (S::Restored, &[(A::Appeal, S::Appealed)]),
        (
            S::Appealed,
            &[(A::Review, S::UnderReview), (A::Uphold, S::Upheld), (A::Reject, S::Rejected), (A::Hold, S::Appealed)],
        ),
    ];

    #[test]
    fn every_step_from_every_state_is_allowed_or_refused_as_the_table_says() {
        assert_eq!(ALLOWED.len(), OptOutState::ALL.len());
        for (state, allowed) in ALLOWED {
            for action in OptOutAction::ALL {
                let expected = allowed.iter().find(|(a, _)| a == action).map(|(_, s)| *s);
                assert_eq!(
                    becomes(&optout(*state), true, *action, 0).ok(),
                    expected,
                    "{action} of one that is {state}"
                );
            }
        }
    }

    #[test]
    fn what_the_history_forbids_is_refused() {
        let check = |optout: &OptOut, action, refusal| {
            assert_eq!(becomes(optout, optout.removal.is_none(), action, 10), Err(refusal))
        };
        let on_hold = OptOut { legal_hold: true, ..optout(S::Rejected) };
        check(&on_hold, A::Restore, Refusal::OnHold);
        check(&on_hold, A::Hold, Refusal::Again(A::Hold));
        assert_eq!(becomes(&on_hold, true, A::EndHold, 10), Ok(S::Rejected));
        check(&optout(S::Rejected), A::EndHold, Refusal::NotOnHold);
        let gone = OptOut { removal: Some(2), ..optout(S::Rejected) };
        check(&gone, A::Restore, Refusal::Withdrawn);
        check(&gone, A::Hold, Refusal::NothingToKeep);
        let mut countered = optout(S::Countered);
        countered.request.restore_from_unix_ms = Some(11);
        check(&countered, A::Restore, Refusal::TooEarly { from: 11, now: 10 });
        assert_eq!(becomes(&countered, true, A::Restore, 11), Ok(S::Restored));
        let again = OptOut { events: vec![event(A::Counter)], ..optout(S::UnderReview) };
        check(&again, A::Counter, Refusal::Again(A::Counter));
        let again = OptOut { events: vec![event(A::Appeal)], ..optout(S::Rejected) };
        check(&again, A::Appeal, Refusal::Again(A::Appeal));
        let mut late = optout(S::Restored);
        late.request.appeal_until_unix_ms = Some(9);
        check(&late, A::Appeal, Refusal::TooLate { until: 9, now: 10 });
    }
}
