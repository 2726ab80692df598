//! How long a withdrawal takes, and what it costs those who generate, at several sizes of the store:
//!
//! `cargo run --release -p silo-tests --example removal -- FOLDER ENTRIES SHARDS [ENTRIES SHARDS …]`
//!
//! Eight streams generate with neighbours, by the model of `models/`. Keys are synthetic, for size: those of real text with noise added.
//! Prints a JSON object per store. With `log CHANGES` instead of `ENTRIES SHARDS`: how long a store with so many changes in its log takes to open.

#[path = "common/no_cache.rs"]
mod no_cache;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use no_cache::NoCache;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};
use silo_core::{
    Document, Epoch, Filter, KeySite, LanguageModel, Matrix, ModelCard, ModelError, NeighborQuery, NeighborSearch,
    Permissions, Positions, Purpose, Selection, SequenceCache, SequenceStep, SnapshotProvider, Source, SourceId,
    StepOutput, Tier, Tokenizer,
};
use silo_engine::{Engine, EngineConfig, Event, GenerateRequest, Mode, OnRemoval, Retrieval};
use silo_model::{CpuLlama, LoadedModel};
use silo_store::{NewShard, Recipe, Removal, Store, StoreOptions};

const STREAMS: usize = 8;
const DOCUMENT_TOKENS: usize = 64;
const SEED: u64 = 1;
/// Documents of which the URIs share a beginning: the least that is withdrawn.
const GROUP: usize = 5;
const GROUP_DIGITS: usize = 7;
const REMOVALS: usize = 90;
/// Documents of a small source beside the others.
const FEW: usize = 40;
/// As long as a purge and the pause after it, which grow with the shards.
const SECONDS: [(usize, u64); 2] = [(5_000_000, 80), (0, 20)];
/// The server's default.
const PURGE_SHARE: f64 = 0.05;

/// Gives keys at once: those of a pool, with noise.
struct Synthetic {
    card: ModelCard,
    pool: Matrix,
    next: AtomicU64,
}

impl LanguageModel for Synthetic {
    fn card(&self) -> &ModelCard {
        &self.card
    }

    fn new_cache(&self) -> Box<dyn SequenceCache> {
        Box::new(NoCache(0))
    }

    fn step(&self, batch: &mut [SequenceStep<'_>], _: &AtomicBool) -> Result<Vec<StepOutput>, ModelError> {
        let mut rng = ChaCha8Rng::seed_from_u64(self.next.fetch_add(1, Ordering::Relaxed));
        let dim = self.card.key_dim;
        let mut one = |step: &mut SequenceStep<'_>| {
            let n = step.tokens.len();
            let mut keys = Matrix { n_cols: dim, data: Vec::with_capacity(n * dim) };
            for _ in step.keys.first(n)..n {
                let row = self.pool.row(rng.random_range(0..self.pool.n_rows()));
                let noise: u64 = rng.random();
                keys.data
                    .extend(row.iter().enumerate().map(|(i, x)| x * (0.9 + ((noise >> (i % 48)) & 15) as f32 / 75.0)));
            }
            StepOutput { logits: Matrix { n_cols: self.card.vocab_size, data: Vec::new() }, keys }
        };
        Ok(batch.iter_mut().map(&mut one).collect())
    }
}

fn source(id: &str) -> Source {
    Source {
        id: id.parse().expect("a plain name"),
        owner: "nobody".into(),
        licence: "LicenseRef-synthetic".into(),
        licence_stated_at: "nowhere".into(),
        notice: String::new(),
        tier: Tier::Restricted,
        permissions: Permissions::of_tier(Tier::Restricted),
    }
}

/// Text of the project's own documents, over and over: its keys are synthetic anyway.
fn documents(tokenizer: &dyn Tokenizer, source: &SourceId, from: usize, n: usize) -> Vec<Document> {
    let text = include_str!("../../LICENSE");
    let per_token = text.len() / tokenizer.encode(text).expect("plain text").len();
    let length = DOCUMENT_TOKENS * per_token;
    let document = |i: usize| {
        let at = (i * 97) % (text.len() - length - 4);
        let body: String = text[at..].chars().take(length).collect();
        Document {
            source: source.clone(),
            uri: format!("{source}/{:0GROUP_DIGITS$}/{i}", i / GROUP),
            title: String::new(),
            licence: "LicenseRef-synthetic".into(),
            tier: Tier::Restricted,
            text: format!("Document {i}.\n{body}"),
        }
    };
    (from..from + n).map(document).collect()
}

