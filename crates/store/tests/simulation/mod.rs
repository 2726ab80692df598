//! Random operations against a store and against what it should be, in memory.

mod log;
mod look;
mod optouts;
mod oracle;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::recipes::source;
use super::reference::{Change, RefShard, Reference, State, numbered};
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use silo_core::{
    ContentHash, Document, Filter, LanguageModel, Neighbor, NeighborQuery, NeighborSearch, Purpose, Selection, ShardId,
    Snapshot, SnapshotProvider, SourceId, Tier,
};
use silo_store::{Later, NewShard, Recipe, RemovalLog, Store, StoreError, StoreOptions, restore, verify};
use silo_testkit::{ByteTokenizer, ScriptedModel};

const SOURCES: [&str; 3] = ["ant", "bee", "cow"];
const WORDS: [&str; 6] = ["red", "fish", "two", "one", "blue", "a"];

/// So small that a shard's rows and the catalog's pages are several batches.
const BATCH: usize = 3;

/// What can be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operation {
    Add,
    RemoveShard,
    RemoveSource,
    RemoveDocuments,
    RemovePrefix,
    Suspend,
    Resume,
    Submit,
    Uphold,
    Restored,
    Purge,
    Rebuild,
    Restart,
    Backup,
    Restore,
    Verify,
    Pin,
    SearchPinned,
    Search,
    Passages,
}

impl Operation {
    const ALL: [(Self, u32); 20] = [
        (Self::Add, 10),
        (Self::RemoveShard, 4),
        (Self::RemoveSource, 1),
        (Self::RemoveDocuments, 5),
        (Self::RemovePrefix, 5),
        (Self::Suspend, 3),
        (Self::Resume, 4),
        (Self::Submit, 5),
        (Self::Uphold, 3),
        (Self::Restored, 3),
        (Self::Purge, 4),
        (Self::Rebuild, 2),
        (Self::Restart, 2),
        (Self::Backup, 2),
        (Self::Restore, 1),
        (Self::Verify, 1),
        (Self::Pin, 5),
        (Self::SearchPinned, 15),
        (Self::Search, 40),
        (Self::Passages, 30),
    ];
}

/// How a run is made.
#[derive(Debug, Clone)]
pub struct Plan {
    pub seed: u64,
    pub n_operations: u64,
    pub recipe: Recipe,
    /// Withdrawals are told to the reference and not done: the run must fail.
    pub skip_removals: bool,
}

/// A snapshot that a request might hold, with what it found then.
#[derive(Clone)]
struct Pinned {
    snapshot: Arc<Snapshot>,
    found: Vec<(Neighbor, (SourceId, ContentHash, u32))>,
    /// Documents that it showed, and where.
    shown: BTreeSet<(ShardId, ContentHash)>,
}

struct World {
    rng: ChaCha8Rng,
    plan: Plan,
    directory: tempfile::TempDir,
    root: PathBuf,
    store: Option<Store>,
    reference: Reference,
    backups: Vec<(PathBuf, Reference)>,
    pinned: Vec<Pinned>,
    n_made: u64,
}

fn model() -> ScriptedModel {
    ScriptedModel::new(64)
}

fn open(root: &Path, recipe: &Recipe) -> Store {
    let options = StoreOptions { n_threads: 1, batch: BATCH, at_boundary: None };
    Store::open(root, model().card(), recipe.clone(), Arc::new(ByteTokenizer::default()), options).unwrap()
}

/// Runs a plan; panics where store and reference differ. Gives how often each operation was done.
pub fn run(plan: Plan) -> BTreeMap<Operation, u64> {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("store-0");
    let mut rng = ChaCha8Rng::seed_from_u64(plan.seed);
    // A subset of the operations for each stretch of the run: some mistakes show only without the others.
    let store = Some(open(&root, &plan.recipe));
    let (reference, backups, pinned) = (Reference::default(), Vec::new(), Vec::new());
    let mut counts = BTreeMap::new();
    let mut chosen = subset(&mut rng);
    let mut world = World { rng, plan, directory, root, store, reference, backups, pinned, n_made: 0 };
    for name in SOURCES {
        world.store().by("test").create_source(&source(name)).unwrap();
    }
    for i in 0..world.plan.n_operations {
        if i % 400 == 399 {
            chosen = subset(&mut world.rng);
        }
        let total: u32 = chosen.iter().map(|(_, weight)| weight).sum();
        let mut at = world.rng.random_range(0..total);
        let operation = chosen
            .iter()
            .find(|(_, weight)| {
                let hit = at < *weight;
                at = at.saturating_sub(*weight);
                hit
            })
            .unwrap()
            .0;
        world.perform(operation);
        *counts.entry(operation).or_default() += 1;
    }
    world.restart();
    world.check();
    counts
}

