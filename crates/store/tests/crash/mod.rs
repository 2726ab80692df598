//! A process that works on a store and is killed, and what must be true of what it leaves.

mod bytes;

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use super::recipes::{event, request, source};
use super::reference::{Change, RefShard, Reference, State, numbered};
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use silo_core::{
    Document, Filter, LanguageModel, NeighborQuery, NeighborSearch, OptOut, OptOutAction, OptOutRequest, OptOutState,
    Purpose, Selection, ShardId, SnapshotProvider, SourceId, Tier,
};
use silo_store::{
    AtBoundary, Boundary, Later, NewShard, OptOutAct, OptOutStep, Recipe, ShardState, Store, StoreError, StoreOptions,
    restore, verify,
};
use silo_testkit::{ByteTokenizer, ScriptedModel};

const SOURCES: [&str; 3] = ["ant", "bee", "cow"];

/// So small that a shard's rows and the catalog's pages are several batches.
const BATCH: usize = 3;

/// Every document has a word of its own, which begins so: what is left of a removed one can be found in any file.
const MARK: &str = "zqmarked";

/// What a child does until it is killed.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Plan {
    /// Holds `store/`, `backups/` and the journal.
    pub directory: PathBuf,
    pub seed: u64,
    pub lists: bool,
    /// The child kills itself when it passes a boundary, by its place in [`Boundary::ALL`], for the nth time.
    pub kill_at: Option<(usize, u64)>,
    pub n_operations: u64,
    /// No file may grow over so many bytes: writes fail, or end short, as on a full disk.
    pub file_limit: Option<u64>,
    /// Withdrawals are written down and not done: the check must find it.
    pub skip_removals: bool,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
enum Operation {
    Add {
        source: SourceId,
        texts: Vec<(String, String)>,
    },
    Withdraw(Selection),
    Suspend(ShardId),
    Resume(ShardId),
    /// A request, with a text that is in it until it is decided.
    Submit(Selection, String),
    Decide {
        request: u64,
        uphold: bool,
    },
    Rebuild(ShardId),
    Purge,
    Backup(String),
    Restore(String),
}

/// A line of the journal, which the kernel keeps when its writer is killed.
#[derive(Debug, Serialize, Deserialize)]
enum Line {
    Begun(Operation),
    /// With the number of the shard that was added.
    Done(Option<ShardId>),
    Refused,
}

fn model() -> ScriptedModel {
    ScriptedModel::new(64)
}

fn open(root: &Path, recipe: &Recipe, at_boundary: Option<Arc<AtBoundary>>) -> Result<Store, StoreError> {
    let options = StoreOptions { n_threads: 1, batch: BATCH, at_boundary };
    Store::open(root, model().card(), recipe.clone(), Arc::new(ByteTokenizer::default()), options)
}

fn killer(plan: &Plan) -> Option<Arc<AtBoundary>> {
    let (index, nth) = plan.kill_at?;
    let passed = AtomicU64::new(0);
    Some(Arc::new(move |boundary| {
        if boundary == Boundary::ALL[index] && passed.fetch_add(1, Ordering::SeqCst) + 1 == nth {
            // SAFETY: the call takes numbers and has no other effect on this process than its end.
            unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
        }
    }))
}

struct Journal(fs::File);

impl Journal {
    fn write(&mut self, line: &Line) {
        let text = serde_json::to_string(line).unwrap() + "\n";
        self.0.write_all(text.as_bytes()).unwrap(); // one call: a line is there or not
    }
}

