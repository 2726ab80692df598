//! `silo eval`.

mod context;
mod curve;
mod domains;
mod plot;
mod reference;
mod speed;
mod swap;
mod weights;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use serde_json::{Value, json};
use silo_core::{
    Calibration, ContentHash, Document, LanguageModel, LicencePolicy, ShardView, SnapshotProvider, Tokenizer,
};
use silo_corpus::read_declarations;
use silo_engine::Engine;
use silo_eval::{Domain, EvidenceCache, Gatherer, Loss, store_parts, tune_shared};
use silo_store::{NewShard, Store};

use crate::config::{EvalConfig, read_eval_config};
use crate::{output, wiring};

/// Measurements on held-out text.
#[derive(Debug, Subcommand)]
pub enum Eval {
    /// Bits per byte and perplexity of every domain in every mode, with parameters tuned on validation text.
    Ppl(Run),
    /// Rules for the neighbours' weight at a token: fixed, by distance, by relative confidence; tuned on validation text.
    Weights(Run),
    /// Bits per byte over the size of the store.
    StoreSize(Run),
    /// Bits per byte while one source after the other is withdrawn.
    Removal(Run),
    /// Ways to retrieve passages: stride, query, length, number.
    Context(Run),
    /// Which part moves: keys and model exchanged between two evaluations of the same tokens.
    Swap(Swap),
    /// Tune weight, temperature and k on the validation text of all domains; writes what `store.calibration` names.
    Calibrate(Calibrate),
}

/// Tokens per second of every mode, recall of search, rate and size of building, memory, start.
#[derive(Debug, Args)]
pub struct Bench {
    #[command(flatten)]
    run: Run,
    /// Also write the keys that are searched for, as rows of 32-bit numbers: for comparing other programs.
    #[arg(long, value_name = "PATH")]
    queries_output: Option<PathBuf>,
}

/// A measurement.
#[derive(Debug, Args)]
pub struct Run {
    /// What is measured, as `configs/eval.toml`.
    #[arg(long, value_name = "PATH")]
    config: PathBuf,
    /// Where results go.
    #[arg(long, default_value = "docs/results", value_name = "PATH")]
    output: PathBuf,
}

/// Exchanges parts.
#[derive(Debug, Args)]
pub struct Swap {
    #[command(flatten)]
    run: Run,
    /// The other evaluation: of a model with the same tokenizer, over a store of the same text that it encoded.
    #[arg(long, value_name = "PATH")]
    other: PathBuf,
}

/// Tunes.
#[derive(Debug, Args)]
pub struct Calibrate {
    /// What is tuned on, as `configs/eval.toml`.
    #[arg(long, value_name = "PATH")]
    config: PathBuf,
    /// The file to write.
    #[arg(long, value_name = "PATH")]
    output: PathBuf,
}

impl Eval {
    /// Runs the command.
    pub fn run(self, as_json: bool) -> Result<()> {
        match self {
            Self::Ppl(c) => domains::run(&c, as_json),
            Self::Weights(c) => weights::run(&c, as_json),
            Self::StoreSize(c) => curve::store_size(&c, as_json),
            Self::Removal(c) => curve::removal(&c, as_json),
            Self::Context(c) => context::run(&c, as_json),
            Self::Swap(c) => swap::run(&c, as_json),
            Self::Calibrate(c) => calibrate(&c, as_json),
        }
    }
}

impl Bench {
    /// Runs the command.
    pub fn run(self, as_json: bool) -> Result<()> {
        speed::run(&self, as_json)
    }
}

fn calibrate(command: &Calibrate, as_json: bool) -> Result<()> {
    let ground = Ground::open(&command.config)?;
    let (_, tuned) = tune_shared(&ground.gatherer(), &ground.domains)?;
    let calibration = Calibration {
        model: ground.model.card().hash,
        tuned_on: ground.domains.iter().map(|d| d.source.clone()).collect(),
        tuned: tuned.parameters,
        neutral: ground.config.engine.knn,
    };
    write(&command.output, &format!("{:#}\n", json!(calibration)))?;
    if as_json {
        return output::json(&calibration);
    }
    let p = tuned.parameters;
    println!("k {}, weight {}, temperature {}: {}", p.k, p.knn_weight, p.knn_temperature, command.output.display());
    if tuned.at_the_edge {
        eprintln!("the best temperature lies at an end of the grid: widen eval.grid.knn_temperature");
    }
    Ok(())
}

