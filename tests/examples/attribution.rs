//! Attribution on real text: whether shares add up and say what a withdrawal does, what they cost, and how fast runs of words are found.
//!
//! `cargo run --release -p silo-tests --example attribution -- shares STORE RESPONSES`, over a copy of a store of the default model and
//! `indexes/ivf.toml`: its sources are suspended one after the other.
//!
//! `… -- cost STORE RESPONSES`: what credit costs.
//!
//! `zstdcat work/corpus/*.jsonl.zst | … -- sums STORE TOKENS`: shares in so many tokens of texts, over such a store, half of them with a cap.
//!
//! `zstdcat work/corpus/*.jsonl.zst | cargo run --release -p silo-tests --example attribution -- text FOLDER [MAX_MEGABYTES …]`: stores of so much
//! text, with keys that say nothing.
//!
//! Prints a JSON object.

#[path = "common/documents.rs"]
mod documents;
#[path = "common/no_cache.rs"]
mod no_cache;
#[path = "common/short.rs"]
mod short;
#[path = "common/source.rs"]
mod source;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use rand::seq::{IndexedRandom, SliceRandom};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};
use short::Short;
use silo_core::{
    Document, Filter, KeySite, LanguageModel, ModelCard, SnapshotProvider, Source, SourceId, TokenId, Tokenizer, units,
};
use silo_engine::{Depth, Engine, EngineConfig, Event, GenerateRequest, Mode, Retrieval, ScoreRequest, TokenCredit};
use silo_model::{CpuLlama, LoadedModel};
use silo_store::{NewShard, Recipe, SpanQuery, Store, StoreOptions};

const SEED: u64 = 1;
const PROMPT_WORDS: usize = 12;
const NEW_TOKENS: usize = 64;
const AT_ONCE: usize = 8;
const TEXT_TOKENS: usize = 500;
const TEXTS: usize = 200;
const ROUNDS: usize = 5;
const CAP: f64 = 0.3;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let figures = match &arguments[..] {
        [what, store, responses] if what == "shares" => {
            Shares::new(Path::new(store), responses.parse().expect("a number of responses")).measure()
        }
        [what, store, responses] if what == "cost" => {
            Shares::new(Path::new(store), responses.parse().expect("a number of responses")).cost()
        }
        [what, store, tokens] if what == "sums" => {
            Shares::new(Path::new(store), 1).many_sums(tokens.parse().expect("a number of tokens"))
        }
        [what, folder, megabytes @ ..] if what == "text" => {
            let sizes: Vec<usize> = megabytes.iter().map(|m| m.parse().expect("megabytes")).collect();
            text(Path::new(folder), &sizes)
        }
        _ => {
            panic!("`shares STORE RESPONSES`, `cost STORE RESPONSES`, `sums STORE TOKENS` or `text FOLDER MEGABYTES …`")
        }
    };
    println!("{figures}");
}

/// Of this process, on all threads.
fn micros_per_token(work: impl FnOnce() -> usize) -> f64 {
    // Clock ticks of a hundredth of a second, in user and kernel mode.
    let ticks = || -> f64 {
        let stat = std::fs::read_to_string("/proc/self/stat").expect("the system's account of this process");
        let fields: Vec<&str> = stat.rsplit_once(')').expect("a name").1.split_whitespace().collect();
        fields[11].parse::<f64>().expect("a number") + fields[12].parse::<f64>().expect("a number")
    };
    let before = ticks();
    let n = work();
    (ticks() - before) * 1e4 / n as f64
}

fn quantiles(mut of: Vec<f64>) -> Value {
    of.sort_by(f64::total_cmp);
    let at = |q: f64| of[((of.len() - 1) as f64 * q).round() as usize];
    json!({"n": of.len(), "p50": at(0.5), "p99": at(0.99), "greatest": at(1.0)})
}

/// A store of the default model.
struct Shares {
    engine: Engine,
    store: Arc<Store>,
    prompts: Vec<Vec<TokenId>>,
}

/// A text that was made, with its credit.
struct Made {
    tokens: Vec<TokenId>,
    n_prompt: usize,
    credit: Vec<TokenCredit>,
}

