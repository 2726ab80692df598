//! Configuration files: raw text → what the program runs with. A file with faults is refused with all of them listed.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;
use serde::Deserialize;
use silo_core::{Calibration, KeySite};
use silo_engine::{ContextParameters, EngineConfig};
use silo_eval::{GenerationSizes, Grid, OverlapConfig, Scope, Sizes};
use silo_govern::GovernConfig;
use silo_server::ServerConfig;
use silo_train::{TrainConfig, TrainError};

/// `configs/serve.toml`. Relative paths are relative to the working directory.
#[derive(Debug, Clone, Deserialize)]
pub struct ServeConfig {
    /// The parametric half.
    pub model: ModelConfig,
    /// The datastore.
    pub store: StoreConfig,
    /// The decode loop.
    #[serde(default)]
    pub engine: EngineConfig,
    /// The gRPC server.
    #[serde(default)]
    pub server: ServerConfig,
    /// Limits and policies of the store.
    #[serde(default)]
    pub govern: GovernConfig,
}

/// Which model, and where it runs.
#[derive(Debug, Clone, Deserialize)]
pub struct ModelConfig {
    /// A Hugging Face directory or a GGUF file.
    pub path: PathBuf,
    /// Which hidden state is the key; must be the recipe's.
    #[serde(default)]
    pub key_site: KeySite,
    /// Where it runs.
    #[serde(default)]
    pub device: DeviceConfig,
    /// Threads of the model; 0 for one per core.
    #[serde(default)]
    pub threads: usize,
    /// Refuse models whose training tiers are unknown or restricted.
    #[serde(default)]
    pub require_open_training: bool,
}

/// Where a model runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DeviceConfig {
    /// On our CPU kernels.
    #[default]
    Cpu,
    /// On the first NVIDIA GPU, in bf16; needs a build with the feature `cuda`.
    Cuda,
}

/// Which store.
#[derive(Debug, Clone, Deserialize)]
pub struct StoreConfig {
    /// Its directory; made if it is not there.
    pub root: PathBuf,
    /// The index recipe, `indexes/*.toml`.
    pub recipe: PathBuf,
    /// Threads of searches; 0 for one per core.
    #[serde(default)]
    pub threads: usize,
    /// Open a store of which the quantiser was made of text that may be withdrawn: for comparison only.
    #[serde(default)]
    pub comparison_quantizer: bool,
    /// Tuned parameters of the neighbours, JSON files that `silo eval calibrate` writes: a request has those of the one that was tuned on what is
    /// most like the sources that it sees.
    #[serde(default)]
    pub calibrations: Vec<PathBuf>,
}

impl ServeConfig {
    /// Reads a file.
    pub fn read(path: &Path) -> Result<Self> {
        read(path, Self::check)
    }