struct Bench {
    model: Arc<dyn LanguageModel>,
    tokenizer: Arc<dyn Tokenizer>,
    recipe: Recipe,
    pool: Matrix,
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |text: &String| text.parse::<usize>().expect("a number of entries and of shards");
    if let [step, root, entries, shards] = &arguments[..]
        && step.starts_with("--")
    {
        let (bench, root, shards) = (Bench::new(), Path::new(root), number(shards));
        return match &step[..] {
            "--build" if entries == "log" => bench.build_log(root, shards),
            "--build" => bench.build(root, number(entries), shards),
            _ if entries == "log" => println!("{}", bench.measure_log(root)),
            _ => println!("{}", bench.measure(root, number(entries), shards)),
        };
    }
    let folder = PathBuf::from(arguments.first().expect("a folder for the stores"));
    for pair in arguments[1..].chunks(2) {
        let root = folder.join(pair.join("-"));
        let _ = std::fs::remove_dir_all(&root);
        // In processes of their own: memory and the time to open are those of a server that has just started.
        for step in ["--build", "--measure"] {
            let mut child = Command::new(std::env::current_exe().expect("a program knows itself"));
            let status = child.arg(step).arg(&root).args(pair).status().expect("the program starts");
            assert!(status.success(), "{step} of {} failed", root.display());
        }
        let _ = std::fs::remove_dir_all(&root);
    }
}

fn pool(model: &dyn LanguageModel, tokenizer: &dyn Tokenizer) -> Matrix {
    let text =
        include_str!("../../LICENSE").to_owned() + include_str!("../../README.md") + include_str!("../../Cargo.toml");
    let tokens = tokenizer.encode(&text).expect("plain text");
    let mut pool = Matrix { n_cols: model.card().key_dim, data: Vec::new() };
    for window in tokens.chunks(512) {
        let mut cache = model.new_cache();
        let mut step =
            [SequenceStep { cache: cache.as_mut(), tokens: window, logits: Positions::None, keys: Positions::From(0) }];
        let output = model.step(&mut step, &AtomicBool::new(false)).expect("the model runs").remove(0);
        pool.data.extend(output.keys.data);
    }
    pool
}

impl Bench {
    fn new() -> Self {
        let loaded = LoadedModel::open(Path::new("models/silo-open-6m")).expect("the default model");
        let model: Arc<dyn LanguageModel> = Arc::new(CpuLlama::new(&loaded, KeySite::default(), 2).expect("a model"));
        let tokenizer: Arc<dyn Tokenizer> = Arc::new(loaded.tokenizer);
        let recipe = Recipe::read(Path::new("indexes/ivf.toml")).expect("the default recipe");
        let pool = pool(&*model, &*tokenizer);
        Self { model, tokenizer, recipe, pool }
    }

    fn open(&self, root: &Path) -> Store {
        let options = StoreOptions { n_threads: 2, ..StoreOptions::default() };
        Store::open(root, self.model.card(), self.recipe.clone(), self.tokenizer.clone(), options).expect("a store")
    }

    fn build(&self, root: &Path, entries: usize, n_shards: usize) {
        let (store, few) = (self.open(root), source("few"));
        let encoder = self.build_few(&store, &few);
        let bulk = source("bulk");
        store.by("test").create_source(&bulk).expect("a new source");
        let (each, building) = (entries / DOCUMENT_TOKENS / n_shards, Instant::now());
        for shard in 0..n_shards {
            let documents = documents(&*self.tokenizer, &bulk.id, shard * each, each);
            let new = NewShard { source: &bulk.id, documents: &documents };
            store.by("test").add_shard(&new, &encoder, &AtomicBool::new(false), &|_, _| {}).expect("a shard");
        }
        eprintln!("{entries} entries in {n_shards} shards: {:.0} s", building.elapsed().as_secs_f64());
    }

    /// A small source, the same in every store.
    fn build_few(&self, store: &Store, few: &Source) -> Synthetic {
        let encoder =
            Synthetic { card: self.model.card().clone(), pool: self.pool.clone(), next: AtomicU64::new(SEED) };
        store.by("test").create_source(few).expect("a new source");
        let documents = documents(&*self.tokenizer, &few.id, 0, FEW);
        let new = NewShard { source: &few.id, documents: &documents };
        store.by("test").add_shard(&new, &encoder, &AtomicBool::new(false), &|_, _| {}).expect("a shard");
        encoder
    }