/// The child: random operations, each written down before and after; purges and searches beside them.
pub fn child(plan: &Plan, recipe: &Recipe) {
    let at_boundary = killer(plan);
    let (root, mut rng) = (plan.directory.join("store"), ChaCha8Rng::seed_from_u64(plan.seed));
    if let Some(limit) = plan.file_limit {
        limit_files(limit);
    }
    let file = OpenOptions::new().append(true).create(true).open(plan.directory.join("journal")).unwrap();
    let mut journal = Journal(file);
    let Ok(opened) = open(&root, recipe, at_boundary.clone()) else {
        return assert!(plan.file_limit.is_some(), "the store does not open");
    };
    let mut store = Some(opened);
    for name in SOURCES {
        let _ = store.as_ref().unwrap().by("test").create_source(&source(name)); // it is there after the first run
    }
    for n in 0..plan.n_operations {
        let Some(operation) = choose(store.as_ref().unwrap(), plan, &mut rng, n) else { continue };
        journal.write(&Line::Begun(operation.clone()));
        let done = match &operation {
            Operation::Restore(name) => {
                drop(store.take());
                let backup = plan.directory.join("backups").join(name);
                let restored = restore(&backup, &root, Later::None, at_boundary.as_deref());
                match open(&root, recipe, at_boundary.clone()) {
                    Ok(opened) => store = Some(opened),
                    Err(_) if plan.file_limit.is_some() => return,
                    Err(error) => panic!("{error}"),
                }
                restored.map(|_| None)
            }
            other => {
                let (store, stop, company) = (store.as_ref().unwrap(), AtomicBool::new(false), rng.random_bool(0.3));
                std::thread::scope(|scope| {
                    if company {
                        scope.spawn(|| beside(store, &stop, plan.file_limit.is_some()));
                    }
                    let done = perform(store, plan, other);
                    stop.store(true, Ordering::Relaxed);
                    done
                })
            }
        };
        journal.write(&match done {
            Ok(added) => Line::Done(added),
            Err(StoreError::NothingSelected | StoreError::BackupExists { .. } | StoreError::Rewriting(_)) => {
                Line::Refused
            }
            Err(_) if plan.file_limit.is_some() => Line::Refused,
            Err(error) => panic!("{operation:?}: {error}"),
        });
    }
}

/// Writes beyond the limit fail instead of ending the process.
fn limit_files(bytes: u64) {
    let limit = libc::rlimit { rlim_cur: bytes, rlim_max: bytes };
    // SAFETY: the calls read a struct that lives as long as they take, and change nothing but limits and the answer to one signal.
    unsafe {
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
        assert_eq!(libc::setrlimit(libc::RLIMIT_FSIZE, &raw const limit), 0);
    }
}

/// Purges and searches until it is told to stop, beside the changes.
fn beside(store: &Store, stop: &AtomicBool, may_fail: bool) {
    while !stop.load(Ordering::Relaxed) {
        let purged = store.purge(&Default::default(), &|_, _| {});
        assert!(may_fail || purged.is_ok(), "{purged:?}");
        let snapshot = store.snapshot();
        let mask = snapshot.mask(&Filter::default(), Purpose::Knn);
        for b in 97..123 {
            let key = ScriptedModel::key(98, b);
            store.neighbors(&[NeighborQuery { snapshot: &snapshot, mask: &mask, key: &key, k: 9, text: &[] }]).unwrap();
        }
    }
}

fn choose(store: &Store, plan: &Plan, rng: &mut ChaCha8Rng, n: u64) -> Option<Operation> {
    let shards = store.shards().unwrap();
    let in_state = |state| shards.iter().filter(|s| s.state == state).map(|s| s.id).collect::<Vec<_>>();
    let (live, suspended) = (in_state(ShardState::Live), in_state(ShardState::Suspended));
    let source: SourceId = SOURCES.choose(rng).unwrap().parse().unwrap();
    let backups = || {
        let names = fs::read_dir(plan.directory.join("backups")).into_iter().flatten();
        let names = names.filter_map(|e| e.ok()?.file_name().into_string().ok());
        let mut names: Vec<String> = names.filter(|n| !n.ends_with(".partial")).collect();
        names.sort();
        names
    };
    match rng.random_range(0..100) {
        0..35 if live.len() < 8 => {
            let text = |i: u64| {
                let folder = ["a", "b"].choose(rng).unwrap();
                let word = format!("{MARK}{}x{n}x{i}z", plan.seed);
                (format!("pkg:{folder}/{i}/{word}"), format!("{word} is here"))
            };
            Some(Operation::Add { source, texts: (0..3).map(text).collect() })
        }
        0..45 => live.choose(rng).map(|id| Operation::Withdraw(Selection::Shard(*id))),
        45..60 => {
            let prefix = ["pkg:a", "pkg:b/", "pkg:a/1"].choose(rng).unwrap();
            Some(Operation::Withdraw(Selection::UriPrefix { source: Some(source), prefix: (*prefix).to_owned() }))
        }
        60..65 => Some(Operation::Withdraw(Selection::Source(source))),
        65..70 => live.choose(rng).map(|id| Operation::Suspend(*id)),
        70..76 => match store.optouts().unwrap().iter().rev().find(|o| o.state == OptOutState::Quarantined) {
            Some(open) => Some(Operation::Decide { request: open.id, uphold: rng.random_bool(0.6) }),
            None => {
                let word = format!("{MARK}{}x{n}x9z", plan.seed);
                Some(Operation::Submit(Selection::UriPrefix { source: None, prefix: "pkg:a".into() }, word))
            }
        },
        76..80 => suspended.choose(rng).map(|id| Operation::Resume(*id)),
        80..88 => Some(Operation::Purge),
        88..92 => live.choose(rng).map(|id| Operation::Rebuild(*id)),
        92..96 => Some(Operation::Backup(format!("b{}-{n}", plan.seed))),
        _ => backups().choose(rng).cloned().map(Operation::Restore),
    }
}

