//! The contracts of [`NeighborSearch`], [`PassageSearch`], [`SpanSearch`] and [`SnapshotProvider`].
//!
//! [`NeighborSearch`]: silo_core::NeighborSearch
//! [`PassageSearch`]: silo_core::PassageSearch
//! [`SpanSearch`]: silo_core::SpanSearch
//! [`SnapshotProvider`]: silo_core::SnapshotProvider

use silo_core::{
    ContentHash, Datastore, Filter, Neighbor, NeighborQuery, Passage, PassageQuery, Purpose, Run, SearchError,
    ShardMask, Snapshot, SourceId, Tier, units,
};

/// A store that holds several shards of several restricted sources.
pub struct Stocked<'a> {
    /// The store.
    pub store: &'a dyn Datastore,
    /// Keys that are searched for.
    pub keys: &'a [Vec<f32>],
    /// Texts that passages are searched for.
    pub texts: &'a [&'a str],
    /// A source of it.
    pub gone: SourceId,
    /// Words that stand in that source alone.
    pub words_of_gone: &'a str,
    /// Withdraws the source.
    pub withdraw: &'a dyn Fn(),
    /// Whether it finds the very nearest.
    pub exact: bool,
}

const MANY: usize = 1 << 20;

/// Checks the contracts; the source is withdrawn at the end.
pub fn datastore(stocked: &Stocked<'_>) {
    let views = [
        Filter::default(),
        Filter { allow_sources: vec![stocked.gone.clone()], ..Filter::default() },
        stocked.without_gone(),
    ];
    for filter in &views {
        stocked.neighbors_are_ordered_and_visible(filter);
        stocked.passages_are_ordered_and_visible(filter);
    }
    stocked.a_batch_gives_each_what_it_gets_alone();
    stocked.other_keys_are_refused();
    stocked.what_is_withdrawn_is_as_if_hidden();
}

/// Neighbours by their logical ids: what may be compared.
type Logical = (u32, u32, SourceId, ContentHash, u32);

