//! Flipped bits in what is no shard: the catalog, its write-ahead log, its head, a backup. Nothing that was withdrawn comes back, no number
//! is given out again, and what is lost is said.

use std::fs;
use std::path::{Path, PathBuf};

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use silo_core::{Filter, Selection, ShardId, SnapshotProvider};
use silo_store::{Later, RemovalLog, Store, StoreError, restore, verify};
use tempfile::TempDir;

use super::{add, key_after, open_with, passages, purge, recipe, search};

/// What stays, in two shards. Each text has two letters that it alone has.
const KEPT: [&str; 2] = ["bcbcbcbc", "dedededede"];
/// What was withdrawn: a document of a shard, purged; one that is still in the files; a whole shard.
const GONE: [&str; 3] = ["fgfgfgfgfg", "hihihihihihi", "jkjkjkjkjkjkjk"];

fn all_files(root: &Path) -> Vec<PathBuf> {
    let mut out = Vec::new();
    for entry in fs::read_dir(root).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { out.extend(all_files(&path)) } else { out.push(path) }
    }
    out
}

fn copy(from: &Path, to: &Path) {
    for file in all_files(from) {
        let target = to.join(file.strip_prefix(from).unwrap());
        fs::create_dir_all(target.parent().unwrap()).unwrap();
        fs::copy(&file, &target).unwrap();
    }
}

/// A store with something of all kinds in it, open.
fn filled() -> (TempDir, Store) {
    let root = tempfile::tempdir().unwrap();
    let store = open_with(root.path(), recipe()).unwrap();
    add(&store, "one", &[KEPT[0], GONE[0], GONE[1]]).unwrap();
    add(&store, "two", &[KEPT[1]]).unwrap();
    let whole = add(&store, "two", &[GONE[2]]).unwrap().id;
    let document = |text: &str| Selection::Documents {
        source: "one".parse().unwrap(),
        documents: vec![silo_core::ContentHash::of(text.as_bytes())],
    };
    store.by("test").withdraw(&document(GONE[0])).unwrap();
    purge(&store);
    store.by("test").withdraw(&document(GONE[1])).unwrap();
    store.by("test").withdraw(&Selection::Shard(whole)).unwrap();
    (root, store)
}

fn pair(text: &str) -> Vec<f32> {
    key_after(text.as_bytes()[0], text.as_bytes()[1])
}

/// Whether it is found, and in both ways.
fn finds(store: &Store, text: &str) -> bool {
    let nearest = search(store, &Filter::default(), &pair(text), 1).first().is_some_and(|n| n.distance == 0.0);
    let passage = !passages(store, &Filter::default(), text, 1).is_empty();
    assert_eq!(nearest, passage, "'{text}' is found in one way and not in the other");
    nearest
}

/// What became of a store in which something was changed.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
enum Seen {
    Refused,
    LeftOut,
    Whole,
}

/// Opens it, and checks that nothing is back and nothing is lost unsaid.
fn look(root: &Path, context: &str) -> Seen {
    let store = match open_with(root, recipe()) {
        Ok(store) => store,
        Err(error) => {
            assert!(error.to_string().len() > 20, "{context}: {error}");
            return Seen::Refused;
        }
    };
    for gone in GONE {
        assert!(!finds(&store, gone), "{context}: '{gone}' is back");
    }
    let unavailable = store.unavailable();
    for kept in KEPT {
        // A flipped number of a shard is said of that number.
        assert!(finds(&store, kept) || !unavailable.is_empty(), "{context}: '{kept}' is lost, and nobody says so");
    }
    match add(&store, "two", &["lmlmlm"]) {
        Ok(added) => assert!(added.id > ShardId(3), "{context}: shard {} was given out again", added.id),
        Err(error) => assert!(matches!(error, StoreError::Catalog { .. }), "{context}: {error}"),
    }
    if unavailable.is_empty() { Seen::Whole } else { Seen::LeftOut }
}

