//! Steps: each is checked, and done in one transaction with what it does to the store.

use std::collections::BTreeSet;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use silo_core::{
    ContentHash, Document, OptOut, OptOutAction, OptOutEvent, OptOutRequest, OptOutSelection, OptOutState,
    PassageMatch, ReasonCode, SourceId,
};
use silo_store::{
    AddedShard, NewShard, OptOutAct, OptOutStep, Purged, Removal, RemovalPart, SILO, StoreError, Suppression,
    now_unix_ms,
};

use super::plan::selections;
use super::{KeptOut, NewOptOut, OptOutPlan, Refusal, Sketch, becomes};
use crate::{Caller, GovernError, Governor, Role};

const DAY_MS: i64 = 24 * 3600 * 1000;

/// Why a step is taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Why {
    /// In one word.
    pub reason: ReasonCode,
    /// In words; whoever may see the request sees them.
    pub note: String,
}

/// A decision about a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// What it is.
    pub verdict: Verdict,
    /// Documents that stay although the request is granted: they are put back.
    pub spare: Vec<(SourceId, ContentHash)>,
    /// Why.
    pub why: Why,
}

/// A step that is about to be taken.
struct Step<'a> {
    action: OptOutAction,
    /// The request as it is after it.
    request: OptOutRequest,
    legal_hold: bool,
    why: &'a Why,
    act: OptOutAct<'a>,
}

/// What is decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is looked into.
    Review,
    /// It is granted.
    Uphold,
    /// It is not.
    Reject,
}

impl Governor {
    /// Makes a request: what it names is not retrieved any more when this returns.
    pub fn submit_optout(
        &self,
        caller: &Caller,
        new: &NewOptOut,
    ) -> Result<(OptOut, Option<Removal>, OptOutPlan), GovernError> {
        let start = Instant::now();
        for (field, text) in [("the claimant", &new.claimant), ("the contact", &new.contact)] {
            self.check_note(field, text)?;
        }
        self.check_note("the note", &new.why.note)?;
        if new.claimant.trim().is_empty() {
            return Err(GovernError::Missing { field: "claimant", rule: "say who asks" });
        }
        let named = self.named(caller, &new.selection)?;
        let now = now_unix_ms();
        let state = if named.what.is_empty() { OptOutState::Acknowledged } else { OptOutState::Quarantined };
        let request = OptOutRequest {
            selection: new.selection.clone(),
            claimant: new.claimant.clone(),
            contact: new.contact.clone(),
            matches: named.kept_matches(),
            spared: Vec::new(),
            decide_by_unix_ms: now + i64::from(self.config().optout.decide_days) * DAY_MS,
            restore_from_unix_ms: None,
            appeal_until_unix_ms: None,
        };
        let (actor, action, Why { reason, note }) = (caller.name.clone(), OptOutAction::Submit, new.why.clone());
        let event = OptOutEvent { at_unix_ms: now, actor, action, becomes: state, reason, note };
        let events = vec![event];
        let optout = OptOut { id: 0, state, legal_hold: false, hold: None, removal: None, request, events };
        let (optout, removal) = {
            let _one = self.workflow();
            let made = self.store().by(&caller.name).submit_optout(&named.what, optout, start)?;
            let is_passage = matches!(new.selection, OptOutSelection::Passage { .. });
            if !is_passage || caller.sources.is_none() {
                self.keep_out(&made.0)?;
            }
            made
        };
        // What it names is out of use: there is time for the rest.
        let parts = removal.as_ref().map(|removal| removal.record.parts.clone()).unwrap_or_default();
        let plan = self.plan_of(caller, named, parts)?;
        Ok((self.optout(caller, optout.id)?, removal, plan))
    }

    /// Keeps out what a request names, from its submission on: its passage, or each of its documents. A passage that somebody with own sources
    /// submitted is kept out of others' when it is granted.
    fn keep_out(&self, optout: &OptOut) -> Result<(), GovernError> {
        let new = self.suppressions_of(optout, &self.store().held(optout)?)?;
        Ok(self.store().by(SILO).suppress(&new)?)
    }

    /// Keeps out what requests name of which a crash cut that off.
    pub(crate) fn keep_out_anew(&self) -> Result<(), GovernError> {
        let _one = self.workflow();
        let known: BTreeSet<u64> = self.store().suppressions()?.into_iter().map(|s| s.optout).collect();
        for optout in self.store().optouts()? {
            let is_passage = matches!(optout.request.selection, OptOutSelection::Passage { .. });
            let open = !is_passage && optout.removal.is_none() && self.is_held(&optout)?;
            if open && !known.contains(&optout.id) {
                self.keep_out(&optout)?;
            }
        }
        Ok(())
    }

