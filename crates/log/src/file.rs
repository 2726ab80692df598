//! The hashes of a tree in a file.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use silo_core::merkle::Hash;

use crate::LogError;
use crate::tree::{self, Frontier, StoredHashes};

const HASH_BYTES: u64 = 32;

/// Hashes that are written to the file at once.
const BATCH: usize = 1 << 15;

/// The stored hashes of a tree, 32 bytes each, appended and never changed. The file can be made anew from the leaves at any time. What is appended,
/// and the newest root, do not depend on what is read from it: damage shows in proofs only, which whoever makes them verifies.
#[derive(Debug)]
pub struct HashFile {
    path: PathBuf,
    file: File,
    frontier: Frontier,
    /// Not in the file yet.
    fresh: Vec<Hash>,
    n_written: u64,
}

impl StoredHashes for HashFile {
    type Error = LogError;

    fn get(&self, place: u64) -> Result<Hash, LogError> {
        let short = || LogError::Proof(format!("the file of hashes has none at place {place}"));
        if place >= self.n_written {
            return self.fresh.get((place - self.n_written) as usize).copied().ok_or_else(short);
        }
        let mut hash = Hash::default();
        match self.file.read_exact_at(&mut hash, place * HASH_BYTES) {
            Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => Err(short()),
            other => other.map(|()| hash).map_err(LogError::io(&self.path)),
        }
    }
}

impl HashFile {
    /// Opens the file, or makes it. It has the first leaves of which size and root are known then, if it holds them, and otherwise none.
    pub fn open(path: &Path, known: Option<(u64, Hash)>) -> Result<Self, LogError> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
        let file = file.map_err(LogError::io(path))?;
        let length = file.metadata().map_err(LogError::io(path))?.len();
        let n_written = length / HASH_BYTES;
        let mut opened =
            Self { path: path.to_owned(), file, frontier: Frontier::default(), fresh: Vec::new(), n_written };
        if let Some((n, root)) = known.filter(|(n, _)| tree::n_stored(*n) <= n_written) {
            let frontier = Frontier::read(&opened, n)?;
            // A frontier with the right root is the right one.
            if frontier.root() == root {
                opened.frontier = frontier;
            }
        }
        opened.cut()?;
        Ok(opened)
    }

    /// Cuts away what is beyond the leaves that it has.
    fn cut(&mut self) -> Result<(), LogError> {
        self.fresh.clear();
        self.n_written = tree::n_stored(self.n_leaves());
        self.file.set_len(self.n_written * HASH_BYTES).map_err(LogError::io(&self.path))
    }

    /// How many leaves it has.
    pub fn n_leaves(&self) -> u64 {
        self.frontier.n_leaves()
    }

    /// Root of all of them.
    pub fn root(&self) -> Hash {
        self.frontier.root()
    }

    /// Forgets all.
    pub fn clear(&mut self) -> Result<(), LogError> {
        self.frontier = Frontier::default();
        self.cut()
    }

    /// Appends leaves.
    pub fn append<'a>(&mut self, leaves: impl IntoIterator<Item = &'a [u8]>) -> Result<(), LogError> {
        for leaf in leaves {
            self.fresh.append(&mut self.frontier.append(leaf));
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
    fn only_what_is_known_to_be_right_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("hashes");
        let leaves: Vec<Vec<u8>> = (0..50u32).map(|i| i.to_le_bytes().to_vec()).collect();
        let slices = |from: u64| leaves[from as usize..].iter().map(Vec::as_slice).collect::<Vec<_>>();
        let mut whole = HashFile::open(&path, None).unwrap();
        whole.append(slices(0)).unwrap();
        let known = |n| Some((n, tree::root(&whole, n).unwrap()));
        let (all, known) = (whole.root(), [None, known(1), known(37), known(50)]);
        assert_eq!(known[3], Some((50, all)));
        let bytes = std::fs::read(&path).unwrap();
        for known in known {
            for damage in 0..bytes.len() / 32 {
                let mut damaged = bytes.clone();
                damaged[damage * 32] ^= 1;
                for content in [&bytes[..damage * 32 + 5], &damaged] {
                    std::fs::write(&path, content).unwrap();
                    let mut file = HashFile::open(&path, known).unwrap();
                    let kept = file.n_leaves();
                    assert!(kept == 0 || kept == known.unwrap().0);
                    file.append(slices(kept)).unwrap();
                    assert_eq!(file.root(), all, "{known:?}, damage at {damage}");
                }
            }
        }
    }
}
