//! Opt-out requests: each of their steps is one transaction with what it does to the store.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use silo_core::{ContentHash, OptOut, OptOutEvent, OptOutRequest, OptOutState, Selection, ShardId, SourceId};

use crate::catalog::{NewStep, RemovalKind, RemovalPart, WithRemoval};
use crate::withdraw::{Applied, Removal};
use crate::{By, Numbers, Shard, Store, StoreError, StoredDocument, Suppression};

/// What a step does to the store.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum OptOutAct<'a> {
    /// Nothing.
    Nothing,
    /// What is withheld is put back, and what was kept out may come in again.
    Release,
    /// What is withheld is withdrawn, but for some documents, which are put back; and this is kept out from now on.
    Withdraw {
        /// The documents that stay.
        spare: &'a [(SourceId, ContentHash)],
        /// What is withdrawn with it.
        more: &'a [Selection],
        /// What is kept out besides what the request keeps out already.
        suppress: &'a [Suppression],
        /// Texts that are kept out no longer, by their keyed hashes: those of what is spared.
        unsuppress: &'a [ContentHash],
    },
    /// What was kept out may come in again.
    Lift,
}

/// A step of a request.
#[derive(Debug, Clone, PartialEq)]
pub struct OptOutStep<'a> {
    /// What is noted of it.
    pub event: &'a OptOutEvent,
    /// Whether its bytes must be kept since.
    pub legal_hold: bool,
    /// The request as it is since.
    pub request: &'a OptOutRequest,
    /// What it does.
    pub act: OptOutAct<'a>,
}

impl By<'_> {
    /// Enters a request, and withholds at once what it names: `what` is resolved to the documents that are there. Its `id`, `hold` and
    /// `removal` are given by the store. Times count from `start`.
    pub fn submit_optout(
        &self,
        what: &[Selection],
        new: OptOut,
        start: Instant,
    ) -> Result<(OptOut, Option<Removal>), StoreError> {
        let store = self.store;
        let _change = store.change();
        let mut new = OptOut { id: store.catalog.next_optout()?, hold: None, removal: None, ..new };
        if what.is_empty() {
            store.catalog.submit_optout(&new)?;
            return Ok((new, None));
        }
        let parts = store.explicit(store.plan_all(what)?)?;
        new.hold = Some(store.catalog.next_removal()?);
        let (kind, also) = (RemovalKind::Hold, Some(WithRemoval::Submission(&new)));
        let applied = Applied { kind, selector: "opt-out", parts, ends: None, also };
        let removal = self.apply_resolved(applied, start)?;
        Ok((new, Some(removal)))
    }

    /// Enters what a request keeps out.
    pub fn suppress(&self, new: &[Suppression]) -> Result<(), StoreError> {
        self.store.catalog.suppress(new)
    }

    /// Enters a step of a request of which `n_events` steps were known to whoever decided it.
    pub fn step_optout(
        &self,
        id: u64,
        n_events: usize,
        step: &OptOutStep<'_>,
    ) -> Result<(OptOut, Option<Removal>), StoreError> {
        let (store, start) = (self.store, Instant::now());
        let _change = store.change();
        let before = store.optout(id)?;
        if before.events.len() != n_events {
            return Err(StoreError::OptOutChanged(id));
        }
        let lift = matches!(step.act, OptOutAct::Release | OptOutAct::Lift);
        let (suppress, unsuppress): (&[Suppression], &[ContentHash]) = match step.act {
            OptOutAct::Withdraw { suppress, unsuppress, .. } => (suppress, unsuppress),
            _ => (&[], &[]),
        };
        let OptOutStep { event, legal_hold, request, act } = step;
        let new = NewStep { id, event, legal_hold: *legal_hold, request, suppress, unsuppress, lift };
        let hold = store.hold_of(&before)?;
        let resolved = match act {
            OptOutAct::Release => hold.map(|hold| Ok((RemovalKind::Release, store.held_by(hold)?))),
            OptOutAct::Withdraw { spare, more, .. } => store.to_withdraw(hold, more, spare).transpose(),
            OptOutAct::Nothing | OptOutAct::Lift => None,
        };
        let Some((kind, parts)) = resolved.transpose()? else {
            store.catalog.step_optout(&new)?;
            return Ok((store.optout(id)?, None));
        };
        if kind == RemovalKind::Remove {
            store.check_legal_holds(&parts, Some(id))?;
        }
        let also = Some(WithRemoval::Step(&new));
        let removal = self.apply_resolved(Applied { kind, selector: "opt-out", parts, ends: hold, also }, start)?;
        Ok((store.optout(id)?, Some(removal)))
    }
}

