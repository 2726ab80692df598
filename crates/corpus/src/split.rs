//! Which part of a corpus a document belongs to: decided by a hash of its URI, so it never changes.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::Role;

/// A part of a corpus.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Split {
    /// Trained on, or put into the store.
    Train,
    /// Tuned on.
    Validation,
    /// Looked at once.
    Test,
}

impl Split {
    /// The name used in files and messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Validation => "validation",
            Self::Test => "test",
        }
    }

    /// The split of a document.
    pub fn of(uri: &str, role: Role) -> Self {
        let hash = Sha256::digest(uri.as_bytes());
        let bucket = u32::from_le_bytes([hash[0], hash[1], hash[2], hash[3]]) % 100;
        let held_out = match role {
            Role::Train => 1,
            Role::Domain | Role::Neutral => 10,
        };
        if bucket < held_out {
            Self::Validation
        } else if bucket < 2 * held_out {
            Self::Test
        } else {
            Self::Train
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_as_promised() {
        let count = |role, split| (0..10_000).filter(|i| Split::of(&format!("pkg:x#{i}"), role) == split).count();
        assert!((700..1300).contains(&count(Role::Domain, Split::Test)));
        assert!((700..1300).contains(&count(Role::Domain, Split::Validation)));
        assert!((50..150).contains(&count(Role::Train, Split::Test)));
    }
}