    /// Only the small source is allowed: what is found beside the others is what a store finds that holds nothing else.
    fn few(&self, store: &Store, root: &Path) -> Value {
        let root = root.with_extension("few");
        let _ = std::fs::remove_dir_all(&root);
        let (alone, few) = (self.open(&root), source("few"));
        self.build_few(&alone, &few);
        let filter = Filter { allow_sources: vec![few.id], ..Filter::default() };
        let (mut times, n_queries, mut found) = (Vec::new(), 300, 0);
        for i in 0..n_queries {
            let (key, start) = (self.pool.row(i * 13 % self.pool.n_rows()), Instant::now());
            let beside = nearest(store, &filter, key);
            times.push(start.elapsed().as_secs_f64() * 1000.0);
            assert_eq!(beside, nearest(&alone, &filter, key), "query {i}");
            found += beside.len();
        }
        drop(alone);
        std::fs::remove_dir_all(&root).expect("a folder of ours");
        json!({"entries": store.snapshot().shards[0].n_entries, "queries": n_queries, "found_per_query": found as f64 / n_queries as f64, "search_ms": quantiles(times)})
    }

    /// One removal of a group among nine changes; nothing is purged.
    fn build_log(&self, root: &Path, changes: usize) {
        // The first shard must not become empty.
        self.build(root, changes.div_ceil(9) * GROUP * 3 * DOCUMENT_TOKENS, 2);
        let (store, mut removed) = (self.open(root), 0);
        let id = store.snapshot().shards[1].id;
        for change in 0..changes {
            match change % 9 {
                8 => drop(withdraw(&store, 1, &mut removed)),
                n if n % 2 == 0 => drop(store.by("test").suspend_shard(id).expect("a change")),
                _ => drop(store.by("test").resume_shard(id).expect("a change")),
            }
        }
    }

    fn measure_log(&self, root: &Path) -> Value {
        let opening = Instant::now();
        let store = self.open(root);
        let open_seconds = opening.elapsed().as_secs_f64();
        let unpurged = store.status().expect("a catalog").n_unpurged;
        json!({"changes": store.removals(0).expect("a log").len(), "unpurged_removals": unpurged, "open_seconds": open_seconds})
    }

    fn measure(&self, root: &Path, entries: usize, n_shards: usize) -> Value {
        let all = entries / DOCUMENT_TOKENS;
        // What the building wrote must not be waited for by what is measured.
        Command::new("sync").status().expect("coreutils are there");
        let idle = resident_bytes();
        let opening = Instant::now();
        let store = Arc::new(self.open(root));
        let open_seconds = opening.elapsed().as_secs_f64();
        let n_entries: u64 = store.snapshot().shards.iter().map(|s| s.n_entries).sum();
        let n_bytes: u64 = store.details().expect("shards").iter().map(|d| d.n_bytes).sum();
        let (search, few) = (self.search(&store), self.few(&store, root));
        let resident = resident_bytes();
        let (mut removed, mut series) = (0, Vec::new());
        let alone: Vec<Removal> = (0..30).map(|_| withdraw(&store, 1, &mut removed)).collect();
        let alone = json!({
            "durable": quantiles(alone.iter().map(|r| r.durable_ms).collect()),
            "effective_new": quantiles(alone.iter().map(|r| r.effective_ms).collect()),
        });
        let streams = Streams::start(self, &store);
        series.push(json!({"documents": GROUP, "latency_ms": streams.removals(&store, 1, REMOVALS, &mut removed)}));
        let purge = purge(&store);
        for groups in [10, 100, 1000] {
            if GROUP * (groups * 21 + removed) < all * 4 / 5 {
                let latency = streams.removals(&store, groups, 20, &mut removed);
                series.push(json!({"documents": groups * GROUP, "latency_ms": latency}));
            }
        }
        let seconds = SECONDS.iter().find(|(least, _)| entries >= *least).map_or(0, |(_, seconds)| *seconds);
        let throughput = streams.throughput(&store, seconds, &mut removed);
        streams.stop();
        let purged = purge_again(&store, purge);
        json!({
            "entries": n_entries, "shards": n_shards, "bytes": n_bytes, "resident_bytes": resident,
            "resident_bytes_before_opening": idle, "seed": SEED,
            "open_seconds": open_seconds, "search_ms": search, "few": few, "removals": series, "removals_without_streams": alone, "throughput": throughput,
            "purge": purged,
        })
    }