    fn check(&self, faults: &mut Vec<String>) {
        let mut fault = |wrong: bool, text: &str| {
            if wrong {
                faults.push(text.to_owned());
            }
        };
        let e = &self.engine;
        fault(e.max_active == 0, "engine.max_active is 0; it must be 1 or more");
        fault(e.max_queued == 0, "engine.max_queued is 0; it must be 1 or more");
        fault(e.max_scoring == 0, "engine.max_scoring is 0; it must be 1 or more");
        fault(e.prefill_chunk_tokens == 0, "engine.prefill_chunk_tokens is 0; it must be 1 or more");
        fault(e.knn.k > e.max_k, "engine.knn.k must be at most engine.max_k");
        fault(
            e.knn.match_tokens > e.max_match_tokens,
            "engine.knn.match_tokens must be at most engine.max_match_tokens",
        );
        for what in e.knn.faults() {
            fault(true, &format!("engine.knn.{what}"));
        }
        fault(
            !(e.min_influence_cap > 0.0 && e.min_influence_cap <= e.influence_cap && e.influence_cap <= 1.0),
            "engine.influence_cap must be from engine.min_influence_cap, which is above 0, to 1 (1 for no cap)",
        );
        fault(
            e.context.passages == 0 || e.context.passages > e.max_context_passages,
            "engine.context.passages must be from 1 to engine.max_context_passages",
        );
        fault(
            e.context.stride_tokens == 0 || e.context.query_tokens == 0 || e.context.max_passage_tokens == 0,
            "engine.context: stride_tokens, query_tokens and max_passage_tokens must be above 0",
        );
        let o = &self.govern.optout;
        let part = |x: f64| x > 0.0 && x <= 1.0;
        fault(
            !part(o.passage_overlap) || !part(o.suppression_overlap),
            "govern.optout: passage_overlap and suppression_overlap must be over 0 and at most 1",
        );
        fault(o.min_passage_words == 0, "govern.optout.min_passage_words is 0; it must be 1 or more");
        fault(
            self.server.max_message_bytes <= self.govern.max_document_bytes,
            "server.max_message_bytes must be more than govern.max_document_bytes, so that every document fits a message",
        );
        fault(
            self.server.default_new_tokens == 0 || self.server.default_new_tokens > self.server.max_new_tokens,
            "server.default_new_tokens must be from 1 to server.max_new_tokens",
        );
        if let Err(error) = self.server.check() {
            fault(true, &error.to_string());
        }
    }
}

/// A configuration from TOML, and the keys in it that nothing knows.
fn parse<T: serde::de::DeserializeOwned>(text: &str) -> Result<(T, Vec<String>)> {
    let mut unknown = Vec::new();
    let parsed = toml::Deserializer::parse(text).map_err(|e| anyhow::anyhow!("{}", e.to_string().trim()))?;
    let config = serde_ignored::deserialize(parsed, |key| unknown.push(format!("unknown key '{key}'")))
        .map_err(|e| anyhow::anyhow!("{}", e.to_string().trim()))?;
    Ok((config, unknown))
}

/// A configuration, and what is to be otherwise than it says.
#[derive(Debug, Clone, Args)]
pub struct ConfigFile {
    /// The configuration.
    #[arg(long = "config", value_name = "PATH")]
    pub path: PathBuf,
    /// Set a key of it, in TOML's words: `--set 'data.tiers=["permissive"]'`. Can be given several times.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub set: Vec<String>,
}

impl From<&Path> for ConfigFile {
    fn from(path: &Path) -> Self {
        Self { path: path.to_owned(), set: Vec::new() }
    }
}

/// Reads a configuration file and checks it.
fn read<T: serde::de::DeserializeOwned>(path: &Path, check: impl Fn(&T, &mut Vec<String>)) -> Result<T> {
    read_with(&path.into(), check)
}

fn read_with<T: serde::de::DeserializeOwned>(file: &ConfigFile, check: impl Fn(&T, &mut Vec<String>)) -> Result<T> {
    let path = file.path.display();
    let text = std::fs::read_to_string(&file.path).with_context(|| format!("cannot read the configuration {path}"))?;
    let text = otherwise(text, &file.set).with_context(|| format!("the configuration {path}"))?;
    let set = if file.set.is_empty() { String::new() } else { format!(" with --set {}", file.set.join(" --set ")) };
    checked(&text, check).with_context(|| format!("the configuration {path}{set} is refused"))
}

/// The text with these keys set.
fn otherwise(text: String, set: &[String]) -> Result<String> {
    if set.is_empty() {
        return Ok(text);
    }
    let mut config: toml::Table = toml::from_str(&text)?;
    for key_and_value in set {
        let other: toml::Table = toml::from_str(key_and_value)
            .with_context(|| format!("--set {key_and_value}: it must be KEY=VALUE in TOML, as --set 'name=\"a\"'"))?;
        put(&mut config, other);
    }
    Ok(toml::to_string(&config)?)
}