/// Everything that a measurement works with.
struct Ground {
    config: EvalConfig,
    model: Arc<dyn LanguageModel>,
    tokenizer: Arc<dyn Tokenizer>,
    store: Arc<Store>,
    engine: Engine,
    domains: Vec<Domain>,
    cache: Option<EvidenceCache>,
    /// The commit at the start.
    commit: String,
}

impl Ground {
    fn open(path: &Path) -> Result<Self> {
        let (config, commit) = (read_eval_config(path)?, commit());
        let (model, tokenizer) = wiring::load_model(&config.model)?;
        let store = wiring::open_store(&config.store, &*model, tokenizer.clone())?;
        let mut domains = Vec::new();
        for name in &config.eval.domains {
            domains.push(Domain::read(&config.eval.corpus, name, config.eval.sizes, &*tokenizer)?);
        }
        check_store(&config, &store, &domains)?;
        for domain in &domains {
            add(&config, &store, &*model, domain)?;
        }
        let engine = Engine::start(config.engine.clone(), None, model.clone(), tokenizer.clone(), store.clone())
            .context("cannot start the engine")?;
        let snapshot = store.snapshot();
        let shard = |view: &ShardView| {
            json!([view.id, view.source.id, view.n_documents, view.n_entries, view.source.permissions])
        };
        let shards: Vec<Value> = snapshot.shards.iter().map(shard).collect();
        let made_from = json!({
            "silo": env!("CARGO_PKG_VERSION"), "model": model.card().hash, "recipe": store.recipe().hash(), "root": snapshot.root.to_string(),
            "shards": shards, "store_shares": config.eval.store_shares,
        });
        let cache = config.eval.cache.as_deref().map(|folder| EvidenceCache::new(folder, made_from)).transpose()?;
        Ok(Self { config, model, tokenizer, store, engine, domains, cache, commit })
    }

    fn gatherer(&self) -> Gatherer<'_> {
        let (grid, cache) = (&self.config.eval.grid, self.cache.as_ref());
        Gatherer { engine: &self.engine, grid, cache, progress: &|what| eprintln!("{what}") }
    }

    /// What a result is made with: enough to make it again.
    fn facts(&self, run: &Run) -> Value {
        let snapshot = self.store.snapshot();
        json!({
            "command": std::iter::once("silo".to_owned()).chain(std::env::args().skip(1)).collect::<Vec<_>>().join(" "),
            "commit": self.commit,
            "machine": machine(),
            "config": run.config,
            "model": {"name": self.model.card().name, "hash": self.model.card().hash, "n_parameters": self.model.card().n_parameters},
            "recipe": {"name": self.store.recipe().name, "hash": self.store.recipe().hash()},
            "sizes": self.config.eval.sizes,
            "n_entries": snapshot.shards.iter().map(|s| s.n_entries).sum::<u64>(),
            "root": snapshot.root.to_string(),
        })
    }
}

/// Refuses a store that holds something else than the domains as configured: its figures would be those of other text.
fn check_store(config: &EvalConfig, store: &Store, domains: &[Domain]) -> Result<()> {
    let root = config.store.root.display();
    let advice = "delete the directory, and it is built again";
    if let Some((id, reason)) = store.unavailable().iter().next() {
        bail!("shard {id} of the store at {root} is not retrieved from ({reason}); {advice}");
    }
    let snapshot = store.snapshot();
    for source in snapshot.shards.iter().map(|view| &view.source.id).collect::<BTreeSet<_>>() {
        let Some(domain) = domains.iter().find(|d| d.source == *source) else {
            bail!("the store at {root} holds '{source}', which is no domain of this evaluation; {advice}");
        };
        let parts = store_parts(&domain.stored, &config.eval.store_shares);
        let shards = snapshot.shards.iter().filter(|view| view.source.id == *source);
        for (i, view) in shards.enumerate() {
            let mut found: Vec<ContentHash> = store.documents(view.id)?.iter().map(|d| d.hash).collect();
            found.sort_unstable();
            if parts.get(i).is_none_or(|part| found != hashes(part.documents)) {
                bail!(
                    "the store at {root} holds other text of '{source}' than the corpus, eval.sizes and eval.store_shares now give; \
                     {advice}"
                );
            }
        }
    }
    Ok(())
}

