//! Opt-outs by passage on a large store of real text: how long a passage is looked for, and whether it is found; from the request to the proof;
//! and how often texts are kept out by mistake:
//!
//! `zstdcat work/corpus/*.jsonl.zst | cargo run --release -p silo-tests --example optout -- FOLDER [MAX_MEGABYTES]`
//!
//! Texts, tokens, passages and runs of words are real. Keys have four values, so that the store is built in minutes: nothing here searches them.
//! Prints a JSON object.

#[path = "common/documents.rs"]
mod documents;
#[path = "common/no_cache.rs"]
mod no_cache;
#[path = "common/short.rs"]
mod short;
#[path = "common/source.rs"]
mod source;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use documents::read;
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};
use short::Short;
use silo_core::{
    ContentHash, Document, KeySite, LanguageModel, ModelCard, OptOutSelection, ReasonCode, SnapshotProvider, Tokenizer,
    units,
};
use silo_govern::{Caller, Decision, GovernConfig, Governor, NewOptOut, Sketch, Suppressed, Verdict, Why};
use silo_log::{KeyFile, Receipt};
use silo_model::{CpuLlama, LoadedModel};
use silo_store::{NewShard, Recipe, Store, StoreOptions};

const SEED: u64 = 1;
const QUERIES: usize = 200;
const QUERY_WORDS: usize = 60;
/// One word in so many is another in altered queries.
const ALTERED: usize = 24;
const REQUESTS: usize = 20;
const SUPPRESSED: usize = 2000;
const OVERLAP: f64 = 0.5;

fn governor(root: &Path) -> Governor {
    let loaded = LoadedModel::open(Path::new("models/silo-open-6m")).expect("the default model");
    let card = CpuLlama::new(&loaded, KeySite::default(), 2).expect("a model").card().clone();
    let model: Arc<dyn LanguageModel> = Arc::new(Short(ModelCard { key_dim: 4, ..card }));
    let tokenizer: Arc<dyn Tokenizer> = Arc::new(loaded.tokenizer);
    let recipe = Recipe::read(Path::new("indexes/exact.toml")).expect("a recipe");
    let options = StoreOptions { n_threads: 2, ..StoreOptions::default() };
    let store = Store::open(root, model.card(), recipe, tokenizer.clone(), options).expect("a store");
    let config = GovernConfig { signing_key: Some(root.join("silo.key")), ..GovernConfig::default() };
    Governor::new(config, Arc::new(store), model, tokenizer).expect("a key")
}

fn quantiles(mut times: Vec<f64>) -> Value {
    times.sort_by(f64::total_cmp);
    let at = |q: f64| times[((times.len() - 1) as f64 * q).round() as usize];
    json!({"n": times.len(), "p50": at(0.5), "p99": at(0.99), "greatest": at(1.0)})
}

/// Some words of a document, as they stand there.
fn passage(rng: &mut ChaCha8Rng, text: &str) -> Option<String> {
    let words: Vec<_> = units::words(text).collect();
    let from = rng.random_range(0..words.len().checked_sub(QUERY_WORDS)?.max(1));
    Some(text[words[from].at.start..words.get(from + QUERY_WORDS - 1)?.at.end].to_owned())
}

fn altered(rng: &mut ChaCha8Rng, passage: &str) -> String {
    let words = units::words(passage).enumerate();
    words
        .map(|(i, w)| if i % ALTERED == ALTERED / 2 { format!("x{} ", rng.random::<u16>()) } else { w.text + " " })
        .collect()
}

fn shuffled(rng: &mut ChaCha8Rng, passage: &str) -> String {
    let mut words: Vec<String> = units::words(passage).map(|w| w.text).collect();
    words.shuffle(rng);
    words.join(" ")
}

fn look(governor: &Governor, documents: &[&Document], rng: &mut ChaCha8Rng) -> Value {
    let mut out = serde_json::Map::new();
    for kind in ["exact", "altered", "shuffled"] {
        let (mut times, mut found, mut matches) = (Vec::new(), 0, 0);
        while times.len() < QUERIES {
            let document = documents.choose(rng).expect("there are some");
            let Some(passage) = passage(rng, &document.text) else { continue };
            let query = match kind {
                "exact" => passage.to_uppercase(),
                "altered" => altered(rng, &passage),
                _ => shuffled(rng, &passage),
            };
            let start = Instant::now();
            let all = governor.store().find_text(&query, OVERLAP).expect("a search");
            times.push(start.elapsed().as_secs_f64() * 1000.0);
            let hash = document.hash();
            found += usize::from(all.iter().any(|m| m.document == hash && (m.exact || kind != "exact")));
            matches += all.len();
        }
        let per_query = matches as f64 / QUERIES as f64;
        out.insert(kind.into(), json!({"ms": quantiles(times), "found": found, "documents_per_query": per_query}));
    }
    out.into()
}

