//! `silo eval`.

mod domains;
mod speed;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use serde_json::json;
use silo_core::{Calibration, ContentHash, LanguageModel, LicencePolicy, SnapshotProvider, Tokenizer};
use silo_corpus::read_declarations;
use silo_engine::Engine;
use silo_eval::{Domain, tune_shared};
use silo_store::{NewShard, Store};

use crate::config::{EvalConfig, read_eval_config};
use crate::{output, wiring};

/// Measurements on held-out text.
#[derive(Debug, Subcommand)]
pub enum Eval {
    /// Bits per byte and perplexity of every domain in every mode, with parameters tuned on validation text.
    Ppl(Run),
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
    let (_, tuned) =
        tune_shared(&ground.engine, &ground.domains, &ground.config.eval.grid, &|what| eprintln!("{what}"))?;
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
        Ok(Self { config, model, tokenizer, store, engine, domains, commit })
    }

    /// What a result is made with: enough to make it again.
    fn facts(&self, run: &Run) -> serde_json::Value {
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
    for view in &store.snapshot().shards {
        let source = &view.source.id;
        let Some(domain) = domains.iter().find(|d| d.source == *source) else {
            bail!("the store at {root} holds '{source}', which is no domain of this evaluation; {advice}");
        };
        let mut expected: Vec<ContentHash> = domain.stored.iter().map(silo_core::Document::hash).collect();
        expected.sort_unstable();
        expected.dedup();
        let mut found: Vec<ContentHash> = store.documents(view.id)?.iter().map(|d| d.hash).collect();
        found.sort_unstable();
        if found != expected {
            bail!(
                "the store at {root} holds other text of '{source}' than the corpus and eval.sizes now give; {advice}"
            );
        }
    }
    Ok(())
}

/// Adds a domain's shard, if the store has none.
fn add(config: &EvalConfig, store: &Store, model: &dyn LanguageModel, domain: &Domain) -> Result<()> {
    if store.snapshot().shards.iter().any(|s| s.source.id == domain.source) {
        return Ok(());
    }
    if store.source(&domain.source).is_err() {
        let declarations = read_declarations(&config.eval.declarations)?;
        let declaration = declarations.iter().find(|d| d.name == domain.source);
        let declaration = declaration
            .with_context(|| format!("{} has no '{}'", config.eval.declarations.display(), domain.source))?;
        store.by("eval").create_source(&declaration.source(&LicencePolicy::default()))?;
    }
    eprintln!("adding the shard of {}", domain.source);
    let new = NewShard { source: &domain.source, documents: &domain.stored };
    store.by("eval").add_shard(&new, model, &AtomicBool::new(false), &|_, _| {})?;
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