/// Flips bits of a file of a store, one at a time; says what became of the store each time.
fn flip(image: &Path, name: &str, n: usize, seed: u64) -> Vec<Seen> {
    let bytes = fs::read(image.join(name)).unwrap();
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let one = |_| {
        let (at, bit) = (rng.random_range(0..bytes.len()), rng.random_range(0..8));
        let root = tempfile::tempdir().unwrap();
        copy(image, root.path());
        let mut changed = bytes.clone();
        changed[at] ^= 1 << bit;
        fs::write(root.path().join(name), changed).unwrap();
        look(root.path(), &format!("{name}, bit {bit} of byte {at}, seed {seed}"))
    };
    (0..n).map(one).collect()
}

/// Copies a store as a crash would leave it.
fn crashed() -> TempDir {
    let ((root, store), image) = (filled(), tempfile::tempdir().unwrap());
    copy(root.path(), image.path());
    drop(store);
    image
}

#[test]
fn in_the_catalog() {
    let (root, store) = filled();
    drop(store);
    assert_eq!(look(tempfile_copy(&root).path(), "unchanged"), Seen::Whole);
    let seen = flip(root.path(), "catalog.sqlite", 250, 1);
    assert!(seen.contains(&Seen::Refused) && seen.contains(&Seen::Whole), "{seen:?}");
}

#[test]
fn in_the_write_ahead_log() {
    let image = crashed();
    assert!(fs::metadata(image.path().join("catalog.sqlite-wal")).unwrap().len() > 10_000);
    assert_eq!(look(tempfile_copy(&image).path(), "unchanged"), Seen::Whole);
    let seen = flip(image.path(), "catalog.sqlite-wal", 150, 2);
    assert!(seen.contains(&Seen::Refused), "{seen:?}");
}

fn tempfile_copy(image: &TempDir) -> TempDir {
    let root = tempfile::tempdir().unwrap();
    copy(image.path(), root.path());
    root
}

#[test]
fn in_the_head_of_the_catalog() {
    let image = crashed();
    // The other line says what was before: it is not missed.
    assert!(flip(image.path(), "catalog.head", 60, 3).iter().all(|seen| *seen == Seen::Whole));
}

#[test]
fn an_old_catalog_in_the_place_of_the_newest() {
    let (root, store) = filled();
    let old = tempfile::tempdir().unwrap();
    store.backup(old.path(), "monday", &Default::default(), &|_, _| {}).unwrap();
    let log = old.path().join("removals.jsonl");
    let write_log = |to: &Path| RemovalLog::read(root.path()).unwrap().write(fs::File::create(to).unwrap()).unwrap();
    write_log(&log);
    store.by("test").withdraw(&Selection::Shard(ShardId(2))).unwrap();
    let newest = old.path().join("newest.jsonl");
    write_log(&newest);
    drop(store);
    for end in ["-wal", "-shm"] {
        let _ = fs::remove_file(root.path().join(format!("catalog.sqlite{end}")));
    }
    let backup = old.path().join("monday");
    fs::copy(backup.join("catalog.sqlite"), root.path().join("catalog.sqlite")).unwrap();
    let refused = open_with(root.path(), recipe()).err().unwrap().to_string();
    assert!(refused.contains("were acknowledged") && refused.contains("catalog.head"), "{refused}");
    let faults = verify(root.path()).unwrap().faults;
    assert!(faults.iter().any(|f| f.what.contains("were acknowledged")), "{faults:?}");
    // The log that the old catalog holds is not enough either; the newest is.
    for later in [Later::None, Later::Log(&log)] {
        let refused = restore(&backup, root.path(), later, None).unwrap_err().to_string();
        assert!(refused.contains("catalog.head"), "{refused}");
    }
    restore(&backup, root.path(), Later::Log(&newest), None).unwrap();
    let store = open_with(root.path(), recipe()).unwrap();
    assert!(!finds(&store, KEPT[1]) && finds(&store, KEPT[0]));
    assert!(GONE.iter().all(|gone| !finds(&store, gone)));
}

