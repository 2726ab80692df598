//! The newest change, beside the catalog.
//!
//! A damaged write-ahead log ends where the damage is: SQLite goes on without the transactions after it, and without a word. An old copy of
//! the catalog in the place of the newest does the same. Either would bring back what was withdrawn. So each change is noted in a file of its own
//! before it is acknowledged, and a catalog that ends before it is not opened.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;

use serde::{Deserialize, Serialize};
use silo_core::{ContentHash, Epoch, ShardId};

use crate::StoreError;
use crate::write::sync_directory;

/// Name of the file, in the store's directory.
pub(crate) const HEAD: &str = "catalog.head";

/// The file has two lines of so many bytes, which are written in turn: a write that is cut off leaves the other one.
const LINE_BYTES: usize = 512;

/// The newest change that was acknowledged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Head {
    pub(crate) store_id: String,
    pub(crate) epoch: Epoch,
    pub(crate) last_shard: ShardId,
    /// Shards that are live or suspended.
    pub(crate) n_shards: u64,
    /// Number of the newest entry of the log of removals; 0 if there is none.
    pub(crate) removal: u64,
    /// Its chain, or the store's id.
    pub(crate) chain: String,
}

impl Head {
    /// Reads the newest whole line; `None` if there is no file.
    pub(crate) fn read(root: &Path) -> Result<Option<Self>, StoreError> {
        let path = root.join(HEAD);
        let bytes = match std::fs::read(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(StoreError::io(&path))?,
        };
        let newest = bytes.chunks(LINE_BYTES).filter_map(Self::from_line).max_by_key(|head| head.epoch);
        newest.map(Some).ok_or_else(|| StoreError::Head { path, reason: "none of its lines is whole".into() })
    }

    /// Whether a catalog that has `self` lacks what `acknowledged` says. What it lacks, in words.
    pub(crate) fn lacks(&self, acknowledged: &Self) -> Option<String> {
        let (own, other) = (self, acknowledged);
        if own.store_id != other.store_id {
            Some(format!("the catalog is that of store {}, not of {}", own.store_id, other.store_id))
        } else if own.epoch < other.epoch || own.removal < other.removal {
            Some(format!(
                "the catalog ends at epoch {} and withdrawal {}, but epoch {} and withdrawal {} were acknowledged",
                own.epoch, own.removal, other.epoch, other.removal
            ))
        } else if own.epoch == other.epoch && own.n_shards != other.n_shards {
            Some(format!("the catalog has {} shards, {} were acknowledged", own.n_shards, other.n_shards))
        } else if own.removal == other.removal && own.chain != other.chain {
            Some(format!("withdrawal {} is not the one that was acknowledged", own.removal))
        } else {
            None
        }
    }

    fn to_line(&self) -> Vec<u8> {
        let text = serde_json::to_string(self).expect("numbers and texts are JSON");
        let mut line = format!("{text} {}", ContentHash::of(text.as_bytes())).into_bytes();
        line.resize(LINE_BYTES - 1, b' ');
        line.push(b'\n');
        line
    }

    fn from_line(line: &[u8]) -> Option<Self> {
        let line = std::str::from_utf8(line).ok()?.trim_end();
        let (text, hash) = line.rsplit_once(' ')?;
        (ContentHash::of(text.as_bytes()).to_string() == hash).then(|| serde_json::from_str(text).ok())?
    }
}

/// The file while its store is open.
#[derive(Debug)]
pub(super) struct HeadFile {
    file: File,
    /// The line that is written next: not the newest.
    next: u64,
}

impl HeadFile {
    /// Opens or makes the file, with a first line that says what the catalog does.
    pub(super) fn open(root: &Path, own: &Head) -> Result<Self, StoreError> {
        let (path, new) = (root.join(HEAD), root.join("catalog.head.tmp"));
        // Both lines, under another name first: half a file would shut the store.
        let write = || {
            std::fs::write(&new, own.to_line().repeat(2))?;
            File::open(&new)?.sync_all()?;
            std::fs::rename(&new, &path)?;
            OpenOptions::new().write(true).open(&path)
        };
        let file = write().map_err(StoreError::io(&path))?;
        sync_directory(root)?;
        Ok(Self { file, next: 0 })
    }

    pub(super) fn write(&mut self, head: &Head) -> std::io::Result<()> {
        self.file.write_all_at(&head.to_line(), self.next * LINE_BYTES as u64)?;
        self.file.sync_data()?;
        self.next = 1 - self.next;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(epoch: u64) -> Head {
        let store_id = "a".to_owned();
        let (epoch, last_shard, n_shards) = (Epoch(epoch), ShardId(3), 2);
        Head { store_id, epoch, last_shard, n_shards, removal: epoch.0 / 2, chain: format!("{epoch}") }
    }

    #[test]
    fn any_damage_leaves_the_change_before_or_none() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(Head::read(root.path()).unwrap(), None);
        for epoch in 1..4 {
            drop(HeadFile::open(root.path(), &head(epoch)).unwrap());
            assert_eq!(Head::read(root.path()).unwrap(), Some(head(epoch)));
        }
        let mut file = HeadFile::open(root.path(), &head(3)).unwrap();
        file.write(&head(4)).unwrap();
        let path = root.path().join(HEAD);
        let whole = std::fs::read(&path).unwrap();
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            std::fs::write(&path, &bytes).unwrap();
            let found = Head::read(root.path()).unwrap().unwrap();
            assert!(found == head(4) || found == head(3), "{found:?}");
        }
        std::fs::write(&path, "nothing").unwrap();
        assert!(Head::read(root.path()).is_err());
    }

    #[test]
    fn what_a_catalog_lacks_is_said() {
        assert_eq!(head(4).lacks(&head(4)), None);
        assert_eq!(head(4).lacks(&head(2)), None, "a crash came between the catalog and its head");
        assert!(head(2).lacks(&head(4)).unwrap().contains("ends at epoch 2"));
        assert!(head(4).lacks(&Head { chain: "x".into(), ..head(4) }).unwrap().contains("not the one"));
        assert!(head(4).lacks(&Head { n_shards: 3, ..head(4) }).unwrap().contains("has 2 shards"));
        assert_eq!(head(6).lacks(&Head { n_shards: 3, ..head(4) }), None);
        assert!(head(4).lacks(&Head { store_id: "b".into(), ..head(4) }).unwrap().contains("store a"));
    }
}
