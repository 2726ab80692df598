//! Withdrawals, suspensions, resumptions: what takes effect at once.

use std::collections::{BTreeMap, HashSet};
use std::time::Instant;

use silo_core::{Change, ContentHash, DocumentSet, Epoch, RootHash, Selection, ShardId, SourceId};

use crate::boundary::Boundary;
use crate::catalog::{NewRemoval, RemovalKind, RemovalPart, RemovalRecord, WithRemoval, now_unix_ms};
use crate::live::Live;
use crate::{By, Numbers, ShardRecord, ShardState, Store, StoreError};

/// What a change of what is retrieved did. When it is returned it is on disk, and no search finds what it took away, in any snapshot.
#[derive(Debug, Clone, PartialEq)]
pub struct Removal {
    /// Its entry in the log.
    pub record: RemovalRecord,
    /// Root before it.
    pub root_before: RootHash,
    /// Root after it.
    pub root_after: RootHash,
    /// From the call to the end of its transaction: since then no crash undoes it.
    pub durable_ms: f64,
    /// From the call to the moment since which no search finds it.
    pub effective_ms: f64,
}

impl Removal {
    /// The epoch that it made.
    pub fn epoch(&self) -> Epoch {
        self.record.epoch
    }
}

impl Store {
    /// What a withdrawal would take away now: documents that are in the store and not withdrawn, shard by shard.
    pub fn plan(&self, selection: &Selection) -> Result<Vec<RemovalPart>, StoreError> {
        match selection {
            Selection::Source(source) | Selection::Documents { source, .. } => drop(self.source(source)?),
            Selection::UriPrefix { source, prefix } => {
                source.as_ref().map(|s| self.source(s)).transpose()?;
                if prefix.is_empty() {
                    return Err(StoreError::EmptyPrefix);
                }
            }
            Selection::Shard(id) => {
                if self.shard(*id)?.state == ShardState::Removed {
                    return Err(StoreError::ShardRemoved(*id));
                }
            }
        }
        let parts = self.catalog.resolve(selection)?;
        if parts.is_empty() { Err(StoreError::NothingSelected) } else { Ok(parts) }
    }

    fn in_state(&self, id: ShardId, expected: ShardState) -> Result<Vec<RemovalPart>, StoreError> {
        let found = self.shard(id)?.state;
        match found {
            ShardState::Removed => Err(StoreError::ShardRemoved(id)),
            _ if found == expected => self.plan(&Selection::Shard(id)),
            _ => Err(StoreError::ShardState { id, found }),
        }
    }

    /// Number and hash of the documents that a part names and that were not withdrawn before.
    fn documents_of(&self, live: &Live, part: &RemovalPart) -> Result<(SourceId, Vec<(u32, ContentHash)>), StoreError> {
        if let Some(shard) = live.shards.get(&part.shard).or_else(|| live.suspended.get(&part.shard)) {
            let hash = |number| shard.shard.index_of(number).map(|i| (number, shard.shard.hash_of(i)));
            let documents = match &part.numbers {
                Some(numbers) => numbers.iter().filter(|n| shard.keeps(*n)).filter_map(hash).collect(),
                None => shard.kept().collect(),
            };
            return Ok((shard.shard.manifest().source.clone(), documents));
        }
        let record = self.shard(part.shard)?;
        let mut documents = self.kept_by(&record)?;
        documents.retain(|(number, _)| part.numbers.as_ref().is_none_or(|n| n.contains(*number)));
        Ok((record.source, documents))
    }

    /// Number and hash of the documents of a shard of which the files are not open.
    pub(crate) fn kept_by(&self, record: &ShardRecord) -> Result<Vec<(u32, ContentHash)>, StoreError> {
        let mut documents = self.catalog.documents(record)?;
        documents.retain(|(number, _)| !record.withdrawn.contains(*number));
        Ok(documents)
    }

    /// Documents of a source that are in the store, and not retrieved: withheld, or in shards that are suspended, or cannot be read.
    fn hidden_documents(&self, source: &SourceId, after: &Live) -> Result<HashSet<ContentHash>, StoreError> {
        let open = after.suspended.values().chain(after.shards.values());
        let of_source = open.filter(|s| s.shard.manifest().source == *source);
        let mut out: HashSet<ContentHash> = HashSet::new();
        for shard in of_source {
            let hash = |number| shard.shard.index_of(number).map(|i| shard.shard.hash_of(i));
            out.extend(shard.withheld.iter().filter_map(hash));
        }
        for shard in after.suspended.values().filter(|s| s.shard.manifest().source == *source) {
            out.extend(shard.documents().map(|d| d.1));
        }
        for id in after.unavailable.keys() {
            let record = self.shard(*id)?;
            if record.source == *source {
                out.extend(self.kept_by(&record)?.into_iter().map(|d| d.1));
            }
        }
        Ok(out)
    }