#[test]
fn in_any_file_of_a_backup() {
    let (root, store) = filled();
    store.backup(root.path(), "monday", &Default::default(), &|_, _| {}).unwrap();
    drop(store);
    let backup = root.path().join("monday");
    let mut rng = ChaCha8Rng::seed_from_u64(4);
    let files = all_files(&backup);
    assert!(files.len() > 15, "{files:?}");
    for file in files.iter().filter(|f| fs::metadata(f).unwrap().len() > 0) {
        let name = file.strip_prefix(&backup).unwrap();
        let bytes = fs::read(file).unwrap();
        for _ in 0..if name.ends_with("catalog.sqlite") { 60 } else { 2 } {
            let (at, bit) = (rng.random_range(0..bytes.len()), rng.random_range(0..8));
            let (damaged, new) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
            copy(&backup, damaged.path());
            let mut changed = bytes.clone();
            changed[at] ^= 1 << bit;
            fs::write(damaged.path().join(name), changed).unwrap();
            let context = format!("{} of a backup, bit {bit} of byte {at}", name.display());
            let restored = restore(damaged.path(), new.path(), Later::None, None);
            if restored.is_err() {
                assert!(name.ends_with("catalog.sqlite") || name.ends_with("backup.json"), "{context}: {restored:?}");
            } else if name.ends_with("backup.json") {
                assert_eq!(look(new.path(), &context), Seen::Whole, "{context}"); // in what is said of it only
            } else {
                open_with(new.path(), recipe()).unwrap().scrub();
                assert_eq!(look(new.path(), &context), Seen::LeftOut, "{context}");
            }
        }
    }
}

/// What was found damaged is left out after a restart too, until it is whole again.
#[test]
fn a_quarantine_outlasts_a_restart() {
    let (root, store) = filled();
    let keys = root.path().join("shards").join(store.shard(ShardId(2)).unwrap().directory).join("keys.bin");
    let whole = fs::read(&keys).unwrap();
    let mut changed = whole.clone();
    changed[whole.len() / 2] ^= 1;
    fs::write(&keys, &changed).unwrap();
    assert_eq!(store.scrub().len(), 1);
    drop(store);
    let store = open_with(root.path(), recipe()).unwrap();
    assert!(store.unavailable()[&ShardId(2)].contains("keys.bin"), "{:?}", store.unavailable());
    assert!(store.snapshot().shards.iter().all(|s| s.id != ShardId(2)));
    drop(store);
    fs::write(&keys, &whole).unwrap();
    for _ in 0..2 {
        let store = open_with(root.path(), recipe()).unwrap();
        assert!(store.unavailable().is_empty() && finds(&store, KEPT[1]));
    }
}

/// What the table of the shards forgets, the log of removals knows: at once, after a purge, a rebuild and a repair.
#[test]
fn a_forgotten_withdrawal_is_done_again() {
    for sql in ["UPDATE shards SET withdrawn = NULL", "UPDATE shards SET state = 'live', withdrawn = NULL WHERE id = 3"]
    {
        let (root, store) = filled();
        drop(store);
        let catalog = rusqlite::Connection::open(root.path().join("catalog.sqlite")).unwrap();
        catalog.execute_batch(sql).unwrap();
        drop(catalog);
        if sql.contains("live") {
            // It would refuse a catalog with one shard more.
            fs::remove_file(root.path().join("catalog.head")).unwrap();
        }
        for _ in 0..2 {
            let store = open_with(root.path(), recipe()).unwrap();
            let gone = |store: &Store| {
                assert!(GONE.iter().all(|text| !finds(store, text)), "{sql}");
                assert!(KEPT.iter().all(|text| finds(store, text)) && store.unavailable().is_empty(), "{sql}");
            };
            gone(&store);
            store.by("test").rebuild_shard(ShardId(1), &super::model(), &Default::default(), &|_, _| {}).unwrap();
            gone(&store);
            assert!(purge(&store).failures.is_empty());
            gone(&store);
            drop(store);
            assert_eq!(verify(root.path()).unwrap().faults, []);
        }
    }
}