fn knn() -> Retrieval {
    Retrieval { mode: Mode::Knn, ..Retrieval::default() }
}

impl Shares {
    fn new(root: &Path, n: usize) -> Self {
        let loaded = LoadedModel::open(Path::new("models/silo-open-6m")).expect("the default model");
        let model: Arc<dyn LanguageModel> = Arc::new(CpuLlama::new(&loaded, KeySite::default(), 2).expect("a model"));
        let tokenizer: Arc<dyn Tokenizer> = Arc::new(loaded.tokenizer);
        let recipe = Recipe::read(Path::new("indexes/ivf.toml")).expect("the default recipe");
        let options = StoreOptions { n_threads: 2, ..StoreOptions::default() };
        let store = Store::open(root, model.card(), recipe, tokenizer.clone(), options).expect("a store");
        let store = Arc::new(store);
        let config = EngineConfig { max_active: AT_ONCE, max_queued: AT_ONCE, ..EngineConfig::default() };
        let engine = Engine::start(config, None, model, tokenizer.clone(), store.clone()).expect("an engine");
        let mut rng = ChaCha8Rng::seed_from_u64(SEED);
        let shards: Vec<_> = store.snapshot().shards.iter().map(|view| view.id).collect();
        let texts: Vec<String> = (shards.iter())
            .flat_map(|id| store.documents(*id).expect("documents"))
            .map(|stored| stored.document.text)
            .collect();
        let prompts = std::iter::repeat_with(|| prompt(&mut rng, &texts)).flatten().take(n);
        let prompts = prompts.map(|text| tokenizer.encode(&text).expect("text")).collect();
        Self { engine, store, prompts }
    }

    fn generate(&self, depth: Depth, prompts: &[Vec<TokenId>]) -> Vec<Made> {
        let mut out = Vec::new();
        for (batch, prompts) in prompts.chunks(AT_ONCE).enumerate() {
            let begin = |(i, prompt): (usize, &Vec<TokenId>)| {
                let mut request = GenerateRequest::new(prompt.clone(), NEW_TOKENS);
                (request.retrieval, request.seed) = (knn(), (batch * AT_ONCE + i) as u64);
                request.depth = depth;
                self.engine.generate(request).expect("a place")
            };
            let running: Vec<_> = prompts.iter().enumerate().map(begin).collect();
            for (mut generation, prompt) in running.into_iter().zip(prompts) {
                let (mut tokens, mut credit) = (prompt.clone(), Vec::new());
                while let Some(Event::Token(token, _)) = generation.blocking_next() {
                    tokens.push(token.token);
                    credit.push(token.credit);
                }
                out.push(Made { tokens, n_prompt: prompt.len(), credit });
            }
        }
        out
    }

    fn measure(&self) -> Value {
        let made = self.generate(Depth::Neighbors, &self.prompts);
        json!({"seed": SEED, "entries": self.store.snapshot().shards.iter().map(|s| s.n_entries).sum::<u64>(),
            "sums": sums(made.iter().flat_map(|made| &made.credit)),
            "withdrawn": self.withdrawn(&made)})
    }

    /// Sums of shares in the tokens of the store's own texts, and with a cap on sources.
    fn many_sums(&self, n_tokens: usize) -> Value {
        let snapshot = self.store.snapshot();
        let all = documents::read(usize::MAX).into_iter().flat_map(|(_, documents)| documents);
        let mut texts: Vec<String> = all.map(|document| document.text).collect();
        texts.shuffle(&mut ChaCha8Rng::seed_from_u64(SEED));
        let retrieval = |influence_cap| Retrieval { influence_cap, ..knn() };
        let parts = [(None, 0), (Some(CAP), 1)].map(|(cap, part)| {
            let (mut credits, mut left) = (Vec::new(), n_tokens / 2);
            for text in texts.iter().skip(part).step_by(2) {
                let tokens = self.engine.tokenizer().encode(text).expect("text");
                for piece in tokens.chunks(512) {
                    let piece = &piece[..piece.len().min(left)];
                    if piece.is_empty() {
                        break;
                    }
                    let mut request = ScoreRequest::new(piece.to_vec(), retrieval(cap));
                    request.depth = Some(Depth::Neighbors);
                    let score = self.engine.score(&request, &AtomicBool::new(false)).expect("a score");
                    left -= piece.len();
                    credits.push(Errors::of(score.tokens.iter().filter_map(|token| token.credit.as_ref())));
                }
            }
            credits.into_iter().fold(Errors::default(), Errors::and)
        });
        let entries: u64 = snapshot.shards.iter().map(|s| s.n_entries).sum();
        json!({"seed": SEED, "entries": entries, "without_a_cap": parts[0].json(), "cap": CAP, "with_it": parts[1].json()})
    }

