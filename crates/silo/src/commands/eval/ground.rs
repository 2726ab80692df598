//! What every measurement stands on: model, store with the domains in it, engine, held-out text.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use silo_core::{
    Calibration, ContentHash, Document, LanguageModel, LicencePolicy, ShardView, SnapshotProvider, Tokenizer,
};
use silo_corpus::{BuildReport, MAX_GOVERNED, MAX_GOVERNED_OF_DOCUMENT, Role, SourceReport, read_declarations};
use silo_engine::Engine;
use silo_eval::{Chosen, Domain, EvidenceCache, Gatherer, Together, store_parts};
use silo_store::{NewShard, Recipe, Store};

use crate::config::{ConfigFile, EvalConfig, read_eval_config};
use crate::{output, provenance, wiring};

/// Everything that a measurement works with.
pub struct Ground {
    pub config: EvalConfig,
    pub model: Arc<dyn LanguageModel>,
    pub tokenizer: Arc<dyn Tokenizer>,
    pub store: Arc<Store>,
    pub engine: Engine,
    pub domains: Vec<Domain>,
    pub cache: Option<EvidenceCache>,
    /// The commit at the start.
    pub commit: String,
}

/// What a measurement works with that changes a store: it is deleted at the end.
pub struct Temporary {
    pub ground: Ground,
    _folder: Folder,
}

/// Deleted at the end; if the program is killed before, by the next one that needs it, so that what lies in it does not stay.
struct Folder(PathBuf);

impl Folder {
    fn new(path: &Path) -> Result<Self> {
        let out = Self(path.to_owned());
        out.delete().with_context(|| format!("cannot delete {}, which an earlier run has left", path.display()))?;
        Ok(out)
    }

    fn delete(&self) -> std::io::Result<()> {
        match std::fs::remove_dir_all(&self.0) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if let Err(error) = self.delete() {
            tracing::error!("{} holds text of the store and cannot be deleted: {error}", self.0.display());
        }
    }
}

impl Ground {
    pub fn open(file: &ConfigFile) -> Result<Self> {
        Self::of(read_eval_config(file)?)
    }

    /// The same of a configuration that was read.
    pub fn of(config: EvalConfig) -> Result<Self> {
        let commit = provenance::commit();
        let (model, tokenizer) = wiring::load_model(&config.model)?;
        wiring::check_knn_model(&config.engine, model.card())?;
        check_window(&config, model.card().context_tokens)?;
        if config.eval.sizes.neutral {
            check_governed(&config)?;
        }
        let mut domains = Vec::new();
        for name in &config.eval.domains {
            domains.push(Domain::read(&config.eval.corpus, name, config.eval.sizes, &*tokenizer)?);
        }
        let mut ground = Self::stored(config, (model, tokenizer), domains, commit)?;
        let made_from = ground.made_from();
        let cache = ground.config.eval.cache.as_deref();
        ground.cache = cache.map(|folder| EvidenceCache::new(folder, made_from)).transpose()?;
        Ok(ground)
    }

    /// The same with these domains in a store that is made for a measurement, and nothing that was found before: two stores that must say the
    /// same are both asked.
    pub fn stored_anew(&self, domains: Vec<Domain>) -> Result<Temporary> {
        let mut config = self.config.clone();
        config.store.root = config.store.beside("temporary");
        let folder = Folder::new(&config.store.root)?;
        let parts = (self.model.clone(), self.tokenizer.clone());
        Ok(Temporary { ground: Self::stored(config, parts, domains, self.commit.clone())?, _folder: folder })
    }

    /// With the domains in the store of the configuration.
    fn stored(
        config: EvalConfig,
        (model, tokenizer): (Arc<dyn LanguageModel>, Arc<dyn Tokenizer>),
        domains: Vec<Domain>,
        commit: String,
    ) -> Result<Self> {
        let store = wiring::open_store(&config.store, &*model, tokenizer.clone())?;
        check_store(&config, &store, &domains)?;
        for domain in &domains {
            add(&config, &store, &*model, domain)?;
        }
        let engine = Engine::start(config.engine.clone(), None, model.clone(), tokenizer.clone(), store.clone())
            .context("cannot start the engine")?;
        Ok(Self { config, model, tokenizer, store, engine, domains, cache: None, commit })
    }

