//! `silo eval`.

mod all;
mod attribution;
mod context;
mod curve;
mod domains;
mod export;
mod generation;
mod ground;
mod keys;
mod overlap;
mod page;
mod plot;
mod reference;
mod speed;
mod sure;
mod swap;
mod weights;
mod works;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use serde_json::json;
use silo_core::{Gate, GateTerms, KnnParameters};

use crate::config::ConfigFile;
use crate::output;
use ground::Ground;

/// Measurements on held-out text.
#[derive(Debug, Subcommand)]
pub enum Eval {
    /// Bits per byte and perplexity of every domain in every mode, with parameters tuned on validation text.
    Ppl(Run),
    /// Rules for the neighbours' weight at a token: fixed, by distance, by relative confidence, a gate; tuned on validation text.
    Weights(Run),
    /// Bits per byte over the size of the store.
    StoreSize(Run),
    /// Bits per byte while one source after the other is withdrawn.
    Removal(Run),
    /// Ways to retrieve passages: stride, query, length, number.
    Context(Run),
    /// Recipes of the store: key sites, exact search and codes.
    Keys(Run),
    /// What is generated, by a judge and against the store, with and without the verbatim guard.
    Generation(Run),
    /// What test text has in common with the store, and what neighbours are worth without that.
    Overlap(Run),
    /// Which part moves: keys and model exchanged with another model that has encoded the same text.
    Swap(Run),
    /// What credit names, and whether a token loses by its withdrawal what was computed; runs of words that are looked for.
    Attribution(Run),
    /// Works are withdrawn by their URIs: their held-out text before, after, and with a store that never held them.
    OptOut(Run),
    /// All of the above that the configuration asks for, and a summary of them.
    All(Run),
    /// Keys, values and what the model alone says, as safetensors: for trying other ways to search and to weigh. What is written holds the
    /// text of the store, and is to be governed like it.
    Export(Export),
    /// Tune how neighbours weigh on the validation text of all domains, and whether a gate sets it; writes a file for `store.calibrations`.
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
    #[command(flatten)]
    config: ConfigFile,
    /// Where results go.
    #[arg(long, default_value = "docs/results", value_name = "PATH")]
    output: PathBuf,
}

/// Exports.
#[derive(Debug, Args)]
pub struct Export {
    /// What is exported, as `configs/eval.toml`.
    #[command(flatten)]
    config: ConfigFile,
    /// The folder to write: DOMAIN.safetensors for each domain, and export.json.
    #[arg(long, value_name = "PATH")]
    output: PathBuf,
    /// Encode the documents of a domain one after the other, in windows that cross their ends, as SILO's code does; for comparison alone,
    /// since a withdrawn document stays in the keys of the next one.
    #[arg(long)]
    packed: bool,
}

/// Tunes.
#[derive(Debug, Args)]
pub struct Calibrate {
    /// What is tuned on, as `configs/eval.toml`.
    #[command(flatten)]
    config: ConfigFile,
    /// The file to write.
    #[arg(long, value_name = "PATH")]
    output: PathBuf,
}

impl Eval {
    /// Where results go.
    fn folder(&self) -> Option<&Path> {
        match self {
            Self::Ppl(c)
            | Self::Weights(c)
            | Self::StoreSize(c)
            | Self::Removal(c)
            | Self::Context(c)
            | Self::Keys(c)
            | Self::Generation(c)
            | Self::Overlap(c)
            | Self::Swap(c)
            | Self::Attribution(c)
            | Self::OptOut(c)
            | Self::All(c) => Some(&c.output),
            Self::Export(c) => Some(&c.output),
            Self::Calibrate(c) => c.output.parent(),
        }
    }

    /// Runs the command.
    pub fn run(self, as_json: bool) -> Result<()> {
        // Before hours of work that could not be written.
        if let Some(folder) = self.folder() {
            std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        }
        match self {
            Self::Ppl(c) => domains::run(&c)?.publish(&c, as_json),
            Self::Weights(c) => weights::run(&c)?.publish(&c, as_json),
            Self::StoreSize(c) => curve::store_size(&c)?.publish(&c, as_json),
            Self::Removal(c) => curve::removal(&c)?.publish(&c, as_json),
            Self::Context(c) => context::run(&c)?.publish(&c, as_json),
            Self::Keys(c) => keys::run(&c)?.publish(&c, as_json),
            Self::Generation(c) => generation::run(&c)?.publish(&c, as_json),
            Self::Overlap(c) => overlap::run(&c)?.publish(&c, as_json),
            Self::Swap(c) => swap::run(&c)?.publish(&c, as_json),
            Self::Attribution(c) => attribution::run(&c)?.publish(&c, as_json),
            Self::OptOut(c) => works::run(&c)?.publish(&c, as_json),
            Self::All(c) => all::run(&c, as_json),
            Self::Export(c) => export::run(&c, as_json),
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

/// In words.
fn parameters(knn: &KnnParameters) -> String {
    let KnnParameters { k, knn_weight, knn_temperature, match_bonus, .. } = knn;
    let weight = match knn.gate {
        None => format!("weight {knn_weight}"),
        Some(Gate { sharp, broad }) => {
            format!("weight {knn_weight} times a gate (sharp: {}; broad: {})", terms(&sharp), terms(&broad))
        }
    };
    format!("{weight}, k {k}, temperature {knn_temperature}, {match_bonus} for a token that matches")
}

/// The numbers of one of a gate's sums.
fn terms(terms: &GateTerms) -> String {
    let GateTerms { bias, nearest, spread, model_entropy, neighbor_entropy, log_distinct } = terms;
    format!(
        "bias {bias:.3}, nearest {nearest:.3}, spread {spread:.3}, model's entropy {model_entropy:.3}, neighbours' entropy \
         {neighbor_entropy:.3}, different values {log_distinct:.3}"
    )
}

fn calibrate(command: &Calibrate, as_json: bool) -> Result<()> {
    let ground = Ground::open(&command.config)?;
    let chosen = ground.chosen()?;
    let calibration = ground.calibration(&chosen);
    output::file(&command.output, format!("{:#}\n", json!(calibration)))?;
    if as_json {
        return output::json(&calibration);
    }
    println!("{}: {}", parameters(&calibration.tuned), command.output.display());
    let edges = ground.config.eval.grid.edges(&calibration.tuned);
    if !edges.is_empty() {
        eprintln!("at an end of eval.grid, which may be too narrow: {}", edges.join(", "));
    }
    Ok(())
}
