//! One module per command.

pub mod attribute;
pub mod corpus;
mod credit;
pub mod eval;
pub mod generate;
pub mod index;
pub mod key;
pub mod operation;
pub mod optout;
pub mod remove;
pub mod report;
pub mod score;
pub mod search;
pub mod serve;
pub mod shard;
pub mod source;
mod source_update;
pub mod store;
pub mod token;
pub mod train;

use std::io::Read;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use silo_proto::v1;
use tokio::signal::unix::{SignalKind, signal};

/// A text, given on the command line, in a file, or on standard input (`-`).
#[derive(Debug, Clone, Args)]
#[group(required = true, multiple = false)]
pub struct Text {
    /// The text; `-` reads standard input.
    #[arg(value_name = "TEXT")]
    text: Option<String>,
    /// Read the text from a file.
    #[arg(long, value_name = "PATH")]
    file: Option<PathBuf>,
}

impl Text {
    /// The text itself.
    pub fn read(&self) -> Result<String> {
        match (&self.text, &self.file) {
            (Some(dash), _) if dash == "-" => {
                let mut text = String::new();
                std::io::stdin().read_to_string(&mut text).context("cannot read standard input as UTF-8 text")?;
                Ok(text)
            }
            (Some(text), _) => Ok(text.clone()),
            (None, Some(path)) => {
                std::fs::read_to_string(path).with_context(|| format!("cannot read {} as UTF-8 text", path.display()))
            }
            (None, None) => bail!("no text was given"),
        }
    }
}

/// The mode of retrieval.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[allow(missing_docs, reason = "see the proto file")]
pub enum Mode {
    Parametric,
    Knn,
    Context,
    KnnAndContext,
}

/// How the store is consulted.
#[derive(Debug, Clone, Args)]
pub struct RetrievalArguments {
    /// Which half of the store is consulted.
    #[arg(long, value_enum, default_value = "parametric")]
    mode: Mode,
    /// Neighbours per token [default: as calibrated].
    #[arg(long)]
    k: Option<u32>,
    /// Weight of the neighbours at every token, from 0 to 1 [default: as calibrated, by a gate if there is one].
    #[arg(long)]
    knn_weight: Option<f64>,
    /// Divides the squared distance of the neighbours; a gate mixes half and twice of it [default: as calibrated].
    #[arg(long)]
    knn_temperature: Option<f64>,
    /// So many tokens before a neighbour's value are compared with the text's last ones [default: as calibrated].
    #[arg(long)]
    match_tokens: Option<u32>,
    /// Added to the logarithm of a neighbour's weight for each of them that is the same, in nats [default: as calibrated].
    #[arg(long, allow_negative_numbers = true)]
    match_bonus: Option<f64>,
    /// Greatest part of the neighbours' weight that one source has at a token [default: as configured].
    #[arg(long)]
    influence_cap: Option<f64>,
    /// Use only these sources.
    #[arg(long, value_name = "SOURCE")]
    allow_source: Vec<String>,
    /// Do not use these sources.
    #[arg(long, value_name = "SOURCE")]
    deny_source: Vec<String>,
}

impl RetrievalArguments {
    /// As a message.
    pub fn message(&self) -> v1::Retrieval {
        let mode = match self.mode {
            Mode::Parametric => v1::RetrievalMode::Parametric,
            Mode::Knn => v1::RetrievalMode::Knn,
            Mode::Context => v1::RetrievalMode::Context,
            Mode::KnnAndContext => v1::RetrievalMode::KnnAndContext,
        };
        let filter = v1::Filter {
            allow_sources: self.allow_source.clone(),
            deny_sources: self.deny_source.clone(),
            ..v1::Filter::default()
        };
        v1::Retrieval {
            mode: mode.into(),
            filter: Some(filter),
            k: self.k,
            knn_weight: self.knn_weight,
            knn_temperature: self.knn_temperature,
            context: None,
            influence_cap: self.influence_cap,
            match_tokens: self.match_tokens,
            match_bonus: self.match_bonus,
        }
    }
}

/// Waits for Ctrl-C or SIGTERM.
pub async fn asked_to_stop() -> Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        _ = terminate.recv() => {}
    }
    Ok(())
}

/// A tier's number in messages.
pub fn tier_number(tier: silo_core::Tier) -> i32 {
    use silo_core::Tier;
    let tier = match tier {
        Tier::PublicDomain => v1::Tier::PublicDomain,
        Tier::Permissive => v1::Tier::Permissive,
        Tier::Attribution => v1::Tier::Attribution,
        Tier::Restricted => v1::Tier::Restricted,
    };
    tier.into()
}

/// The name of a tier's message.
pub fn tier_name(value: i32) -> &'static str {
    match v1::Tier::try_from(value) {
        Ok(v1::Tier::PublicDomain) => "public-domain",
        Ok(v1::Tier::Permissive) => "permissive",
        Ok(v1::Tier::Attribution) => "attribution",
        Ok(v1::Tier::Restricted) => "restricted",
        Ok(v1::Tier::Unspecified) | Err(_) => "unknown",
    }
}
