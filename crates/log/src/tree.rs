//! The Merkle tree of RFC 9162 §2.1 over hashes that are stored once.
//!
//! The hash of each complete subtree is kept, in the order in which appending completes them, so that a root or a proof of any size that the
//! tree has had reads O(log² n) of them, and appending writes two on average. The order is that of Go's `tlog`.

use sha2::{Digest, Sha256};
use silo_core::merkle::{Hash, leaf_hash};

/// Where stored hashes are read.
pub trait StoredHashes {
    /// Why one could not be read.
    type Error;
    /// The hash at a place, counted from 0.
    fn get(&self, place: u64) -> Result<Hash, Self::Error>;
}

impl StoredHashes for [Hash] {
    type Error = std::convert::Infallible;

    fn get(&self, place: u64) -> Result<Hash, Self::Error> {
        Ok(self[place as usize])
    }
}

/// Hash of an inner node: SHA-256(0x01 ‖ left ‖ right).
fn node_hash(left: &Hash, right: &Hash) -> Hash {
    Sha256::new().chain_update([1]).chain_update(left).chain_update(right).finalize().into()
}

/// Place of the `n`th subtree of 2^`level` leaves.
fn place(level: u32, n: u64) -> u64 {
    // It is completed by its last leaf; before that leaf stand n + n/2 + n/4 + … hashes.
    let last = ((n + 1) << level) - 1;
    let before: u64 = std::iter::successors(Some(last), |i| (*i > 0).then_some(i >> 1)).sum();
    before + u64::from(level)
}

/// How many hashes a tree of `n` leaves stores.
pub fn n_stored(n: u64) -> u64 {
    std::iter::successors(Some(n), |i| (*i > 0).then_some(i >> 1)).sum()
}

/// The greatest tree that so many stored hashes hold.
pub fn n_leaves(stored: u64) -> u64 {
    // n_stored(n) is n + n/2 + …: from n to less than 2n.
    let (mut low, mut high) = (stored / 2, stored);
    while low < high {
        let middle = (low + high).div_ceil(2);
        if n_stored(middle) <= stored { low = middle } else { high = middle - 1 }
    }
    low
}

/// The roots of the complete subtrees that a tree consists of, the largest first: all that is needed to append to it, and for its root.
#[derive(Debug, Clone, Default)]
pub struct Frontier {
    n: u64,
    roots: Vec<Hash>,
}

impl Frontier {
    /// That of the first `n` leaves.
    pub fn read<S: StoredHashes + ?Sized>(stored: &S, n: u64) -> Result<Self, S::Error> {
        let levels = (0..u64::BITS).rev().filter(|level| n >> level & 1 == 1);
        let roots = levels.map(|level| stored.get(place(level, (n >> level) - 1))).collect::<Result<_, _>>()?;
        Ok(Self { n, roots })
    }

    /// How many leaves the tree has.
    pub fn n_leaves(&self) -> u64 {
        self.n
    }

    /// Appends a leaf; the hashes that are stored for it: its own, and those of the subtrees that it completes.
    pub fn append(&mut self, leaf: &[u8]) -> Vec<Hash> {
        let mut out = vec![leaf_hash(leaf)];
        for _ in 0..self.n.trailing_ones() {
            let left = self.roots.pop().unwrap_or_default(); // one for each bit of n
            out.push(node_hash(&left, &out[out.len() - 1]));
        }
        self.roots.push(out[out.len() - 1]);
        self.n += 1;
        out
    }

    /// Root of the tree; SHA-256 of nothing, if it has no leaf.
    pub fn root(&self) -> Hash {
        let folded = self.roots.iter().rev().copied().reduce(|right, left| node_hash(&left, &right));
        folded.unwrap_or_else(|| Sha256::digest([]).into())
    }
}

/// The largest power of two that is smaller than `n`, which is at least 2.
fn half(n: u64) -> u64 {
    n.next_power_of_two() / 2
}

