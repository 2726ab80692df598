//! Puts model, store and engine together.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use silo_core::{Calibration, LanguageModel, ModelCard, Tokenizer};
use silo_engine::{Engine, EngineConfig};
use silo_govern::Governor;
use silo_model::{CpuLlama, LoadedModel};
use silo_store::{Recipe, Store, StoreOptions};

use crate::config::{DeviceConfig, ModelConfig, ServeConfig, StoreConfig, read_calibration};

/// All parts of a running service.
pub struct Parts {
    /// The decode loop.
    pub engine: Arc<Engine>,
    /// What stands before the store.
    pub governor: Arc<Governor>,
}

fn threads(configured: usize) -> usize {
    if configured > 0 { configured } else { std::thread::available_parallelism().map_or(1, usize::from) }
}

/// Loads a model.
pub fn load_model(config: &ModelConfig) -> Result<(Arc<dyn LanguageModel>, Arc<dyn Tokenizer>)> {
    let loaded = LoadedModel::open(&config.path)?;
    if config.require_open_training {
        match loaded.provenance.as_ref().map(|p| &p.training_tiers) {
            Some(tiers) if !tiers.is_empty() && tiers.iter().all(|t| t.is_open()) => {}
            Some(tiers) if !tiers.is_empty() => bail!(
                "the model {} was trained on restricted text, and model.require_open_training is set",
                loaded.name
            ),
            _ => bail!(
                "it is unknown what the model {} was trained on, and model.require_open_training is set; use a model that \
                 states its training tiers in a silo.json beside its weights, or unset it",
                loaded.name
            ),
        }
    }
    let model: Arc<dyn LanguageModel> = match config.device {
        DeviceConfig::Cpu => Arc::new(CpuLlama::new(&loaded, config.key_site, threads(config.threads))?),
        DeviceConfig::Cuda => on_gpu(&loaded, config)?,
    };
    Ok((model, Arc::new(loaded.tokenizer)))
}

#[cfg(feature = "cuda")]
fn on_gpu(loaded: &LoadedModel, config: &ModelConfig) -> Result<Arc<dyn LanguageModel>> {
    use silo_model::{Precision, TensorLlama};
    // The first line says what it is; a stack trace may follow.
    let unusable = |e: candle_core::Error| {
        let reason = e.to_string().lines().next().unwrap_or_default().to_owned();
        anyhow::anyhow!("model.device is cuda, but the first GPU cannot be used: {reason}; see nvidia-smi, or set cpu")
    };
    let device = candle_core::Device::new_cuda(0).map_err(unusable)?;
    Ok(Arc::new(TensorLlama::new(loaded, config.key_site, device, Precision::Bf16)?))
}

#[cfg(not(feature = "cuda"))]
fn on_gpu(_: &LoadedModel, _: &ModelConfig) -> Result<Arc<dyn LanguageModel>> {
    bail!("model.device is cuda, but this program was built without it; build with --features cuda (docs/cuda.md)")
}

/// Opens a store for a model.
pub fn open_store(
    config: &StoreConfig,
    model: &dyn LanguageModel,
    tokenizer: Arc<dyn Tokenizer>,
) -> Result<Arc<Store>> {
    let recipe = Recipe::read(&config.recipe)?;
    if let Some(sources) = recipe.made_of().filter(|_| !config.comparison_quantizer) {
        bail!(
            "the quantiser of {} was made of {sources}, for comparison: with it, what is found would depend on text that may be \
             withdrawn; use one made of open text, or set store.comparison_quantizer",
            config.recipe.display()
        );
    }
    let options = StoreOptions { n_threads: threads(config.threads), ..StoreOptions::default() };
    let store = Store::open(&config.root, model.card(), recipe, tokenizer, options)?;
    for (id, reason) in &store.unavailable() {
        tracing::warn!("shard {id} is not retrieved from: {reason}");
    }
    Ok(Arc::new(store))
}

