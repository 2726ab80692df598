//! The root hash: a Merkle map, source → its live documents' hashes, over logical content only.
//!
//! Neither files nor layout nor the order of operations enter it, so two stores with the same live documents have the same
//! root. The documents of a source are a trie over their hashes ([`DocumentTree`]), the sources one over the hashes of their names. As in
//! RFC 9162 §2.1.1, leaves are prefixed with 0x00 and inner nodes with 0x01. The bits that a trie parts at are what lets the absence of a
//! source or document be proven ([`ProvenTrie`]).

mod documents;
mod proof;

use sha2::{Digest, Sha256};

pub use documents::DocumentTree;
pub use proof::{ProofStep, Proven, ProvenTrie};

use crate::{ContentHash, RootHash, SourceId};

/// A node's hash.
pub type Hash = [u8; 32];

/// Hash of a leaf: SHA-256(0x00 ‖ data).
pub fn leaf_hash(data: &[u8]) -> Hash {
    Sha256::new().chain_update([0]).chain_update(data).finalize().into()
}

/// Hash of an inner node of a trie, which parts at a bit: SHA-256(0x01 ‖ bit ‖ left ‖ right).
pub fn node_hash_at(bit: u8, left: &Hash, right: &Hash) -> Hash {
    Sha256::new().chain_update([1, bit]).chain_update(left).chain_update(right).finalize().into()
}

/// Hash of a source's leaf: SHA-256(0x00 ‖ SHA-256 of its name ‖ root of its documents).
fn source_leaf(name: &ContentHash, documents: &Hash) -> Hash {
    leaf_hash([name.0, *documents].as_flattened())
}

/// Where a source stands in the trie: at the SHA-256 of its name.
pub fn source_key(source: &SourceId) -> ContentHash {
    ContentHash::of(source.as_str().as_bytes())
}

/// Bits of a hash.
const BITS: usize = 256;

fn bit(hash: &ContentHash, at: usize) -> bool {
    hash.0[at / 8] & (0x80 >> (at % 8)) != 0
}

/// The first bit in which two hashes differ; [`BITS`] if they are equal.
fn first_difference(a: &ContentHash, b: &ContentHash) -> usize {
    let differs = |(i, (x, y)): (usize, (&u8, &u8))| (x != y).then(|| i * 8 + (x ^ y).leading_zeros() as usize);
    a.0.iter().zip(&b.0).enumerate().find_map(differs).unwrap_or(BITS)
}

/// Cuts sorted hashes that agree before bit `at` into those without and with it.
fn split(documents: &[ContentHash], at: usize) -> (&[ContentHash], &[ContentHash]) {
    documents.split_at(documents.partition_point(|d| !bit(d, at)))
}

/// The sources of a store with the roots of their documents, as a trie. Those without live documents must be left out, because a source that
/// was emptied is as if it had never been there.
#[derive(Debug, Clone, Default)]
pub struct SourceTree(Vec<(ContentHash, Hash)>);

impl SourceTree {
    /// The tree of these sources, in any order.
    pub fn new<'a>(sources: impl IntoIterator<Item = (&'a SourceId, Hash)>) -> Self {
        let mut leaves: Vec<_> = sources.into_iter().map(|(id, documents)| (source_key(id), documents)).collect();
        leaves.sort_unstable();
        Self(leaves)
    }

    /// Root of the store; SHA-256 of nothing, if it is empty.
    pub fn root(&self) -> RootHash {
        if self.0.is_empty() { empty_root() } else { RootHash(trie(&self.0, None).0) }
    }

    /// Shows of a source whether it is in the store ([`ProvenTrie`]); nothing, if the store is empty.
    pub fn prove(&self, source: &SourceId) -> Vec<ProofStep> {
        if self.0.is_empty() { Vec::new() } else { trie(&self.0, Some(&source_key(source))).1 }
    }
}

/// Root of a store in which nothing is.
pub fn empty_root() -> RootHash {
    RootHash(Sha256::digest([]).into())
}

