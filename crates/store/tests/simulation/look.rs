//! Searches, against what they should find.

use rand::RngExt;
use silo_core::{
    Filter, NeighborQuery, NeighborSearch, PassageQuery, PassageSearch, Purpose, ShardId, Snapshot, SourceId,
};
use silo_testkit::ScriptedModel;

use super::super::reference::State;
use super::oracle::{neighbors, passages};
use super::{World, model};

impl World {
    fn filter(&mut self) -> Filter {
        let mut filter = Filter::default();
        if self.rng.random_bool(0.3) {
            filter.deny_sources.push(self.any_source());
        }
        if self.rng.random_bool(0.2) {
            filter.allow_sources = vec![self.any_source(), self.any_source()];
        }
        if let Some(id) = self.any_shard(State::Live).filter(|_| self.rng.random_bool(0.2)) {
            filter.deny_shards.push(id);
        }
        filter
    }

    pub(super) fn search(&mut self, snapshot: &Snapshot) {
        let filter = self.filter();
        let (a, b) = (self.rng.random_range(98..123), self.rng.random_range(98..123));
        let mut query = ScriptedModel::key(a, b);
        if self.rng.random_bool(0.2) {
            query.iter_mut().for_each(|x| *x += self.rng.random_range(-0.2..0.2));
        }
        let k = [1, 2, 5, 17, 60, 1000][self.rng.random_range(0..6)];
        let mask = snapshot.mask(&filter, Purpose::Knn);
        let found = self
            .store()
            .neighbors(&[NeighborQuery { snapshot, mask: &mask, key: &query, k, text: &[] }])
            .unwrap()
            .remove(0);
        let described: Vec<_> = found
            .iter()
            .map(|n| {
                let entry = self.store().entry(snapshot, n, 4).unwrap();
                (n.distance.to_bits(), n.value, entry.source, entry.document, entry.position)
            })
            .collect();
        let visible = self.reference.visible(&sees(snapshot, &filter));
        let expected = neighbors(&model(), &self.plan.recipe, &visible, &query, k);
        assert_eq!(described, expected, "k = {k}, {filter:?}");
    }

    pub(super) fn passages(&mut self, snapshot: &Snapshot) {
        let filter = self.filter();
        let (text, k) = (self.text(), self.rng.random_range(0..9));
        let mask = snapshot.mask(&filter, Purpose::Context);
        let query = PassageQuery { snapshot, mask: &mask, text: &text, k };
        let found = self.store().passages(&query).unwrap();
        let described: Vec<_> = found
            .iter()
            .map(|p| {
                let source = snapshot.source_of(p.shard).clone();
                (p.score.to_bits(), source, p.document, p.start)
            })
            .collect();
        let visible = self.reference.visible(&sees(snapshot, &filter));
        assert_eq!(described, passages(&self.plan.recipe, &visible, &text, k), "{text}, k = {k}, {filter:?}");
    }
}

/// What a request with this snapshot and filter may see.
fn sees<'a>(snapshot: &'a Snapshot, filter: &'a Filter) -> impl Fn(ShardId, &SourceId) -> bool + 'a {
    |id, source| {
        snapshot.shards.iter().any(|s| s.id == id)
            && (filter.allow_sources.is_empty() || filter.allow_sources.contains(source))
            && !filter.deny_sources.contains(source)
            && !filter.deny_shards.contains(&id)
    }
}