    /// What leaves its source by a withdrawal, and documents of each shard that other shards of their source still hold.
    fn leaving(&self, parts: &[RemovalPart], before: &Live, after: &Live) -> Result<Leaving, StoreError> {
        let (mut left, mut kept) = (BTreeMap::<SourceId, Vec<ContentHash>>::new(), BTreeMap::new());
        let mut hidden = BTreeMap::<SourceId, HashSet<ContentHash>>::new();
        for part in parts {
            let (source, documents) = self.documents_of(before, part)?;
            if !hidden.contains_key(&source) {
                hidden.insert(source.clone(), self.hidden_documents(&source, after)?);
            }
            let stays = |hash: &ContentHash| after.holds(&source, hash) || hidden[&source].contains(hash);
            let (stay, go): (Vec<_>, Vec<_>) = documents.into_iter().partition(|(_, hash)| stays(hash));
            if !stay.is_empty() {
                kept.insert(part.shard, stay.iter().map(|d| d.0).collect());
            }
            left.entry(source).or_default().extend(go.into_iter().map(|d| d.1));
        }
        Ok(Leaving { left: sets(left), kept })
    }

    /// What parts name, source by source.
    fn document_sets(&self, parts: &[RemovalPart], live: &Live) -> Result<Vec<DocumentSet>, StoreError> {
        let mut all = BTreeMap::<SourceId, Vec<ContentHash>>::new();
        for part in parts {
            let (source, documents) = self.documents_of(live, part)?;
            all.entry(source).or_default().extend(documents.into_iter().map(|d| d.1));
        }
        Ok(sets(all))
    }

    /// The shards of a hold, each with what other holds withhold of it.
    fn released(&self, hold: u64) -> Result<Vec<(ShardId, Numbers)>, StoreError> {
        let mut others = self.catalog.withheld(Some(hold))?;
        let parts = self.catalog.removal(hold)?.map(|record| record.parts).unwrap_or_default();
        Ok(parts.into_iter().map(|part| (part.shard, others.remove(&part.shard).unwrap_or_default())).collect())
    }
}

fn sets(documents: BTreeMap<SourceId, Vec<ContentHash>>) -> Vec<DocumentSet> {
    let set = |(source, mut hashes): (SourceId, Vec<ContentHash>)| {
        hashes.sort_unstable();
        hashes.dedup();
        DocumentSet::of(source, &hashes)
    };
    documents.into_iter().map(set).filter(|set| set.n_documents > 0).collect()
}

struct Leaving {
    left: Vec<DocumentSet>,
    kept: BTreeMap<ShardId, Numbers>,
}

/// A change that is resolved, and about to be done.
pub(crate) struct Applied<'a> {
    pub(crate) kind: RemovalKind,
    /// How it was asked for.
    pub(crate) selector: &'a str,
    pub(crate) parts: Vec<RemovalPart>,
    /// The hold that it ends: what else it withholds is put back.
    pub(crate) ends: Option<u64>,
    pub(crate) also: Option<WithRemoval<'a>>,
}

impl Store {
    /// Refuses a withdrawal of what must be kept as evidence, by other requests than `but`.
    pub(crate) fn check_legal_holds(&self, parts: &[RemovalPart], but: Option<u64>) -> Result<(), StoreError> {
        for (id, hold) in self.catalog.legal_holds()?.into_iter().filter(|(id, _)| Some(*id) != but) {
            for kept in self.held_by(hold)? {
                let both = |part: &RemovalPart| {
                    let (numbers, kept) = (part.numbers.as_ref(), kept.numbers.as_ref());
                    numbers.zip(kept).is_none_or(|(a, b)| a.iter().any(|n| b.contains(n)))
                };
                if parts.iter().any(|part| part.shard == kept.shard && both(part)) {
                    return Err(StoreError::LegalHold(id));
                }
            }
        }
        Ok(())
    }
}

