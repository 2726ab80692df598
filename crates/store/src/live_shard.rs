//! A live shard, and what of its files is not retrieved.

use std::sync::Arc;

use fixedbitset::FixedBitSet;
use silo_core::{ContentHash, Epoch, ShardId, ShardView, Source};

use crate::{Numbers, Shard};

/// A shard that may be retrieved from.
#[derive(Clone)]
pub(crate) struct LiveShard {
    pub(crate) shard: Arc<Shard>,
    /// What of its files is not retrieved: it is withdrawn, or withheld.
    pub(crate) hidden: Option<Arc<Hidden>>,
    /// What of that is withheld, and not withdrawn.
    pub(crate) withheld: Numbers,
    /// When something was last taken from it or given back, or it was resumed, since the store was opened. Searches in snapshots from before
    /// may have found less than these show.
    pub(crate) shrunk: Epoch,
}

/// What of a shard's files is not retrieved.
#[derive(Clone)]
pub(crate) struct Hidden {
    numbers: Numbers,
    pub(crate) entries: FixedBitSet,
    pub(crate) passages: FixedBitSet,
    n_documents: u64,
    n_tokens: u64,
    n_entries: u64,
    n_passages: u64,
}

impl Hidden {
    fn nothing(shard: &Shard) -> Self {
        let m = shard.manifest();
        Self {
            numbers: Numbers::default(),
            entries: FixedBitSet::with_capacity(m.n_entries as usize),
            passages: FixedBitSet::with_capacity(m.n_passages as usize),
            n_documents: 0,
            n_tokens: 0,
            n_entries: 0,
            n_passages: 0,
        }
    }

    /// Whether it holds a document.
    pub(crate) fn holds(&self, number: u32) -> bool {
        self.numbers.contains(number)
    }

    /// Adds documents, by their places in the files, that it does not hold yet.
    fn add(&mut self, shard: &Shard, documents: &[usize]) {
        let usize_range = |r: std::ops::Range<u32>| r.start as usize..r.end as usize;
        for &i in documents {
            let (entries, passages) = (shard.entries_of(i), shard.passages_of(i));
            self.numbers.insert(shard.number_of(i));
            self.n_documents += 1;
            self.n_tokens += shard.tokens_of(i).len() as u64;
            self.n_entries += entries.len() as u64;
            self.n_passages += passages.len() as u64;
            self.entries.insert_range(usize_range(entries));
            self.passages.insert_range(usize_range(passages));
        }
    }
}

impl LiveShard {
    pub(crate) fn new(shard: Arc<Shard>, withdrawn: &Numbers, withheld: &Numbers) -> Self {
        let mut live = Self { shard, hidden: None, withheld: Numbers::default(), shrunk: Epoch(0) };
        live.withdraw(withdrawn);
        live.withhold(withheld);
        live
    }

    /// Hides those of the documents that its files hold and that are not hidden yet; gives their hashes. Costs what they are, however
    /// many went before.
    fn hide(&mut self, numbers: &Numbers) -> Vec<ContentHash> {
        let fresh = self.hidden.as_ref().map(|h| numbers.without(&h.numbers));
        let fresh = fresh.as_ref().unwrap_or(numbers);
        let documents: Vec<usize> = fresh.iter().filter_map(|number| self.shard.index_of(number)).collect();
        if !documents.is_empty() {
            let before = self.hidden.take();
            let mut hidden = before.map_or_else(|| Hidden::nothing(&self.shard), |h| (*h).clone());
            hidden.add(&self.shard, &documents);
            self.hidden = Some(Arc::new(hidden));
        }
        documents.into_iter().map(|i| self.shard.hash_of(i)).collect()
    }

    /// Hides documents for good; gives the hashes of those that were not hidden.
    pub(crate) fn withdraw(&mut self, numbers: &Numbers) -> Vec<ContentHash> {
        self.withheld = self.withheld.without(numbers);
        self.hide(numbers)
    }

    /// Hides documents for a time; gives the hashes of those that were not hidden.
    pub(crate) fn withhold(&mut self, numbers: &Numbers) -> Vec<ContentHash> {
        self.withheld.extend(&numbers.without(&self.withdrawn()));
        self.hide(numbers)
    }

    /// What of its files is withdrawn.
    pub(crate) fn withdrawn(&self) -> Numbers {
        self.hidden.as_ref().map(|h| h.numbers.without(&self.withheld)).unwrap_or_default()
    }

    /// Whether a document of the files is not retrieved.
    pub(crate) fn hides(&self, number: u32) -> bool {
        self.hidden.as_ref().is_some_and(|h| h.numbers.contains(number))
    }

    /// Number and hash of the documents that are retrieved.
    pub(crate) fn documents(&self) -> impl Iterator<Item = (u32, ContentHash)> + '_ {
        self.shard.numbers().filter(|(number, _)| !self.hides(*number))
    }

    /// Number and hash of the documents that are in the store: retrieved, or withheld.
    pub(crate) fn kept(&self) -> impl Iterator<Item = (u32, ContentHash)> + '_ {
        self.shard.numbers().filter(|(number, _)| self.keeps(*number))
    }

    /// Whether a document is not withdrawn.
    pub(crate) fn keeps(&self, number: u32) -> bool {
        !self.hides(number) || self.withheld.contains(number)
    }

    /// Tokens and entries of what is withdrawn.
    pub(crate) fn withdrawn_counts(&self) -> (u64, u64) {
        let Some(hidden) = &self.hidden else { return (0, 0) };
        let withheld = self.withheld.iter().filter_map(|number| self.shard.index_of(number));
        withheld.fold((hidden.n_tokens, hidden.n_entries), |(tokens, entries), i| {
            (tokens - self.shard.tokens_of(i).len() as u64, entries - self.shard.entries_of(i).len() as u64)
        })
    }

    pub(crate) fn view(&self, id: ShardId, source: Arc<Source>) -> ShardView {
        let m = self.shard.manifest();
        let less = self.hidden.as_ref().map_or((0, 0, 0), |h| (h.n_documents, h.n_entries, h.n_passages));
        ShardView {
            id,
            source,
            model: m.model_hash,
            n_documents: m.n_documents - less.0,
            n_entries: m.n_entries - less.1,
            n_passages: m.n_passages - less.2,
        }
    }
}