fn subset(rng: &mut ChaCha8Rng) -> Vec<(Operation, u32)> {
    let always = [Operation::Add, Operation::Search, Operation::Passages];
    Operation::ALL.into_iter().filter(|(o, _)| always.contains(o) || rng.random_bool(0.7)).collect()
}

impl World {
    fn store(&self) -> &Store {
        self.store.as_ref().unwrap()
    }

    fn any_source(&mut self) -> SourceId {
        SOURCES.choose(&mut self.rng).unwrap().parse().unwrap()
    }

    fn any_shard(&mut self, state: State) -> Option<ShardId> {
        self.reference.in_state(state).choose(&mut self.rng).copied()
    }

    fn perform(&mut self, operation: Operation) {
        match operation {
            Operation::Add => self.add(),
            Operation::RemoveShard => {
                if let Some(id) = self.any_shard(State::Live) {
                    self.withdraw(Selection::Shard(id));
                }
            }
            Operation::RemoveSource | Operation::RemoveDocuments | Operation::RemovePrefix => {
                let selection = self.any_selection(operation);
                self.withdraw(selection);
            }
            Operation::Suspend => self.set_state(State::Live),
            Operation::Resume => self.set_state(State::Suspended),
            Operation::Submit => self.submit(),
            Operation::Uphold => self.decide(true),
            Operation::Restored => self.decide(false),
            Operation::Purge => self.purge(),
            Operation::Rebuild => self.rebuild(),
            Operation::Restart => self.restart(),
            Operation::Backup => self.backup(),
            Operation::Restore => self.restore(),
            Operation::Verify => self.verify(),
            Operation::Pin => self.pin(),
            Operation::SearchPinned => {
                if let Some(pinned) = self.pinned.choose(&mut self.rng).cloned() {
                    self.search(&pinned.snapshot);
                    self.look_again(&pinned);
                }
            }
            Operation::Search => {
                let snapshot = self.store().snapshot();
                self.search(&snapshot);
            }
            Operation::Passages => {
                let snapshot = self.store().snapshot();
                self.passages(&snapshot);
            }
        }
    }

    fn any_selection(&mut self, operation: Operation) -> Selection {
        let source = self.any_source();
        match operation {
            Operation::RemoveSource => Selection::Source(source),
            Operation::RemoveDocuments => {
                let documents = (0..self.rng.random_range(1..4)).map(|_| self.any_hash()).collect();
                Selection::Documents { source, documents }
            }
            _ => {
                let prefix = ["pkg:", "pkg:a/", "pkg:a/1", "pkg:b/2", "pkg:c", "x"].choose(&mut self.rng).unwrap();
                let source = self.rng.random_bool(0.7).then_some(source);
                Selection::UriPrefix { source, prefix: (*prefix).to_owned() }
            }
        }
    }

    fn pin(&mut self) {
        let snapshot = self.store().snapshot();
        let mask = snapshot.mask(&Filter::default(), Purpose::Knn);
        let key = ScriptedModel::key(self.rng.random_range(98..123), self.rng.random_range(98..123));
        let query = NeighborQuery { snapshot: &snapshot, mask: &mask, key: &key, k: 12, text: &[] };
        let described = |n: Neighbor| {
            let entry = self.store().entry(&snapshot, &n, 2).unwrap();
            (n, (entry.source, entry.document, entry.position))
        };
        let found = self.store().neighbors(&[query]).unwrap().remove(0).into_iter().map(described).collect();
        let shown = self.shown();
        if self.pinned.len() == 8 {
            self.pinned.remove(0);
        }
        self.pinned.push(Pinned { snapshot, found, shown });
    }

    /// What is live now, document by document.
    fn shown(&self) -> BTreeSet<(ShardId, ContentHash)> {
        let live = self.reference.shards.iter().filter(|(_, s)| s.state == State::Live);
        live.flat_map(|(id, s)| s.docs.iter().filter(|d| d.is_live()).map(|d| (*id, d.hash))).collect()
    }