/// Root of at least one sorted leaf, and the parts that show where a key leads to; nothing without a key.
fn trie(leaves: &[(ContentHash, Hash)], key: Option<&ContentHash>) -> (Hash, Vec<ProofStep>) {
    let (first, last) = (&leaves[0].0, &leaves[leaves.len() - 1].0);
    let at = first_difference(first, last);
    let (root, mut steps) = if at == BITS {
        (source_leaf(first, &leaves[0].1), vec![ProofStep::Source(*first, leaves[0].1)])
    } else {
        let (left, right) = leaves.split_at(leaves.partition_point(|leaf| !bit(&leaf.0, at)));
        let to_right = key.map(|key| bit(key, at));
        let (left, right) =
            (trie(left, key.filter(|_| to_right == Some(false))), trie(right, key.filter(|_| to_right == Some(true))));
        // Two hashes that differ do so in one of 256 bits.
        let (root, node) = (node_hash_at(at as u8, &left.0, &right.0), ProofStep::Inner(at as u8));
        (root, left.1.into_iter().chain(right.1).chain([node]).collect())
    };
    if key.is_none() {
        steps = vec![ProofStep::Hidden(root)];
    }
    (root, steps)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ContentHash;

    #[test]
    fn the_root_sees_names_and_documents() {
        let a: SourceId = "a".parse().unwrap();
        let b: SourceId = "b".parse().unwrap();
        let tree = |text: &[u8]| DocumentTree::default().with(&[ContentHash::of(text)]).0.root().unwrap();
        let (docs, other) = (tree(b"x"), tree(b"y"));
        let root = |sources: &[(&SourceId, Hash)]| SourceTree::new(sources.iter().copied()).root();
        let roots = [
            root(&[]),
            root(&[(&a, docs)]),
            root(&[(&b, docs)]),
            root(&[(&a, other)]),
            root(&[(&a, docs), (&b, docs)]),
        ];
        assert_eq!(root(&[(&b, docs), (&a, docs)]), roots[4], "the order does not matter");
        for (i, x) in roots.iter().enumerate() {
            for y in &roots[i + 1..] {
                assert_ne!(x, y);
            }
        }
    }

    #[test]
    fn proofs_say_what_is_there_and_hide_the_rest() {
        let hashes = |range: std::ops::Range<u64>| {
            let mut all: Vec<ContentHash> = range.map(|n| ContentHash::of(&n.to_le_bytes())).collect();
            all.sort_unstable();
            all
        };
        for n in [1, 2, 3, 50] {
            let (there, absent) = (hashes(0..n), hashes(100..120));
            let tree = DocumentTree::default().with(&there).0;
            let asked: Vec<ContentHash> = absent.iter().take(3).chain([&there[0]]).copied().collect();
            let proof = tree.prove(&asked);
            let text = proof.iter().map(ProofStep::to_string);
            assert_eq!(text.map(|t| t.parse().unwrap()).collect::<Vec<ProofStep>>(), proof);
            let read = ProvenTrie::read(&proof).unwrap();
            assert_eq!(Some(read.root()), tree.root());
            assert_eq!(read.find(&there[0]), Some(Proven::Present(None)));
            assert!(asked[..3].iter().all(|d| read.find(d) == Some(Proven::Absent)));
            assert!(
                there.iter().all(|d| read.find(d) != Some(Proven::Absent)),
                "nothing that is there is shown as absent"
            );
            let names: Vec<SourceId> = (0..n).map(|i| format!("s{i}").parse().unwrap()).collect();
            let sources = SourceTree::new(names.iter().map(|s| (s, tree.root().unwrap())));
            for (name, expected) in [("s0", Proven::Present(tree.root())), ("other", Proven::Absent)] {
                let name: SourceId = name.parse().unwrap();
                let read = ProvenTrie::read(&sources.prove(&name)).unwrap();
                assert_eq!(RootHash(read.root()), sources.root());
                assert_eq!(read.find(&source_key(&name)), Some(expected));
            }
        }
    }

    #[test]
    fn what_is_no_trie_is_no_proof() {
        let there: Vec<ContentHash> = (0..9u64).map(|n| ContentHash::of(&n.to_le_bytes())).collect();
        let mut sorted = there.clone();
        sorted.sort_unstable();
        let tree = DocumentTree::default().with(&sorted).0;
        let proof = tree.prove(&there);
        for i in 0..proof.len() {
            let mut less = proof.clone();
            less.remove(i);
            let same = ProvenTrie::read(&less).is_ok_and(|read| Some(read.root()) == tree.root());
            assert!(!same, "without step {i}");
        }
        assert!(ProvenTrie::read(&[]).is_err());
        for text in ["leaf", "leaf 00", "node 256", "node -1", "hash", "stem 1", ""] {
            assert!(text.parse::<ProofStep>().is_err(), "{text}");
        }
        let hash = ProofStep::Hidden([0; 32]);
        let falling = [hash, hash, ProofStep::Inner(4), hash, ProofStep::Inner(4)];
        assert!(ProvenTrie::read(&falling).unwrap_err().contains("rise"));
    }
}
