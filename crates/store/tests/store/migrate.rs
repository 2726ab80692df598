//! Catalogs of older versions still open.

use std::fs;

use silo_core::{ContentHash, Selection, ShardId, SnapshotProvider};
use silo_store::{RemovalKind, ShardState, verify};

use super::{add, open, purge};

/// The tables of version 1, and a store with a source, a removed shard and a live one.
const VERSION_1: &str = "
CREATE TABLE sources (id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE, owner TEXT NOT NULL, licence TEXT NOT NULL,
    licence_stated_at TEXT NOT NULL, tier TEXT NOT NULL, permissions TEXT NOT NULL) STRICT;
CREATE TABLE shards (id INTEGER PRIMARY KEY AUTOINCREMENT, source_id INTEGER NOT NULL REFERENCES sources (id),
    state TEXT NOT NULL CHECK (state IN ('live', 'removed')), directory TEXT NOT NULL UNIQUE, manifest_sha256 TEXT NOT NULL,
    model_hash TEXT NOT NULL, recipe_hash TEXT NOT NULL, n_documents INTEGER NOT NULL, n_tokens INTEGER NOT NULL,
    n_entries INTEGER NOT NULL, added_epoch INTEGER NOT NULL REFERENCES epochs (epoch), removed_epoch INTEGER REFERENCES epochs (epoch)) STRICT;
CREATE TABLE epochs (epoch INTEGER PRIMARY KEY AUTOINCREMENT, at_unix_ms INTEGER NOT NULL, change TEXT NOT NULL) STRICT;
INSERT INTO sources (name, owner, licence, licence_stated_at, tier, permissions) VALUES
    ('one', 'somebody', 'MIT', 'here', 'permissive', '{\"train\":true,\"knn\":true,\"context\":true,\"verbatim\":true,\"display\":true}');
INSERT INTO epochs (at_unix_ms, change) VALUES (1, 'add shard'), (2, 'add shard'), (3, 'remove shard');
INSERT INTO shards VALUES (4, 1, 'removed', 'gone', 'x', 'm', 'r', 2, 20, 18, 1, 3), (5, 1, 'live', 'kept', 'MANIFEST', 'm', 'r', 1, 9, 8, 2, NULL);
PRAGMA user_version = 1;
";

#[test]
fn a_catalog_of_version_1_is_brought_up_to_date() {
    let root = tempfile::tempdir().unwrap();
    let manifest = r#"{"format": "silo-shard", "version": 1}"#;
    fs::create_dir_all(root.path().join("shards/kept")).unwrap();
    fs::write(root.path().join("shards/kept/manifest.json"), manifest).unwrap();
    let sql = VERSION_1.replace("MANIFEST", &ContentHash::of(manifest.as_bytes()).to_string());
    let old = rusqlite::Connection::open(root.path().join("catalog.sqlite")).unwrap();
    old.execute_batch(&sql).unwrap();
    drop(old);

    let store = open(root.path());
    assert_eq!(store.source(&"one".parse().unwrap()).unwrap().owner, "somebody");
    assert!(store.unavailable()[&ShardId(5)].contains("format version 1"), "{:?}", store.unavailable());
    assert_eq!(store.shard(ShardId(4)).unwrap().state, ShardState::Removed);
    let log = store.removals(0).unwrap();
    assert_eq!(
        (log.len(), log[0].kind, log[0].epoch.0, log[0].parts[0].shard),
        (1, RemovalKind::Remove, 3, ShardId(4))
    );
    let removal = store.by("test").withdraw(&Selection::Shard(ShardId(5))).unwrap();
    assert_eq!(removal.epoch().0, 5, "what cannot be retrieved any more made one");
    purge(&store);
    assert_eq!(add(&store, "one", &["new text"]).unwrap().id, ShardId(6), "numbers go on");
    assert_eq!(store.snapshot().shards.len(), 1);
    drop(store);
    assert_eq!(verify(root.path()).unwrap().faults, []);
}

/// What versions 2 to 5 did not have.
const WITHOUT_NOTICES: &str = "
PRAGMA foreign_keys = OFF; PRAGMA legacy_alter_table = ON;
DROP TABLE ledger;
ALTER TABLE sources RENAME TO sources_6;
CREATE TABLE sources (id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE, owner TEXT NOT NULL, licence TEXT NOT NULL,
    licence_stated_at TEXT NOT NULL, tier TEXT NOT NULL, permissions TEXT NOT NULL) STRICT;
INSERT INTO sources SELECT id, name, owner, licence, licence_stated_at, tier, permissions FROM sources_6;
DROP TABLE sources_6;
PRAGMA legacy_alter_table = OFF;
";