fn perform(store: &Store, plan: &Plan, operation: &Operation) -> Result<Option<ShardId>, StoreError> {
    let never = AtomicBool::new(false);
    match operation {
        Operation::Add { source, texts } => {
            let document = |(uri, text): &(String, String)| Document {
                source: source.clone(),
                uri: uri.clone(),
                title: String::new(),
                licence: "LicenseRef-test".into(),
                tier: Tier::Restricted,
                text: text.clone(),
            };
            let documents: Vec<Document> = texts.iter().map(document).collect();
            store
                .by("test")
                .add_shard(&NewShard { source, documents: &documents }, &model(), &never, &|_, _| {})
                .map(|a| Some(a.id))
        }
        Operation::Withdraw(selection) if plan.skip_removals => store.plan(selection).map(|_| None),
        Operation::Withdraw(selection) => store.by("test").withdraw(selection).map(|_| None),
        Operation::Suspend(id) => store.by("test").suspend_shard(*id).map(|_| None),
        Operation::Resume(id) => store.by("test").resume_shard(*id).map(|_| None),
        Operation::Submit(selection, text) => {
            store.by("test").submit_optout(std::slice::from_ref(selection), request(text), Instant::now()).map(|_| None)
        }
        Operation::Decide { request, uphold } => decide(store, *request, *uphold).map(|_| None),
        Operation::Rebuild(id) => {
            store.by("test").rebuild_shard(*id, &model(), &Default::default(), &|_, _| {}).map(|_| None)
        }
        Operation::Purge => store.purge(&Default::default(), &|_, _| {}).map(|_| None),
        Operation::Backup(name) => {
            store.backup(&plan.directory.join("backups"), name, &never, &|_, _| {}).map(|_| None)
        }
        Operation::Restore(_) => unreachable!("the child does it, since the store must be closed"),
    }
}

fn decide(store: &Store, id: u64, uphold: bool) -> Result<OptOut, StoreError> {
    let optout = store.optout(id)?;
    // A decided request holds no text, whatever was decided: this one's would be searched for in the files.
    let request = OptOutRequest { selection: optout.request.selection.forgotten(), ..optout.request };
    let (event, act) = if uphold {
        let act = OptOutAct::Withdraw { spare: &[], more: &[], suppress: &[], unsuppress: &[] };
        (event(OptOutAction::Uphold, OptOutState::Upheld), act)
    } else {
        (event(OptOutAction::Restore, OptOutState::Restored), OptOutAct::Release)
    };
    let step = OptOutStep { event: &event, legal_hold: false, request: &request, act };
    store.by("test").step_optout(id, optout.events.len(), &step).map(|done| done.0)
}

/// What the journal says should be there, kept from one child to the next.
#[derive(Default)]
pub struct Witness {
    reference: Reference,
    backups: BTreeMap<String, Reference>,
    /// The texts of requests that are not decided; empty ones of those that are.
    texts: BTreeMap<u64, String>,
    /// Operations whose end was written down.
    pub n_acknowledged: u64,
    /// Restores that were begun.
    n_restores: usize,
    /// Kills in the midst of an operation, and how many of those were found done.
    pub n_cut: u64,
    pub n_cut_done: u64,
}

