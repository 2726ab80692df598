//! Removed equals never added.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use proptest::prelude::*;
use silo_core::{Document, Filter, LanguageModel, NeighborSearch, Purpose, Selection, ShardId, SnapshotProvider};
use silo_store::{Boundary, NewShard, ShardState, Store, StoreError, StoreOptions, verify};
use silo_testkit::ByteTokenizer;

use super::{
    add, key_after, logical, model, open, open_with, passages, purge, recipe, recipe_of, remove, search, source,
};

fn files_below(path: &Path) -> usize {
    fs::read_dir(path).unwrap().count()
}

#[test]
fn a_removal_is_immediate_durable_and_leaves_no_file() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path());
    add(&store, "one", &["keep this"]).unwrap();
    let before = store.snapshot();
    let added = add(&store, "two", &["withdraw this"]).unwrap();
    let pinned = store.snapshot();
    let mask = pinned.mask(&Filter::default(), Purpose::Knn);
    let key = key_after(b'w', b'i');
    let query = silo_core::NeighborQuery { snapshot: &pinned, mask: &mask, key: &key, k: 1, text: &[] };
    assert_eq!(store.neighbors(&[query]).unwrap()[0][0].distance, 0.0);

    let removal = remove(&store, added.id);
    assert!(removal.epoch() > before.epoch && removal.effective_ms >= removal.durable_ms);
    assert_eq!((removal.root_before, removal.root_after), (pinned.root, before.root));
    let nothing = pinned.mask(&Filter { deny_shards: vec![added.id], ..Filter::default() }, Purpose::Knn);
    assert!(!store.is_live(&pinned, &mask) && store.is_live(&pinned, &nothing) && store.is_live(&before, &mask));
    // A search in the snapshot that was pinned before finds nothing of it either.
    let found = store.neighbors(&[query]).unwrap().remove(0);
    assert!(found[0].distance > 0.0 && found.iter().all(|n| pinned.shards[n.shard.0 as usize].id != added.id));
    assert_eq!(files_below(&root.path().join("shards")), 1);
    assert_eq!(files_below(&root.path().join("tmp")), 0);

    let again = |id| store.by("test").withdraw(&Selection::Shard(id)).unwrap_err();
    assert!(matches!(again(added.id), StoreError::ShardRemoved(_)));
    assert!(matches!(again(ShardId(99)), StoreError::UnknownShard(_)));
    drop(store);
    let store = open(root.path());
    assert_eq!(store.snapshot().root, before.root);
    assert_eq!(store.shard(added.id).unwrap().state, ShardState::Removed);
    let again = add(&store, "two", &["withdraw this"]).unwrap();
    assert!(again.id > added.id, "ids are never reused");
}

#[test]
fn what_a_crash_left_is_swept() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path());
    add(&store, "one", &["text"]).unwrap();
    drop(store);
    for orphan in ["tmp/half", "shards/never-entered"] {
        fs::create_dir(root.path().join(orphan)).unwrap();
        fs::write(root.path().join(orphan).join("keys.bin"), "x").unwrap();
    }
    for stray in ["tmp/left", "shards/.DS_Store"] {
        fs::write(root.path().join(stray), "x").unwrap();
    }
    let store = open(root.path());
    assert_eq!(store.snapshot().shards.len(), 1);
    assert_eq!((files_below(&root.path().join("shards")), files_below(&root.path().join("tmp"))), (1, 0));
}

#[test]
fn nothing_of_a_removed_text_is_left_in_any_file() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path());
    add(&store, "one", &["keep this"]).unwrap();
    let added = add(&store, "two", &["the secret sentence of the withdrawn source"]).unwrap();
    remove(&store, added.id);
    drop(store);
    let mut pending = vec![root.path().to_owned()];
    while let Some(path) = pending.pop() {
        if path.is_dir() {
            pending.extend(fs::read_dir(&path).unwrap().map(|e| e.unwrap().path()));
        } else {
            let bytes = fs::read(&path).unwrap();
            assert!(!bytes.windows(15).any(|w| w == b"secret sentence"), "{}", path.display());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn removed_equals_never_added(
        kept in prop::collection::vec("a b|[ab ]{1,8}|[ab ]{9,30}", 1..5),
        removed in prop::collection::vec("a b|[ab ]{1,8}|[ab ]{9,30}", 1..5),
        removed_first in any::<bool>(),
        same_source in any::<bool>(),
        lists in any::<bool>(),
        k in 1usize..30,
    ) {
        // Both may hold the same text: the copy that stays must not go with the other.
        let removed: Vec<&str> = removed.iter().map(String::as_str).collect();
        let kept: Vec<&str> = kept.iter().map(String::as_str).collect();
        let (with, without) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let other = if same_source { "kept" } else { "withdrawn" };
        let store = open_with(with.path(), recipe_of(lists)).unwrap();
        let id = if removed_first {
            let id = add(&store, other, &removed).unwrap().id;
            add(&store, "kept", &kept).unwrap();
            id
        } else {
            add(&store, "kept", &kept).unwrap();
            add(&store, other, &removed).unwrap().id
        };
        remove(&store, id);
        let never = open_with(without.path(), recipe_of(lists)).unwrap();
        add(&never, "kept", &kept).unwrap();
        prop_assert_eq!(store.snapshot().root, never.snapshot().root);
        for (a, b) in [(b'a', b'b'), (b' ', b'a'), (b'z', b'z')] {
            let query = key_after(a, b);
            let found = search(&store, &Filter::default(), &query, k);
            let expected = search(&never, &Filter::default(), &query, k);
            prop_assert_eq!(logical(&store, &found), logical(&never, &expected));
            let all = Filter::default();
            prop_assert_eq!(passages(&store, &all, "a ab b", k), passages(&never, &all, "a ab b", k));
        }
    }
}

/// What is read document by document, and what is asked for as a range, is the same.
#[test]
fn many_documents_are_found_by_the_ends_of_their_range() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path());
    let texts: Vec<String> = (0..9000).map(|i| format!("{i:04}")).collect();
    store.by("test").create_source(&super::source("s")).unwrap();
    let documents: Vec<_> = texts
        .iter()
        .map(|text| silo_core::Document { uri: format!("pkg:{}/{text}", &text[..1]), ..super::document("s", text) })
        .collect();
    let never = std::sync::atomic::AtomicBool::new(false);
    let add = |documents: &[silo_core::Document]| {
        let source = "s".parse().unwrap();
        let new = silo_store::NewShard { source: &source, documents };
        store.by("test").add_shard(&new, &super::model(), &never, &|_, _| {}).unwrap().id
    };
    let (first, second) = (add(&documents[..6000]), add(&documents[6000..]));
    let prefix = |prefix: &str| Selection::UriPrefix { source: None, prefix: prefix.into() };
    let plan = |p: &str| {
        let parts = store.plan(&prefix(p)).unwrap().into_iter();
        parts.map(|p| (p.shard, p.n_documents, p.numbers.map(|n| (n.iter().min(), n.iter().max())))).collect::<Vec<_>>()
    };
    assert_eq!(plan("pkg:1"), [(first, 1000, Some((Some(1000), Some(1999))))]);
    assert_eq!(plan("pkg:"), [(first, 6000, None), (second, 3000, None)]);
    store.by("test").withdraw(&prefix("pkg:1/10")).unwrap();
    super::purge(&store);
    store.by("test").withdraw(&prefix("pkg:2/20")).unwrap();
    assert_eq!(plan("pkg:"), [(first, 5800, None), (second, 3000, None)]);
    assert_eq!(plan("pkg:1"), [(first, 900, Some((Some(1100), Some(1999))))]);
    let removal = store.by("test").withdraw(&prefix("pkg")).unwrap();
    assert_eq!(removal.root_after, silo_core::Snapshot::empty().root);
    assert!(matches!(store.by("test").withdraw(&prefix("pkg")), Err(StoreError::NothingSelected)));
}

