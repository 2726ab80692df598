//! Identifiers. Logical ids ([`SourceId`], [`ContentHash`]) may leave the system and order things; row numbers
//! ([`ShardId`]) are never reused and never order anything.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// A token of the model's vocabulary.
pub type TokenId = u32;

/// Why a text is no id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{text}' is no {kind}: {rule}")]
pub struct InvalidId {
    /// What was given.
    pub text: String,
    /// What it should have been.
    pub kind: &'static str,
    /// The rule that it breaks.
    pub rule: &'static str,
}

/// The name of a source, chosen by its curator: `linux-man-pages`. It is its logical id, so it is never given to another
/// collection once it was used.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SourceId(String);

impl SourceId {
    /// Longest name, in bytes.
    pub const MAX_BYTES: usize = 63;

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for SourceId {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        let ok = !text.is_empty()
            && text.len() <= Self::MAX_BYTES
            && text.starts_with(plain)
            && text.chars().all(|c| plain(c) || matches!(c, '-' | '_' | '.'));
        if ok {
            return Ok(Self(text.to_owned()));
        }
        Err(InvalidId {
            text: text.chars().take(80).collect(),
            kind: "source id",
            rule: "use 1 to 63 of a-z, 0-9, '-', '_', '.', starting with a letter or digit",
        })
    }
}

impl TryFrom<String> for SourceId {
    type Error = InvalidId;

    fn try_from(text: String) -> Result<Self, InvalidId> {
        text.parse()
    }
}

impl From<SourceId> for String {
    fn from(id: SourceId) -> Self {
        id.0
    }
}

impl fmt::Display for SourceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Makes a newtype over 32 bytes that reads and prints as lower-case hexadecimal.
macro_rules! hash_type {
    ($(#[$doc:meta])* $name:ident, $kind:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(pub [u8; 32]);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&hex::encode(self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), hex::encode(&self.0[..6]))
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;

            fn from_str(text: &str) -> Result<Self, InvalidId> {
                let mut bytes = [0; 32];
                match hex::decode_to_slice(text, &mut bytes) {
                    Ok(()) => Ok(Self(bytes)),
                    Err(_) => Err(InvalidId {
                        text: text.chars().take(80).collect(),
                        kind: $kind,
                        rule: "it has 64 hexadecimal digits",
                    }),
                }
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidId;

            fn try_from(text: String) -> Result<Self, InvalidId> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(hash: $name) -> Self {
                hash.to_string()
            }
        }
    };
}

hash_type!(
    /// SHA-256 of a document's text, of a file, or of a model's weights.
    ContentHash,
    "SHA-256 hash"
);
hash_type!(
    /// The root of the store's logical content at one epoch ([`crate::merkle`]).
    RootHash,
    "root hash"
);

impl ContentHash {
    /// SHA-256 of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }
}

/// A shard's row number in the catalog. It grows and is never reused; it orders nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ShardId(pub u64);

impl fmt::Display for ShardId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A shard's place in one [`crate::Snapshot`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ShardIndex(pub u32);

/// A number that grows with every change of what may be retrieved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Epoch(pub u64);

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn source_ids_are_plain_names() {
        for good in ["a", "linux-man", "x1_2.3", "0day"] {
            assert_eq!(good.parse::<SourceId>().unwrap().as_str(), good);
        }
        for bad in ["", "A", "-a", ".", "a b", "a/b", "ä", &"a".repeat(64)] {
            assert!(bad.parse::<SourceId>().is_err(), "{bad}");
        }
    }

    #[test]
    fn hashes_survive_text() {
        let hash = ContentHash::of(b"text");
        assert_eq!(hash.to_string().parse::<ContentHash>().unwrap(), hash);
        assert!("12".parse::<ContentHash>().is_err());
        assert!("zz".repeat(32).parse::<ContentHash>().is_err());
    }
}
