//! Who made a token, and a text.

use std::collections::HashMap;

use silo_core::mixture::{self, NeighborDistribution};
use silo_core::{ContentHash, Neighbor, NeighborSearch, Permissions, ShardId, ShardIndex, SourceId, TokenId};

use crate::sequence::Pinned;

/// How finely a token is credited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Depth {
    /// To sources.
    #[default]
    Sources,
    /// And to their documents.
    Documents,
    /// And to single neighbours.
    Neighbors,
}

/// Where a share comes from.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DocumentId {
    /// Source.
    pub source: SourceId,
    /// Shard.
    pub shard: ShardId,
    /// SHA-256 of the document's text.
    pub document: ContentHash,
}

/// A neighbour whose value is the token.
#[derive(Debug, Clone, PartialEq)]
pub struct NeighborShare {
    /// Where it lies.
    pub id: DocumentId,
    /// What its source may be used for: where it stands says what stands there.
    pub permissions: Permissions,
    /// Position of its key in the document, in tokens.
    pub position: u32,
    /// Squared L2 distance.
    pub distance: f32,
    /// Its share.
    pub share: f64,
}

/// The shares in p of a token. With the model's, those of each level sum to 1.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TokenCredit {
    /// Share of the model.
    pub parametric: f64,
    /// Shares of sources, in the order in which the neighbours name them.
    pub sources: Vec<(SourceId, f64)>,
    /// Shares of documents, if asked for. Less than those of the sources if something was withdrawn a moment ago.
    pub documents: Vec<(DocumentId, f64)>,
    /// Shares of neighbours, nearest first, if asked for.
    pub neighbors: Vec<NeighborShare>,
}

/// What a source gave to a text.
#[derive(Debug, Clone, PartialEq)]
pub struct SourceCredit {
    /// The source.
    pub source: SourceId,
    /// Its share, summed over the tokens.
    pub total: f64,
    /// Tokens in which it had one.
    pub n_tokens: u64,
}

/// Who made a text.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Credit {
    /// Share of the model, summed over the tokens.
    pub parametric: f64,
    /// That of each source.
    pub sources: Vec<SourceCredit>,
    /// That of each document, if asked for.
    pub documents: HashMap<DocumentId, f64>,
}

impl Credit {
    /// Adds a token.
    pub fn add(&mut self, token: &TokenCredit) {
        self.parametric += token.parametric;
        for (source, share) in &token.sources {
            match self.sources.iter_mut().find(|credit| credit.source == *source) {
                Some(credit) => (credit.total, credit.n_tokens) = (credit.total + share, credit.n_tokens + 1),
                None => self.sources.push(SourceCredit { source: source.clone(), total: *share, n_tokens: 1 }),
            }
        }
        for (id, share) in &token.documents {
            *self.documents.entry(id.clone()).or_default() += share;
        }
    }
}

/// The shares in p of a token that was made from what a request sees.
pub(crate) fn credit(
    (store, pinned, depth): (&dyn NeighborSearch, &Pinned, Depth),
    log_p_lm: f64,
    (neighbors, knn): (&[Neighbor], &NeighborDistribution),
    token: TokenId,
) -> TokenCredit {
    let weight = pinned.knn.knn_weight;
    let snapshot = &pinned.snapshot;
    let by_source = mixture::shares(log_p_lm, neighbors, knn, weight, token, |n| snapshot.source_of(n.shard));
    let mut out = TokenCredit {
        parametric: by_source.parametric,
        sources: by_source.sources.into_iter().map(|(source, share)| (source.clone(), share)).collect(),
        documents: Vec::new(),
        neighbors: Vec::new(),
    };
    if depth == Depth::Sources {
        return out;
    }
    let each = mixture::neighbor_shares(log_p_lm, neighbors, knn, weight, token);
    let place = |(i, share): (usize, f64)| Some((neighbors[i], store.place(snapshot, &neighbors[i])?, share));
    let mut placed: Vec<(Neighbor, (ContentHash, u32), f64)> = each.into_iter().filter_map(place).collect();
    let id = |shard: ShardIndex, document| {
        let view = &snapshot.shards[shard.0 as usize];
        DocumentId { source: view.source.id.clone(), shard: view.id, document }
    };
    if depth == Depth::Neighbors {
        let neighbor = |(n, (document, position), share): &(Neighbor, (ContentHash, u32), f64)| NeighborShare {
            id: id(n.shard, *document),
            permissions: snapshot.shards[n.shard.0 as usize].source.permissions,
            position: *position,
            distance: n.distance,
            share: *share,
        };
        out.neighbors = placed.iter().map(neighbor).collect();
    }
    // Those of a document one after the other, in the order of the neighbours.
    placed.sort_by_key(|(n, (document, _), _)| (n.shard, *document));
    let same = |a: &(Neighbor, (ContentHash, u32), f64), b: &(Neighbor, (ContentHash, u32), f64)| {
        (a.0.shard, a.1.0) == (b.0.shard, b.1.0)
    };
    let document = |of: &[(Neighbor, (ContentHash, u32), f64)]| {
        (id(of[0].0.shard, of[0].1.0), of.iter().map(|(_, _, share)| share).sum())
    };
    out.documents = placed.chunk_by(same).map(document).collect();
    out
}
