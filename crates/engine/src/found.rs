//! What is found for a token, with no source above the cap on its influence.
//!
//! A source s whose part m_s of the neighbour softmax would be more than the cap c gets exactly c: its neighbours, searched for alone, weigh
//! c, and the others, searched for without it, 1 − c. All sources above c are held at once; where another is above c then, it is held too, and
//! so on; there are at most 1/c of them. If nothing else is left, what they do not have is the model's. So no more than w·c of a distribution is any
//! one source's, and each search is one that a store without the others would answer alike. Where a gate leaves neighbours a part t of w, all of that
//! is of w·t instead of w; what the gate knows is of the first search, without a cap.

use silo_core::mixture::{self, NeighborDistribution};
use silo_core::{
    Datastore, Epoch, Gate, GateFeatures, KnnParameters, Neighbor, NeighborQuery, SearchError, ShardMask, SourceId,
    TokenId,
};

use crate::pinned::Pinned;

/// Neighbours of a token, and how they weigh.
#[derive(Debug, Clone, Default)]
pub(crate) struct Found {
    /// Nearest first.
    pub(crate) neighbors: Vec<Neighbor>,
    /// Their weights.
    pub(crate) knn: NeighborDistribution,
    /// Sources that are held at the cap, in the order in which they were found above it.
    pub(crate) capped: Vec<SourceId>,
    /// How many searches it took.
    pub(crate) searches: u64,
}

/// A token whose neighbours are asked for.
pub(crate) struct Ask<'a> {
    /// The store as it sees it.
    pub(crate) pinned: &'a Pinned,
    /// Its key.
    pub(crate) key: &'a [f32],
    /// What the model says of the token.
    pub(crate) logits: &'a [f32],
    /// The text before it.
    pub(crate) text: &'a [TokenId],
}

/// An answer on its way.
struct Answer {
    /// Neighbours outside the sources that are held.
    rest: Vec<Neighbor>,
    /// Sources that are held, and their neighbours.
    held: Vec<(SourceId, Vec<Neighbor>)>,
    /// How neighbours weigh, each with its share of their mass.
    kernels: Vec<(f64, KnnParameters)>,
    searches: u64,
}

/// Neighbours, and how they weigh.
struct Weighed {
    /// Those of all searches, nearest first; `None` where nobody is held: the rest are all.
    merged: Option<Vec<Neighbor>>,
    knn: NeighborDistribution,
}

impl Answer {
    /// From the first search. What a gate says of it holds: who is held changes how its neighbours weigh, not how much neighbours are to be
    /// trusted.
    fn of(rest: Vec<Neighbor>, ask: &Ask<'_>) -> Self {
        let knn = &ask.pinned.knn;
        let kernels = match knn.gate.filter(|_| !rest.is_empty()) {
            None => vec![(1.0, *knn)],
            Some(gate) => gate.shares(&ask.features(&rest)).into_iter().zip(knn.kernels()).collect(),
        };
        Self { rest, held: Vec::new(), kernels, searches: 1 }
    }

    /// Part of the mass that those outside the held sources have.
    fn rest_mass(&self, cap: f64) -> f64 {
        (1.0 - cap * self.held.len() as f64).max(0.0)
    }

    fn neighbors<'a>(&'a self, weighed: &'a Weighed) -> &'a [Neighbor] {
        weighed.merged.as_deref().unwrap_or(&self.rest)
    }

    /// Sources among the rest that are above the cap, nearest first.
    fn above(&self, ask: &Ask<'_>, weighed: &Weighed) -> Vec<SourceId> {
        let Pinned { snapshot, influence_cap, .. } = ask.pinned;
        // What is left to the model is nobody's.
        if *influence_cap >= 1.0 || weighed.knn.mass() == 0.0 {
            return Vec::new();
        }
        let mut masses: Vec<(&SourceId, f64)> = Vec::new();
        for (neighbor, weight) in self.neighbors(weighed).iter().zip(weighed.knn.weights()) {
            let source = snapshot.source_of(neighbor.shard);
            match masses.iter_mut().find(|(known, _)| *known == source) {
                Some((_, mass)) => *mass += weight,
                None => masses.push((source, *weight)),
            }
        }
        let shares: f64 = self.kernels.iter().map(|(share, _)| share).sum();
        // What the cap leaves them: 1, unless only sources that are held are left.
        let part = weighed.knn.mass() / shares;
        let held = |source: &SourceId| self.held.iter().any(|(known, _)| known == source);
        let is_above = |mass: f64| part * mass > *influence_cap * (1.0 + ROUNDING);
        let more = masses.into_iter().filter(|(source, mass)| is_above(*mass) && !held(source));
        more.map(|(source, _)| source.clone()).collect()
    }