    /// What answers depend on.
    fn made_from(&self) -> Value {
        let (snapshot, recipe) = (self.store.snapshot(), self.store.recipe());
        let shard = |view: &ShardView| {
            json!([view.id, view.source.id, view.n_documents, view.n_entries, view.source.permissions])
        };
        let shards: Vec<Value> = snapshot.shards.iter().map(shard).collect();
        json!({
            "silo": env!("CARGO_PKG_VERSION"), "model": self.model.card().hash, "recipe": recipe.hash(), "search": recipe.ivf,
            "device": format!("{:?}", self.config.model.device), "root": snapshot.root.to_string(),
            "shards": shards, "store_shares": self.config.eval.store_shares,
        })
    }

    /// The same domains in a store of another recipe, which lies beside the configured one, and perhaps with another model, which need not be
    /// trained on openly licensed text.
    pub fn beside(config: &EvalConfig, recipe: &Path, model: Option<&Path>) -> Result<Self> {
        let read = Recipe::read(recipe)?;
        let mut out = config.clone();
        out.model.key_site = read.key_site;
        out.store.recipe = recipe.to_owned();
        let mut name = read.hash().to_string();
        if let Some(model) = model {
            out.model.path = model.to_owned();
            out.model.require_open_training = false;
            out.engine.knn_model = None;
            name = format!("{name}-{}", model.file_name().unwrap_or(model.as_os_str()).to_string_lossy());
        }
        out.store.root = config.store.beside(&name);
        // Sizes of the store are another comparison.
        out.eval.store_shares.clear();
        Self::of(out)
    }

    pub fn gatherer(&self) -> Gatherer<'_> {
        let (grid, cache, also_tuned_on) =
            (&self.config.eval.grid, self.cache.as_ref(), &self.config.eval.also_tuned_on);
        Gatherer {
            engine: &self.engine,
            domains: &self.domains,
            grid,
            cache,
            also_tuned_on,
            progress: &|what| eprintln!("{what}"),
        }
    }

    /// What suits the validation text of all domains together.
    pub fn chosen(&self) -> Result<Chosen> {
        Ok(Together::choose(&self.gatherer())?.1.calibrated)
    }

    /// Entries of the whole store.
    pub fn n_entries(&self) -> u64 {
        self.store.snapshot().shards.iter().map(|s| s.n_entries).sum()
    }

    /// A calibration with what was chosen on the validation text of all domains. On openly licensed text alone, it hangs on no source.
    pub fn calibration(&self, chosen: &Chosen) -> Calibration {
        let (card, tuned) = (self.model.card(), chosen.parameters);
        let (tuned_on, neutral) = if self.config.eval.sizes.neutral {
            (Vec::new(), tuned)
        } else {
            (self.domains.iter().map(|d| d.source.clone()).collect(), self.config.engine.knn)
        };
        Calibration { model: card.hash, key_site: card.key_site, tuned_on, tuned, neutral }
    }

    /// What a result is made with: enough to make it again.
    pub fn facts(&self, file: &ConfigFile) -> Value {
        let snapshot = self.store.snapshot();
        json!({
            "command": provenance::command(std::env::args().skip(1)),
            "commit": self.commit,
            "machine": provenance::machine(),
            "config": file.path,
            "set": file.set,
            "model": {"name": self.model.card().name, "hash": self.model.card().hash, "n_parameters": self.model.card().n_parameters},
            "recipe": {"name": self.store.recipe().name, "hash": self.store.recipe().hash()},
            "sizes": self.config.eval.sizes,
            "n_entries": self.n_entries(),
            "root": snapshot.root.to_string(),
        })
    }
}

/// Held-out text is scored in windows that the model can read.
fn check_window(config: &EvalConfig, most: usize) -> Result<()> {
    let window = config.eval.sizes.window_tokens;
    if window > most {
        bail!("eval.sizes.window_tokens is {window}; the model's window holds {most}");
    }
    Ok(())
}

/// What hangs on no governed text is not to be tuned on some under another licence.
fn check_governed(config: &EvalConfig) -> Result<()> {
    let report = BuildReport::read(&config.eval.corpus)?;
    report.check_whole(&config.eval.corpus, &read_declarations(&config.eval.declarations)?)?;
    let named = |name: &str| config.eval.domains.iter().any(|d| d == name);
    let sources: Vec<&SourceReport> =
        report.sources.iter().filter(|s| s.role == Role::Neutral && named(s.name.as_str())).collect();
    Ok(report.governed(&config.eval.corpus, &sources)?.refuse_above(MAX_GOVERNED, MAX_GOVERNED_OF_DOCUMENT)?)
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
        let bar = output::progress_bar("documents")?;
        let progress = |done, total| {
            bar.set_length(total);
            bar.set_position(done);
        };
        store.by("eval").add_shard(&new, model, &AtomicBool::new(false), &progress)?;
        bar.finish_and_clear();
    }
    Ok(())
}