impl Witness {
    /// Looks at what a killed child has left: at the files first, then at the store as it opens, before anything mends it.
    pub fn check(&mut self, directory: &Path, recipe: &Recipe) {
        let text = fs::read_to_string(directory.join("journal")).unwrap_or_default();
        fs::remove_file(directory.join("journal")).ok(); // a child that was killed at once wrote none
        let mut begun = None;
        for line in text.lines().map(|l| serde_json::from_str(l).unwrap()) {
            match line {
                Line::Begun(operation) => {
                    self.n_restores += usize::from(matches!(operation, Operation::Restore(_)));
                    begun = Some(operation);
                }
                Line::Refused => begun = None,
                Line::Done(added) => {
                    self.n_acknowledged += 1;
                    self.apply(&begun.take().unwrap(), added);
                }
            }
        }
        let root = directory.join("store");
        if !root.join("catalog.sqlite").exists() {
            return assert!(self.reference.seen.is_empty() && begun.is_none(), "the catalog is lost");
        }
        let verified = verify(&root).unwrap();
        assert_eq!(verified.faults, [], "after the kill");
        let store = open(&root, recipe, None).unwrap();
        assert!(store.unavailable().is_empty(), "{:?}", store.unavailable());
        let n = store.contents().unwrap().n_changes;
        let n_opens = store.changes(0, n).unwrap().iter().filter(|entry| entry.contains(r#""kind":"open""#)).count();
        assert!(n_opens <= self.n_restores, "a crash lost what the log of changes says, or what it says it of");
        let difference = difference(&store, &self.reference);
        match (difference, begun) {
            (None, begun) => {
                self.n_cut += u64::from(begun.is_some());
                if let Some(backup @ Operation::Backup(_)) = begun {
                    self.apply(&backup, None); // it may be there
                }
            }
            (Some(difference), None) => panic!("{difference}"),
            (Some(difference), Some(operation)) => {
                // It was cut off in the midst: nothing of it is seen, or all.
                let added = store.shards().unwrap().iter().map(|s| s.id).find(|id| !self.reference.seen.contains(id));
                self.apply(&operation, added);
                if let Some(other) = self::difference(&store, &self.reference) {
                    panic!("{operation:?} is neither undone ({difference}) nor done ({other})");
                }
                (self.n_cut, self.n_cut_done) = (self.n_cut + 1, self.n_cut_done + 1);
            }
        }
        self.check_bytes(&store, &root);
    }

    fn apply(&mut self, operation: &Operation, added: Option<ShardId>) {
        match operation {
            Operation::Add { source, texts } => {
                let Some(id) = added else { return };
                assert!(self.reference.seen.iter().all(|seen| *seen < id), "shard {id} was given out before");
                self.reference.seen.insert(id);
                let shard = RefShard { source: source.clone(), state: State::Live, docs: numbered(texts) };
                self.reference.shards.insert(id, shard);
            }
            Operation::Withdraw(selection) => {
                let parts = self.reference.resolve(selection);
                self.reference.apply(Change::Withdraw(parts));
            }
            Operation::Suspend(id) => self.reference.apply(Change::Suspend(*id)),
            Operation::Resume(id) => self.reference.apply(Change::Resume(*id)),
            Operation::Submit(selection, text) => {
                let (parts, id) = (self.reference.resolve(selection), self.texts.len() as u64 + 1);
                self.texts.insert(id, text.clone());
                self.reference.apply(Change::Hold(id, parts));
            }
            Operation::Decide { request, uphold: false } => self.decided(*request, Change::Release(*request)),
            Operation::Decide { request, uphold: true } => {
                let parts = self.reference.withheld_parts(*request, &[]);
                self.decided(*request, Change::Uphold(*request, parts));
            }
            Operation::Rebuild(_) | Operation::Purge => {}
            Operation::Backup(name) => drop(self.backups.insert(name.clone(), self.reference.clone())),
            Operation::Restore(name) => {
                self.reference = Reference::restored(&self.backups[name], &self.reference);
            }
        }
    }

    fn decided(&mut self, request: u64, change: Change) {
        self.texts.insert(request, String::new());
        self.reference.apply(change);
    }
}

/// Where a store is not what it should be.
fn difference(store: &Store, reference: &Reference) -> Option<String> {
    let shards = store.shards().unwrap();
    for (state, expected) in [
        (ShardState::Live, State::Live),
        (ShardState::Suspended, State::Suspended),
        (ShardState::Removed, State::Removed),
    ] {
        let got: Vec<ShardId> = shards.iter().filter(|s| s.state == state).map(|s| s.id).collect();
        let expected = reference.in_state(expected);
        if got != expected {
            return Some(format!("{state:?} are {got:?}, should be {expected:?}"));
        }
    }
    for id in reference.in_state(State::Live) {
        let got: Vec<String> = store.documents(id).unwrap().into_iter().map(|d| d.document.text).collect();
        let docs = reference.shards[&id].docs.iter().filter(|d| d.is_live());
        let expected: Vec<String> = docs.map(|d| d.text.clone()).collect();
        if got != expected {
            return Some(format!("shard {id} holds {got:?}, should hold {expected:?}"));
        }
    }
    let (got, expected) = (store.snapshot().root, reference.root());
    let n_logged = store.removals(0).unwrap().len();
    if n_logged != reference.log.len() {
        return Some(format!("the log has {n_logged} entries, should have {}", reference.log.len()));
    }
    (got != expected).then(|| format!("the root is {got}, should be {expected}"))
}

/// Starts children and kills them; the bytes of withdrawn documents and the differences are looked for after each.
pub struct Campaign<'a> {
    pub directory: &'a Path,
    pub recipe: &'a Recipe,
    pub lists: bool,
    pub skip_removals: bool,
    /// Starts a process that calls [`child`].
    pub spawn: &'a dyn Fn(&Plan) -> Child,
    pub witness: Witness,
}

impl Campaign<'_> {
    fn plan(&self, seed: u64, kill_at: Option<(usize, u64)>) -> Plan {
        let (lists, skip_removals) = (self.lists, self.skip_removals);
        let directory = self.directory.to_owned();
        Plan { directory, seed, lists, kill_at, n_operations: 400, file_limit: None, skip_removals }
    }

