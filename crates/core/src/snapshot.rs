//! The store at one epoch, as a request sees it, and the decision of what a request may see.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::{ContentHash, Epoch, Purpose, RootHash, ShardId, ShardIndex, Source, SourceId, Tier};

/// One live shard of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardView {
    /// Row number of the shard.
    pub id: ShardId,
    /// The source that all of its documents belong to.
    pub source: Arc<Source>,
    /// Hash of the model that made its keys.
    pub model: ContentHash,
    /// Documents in it.
    pub n_documents: u64,
    /// Entries (key, next token) in it.
    pub n_entries: u64,
    /// Passages in it.
    pub n_passages: u64,
}

/// The store at one epoch. Requests pin one; it never changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// The epoch.
    pub epoch: Epoch,
    /// Root hash of the logical content ([`crate::merkle`]).
    pub root: RootHash,
    /// All declared sources, also those without a live shard.
    pub sources: Vec<Arc<Source>>,
    /// Live shards.
    pub shards: Vec<ShardView>,
    /// The greatest shard id that was ever given out: ids up to it are known, if only as removed.
    pub last_shard: ShardId,
}

/// What a request allows and denies. Empty allow lists allow everything; a denial always wins.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "the fields say what they are")]
pub struct Filter {
    pub allow_sources: Vec<SourceId>,
    pub deny_sources: Vec<SourceId>,
    pub allow_tiers: Vec<Tier>,
    pub deny_tiers: Vec<Tier>,
    pub allow_shards: Vec<ShardId>,
    pub deny_shards: Vec<ShardId>,
    /// The sources that exist for the caller; all if there is no such limit. Others are as if they were not in the store.
    pub scope: Option<BTreeSet<SourceId>>,
}

impl Filter {
    fn knows(&self, source: &SourceId) -> bool {
        self.scope.as_ref().is_none_or(|scope| scope.contains(source))
    }
}

/// A filter that names something that is not in the store.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no {kind} '{name}' in the store at epoch {epoch}")]
pub struct UnknownName {
    /// "source" or "shard".
    pub kind: &'static str,
    /// What was named.
    pub name: String,
    /// Where it was looked for.
    pub epoch: Epoch,
}

/// Which shards of a snapshot a query may see: decided before the search, never by throwing answers away.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ShardMask {
    visible: Vec<bool>,
}

impl ShardMask {
    /// Whether shard number `index` of the snapshot is visible.
    pub fn sees(&self, index: usize) -> bool {
        self.visible.get(index).copied().unwrap_or(false)
    }

    /// What this or the other mask shows; both must be of one snapshot. The default mask shows nothing.
    pub fn or(&self, other: &Self) -> Self {
        let n = self.visible.len().max(other.visible.len());
        Self { visible: (0..n).map(|i| self.sees(i) || other.sees(i)).collect() }
    }

    /// What this mask shows and `keeps` as well.
    pub fn and(&self, keeps: impl Fn(ShardIndex) -> bool) -> Self {
        let visible = |(i, seen): (usize, &bool)| *seen && keeps(ShardIndex(i as u32));
        Self { visible: self.visible.iter().enumerate().map(visible).collect() }
    }

    /// Whether nothing is visible.
    pub fn is_empty(&self) -> bool {
        !self.visible.contains(&true)
    }
}

impl Snapshot {
    /// A store that never held anything.
    pub fn empty() -> Self {
        let root = crate::merkle::empty_root();
        Self { epoch: Epoch(0), root, sources: Vec::new(), shards: Vec::new(), last_shard: ShardId(0) }
    }

    /// The source of a shard of this snapshot.
    ///
    /// # Panics
    ///
    /// If the index is not of this snapshot.
    pub fn source_of(&self, shard: ShardIndex) -> &SourceId {
        &self.shards[shard.0 as usize].source.id
    }

    /// As if some sources had never been there. For what follows from sources being there; places of shards in it are not those of this one.
    pub fn without(&self, sources: &[SourceId]) -> Self {
        let kept = |view: &&ShardView| !sources.contains(&view.source.id);
        Self { shards: self.shards.iter().filter(kept).cloned().collect(), ..self.clone() }
    }

