//! What is found for a token, with no source above the cap on its influence.
//!
//! A source s whose part m_s of the neighbour softmax would be more than the cap c gets exactly c: its neighbours, searched for alone, weigh
//! c, and the others, searched for without it, 1 − c. All sources above c are held at once; where another is above c then, it is held too, and
//! so on; there are at most 1/c of them. If nothing else is left, what they do not have is the model's. So no more than w·c of a distribution is any
//! one source's, and each search is one that a store without the others would answer alike. Where a gate leaves neighbours a part t of w, all of that
//! is of w·t instead of w.

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
    searches: u64,
}

impl Answer {
    /// Part of the mass that those outside the held sources have.
    fn rest_mass(&self, cap: f64) -> f64 {
        (1.0 - cap * self.held.len() as f64).max(0.0)
    }

    /// Sources among the rest that are above the cap, nearest first.
    fn above(&self, ask: &Ask<'_>) -> Vec<SourceId> {
        let Pinned { snapshot, influence_cap, .. } = ask.pinned;
        if *influence_cap >= 1.0 {
            return Vec::new();
        }
        let Weighed { neighbors, knn, part } = self.weigh(ask);
        let mut masses: Vec<(&SourceId, f64)> = Vec::new();
        for (neighbor, weight) in neighbors.iter().zip(knn.weights()) {
            let source = snapshot.source_of(neighbor.shard);
            match masses.iter_mut().find(|(known, _)| *known == source) {
                Some((_, mass)) => *mass += weight,
                None => masses.push((source, *weight)),
            }
        }
        let held = |source: &SourceId| self.held.iter().any(|(known, _)| known == source);
        let more = masses.into_iter().filter(|(source, mass)| part * mass > *influence_cap && !held(source));
        more.map(|(source, _)| source.clone()).collect()
    }

    /// All neighbours, and how they weigh: if nobody is above the cap then, that is the answer.
    fn weigh(&self, ask: &Ask<'_>) -> Weighed {
        let Pinned { knn: parameters, influence_cap, .. } = ask.pinned;
        let (neighbors, knn) = self.at(*influence_cap, parameters);
        let part = knn.mass();
        let Some(gate) = parameters.gate.filter(|_| !neighbors.is_empty()) else {
            return Weighed { neighbors, knn, part };
        };
        let [sharp, broad] = gate.shares(&ask.features(&neighbors, &knn));
        let kernels = parameters.kernels().map(|kernel| self.at(*influence_cap, &kernel).1);
        let [of_sharp, of_broad] = kernels;
        let knn = NeighborDistribution::blend(&neighbors, [(sharp, of_sharp), (broad, of_broad)]);
        Weighed { neighbors, knn, part }
    }

    /// All neighbours, and how they weigh at one temperature.
    fn at(&self, cap: f64, knn: &KnnParameters) -> (Vec<Neighbor>, NeighborDistribution) {
        if self.held.is_empty() {
            return (self.rest.clone(), NeighborDistribution::new(&self.rest, knn));
        }
        let rest = (self.rest_mass(cap), &self.rest[..]);
        let held = self.held.iter().map(|(_, neighbors)| (cap, &neighbors[..]));
        NeighborDistribution::of_parts(&held.chain([rest]).collect::<Vec<_>>(), knn)
    }

    fn finish(self, ask: &Ask<'_>) -> Found {
        let Weighed { neighbors, knn, .. } = self.weigh(ask);
        let capped = self.held.into_iter().map(|(source, _)| source).collect();
        Found { neighbors, knn, capped, searches: self.searches }
    }
}

/// Neighbours, nearest first, and how they weigh.
struct Weighed {
    neighbors: Vec<Neighbor>,
    knn: NeighborDistribution,
    /// What a cap leaves them of the part that a gate does: 1, unless only sources that are held are left.
    part: f64,
}

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
    let mut answers: Vec<Answer> =
        found.into_iter().map(|rest| Answer { rest, held: Vec::new(), searches: 1 }).collect();
    loop {
        let searches: Vec<Search> =
            asks.iter().zip(&answers).enumerate().flat_map(|(i, (ask, answer))| hold(i, ask, answer)).collect();
        if searches.is_empty() {
            break;
        }
        let queries: Vec<NeighborQuery<'_>> = searches.iter().map(|s| asks[s.ask].query(&s.mask)).collect();
        let (found, epoch) = store.neighbors_as_of(&queries)?;
        as_of = as_of.filter(|before| *before == epoch);
        for (search, neighbors) in searches.into_iter().zip(found) {
            let answer = &mut answers[search.ask];
            answer.searches += 1;
            match search.alone {
                Some(source) => answer.held.push((source, neighbors)),
                None => answer.rest = neighbors,
            }
        }
    }
    Ok((asks.iter().zip(answers).map(|(ask, answer)| answer.finish(ask)).collect(), as_of))
}

/// The searches that an answer still needs: none, if no source is above the cap.
fn hold(i: usize, ask: &Ask<'_>, answer: &Answer) -> Vec<Search> {
    let above = answer.above(ask);
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

    /// What a gate knows where these are the neighbours, which weigh so at `knn_temperature`.
    fn features(&self, neighbors: &[Neighbor], knn: &NeighborDistribution) -> GateFeatures {
        let model_entropy = mixture::entropy(mixture::log_softmax(self.logits).into_iter());
        Gate::features(neighbors.iter().map(|n| n.distance), [model_entropy, knn.entropy()], knn.tokens().len())
    }
}