/// Puts the keys of a table into another one; what both have as tables is put together.
fn put(into: &mut toml::Table, from: toml::Table) {
    for (key, value) in from {
        match (into.get_mut(&key), value) {
            (Some(toml::Value::Table(there)), toml::Value::Table(more)) => put(there, more),
            (_, value) => {
                into.insert(key, value);
            }
        }
    }
}

fn checked<T: serde::de::DeserializeOwned>(text: &str, check: impl Fn(&T, &mut Vec<String>)) -> Result<T> {
    let (config, mut faults) = parse::<T>(text)?;
    check(&config, &mut faults);
    if faults.is_empty() { Ok(config) } else { bail!("\n  - {}", faults.join("\n  - ")) }
}

/// Reads `configs/train.toml` or one like it.
pub fn read_train_config(file: &ConfigFile) -> Result<TrainConfig> {
    read_with(file, |config: &TrainConfig, faults| {
        if let Err(TrainError::Config(more)) = config.check() {
            faults.extend(more);
        }
    })
}

/// `configs/eval.toml`.
#[derive(Debug, Clone, Deserialize)]
pub struct EvalConfig {
    /// The parametric half.
    pub model: ModelConfig,
    /// A store for the measurements.
    pub store: StoreConfig,
    /// The decode loop.
    #[serde(default)]
    pub engine: EngineConfig,
    /// What is measured.
    pub eval: EvalSection,
}

/// What is measured.
#[derive(Debug, Clone, Deserialize)]
pub struct EvalSection {
    /// A built corpus.
    pub corpus: PathBuf,
    /// Declarations of its sources.
    pub declarations: PathBuf,
    /// Sources that are domains.
    pub domains: Vec<String>,
    /// How much of each.
    pub sizes: Sizes,
    /// A domain goes to the store in shards that end at these shares of it: sizes of store that `silo eval store-size` compares, besides
    /// the whole.
    #[serde(default)]
    pub store_shares: Vec<f64>,
    /// Ways to retrieve passages that `silo eval context` compares.
    #[serde(default)]
    pub contexts: Vec<ContextParameters>,
    /// Ways to retrieve two passages that it compares as ensembles, each passage read alone; `passages` does not count.
    #[serde(default)]
    pub context_ensembles: Vec<ContextParameters>,
    /// Models to compare with, by what they say of the same text alone: such that have learnt the domains, and others.
    #[serde(default)]
    pub references: Vec<ReferenceModel>,
    /// Recipes that `silo eval keys` compares.
    #[serde(default)]
    pub recipes: Vec<ComparedRecipe>,
    /// With what `silo eval swap` exchanges keys and model.
    #[serde(default)]
    pub swap: Option<SwapConfig>,
    /// What `silo eval generation` generates.
    #[serde(default)]
    pub generation: GenerationSizes,
    /// How `silo eval overlap` looks at what test text has in common with the store.
    #[serde(default)]
    pub overlap: OverlapConfig,
    /// Evidence is kept here: a run that was stopped goes on, and other settings are scored without another search.
    #[serde(default)]
    pub cache: Option<PathBuf>,
    /// The least gap to a reference that is divided by, in bits per byte.
    #[serde(default = "min_gap_bits")]
    pub min_gap_bits: f64,
    /// What is tried on validation text.
    pub grid: Grid,
    /// What is tuned for all domains together is tuned where each sees the whole store; and here: "matched", its own source alone, and "others", all
    /// but that, as after its withdrawal, and "another", a single one that is not its own.
    #[serde(default)]
    pub also_tuned_on: Vec<Scope>,
    /// Runs that are timed.
    #[serde(default)]
    pub speed: SpeedConfig,
}

fn min_gap_bits() -> f64 {
    0.02
}

/// A model to compare with.
#[derive(Debug, Clone, Deserialize)]
pub struct ReferenceModel {
    /// What tables call it.
    pub name: String,
    /// Where it lies. `{domain}` stands for the name of a domain: a model for each.
    pub path: PathBuf,
    /// Whether it has learnt the domains' text: then the gap to it is what a store can close.
    #[serde(default)]
    pub knows_domains: bool,
    /// About so many bytes of each domain's text that it has learnt; 0 if that is not known. Pages say so where the store holds less or more.
    #[serde(default)]
    pub learnt_bytes: usize,
}