    /// Milliseconds of a search for 1024 neighbours, alone.
    fn search(&self, store: &Store) -> Value {
        let snapshot = store.snapshot();
        let mask = snapshot.mask(&Default::default(), Purpose::Knn);
        let mut times = Vec::new();
        for i in 0..300 {
            let key = self.pool.row(i * 13 % self.pool.n_rows());
            let start = Instant::now();
            let found = store
                .neighbors(&[NeighborQuery { snapshot: &snapshot, mask: &mask, key, k: 1024, text: &[] }])
                .expect("a search");
            assert_eq!(found[0].len(), 1024);
            times.push(start.elapsed().as_secs_f64() * 1000.0);
        }
        quantiles(times.split_off(50))
    }
}

/// What a stream got last.
#[derive(Clone)]
struct Seen {
    /// The epoch that its newest token was made of, and when it came.
    newest: (Epoch, Instant),
    /// When its last text ended.
    ended: Instant,
    /// When a token of an earlier epoch than the newest came last. It must have come before all of the newest.
    last_of_before: Instant,
}

/// Eight texts that never end, each continued by a new one when its window is full.
struct Streams {
    seen: Arc<Mutex<Vec<Seen>>>,
    tokens: Arc<AtomicU64>,
    /// Texts that ended because of a removal, though they were to go on: a token of theirs waited to be read.
    cut: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Seen {
    fn token(&mut self, epoch: Epoch) {
        let now = Instant::now();
        assert!(epoch >= self.newest.0 || self.ended > self.newest.1, "a token of an earlier epoch came later");
        if epoch > self.newest.0 {
            self.last_of_before = self.newest.1;
        }
        self.newest = (epoch, now);
    }
}

impl Streams {
    fn start(bench: &Bench, store: &Arc<Store>) -> Self {
        let config = EngineConfig::default();
        let engine = Engine::start(config, None, bench.model.clone(), bench.tokenizer.clone(), store.clone());
        let engine = Arc::new(engine.expect("an engine"));
        let now = Instant::now();
        let seen = vec![Seen { newest: (Epoch(0), now), ended: now, last_of_before: now }; STREAMS];
        let (seen, tokens, cut) =
            (Arc::new(Mutex::new(seen)), Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let stop = Arc::new(AtomicBool::new(false));
        let stream = |i: usize| {
            let (engine, seen, stop) = (engine.clone(), seen.clone(), stop.clone());
            let (tokens, cut) = (tokens.clone(), cut.clone());
            std::thread::spawn(move || {
                let mut seed = i as u64;
                while !stop.load(Ordering::Relaxed) {
                    seed += STREAMS as u64;
                    let mut request = GenerateRequest::new(vec![1 + i as u32, 50, 60], 400);
                    request.retrieval = Retrieval { mode: Mode::Knn, ..Retrieval::default() };
                    (request.seed, request.on_removal) = (seed, OnRemoval::Repin);
                    let mut generation = engine.generate(request).expect("a place");
                    while let Some(event) = generation.blocking_next() {
                        let seen = &mut seen.lock().expect("no panic")[i];
                        match event {
                            Event::Token(_, view) => {
                                seen.token(view.snapshot.epoch);
                                tokens.fetch_add(1, Ordering::Relaxed);
                            }
                            Event::Finished(_) => seen.ended = Instant::now(),
                            Event::Failed(_) => {
                                seen.ended = Instant::now();
                                cut.fetch_add(1, Ordering::Relaxed);
                            }
                        }
                        if stop.load(Ordering::Relaxed) {
                            break;
                        }
                    }
                }
            })
        };
        let threads = (0..STREAMS).map(stream).collect();
        Self { seen, tokens, cut, stop, threads }
    }

    /// Withdraws so many groups so many times; the moments of each, in milliseconds from its beginning.
    fn removals(&self, store: &Store, groups: usize, times: usize, removed: &mut usize) -> Value {
        let (mut durable, mut new, mut all, mut next) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let seen = || self.seen.lock().expect("no panic");
        let cut = self.cut.load(Ordering::Relaxed);
        for _ in 0..times {
            let start = Instant::now();
            let removal = withdraw(store, groups, removed);
            let swapped = start + Duration::from_secs_f64(removal.effective_ms / 1000.0);
            // Until each has a token that was made without what is gone, or its text has ended.
            while seen().iter().any(|s| s.newest.0 < removal.epoch() && s.ended < swapped) {
                std::thread::yield_now();
            }
            let milliseconds = |at: Instant| at.saturating_duration_since(start).as_secs_f64() * 1000.0;
            next.push(milliseconds(Instant::now()));
            let last = |s: &Seen| if s.newest.0 < removal.epoch() { s.newest.1 } else { s.last_of_before };
            all.push(seen().iter().map(|s| milliseconds(last(s))).fold(removal.effective_ms, f64::max));
            durable.push(removal.durable_ms);
            new.push(removal.effective_ms);
        }
        json!({"durable": quantiles(durable), "effective_new": quantiles(new), "effective_all": quantiles(all),
            "next_token_of_all": quantiles(next), "cut": self.cut.load(Ordering::Relaxed) - cut, "n": times})
    }

    /// Tokens per second without and with a withdrawal each second and the purge that follows it, in turns.
    fn throughput(&self, store: &Arc<Store>, seconds: u64, removed: &mut usize) -> Value {
        let (mut without, mut with, mut effective) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..2 {
            without.push(self.count(seconds, || ()));
            let purging = Arc::new(AtomicBool::new(false));
            with.push(self.count(seconds, || {
                effective.push(withdraw(store, 1, removed).effective_ms);
                // As the server does it: one purge at a time, in the background, for a share of the time.
                if !purging.swap(true, Ordering::SeqCst) {
                    let (store, purging) = (store.clone(), purging.clone());
                    std::thread::spawn(move || {
                        let start = Instant::now();
                        store.purge(&Default::default(), &|_, _| {}).expect("a purge");
                        std::thread::sleep(start.elapsed().div_f64(PURGE_SHARE) - start.elapsed());
                        purging.store(false, Ordering::SeqCst);
                    });
                }
            }));
            while purging.load(Ordering::SeqCst) {
                std::thread::yield_now();
            }
        }
        let mean = |x: &[f64]| x.iter().sum::<f64>() / x.len() as f64;
        json!({
            "without": without, "with": with, "ratio": mean(&with) / mean(&without), "effective_new_ms": quantiles(effective),
        })
    }

    fn count(&self, seconds: u64, mut each_second: impl FnMut()) -> f64 {
        let (start, before) = (Instant::now(), self.tokens.load(Ordering::Relaxed));
        for second in 1..=seconds {
            each_second();
            let until = start + Duration::from_secs(second);
            std::thread::sleep(until.saturating_duration_since(Instant::now()));
        }
        (self.tokens.load(Ordering::Relaxed) - before) as f64 / start.elapsed().as_secs_f64()
    }

    fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.threads.into_iter().for_each(|t| t.join().expect("no panic"));
    }
}

/// Withdraws the next `groups` groups of documents, a power of ten, by the beginning of their URIs.
fn withdraw(store: &Store, groups: usize, next: &mut usize) -> Removal {
    let first = next.next_multiple_of(groups);
    *next = first + groups;
    let digits = GROUP_DIGITS - groups.ilog10() as usize;
    let prefix = format!("bulk/{:0digits$}", first / groups);
    store.by("test").withdraw(&Selection::UriPrefix { source: None, prefix }).expect("documents to withdraw")
}

/// Values and distances of the 1024 nearest entries, as bits.
fn nearest(store: &Store, filter: &Filter, key: &[f32]) -> Vec<(u32, u32)> {
    let snapshot = store.snapshot();
    let mask = snapshot.mask(filter, Purpose::Knn);
    let found = store
        .neighbors(&[NeighborQuery { snapshot: &snapshot, mask: &mask, key, k: 1024, text: &[] }])
        .expect("a search");
    found[0].iter().map(|n| (n.value, n.distance.to_bits())).collect()
}

fn purge(store: &Store) -> Value {
    let shards = store.details().expect("shards");
    let rewritten = shards.iter().filter(|d| !d.record.withdrawn.is_empty());
    let kept: u64 = rewritten.map(|d| d.n_entries).sum();
    let start = Instant::now();
    let purged = store.purge(&Default::default(), &|_, _| {}).expect("a purge");
    let seconds = start.elapsed().as_secs_f64();
    json!({"entries_gone": purged.n_entries, "entries_written": kept, "seconds": seconds, "entries_per_second": (kept + purged.n_entries) as f64 / seconds})
}

/// The first purge went beside the streams, the second alone.
fn purge_again(store: &Store, beside: Value) -> Value {
    json!({"beside_streams": beside, "alone": purge(store)})
}

fn quantiles(mut times: Vec<f64>) -> Value {
    times.sort_by(f64::total_cmp);
    let at = |q: f64| times[((times.len() - 1) as f64 * q).round() as usize];
    json!({"p50": at(0.5), "p99": at(0.99), "max": at(1.0)})
}

/// Memory of this process that is in use now, files that are mapped among it.
fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"));
    line.and_then(|l| l.trim().trim_end_matches(" kB").parse::<u64>().ok()).map_or(0, |kb| kb * 1024)
}
