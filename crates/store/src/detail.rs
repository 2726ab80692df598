//! A shard as its keepers see it: what is retrieved from it, and what its files hold.

use silo_core::ShardId;

use crate::files::read_manifest;
use crate::live_shard::LiveShard;
use crate::{Manifest, ShardRecord, ShardState, Store, StoreError};

/// A shard as its keepers see it.
#[derive(Debug, Clone, PartialEq)]
pub struct ShardDetail {
    /// Its row in the catalog; the counts there are those of its files.
    pub record: ShardRecord,
    /// Why it cannot be retrieved from, if it cannot.
    pub unavailable: Option<String>,
    /// Documents that are not withdrawn.
    pub n_documents: u64,
    /// Their tokens; those of the files, if the files cannot be read.
    pub n_tokens: u64,
    /// Their entries; likewise.
    pub n_entries: u64,
    /// Documents among them that are withheld: kept, and not retrieved until they are released.
    pub n_withheld: u64,
    /// Size of its files; 0 if there is none, or they cannot be read.
    pub n_bytes: u64,
}

impl Store {
    /// A shard as its keepers see it.
    pub fn detail(&self, id: ShardId) -> Result<ShardDetail, StoreError> {
        Ok(self.detail_of(self.shard(id)?))
    }

    /// All shards that ever were, as their keepers see them.
    pub fn details(&self) -> Result<Vec<ShardDetail>, StoreError> {
        Ok(self.shards()?.into_iter().map(|r| self.detail_of(r)).collect())
    }

    fn detail_of(&self, record: ShardRecord) -> ShardDetail {
        let live = self.live();
        let unavailable = live.unavailable.get(&record.id).cloned();
        if record.state == ShardState::Removed {
            let files = read_manifest(&self.directory(&record.directory)).ok();
            let n_bytes = files.map_or(0, |(manifest, _)| bytes(&manifest));
            return ShardDetail {
                record,
                unavailable,
                n_documents: 0,
                n_tokens: 0,
                n_entries: 0,
                n_withheld: 0,
                n_bytes,
            };
        }
        let open = live.shards.get(&record.id).or_else(|| live.suspended.get(&record.id));
        let less = open.map_or((0, 0), LiveShard::withdrawn_counts);
        ShardDetail {
            unavailable,
            n_documents: record.n_documents.saturating_sub(record.withdrawn.len()),
            // The row and what is live are read one after the other, and may be of two moments.
            n_tokens: record.n_tokens.saturating_sub(less.0),
            n_entries: record.n_entries.saturating_sub(less.1),
            n_withheld: open.map_or(0, |s| s.withheld.len()),
            n_bytes: open.map_or(0, |s| bytes(s.shard.manifest())),
            record,
        }
    }
}

fn bytes(manifest: &Manifest) -> u64 {
    manifest.files.values().map(|f| f.bytes).sum()
}