impl Store {
    /// What is withdrawn of a hold and of more; a mere release, where nothing is left of them.
    fn to_withdraw(
        &self,
        hold: Option<u64>,
        more: &[Selection],
        spare: &[(SourceId, ContentHash)],
    ) -> Result<Option<(RemovalKind, Vec<RemovalPart>)>, StoreError> {
        let held = hold.map(|hold| self.held_by(hold)).transpose()?.unwrap_or_default();
        let more = match self.plan_all(more) {
            Err(StoreError::NothingSelected) => Vec::new(),
            other => self.explicit(other?)?,
        };
        let parts = self.without_spared(merge(held.iter().cloned().chain(more)), spare)?;
        Ok(match (parts.is_empty(), hold) {
            (false, _) => Some((RemovalKind::Remove, parts)),
            // All of it was withdrawn by others meanwhile, or is spared: the hold ends all the same.
            (true, Some(_)) => Some((RemovalKind::Release, held)),
            (true, None) => None,
        })
    }

    /// How many steps all requests have.
    pub fn n_optout_steps(&self) -> Result<u64, StoreError> {
        self.catalog.n_optout_steps()
    }

    /// A request.
    pub fn optout(&self, id: u64) -> Result<OptOut, StoreError> {
        self.catalog.optout(id)?.ok_or(StoreError::UnknownOptOut(id))
    }

    /// All requests.
    pub fn optouts(&self) -> Result<Vec<OptOut>, StoreError> {
        self.catalog.optouts()
    }

    /// Requests in a state.
    pub fn optouts_in(&self, state: OptOutState) -> Result<Vec<OptOut>, StoreError> {
        self.catalog.optouts_in(state)
    }

    /// What is kept out.
    pub fn suppressions(&self) -> Result<Vec<Suppression>, StoreError> {
        self.catalog.suppressions()
    }

    /// What the hashes of what is kept out are keyed with.
    pub fn suppression_key(&self) -> Result<Vec<u8>, StoreError> {
        self.catalog.suppression_key()
    }

    /// What several selections would take away now, shard by shard; nothing of those that select nothing.
    pub fn plan_all(&self, what: &[Selection]) -> Result<Vec<RemovalPart>, StoreError> {
        let mut all = Vec::new();
        for selection in what {
            match self.plan(selection) {
                Err(StoreError::NothingSelected) => {}
                parts => all.extend(parts?),
            }
        }
        if all.is_empty() { Err(StoreError::NothingSelected) } else { Ok(merge(all)) }
    }

    /// The same with the numbers of all documents, also where it is all of a shard.
    fn explicit(&self, parts: Vec<RemovalPart>) -> Result<Vec<RemovalPart>, StoreError> {
        let number = |part: RemovalPart| {
            let numbers = match part.numbers {
                Some(numbers) => numbers,
                None => self.kept_by(&self.shard(part.shard)?)?.into_iter().map(|d| d.0).collect(),
            };
            Ok(RemovalPart { numbers: Some(numbers), ..part })
        };
        parts.into_iter().map(number).collect()
    }

    /// What a hold withholds of what is still there, shard by shard.
    pub(crate) fn held_by(&self, hold: u64) -> Result<Vec<RemovalPart>, StoreError> {
        let mut out = Vec::new();
        for part in self.catalog.removal(hold)?.map(|record| record.parts).unwrap_or_default() {
            let Some(shard) = self.catalog.shard(part.shard)? else { continue };
            let there: Numbers = match shard.state {
                crate::ShardState::Removed => Numbers::default(),
                _ => self.kept_by(&shard)?.into_iter().map(|d| d.0).collect(),
            };
            let numbers = part.numbers.unwrap_or_default();
            let numbers: Numbers = numbers.iter().filter(|n| there.contains(*n)).collect();
            out.push(RemovalPart { shard: part.shard, n_documents: numbers.len(), numbers: Some(numbers) });
        }
        Ok(out)
    }

    /// What of a hold is withdrawn if some documents are spared.
    fn without_spared(
        &self,
        parts: Vec<RemovalPart>,
        spare: &[(SourceId, ContentHash)],
    ) -> Result<Vec<RemovalPart>, StoreError> {
        let mut out = Vec::new();
        for part in parts.into_iter().filter(|part| part.n_documents > 0) {
            let shard = self.shard(part.shard)?;
            let kept = self.kept_by(&shard)?;
            let held = part.numbers.unwrap_or_default();
            let goes = |(number, hash): &&(u32, ContentHash)| {
                held.contains(*number) && !spare.iter().any(|(s, d)| *s == shard.source && d == hash)
            };
            let numbers: Numbers = kept.iter().filter(goes).map(|d| d.0).collect();
            let n_documents = numbers.len();
            if n_documents > 0 {
                // All that is left of a shard is the shard.
                let numbers = (n_documents < kept.len() as u64).then_some(numbers);
                out.push(RemovalPart { shard: part.shard, numbers, n_documents });
            }
        }
        Ok(out)
    }

    /// Whether a document of a shard is retrieved.
    pub fn retrieves(&self, shard: ShardId, hash: ContentHash) -> Result<bool, StoreError> {
        Ok(self.live_place(shard, hash)?.is_some())
    }