    /// What was found before says the same of itself after other documents went, or that it is gone; and a snapshot that shows something
    /// which was withdrawn is not live.
    fn look_again(&self, pinned: &Pinned) {
        let now = self.shown();
        for (neighbor, described) in &pinned.found {
            let shard = pinned.snapshot.shards[neighbor.shard.0 as usize].id;
            let entry = self.store().entry(&pinned.snapshot, neighbor, 2).map(|e| (e.source, e.document, e.position));
            let expected = now.contains(&(shard, described.1)).then_some(described);
            assert_eq!(entry.as_ref(), expected);
        }
        let all = pinned.snapshot.mask(&Filter::default(), Purpose::Knn);
        let whole = pinned.shown.is_subset(&now);
        assert!(whole || !self.store().is_live(&pinned.snapshot, &all), "something of it was withdrawn");
    }

    fn text(&mut self) -> String {
        let n = self.rng.random_range(1..6);
        let words: Vec<&str> = (0..n).map(|_| *WORDS.choose(&mut self.rng).unwrap()).collect();
        words.join(" ")
    }

    /// The hash of a document that is or was there, or of none.
    fn any_hash(&mut self) -> ContentHash {
        let known: Vec<ContentHash> =
            self.reference.shards.values().rev().take(4).flat_map(|s| s.docs.iter().map(|d| d.hash)).collect();
        known.choose(&mut self.rng).copied().unwrap_or_else(|| ContentHash::of(b"nothing"))
    }

    fn add(&mut self) {
        // Few at a time: what is there should be looked at often before it goes.
        if self.reference.in_state(State::Live).len() > 10 {
            let id = self.any_shard(State::Live).unwrap();
            return self.withdraw(Selection::Shard(id));
        }
        let source = self.any_source();
        let texts: Vec<(String, String)> = (0..self.rng.random_range(1..7))
            .map(|_| {
                let folder = ["a", "b", "c"].choose(&mut self.rng).unwrap();
                (format!("pkg:{folder}/{}", self.rng.random_range(0..40)), self.text())
            })
            .collect();
        let document = |(uri, text): &(String, String)| Document {
            source: source.clone(),
            uri: uri.clone(),
            title: "t".into(),
            licence: "LicenseRef-test".into(),
            tier: Tier::Restricted,
            text: text.clone(),
        };
        let documents: Vec<Document> = texts.iter().map(document).collect();
        let new = NewShard { source: &source, documents: &documents };
        let added = self.store().by("test").add_shard(&new, &model(), &AtomicBool::new(false), &|_, _| {}).unwrap();
        assert!(self.reference.seen.insert(added.id), "shard {} was given out before", added.id);
        let shard = RefShard { source, state: State::Live, docs: numbered(&texts) };
        assert_eq!(added.manifest.n_documents, shard.docs.len() as u64);
        self.reference.shards.insert(added.id, shard);
    }

    fn withdraw(&mut self, selection: Selection) {
        let expected = self.reference.resolve(&selection);
        if self.plan.skip_removals {
            self.reference.apply(Change::Withdraw(expected));
            return;
        }
        let removal = match self.store().by("test").withdraw(&selection) {
            Err(StoreError::NothingSelected) => return assert!(expected.is_empty(), "{selection:?}: {expected:?}"),
            other => other.unwrap(),
        };
        let got = removal.record.parts.iter().map(|part| {
            let numbers = part.numbers.as_ref().map(|n| n.iter().map(|n| n as usize).collect());
            (part.shard, numbers)
        });
        assert_eq!(got.collect::<Vec<_>>(), expected, "{selection:?}");
        let before = log::held(&self.reference);
        self.reference.apply(Change::Withdraw(expected));
        assert_eq!(removal.root_after, self.reference.root());
        self.check_receipt(&removal.record, &before);
        self.check_log();
    }

    /// Suspends a live shard or resumes a suspended one.
    fn set_state(&mut self, from: State) {
        let Some(id) = self.any_shard(from) else { return };
        if from == State::Live {
            self.store().by("test").suspend_shard(id).unwrap();
            assert!(matches!(self.store().by("test").suspend_shard(id), Err(StoreError::ShardState { .. })));
            self.reference.apply(Change::Suspend(id));
        } else {
            self.store().by("test").resume_shard(id).unwrap();
            self.reference.apply(Change::Resume(id));
        }
        assert_eq!(self.store().snapshot().root, self.reference.root());
        self.check_log();
    }