    /// What credit costs: processor time per token, which other work on the machine changes less than speed. In scoring, where a token costs less
    /// than in decoding, beside none at all; in decoding, where every answer is credited to sources, for the notices and the ledger. In turns.
    fn cost(&self) -> Value {
        let made = self.generate(Depth::Sources, &self.prompts);
        let kinds = [
            ("none", None),
            ("sources", Some(Depth::Sources)),
            ("documents", Some(Depth::Documents)),
            ("neighbours", Some(Depth::Neighbors)),
        ];
        let (mut scoring, mut decoding) = (BTreeMap::<&str, Vec<f64>>::new(), BTreeMap::<&str, Vec<f64>>::new());
        for _ in 0..ROUNDS {
            for (name, depth) in kinds {
                let each = |made: &Made| {
                    let mut request = ScoreRequest::new(made.tokens.clone(), knn());
                    request.depth = depth;
                    self.engine.score(&request, &AtomicBool::new(false)).expect("a score").tokens.len()
                };
                let micros = micros_per_token(|| made.iter().map(each).sum());
                scoring.entry(name).or_default().push(micros);
                let Some(depth) = depth else { continue };
                let n_new = |made: &Made| made.tokens.len() - made.n_prompt;
                let micros = micros_per_token(|| self.generate(depth, &self.prompts).iter().map(n_new).sum());
                decoding.entry(name).or_default().push(micros);
            }
        }
        let entries: u64 = self.store.snapshot().shards.iter().map(|s| s.n_entries).sum();
        json!({"seed": SEED, "entries": entries, "processor_microseconds_per_token": {"scoring": scoring, "decoding": decoding}})
    }

    /// Each source in turn is compared away and taken away: the same, to the last bit?
    fn withdrawn(&self, made: &[Made]) -> Value {
        let (cancel, snapshot) = (AtomicBool::new(false), self.store.snapshot());
        let mut sources: Vec<SourceId> = snapshot.shards.iter().map(|view| view.source.id.clone()).collect();
        sources.sort_unstable();
        sources.dedup();
        let score = |made: &Made| ScoreRequest::new(made.tokens.clone(), knn());
        let (mut n_tokens, mut n_equal, mut top) = (0, 0, Vec::new());
        for source in &sources {
            let compare =
                |m| self.engine.compare_without(&score(m), std::slice::from_ref(source), &cancel).expect("it");
            let compared: Vec<_> = made.iter().map(compare).collect();
            let of_source = || snapshot.shards.iter().filter(|view| view.source.id == *source);
            let by = self.store.by("measurement");
            of_source().for_each(|view| drop(by.suspend_shard(view.id).expect("a shard")));
            for (made, compared) in made.iter().zip(&compared) {
                let gone = self.engine.score(&score(made), &cancel).expect("a score");
                for (a, b) in compared.tokens.iter().zip(&gone.tokens) {
                    n_tokens += 1;
                    n_equal += u64::from(a.without.to_bits() == b.log_probability.to_bits());
                }
                for token in compared.tokens.iter().filter(|t| t.position >= made.n_prompt) {
                    let credit = &made.credit[token.position - made.n_prompt];
                    let first = credit.sources.iter().max_by(|a, b| a.1.total_cmp(&b.1));
                    if first.is_some_and(|(id, _)| id == source) {
                        top.push((first.map_or(0.0, |f| f.1), token.log_probability - token.without));
                    }
                }
            }
            of_source().for_each(|view| drop(by.resume_shard(view.id).expect("a shard")));
        }
        json!({"sources": sources.len(), "tokens": n_tokens, "equal_to_the_last_bit": n_equal, "top_source": by_share(&top)})
    }
}

