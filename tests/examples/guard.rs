//! How long the runs are that are copied from the store, with and without the guard:
//!
//! `zstdcat work/corpus/{vim-doc,anarchism}.jsonl.zst | cargo run --release -p silo-tests --example guard -- FOLDER MEGABYTES GENERATIONS`
//!
//! The default model continues beginnings of texts of the store with neighbours of weight 0.9. Runs are measured as text, by other means than
//! those of the guard: the words of each run are looked for in all words of the source. Prints a JSON object.

#[path = "common/source.rs"]
mod source;

use std::collections::BTreeMap;
use std::io::BufRead;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};
use silo_core::{Document, KeySite, LanguageModel, SourceId, Tier, TokenId, Tokenizer, units};
use silo_engine::{
    Engine, EngineConfig, Event, FinishReason, GenerateRequest, GuardConfig, KnnOverrides, Mode, OnRun, Retrieval,
};
use silo_model::{CpuLlama, LoadedModel};
use silo_store::{NewShard, Recipe, Store, StoreOptions};
use source::source;

const SEED: u64 = 1;
const PROMPT_WORDS: usize = 12;
const NEW_TOKENS: usize = 64;
const AT_ONCE: usize = 8;

/// Documents from the standard input, up to so many bytes of each source.
fn read(max_bytes: usize) -> BTreeMap<String, Vec<Document>> {
    let (mut out, mut bytes) = (BTreeMap::<String, Vec<Document>>::new(), BTreeMap::<String, usize>::new());
    for line in std::io::stdin().lock().lines() {
        let line: Value = serde_json::from_str(&line.expect("text")).expect("a document a line");
        let field = |name: &str| line[name].as_str().unwrap_or_default().to_owned();
        let (id, text) = (field("source"), field("text"));
        let so_far = bytes.entry(id.clone()).or_default();
        if *so_far > max_bytes {
            continue;
        }
        *so_far += text.len();
        let (uri, title, licence) = (field("uri"), field("title"), "LicenseRef-any".to_owned());
        let document = Document { source: source(&id).id, uri, title, licence, tier: Tier::Restricted, text };
        out.entry(id).or_default().push(document);
    }
    out
}

struct Bench {
    model: Arc<dyn LanguageModel>,
    tokenizer: Arc<dyn Tokenizer>,
    store: Arc<Store>,
    /// All words of each source, a space before each and after the last of a document.
    words: BTreeMap<SourceId, String>,
    prompts: Vec<Vec<TokenId>>,
}

impl Bench {
    /// A text of the store as it stands there, and what was made of it.
    fn longest_run(&self, prompt: &[TokenId], made: &[TokenId], of: &str) -> usize {
        let tokens = [prompt, made].concat();
        let mut longest = 0;
        for to in prompt.len() + 1..=tokens.len() {
            let text = self.tokenizer.decode(&tokens[..to]);
            let all: Vec<units::Word> = units::words(&text).collect();
            while longest < to {
                let before = self.tokenizer.decode(&tokens[..to - longest - 1]).len();
                let words: Vec<&units::Word> = all.iter().filter(|w| w.at.start >= before).collect();
                let complete = words.last().is_some_and(|w| w.at.end < text.len());
                let end = if complete { " " } else { "" };
                let run: String = words.iter().map(|w| format!(" {}", w.text)).chain([end.to_owned()]).collect();
                // What is mostly punctuation is no text.
                if 2 * run.chars().filter(|c| *c != ' ').count() < longest + 1 || !of.contains(&run) {
                    break;
                }
                longest += 1;
            }
        }
        longest
    }

