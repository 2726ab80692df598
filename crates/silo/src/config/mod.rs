//! Configuration files: raw text → what the program runs with. A file with faults is refused with all of them listed.

mod eval;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;
use serde::Deserialize;
use silo_core::{Calibration, KeySite};
use silo_engine::EngineConfig;
use silo_govern::GovernConfig;
use silo_server::ServerConfig;
use silo_train::{TrainConfig, TrainError};

pub use eval::{
    ComparedRecipe, EvalConfig, OptOutConfig, QuantizerConfig, ReferenceModel, SwapConfig, read_eval_config,
};

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

impl StoreConfig {
    /// The directory of something that belongs to the store, which lies next to it.
    pub fn beside(&self, name: &str) -> PathBuf {
        let mut out = self.root.clone().into_os_string();
        out.push(format!("-{name}"));
        out.into()
    }
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
