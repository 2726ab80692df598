//! Puts model, store and engine together.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use silo_core::{LanguageModel, Tokenizer};
use silo_engine::Engine;
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
            Some(tiers) if tiers.iter().all(|t| t.is_open()) => {}
            Some(_) => bail!(
                "the model {} was trained on restricted text, and model.require_open_training is set",
                loaded.name
            ),
            None => bail!(
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

/// Starts everything but the server.
pub fn start(config: &ServeConfig) -> Result<Parts> {
    let (model, tokenizer) = load_model(&config.model)?;
    let store = open_store(&config.store, &*model, tokenizer.clone())?;
    let calibration = config.store.calibration.as_deref().map(read_calibration).transpose()?;
    if let Some(c) = calibration.as_ref().filter(|c| c.model != model.card().hash) {
        bail!("the calibration was made for the model {}, the served one is {}", c.model, model.card().hash);
    }
    let governor = Governor::new(config.govern.clone(), store.clone(), model.clone(), tokenizer.clone())?;
    let engine = Engine::start(config.engine.clone(), calibration, model, tokenizer, store)
        .context("cannot start the engine")?;
    Ok(Parts { engine: Arc::new(engine), governor: Arc::new(governor) })
}

/// Reads a configuration and starts everything but the server.
pub fn start_from(path: &Path) -> Result<(ServeConfig, Parts)> {
    let config = ServeConfig::read(path)?;
    let parts = start(&config)?;
    Ok((config, parts))
}
