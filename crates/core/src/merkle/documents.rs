//! The documents of a source as a hashed binary trie over their content hashes.
//!
//! The shape is a function of the set: an inner node stands at the first bit in which the hashes below it differ, so that equal sets
//! have equal roots however they came about, and a change costs what it changes and the way up to the root. Absence can be
//! shown by the one leaf that the bits of a hash lead to.

use std::sync::Arc;

use super::{BITS, Hash, ProofStep, bit, first_difference, leaf_hash, node_hash_at, split};
use crate::ContentHash;

/// A multiset of document hashes with the root hash of the set. Values share their parts: a clone costs nothing.
#[derive(Debug, Clone, Default)]
pub struct DocumentTree {
    root: Option<Arc<Node>>,
}

#[derive(Debug)]
enum Node {
    Leaf { document: ContentHash, copies: u32, hash: Hash },
    Inner { bit: u8, left: Arc<Node>, right: Arc<Node>, hash: Hash },
}

/// From so many documents on the two halves of a tree are changed by a thread each: a removal is waited for, and shares its processors with
/// searches.
const MANY: usize = 1000;

fn leaf(document: ContentHash, copies: u32) -> Arc<Node> {
    Arc::new(Node::Leaf { document, copies, hash: leaf_hash(&document.0) })
}

fn inner(bit: usize, left: Arc<Node>, right: Arc<Node>) -> Arc<Node> {
    // Two hashes that differ do so in one of 256 bits.
    let bit = bit as u8;
    let hash = node_hash_at(bit, left.hash(), right.hash());
    Arc::new(Node::Inner { bit, left, right, hash })
}

impl Node {
    fn hash(&self) -> &Hash {
        match self {
            Self::Leaf { hash, .. } | Self::Inner { hash, .. } => hash,
        }
    }

    /// One of the documents below it.
    fn any(&self) -> &ContentHash {
        match self {
            Self::Leaf { document, .. } => document,
            Self::Inner { left, .. } => left.any(),
        }
    }

    /// Where its two halves part.
    fn parting(&self) -> usize {
        match self {
            Self::Leaf { .. } => BITS,
            Self::Inner { bit, .. } => usize::from(*bit),
        }
    }
}

fn insert(node: Option<&Arc<Node>>, documents: &[ContentHash], again: &mut Vec<ContentHash>) -> Option<Arc<Node>> {
    let (Some(first), Some(last)) = (documents.first(), documents.last()) else { return node.cloned() };
    let within = first_difference(first, last);
    let Some(node) = node else {
        if within == BITS {
            return Some(leaf(*first, 1));
        }
        let (without, with) = split(documents, within);
        let (left, right) = (insert(None, without, again)?, insert(None, with, again)?);
        return Some(inner(within, left, right));
    };
    let at = within.min(first_difference(first, node.any())).min(node.parting());
    if at == BITS {
        let Node::Leaf { document, copies, .. } = &**node else { return Some(node.clone()) };
        again.push(*document);
        return Some(leaf(*document, copies + 1));
    }
    let (without, with) = split(documents, at);
    let (left, right) = match &**node {
        Node::Inner { left, right, .. } if at == node.parting() => (Some(left), Some(right)),
        _ if bit(node.any(), at) => (None, Some(node)),
        _ => (Some(node), None),
    };
    Some(inner(at, insert(left, without, again)?, insert(right, with, again)?))
}

fn remove(node: &Arc<Node>, documents: &[ContentHash]) -> Option<Arc<Node>> {
    if documents.is_empty() {
        return Some(node.clone());
    }
    match &**node {
        Node::Leaf { document, copies, .. } => (*copies > 1).then(|| leaf(*document, copies - 1)),
        Node::Inner { bit, left, right, .. } => {
            let at = usize::from(*bit);
            let (without, with) = split(documents, at);
            let halves = if documents.len() < MANY {
                (remove(left, without), remove(right, with))
            } else {
                std::thread::scope(|scope| {
                    let left = scope.spawn(|| remove(left, without));
                    let right = remove(right, with);
                    (left.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)), right)
                })
            };
            match halves {
                (Some(l), Some(r)) => Some(inner(at, l, r)),
                (left, right) => left.or(right),
            }
        }
    }
}

/// The parts that show where these keys lead to.
fn prove(node: &Node, keys: &[ContentHash], out: &mut Vec<ProofStep>) {
    match node {
        _ if keys.is_empty() => out.push(ProofStep::Hidden(*node.hash())),
        Node::Leaf { document, .. } => out.push(ProofStep::Document(*document)),
        Node::Inner { bit: at, left, right, .. } => {
            let (with, without): (Vec<_>, Vec<_>) = keys.iter().partition(|key| bit(key, usize::from(*at)));
            prove(left, &without, out);
            prove(right, &with, out);
            out.push(ProofStep::Inner(*at));
        }
    }
}