/// What versions 2 to 4 did not have.
const WITHOUT_REQUESTS: &str = "
PRAGMA foreign_keys = OFF; PRAGMA legacy_alter_table = ON;
DROP TABLE suppressions; DROP TABLE optout_events; DROP TABLE optouts; DROP TABLE suppression_key; DROP TABLE policies;
ALTER TABLE removals RENAME TO removals_5;
DROP INDEX holds; DROP INDEX ended_holds;
CREATE TABLE removals (id INTEGER PRIMARY KEY AUTOINCREMENT, epoch INTEGER NOT NULL UNIQUE REFERENCES epochs (epoch), at_unix_ms INTEGER NOT NULL,
    kind TEXT NOT NULL CHECK (kind IN ('remove', 'suspend', 'resume')), selector TEXT NOT NULL, chain TEXT NOT NULL, purged_at_unix_ms INTEGER) STRICT;
INSERT INTO removals SELECT id, epoch, at_unix_ms, kind, selector, chain, purged_at_unix_ms FROM removals_5;
DROP TABLE removals_5;
PRAGMA legacy_alter_table = OFF;
";

/// Version 4 knew no requests; what it withdrew stays so, and can be proven.
#[test]
fn a_catalog_of_version_4_is_brought_up_to_date() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path());
    let added = add(&store, "one", &["some text", "other text"]).unwrap();
    let removal = store.by("test").withdraw(&Selection::Shard(added.id)).unwrap().record;
    add(&store, "one", &["a third text"]).unwrap();
    let (before, moments) = (store.snapshot(), store.moments(removal.id).unwrap());
    drop(store);
    let old = rusqlite::Connection::open(root.path().join("catalog.sqlite")).unwrap();
    old.execute_batch(&format!("{WITHOUT_NOTICES} {WITHOUT_REQUESTS} PRAGMA user_version = 4;")).unwrap();
    drop(old);
    let store = open(root.path());
    assert_eq!(*store.snapshot(), *before);
    let moments = (moments.unwrap().logged, store.moments(removal.id).unwrap().unwrap().logged);
    assert_eq!(moments.0, moments.1);
    assert_eq!(store.removals(0).unwrap()[0].chain, removal.chain);
    drop(store);
    assert_eq!(verify(root.path()).unwrap().faults, []);
}

/// Version 5 knew no notices and no ledger.
#[test]
fn a_catalog_of_version_5_is_brought_up_to_date() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path());
    add(&store, "one", &["some text"]).unwrap();
    let before = store.snapshot();
    drop(store);
    let old = rusqlite::Connection::open(root.path().join("catalog.sqlite")).unwrap();
    old.execute_batch(&format!("{WITHOUT_NOTICES} PRAGMA user_version = 5;")).unwrap();
    drop(old);
    let store = open(root.path());
    assert_eq!(*store.snapshot(), *before);
    add(&store, "two", &["other text"]).unwrap();
    drop(store);
    assert_eq!(verify(root.path()).unwrap().faults, []);
}

/// Version 2 knew no quarantine and no head, and had other comments in its tables.
#[test]
fn a_catalog_of_version_2_is_brought_up_to_date() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path());
    add(&store, "one", &["some text", "other text"]).unwrap();
    let before = store.snapshot();
    drop(store);
    fs::remove_file(root.path().join("catalog.head")).unwrap();
    let old = rusqlite::Connection::open(root.path().join("catalog.sqlite")).unwrap();
    let comment =
        "UPDATE sqlite_schema SET sql = replace(sql, '-- never reused', '-- another word') WHERE name = 'shards'";
    let later = "DROP TABLE moments; DROP TABLE kept_parts; DROP TABLE changes; DROP TABLE log;";
    let sql = format!(
        "DROP TABLE quarantined; {later} {WITHOUT_NOTICES} {WITHOUT_REQUESTS} PRAGMA writable_schema = ON; {comment}; PRAGMA user_version = 2;"
    );
    old.execute_batch(&sql).unwrap();
    drop(old);
    for _ in 0..2 {
        let now = open(root.path()).snapshot();
        assert_eq!((now.root, &now.shards), (before.root, &before.shards));
        assert_eq!(now.epoch.0, before.epoch.0 + 1, "the log begins");
    }
    // A newer one is left alone, also with a head beside it.
    let newer = rusqlite::Connection::open(root.path().join("catalog.sqlite")).unwrap();
    newer.execute_batch("PRAGMA user_version = 99").unwrap();
    drop(newer);
    let refused = super::open_with(root.path(), super::recipe()).err().unwrap().to_string();
    assert!(refused.contains("format version 99"), "{refused}");
}