    /// Decides a request. A withdrawal by it is in force when this returns; under a legal hold it comes when the hold ends.
    pub fn decide_optout(
        &self,
        caller: &Caller,
        id: u64,
        decision: &Decision,
    ) -> Result<(OptOut, Option<Removal>), GovernError> {
        let _one = self.workflow();
        let optout = self.optout_to_decide(caller, id)?;
        let action = match decision.verdict {
            Verdict::Review => OptOutAction::Review,
            Verdict::Uphold => OptOutAction::Uphold,
            Verdict::Reject => OptOutAction::Reject,
        };
        if !decision.spare.is_empty() && action != OptOutAction::Uphold {
            return Err(GovernError::SpareWithoutUphold);
        }
        let mut request = optout.request.clone();
        if action != OptOutAction::Review {
            let days = i64::from(self.config().optout.appeal_days);
            request.appeal_until_unix_ms = Some(self.now(&optout) + days * DAY_MS);
        }
        if action == OptOutAction::Uphold {
            self.check_spared(&optout, &decision.spare)?;
            request.spared = decision.spare.clone();
            if optout.legal_hold {
                let why = &decision.why;
                let step = Step { action, request, legal_hold: true, why, act: OptOutAct::Nothing };
                return self.step(caller, &optout, step);
            }
            return self.withdraw_optout(caller, &optout, action, request, &decision.why);
        }
        // What is in quarantine is kept out until it is put back.
        let lifts = action == OptOutAction::Reject && !self.is_held(&optout)?;
        let act = if lifts { OptOutAct::Lift } else { OptOutAct::Nothing };
        let (legal_hold, why) = (optout.legal_hold, &decision.why);
        self.step(caller, &optout, Step { action, request, legal_hold, why, act })
    }

    /// Keeps the bytes of a request as evidence, or ends that. A request that was granted meanwhile is withdrawn then.
    pub fn hold_optout(
        &self,
        caller: &Caller,
        id: u64,
        hold: bool,
        why: &Why,
    ) -> Result<(OptOut, Option<Removal>), GovernError> {
        let _one = self.workflow();
        let optout = self.optout_to_decide(caller, id)?;
        let action = if hold { OptOutAction::Hold } else { OptOutAction::EndHold };
        let request = optout.request.clone();
        if !hold && optout.state == OptOutState::Upheld {
            return self.withdraw_optout(caller, &optout, action, request, why);
        }
        self.step(caller, &optout, Step { action, request, legal_hold: hold, why, act: OptOutAct::Nothing })
    }

    /// The other side objects.
    pub fn counter_optout(&self, caller: &Caller, id: u64, why: &Why) -> Result<OptOut, GovernError> {
        let _one = self.workflow();
        let optout = self.optout_in_full(caller, id)?;
        let own = optout.events.first().is_some_and(|event| event.actor == caller.name);
        if own && matches!(caller.role, Role::Owner | Role::Curator) {
            return Err(GovernError::OptOutStep { id, refusal: Refusal::OwnRequest });
        }
        let mut request = optout.request.clone();
        let days = i64::from(self.config().optout.restore_after_counter_days);
        request.restore_from_unix_ms = Some(self.now(&optout) + days * DAY_MS);
        let (action, legal_hold) = (OptOutAction::Counter, optout.legal_hold);
        Ok(self.step(caller, &optout, Step { action, request, legal_hold, why, act: OptOutAct::Nothing })?.0)
    }

    /// Objects to the decision.
    pub fn appeal_optout(&self, caller: &Caller, id: u64, why: &Why) -> Result<OptOut, GovernError> {
        let _one = self.workflow();
        let optout = self.optout_in_full(caller, id)?;
        let (request, legal_hold) = (optout.request.clone(), optout.legal_hold);
        let step = Step { action: OptOutAction::Appeal, request, legal_hold, why, act: OptOutAct::Nothing };
        Ok(self.step(caller, &optout, step)?.0)
    }

    /// Puts back what a request withholds.
    pub fn restore_optout(
        &self,
        caller: &Caller,
        id: u64,
        why: &Why,
    ) -> Result<(OptOut, Option<Removal>), GovernError> {
        let _one = self.workflow();
        let optout = self.optout_to_decide(caller, id)?;
        let (action, request) = (OptOutAction::Restore, optout.request.clone());
        self.step(caller, &optout, Step { action, request, legal_hold: false, why, act: OptOutAct::Release })
    }

