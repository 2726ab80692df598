//! Shards that are encoded again.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use silo_core::{Filter, ShardId, SnapshotProvider};
use silo_store::{ShardState, Store, StoreError};

use super::{add, inverted, key_after, logical, model, open, open_with, remove, search};

const TEXTS: [&str; 3] = ["one fish two fish", "red fish", "blue fish"];

/// A rebuilt shard is the one that would have been added, under its old number; nothing of the old files stays.
#[test]
fn a_shard_of_another_recipe_comes_back_by_rebuilding_it() {
    let (root, fresh) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let store = open(root.path());
    let first = add(&store, "s", &TEXTS).unwrap();
    let gone = add(&store, "other", &["withdrawn"]).unwrap();
    remove(&store, gone.id);
    let no_progress: &dyn Fn(u64, u64) = &|_, _| {};
    let never = Arc::new(AtomicBool::new(false));
    assert!(matches!(
        store.by("test").rebuild_shard(gone.id, &model(), &never, no_progress),
        Err(StoreError::ShardRemoved(_))
    ));
    drop(store);

    let store = open_with(root.path(), inverted()).unwrap();
    let refused = store.unavailable()[&first.id].clone();
    assert!(refused.contains("silo shard rebuild"), "{refused}");
    let cancelled = store.by("test").rebuild_shard(first.id, &model(), &Arc::new(AtomicBool::new(true)), no_progress);
    assert!(matches!(cancelled, Err(StoreError::Cancelled | StoreError::Model { .. })), "{cancelled:?}");
    assert!(store.snapshot().shards.is_empty(), "it stays what it was");
    let before = store.snapshot();
    let rebuilt = store.by("test").rebuild_shard(first.id, &model(), &never, no_progress).unwrap();
    assert_eq!((rebuilt.id, rebuilt.manifest.n_documents, rebuilt.n_duplicates), (first.id, 3, 0));
    assert!(rebuilt.epoch > before.epoch && store.unavailable().is_empty());

    let expected = open_with(fresh.path(), inverted()).unwrap();
    add(&expected, "s", &TEXTS).unwrap();
    let check = |store: &Store| {
        assert_eq!(store.snapshot().root, expected.snapshot().root);
        let find = |s: &Store| logical(s, &search(s, &Filter::default(), &key_after(b' ', b'f'), 9));
        assert_eq!(find(store), find(&expected));
    };
    check(&store);
    assert_eq!(fs::read_dir(root.path().join("shards")).unwrap().count(), 1);
    drop(store);
    check(&open_with(root.path(), inverted()).unwrap());
}

#[test]
fn a_shard_whose_text_is_whole_comes_back_whatever_else_is_damaged() {
    for file in ["keys.bin", "rows.bin", "codes.bin", "tokens.bin", "passages.bin"] {
        let root = tempfile::tempdir().unwrap();
        let store = open_with(root.path(), inverted()).unwrap();
        let added = add(&store, "s", &TEXTS).unwrap();
        let path = root.path().join("shards").join(store.shard(added.id).unwrap().directory).join(file);
        let whole = store.snapshot();
        drop(store);
        fs::write(&path, b"no longer").unwrap();
        let store = open_with(root.path(), inverted()).unwrap();
        assert!(store.unavailable()[&added.id].contains("silo shard rebuild"));
        store.by("test").rebuild_shard(added.id, &model(), &Default::default(), &|_, _| {}).unwrap();
        assert_eq!(store.snapshot().root, whole.root, "{file}");
        assert!(store.scrub().is_empty());
    }
}

#[test]
fn a_shard_without_its_text_stays_what_it_was() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path());
    let added = add(&store, "s", &TEXTS).unwrap();
    let directory = root.path().join("shards").join(store.shard(added.id).unwrap().directory);
    let text = fs::read(directory.join("text.bin")).unwrap();
    fs::write(directory.join("text.bin"), &text[1..]).unwrap();
    let refused = store.by("test").rebuild_shard(added.id, &model(), &Default::default(), &|_, _| {});
    assert!(matches!(refused, Err(StoreError::Damaged { .. })), "{refused:?}");
    assert!(directory.exists());
    assert_eq!(fs::read_dir(root.path().join("tmp")).unwrap().count(), 0);
}

/// A removal that comes while the shard is being rebuilt waits until the copies that the rebuild made are gone.
#[test]
fn a_removal_stops_a_rebuild_and_leaves_no_file() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path());
    let id = add(&store, "s", &TEXTS).unwrap().id;
    std::thread::scope(|scope| {
        let removal = std::sync::Mutex::new(None);
        let progress = |done, _| {
            if done == 0 && removal.lock().unwrap().is_none() {
                assert!(fs::read_dir(root.path().join("tmp")).unwrap().count() > 0);
                *removal.lock().unwrap() = Some(scope.spawn(|| remove(&store, id)));
                while store.shard(id).unwrap().state != ShardState::Removed {
                    std::thread::yield_now();
                }
            }
        };
        let rebuilt = store.by("test").rebuild_shard(id, &model(), &AtomicBool::new(false), &progress);
        assert!(rebuilt.is_err(), "{rebuilt:?}");
        removal.into_inner().unwrap().unwrap().join().unwrap();
    });
    assert_eq!(store.shard(id).unwrap().state, ShardState::Removed);
    for place in ["tmp", "shards"] {
        assert_eq!(fs::read_dir(root.path().join(place)).unwrap().count(), 0, "{place}");
    }
}

/// A scrub that looks at the files of a shard while they are replaced takes nothing out.
#[test]
fn a_scrub_beside_rebuilds_takes_nothing_out() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path());
    let id: ShardId = add(&store, "s", &TEXTS).unwrap().id;
    std::thread::scope(|scope| {
        let rebuilds = scope.spawn(|| {
            (0..20).for_each(|_| {
                drop(store.by("test").rebuild_shard(id, &model(), &Default::default(), &|_, _| {}).unwrap())
            });
        });
        while !rebuilds.is_finished() {
            assert!(store.scrub().is_empty());
        }
    });
    assert_eq!(store.snapshot().shards.len(), 1);
}