fn request(governor: &Governor, text: &str, keys: &Path) -> Value {
    let why = Why { reason: ReasonCode::Copyright, note: String::new() };
    let selection = OptOutSelection::Passage { text: Some(text.into()), sha256: ContentHash::of(text.as_bytes()) };
    let new = NewOptOut { selection, claimant: "somebody".into(), contact: String::new(), why: why.clone() };
    let (caller, start) = (Caller::local(), Instant::now());
    let passed = || start.elapsed().as_secs_f64() * 1000.0;
    let (optout, quarantine, plan) = governor.submit_optout(&caller, &new).expect("a request");
    let (submitted, quarantine) = (passed(), quarantine.expect("it is there"));
    let decision = Decision { verdict: Verdict::Uphold, spare: Vec::new(), why };
    let (_, removal) = governor.decide_optout(&caller, optout.id, &decision).expect("a decision");
    let (decided, removal) = (passed(), removal.expect("a withdrawal"));
    governor.purge(&AtomicBool::new(false), &|_, _| {}).expect("a purge");
    let purged = passed();
    let receipt = governor.receipt(removal.record.id).expect("a receipt");
    let made = passed();
    let keys = silo_log::read_public(keys).expect("keys");
    assert!(Receipt::verify(&receipt, &keys).expect("a receipt that holds").purged_at_unix_ms.is_some());
    json!({
        "documents": plan.documents.len(), "submitted_ms": submitted, "quarantine_effective_ms": quarantine.effective_ms,
        "decided_ms": decided, "withdrawal_effective_ms": removal.effective_ms, "purged_ms": purged, "receipt_ms": made,
        "verified_ms": passed(), "receipt_bytes": receipt.len(),
    })
}

/// How many of the texts that nobody asked out are kept out, and how many of those share less than half with what was.
fn mistakes(documents: &[&Document], rng: &mut ChaCha8Rng) -> Value {
    let key = b"a key for measuring";
    let mut order: Vec<usize> = (0..documents.len()).collect();
    order.shuffle(rng);
    let (kept, others) = order.split_at(SUPPRESSED.min(documents.len() / 2));
    let sketches: Vec<Sketch> = kept.iter().map(|i| Sketch::of(key, &documents[*i].text)).collect();
    let list = sketches.iter().zip(0..).map(|(s, i)| s.suppression(i, false)).collect();
    let (suppressed, start) = (Suppressed::new(list), Instant::now());
    // The part that they really have in common, of the shorter one: under a quarter, 0.4, a half, and more.
    let mut in_common = [0; 4];
    let (mut refused, mut other_source, mut bytes) = (0, 0, 0);
    for i in others {
        bytes += documents[*i].text.len();
        let sketch = Sketch::of(key, &documents[*i].text);
        let Some(hit) = suppressed.check(&sketch, OVERLAP) else { continue };
        refused += 1;
        let with = &sketches[hit.optout as usize];
        let common = sketch.shingles.iter().filter(|h| with.shingles.binary_search(h).is_ok()).count();
        let shorter = sketch.shingles.len().min(with.shingles.len()).max(1);
        let part = if sketch.text == with.text { 1.0 } else { common as f64 / shorter as f64 };
        in_common[[0.25, 0.4, 0.5].partition_point(|edge| *edge <= part)] += 1;
        other_source += usize::from(documents[*i].source != documents[kept[hit.optout as usize]].source);
    }
    let seconds = start.elapsed().as_secs_f64();
    json!({
        "kept_out": kept.len(), "tried": others.len(), "refused": refused, "of_those_in_another_source": other_source,
        "by_part_in_common": {"0-0.25": in_common[0], "0.25-0.4": in_common[1], "0.4-0.5": in_common[2], "0.5-1": in_common[3]},
        "megabytes_per_second": bytes as f64 / 1e6 / seconds,
    })
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let root = PathBuf::from(arguments.next().expect("a folder for the store"));
    let megabytes: usize = arguments.next().map_or(usize::MAX >> 20, |n| n.parse().expect("a number of megabytes"));
    std::fs::create_dir_all(&root).expect("a folder");
    let key = root.join("silo.key");
    KeyFile::create(&key, "example.org/silo").expect("a new key");
    let (governor, sources, building) = (governor(&root), read(megabytes << 20), Instant::now());
    for (source, documents) in &sources {
        let by = governor.store().by("test");
        by.create_source(source).expect("a new source");
        let new = NewShard { source: &source.id, documents };
        by.add_shard(&new, &**governor.model(), &AtomicBool::new(false), &|_, _| {}).expect("a shard");
        eprintln!("{}: {} documents, {:.0} s", source.id, documents.len(), building.elapsed().as_secs_f64());
    }
    let snapshot = governor.store().snapshot();
    let sum = |f: fn(&silo_core::ShardView) -> u64| snapshot.shards.iter().map(f).sum::<u64>();
    let store = json!({
        "shards": snapshot.shards.len(), "documents": sum(|s| s.n_documents), "entries": sum(|s| s.n_entries),
        "passages": sum(|s| s.n_passages), "built_s": building.elapsed().as_secs_f64(),
    });
    let mut rng = ChaCha8Rng::seed_from_u64(SEED);
    let documents: Vec<&Document> = sources.iter().flat_map(|(_, documents)| documents).collect();
    let searches = look(&governor, &documents, &mut rng);
    let mistakes = mistakes(&documents, &mut rng);
    let mut requests = Vec::new();
    while requests.len() < REQUESTS {
        let document = documents.choose(&mut rng).expect("there are some");
        let text = passage(&mut rng, &document.text);
        let there = text.filter(|text| !governor.store().find_text(text, OVERLAP).expect("a search").is_empty());
        requests.extend(there.map(|text| request(&governor, &text, &key.with_extension("key.pub"))));
    }
    let out = json!({"seed": SEED, "store": store, "searches": searches, "mistakes": mistakes, "requests": requests});
    println!("{}", serde_json::to_string_pretty(&out).expect("it is JSON"));
}