impl Stocked<'_> {
    fn without_gone(&self) -> Filter {
        Filter { deny_sources: vec![self.gone.clone()], ..Filter::default() }
    }

    fn search(&self, (snapshot, mask): (&Snapshot, &ShardMask), key: &[f32], k: usize) -> Vec<Neighbor> {
        self.store.neighbors(&[NeighborQuery { snapshot, mask, key, k, text: &[] }]).expect("a search").remove(0)
    }

    fn logical(&self, snapshot: &Snapshot, neighbors: &[Neighbor]) -> Vec<Logical> {
        let describe = |n: &Neighbor| {
            let entry = self.store.entry(snapshot, n, 1).expect("a live neighbour has an entry");
            assert_eq!(Some((entry.document, entry.position)), self.store.place(snapshot, n));
            assert_eq!(&entry.source, snapshot.source_of(n.shard));
            (n.distance.to_bits(), n.value, entry.source, entry.document, entry.position)
        };
        neighbors.iter().map(describe).collect()
    }

    /// As many as there are, up to k, whatever share of the store is visible; nearest first, ties by logical id.
    fn neighbors_are_ordered_and_visible(&self, filter: &Filter) {
        let snapshot = self.store.snapshot();
        let mask = snapshot.mask(filter, Purpose::Knn);
        for key in self.keys {
            let all = self.search((&snapshot, &mask), key, MANY);
            assert!(all.len() > 8, "a store for this has more to find");
            for k in [1, 2, 7, all.len() - 1, all.len(), all.len() + 1] {
                let found = self.search((&snapshot, &mask), key, k);
                assert_eq!(found.len(), k.min(all.len()), "k = {k}");
                assert!(found.iter().all(|n| mask.sees(n.shard.0 as usize)));
                let logical = self.logical(&snapshot, &found);
                let order = |(distance, _, source, document, position): &Logical| {
                    (f32::from_bits(*distance), source.clone(), *document, *position)
                };
                assert!(logical.is_sorted_by(|a, b| order(a) <= order(b)), "k = {k}: {logical:?}");
                if self.exact {
                    assert_eq!(logical, self.logical(&snapshot, &all[..logical.len()]), "k = {k}");
                }
            }
        }
        assert!(self.search((&snapshot, &ShardMask::default()), &self.keys[0], MANY).is_empty());
    }

    fn a_batch_gives_each_what_it_gets_alone(&self) {
        let snapshot = self.store.snapshot();
        let masks = [Filter::default(), self.without_gone()].map(|filter| snapshot.mask(&filter, Purpose::Knn));
        let asked: Vec<(&Vec<f32>, &ShardMask, usize)> =
            self.keys.iter().enumerate().map(|(i, key)| (key, &masks[i % 2], 1 + i * 5)).collect();
        let query =
            |(key, mask, k): &(&'_ Vec<f32>, &'_ ShardMask, usize)| self.search((&snapshot, mask), key.as_slice(), *k);
        let queries: Vec<NeighborQuery<'_>> = asked
            .iter()
            .map(|(key, mask, k)| NeighborQuery { snapshot: &snapshot, mask, key, k: *k, text: &[] })
            .collect();
        let (together, epoch) = self.store.neighbors_as_of(&queries).expect("a search");
        assert_eq!(epoch, snapshot.epoch);
        assert_eq!(together, asked.iter().map(query).collect::<Vec<_>>());
    }

    fn other_keys_are_refused(&self) {
        let snapshot = self.store.snapshot();
        let mask = snapshot.mask(&Filter::default(), Purpose::Knn);
        let key = vec![0.0; self.keys[0].len() + 1];
        let query = NeighborQuery { snapshot: &snapshot, mask: &mask, key: &key, k: 1, text: &[] };
        let refused = SearchError::Dimension { got: key.len(), expected: key.len() - 1 };
        assert_eq!(self.store.neighbors(&[query]), Err(refused));
    }

    fn passages(&self, (snapshot, mask): (&Snapshot, &ShardMask), text: &str, k: usize) -> Vec<Passage> {
        self.store.passages(&PassageQuery { snapshot, mask, text, k }).expect("a search")
    }

    fn passages_are_ordered_and_visible(&self, filter: &Filter) {
        let snapshot = self.store.snapshot();
        let mask = snapshot.mask(filter, Purpose::Context);
        for text in self.texts {
            let all = self.passages((&snapshot, &mask), text, MANY);
            for k in [1, 3, all.len().max(1)] {
                let found = self.passages((&snapshot, &mask), text, k);
                assert_eq!(found, all[..k.min(all.len())], "k = {k}");
            }
            assert!(all.iter().all(|p| mask.sees(p.shard.0 as usize)));
            let order = |p: &Passage| (-p.score, snapshot.source_of(p.shard).clone(), p.document, p.start);
            assert!(all.is_sorted_by(|a, b| order(a) <= order(b)), "{all:?}");
        }
        assert!(self.passages((&snapshot, &ShardMask::default()), self.texts[0], MANY).is_empty());
    }

    /// What is said without it while it is hidden is said of a snapshot that still lists it once it is gone: distances, scores and all.
    fn what_is_withdrawn_is_as_if_hidden(&self) {
        let before = self.store.snapshot();
        let mask = |filter: &Filter, purpose| before.mask(filter, purpose);
        let (all, without) = (Filter::default(), self.without_gone());
        let neighbors = |filter: &Filter| -> Vec<Vec<Logical>> {
            let mask = mask(filter, Purpose::Knn);
            let of = |key: &Vec<f32>| self.logical(&before, &self.search((&before, &mask), key, 9));
            self.keys.iter().map(of).collect()
        };
        let passages = |filter: &Filter| -> Vec<Vec<Passage>> {
            let mask = mask(filter, Purpose::Context);
            self.texts.iter().map(|text| self.passages((&before, &mask), text, 9)).collect()
        };
        let hidden = (neighbors(&without), passages(&without));
        let words = units::units(self.words_of_gone);
        let run = Run { words: &words, begun: "" };
        let stands = || self.store.is_guarded(&run, &Tier::ALL).expect("a search");
        assert!(stands() && !self.store.is_free(&run).expect("a search"));
        let theirs = self.search((&before, &mask(&all, Purpose::Knn)), &self.keys[0], MANY);
        let theirs: Vec<Neighbor> = theirs.into_iter().filter(|n| *before.source_of(n.shard) == self.gone).collect();
        assert!(!theirs.is_empty() && self.store.is_live(&before, &mask(&all, Purpose::Knn)));

        (self.withdraw)();

        assert!(!stands());
        assert_eq!((neighbors(&all), passages(&all)), hidden);
        assert!(theirs.iter().all(|n| self.store.place(&before, n).is_none()));
        assert!(theirs.iter().all(|n| self.store.entry(&before, n, 1).is_none()));
        assert!(!self.store.is_live(&before, &mask(&all, Purpose::Knn)));
        assert!(self.store.is_live(&before, &mask(&without, Purpose::Knn)));
        let after = self.store.snapshot();
        assert!(after.epoch > before.epoch && after.shards.iter().all(|shard| shard.source.id != self.gone));
    }
}
