//! The embedded datastore: sources, shards on disk, snapshots by epoch, and their removal.
//!
//! What it is: a directory with a catalog (SQLite) and immutable shards. A shard holds one source's documents, encoded document
//! by document by one model under one [`Recipe`]. [`Store`] answers [`silo_core::NeighborSearch`] and
//! [`silo_core::PassageSearch`] for the snapshots that it hands out ([`silo_core::SnapshotProvider`]).
//!
//! What it is not: it decides nothing about permissions, and encodes nothing by itself: [`encode`] is given a model.
//!
//! On disk, below the store's root:
//!
//! ```text
//! store.lock      held while a process has the store open; its pid inside
//! catalog.sqlite  what was declared, added and withdrawn: the truth about what is live
//! shards/<uuid>/  one directory per live shard: manifest.json, documents.bin, metadata.bin, text.bin, tokens.bin, keys.bin,
//!                 passages.bin, bm25/, units.bin, order.bin, starts.bin (runs of words), and lists.bin, rows.bin, codes.bin with a recipe of inverted lists
//! tmp/            shards being built; emptied at start
//! ```
//!
//! A shard is published by one rename and then by one transaction that makes it live. What is withdrawn goes by one transaction too, and its bytes
//! with the next purge; directories that the catalog does not know are swept away at start. `docs/store.md` says what is promised.

mod add;
mod backup;
mod boundary;
mod build;
mod catalog;
mod contents;
mod detail;
mod encode;
mod error;
mod files;
mod format;
mod guard;
mod ledger;
mod lists;
mod live;
mod live_shard;
mod lock;
mod numbers;
mod optout;
mod policy;
mod purge;
mod recipe;
mod restore;
mod search;
mod shard;
mod spans;
mod store;
mod texts;
mod verify;
mod withdraw;
mod write;

pub use add::{AddedShard, NewShard, PreparedShard};
pub use backup::BackupManifest;
pub use boundary::{AtBoundary, Boundary};
pub use build::ShardBuilder;
pub use catalog::{
    BackupRecord, LedgerRow, Moments, RemovalKind, RemovalPart, RemovalRecord, SILO, ShardRecord, ShardState,
    Suppression, Workflow, now_unix_ms,
};
pub use contents::{ChangeLog, Contents};
pub use detail::ShardDetail;
pub use encode::{Encoded, encode};
pub use error::StoreError;
pub use format::{FileEntry, Manifest};
pub use numbers::Numbers;
pub use optout::{OptOutAct, OptOutStep, PartDocument};
pub use purge::Purged;
pub use recipe::{Ivf, KeyType, Recipe, quantizer_about};
pub use restore::{Later, RemovalLog, Restored, restore};
pub use shard::{Shard, StoredDocument};
pub use silo_lexical::Bm25;
pub use silo_vector::Probe;
pub use spans::{FoundSpan, SpanDocument, SpanQuery};
pub use store::{By, Store, StoreOptions, StoreStatus};
pub use texts::{SHINGLE_WORDS, TextMatch};
pub use verify::{Fault, Repair, Verified, verify};
pub use withdraw::Removal;