    /// The time, never before that of the newest step: a clock that went back opens no window again.
    fn now(&self, optout: &OptOut) -> i64 {
        optout.events.iter().map(|event| event.at_unix_ms).max().unwrap_or_default().max(now_unix_ms())
    }

    fn check_note(&self, what: &'static str, text: &str) -> Result<(), GovernError> {
        let limit = self.config().optout.max_note_bytes;
        if text.len() > limit {
            return Err(GovernError::Limit { what, got: text.len(), limit, setting: "optout.max_note_bytes" });
        }
        Ok(())
    }

    fn check_spared(&self, optout: &OptOut, spare: &[(SourceId, ContentHash)]) -> Result<(), GovernError> {
        let held = self.store().documents_of_parts(&self.store().held(optout)?, 0)?;
        let named = |source: &SourceId, document: &ContentHash| {
            held.iter().any(|d| d.source == *source && d.hash == *document)
                || optout.request.matches.iter().any(|m| m.source == *source && m.document == *document)
        };
        match spare.iter().find(|(source, document)| !named(source, document)) {
            Some((source, document)) => {
                Err(GovernError::NotOfOptOut { id: optout.id, source_id: source.clone(), document: *document })
            }
            None => Ok(()),
        }
    }

    /// One step, checked against what the request is.
    fn step(&self, caller: &Caller, optout: &OptOut, new: Step<'_>) -> Result<(OptOut, Option<Removal>), GovernError> {
        let Step { action, request, legal_hold, why, act } = new;
        self.check_note("the note", &why.note)?;
        let (id, now) = (optout.id, self.now(optout));
        let is_held = self.is_held(optout)?;
        let state = becomes(optout, is_held, action, now).map_err(|refusal| GovernError::OptOutStep { id, refusal })?;
        let Why { reason, note } = why.clone();
        let event = OptOutEvent { at_unix_ms: now, actor: caller.name.clone(), action, becomes: state, reason, note };
        let step = OptOutStep { event: &event, legal_hold, request: &request, act };
        let (optout, removal) = self.store().by(&caller.name).step_optout(id, optout.events.len(), &step)?;
        Ok((self.shown_to(caller, optout)?.ok_or(StoreError::UnknownOptOut(id))?, removal))
    }

    /// A step that withdraws what a request names, but for what is spared, and keeps it out: what it withholds, and what came since.
    fn withdraw_optout(
        &self,
        caller: &Caller,
        optout: &OptOut,
        action: OptOutAction,
        mut request: OptOutRequest,
        why: &Why,
    ) -> Result<(OptOut, Option<Removal>), GovernError> {
        let spare = request.spared.clone();
        let named = self.named(caller, &request.selection)?;
        let known: BTreeSet<(SourceId, ContentHash)> =
            request.matches.iter().map(|m| (m.source.clone(), m.document)).collect();
        let came = named.kept_matches().into_iter().filter(|m| !known.contains(&(m.source.clone(), m.document)));
        request.matches.extend(came.map(|m| PassageMatch { quarantined: false, ..m }));
        let noted = request.matches.iter().filter(|m| !m.quarantined && caller.sees(&m.source));
        let noted = noted.map(|m| (m.source.clone(), m.document));
        let more = [named.what, selections(noted)].concat();
        let parts = match self.store().plan_all(&more) {
            Err(StoreError::NothingSelected) => Vec::new(),
            parts => parts?,
        };
        let (mut suppress, mut unsuppress) = (self.suppressions_of(optout, &parts)?, Vec::new());
        let kept = self.store().suppressions()?.into_iter().filter(|s| s.optout == optout.id);
        let kept: BTreeSet<ContentHash> = kept.map(|s| s.text).collect();
        let key = self.store().suppression_key()?;
        let held = self.store().held(optout)?;
        self.store().each_text(&[held, parts].concat(), &mut |source, document, text| {
            if spare.contains(&(source.clone(), document)) {
                unsuppress.push(Sketch::of(&key, text).text);
            }
        })?;
        suppress.retain(|s| !kept.contains(&s.text) && !unsuppress.contains(&s.text));
        let request = OptOutRequest { selection: request.selection.forgotten(), ..request };
        let (suppress, unsuppress) = (&suppress[..], &unsuppress[..]);
        let act = OptOutAct::Withdraw { spare: &spare, more: &more, suppress, unsuppress };
        self.step(caller, optout, Step { action, request, legal_hold: false, why, act })
    }

