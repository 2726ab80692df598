//! Requests that withhold documents, and what becomes of them.

use std::collections::BTreeSet;
use std::time::Instant;

use rand::RngExt;
use rand::seq::IndexedRandom;
use silo_core::{ContentHash, OptOut, OptOutAction, OptOutState, SnapshotProvider, SourceId};
use silo_store::{OptOutAct, OptOutStep, Removal, StoreError};

use super::super::recipes::{event, request};
use super::super::reference::{Change, Parts, State};
use super::{Operation, World, log};

impl World {
    /// Makes a request: what it names is not found any more.
    pub(super) fn submit(&mut self) {
        let kinds = [Operation::RemoveSource, Operation::RemoveDocuments, Operation::RemovePrefix];
        let kind = *kinds.choose(&mut self.rng).unwrap();
        let selection = self.any_selection(kind);
        let expected = self.reference.resolve(&selection);
        let (optout, removal) =
            match self.store().by("test").submit_optout(&[selection], request("some text"), Instant::now()) {
                Err(StoreError::NothingSelected) => return assert!(expected.is_empty(), "{expected:?}"),
                other => other.unwrap(),
            };
        self.reference.apply(Change::Hold(optout.id, expected));
        self.check_change(&removal.unwrap());
        assert_eq!(optout, self.store().optout(optout.id).unwrap());
    }

    /// Grants one, and spares some of its documents; or puts back what it withholds.
    pub(super) fn decide(&mut self, uphold: bool) {
        let open: Vec<OptOut> =
            self.store().optouts().unwrap().into_iter().filter(|o| o.state == OptOutState::Quarantined).collect();
        let Some(optout) = open.choose(&mut self.rng).cloned() else { return };
        let spare: Vec<(SourceId, ContentHash)> =
            self.withheld(optout.id).into_iter().filter(|_| self.rng.random_bool(0.3)).collect();
        let expected = self.reference.withheld_parts(optout.id, &spare);
        let before = log::held(&self.reference);
        let (action, becomes, act) = if uphold {
            let act = OptOutAct::Withdraw { spare: &spare, more: &[], suppress: &[], unsuppress: &[] };
            (OptOutAction::Uphold, OptOutState::Upheld, act)
        } else {
            (OptOutAction::Restore, OptOutState::Restored, OptOutAct::Release)
        };
        let event = event(action, becomes);
        let step = OptOutStep { event: &event, legal_hold: false, request: &optout.request, act };
        let by = self.store().by("test");
        assert!(matches!(by.step_optout(optout.id, 2, &step), Err(StoreError::OptOutChanged(_))));
        let (after, removal) = by.step_optout(optout.id, 1, &step).unwrap();
        let removal = removal.unwrap();
        assert_eq!((after.state, after.removal.is_some()), (becomes, uphold && !expected.is_empty()));
        if uphold {
            if !expected.is_empty() {
                let got = removal.record.parts.iter().map(|part| {
                    let numbers = part.numbers.as_ref().map(|n| n.iter().map(|n| n as usize).collect());
                    (part.shard, numbers)
                });
                assert_eq!(got.collect::<Parts>(), expected);
            }
            self.reference.apply(Change::Uphold(optout.id, expected.clone()));
        } else {
            self.reference.apply(Change::Release(optout.id));
        }
        self.check_change(&removal);
        if after.removal.is_some() {
            self.check_receipt(&removal.record, &before);
        }
    }

    fn check_change(&self, removal: &Removal) {
        assert_eq!(removal.root_after, self.reference.root());
        assert_eq!(self.store().snapshot().root, self.reference.root());
        self.check_log();
    }

    /// What a request withholds of what is there.
    fn withheld(&self, id: u64) -> BTreeSet<(SourceId, ContentHash)> {
        let there = self.reference.shards.values().filter(|s| s.state != State::Removed);
        let docs = there.flat_map(|s| s.docs.iter().map(|d| (s.source.clone(), d)));
        docs.filter(|(_, d)| !d.withdrawn && d.holds.contains(&id)).map(|(source, d)| (source, d.hash)).collect()
    }
}