#[test]
fn what_a_snapshot_showed_before_a_suspension_is_not_live_after_it() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path());
    let id = add(&store, "one", &["some text"]).unwrap().id;
    let before = store.snapshot();
    let all = |snapshot: &silo_core::Snapshot| snapshot.mask(&Filter::default(), Purpose::Knn);
    store.by("test").suspend_shard(id).unwrap();
    let during = store.snapshot();
    assert!(!store.is_live(&before, &all(&before)));
    store.by("test").resume_shard(id).unwrap();
    // A search in it may have found nothing of the shard meanwhile.
    assert!(!store.is_live(&before, &all(&before)));
    assert!(store.is_live(&during, &all(&during)) && store.is_live(&store.snapshot(), &all(&store.snapshot())));
    assert_eq!(store.snapshot().root, before.root);
}

/// Documents by their URIs.
fn add_uris(store: &Store, uris: &[&str]) {
    store.by("test").create_source(&source("one")).unwrap();
    let document = |uri: &&str| Document { uri: (*uri).into(), ..super::document("one", &format!("text of {uri}")) };
    let documents: Vec<Document> = uris.iter().map(document).collect();
    let new = NewShard { source: &"one".parse().unwrap(), documents: &documents };
    store.by("test").add_shard(&new, &model(), &AtomicBool::new(false), &|_, _| {}).unwrap();
}

#[test]
fn a_removal_between_the_batches_of_a_purge_takes_what_is_asked_for() {
    let prefix = |prefix: &str| Selection::UriPrefix { source: None, prefix: prefix.into() };
    let mut nth = 0;
    loop {
        let root = tempfile::tempdir().unwrap();
        let (passed, place) = (Arc::new(AtomicUsize::new(usize::MAX / 2)), Arc::new(OnceLock::<Weak<Store>>::new()));
        let (counted, found) = (passed.clone(), place.clone());
        let at_boundary = move |boundary| {
            if boundary == Boundary::BatchCommitted && counted.fetch_add(1, Ordering::SeqCst) == nth {
                let store = found.get().unwrap().upgrade().unwrap();
                assert_eq!(store.by("test").withdraw(&prefix("a/")).unwrap().record.parts[0].n_documents, 1);
            }
        };
        let options = StoreOptions { n_threads: 1, batch: 2, at_boundary: Some(Arc::new(at_boundary)) };
        let tokenizer = Arc::new(ByteTokenizer::default());
        let store = Arc::new(Store::open(root.path(), model().card(), recipe(), tokenizer, options).unwrap());
        place.set(Arc::downgrade(&store)).unwrap();
        add_uris(&store, &["a/11", "a/12", "a/13", "a/14", "a/15", "a/2", "b/1", "b/2"]);
        store.by("test").withdraw(&prefix("a/1")).unwrap();
        passed.store(0, Ordering::SeqCst);
        purge(&store);
        if passed.load(Ordering::SeqCst) <= nth {
            assert!(nth > 3, "a purge has several batches");
            return;
        }
        passed.store(usize::MAX / 2, Ordering::SeqCst);
        let left = |store: &Store| -> Vec<String> {
            store.documents(ShardId(1)).unwrap().into_iter().map(|d| d.document.uri).collect()
        };
        assert_eq!(left(&store), ["b/1", "b/2"], "after batch {nth}");
        purge(&store);
        drop(store);
        assert_eq!(verify(root.path()).unwrap().faults, []);
        assert_eq!(left(&open(root.path())), ["b/1", "b/2"], "after batch {nth}, opened again");
        nth += 1;
    }
}