    /// All neighbours, and how they weigh: if nobody is above the cap then, that is the answer.
    fn weigh(&self, ask: &Ask<'_>) -> Weighed {
        if self.held.is_empty() {
            return Weighed { merged: None, knn: NeighborDistribution::blended(&self.rest, &self.kernels) };
        }
        let cap = ask.pinned.influence_cap;
        let rest = (self.rest_mass(cap), &self.rest[..]);
        let held = self.held.iter().map(|(_, neighbors)| (cap, &neighbors[..]));
        let (merged, knn) = NeighborDistribution::of_parts(&held.chain([rest]).collect::<Vec<_>>(), &self.kernels);
        Weighed { merged: Some(merged), knn }
    }

    fn finish(self, Weighed { merged, knn }: Weighed) -> Found {
        let capped = self.held.into_iter().map(|(source, _)| source).collect();
        Found { neighbors: merged.unwrap_or(self.rest), knn, capped, searches: self.searches }
    }
}

/// Sums of weights miss what they stand for by less: who just meets the cap is not above it.
const ROUNDING: f64 = 1e-9;

/// A further search for the token of that place: for those of a source alone, or for the rest.
struct Search {
    ask: usize,
    alone: Option<SourceId>,
    mask: ShardMask,
}

/// Finds the neighbours of tokens. Also gives the epoch that all answers are of; `None` if there is none such.
pub(crate) fn find(store: &dyn Datastore, asks: &[Ask<'_>]) -> Result<(Vec<Found>, Option<Epoch>), SearchError> {
    if asks.is_empty() {
        return Ok((Vec::new(), Some(store.snapshot().epoch)));
    }
    let first: Vec<NeighborQuery<'_>> = asks.iter().map(|ask| ask.query(&ask.pinned.knn_mask)).collect();
    let (found, epoch) = store.neighbors_as_of(&first)?;
    let mut as_of = Some(epoch);
    let mut answers: Vec<Answer> = asks.iter().zip(found).map(|(ask, rest)| Answer::of(rest, ask)).collect();
    let mut weighed: Vec<Weighed> = asks.iter().zip(&answers).map(|(ask, answer)| answer.weigh(ask)).collect();
    loop {
        let each = asks.iter().zip(answers.iter().zip(&weighed)).enumerate();
        let searches: Vec<Search> =
            each.flat_map(|(i, (ask, (answer, weighed)))| hold(i, ask, answer, weighed)).collect();
        if searches.is_empty() {
            break;
        }
        let queries: Vec<NeighborQuery<'_>> = searches.iter().map(|s| asks[s.ask].query(&s.mask)).collect();
        let (found, epoch) = store.neighbors_as_of(&queries)?;
        as_of = as_of.filter(|before| *before == epoch);
        let mut changed: Vec<usize> = Vec::new();
        for (search, neighbors) in searches.into_iter().zip(found) {
            let answer = &mut answers[search.ask];
            answer.searches += 1;
            match search.alone {
                Some(source) => answer.held.push((source, neighbors)),
                None => answer.rest = neighbors,
            }
            changed.push(search.ask);
        }
        changed.dedup();
        changed.into_iter().for_each(|i| weighed[i] = answers[i].weigh(&asks[i]));
    }
    Ok((answers.into_iter().zip(weighed).map(|(answer, weighed)| answer.finish(weighed)).collect(), as_of))
}

/// The searches that an answer still needs: none, if no source is above the cap.
fn hold(i: usize, ask: &Ask<'_>, answer: &Answer, weighed: &Weighed) -> Vec<Search> {
    let above = answer.above(ask, weighed);
    if above.is_empty() {
        return Vec::new();
    }
    let (snapshot, mask) = (&ask.pinned.snapshot, &ask.pinned.knn_mask);
    let held: Vec<&SourceId> = answer.held.iter().map(|(source, _)| source).chain(&above).collect();
    let rest = mask.and(|shard| !held.contains(&snapshot.source_of(shard)));
    let alone = above.iter().map(|source| Search {
        ask: i,
        alone: Some(source.clone()),
        mask: mask.and(|shard| snapshot.source_of(shard) == source),
    });
    alone.chain([Search { ask: i, alone: None, mask: rest }]).collect()
}

impl Ask<'_> {
    fn query<'a>(&'a self, mask: &'a ShardMask) -> NeighborQuery<'a> {
        let Pinned { snapshot, knn, .. } = self.pinned;
        let text = &self.text[self.text.len().saturating_sub(knn.match_tokens)..];
        NeighborQuery { snapshot, mask, key: self.key, k: knn.k, text }
    }

    /// What a gate knows where these are the neighbours.
    fn features(&self, neighbors: &[Neighbor]) -> GateFeatures {
        let knn = NeighborDistribution::new(neighbors, &self.pinned.knn);
        let model_entropy = mixture::entropy(mixture::log_softmax(self.logits).into_iter());
        Gate::features(neighbors.iter().map(|n| n.distance), [model_entropy, knn.entropy()], knn.tokens().len())
    }
}
