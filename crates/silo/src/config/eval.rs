//! What `silo eval` and `silo bench` are told.

use std::path::PathBuf;

use anyhow::Result;
use serde::{Deserialize, Serialize};
use silo_core::{Document, SourceId};
use silo_engine::{ContextParameters, EngineConfig};
use silo_eval::{AttributionConfig, GenerationSizes, Grid, OverlapConfig, Scope, Sizes, is_repeated};

use super::{ConfigFile, ModelConfig, StoreConfig, read_with};

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
    /// What `silo eval attribution` credits, and looks for.
    #[serde(default)]
    pub attribution: AttributionConfig,
    /// Works that `silo eval opt-out` withdraws.
    #[serde(default)]
    pub opt_outs: Vec<OptOutConfig>,
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
    /// A quantiser that is made for the comparison, in place of the recipe's own.
    #[serde(default)]
    pub quantizer: Option<QuantizerConfig>,
}

/// A quantiser, as `silo index train` makes it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QuantizerConfig {
    /// Values of a projected key: bytes of a code. At most 256, and at most those of a key, which is no projection but a rotation.
    pub projected: usize,
    /// Inverted lists.
    #[serde(default = "lists")]
    pub lists: usize,
    /// Keys that it is made of.
    #[serde(default = "keys")]
    pub keys: usize,
    /// Of the domains' own text in place of openly licensed text: what no store may use whose sources can be withdrawn.
    #[serde(default)]
    pub of_domains: bool,
}

fn lists() -> usize {
    1024
}

fn keys() -> usize {
    200_000
}

/// A work in a domain, which opts out.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OptOutConfig {
    /// What tables call it.
    pub name: String,
    /// The domain that it is in.
    pub source: SourceId,
    /// Its documents are those whose URIs begin so.
    pub uri_prefix: String,
}

impl OptOutConfig {
    /// Whether a document is of the work.
    pub fn is_of(&self, document: &Document) -> bool {
        document.source == self.source && document.uri.starts_with(&self.uri_prefix)
    }
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
        let e = &config.eval;
        let mut fault = |wrong: bool, text: &str| {
            if wrong {
                faults.push(text.to_owned());
            }
        };
        fault(e.domains.is_empty(), "eval.domains names no source");
        fault(is_repeated(&e.domains), "eval.domains names a source twice: its text would count twice");
        fault(
            is_repeated(&e.also_tuned_on) || e.also_tuned_on.contains(&Scope::Mixed),
            "eval.also_tuned_on must name each part of the store once, and not \"mixed\", which is always tuned on",
        );
        let sizes = e.sizes;
        fault(
            [sizes.store_bytes, sizes.validation_tokens, sizes.test_tokens].contains(&0),
            "eval.sizes: store_bytes, validation_tokens and test_tokens must be 1 or more",
        );
        fault(sizes.window_tokens == 1, "eval.sizes.window_tokens must be 2 or more, or 0 for the model's own");
        let names: Vec<&String> = e.references.iter().map(|r| &r.name).collect();
        fault(is_repeated(&names), "eval.references has a name twice");
        let names: Vec<&String> = e.recipes.iter().map(|r| &r.name).collect();
        fault(is_repeated(&names), "eval.recipes has a name twice");
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
        check_parts(e, config.engine.max_active, &mut fault);
    })
}

/// What single measurements are told.
fn check_parts(e: &EvalSection, max_active: usize, fault: &mut impl FnMut(bool, &str)) {
    let (g, s) = (e.generation, &e.speed);
    fault([g.prompts, g.prompt_tokens, g.new_tokens].contains(&0), "eval.generation: all numbers must be 1 or more");
    let sizes = [s.prompt_tokens, s.new_tokens, s.runs, s.queries, s.k];
    fault(sizes.contains(&0) || s.batches.contains(&0), "eval.speed: all numbers must be 1 or more");
    fault(s.batches.iter().any(|b| *b > max_active), "eval.speed.batches must be at most engine.max_active");
    if let Err(error) = e.grid.check() {
        fault(true, &format!("eval.grid: {error}"));
    }
    if let Err(error) = e.overlap.check(e.grid.match_tokens) {
        fault(true, &error.to_string());
    }
    if let Err(error) = e.attribution.check() {
        fault(true, &error.to_string());
    }
    let names: Vec<&String> = e.opt_outs.iter().map(|w| &w.name).collect();
    fault(is_repeated(&names), "eval.opt_outs has a name twice");
    fault(
        e.opt_outs.iter().any(|w| w.uri_prefix.is_empty() || w.name.trim().is_empty()),
        "eval.opt_outs: name and uri_prefix must not be empty: that would be all of the source",
    );
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// The shipped configuration with keys set otherwise.
    fn read(set: &[&str]) -> Result<EvalConfig> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../configs/eval.toml");
        read_eval_config(&ConfigFile { path, set: set.iter().map(|s| (*s).to_owned()).collect() })
    }

    #[test]
    fn what_would_mislead_is_refused_by_name() {
        read(&[]).unwrap();
        for (set, named) in [
            ("eval.domains=[\"brown\", \"brown\"]", "eval.domains"),
            ("eval.domains=[]", "eval.domains"),
            ("eval.also_tuned_on=[\"others\", \"others\"]", "eval.also_tuned_on"),
            ("eval.also_tuned_on=[\"mixed\"]", "eval.also_tuned_on"),
            ("eval.min_gap_bits=-1.0", "eval.min_gap_bits"),
            ("eval.min_gap_bits=nan", "eval.min_gap_bits"),
            ("eval.sizes.test_tokens=0", "test_tokens"),
            ("eval.sizes.window_tokens=1", "window_tokens"),
            ("eval.grid.knn_weight=[0.0, 1.0]", "knn_weight"),
            ("eval.grid.k=[16, 16]", "k has a value twice"),
            ("eval.grid.match_bonus=[0.0, 0.0]", "match_bonus has a value twice"),
            ("eval.grid.knn_weight=[0.5, 0.5]", "knn_weight has a value twice"),
            ("eval.grid.model_temperature=[1.0, 1.0]", "model_temperature has a value twice"),
            ("engine.influence_cap=0.5", "engine.influence_cap"),
            ("eval.attribution.tokens=0", "eval.attribution"),
            ("eval.opt_outs=[{name = \"a\", source = \"brown\", uri_prefix = \"\"}]", "uri_prefix"),
        ] {
            let message = format!("{:#}", read(&[set]).unwrap_err());
            assert!(message.contains(named), "{set}: {message}");
        }
    }
}