/// MTH(D[from:to]), where `from` is a multiple of the power of two that is not below the length, or the range ends the tree.
fn range_root<S: StoredHashes + ?Sized>(stored: &S, from: u64, to: u64) -> Result<Hash, S::Error> {
    let n = to - from;
    if n.is_power_of_two() {
        let level = n.trailing_zeros();
        return stored.get(place(level, from >> level));
    }
    let middle = from + half(n);
    Ok(node_hash(&range_root(stored, from, middle)?, &range_root(stored, middle, to)?))
}

/// Root of the first `n` leaves; SHA-256 of nothing, if there are none.
pub fn root<S: StoredHashes + ?Sized>(stored: &S, n: u64) -> Result<Hash, S::Error> {
    if n == 0 { Ok(Sha256::digest([]).into()) } else { range_root(stored, 0, n) }
}

/// Shows that leaf `index` is in the tree of the first `n` leaves, which are more (RFC 9162 §2.1.3.1).
pub fn inclusion_proof<S: StoredHashes + ?Sized>(stored: &S, index: u64, n: u64) -> Result<Vec<Hash>, S::Error> {
    let (mut from, mut to, mut out) = (0, n, Vec::new());
    while to - from > 1 {
        let middle = from + half(to - from);
        if index < middle {
            out.push(range_root(stored, middle, to)?);
            to = middle;
        } else {
            out.push(range_root(stored, from, middle)?);
            from = middle;
        }
    }
    out.reverse();
    Ok(out)
}

/// Shows that the first `old` leaves, at least one, are the beginning of the first `n`, which are not less (RFC 9162 §2.1.4.1).
pub fn consistency_proof<S: StoredHashes + ?Sized>(stored: &S, old: u64, n: u64) -> Result<Vec<Hash>, S::Error> {
    let (mut from, mut to, mut out) = (0, n, Vec::new());
    // The whole of what is left is the beginning's own end.
    while to != old {
        let middle = from + half(to - from);
        if old <= middle {
            out.push(range_root(stored, middle, to)?);
            to = middle;
        } else {
            out.push(range_root(stored, from, middle)?);
            from = middle;
        }
    }
    // Who verifies knows the old root already.
    if from > 0 {
        out.push(range_root(stored, from, to)?);
    }
    out.reverse();
    Ok(out)
}

/// Whether a leaf is in a tree of `n` leaves with this root (RFC 9162 §2.1.3.2).
pub fn includes(leaf: &Hash, index: u64, n: u64, proof: &[Hash], root: &Hash) -> bool {
    if index >= n {
        return false;
    }
    let (mut f, mut s, mut r) = (index, n - 1, *leaf);
    for p in proof {
        if s == 0 {
            return false;
        }
        if f & 1 == 1 || f == s {
            r = node_hash(p, &r);
            while f & 1 == 0 && f != 0 {
                (f, s) = (f >> 1, s >> 1);
            }
        } else {
            r = node_hash(&r, p);
        }
        (f, s) = (f >> 1, s >> 1);
    }
    s == 0 && r == *root
}

