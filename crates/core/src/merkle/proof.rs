//! Proofs of what is in a trie and what is not: the trie itself, with the hash of each part that nobody asked about in its place.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{Hash, bit, leaf_hash, node_hash_at, source_leaf};
use crate::ContentHash;

/// A part of a trie. Those of a proof stand in the order in which the trie is put together: an inner node after its two halves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum ProofStep {
    /// A document. As text: `leaf` and its hash.
    Document(ContentHash),
    /// A source. As text: `source`, the SHA-256 of its name and the root of its documents.
    Source(ContentHash, Hash),
    /// A part that was left out. As text: `hash` and its hash.
    Hidden(Hash),
    /// The node of the two before it, which part at this bit, counted from the most significant. As text: `node` and the bit.
    Inner(u8),
}

impl fmt::Display for ProofStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Document(hash) => write!(f, "leaf {hash}"),
            Self::Source(name, documents) => write!(f, "source {name} {}", hex::encode(documents)),
            Self::Hidden(hash) => write!(f, "hash {}", hex::encode(hash)),
            Self::Inner(bit) => write!(f, "node {bit}"),
        }
    }
}

impl From<ProofStep> for String {
    fn from(step: ProofStep) -> Self {
        step.to_string()
    }
}

impl FromStr for ProofStep {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let hash = |text: &str| text.parse::<ContentHash>().map_err(|e| e.to_string());
        match *text.split(' ').collect::<Vec<_>>() {
            ["leaf", document] => Ok(Self::Document(hash(document)?)),
            ["source", name, documents] => Ok(Self::Source(hash(name)?, hash(documents)?.0)),
            ["hash", hidden] => Ok(Self::Hidden(hash(hidden)?.0)),
            ["node", bit] => Ok(Self::Inner(bit.parse().map_err(|_| format!("'{bit}' is no bit of 0 to 255"))?)),
            _ => Err(format!("'{}' is no part of a proof", text.chars().take(80).collect::<String>())),
        }
    }
}

impl TryFrom<String> for ProofStep {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

/// What a proof says about a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proven {
    /// It is not in the trie.
    Absent,
    /// It is. For a source: with the root of its documents.
    Present(Option<Hash>),
}

#[derive(Debug)]
enum Part {
    Leaf(ContentHash, Option<Hash>),
    Hidden,
    Inner(u8, Box<(Part, Part)>),
}

impl Part {
    /// The bit at which it parts; leaves do after all bits.
    fn parting(&self) -> Option<u8> {
        if let Self::Inner(bit, _) = self { Some(*bit) } else { None }
    }
}

/// A trie of which parts may be hidden, with a root that was computed from what is shown.
#[derive(Debug)]
pub struct ProvenTrie {
    root: Hash,
    part: Part,
}

impl ProvenTrie {
    /// Puts a proof together. What is wrong with it, if it is none.
    pub fn read(steps: &[ProofStep]) -> Result<Self, String> {
        let mut stack: Vec<(Hash, Part)> = Vec::new();
        for step in steps {
            let made = match *step {
                ProofStep::Document(hash) => (leaf_hash(&hash.0), Part::Leaf(hash, None)),
                ProofStep::Source(name, documents) => {
                    (source_leaf(&name, &documents), Part::Leaf(name, Some(documents)))
                }
                ProofStep::Hidden(hash) => (hash, Part::Hidden),
                ProofStep::Inner(bit) => {
                    let (Some((right_hash, right)), Some((left_hash, left))) = (stack.pop(), stack.pop()) else {
                        return Err("a node of it lacks a half".into());
                    };
                    if [&left, &right].iter().any(|half| half.parting().is_some_and(|below| below <= bit)) {
                        return Err("the bits of its nodes do not rise".into());
                    }
                    (node_hash_at(bit, &left_hash, &right_hash), Part::Inner(bit, Box::new((left, right))))
                }
            };
            stack.push(made);
        }
        match (stack.pop(), stack.is_empty()) {
            (Some((root, part)), true) => Ok(Self { root, part }),
            _ => Err("it is not one trie".into()),
        }
    }

    /// Hash of the whole trie.
    pub fn root(&self) -> Hash {
        self.root
    }

    /// What it says about a key; `None` if it hides the answer.
    pub fn find(&self, key: &ContentHash) -> Option<Proven> {
        let mut part = &self.part;
        loop {
            match part {
                Part::Hidden => return None,
                Part::Leaf(there, value) if there == key => return Some(Proven::Present(*value)),
                Part::Leaf(..) => return Some(Proven::Absent),
                Part::Inner(at, halves) => {
                    part = if bit(key, usize::from(*at)) { &halves.1 } else { &halves.0 };
                }
            }
        }
    }
}
