//! Damaged shards are named, left out, and do not stop the rest.

use std::fs;
use std::path::PathBuf;

use silo_core::{Filter, ShardId, SnapshotProvider};
use tempfile::TempDir;

use super::{add, key_after, open, search};

const FILES: [&str; 6] = ["documents.bin", "metadata.bin", "text.bin", "tokens.bin", "keys.bin", "passages.bin"];

/// A store of two shards, closed, and the directory of the second.
fn two_shards() -> (TempDir, PathBuf) {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path());
    add(&store, "one", &["keep serving this"]).unwrap();
    let added = add(&store, "two", &["to be damaged"]).unwrap();
    let directory = root.path().join("shards").join(store.shard(added.id).unwrap().directory);
    (root, directory)
}

#[track_caller]
fn left_out(root: &TempDir, says: &str) {
    let store = open(root.path());
    let status = store.status();
    let reason = &status.unavailable[&ShardId(2)];
    assert!(reason.contains(says), "{reason:?} should say {says:?}");
    assert_eq!(store.snapshot().shards.len(), 1);
    assert_eq!(search(&store, &Filter::default(), &key_after(b'k', b'e'), 1)[0].distance, 0.0);
    store.remove_shard(ShardId(2)).unwrap(); // what cannot be read can be withdrawn
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
    fs::write(directory.join("manifest.json"), text.replace("\"version\": 1", "\"version\": 99")).unwrap();
    left_out(&root, "format version 99");
    let (root, directory) = two_shards();
    fs::write(directory.join("manifest.json"), "{").unwrap();
    left_out(&root, "is damaged");
}

#[test]
fn records_that_point_elsewhere() {
    for byte in [32, 40, 48, 56, 64, 72, 80, 88] {
        let (root, directory) = two_shards();
        let path = directory.join("documents.bin");
        let mut bytes = fs::read(&path).unwrap();
        bytes[byte + 2] ^= 0x40;
        fs::write(&path, bytes).unwrap();
        left_out(&root, "records do not");
    }
}

#[test]
fn a_flipped_bit_anywhere_is_found_by_verify() {
    // A changed passage record no longer fits its document, so it is found at opening already.
    for file in &FILES[..5] {
        let (root, directory) = two_shards();
        let store = open(root.path());
        let shard = store.open_shard(ShardId(2)).unwrap();
        shard.verify().unwrap();
        drop((shard, store));
        let path = directory.join(file);
        let mut bytes = fs::read(&path).unwrap();
        bytes[0] ^= 1;
        fs::write(&path, bytes).unwrap();
        let store = open(root.path());
        let message = store.open_shard(ShardId(2)).unwrap().verify().unwrap_err().to_string();
        assert!(message.contains(file) && message.contains("SHA-256"), "{message}");
    }
}