/// Refuses parameters that were tuned with another model.
pub fn check_knn_model(config: &EngineConfig, card: &ModelCard) -> Result<()> {
    match config.knn_model {
        Some(hash) if hash != card.hash => bail!(
            "engine.knn was tuned with the model {hash} (engine.knn_model), and {} is {}: set engine.knn for it without engine.knn_model, for example k, \
             knn_weight and knn_temperature without a gate, or as `silo eval calibrate` tunes them",
            card.name,
            card.hash
        ),
        _ => Ok(()),
    }
}

/// Reads a calibration, and refuses what was not tuned for this model and its keys, or is beyond the engine's limits.
fn calibration(path: &Path, config: &EngineConfig, card: &ModelCard) -> Result<Calibration> {
    let calibration = read_calibration(path)?;
    let named = path.display();
    if calibration.model != card.hash {
        bail!("the calibration {named} was made for the model {}, the served one is {}", calibration.model, card.hash);
    }
    if calibration.key_site != card.key_site {
        let (theirs, ours) = (calibration.key_site.name(), card.key_site.name());
        bail!(
            "the calibration {named} was made for keys from {theirs}, the served ones are from {ours} (model.key_site)"
        );
    }
    for knn in [&calibration.tuned, &calibration.neutral] {
        if knn.k > config.max_k || knn.match_tokens > config.max_match_tokens {
            bail!(
                "the calibration {named} has k {} and match_tokens {}, above the limits engine.max_k {} and engine.max_match_tokens {}",
                knn.k,
                knn.match_tokens,
                config.max_k,
                config.max_match_tokens
            );
        }
    }
    if calibration.neutral != config.knn {
        tracing::warn!(
            "the calibration {named} has other neutral parameters than [engine.knn], and they hold as soon as one of its sources is gone: make it \
             anew with [engine.knn] as it is now"
        );
    }
    Ok(calibration)
}

/// Starts everything but the server.
pub fn start(config: &ServeConfig) -> Result<Parts> {
    let (model, tokenizer) = load_model(&config.model)?;
    let store = open_store(&config.store, &*model, tokenizer.clone())?;
    check_knn_model(&config.engine, model.card())?;
    let calibrations = config.store.calibrations.iter().map(|path| calibration(path, &config.engine, model.card()));
    let calibrations: Vec<Calibration> = calibrations.collect::<Result<_>>()?;
    let governor = Governor::new(config.govern.clone(), store.clone(), model.clone(), tokenizer.clone())?;
    let engine = Engine::start(config.engine.clone(), calibrations, model, tokenizer, store)
        .context("cannot start the engine")?;
    Ok(Parts { engine: Arc::new(engine), governor: Arc::new(governor) })
}

/// Reads a configuration and starts everything but the server.
pub fn start_from(path: &Path) -> Result<(ServeConfig, Parts)> {
    let config = ServeConfig::read(path)?;
    let parts = start(&config)?;
    Ok((config, parts))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::DeviceConfig;

    #[test]
    fn a_model_of_restricted_or_unknown_text_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../model/tests/golden/gqa");
        for file in ["config.json", "model.safetensors", "tokenizer.json"] {
            std::fs::copy(golden.join(file), folder.path().join(file)).unwrap();
        }
        let mut config = ModelConfig {
            path: folder.path().to_owned(),
            key_site: silo_core::KeySite::default(),
            device: DeviceConfig::Cpu,
            threads: 1,
            require_open_training: true,
        };
        let load = |config: &ModelConfig| load_model(config).err().map(|error| error.to_string());
        assert!(load(&config).is_some_and(|error| error.contains("is unknown")), "nothing is stated");
        for (tiers, refusal) in [
            ("[]", Some("is unknown")),
            (r#"["permissive", "restricted"]"#, Some("restricted text")),
            (r#"["permissive", "public-domain"]"#, None),
        ] {
            let stated = format!(r#"{{"name": "gqa", "training_tiers": {tiers}}}"#);
            std::fs::write(folder.path().join("silo.json"), stated).unwrap();
            let error = load(&config);
            assert_eq!(error.is_some(), refusal.is_some(), "{tiers}: {error:?}");
            assert!(refusal.is_none_or(|text| error.is_some_and(|e| e.contains(text))), "{tiers}");
        }
        std::fs::remove_file(folder.path().join("silo.json")).unwrap();
        config.require_open_training = false;
        assert_eq!(load(&config), None);
    }
}