/// What withdrawing the source with the greatest share does to log p of the token, by that share.
fn by_share(top: &[(f64, f64)]) -> Value {
    let bucket = |from: f64, to: f64| {
        let of: Vec<f64> =
            top.iter().filter(|(share, _)| (from..to).contains(share)).map(|(_, delta)| *delta).collect();
        let lower = of.iter().filter(|delta| **delta > 0.0).count();
        json!({"share_from": from, "share_to": to, "tokens": of.len(), "less_probable_without": lower,
            "mean_loss_of_log_p": of.iter().sum::<f64>() / of.len().max(1) as f64})
    };
    [(0.0, 0.1), (0.1, 0.25), (0.25, 0.5), (0.5, 0.75), (0.75, 1.01)].map(|(from, to)| bucket(from, to)).to_vec().into()
}

/// By how much shares miss 1 at most, at each level.
#[derive(Default)]
struct Errors {
    n_tokens: u64,
    n_capped: u64,
    greatest: [f64; 3],
}

impl Errors {
    fn of<'a>(credits: impl Iterator<Item = &'a TokenCredit>) -> Self {
        credits.map(Self::of_token).fold(Self::default(), Self::and)
    }

    fn of_token(credit: &TokenCredit) -> Self {
        let sums = [
            credit.sources.iter().map(|x| x.1).sum::<f64>(),
            credit.documents.iter().map(|x| x.1).sum(),
            credit.neighbors.iter().map(|x| x.share).sum(),
        ];
        let greatest = sums.map(|sum| (credit.parametric + sum - 1.0).abs());
        Self { n_tokens: 1, n_capped: u64::from(!credit.capped.is_empty()), greatest }
    }

    fn and(self, other: Self) -> Self {
        let greatest = std::array::from_fn(|i| self.greatest[i].max(other.greatest[i]));
        Self { n_tokens: self.n_tokens + other.n_tokens, n_capped: self.n_capped + other.n_capped, greatest }
    }

    fn json(&self) -> Value {
        let [sources, documents, neighbors] = self.greatest;
        let greatest = json!({"sources": sources, "documents": documents, "neighbors": neighbors});
        json!({"tokens": self.n_tokens, "tokens_with_a_capped_source": self.n_capped, "greatest_error": greatest})
    }
}

fn sums<'a>(credits: impl Iterator<Item = &'a TokenCredit>) -> Value {
    Errors::of(credits).json()
}

fn prompt(rng: &mut ChaCha8Rng, texts: &[String]) -> Option<String> {
    let text = texts.choose(rng)?;
    let words: Vec<_> = units::words(text).take(400).collect();
    let from = rng.random_range(0..words.len().checked_sub(PROMPT_WORDS)?.max(1));
    Some(text[words[from].at.start..words.get(from + PROMPT_WORDS - 1)?.at.end].to_owned())
}

/// Stores of several sizes, from the smallest on.
fn text(folder: &Path, megabytes: &[usize]) -> Value {
    let largest = megabytes.iter().max().copied().unwrap_or(100_000);
    let all = documents::read(largest * 1_000_000);
    let loaded = LoadedModel::open(Path::new("models/silo-open-6m")).expect("the default model");
    let card = CpuLlama::new(&loaded, KeySite::default(), 2).expect("a model").card().clone();
    let model = Short(ModelCard { key_dim: 4, ..card });
    let tokenizer: Arc<dyn Tokenizer> = Arc::new(loaded.tokenizer);
    let sizes = if megabytes.is_empty() { &[largest][..] } else { megabytes };
    let figures: Vec<Value> = sizes.iter().map(|size| of_size(folder, &all, *size, (&model, &tokenizer))).collect();
    json!({"seed": SEED, "texts": TEXTS, "text_tokens": TEXT_TOKENS, "stores": figures})
}

