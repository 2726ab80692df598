//! Models that have no store, by what they say of the domains' text.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use serde::Serialize;
use silo_core::{KeySite, ModelCard, Tokenizer};
use silo_engine::{Engine, EngineConfig, Evidence, Mode};
use silo_eval::{
    Domain, DomainResult, GapClosed, GapLosses, Gathered, Gatherer, Grid, Loss, Measurement, Scope, Setting, View,
};
use silo_store::{Recipe, Store, StoreOptions};
use tempfile::TempDir;

use super::Ground;
use super::page::sum;
use crate::config::{DeviceConfig, ModelConfig, ReferenceModel};
use crate::wiring;

/// What a model says of each domain's test text.
#[derive(Debug, Serialize)]
pub struct Reference {
    /// What tables call it.
    pub name: String,
    /// Whether it has learnt the domains' text.
    pub knows_domains: bool,
    /// At the temperatures that suit the domains' validation text, one for each; none where it is as it was learnt.
    pub temperatures: Option<Vec<f64>>,
    /// Its parameters.
    pub n_parameters: u64,
    /// Hash of the model, or of each domain's.
    pub hashes: Vec<String>,
    /// In the order of the domains.
    pub test: Vec<Loss>,
    /// The same of each of a domain's texts.
    pub texts: Vec<Vec<Loss>>,
}

/// The gap to a reference that a setting closes.
#[derive(Debug, Serialize)]
pub struct Closed {
    /// The reference.
    pub reference: String,
    /// The setting, as the tables call it.
    pub setting: String,
    /// How much of it.
    pub gap: GapClosed,
}

/// Scores the test text of all domains with each of the models to compare with; those that know the domains also at their best temperatures, since a
/// store is tuned on validation text too.
pub fn references(ground: &Ground) -> Result<Vec<Reference>> {
    let scored = ground.config.eval.references.iter().map(|reference| score(ground, reference));
    Ok(scored.collect::<Result<Vec<_>>>()?.into_iter().flatten().collect())
}

/// A model without a store: an engine has one, and this one's stays empty.
pub struct Alone {
    /// Scores text.
    pub engine: Engine,
    /// Of the model.
    pub tokenizer: Arc<dyn Tokenizer>,
    card: ModelCard,
    _folder: TempDir,
}

impl Alone {
    /// Loads it.
    pub fn open(ground: &Ground, path: &Path) -> Result<Self> {
        let config = ModelConfig {
            path: path.to_owned(),
            require_open_training: false,
            key_site: KeySite::default(),
            device: DeviceConfig::default(),
            threads: 0,
        };
        let (model, tokenizer) = wiring::load_model(&config)?;
        let card = model.card().clone();
        let folder = tempfile::tempdir().context("cannot make a directory for an empty store")?;
        let recipe = Recipe { ivf: None, key_site: KeySite::default(), ..ground.store.recipe().clone() };
        let store = Store::open(folder.path(), &card, recipe, tokenizer.clone(), StoreOptions::default())?;
        let engine = Engine::start(EngineConfig::default(), None, model, tokenizer.clone(), Arc::new(store))
            .context("cannot start the engine")?;
        Ok(Self { engine, tokenizer, card, _folder: folder })
    }
}

/// What a model says of each of a domain's test texts, and at its best temperature, with that.
struct Said {
    texts: Vec<Loss>,
    tempered: Vec<Loss>,
    temperature: f64,
}

fn score(ground: &Ground, reference: &ReferenceModel) -> Result<Vec<Reference>> {
    eprintln!("{}, alone", reference.name);
    let (sizes, corpus, grid) = (ground.config.eval.sizes, &ground.config.eval.corpus, &ground.config.eval.grid);
    let (mut said, mut hashes, mut n_parameters) = (Vec::new(), Vec::new(), 0);
    let mut loaded: Option<(PathBuf, Alone)> = None;
    for domain in &ground.domains {
        let path = reference.path_for(domain.source.as_str());
        let alone = match loaded.take() {
            Some((of, alone)) if of == path => alone,
            _ => Alone::open(ground, &path)?,
        };
        // By its own tokenizer: bits per byte are comparable, perplexities and gaps where the tokens are the same.
        let domain = Domain::read(corpus, domain.source.as_str(), sizes, &*alone.tokenizer)?;
        said.push(say(&alone.engine, grid, &domain)?);
        hashes.push(alone.card.hash.to_string());
        n_parameters = alone.card.n_parameters;
        loaded = Some((path, alone));
    }
    hashes.dedup();
    let of = |name: &str, texts: fn(&Said) -> &Vec<Loss>, temperatures| Reference {
        name: name.to_owned(),
        knows_domains: reference.knows_domains,
        temperatures,
        n_parameters,
        hashes: hashes.clone(),
        test: said.iter().map(|said| sum(texts(said))).collect(),
        texts: said.iter().map(|said| texts(said).clone()).collect(),
    };
    let mut out = vec![of(&reference.name, |said| &said.texts, None)];
    if reference.knows_domains {
        let temperatures = Some(said.iter().map(|said| said.temperature).collect());
        out.push(of(&format!("{}, its temperature tuned", reference.name), |said| &said.tempered, temperatures));
    }
    Ok(out)
}

fn say(engine: &Engine, grid: &Grid, domain: &Domain) -> Result<Said> {
    let domains = std::slice::from_ref(domain);
    let with = Gatherer { engine, domains, grid, cache: None, also_tuned_on: &[], progress: &|_| {} };
    let view = View { mode: Mode::Parametric, ..View::default() };
    let [validation, test]: [Gathered; 2] =
        [with.gather_from(domain, &domain.validation, &view)?, with.gather_from(domain, &domain.test, &view)?];
    let i = validation.best_temperature(grid);
    let tempered = |e: &Evidence| e.tempered[i];
    let (texts, tempered) = (test.losses_by(|e| e.parametric_log_probability), test.losses_by(tempered));
    Ok(Said { texts, tempered, temperature: grid.model_temperature[i] })
}

/// The gaps to all references that know the domains, for settings as columns name them.
pub fn gaps(
    results: &[DomainResult],
    references: &[Reference],
    columns: &[(&str, Setting, Scope)],
    min_gap_bits: f64,
) -> Vec<Closed> {
    let mut out = Vec::new();
    for reference in references.iter().filter(|r| r.knows_domains) {
        for (name, setting, scope) in columns {
            let losses: Option<Vec<GapLosses>> = results
                .iter()
                .zip(&reference.test)
                .map(|(result, test)| {
                    let cell = |setting, scope| find(result, setting, scope).map(|m| m.test);
                    let model = cell(Setting::Parametric, Scope::Mixed)?;
                    Some(GapLosses { model, with_store: cell(*setting, *scope)?, reference: *test })
                })
                .collect();
            let gap = losses.and_then(|losses| GapClosed::of(&losses, min_gap_bits));
            out.extend(gap.map(|gap| Closed { reference: reference.name.clone(), setting: (*name).to_owned(), gap }));
        }
    }
    out
}

/// A cell of a domain.
pub fn find(result: &DomainResult, setting: Setting, scope: Scope) -> Option<&Measurement> {
    result.measurements.iter().find(|m| (m.setting, m.scope) == (setting, scope))
}