impl By<'_> {
    /// Withdraws what is selected, for good. Its bytes go with the next [`Store::purge`].
    pub fn withdraw(&self, selection: &Selection) -> Result<Removal, StoreError> {
        let selector = match selection {
            Selection::Shard(_) => "shard",
            Selection::Source(_) => "source",
            Selection::Documents { .. } => "documents",
            Selection::UriPrefix { .. } => "uri-prefix",
        };
        self.apply(RemovalKind::Remove, selector, || {
            let parts = self.store.plan(selection)?;
            self.store.check_legal_holds(&parts, None)?;
            Ok(parts)
        })
    }

    /// Takes a live shard out of what is retrieved, until it is resumed.
    pub fn suspend_shard(&self, id: ShardId) -> Result<Removal, StoreError> {
        self.apply(RemovalKind::Suspend, "shard", || self.store.in_state(id, ShardState::Live))
    }

    /// Puts a suspended shard back.
    pub fn resume_shard(&self, id: ShardId) -> Result<Removal, StoreError> {
        self.apply(RemovalKind::Resume, "shard", || self.store.in_state(id, ShardState::Suspended))
    }

    /// Resolves a change and does it: first on disk, then for all searches.
    fn apply(
        &self,
        kind: RemovalKind,
        selector: &str,
        resolve: impl FnOnce() -> Result<Vec<RemovalPart>, StoreError>,
    ) -> Result<Removal, StoreError> {
        let start = Instant::now();
        let _change = self.store.change();
        let parts = resolve()?;
        self.apply_resolved(Applied { kind, selector, parts, ends: None, also: None }, start)
    }

    /// The same for one that is resolved. The caller holds the lock of changes.
    pub(crate) fn apply_resolved(&self, new: Applied<'_>, start: Instant) -> Result<Removal, StoreError> {
        let Applied { kind, selector, parts, ends, also } = new;
        let (store, passed_ms) = (self.store, || start.elapsed().as_secs_f64() * 1000.0);
        let epoch = store.catalog.next_epoch()?;
        let before = store.live().clone();
        let released = ends.map(|hold| store.released(hold)).transpose()?.unwrap_or_default();
        let after = store.changed(epoch, |live| {
            take_or_give(live, kind, &parts, epoch);
            released.iter().for_each(|(shard, still)| live.release(*shard, still, epoch));
        });
        let root_before = before.snapshot.root;
        let Leaving { left: documents, kept } = match kind {
            RemovalKind::Remove => store.leaving(&parts, &before, &after)?,
            RemovalKind::Hold => Leaving { left: store.document_sets(&parts, &before)?, kept: BTreeMap::new() },
            _ => Leaving { left: Vec::new(), kept: BTreeMap::new() },
        };
        let (state, shard) = (store.state_of(&after), parts.first().map_or(0, |part| part.shard.0));
        let removal = store.catalog.next_removal()?;
        let change = match kind {
            RemovalKind::Remove => {
                let selector = selector.to_owned();
                Change::Remove { removal, selector, documents, root_before, state }
            }
            RemovalKind::Suspend => Change::SuspendShard { shard, state },
            RemovalKind::Resume => Change::ResumeShard { shard, state },
            RemovalKind::Hold => Change::Hold { hold: removal, documents, state },
            RemovalKind::Release => Change::Release { hold: ends.unwrap_or_default(), state },
        };
        store.at(Boundary::ChangeResolved);
        let (actor, change, kept) = (self.actor, &change, &kept);
        let new = NewRemoval { actor, change, epoch, kind, selector, parts, kept, ends, also };
        let record = store.catalog.log(new)?;
        let (durable_ms, durable_at) = (passed_ms(), now_unix_ms());
        store.at(Boundary::ChangeCommitted);
        // From here on nothing can fail: what the catalog holds is what is live.
        let root_after = after.snapshot.root;
        store.show(after);
        let effective_ms = passed_ms();
        if kind == RemovalKind::Remove {
            store.catalog.note_in_force(record.id, durable_at, now_unix_ms().max(durable_at));
            record.parts.iter().filter(|p| p.numbers.is_none()).for_each(|p| store.stop_rewrite(p.shard));
        }
        Ok(Removal { record, root_before, root_after, durable_ms, effective_ms })
    }
}

fn take_or_give(live: &mut Live, kind: RemovalKind, parts: &[RemovalPart], epoch: Epoch) {
    for part in parts {
        match (kind, &part.numbers) {
            (RemovalKind::Remove, None) => live.remove(part.shard),
            (RemovalKind::Remove, Some(numbers)) => live.withdraw(part.shard, numbers, epoch),
            (RemovalKind::Suspend, _) => live.suspend(part.shard),
            (RemovalKind::Resume, _) => live.resume(part.shard, epoch),
            (RemovalKind::Hold, Some(numbers)) => live.withhold(part.shard, numbers, epoch),
            // Holds name their documents, and what a release puts back is what no other hold withholds.
            (RemovalKind::Hold, None) | (RemovalKind::Release, _) => {}
        }
    }
}