impl ReferenceModel {
    /// Whether there is a model for each domain.
    pub fn is_per_domain(&self) -> bool {
        self.path.to_string_lossy().contains(DOMAIN)
    }

    /// Where the model for a domain lies.
    pub fn path_for(&self, domain: &str) -> PathBuf {
        self.path.to_string_lossy().replace(DOMAIN, domain).into()
    }
}

/// Stands for the name of a domain.
const DOMAIN: &str = "{domain}";

/// A recipe to compare.
#[derive(Debug, Clone, Deserialize)]
pub struct ComparedRecipe {
    /// What tables call it.
    pub name: String,
    /// The recipe, as `indexes/ivf.toml`. Its store lies beside the evaluation's own.
    pub recipe: PathBuf,
}

/// What keys and model are exchanged with.
#[derive(Debug, Clone, Deserialize)]
pub struct SwapConfig {
    /// A model with the same tokenizer.
    pub model: PathBuf,
    /// The recipe by which both models encode the domains, each in a store of its own beside the evaluation's. Quantisers are made for one
    /// model: a recipe for exact search serves both.
    pub recipe: PathBuf,
}

/// Runs that are timed.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub struct SpeedConfig {
    /// Tokens of a prompt.
    pub prompt_tokens: usize,
    /// New tokens.
    pub new_tokens: usize,
    /// Texts at the same time.
    pub batches: Vec<usize>,
    /// Times that each is done.
    pub runs: usize,
    /// Keys that recall is measured with.
    pub queries: usize,
    /// Neighbours of each.
    pub k: usize,
    /// Numbers of lists that recall and cost are measured with too.
    pub n_probe: Vec<usize>,
}

impl Default for SpeedConfig {
    fn default() -> Self {
        let (batches, n_probe) = (vec![1, 8], Vec::new());
        Self { prompt_tokens: 128, new_tokens: 64, batches, runs: 5, queries: 200, k: 1024, n_probe }
    }
}

/// Reads `configs/eval.toml` or one like it.
pub fn read_eval_config(file: &ConfigFile) -> Result<EvalConfig> {
    read_with(file, |config: &EvalConfig, faults| {
        let (e, s) = (&config.eval, &config.eval.speed);
        let mut fault = |wrong: bool, text: &str| {
            if wrong {
                faults.push(text.to_owned());
            }
        };
        fault(e.domains.is_empty(), "eval.domains names no source");
        fault(is_repeated(&e.domains), "eval.domains names a source twice: its text would count twice");
        fault(
            is_repeated(&e.also_tuned_on) || e.also_tuned_on.contains(&Scope::Mixed),
            "eval.also_tuned_on names a part of the store twice; the whole, \"mixed\", is always tuned on",
        );
        fault(!(e.min_gap_bits > 0.0 && e.min_gap_bits.is_finite()), "eval.min_gap_bits must be above 0");
        let rises = e.store_shares.is_sorted_by(|a, b| a < b) && e.store_shares.iter().all(|s| *s > 0.0 && *s < 1.0);
        fault(!rises, "eval.store_shares must rise, from above 0 to below 1");
        fault(
            config.engine.influence_cap != 1.0,
            "engine.influence_cap must be 1: many settings are scored from one search, and a cap needs more",
        );
        fault(e.grid.max_k() > config.engine.max_k, "eval.grid.k must be at most engine.max_k");
        for what in config.engine.knn.faults() {
            fault(true, &format!("engine.knn.{what}"));
        }
        fault(
            e.grid.match_tokens.max(config.engine.knn.match_tokens) > config.engine.max_match_tokens,
            "eval.grid.match_tokens and engine.knn.match_tokens must be at most engine.max_match_tokens",
        );
        fault(
            config.engine.knn.match_tokens > e.grid.match_tokens,
            "engine.knn.match_tokens must be at most eval.grid.match_tokens: so many tokens are compared",
        );
        fault(
            config.engine.knn.k > e.grid.max_k(),
            "engine.knn.k must be at most the greatest of eval.grid.k: so many neighbours are searched for",
        );
        let g = e.generation;
        fault(
            [g.prompts, g.prompt_tokens, g.new_tokens].contains(&0),
            "eval.generation: all numbers must be 1 or more",
        );
        let sizes = [s.prompt_tokens, s.new_tokens, s.runs, s.queries, s.k];
        fault(sizes.contains(&0) || s.batches.contains(&0), "eval.speed: all numbers must be 1 or more");
        let most = config.engine.max_active;
        fault(s.batches.iter().any(|b| *b > most), "eval.speed.batches must be at most engine.max_active");
        if let Err(error) = e.grid.check() {
            fault(true, &format!("eval.grid: {error}"));
        }
        if let Err(error) = e.overlap.check(e.grid.match_tokens) {
            fault(true, &error.to_string());
        }
    })
}