fn of_size(
    folder: &Path,
    all: &[(Source, Vec<Document>)],
    megabytes: usize,
    (model, tokenizer): (&Short, &Arc<dyn Tokenizer>),
) -> Value {
    let root = folder.join(format!("spans-{megabytes}"));
    let _ = std::fs::remove_dir_all(&root);
    let recipe = Recipe::read(Path::new("indexes/exact.toml")).expect("a recipe");
    let options = StoreOptions { n_threads: 2, ..StoreOptions::default() };
    let store = Store::open(&root, model.card(), recipe, tokenizer.clone(), options).expect("a store");
    // An even part of every source.
    let bytes: usize = all.iter().flat_map(|(_, documents)| documents).map(|d| d.text.len()).sum();
    let every = (bytes / (megabytes * 1_000_000)).max(1);
    let mut texts: Vec<&str> = Vec::new();
    for (source, documents) in all {
        let part: Vec<Document> = documents.iter().step_by(every).cloned().collect();
        if store.source(&source.id).is_err() {
            store.by("measurement").create_source(source).expect("a new source");
        }
        let new = NewShard { source: &source.id, documents: &part };
        store.by("measurement").add_shard(&new, model, &AtomicBool::new(false), &|_, _| {}).expect("a shard");
        texts.extend(documents.iter().step_by(every).map(|d| &d.text[..]));
    }
    let details = store.details().expect("shards");
    let n_tokens: u64 = details.iter().map(|d| d.record.n_tokens).sum();
    let index: u64 = span_bytes(&root);
    let times = times(&store, &texts, &**tokenizer);
    drop(store);
    std::fs::remove_dir_all(&root).expect("a folder of ours");
    json!({"megabytes": megabytes, "tokens": n_tokens, "shards": details.len(), "index_bytes_per_token": index as f64 / n_tokens as f64,
        "milliseconds": times})
}

/// Of the indexes of runs of words.
fn span_bytes(root: &Path) -> u64 {
    let shards = std::fs::read_dir(root.join("shards")).expect("shards").flatten();
    let of = |shard: std::fs::DirEntry| {
        let len = |name: &str| std::fs::metadata(shard.path().join(name)).map_or(0, |m| m.len());
        ["units.bin", "order.bin", "starts.bin"].map(len).iter().sum::<u64>()
    };
    shards.map(of).sum()
}

/// Texts of which half is from the store, in pieces, and half is put together of its words.
fn mixed(rng: &mut ChaCha8Rng, texts: &[&str], tokenizer: &dyn Tokenizer) -> String {
    let mut out = String::new();
    while tokenizer.encode(&out).expect("text").len() < TEXT_TOKENS {
        let text = texts.choose(rng).expect("there are some");
        let words: Vec<_> = units::words(text).take(2000).collect();
        let Some(last) = words.len().checked_sub(41) else { continue };
        let from = rng.random_range(0..=last);
        out.push_str(&text[words[from].at.start..words[from + 40].at.end]);
        let single = (0..40).filter_map(|_| words.choose(rng)).map(|word| &word.text[..]);
        out.extend(single.flat_map(|word| [" ", word]));
        out.push(' ');
    }
    let tokens = tokenizer.encode(&out).expect("text");
    tokenizer.decode(&tokens[..TEXT_TOKENS])
}

fn times(store: &Store, texts: &[&str], tokenizer: &dyn Tokenizer) -> Value {
    let (mut rng, filter) = (ChaCha8Rng::seed_from_u64(SEED), Filter::default());
    let pool = |n| rayon::ThreadPoolBuilder::new().num_threads(n).build().expect("threads");
    let queries: Vec<String> = (0..TEXTS).map(|_| mixed(&mut rng, texts, tokenizer)).collect();
    let mut out = serde_json::Map::new();
    for threads in [1, 2] {
        let (pool, mut times, mut n_spans) = (pool(threads), Vec::new(), 0);
        for text in &queries {
            let (min_words, max_spans, max_documents, context_words) = (6, 50, 10, 20);
            let cancel = &AtomicBool::new(false);
            let query = SpanQuery { text, filter: &filter, min_words, max_spans, max_documents, context_words, cancel };
            let start = Instant::now();
            let (_, spans) = pool.install(|| store.find_spans(&query)).expect("a look");
            times.push(start.elapsed().as_secs_f64() * 1000.0);
            n_spans += spans.len();
        }
        let spans = n_spans as f64 / TEXTS as f64;
        out.insert(format!("{threads} threads"), json!({"time": quantiles(times), "spans_per_text": spans}));
    }
    out.into()
}