fn hashes(documents: &[Document]) -> Vec<ContentHash> {
    documents.iter().map(Document::hash).collect::<BTreeSet<_>>().into_iter().collect()
}

/// Adds the shards of a domain that the store has not.
fn add(config: &EvalConfig, store: &Store, model: &dyn LanguageModel, domain: &Domain) -> Result<()> {
    let parts = store_parts(&domain.stored, &config.eval.store_shares);
    let there = store.snapshot().shards.iter().filter(|s| s.source.id == domain.source).count();
    if there == parts.len() {
        return Ok(());
    }
    if store.source(&domain.source).is_err() {
        let declarations = read_declarations(&config.eval.declarations)?;
        let declaration = declarations.iter().find(|d| d.name == domain.source);
        let declaration = declaration
            .with_context(|| format!("{} has no '{}'", config.eval.declarations.display(), domain.source))?;
        store.by("eval").create_source(&declaration.source(&LicencePolicy::default()))?;
    }
    for (i, part) in parts.iter().enumerate().skip(there) {
        eprintln!("adding shard {} of {} of {}", i + 1, parts.len(), domain.source);
        let new = NewShard { source: &domain.source, documents: part.documents };
        store.by("eval").add_shard(&new, model, &AtomicBool::new(false), &|_, _| {})?;
    }
    Ok(())
}

/// The commit of the working directory, and whether it differs from it.
fn commit() -> String {
    let git = |arguments: &[&str]| {
        let output = std::process::Command::new("git").args(arguments).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let Some(commit) = git(&["rev-parse", "--short=12", "HEAD"]) else { return "unknown".into() };
    let changed = git(&["status", "--porcelain", "--untracked-files=no"]).is_some_and(|s| !s.is_empty());
    if changed { format!("{commit}, with changes") } else { commit }
}

/// What the machine is, without its name.
fn machine() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|l| l.strip_prefix("model name")?.split_once(':')).map_or("", |(_, m)| m.trim());
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    format!("{cores} cores, {model}")
}

/// Writes a result whole or not at all.
fn write(path: &Path, text: &str) -> Result<()> {
    let partial = path.with_extension("partial");
    std::fs::write(&partial, text).with_context(|| format!("cannot write {}", partial.display()))?;
    std::fs::rename(&partial, path).with_context(|| format!("cannot write {}", path.display()))
}

/// A result: its JSON, and a page with what it was made by in front of its table.
fn publish(run: &Run, name: &str, (title, what): (&str, &str), whole: &Value, table: &str) -> Result<()> {
    std::fs::create_dir_all(&run.output).with_context(|| format!("cannot make {}", run.output.display()))?;
    write(&run.output.join(format!("{name}.json")), &format!("{whole:#}\n"))?;
    let facts = &whole["made"];
    let text = |name: &str| facts[name].as_str().unwrap_or_default();
    let page = format!(
        "# {title}\n\n{what}\n\n* Command: `{}`\n* Commit: {}\n* Machine: {}\n* Model: {}, {} parameters\n* Store: {} entries, recipe \
         {}\n* Raw data: `{name}.json`\n\nThe draws are those of hashes: nothing is random.\n\n{table}",
        text("command"),
        text("commit"),
        text("machine"),
        facts["model"]["name"].as_str().unwrap_or_default(),
        facts["model"]["n_parameters"],
        facts["n_entries"],
        facts["recipe"]["name"].as_str().unwrap_or_default(),
    );
    write(&run.output.join(format!("{name}.md")), &page)
}

/// Rows of Markdown.
fn markdown_table(head: &[String], rows: &[Vec<String>]) -> String {
    let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
    let ruler = vec!["---".to_owned(); head.len()];
    [line(head), line(&ruler)].into_iter().chain(rows.iter().map(|row| line(row))).collect()
}

fn bits(loss: &Loss) -> String {
    format!("{:.4}", loss.bits_per_byte())
}