    /// What a request keeps out: its passage, or each of the documents in some parts.
    fn suppressions_of(&self, optout: &OptOut, parts: &[RemovalPart]) -> Result<Vec<Suppression>, GovernError> {
        let key = self.store().suppression_key()?;
        if let OptOutSelection::Passage { text, .. } = &optout.request.selection {
            let sketch = text.as_deref().map(|text| Sketch::of(&key, text));
            return Ok(sketch.map(|s| s.suppression(optout.id, true)).into_iter().collect());
        }
        let mut out = Vec::new();
        self.store().each_text(parts, &mut |_, _, text| {
            out.push(Sketch::of(&key, text).suppression(optout.id, false));
        })?;
        Ok(out)
    }

    /// Notes what became of requests that were granted: their bytes are gone.
    pub(crate) fn note_purged(&self) -> Result<(), GovernError> {
        let _one = self.workflow();
        for optout in self.store().optouts()?.into_iter().filter(|o| o.state == OptOutState::Upheld && !o.legal_hold) {
            let removal = optout.removal.map(|id| self.store().removal(id)).transpose()?.flatten();
            if removal.is_none_or(|removal| removal.purged_at_unix_ms.is_some()) {
                self.note(&optout, OptOutAction::Purge)?;
            }
        }
        Ok(())
    }

    /// Notes that a receipt of a withdrawal was given out which says that its bytes are gone.
    pub(crate) fn note_proven(&self, removal: u64) -> Result<(), GovernError> {
        let _one = self.workflow();
        let proven = |o: &OptOut| o.state == OptOutState::Purged && o.removal == Some(removal);
        match self.store().optouts()?.into_iter().find(proven) {
            Some(optout) => self.note(&optout, OptOutAction::Prove),
            None => Ok(()),
        }
    }

    fn note(&self, optout: &OptOut, action: OptOutAction) -> Result<(), GovernError> {
        let why = Why { reason: ReasonCode::Other, note: String::new() };
        let silo = Caller { name: SILO.into(), ..Caller::local() };
        let (request, legal_hold) = (optout.request.clone(), optout.legal_hold);
        let step = Step { action, request, legal_hold, why: &why, act: OptOutAct::Nothing };
        self.step(&silo, optout, step).map(drop)
    }

    /// Gets the bytes of what was withdrawn out of all files.
    pub fn purge(&self, cancel: &AtomicBool, progress: &dyn Fn(u64, u64)) -> Result<Purged, GovernError> {
        let purged = self.store().purge(cancel, progress)?;
        self.note_purged()?;
        Ok(purged)
    }

    /// Encodes checked documents and adds them as a shard. Refused, if something of them must not come in, also by what was upheld while they
    /// were encoded.
    pub fn add_shard(
        &self,
        caller: &Caller,
        source: &SourceId,
        documents: &[Document],
        cancel: &AtomicBool,
        progress: &dyn Fn(u64, u64),
    ) -> Result<AddedShard, GovernError> {
        let steps = self.store().n_optout_steps()?;
        self.refuse_kept_out(caller, source, documents)?;
        let new = NewShard { source, documents };
        let by = self.store().by(&caller.name);
        let prepared = by.prepare_shard(&new, &*self.model, cancel, progress)?;
        // No step is taken from here until the shard is entered.
        let _one = self.workflow();
        if self.store().n_optout_steps()? != steps {
            self.refuse_kept_out(caller, source, documents)?;
        }
        Ok(by.enter_shard(prepared)?)
    }

    /// Refuses documents of which something must not come in.
    pub fn refuse_kept_out(
        &self,
        caller: &Caller,
        source: &SourceId,
        documents: &[Document],
    ) -> Result<(), GovernError> {
        let found = self.kept_out(source, documents)?;
        match found.is_empty() {
            true => Ok(()),
            // Which request it is, and how near the texts are, is for those who see all requests.
            false => Err(GovernError::KeptOut { found, in_full: caller.sources.is_none() }),
        }
    }
}

/// The first few of what is kept out, for a message.
pub(crate) fn some(found: &[KeptOut], in_full: bool) -> String {
    let one = |k: &KeptOut| match in_full {
        true => format!("{} (opt-out {}, {:.0} % in common)", k.uri, k.hit.optout, k.hit.overlap * 100.0),
        false => k.uri.clone(),
    };
    let mut out: Vec<String> = found.iter().take(5).map(one).collect();
    if found.len() > out.len() {
        out.push(format!("and {} more", found.len() - out.len()));
    }
    out.join(", ")
}