    /// A child that kills itself at a boundary; false if it did all its work without passing it so often.
    pub fn at_boundary(&mut self, seed: u64, boundary: usize, nth: u64) -> bool {
        let mut child = (self.spawn)(&self.plan(seed, Some((boundary, nth))));
        let status = child.wait().unwrap();
        assert!(status.success() || status.signal() == Some(libc::SIGKILL), "the child failed by itself: {status}");
        self.witness.check(self.directory, self.recipe);
        !status.success()
    }

    /// A child that works, and one that cannot write files over a size; both end by themselves.
    pub fn on_a_full_disk(&mut self, seed: u64, limit: u64) {
        for file_limit in [None, Some(limit)] {
            let plan = Plan {
                n_operations: 30,
                file_limit,
                ..self.plan(seed + limit + u64::from(file_limit.is_some()), None)
            };
            let status = (self.spawn)(&plan).wait().unwrap();
            assert!(status.success(), "the child failed: {status}");
            self.witness.check(self.directory, self.recipe);
        }
    }

    /// A child that is killed after it has written a number of lines and some time has passed: anywhere.
    pub fn anywhere(&mut self, seed: u64, rng: &mut ChaCha8Rng) {
        let mut child = (self.spawn)(&self.plan(seed, None));
        let (lines, spins) = (rng.random_range(0..40), rng.random_range(0..400));
        let journal = self.directory.join("journal");
        let written = || fs::read(&journal).map_or(0, |bytes| bytes.iter().filter(|b| **b == b'\n').count());
        while written() < lines && child.try_wait().unwrap().is_none() {
            std::thread::yield_now();
        }
        for _ in 0..spins {
            written(); // a little time, which differs from kill to kill
        }
        child.kill().unwrap();
        let status = child.wait().unwrap();
        assert!(status.success() || status.signal() == Some(libc::SIGKILL), "the child failed by itself: {status}");
        self.witness.check(self.directory, self.recipe);
    }
}