    fn purge(&mut self) {
        let purged = self.store().purge(&Default::default(), &|_, _| {}).unwrap();
        assert!(purged.failures.is_empty(), "{purged:?}");
        assert_eq!(self.store().status().unwrap().n_unpurged, 0);
        let kept = self.reference.shards.values().filter(|s| s.state != State::Removed).count();
        assert_eq!(std::fs::read_dir(self.root.join("shards")).unwrap().count(), kept);
        for detail in self.store().details().unwrap() {
            assert!(detail.record.withdrawn.is_empty());
        }
    }

    fn rebuild(&mut self) {
        let state = if self.rng.random_bool(0.8) { State::Live } else { State::Suspended };
        if let Some(id) = self.any_shard(state) {
            self.store().by("test").rebuild_shard(id, &model(), &Default::default(), &|_, _| {}).unwrap();
            assert_eq!(self.store().snapshot().root, self.reference.root());
        }
    }

    fn restart(&mut self) {
        self.store = None;
        self.store = Some(open(&self.root, &self.plan.recipe));
        self.pinned.clear();
        self.check();
    }

    fn backup(&mut self) {
        if self.backups.len() > 2 {
            let (path, _) = self.backups.remove(0);
            self.store().forget_backup(path.file_name().unwrap().to_str().unwrap()).ok(); // of a store that was replaced, perhaps
            std::fs::remove_dir_all(path).unwrap();
        }
        self.n_made += 1;
        let (folder, name) = (self.directory.path().join("backups"), format!("backup-{}", self.n_made));
        let made = self.store().backup(&folder, &name, &AtomicBool::new(false), &|_, _| {}).unwrap();
        assert_eq!(made.root, self.reference.root());
        assert!(made.damaged.is_empty());
        self.backups.push((folder.join(name), self.reference.clone()));
    }

    fn restore(&mut self) {
        let Some(i) = (0..self.backups.len()).collect::<Vec<_>>().choose(&mut self.rng).copied() else { return };
        let (path, held) = self.backups[i].clone();
        let requests = self.store().optouts().unwrap();
        self.store = None;
        self.pinned.clear();
        let expected = Reference::restored(&held, &self.reference);
        let old = self.root.clone();
        let log = self.directory.path().join("removals.jsonl");
        RemovalLog::read(&old).unwrap().write(std::fs::File::create(&log).unwrap()).unwrap();
        if self.reference.log.len() > held.log.len() {
            // A log that ends before is refused, whichever way it is known that there is more.
            let empty = self.directory.path().join("short.jsonl");
            let short = RemovalLog { records: Vec::new(), ..RemovalLog::read(&log).unwrap() };
            short.write(std::fs::File::create(&empty).unwrap()).unwrap();
            let refused = restore(&path, &old, Later::Log(&empty), None);
            assert!(matches!(refused, Err(StoreError::RemovalLog { .. })), "{refused:?}");
        }
        let restored = if self.rng.random_bool(0.5) {
            restore(&path, &old, Later::None, None).unwrap()
        } else {
            self.n_made += 1;
            self.root = self.directory.path().join(format!("store-{}", self.n_made));
            let given = if self.rng.random_bool(0.5) { &log } else { &old };
            let restored = restore(&path, &self.root, Later::Log(given), None).unwrap();
            std::fs::remove_dir_all(&old).unwrap();
            restored
        };
        assert_eq!(restored.n_replayed as usize, self.reference.log.len() - held.log.len());
        // Later backups hold entries of a log that went another way.
        self.backups.truncate(i + 1);
        self.reference = expected;
        assert_eq!(restored.root, self.reference.root());
        self.store = Some(open(&self.root, &self.plan.recipe));
        assert_eq!(self.store().optouts().unwrap(), requests, "no step of a request is lost");
        self.check();
    }

    fn verify(&mut self) {
        self.store = None;
        assert_eq!(verify(&self.root).unwrap().faults, []);
        self.restart();
    }

    /// Everything that can be seen without asking a question.
    fn check(&self) {
        let store = self.store();
        assert!(store.unavailable().is_empty(), "{:?}", store.unavailable());
        assert_eq!(store.snapshot().root, self.reference.root());
        self.check_log();
        let live: Vec<ShardId> = store.snapshot().shards.iter().map(|s| s.id).collect();
        assert_eq!(live, self.reference.in_state(State::Live));
        for id in live {
            let got = store.documents(id).unwrap().into_iter().map(|d| d.document.text);
            let shard = &self.reference.shards[&id];
            let expected = shard.docs.iter().filter(|d| d.is_live()).map(|d| d.text.clone());
            assert_eq!(got.collect::<Vec<_>>(), expected.collect::<Vec<_>>());
        }
    }
}
