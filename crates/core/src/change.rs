//! What happened to a store, as its log of changes says it.

use serde::{Deserialize, Serialize};

use crate::{ContentHash, Epoch, OptOutAction, OptOutState, Permissions, ReasonCode, RootHash, SourceId, Term, Tier};

/// An entry of the log of changes. Its JSON text, as it was written first, is a leaf of the Merkle log: it is never written anew.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChangeEntry {
    /// When, in milliseconds since 1970; never less than that of the entry before it.
    pub at_unix_ms: i64,
    /// Who did it: the name of a caller, or `silo` for what the store did by itself.
    pub actor: String,
    /// What was done.
    pub change: Change,
}

/// A change. Nothing in it is text or a place of text: it outlives what was withdrawn.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Change {
    /// A source was declared.
    CreateSource {
        /// Its name.
        source: SourceId,
        /// Its licence.
        licence: String,
        /// Its tier.
        tier: Tier,
    },
    /// A shard was added.
    AddShard {
        /// Its number.
        shard: u64,
        /// Its documents.
        documents: DocumentSet,
        /// The store after it.
        state: StoreState,
    },
    /// A shard has other files with the same documents.
    RebuildShard {
        /// Its number.
        shard: u64,
        /// The store after it.
        state: StoreState,
    },
    /// Something was withdrawn for good.
    Remove {
        /// Number of the withdrawal.
        removal: u64,
        /// How it was asked for: `shard`, `source`, `documents`, `uri-prefix`.
        selector: String,
        /// What has left the store by it, source by source.
        documents: Vec<DocumentSet>,
        /// Root before it.
        root_before: RootHash,
        /// The store after it.
        state: StoreState,
    },
    /// A shard was taken out of what is retrieved.
    SuspendShard {
        /// Its number.
        shard: u64,
        /// The store after it.
        state: StoreState,
    },
    /// A shard was put back.
    ResumeShard {
        /// Its number.
        shard: u64,
        /// The store after it.
        state: StoreState,
    },
    /// Documents were withheld: they stay in the store, and are not retrieved until they are released.
    Hold {
        /// Number of the hold, among the withdrawals.
        hold: u64,
        /// What was withheld, source by source.
        documents: Vec<DocumentSet>,
        /// The store after it.
        state: StoreState,
    },
    /// What was withheld was put back, but for what other holds withhold.
    Release {
        /// Number of the hold.
        hold: u64,
        /// The store after it.
        state: StoreState,
    },
    /// What a source may be used for has changed, or its term has begun or ended.
    UpdateSource {
        /// Its name.
        source: SourceId,
        /// What is permitted since.
        permissions: Permissions,
        /// From when until when.
        term: Term,
        /// SHA-256 of the files that say something about it.
        signals: Vec<ContentHash>,
        /// The store after it.
        state: StoreState,
    },
    /// A step of an opt-out request.
    OptOut {
        /// Number of the request.
        request: u64,
        /// What was done.
        action: OptOutAction,
        /// What the request is since.
        becomes: OptOutState,
        /// Why.
        reason: ReasonCode,
    },
    /// A shard's files were found damaged.
    Quarantine {
        /// Its number.
        shard: u64,
        /// The store after it.
        state: StoreState,
    },
    /// A shard's files were mended.
    Repair {
        /// Its number.
        shard: u64,
        /// The store after it.
        state: StoreState,
    },
    /// The store was opened, and what can be retrieved is not what the entries before say: it is new, was restored from a backup, or
    /// has shards that cannot be retrieved from.
    Open {
        /// The store as it is.
        state: StoreState,
    },
    /// Since when a withdrawal could not be undone by a crash, and since when no search found what it took.
    InForce {
        /// Number of the withdrawal.
        removal: u64,
        /// In milliseconds since 1970.
        durable_at_unix_ms: i64,
        /// In milliseconds since 1970.
        effective_at_unix_ms: i64,
    },
    /// The bytes of what was withdrawn are gone from all files of the store.
    Purge {
        /// Numbers of the withdrawals.
        removals: Vec<u64>,
    },
    /// It was stated and signed what a source gave to answers.
    Statement {
        /// The source.
        source: SourceId,
        /// From when until before when, in milliseconds since 1970.
        from_unix_ms: i64,
        #[allow(missing_docs, reason = "see above")]
        to_unix_ms: i64,
        /// SHA-256 of the report as the statement has it.
        report: ContentHash,
    },
}

/// A store as the logical content says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoreState {
    /// The epoch.
    pub epoch: Epoch,
    /// Root of what can be retrieved ([`crate::merkle`]).
    pub root: RootHash,
    /// The model that the store is bound to.
    pub model: ContentHash,
    /// The recipe.
    pub recipe: ContentHash,
}

/// Documents of one source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DocumentSet {
    /// The source.
    pub source: SourceId,
    /// How many there are.
    pub n_documents: u64,
    /// SHA-256 of their hashes, sorted, one after the other.
    pub digest: ContentHash,
}

impl DocumentSet {
    /// Documents, by their sorted hashes.
    pub fn of(source: SourceId, hashes: &[ContentHash]) -> Self {
        debug_assert!(hashes.is_sorted_by(|a, b| a < b), "document hashes are a sorted set");
        let digest = ContentHash::of(hashes.iter().map(|h| h.0).collect::<Vec<_>>().as_flattened());
        Self { source, n_documents: hashes.len() as u64, digest }
    }
}

impl Change {
    /// The store after it, if it may have changed what is retrieved.
    pub fn state(&self) -> Option<&StoreState> {
        match self {
            Self::AddShard { state, .. }
            | Self::RebuildShard { state, .. }
            | Self::Remove { state, .. }
            | Self::SuspendShard { state, .. }
            | Self::ResumeShard { state, .. }
            | Self::Hold { state, .. }
            | Self::Release { state, .. }
            | Self::UpdateSource { state, .. }
            | Self::Quarantine { state, .. }
            | Self::Repair { state, .. }
            | Self::Open { state } => Some(state),
            Self::CreateSource { .. }
            | Self::InForce { .. }
            | Self::Purge { .. }
            | Self::OptOut { .. }
            | Self::Statement { .. } => None,
        }
    }
}
