//! What is to be withdrawn.

use serde::{Deserialize, Serialize};

use crate::{ContentHash, ShardId, SourceId};

/// What is to be withdrawn. It is resolved once, to shards and documents that are there at that moment: what is added later is not
/// withdrawn by it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Selection {
    /// A shard.
    Shard(ShardId),
    /// All shards of a source.
    Source(SourceId),
    /// Documents of a source, by the hash of their text, in all shards that hold them.
    Documents {
        /// The source.
        source: SourceId,
        /// SHA-256 of each text.
        documents: Vec<ContentHash>,
    },
    /// Documents whose URI begins so.
    UriPrefix {
        /// Of this source only, or of all.
        source: Option<SourceId>,
        /// The beginning, byte by byte.
        prefix: String,
    },
}
