//! Damaged shards are named, left out, and do not stop the rest.

use std::fs;
use std::path::{Path, PathBuf};

use silo_core::{Filter, ShardId, SnapshotProvider};
use tempfile::TempDir;

use super::{add, key_after, open, open_with, recipe_of, remove, search};

const FILES: [&str; 6] = ["documents.bin", "metadata.bin", "text.bin", "tokens.bin", "keys.bin", "passages.bin"];

const LIST_FILES: [&str; 3] = ["lists.bin", "rows.bin", "codes.bin"];

fn two_shards() -> (TempDir, PathBuf) {
    two_shards_of(false)
}

/// A store of two shards, closed, and the directory of the second.
fn two_shards_of(lists: bool) -> (TempDir, PathBuf) {
    let root = tempfile::tempdir().unwrap();
    let store = open_with(root.path(), recipe_of(lists)).unwrap();
    add(&store, "one", &["keep serving this"]).unwrap();
    let added = add(&store, "two", &["to be damaged"]).unwrap();
    let directory = root.path().join("shards").join(store.shard(added.id).unwrap().directory);
    (root, directory)
}

#[track_caller]
fn left_out(root: &TempDir, says: &str) {
    let store = open(root.path());
    let unavailable = store.unavailable();
    let reason = &unavailable[&ShardId(2)];
    assert!(reason.contains(says), "{reason:?} should say {says:?}");
    assert_eq!(store.snapshot().shards.len(), 1);
    assert_eq!(search(&store, &Filter::default(), &key_after(b'k', b'e'), 1)[0].distance, 0.0);
    remove(&store, ShardId(2)); // what cannot be read can be withdrawn
}

#[test]
fn missing_and_truncated_files() {
    for file in FILES {
        let (root, directory) = two_shards();
        fs::remove_file(directory.join(file)).unwrap();
        left_out(&root, "is missing");
        let (root, directory) = two_shards();
        let bytes = fs::read(directory.join(file)).unwrap();
        fs::write(directory.join(file), &bytes[..bytes.len() - 1]).unwrap();
        left_out(&root, &format!("{file} is damaged: it has {} bytes", bytes.len() - 1));
    }
}

#[test]
fn a_changed_manifest() {
    let (root, directory) = two_shards();
    let path = directory.join("manifest.json");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replace("\"n_documents\": 1", "\"n_documents\": 2")).unwrap();
    left_out(&root, "not the one that was added");
    let (root, directory) = two_shards();
    fs::write(directory.join("manifest.json"), text.replace("\"version\": 2", "\"version\": 99")).unwrap();
    left_out(&root, "format version 99");
    let (root, directory) = two_shards();
    fs::write(directory.join("manifest.json"), "{").unwrap();
    left_out(&root, "is damaged");
}

#[test]
fn records_that_point_elsewhere() {
    for byte in [32, 40, 48, 56, 64, 72, 80, 88, 96, 104] {
        let (root, directory) = two_shards();
        let path = directory.join("documents.bin");
        let mut bytes = fs::read(&path).unwrap();
        bytes[byte + 2] ^= 0x40;
        fs::write(&path, bytes).unwrap();
        left_out(&root, "SHA-256");
    }
}

/// Files of the same kind in another shard: names in the passage index differ from build to build, endings do not.
fn same_file(directory: &Path, name: &Path) -> PathBuf {
    let twin = directory.join(name);
    if twin.exists() {
        return twin;
    }
    let files = fs::read_dir(twin.parent().unwrap()).unwrap().map(|e| e.unwrap().path());
    files.into_iter().find(|p| p.extension() == name.extension()).unwrap()
}

#[test]
fn a_flipped_bit_in_any_file_is_found() {
    let (_root, directory) = two_shards_of(true);
    let lexical = fs::read_dir(directory.join("bm25")).unwrap().map(|e| e.unwrap().path());
    let named = FILES.iter().chain(&LIST_FILES).map(|f| directory.join(f));
    let files: Vec<PathBuf> = named.chain(lexical).collect();
    assert!(files.len() > 11);
    for file in files.iter().filter(|f| fs::metadata(f).unwrap().len() > 0) {
        let (root, fresh) = two_shards_of(true);
        let path = same_file(&fresh, file.strip_prefix(&directory).unwrap());
        let mut bytes = fs::read(&path).unwrap();
        let at = bytes.len() / 2;
        bytes[at] ^= 1;
        fs::write(&path, bytes).unwrap();
        let store = open_with(root.path(), recipe_of(true)).unwrap();
        // Most of the bytes: checked in the background, and then left out.
        if let Some(late) = ["keys.bin", "codes.bin"].iter().find(|f| file.ends_with(f)) {
            assert_eq!(store.snapshot().shards.len(), 2);
            assert!(store.scrub()[&ShardId(2)].contains(late));
        }
        assert!(store.unavailable()[&ShardId(2)].contains("SHA-256"), "{}", path.display());
        assert_eq!(store.snapshot().shards.len(), 1);
        assert!(store.scrub().is_empty());
    }
}

#[test]
fn damaged_lists_are_named() {
    for file in LIST_FILES {
        let (root, directory) = two_shards_of(true);
        let path = directory.join(file);
        let bytes = fs::read(&path).unwrap();
        fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
        let store = open_with(root.path(), recipe_of(true)).unwrap();
        let says = format!("{file} is damaged: it has {} bytes", bytes.len() - 1);
        assert!(store.unavailable()[&ShardId(2)].contains(&says));
        fs::remove_file(&path).unwrap();
        drop(store);
        let store = open_with(root.path(), recipe_of(true)).unwrap();
        assert!(store.unavailable()[&ShardId(2)].contains("is missing"));
    }
}

#[test]
fn a_uri_that_the_catalog_has_wrong_is_found() {
    let root = tempfile::tempdir().unwrap();
    add(&open(root.path()), "one", &["some text", "and more"]).unwrap();
    assert_eq!(silo_store::verify(root.path()).unwrap().faults, []);
    let catalog = rusqlite::Connection::open(root.path().join("catalog.sqlite")).unwrap();
    catalog.execute("UPDATE documents SET uri = 'test:one/10' WHERE number = 1", []).unwrap();
    drop(catalog);
    let faults = silo_store::verify(root.path()).unwrap().faults;
    assert!(faults.len() == 1 && faults[0].what.contains("URIs"), "{faults:?}");
}