    /// URI, title and licence of a document of a live shard, if it is retrieved.
    pub fn live_document(&self, shard: ShardId, hash: ContentHash) -> Result<Option<[String; 3]>, StoreError> {
        self.live_place(shard, hash)?.map(|(shard, i)| shard.about(i)).transpose()
    }

    /// The files of a live shard, and a document's place in them, if it is retrieved.
    fn live_place(&self, shard: ShardId, hash: ContentHash) -> Result<Option<(Arc<Shard>, usize)>, StoreError> {
        let live = self.live();
        let Some(found) = live.shards.get(&shard) else { return Ok(None) };
        let shown = self.catalog.numbers_of(shard, hash)?.into_iter().filter(|number| !found.hides(*number));
        let place = shown.filter_map(|number| found.shard.index_of(number)).next();
        Ok(place.map(|i| (found.shard.clone(), i)))
    }

    /// The documents that parts name; the first `n_texts` with their texts, but for those of shards that cannot be read.
    pub fn documents_of_parts(&self, parts: &[RemovalPart], n_texts: usize) -> Result<Vec<PartDocument>, StoreError> {
        let mut out = Vec::new();
        self.walk(parts, &mut |source, hash, place| {
            let n_tokens = place.map_or(0, |(shard, i)| shard.tokens_of(i).len() as u64);
            let read = place.filter(|_| out.len() < n_texts);
            let stored = read.map(|(shard, i)| shard.document(i)).transpose()?;
            out.push(PartDocument { source: source.clone(), hash, n_tokens, stored });
            Ok(())
        })?;
        Ok(out)
    }

    /// The texts of the documents that parts name, one after the other; not those of shards that cannot be read.
    pub fn each_text(
        &self,
        parts: &[RemovalPart],
        each: &mut dyn FnMut(&SourceId, ContentHash, &str),
    ) -> Result<(), StoreError> {
        self.walk(parts, &mut |source, hash, place| {
            let Some((shard, i)) = place else { return Ok(()) };
            each(source, hash, &shard.document(i)?.document.text);
            Ok(())
        })
    }

    /// Goes through the documents that parts name: their source, their hash, and where they lie, if their shard can be read.
    fn walk(&self, parts: &[RemovalPart], each: &mut EachPlace<'_>) -> Result<(), StoreError> {
        let live = self.live();
        for part in parts {
            let record = self.shard(part.shard)?;
            let open = live.shards.get(&part.shard).or_else(|| live.suspended.get(&part.shard));
            for (number, hash) in self.kept_by(&record)? {
                if part.numbers.as_ref().is_none_or(|numbers| numbers.contains(number)) {
                    let place = open.and_then(|s| Some((&*s.shard, s.shard.index_of(number)?)));
                    each(&record.source, hash, place)?;
                }
            }
        }
        Ok(())
    }

    /// The hold of a request, if it was not ended.
    fn hold_of(&self, optout: &OptOut) -> Result<Option<u64>, StoreError> {
        Ok(match optout.hold {
            Some(hold) if self.catalog.is_held(hold)? => Some(hold),
            _ => None,
        })
    }

    /// What a request withholds now.
    pub fn held(&self, optout: &OptOut) -> Result<Vec<RemovalPart>, StoreError> {
        match self.hold_of(optout)? {
            Some(hold) => Ok(self.held_by(hold)?.into_iter().filter(|part| part.n_documents > 0).collect()),
            None => Ok(Vec::new()),
        }
    }
}

/// What is done with each document of a part.
type EachPlace<'a> = dyn FnMut(&SourceId, ContentHash, Option<(&Shard, usize)>) -> Result<(), StoreError> + 'a;

/// Parts of which each shard has one.
fn merge(parts: impl IntoIterator<Item = RemovalPart>) -> Vec<RemovalPart> {
    let mut out: BTreeMap<ShardId, RemovalPart> = BTreeMap::new();
    for part in parts {
        let shard = part.shard;
        let merged = match out.remove(&shard) {
            None => part,
            Some(other) => {
                let numbers = other.numbers.as_ref().zip(part.numbers.as_ref()).map(|(a, b)| a.union(b));
                let n_documents = numbers.as_ref().map_or(part.n_documents.max(other.n_documents), Numbers::len);
                RemovalPart { shard, numbers, n_documents }
            }
        };
        out.insert(shard, merged);
    }
    out.into_values().collect()
}

/// A document that a part names.
#[derive(Debug, Clone, PartialEq)]
pub struct PartDocument {
    /// Its source.
    pub source: SourceId,
    /// SHA-256 of its text.
    pub hash: ContentHash,
    /// Its tokens; 0 if its shard cannot be read.
    pub n_tokens: u64,
    /// As it is stored; `None` if its shard cannot be read, or more was asked for than is read.
    pub stored: Option<StoredDocument>,
}
