//! Changes in the midst of a search.

use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use silo_core::{
    Filter, NeighborQuery, NeighborSearch, Permissions, Purpose, Selection, ShardId, SnapshotProvider, SourceId,
    SourcePolicy,
};
use silo_store::Store;

use super::{add, key_after, open_with, purge, recipe_of};

const LETTERS: std::ops::Range<u8> = b'a'..b'k';

/// A document is withdrawn, unless it is time for something else.
fn change(store: &Store, round: usize, victim: &Selection) {
    let (by, suspended, ant): (_, _, SourceId) = (store.by("test"), ShardId(3), "ant".parse().unwrap());
    let permit = |permissions| {
        let policy = |policy| SourcePolicy { permissions: Some(permissions), ..policy };
        by.update_source(&ant, policy).map(drop)
    };
    match round {
        3 | 9 => by.suspend_shard(suspended).map(drop),
        4 | 10 => by.resume_shard(suspended).map(drop),
        5 => add(store, "dog", &["abcabcabc"]).map(drop),
        6 => permit(Permissions::NONE),
        7 => permit(Permissions::ALL),
        8 => {
            by.withdraw(victim).unwrap();
            purge(store);
            Ok(())
        }
        _ => by.withdraw(victim).map(drop),
    }
    .unwrap();
}

/// Counts answers that a change left as they were, and others.
fn in_the_midst(lists: bool, seed: u64) -> [usize; 2] {
    let (root, mut rng) = (tempfile::tempdir().unwrap(), ChaCha8Rng::seed_from_u64(seed));
    let store = open_with(root.path(), recipe_of(lists)).unwrap();
    for (i, name) in ["ant", "ant", "bee", "cat"].iter().enumerate() {
        let mut text = || (0..20).map(|_| char::from(rng.random_range(LETTERS))).collect::<String>();
        let mut texts: Vec<String> = (0..12).map(|_| text()).collect();
        texts.push(format!("abcabc in two shards of a source, {}", i / 2));
        add(&store, name, &texts.iter().map(String::as_str).collect::<Vec<_>>()).unwrap();
    }
    let mut counts = [0, 0];
    for round in 0..14 {
        let pinned = store.snapshot();
        let mask = pinned.mask(&Filter::default(), Purpose::Knn);
        let mut key = || key_after(rng.random_range(LETTERS), rng.random_range(LETTERS));
        let keys: Vec<Vec<f32>> = (0..8).map(|_| key()).collect();
        let queries: Vec<NeighborQuery<'_>> =
            keys.iter().map(|key| NeighborQuery { snapshot: &pinned, mask: &mask, key, k: 9, text: &[] }).collect();
        let before = store.neighbors(&queries).unwrap();
        let of = pinned.shards.choose(&mut rng).unwrap();
        let victim = store.documents(of.id).unwrap().choose(&mut rng).unwrap().hash;
        let victim = Selection::Documents { source: of.source.id.clone(), documents: vec![victim] };
        let (found, as_of) = store.neighbors_across(&queries, &|| change(&store, round, &victim)).unwrap();
        assert_eq!(as_of, store.snapshot().epoch);
        assert_eq!(found, store.neighbors(&queries).unwrap(), "seed {seed}, round {round}");
        before.iter().zip(&found).for_each(|(before, found)| counts[usize::from(before != found)] += 1);
    }
    counts
}

/// Whatever changes in the midst of a search, it says what one says that begins afterwards.
#[test]
fn a_search_answers_for_its_end() {
    for lists in [false, true] {
        let counts = (0..8).map(|seed| in_the_midst(lists, seed)).fold([0, 0], |a, b| [a[0] + b[0], a[1] + b[1]]);
        assert!(counts.iter().all(|n| *n > 100), "some answers are touched, some are not: {counts:?}");
    }
}
