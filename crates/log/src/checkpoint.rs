//! Checkpoints: the log at one size, signed (C2SP `tlog-checkpoint`).

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use silo_core::merkle::Hash;
use silo_core::{Epoch, RootHash};

use crate::LogError;
use crate::note::{self, SigningKey, VerifyingKey};

/// The log at one size. As text: origin, size, root in base64, and a line with what could be retrieved then.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    /// Which log it is: the name of the key that it began with, and the log's own id.
    pub origin: String,
    /// Entries in it.
    pub size: u64,
    /// Root of the tree of its entries.
    pub tree: Hash,
    /// The epoch of the store.
    pub epoch: Epoch,
    /// Root of what could be retrieved ([`silo_core::merkle`]).
    pub root: RootHash,
    /// When it was signed, in milliseconds since 1970.
    pub at_unix_ms: i64,
}

impl Checkpoint {
    /// Its text, signed.
    pub fn sign(&self, key: &SigningKey) -> String {
        note::sign(&self.text(), &[key])
    }

    fn text(&self) -> String {
        let Self { origin, size, tree, epoch, root, at_unix_ms } = self;
        format!("{origin}\n{size}\n{}\nsilo epoch {epoch} root {root} at {at_unix_ms}\n", STANDARD.encode(tree))
    }

    /// Reads a checkpoint that one of the keys has signed.
    pub fn open(note: &str, keys: &[VerifyingKey]) -> Result<Self, LogError> {
        Self::read(note::open(note, keys)?.0)
    }

    /// Reads a checkpoint of one's own, whoever signed it.
    pub fn open_unsigned(note: &str) -> Result<Self, LogError> {
        let text = note.rfind("\n\n").map(|end| &note[..=end]);
        Self::read(text.ok_or_else(|| LogError::Checkpoint("it is no signed note".into()))?)
    }

    fn read(text: &str) -> Result<Self, LogError> {
        let wrong = || LogError::Checkpoint(text.lines().next().unwrap_or_default().to_owned());
        let lines: Vec<&str> = text.lines().collect();
        let [origin, size, tree, own] = *lines else { return Err(wrong()) };
        if origin.is_empty() || origin.chars().any(char::is_control) {
            return Err(wrong());
        }
        let words: Vec<&str> = own.split(' ').collect();
        let ["silo", "epoch", epoch, "root", root, "at", at] = *words else { return Err(wrong()) };
        let tree = STANDARD.decode(tree).ok().and_then(|bytes| bytes.try_into().ok());
        let read = Self {
            origin: origin.to_owned(),
            size: size.parse().map_err(|_| wrong())?,
            tree: tree.ok_or_else(wrong)?,
            epoch: Epoch(epoch.parse().map_err(|_| wrong())?),
            root: root.parse().map_err(|_| wrong())?,
            at_unix_ms: at.parse().map_err(|_| wrong())?,
        };
        // One text for one checkpoint: no leading zeroes, no other spaces.
        if read.text() == text { Ok(read) } else { Err(wrong()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checkpoint_is_read_as_it_was_signed() {
        let key = SigningKey::generate("example.org/silo").unwrap();
        let keys = [key.verifying_key().clone()];
        let (epoch, root) = (Epoch(7), silo_core::merkle::empty_root());
        let origin = "example.org/silo/1".to_owned();
        let checkpoint = Checkpoint { origin, size: 12, tree: [3; 32], epoch, root, at_unix_ms: 1_700_000_000_000 };
        assert_eq!(Checkpoint::open(&checkpoint.sign(&key), &keys).unwrap(), checkpoint);
        let text = checkpoint.text();
        for (from, to) in
            [("12", "012"), ("12", "x"), ("silo epoch", "silo  epoch"), ("at 17", "at +17"), ("epoch 7", "epoch")]
        {
            let changed = text.replacen(from, to, 1);
            assert!(Checkpoint::open(&note::sign(&changed, &[&key]), &keys).is_err(), "{changed}");
        }
    }
}