    fn generate(&self, guard: GuardConfig) -> Value {
        let config = EngineConfig { guard, max_active: AT_ONCE, max_queued: AT_ONCE, ..EngineConfig::default() };
        let (model, tokenizer, store) = (self.model.clone(), self.tokenizer.clone(), self.store.clone());
        let engine = Engine::start(config, None, model, tokenizer, store).expect("a thread");
        let (mut seconds, mut n_tokens, mut refused, mut ended) = (0.0, 0, 0, 0);
        let mut runs: BTreeMap<&SourceId, Vec<usize>> = BTreeMap::new();
        for (batch, prompts) in self.prompts.chunks(AT_ONCE).enumerate() {
            let start = Instant::now();
            let running: Vec<_> = prompts
                .iter()
                .enumerate()
                .map(|(i, prompt)| {
                    let mut request = GenerateRequest::new(prompt.clone(), NEW_TOKENS);
                    let (k, knn_weight, knn_temperature) = (Some(1024), Some(0.9), None);
                    let knn = KnnOverrides { k, knn_weight, knn_temperature, ..Default::default() };
                    request.retrieval = Retrieval { mode: Mode::Knn, knn, ..Retrieval::default() };
                    request.seed = (batch * AT_ONCE + i) as u64;
                    engine.generate(request).expect("a place")
                })
                .collect();
            let mut made = Vec::new();
            for mut generation in running {
                let mut tokens = Vec::new();
                loop {
                    match generation.blocking_next().expect("an end") {
                        Event::Token(token, _) => tokens.push(token.token),
                        Event::Failed(error) => panic!("{error}"),
                        Event::Finished(finished) => {
                            refused += finished.usage.refused_tokens;
                            ended += usize::from(finished.reason == FinishReason::VerbatimLimit);
                            break;
                        }
                    }
                }
                made.push(tokens);
            }
            seconds += start.elapsed().as_secs_f64();
            for (prompt, made) in prompts.iter().zip(&made) {
                n_tokens += made.len();
                for (source, words) in &self.words {
                    runs.entry(source).or_default().push(self.longest_run(prompt, made, words));
                }
            }
        }
        let of_source = |(source, mut runs): (&SourceId, Vec<usize>)| {
            runs.sort_unstable();
            let at = |q: f64| runs[((runs.len() - 1) as f64 * q).round() as usize];
            (source.to_string(), json!({"p50": at(0.5), "p99": at(0.99), "longest": at(1.0)}))
        };
        let runs: serde_json::Map<String, Value> = runs.into_iter().map(of_source).collect();
        json!({
            "longest_run_tokens": runs, "tokens": n_tokens, "tokens_per_second": n_tokens as f64 / seconds,
            "refused_tokens": refused, "ended": ended,
        })
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [root, megabytes, generations] = &arguments[..] else {
        panic!("a folder, megabytes of each source, generations")
    };
    let number = |text: &String| text.parse::<usize>().expect("a number");
    let loaded = LoadedModel::open(Path::new("models/silo-open-6m")).expect("the default model");
    let recipe = Recipe::read(Path::new("indexes/ivf.toml")).expect("the default recipe");
    let model: Arc<dyn LanguageModel> = Arc::new(CpuLlama::new(&loaded, recipe.key_site, 2).expect("a model"));
    let tokenizer: Arc<dyn Tokenizer> = Arc::new(loaded.tokenizer);
    assert_eq!(recipe.key_site, KeySite::default());
    let options = StoreOptions { n_threads: 2, ..StoreOptions::default() };
    let root = PathBuf::from(root);
    let store = Arc::new(Store::open(&root, model.card(), recipe, tokenizer.clone(), options).expect("a store"));
    let sources = read(number(megabytes) << 20);
    for (id, documents) in &sources {
        let source = source(id);
        store.by("test").create_source(&source).expect("a new source");
        let new = NewShard { source: &source.id, documents };
        store.by("test").add_shard(&new, &*model, &AtomicBool::new(false), &|_, _| {}).expect("a shard");
        eprintln!("{id}: {} documents", documents.len());
    }
    let mut rng = ChaCha8Rng::seed_from_u64(SEED);
    let all: Vec<&Document> = sources.values().flatten().collect();
    let mut prompts = Vec::new();
    while prompts.len() < number(generations) {
        let text = &all.choose(&mut rng).expect("there are some").text;
        let words: Vec<units::Word> = units::words(text).collect();
        let Some(last) = words.len().checked_sub(PROMPT_WORDS + NEW_TOKENS) else { continue };
        let from = rng.random_range(0..=last);
        let prompt = &text[words[from].at.start..words[from + PROMPT_WORDS].at.start];
        prompts.push(tokenizer.encode(prompt).expect("plain text"));
    }
    let words = |documents: &Vec<Document>| {
        let of_document = |d: &Document| {
            units::words(&d.text).map(|w| format!(" {}", w.text)).chain([" \n".into()]).collect::<String>()
        };
        documents.iter().map(of_document).collect()
    };
    let words = sources.iter().map(|(id, documents)| (source(id).id, words(documents))).collect();
    let bench = Bench { model, tokenizer, store, words, prompts };
    let limit = |restricted: usize| GuardConfig { restricted, ..GuardConfig::default() };
    let out = json!({
        "seed": SEED, "generations": bench.prompts.len(), "new_tokens": NEW_TOKENS, "knn_weight": 0.9,
        "megabytes_of_words": bench.words.values().map(String::len).sum::<usize>() as f64 / 1e6,
        "without": bench.generate(limit(0)), "limit 32": bench.generate(limit(32)), "limit 16": bench.generate(limit(16)),
        "limit 32, ending": bench.generate(GuardConfig { on_run: OnRun::End, ..limit(32) }),
    });
    println!("{}", serde_json::to_string_pretty(&out).expect("it is JSON"));
}