fn is_repeated<T: PartialEq>(names: &[T]) -> bool {
    names.iter().enumerate().any(|(i, name)| names[..i].contains(name))
}

/// Reads a calibration.
pub fn read_calibration(path: &Path) -> Result<Calibration> {
    let text =
        std::fs::read_to_string(path).with_context(|| format!("cannot read the calibration {}", path.display()))?;
    let calibration: Calibration =
        serde_json::from_str(&text).with_context(|| format!("{} is no calibration", path.display()))?;
    if let Some(fault) = calibration.fault() {
        bail!("the calibration {} is refused: {fault}", path.display());
    }
    Ok(calibration)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_serve(text: &str) -> Result<ServeConfig> {
        checked(text, ServeConfig::check)
    }

    const GOOD: &str = "[model]\npath = \"m\"\n[store]\nroot = \"r\"\nrecipe = \"i\"\n";

    #[test]
    fn all_faults_are_listed() {
        let text = format!(
            "{GOOD}threds = 3\n[engine]\nmax_active = 0\nspeed = 9\n[engine.knn]\nk = 0\nknn_weight = 2\nknn_temperature = 1\n[server]\nlisten = \"0.0.0.0:1\"\n"
        );
        let message = format!("{:#}", parse_serve(&text).unwrap_err());
        for part in
            ["'store.threds'", "'engine.speed'", "max_active", "engine.knn.k ", "knn_weight must be", "0.0.0.0:1"]
        {
            assert!(message.contains(part), "{message} should say {part}");
        }
    }

    #[test]
    fn keys_are_set_and_others_stay() {
        let set = |set: &[&str]| {
            let text = otherwise(GOOD.to_owned(), &set.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>())?;
            parse_serve(&text)
        };
        let config = set(&["store.root=\"other\"", "engine.max_active=7"]).unwrap();
        assert_eq!((config.store.root.to_str(), config.store.recipe.to_str()), (Some("other"), Some("i")));
        assert_eq!((config.engine.max_active, config.model.path.to_str()), (7, Some("m")));
        assert!(format!("{:#}", set(&["store.root=other"]).unwrap_err()).contains("KEY=VALUE in TOML"));
        assert!(format!("{:#}", set(&["store.rot=\"x\""]).unwrap_err()).contains("'store.rot'"));
    }

    #[test]
    fn wrong_types_and_syntax_say_where() {
        let wrong_type = parse_serve(&format!("{GOOD}threads = \"two\"\n")).unwrap_err();
        assert!(format!("{wrong_type:#}").contains("threads"));
        assert!(format!("{:#}", parse_serve("[model\n").unwrap_err()).contains("line 1"));
        assert!(format!("{:#}", parse_serve("[store]\nroot=\"r\"\nrecipe=\"i\"").unwrap_err()).contains("model"));
    }
}