impl DocumentTree {
    /// Shows of documents whether they are in it ([`super::ProvenTrie`]); nothing, if it is empty.
    pub fn prove(&self, documents: &[ContentHash]) -> Vec<ProofStep> {
        let mut out = Vec::new();
        self.root.iter().for_each(|root| prove(root, documents, &mut out));
        out
    }

    /// Root hash of the set; `None` of the empty one, which the map of the store does not hold.
    pub fn root(&self) -> Option<Hash> {
        self.root.as_ref().map(|node| *node.hash())
    }

    /// Whether the document is in it.
    pub fn contains(&self, document: &ContentHash) -> bool {
        let mut node = self.root.as_ref();
        while let Some(found) = node {
            match &**found {
                Node::Leaf { document: there, .. } => return there == document,
                Node::Inner { bit: at, left, right, .. } => {
                    node = Some(if bit(document, usize::from(*at)) { right } else { left });
                }
            }
        }
        false
    }

    /// The tree with more documents, which must be sorted and without repetition; and those of them that it held before, of which it then
    /// holds one copy more.
    pub fn with(&self, documents: &[ContentHash]) -> (Self, Vec<ContentHash>) {
        debug_assert!(documents.is_sorted_by(|a, b| a < b), "document hashes are a sorted set");
        let mut again = Vec::new();
        let root = insert(self.root.as_ref(), documents, &mut again);
        (Self { root }, again)
    }

    /// The tree with one copy less of documents, which must be sorted, without repetition, and all in it.
    pub fn without(&self, documents: &[ContentHash]) -> Self {
        debug_assert!(documents.is_sorted_by(|a, b| a < b), "document hashes are a sorted set");
        debug_assert!(documents.iter().all(|d| self.contains(d)), "what is taken away is there");
        Self { root: self.root.as_ref().and_then(|node| remove(node, documents)) }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// Hashes of which many share their first bits.
    fn document(n: u64) -> ContentHash {
        let mut hash = ContentHash::of(&n.to_le_bytes());
        hash.0[..(n % 31) as usize].fill((n % 3) as u8);
        hash
    }

    fn next(state: &mut u64) -> u64 {
        *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        *state >> 33
    }

    /// The definition: the node of a sorted set.
    fn oracle(documents: &[ContentHash]) -> Option<Hash> {
        match documents {
            [] => None,
            [one] => Some(leaf_hash(&one.0)),
            _ => {
                let at = first_difference(&documents[0], &documents[documents.len() - 1]);
                let (left, right) = split(documents, at);
                Some(node_hash_at(at as u8, &oracle(left)?, &oracle(right)?))
            }
        }
    }

    #[test]
    fn the_root_is_that_of_the_set_after_any_changes() {
        let (mut tree, mut counts, mut state) = (DocumentTree::default(), BTreeMap::<ContentHash, u32>::new(), 7);
        for round in 0..400 {
            let size = if round % 50 == 0 { 60 } else { 1 + next(&mut state) % 5 };
            let mut documents: Vec<ContentHash> = (0..size).map(|_| document(next(&mut state) % 90)).collect();
            documents.sort_unstable();
            documents.dedup();
            if next(&mut state).is_multiple_of(2) {
                let expected: Vec<_> = documents.iter().filter(|d| counts.contains_key(d)).copied().collect();
                let (grown, again) = tree.with(&documents);
                assert_eq!(again, expected);
                tree = grown;
                documents.iter().for_each(|d| *counts.entry(*d).or_default() += 1);
            } else {
                documents.retain(|d| counts.contains_key(d));
                tree = tree.without(&documents);
                for d in &documents {
                    *counts.get_mut(d).unwrap() -= 1;
                }
                counts.retain(|_, n| *n > 0);
            }
            assert_eq!(tree.root(), oracle(&counts.keys().copied().collect::<Vec<_>>()), "round {round}");
            assert!((0..90).all(|n| tree.contains(&document(n)) == counts.contains_key(&document(n))));
        }
        let all: Vec<ContentHash> = counts.iter().flat_map(|(d, n)| vec![*d; *n as usize]).collect();
        assert!(all.len() > counts.len(), "some documents have copies");
        for d in all {
            tree = tree.without(&[d]);
        }
        assert_eq!(tree.root(), None);
    }

    #[test]
    fn many_at_once_are_what_they_are_one_by_one() {
        let mut all: Vec<ContentHash> = (0..9000u64).map(|n| ContentHash::of(&n.to_le_bytes())).collect();
        all.sort_unstable();
        let tree = DocumentTree::default().with(&all).0;
        for n in [MANY - 1, MANY, 5 * MANY, 9000] {
            let (gone, kept): (Vec<_>, Vec<_>) =
                all.iter().enumerate().partition(|(i, _)| i * n / 9000 != (i + 1) * n / 9000);
            let of = |part: Vec<(usize, &ContentHash)>| part.into_iter().map(|(_, d)| *d).collect::<Vec<_>>();
            let (gone, kept) = (of(gone), of(kept));
            assert_eq!(gone.len(), n);
            assert_eq!(tree.without(&gone).root(), oracle(&kept));
        }
    }
}
