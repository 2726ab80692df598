//! The smallest real model over a store of its own, in process.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use silo_core::{Document, LanguageModel, Permissions, Source, Tier, Tokenizer};
use silo_engine::{Engine, EngineConfig};
use silo_model::{CpuLlama, LoadedModel};
use silo_store::{NewShard, Recipe, Store, StoreOptions};
use tempfile::TempDir;

use super::service::project;

pub(crate) struct World {
    pub(crate) model: Arc<dyn LanguageModel>,
    pub(crate) tokenizer: Arc<dyn Tokenizer>,
    pub(crate) store: Arc<Store>,
    _root: TempDir,
}

pub(crate) fn source(name: &str, verbatim: bool) -> Source {
    Source {
        id: name.parse().unwrap(),
        owner: "somebody".into(),
        licence: "LicenseRef-test".into(),
        licence_stated_at: String::new(),
        notice: String::new(),
        tier: Tier::Restricted,
        permissions: Permissions { verbatim, ..Permissions::of_tier(Tier::Restricted) },
    }
}

impl World {
    pub(crate) fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let recipe = Recipe::read(&project().join("indexes/tiny.toml")).unwrap();
        let loaded = LoadedModel::open(&project().join("crates/model/tests/golden/gqa")).unwrap();
        let model: Arc<dyn LanguageModel> = Arc::new(CpuLlama::new(&loaded, recipe.key_site, 1).unwrap());
        let tokenizer: Arc<dyn Tokenizer> = Arc::new(loaded.tokenizer);
        let options = StoreOptions { n_threads: 1, ..StoreOptions::default() };
        let store = Arc::new(Store::open(root.path(), model.card(), recipe, tokenizer.clone(), options).unwrap());
        Self { model, tokenizer, store, _root: root }
    }

    /// Adds a text of a source, which may be there already.
    pub(crate) fn add(&self, source: &Source, text: &str) {
        let _ = self.store.by("test").create_source(source);
        let document = Document {
            source: source.id.clone(),
            uri: "test:1".into(),
            title: String::new(),
            licence: source.licence.clone(),
            tier: source.tier,
            text: text.into(),
        };
        let new = NewShard { source: &source.id, documents: &[document] };
        self.store.by("test").add_shard(&new, &*self.model, &AtomicBool::new(false), &|_, _| {}).unwrap();
    }

    pub(crate) fn engine(
        &self,
        config: EngineConfig,
        calibrations: impl IntoIterator<Item = silo_core::Calibration>,
    ) -> Engine {
        let (model, tokenizer, store) = (self.model.clone(), self.tokenizer.clone(), self.store.clone());
        Engine::start(config, calibrations, model, tokenizer, store).unwrap()
    }
}
