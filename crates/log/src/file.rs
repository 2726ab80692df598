//! The hashes of a tree in a file.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use silo_core::merkle::Hash;

use crate::LogError;
use crate::tree::{self, StoredHashes};

const HASH_BYTES: u64 = 32;

/// Hashes that are written to the file at once.
const BATCH: usize = 1 << 15;

/// The stored hashes of a tree, 32 bytes each, appended and never changed. The file can be made anew from the leaves at any time: what a crash
/// left of an append that was cut off is cut away when it is opened.
#[derive(Debug)]
pub struct HashFile {
    path: PathBuf,
    file: File,
    n_leaves: u64,
    /// Not in the file yet.
    fresh: Vec<Hash>,
    n_written: u64,
}

impl StoredHashes for HashFile {
    type Error = LogError;

    fn get(&self, place: u64) -> Result<Hash, LogError> {
        if place >= self.n_written {
            let fresh = self.fresh.get((place - self.n_written) as usize);
            let none = || LogError::Proof(format!("the log has {} leaves only", self.n_leaves));
            return fresh.copied().ok_or_else(none);
        }
        let mut hash = Hash::default();
        self.file.read_exact_at(&mut hash, place * HASH_BYTES).map_err(LogError::io(&self.path))?;
        Ok(hash)
    }
}

impl HashFile {
    /// Opens the file, or makes it.
    pub fn open(path: &Path) -> Result<Self, LogError> {
        let options = || OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
        let file = options().map_err(LogError::io(path))?;
        let length = file.metadata().map_err(LogError::io(path))?.len();
        let n_leaves = tree::n_leaves(length / HASH_BYTES);
        let n_written = tree::n_stored(n_leaves);
        file.set_len(n_written * HASH_BYTES).map_err(LogError::io(path))?;
        Ok(Self { path: path.to_owned(), file, n_leaves, fresh: Vec::new(), n_written })
    }

    /// How many leaves it has.
    pub fn n_leaves(&self) -> u64 {
        self.n_leaves
    }

    /// Forgets all.
    pub fn clear(&mut self) -> Result<(), LogError> {
        (self.n_leaves, self.n_written) = (0, 0);
        self.fresh.clear();
        self.file.set_len(0).map_err(LogError::io(&self.path))
    }

    /// Appends leaves.
    pub fn append<'a>(&mut self, leaves: impl IntoIterator<Item = &'a [u8]>) -> Result<(), LogError> {
        for leaf in leaves {
            let mut more = tree::appended(self, self.n_leaves, leaf)?;
            self.fresh.append(&mut more);
            self.n_leaves += 1;
            if self.fresh.len() >= BATCH {
                self.write()?;
            }
        }
        self.write()
    }

    fn write(&mut self) -> Result<(), LogError> {
        let bytes = self.fresh.as_flattened();
        self.file.write_all_at(bytes, self.n_written * HASH_BYTES).map_err(LogError::io(&self.path))?;
        self.n_written += self.fresh.len() as u64;
        self.fresh.clear();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_cut_off_is_appended_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("hashes");
        let leaves: Vec<Vec<u8>> = (0..50u32).map(|i| i.to_le_bytes().to_vec()).collect();
        let slices = |range: std::ops::Range<usize>| leaves[range].iter().map(Vec::as_slice).collect::<Vec<_>>();
        let mut whole = HashFile::open(&path).unwrap();
        whole.append(slices(0..50)).unwrap();
        let root = tree::root(&whole, 50).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        for length in (0..bytes.len()).step_by(37) {
            std::fs::write(&path, &bytes[..length]).unwrap();
            let mut file = HashFile::open(&path).unwrap();
            let n = file.n_leaves();
            file.append(slices(n as usize..50)).unwrap();
            assert_eq!(tree::root(&file, 50).unwrap(), root, "{length} bytes were left");
            assert_eq!(std::fs::read(&path).unwrap(), bytes);
        }
        assert!(tree::root(&whole, 51).is_err());
    }
}
