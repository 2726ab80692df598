//! What is retrieved from a snapshot.

use std::sync::Arc;

use crate::{ContentHash, Epoch, ShardIndex, ShardMask, Snapshot, SourceId, SpanSearch, TokenId};

/// One neighbour of a query.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Neighbor {
    /// Squared L2 distance to the query.
    pub distance: f32,
    /// The token that followed the entry's context.
    pub value: TokenId,
    /// Its shard, as a place in the query's snapshot.
    pub shard: ShardIndex,
    /// Its row in the shard: good for looking it up, also after other documents of the shard are gone; not for ordering or showing.
    pub row: u32,
    /// How many tokens before the value are the last ones of the query's text, counted back from the last up to the first that differs.
    pub matched: u16,
}

/// One question for neighbours.
#[derive(Clone, Copy)]
pub struct NeighborQuery<'a> {
    /// The store as the request sees it.
    pub snapshot: &'a Snapshot,
    /// What of it the request may see.
    pub mask: &'a ShardMask,
    /// The key.
    pub key: &'a [f32],
    /// At most this many neighbours.
    pub k: usize,
    /// The last tokens of the text that goes on, as many as are to be compared with those before each neighbour's value; it changes nothing else.
    pub text: &'a [TokenId],
}

/// Why a search failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SearchError {
    /// The query's key has another length than the store's.
    #[error("the query has {got} dimensions, the store's keys have {expected}")]
    Dimension {
        /// The query's.
        got: usize,
        /// The store's.
        expected: usize,
    },
    /// The passage index failed.
    #[error("passages could not be searched: {reason}")]
    Passages {
        /// What went wrong.
        reason: String,
    },
}

/// Where an entry or passage comes from: its logical id, and the tokens around it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Source.
    pub source: SourceId,
    /// Document.
    pub document: ContentHash,
    /// Position of the key in the document, in tokens: the entry's value is the next one.
    pub position: u32,
    /// URI of the document.
    pub uri: String,
    /// Title of the document.
    pub title: String,
    /// Text before the value, at most as much as was asked for.
    pub context: String,
    /// The value as text.
    pub continuation: String,
}

/// Nearest-neighbour search.
///
/// Contract: for each query at most k neighbours, nearest first, ties by logical id (source, document hash, position), strict
/// also at the k-th place; only entries that are live and that the query's mask shows, filtered before the search, so that
/// a small allowed source among many still gives k; a shard that has been removed gives nothing, also to a snapshot that still
/// lists it. What a query gets does not depend on the other queries of the call.
pub trait NeighborSearch: Send + Sync {
    /// Answers a batch of queries.
    fn neighbors(&self, queries: &[NeighborQuery<'_>]) -> Result<Vec<Vec<Neighbor>>, SearchError> {
        Ok(self.neighbors_as_of(queries)?.0)
    }

    /// The same, and the epoch that they are answers of: a query with that epoch's snapshot, if it lists the same shards, gets the same.
    fn neighbors_as_of(&self, queries: &[NeighborQuery<'_>]) -> Result<(Vec<Vec<Neighbor>>, Epoch), SearchError>;

    /// The document of a neighbour, and the position of its key there; `None` if it is no longer live.
    fn place(&self, snapshot: &Snapshot, neighbor: &Neighbor) -> Option<(ContentHash, u32)>;

    /// Describes a neighbour with up to `context_tokens` of the text before it; `None` if it is no longer live.
    fn entry(&self, snapshot: &Snapshot, neighbor: &Neighbor, context_tokens: usize) -> Option<Entry>;
}

/// One question for passages.
#[derive(Clone, Copy)]
pub struct PassageQuery<'a> {
    /// The store as the request sees it.
    pub snapshot: &'a Snapshot,
    /// What of it the request may see.
    pub mask: &'a ShardMask,
    /// The text to find passages for.
    pub text: &'a str,
    /// At most this many passages.
    pub k: usize,
}

/// A ranked passage.
#[derive(Debug, Clone, PartialEq)]
pub struct Passage {
    /// BM25 score over the statistics of what the query may see.
    pub score: f64,
    /// Its shard, as a place in the query's snapshot.
    pub shard: ShardIndex,
    /// Document that it is cut from.
    pub document: ContentHash,
    /// First token of the passage in the document.
    pub start: u32,
    /// Its tokens, by the tokenizer of the shard's model.
    pub tokens: Vec<TokenId>,
    /// URI of the document.
    pub uri: String,
    /// Title of the document.
    pub title: String,
}

/// Passage search.
///
/// Contract: at most k passages, best first, ties by logical id (source, document hash, start); only what is live and visible;
/// document frequency, count and average length are those of the visible live set, so that neither removed text nor hidden
/// sources show through scores.
pub trait PassageSearch: Send + Sync {
    /// Answers one query.
    fn passages(&self, query: &PassageQuery<'_>) -> Result<Vec<Passage>, SearchError>;
}

/// All that the engine asks of a store.
pub trait Datastore: NeighborSearch + PassageSearch + SpanSearch + SnapshotProvider {}

impl<T: NeighborSearch + PassageSearch + SpanSearch + SnapshotProvider> Datastore for T {}

/// Where snapshots come from.
pub trait SnapshotProvider: Send + Sync {
    /// The store now.
    fn snapshot(&self) -> Arc<Snapshot>;

    /// Whether everything of `snapshot` that `mask` shows is still live; decided anew at the emission of each token.
    fn is_live(&self, snapshot: &Snapshot, mask: &ShardMask) -> bool;
}
