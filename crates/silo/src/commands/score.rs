//! `silo score`.

use anyhow::{Result, bail};
use clap::Args;
use serde_json::json;
use silo_proto::v1;

use super::{RetrievalArguments, Text};
use crate::client::{Target, refused};
use crate::commands::generate::capped;
use crate::output;

/// Log-probability of a text, and its bits per byte.
#[derive(Debug, Args)]
pub struct Score {
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    text: Text,
    #[command(flatten)]
    retrieval: RetrievalArguments,
    /// Windows of at most this many tokens [default: the model's window].
    #[arg(long, value_name = "N")]
    window_tokens: Option<u32>,
    /// Windows move by this many tokens [default: half a window].
    #[arg(long, value_name = "N")]
    stride_tokens: Option<u32>,
}

impl Score {
    /// Runs the command.
    pub async fn run(self, as_json: bool) -> Result<()> {
        let request = v1::ScoreRequest {
            input: Some(v1::score_request::Input::Text(self.text.read()?)),
            retrieval: Some(self.retrieval.message()),
            window_tokens: self.window_tokens,
            stride_tokens: self.stride_tokens,
            ..v1::ScoreRequest::default()
        };
        let connection = self.target.connect().await?;
        let response = connection.generation().score(request).await.map_err(refused)?.into_inner();
        let n_tokens = response.tokens.len();
        if n_tokens == 0 {
            bail!("the text has no token that could be scored");
        }
        let bits_per_byte = -response.log_probability / std::f64::consts::LN_2 / response.n_bytes.max(1) as f64;
        let perplexity = (-response.log_probability / n_tokens.max(1) as f64).exp();
        let provenance = response.provenance.unwrap_or_default();
        if as_json {
            output::json(&json!({
                "log_probability": response.log_probability, "n_tokens": n_tokens, "n_bytes": response.n_bytes,
                "bits_per_byte": bits_per_byte, "perplexity": perplexity, "capped": capped(&response.capped),
                "epoch": provenance.epoch, "root": provenance.root, "model_hash": provenance.model_hash,
            }))?;
        } else {
            println!(
                "{bits_per_byte:.4} bits per byte, perplexity {perplexity:.3} ({n_tokens} tokens, {} bytes)",
                response.n_bytes
            );
            for one in &response.capped {
                println!("{} was held at the cap on its influence for {} tokens", one.source, one.n_tokens);
            }
        }
        connection.close().await
    }
}