/// Whether a tree of `n` leaves goes on from one of `old` (RFC 9162 §2.1.4.2).
pub fn is_consistent(old: u64, old_root: &Hash, n: u64, root: &Hash, proof: &[Hash]) -> bool {
    if old == 0 || old > n {
        return false;
    }
    if old == n {
        return proof.is_empty() && old_root == root;
    }
    let own = old.is_power_of_two().then_some(old_root);
    let mut path = own.into_iter().chain(proof);
    let Some(first) = path.next() else { return false };
    let (mut f, mut s) = (old - 1, n - 1);
    while f & 1 == 1 {
        (f, s) = (f >> 1, s >> 1);
    }
    let (mut fr, mut sr) = (*first, *first);
    for c in path {
        if s == 0 {
            return false;
        }
        if f & 1 == 1 || f == s {
            (fr, sr) = (node_hash(c, &fr), node_hash(c, &sr));
            while f & 1 == 0 && f != 0 {
                (f, s) = (f >> 1, s >> 1);
            }
        } else {
            sr = node_hash(&sr, c);
        }
        (f, s) = (f >> 1, s >> 1);
    }
    s == 0 && fr == *old_root && sr == *root
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The definition, RFC 9162 §2.1.1.
    fn oracle(leaves: &[Hash]) -> Hash {
        match leaves {
            [] => Sha256::digest([]).into(),
            [leaf] => *leaf,
            _ => {
                let (left, right) = leaves.split_at(half(leaves.len() as u64) as usize);
                node_hash(&oracle(left), &oracle(right))
            }
        }
    }

    fn stored(leaves: &[Vec<u8>]) -> Vec<Hash> {
        let mut out: Vec<Hash> = Vec::new();
        let mut frontier = Frontier::default();
        for (n, leaf) in leaves.iter().enumerate() {
            assert_eq!(out.len() as u64, n_stored(n as u64));
            out.append(&mut frontier.append(leaf));
            let Ok(read) = Frontier::read(&out[..], n as u64 + 1);
            let Ok(root) = root(&out[..], n as u64 + 1);
            assert_eq!((read.roots, frontier.root()), (frontier.roots.clone(), root));
        }
        out
    }

    #[test]
    fn roots_are_those_of_rfc_9162() {
        // Test vectors of the reference implementation (certificate-transparency, merkle_tree_test).
        let leaves: Vec<Vec<u8>> = [
            &b""[..],
            b"\x00",
            b"\x10",
            b"\x20\x21",
            b"\x30\x31",
            b"\x40\x41\x42\x43",
            b"\x50\x51\x52\x53\x54\x55\x56\x57",
            b"`abcdefghijklmno",
        ]
        .map(<[u8]>::to_vec)
        .to_vec();
        let stored = stored(&leaves);
        let root = |n: u64| hex::encode(root(&stored[..], n).unwrap());
        assert_eq!(root(0), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
        assert_eq!(root(1), "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d");
        assert_eq!(root(2), "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125");
        assert_eq!(root(3), "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77");
        assert_eq!(root(5), "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4");
        assert_eq!(root(8), "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328");
    }

    #[test]
    fn proofs_hold_for_what_they_prove_and_for_nothing_else() {
        const N: u64 = 40;
        let leaves: Vec<Vec<u8>> = (0..N).map(|i| i.to_le_bytes().to_vec()).collect();
        let hashes: Vec<Hash> = leaves.iter().map(|l| leaf_hash(l)).collect();
        let stored = stored(&leaves);
        let roots: Vec<Hash> = (0..=N).map(|n| root(&stored[..], n).unwrap()).collect();
        for n in 1..=N {
            let root = roots[n as usize];
            assert_eq!(root, oracle(&hashes[..n as usize]));
            for index in 0..n {
                let Ok(proof) = inclusion_proof(&stored[..], index, n);
                for (other, leaf) in hashes.iter().enumerate() {
                    assert_eq!(includes(leaf, index, n, &proof, &root), other as u64 == index);
                }
                assert!((0..=N).all(|i| i == index || !includes(&hashes[index as usize], i, n, &proof, &root)));
                let longer = [&proof[..], &[root]].concat();
                assert!(!includes(&hashes[index as usize], index, n, &longer, &root));
            }
            for old in 1..=n {
                let Ok(proof) = consistency_proof(&stored[..], old, n);
                for (size, other) in roots.iter().enumerate().skip(1) {
                    assert_eq!(is_consistent(old, other, n, &root, &proof), size as u64 == old, "{old} of {n}");
                    let same = size as u64 == n;
                    assert_eq!(is_consistent(old, &roots[old as usize], n, other, &proof), same, "{old} of {n}");
                }
                assert!(proof.is_empty() || !is_consistent(old, &roots[old as usize], n, &root, &proof[1..]));
            }
        }
    }

    #[test]
    fn as_many_leaves_as_whole_subtrees() {
        for n in 0..2000 {
            assert_eq!(n_leaves(n_stored(n)), n);
            assert!((n_stored(n)..n_stored(n + 1)).all(|stored| n_leaves(stored) == n));
        }
    }
}