    /// What `filter` leaves visible for `purpose`. Names are not checked here: see [`Self::check_names`].
    pub fn mask(&self, filter: &Filter, purpose: Purpose) -> ShardMask {
        let passes = |shard: &ShardView| {
            let source = &shard.source;
            let allowed = (filter.allow_sources.is_empty() || filter.allow_sources.contains(&source.id))
                && (filter.allow_tiers.is_empty() || filter.allow_tiers.contains(&source.tier))
                && (filter.allow_shards.is_empty() || filter.allow_shards.contains(&shard.id));
            let denied = filter.deny_sources.contains(&source.id)
                || filter.deny_tiers.contains(&source.tier)
                || filter.deny_shards.contains(&shard.id);
            filter.knows(&source.id) && allowed && !denied && source.permissions.allows(purpose)
        };
        ShardMask { visible: self.shards.iter().map(passes).collect() }
    }

    /// Refuses names that the store never knew: a typing mistake in a deny list must not let a source in. Shards that were
    /// removed are known, so a list that names one stays good.
    pub fn check_names(&self, filter: &Filter) -> Result<(), UnknownName> {
        let unknown = |kind, name: String| UnknownName { kind, name, epoch: self.epoch };
        for id in filter.allow_sources.iter().chain(&filter.deny_sources) {
            if !filter.knows(id) || !self.sources.iter().any(|s| s.id == *id) {
                return Err(unknown("source", id.to_string()));
            }
        }
        for id in filter.allow_shards.iter().chain(&filter.deny_shards) {
            if *id > self.last_shard || id.0 == 0 {
                return Err(unknown("shard", id.to_string()));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Permissions;

    fn source(id: &str, tier: Tier) -> Arc<Source> {
        Arc::new(Source {
            id: id.parse().unwrap(),
            owner: "o".into(),
            licence: "MIT".into(),
            licence_stated_at: "here".into(),
            notice: String::new(),
            tier,
            permissions: Permissions { context: tier.is_open(), ..Permissions::of_tier(tier) },
        })
    }

    fn snapshot() -> Snapshot {
        let sources = vec![source("open", Tier::Permissive), source("closed", Tier::Restricted)];
        let view = |i: usize, s: usize| ShardView {
            id: ShardId(10 + i as u64),
            source: sources[s].clone(),
            model: ContentHash([0; 32]),
            n_documents: 1,
            n_entries: 1,
            n_passages: 1,
        };
        let shards = vec![view(0, 0), view(1, 1), view(2, 1)];
        Snapshot { sources, shards, last_shard: ShardId(12), ..Snapshot::empty() }
    }

    fn check(filter: Filter, purpose: Purpose, expected: [bool; 3]) {
        snapshot().check_names(&filter).unwrap();
        let mask = snapshot().mask(&filter, purpose);
        assert_eq!([mask.sees(0), mask.sees(1), mask.sees(2)], expected, "{filter:?} for {purpose}");
        assert!(!mask.sees(3));
    }

    #[test]
    fn filters_and_permissions_decide() {
        let closed: SourceId = "closed".parse().unwrap();
        let none = Filter::default;
        check(none(), Purpose::Knn, [true, true, true]);
        check(none(), Purpose::Context, [true, false, false]);
        check(Filter { allow_sources: vec![closed.clone()], ..none() }, Purpose::Knn, [false, true, true]);
        check(Filter { deny_sources: vec![closed.clone()], ..none() }, Purpose::Knn, [true, false, false]);
        check(Filter { allow_tiers: vec![Tier::Restricted], ..none() }, Purpose::Knn, [false, true, true]);
        check(Filter { deny_shards: vec![ShardId(11)], ..none() }, Purpose::Knn, [true, false, true]);
        let both = Filter { allow_sources: vec![closed.clone()], deny_sources: vec![closed], ..none() };
        check(both, Purpose::Knn, [false, false, false]);
    }

    #[test]
    fn unknown_names_are_refused_in_allow_and_deny_lists() {
        let ghost: SourceId = "ghost".parse().unwrap();
        for filter in [
            Filter { allow_sources: vec![ghost.clone()], ..Filter::default() },
            Filter { deny_sources: vec![ghost], ..Filter::default() },
        ] {
            assert_eq!(snapshot().check_names(&filter).unwrap_err().name, "ghost");
        }
        let shard = |id| Filter { deny_shards: vec![ShardId(id)], ..Filter::default() };
        assert_eq!(snapshot().check_names(&shard(99)).unwrap_err().kind, "shard");
        assert!(snapshot().check_names(&shard(3)).is_ok(), "a shard that was removed is known");
    }
}
