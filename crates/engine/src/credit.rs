//! Who made a token, and a text.

use std::collections::HashMap;

use silo_core::mixture;
use silo_core::{
    ContentHash, Neighbor, NeighborSearch, Passage, Permissions, ShardId, ShardIndex, Snapshot, SourceId, TokenId,
};

use crate::found::Found;
use crate::pinned::Pinned;

/// A passage that stood before a text.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PassageId {
    /// Its document.
    pub document: DocumentId,
    /// Its first token in the document.
    pub start: u32,
}

impl PassageId {
    pub(crate) fn of(passage: &Passage, snapshot: &Snapshot) -> Self {
        let view = &snapshot.shards[passage.shard.0 as usize];
        let document = DocumentId { source: view.source.id.clone(), shard: view.id, document: passage.document };
        Self { document, start: passage.start }
    }
}

/// A token with one passage fewer before the text: a leave-one-out figure, and no share. Those of several passages add up to nothing in
/// particular, since each may stand in for another.
#[derive(Debug, Clone, PartialEq)]
pub struct LeftOut {
    /// The passage.
    pub passage: PassageId,
    /// log p of the token where all is the same but for this passage, neighbours of the key that follows from that included.
    pub log_probability: f64,
}

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
    /// Sources that the cap held at this token, whatever their share in the token is.
    pub capped: Vec<SourceId>,
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
    /// Tokens at which the cap held it.
    pub n_capped: u64,
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
    /// Of each passage, if asked for: by how much log p of the tokens was greater with it than without, summed; and how many they were.
    pub passages: HashMap<PassageId, (f64, u64)>,
}

impl Credit {
    /// Adds a token.
    pub fn add(&mut self, token: &TokenCredit) {
        self.parametric += token.parametric;
        for (source, share) in &token.sources {
            let credit = self.of(source);
            (credit.total, credit.n_tokens) = (credit.total + share, credit.n_tokens + 1);
        }
        for source in &token.capped {
            self.of(source).n_capped += 1;
        }
        for (id, share) in &token.documents {
            *self.documents.entry(id.clone()).or_default() += share;
        }
    }
}

impl Credit {
    /// Adds what passages did to a token of this log p.
    pub fn add_passages(&mut self, log_probability: f64, left_out: &[LeftOut]) {
        for one in left_out {
            let (difference, n_tokens) = self.passages.entry(one.passage.clone()).or_default();
            (*difference, *n_tokens) = (*difference + log_probability - one.log_probability, *n_tokens + 1);
        }
    }

    fn of(&mut self, source: &SourceId) -> &mut SourceCredit {
        let place = self.sources.iter().position(|credit| credit.source == *source);
        let place = place.unwrap_or_else(|| {
            self.sources.push(SourceCredit { source: source.clone(), total: 0.0, n_tokens: 0, n_capped: 0 });
            self.sources.len() - 1
        });
        &mut self.sources[place]
    }
}

/// The shares in p of a token that was made from what a request sees.
pub(crate) fn credit(
    (store, pinned, depth): (&dyn NeighborSearch, &Pinned, Depth),
    log_p_lm: f64,
    found: &Found,
    token: TokenId,
) -> TokenCredit {
    let weight = pinned.knn.knn_weight;
    let snapshot = &pinned.snapshot;
    let neighbors = &found.neighbors[..];
    let shares = mixture::shares(log_p_lm, neighbors, &found.knn, weight, token);
    let by_source = shares.by(|i| snapshot.source_of(neighbors[*i].shard));
    let mut out = TokenCredit {
        parametric: by_source.parametric,
        sources: by_source.parts.into_iter().map(|(source, share)| (source.clone(), share)).collect(),
        capped: found.capped.clone(),
        documents: Vec::new(),
        neighbors: Vec::new(),
    };
    if depth == Depth::Sources {
        return out;
    }
    let place = |(i, share): (usize, f64)| Some((neighbors[i], store.place(snapshot, &neighbors[i])?, share));
    let mut placed: Vec<(Neighbor, (ContentHash, u32), f64)> = shares.parts.into_iter().filter_map(place).collect();
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
