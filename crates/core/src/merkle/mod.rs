//! The root hash: a Merkle map, source → its live documents' hashes, over logical content only.
//!
//! Neither files nor layout nor the order of operations enter it, so two stores with the same live documents have the same
//! root. The documents of a source are a trie over their hashes ([`DocumentTree`]); the sources are the leaves of a tree as in
//! RFC 9162 §2.1.1, sorted by name. Leaves are prefixed with 0x00, inner nodes with 0x01. Sorting and the trie's bits are what lets the
//! absence of a source or document be proven.

mod documents;

use sha2::{Digest, Sha256};

pub use documents::DocumentTree;

use crate::{RootHash, SourceId};

/// A node's hash.
pub type Hash = [u8; 32];

/// Hash of a leaf: SHA-256(0x00 ‖ data).
pub fn leaf_hash(data: &[u8]) -> Hash {
    Sha256::new().chain_update([0]).chain_update(data).finalize().into()
}

/// Hash of an inner node: SHA-256(0x01 ‖ left ‖ right).
pub fn node_hash(left: &Hash, right: &Hash) -> Hash {
    Sha256::new().chain_update([1]).chain_update(left).chain_update(right).finalize().into()
}

/// Hash of an inner node of a trie, which parts at a bit: SHA-256(0x01 ‖ bit ‖ left ‖ right).
pub fn node_hash_at(bit: u8, left: &Hash, right: &Hash) -> Hash {
    Sha256::new().chain_update([1, bit]).chain_update(left).chain_update(right).finalize().into()
}

/// Root of the tree over `leaves` (RFC 9162 §2.1.1); SHA-256 of nothing when there are none.
pub fn tree_root(leaves: &[Hash]) -> Hash {
    match leaves {
        [] => Sha256::digest([]).into(),
        [leaf] => *leaf,
        _ => {
            // The largest power of two that is smaller than the number of leaves.
            let split = leaves.len().next_power_of_two() / 2;
            let (left, right) = leaves.split_at(split);
            node_hash(&tree_root(left), &tree_root(right))
        }
    }
}

/// Root of the store. `sources` must be sorted by id; those without live documents must be left out, because a source that
/// was emptied is as if it had never been there.
pub fn store_root<'a>(sources: impl IntoIterator<Item = (&'a SourceId, Hash)>) -> RootHash {
    let leaves: Vec<Hash> = sources
        .into_iter()
        .map(|(id, documents)| {
            let name = id.as_str().as_bytes();
            let mut data = Vec::with_capacity(1 + name.len() + documents.len());
            // A source id has at most 63 bytes.
            data.push(name.len() as u8);
            data.extend_from_slice(name);
            data.extend_from_slice(&documents);
            leaf_hash(&data)
        })
        .collect();
    RootHash(tree_root(&leaves))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ContentHash;

    #[test]
    fn trees_are_those_of_rfc_9162() {
        // Test vectors of the reference implementation (certificate-transparency, merkle_tree_test).
        let inputs: [&[u8]; 8] = [
            b"",
            b"\x00",
            b"\x10",
            b"\x20\x21",
            b"\x30\x31",
            b"\x40\x41\x42\x43",
            b"\x50\x51\x52\x53\x54\x55\x56\x57",
            b"`abcdefghijklmno",
        ];
        let leaves: Vec<Hash> = inputs.iter().map(|i| leaf_hash(i)).collect();
        let root = |n: usize| hex::encode(tree_root(&leaves[..n]));
        assert_eq!(root(0), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
        assert_eq!(root(1), "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d");
        assert_eq!(root(2), "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125");
        assert_eq!(root(3), "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77");
        assert_eq!(root(5), "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4");
    }

    #[test]
    fn the_root_sees_names_and_documents() {
        let a: SourceId = "a".parse().unwrap();
        let b: SourceId = "b".parse().unwrap();
        let tree = |text: &[u8]| DocumentTree::default().with(&[ContentHash::of(text)]).0.root().unwrap();
        let (docs, other) = (tree(b"x"), tree(b"y"));
        let roots = [
            store_root([]),
            store_root([(&a, docs)]),
            store_root([(&b, docs)]),
            store_root([(&a, other)]),
            store_root([(&a, docs), (&b, docs)]),
        ];
        for (i, x) in roots.iter().enumerate() {
            for y in &roots[i + 1..] {
                assert_ne!(x, y);
            }
        }
    }
}
