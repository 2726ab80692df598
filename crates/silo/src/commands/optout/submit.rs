//! `silo optout submit`.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;
use serde_json::json;
use silo_proto::v1;
use v1::submit_opt_out_request::Selection;

use super::{Why, print};
use crate::client::{Target, refused};
use crate::output;

/// Makes a request.
#[derive(Debug, Args)]
#[group(id = "what", required = true, multiple = true)]
pub struct Submit {
    #[command(flatten)]
    target: Target,
    /// All of this source; with --document or --uri-prefix, only those of it.
    #[arg(long, group = "what")]
    source: Option<String>,
    /// A document, by the SHA-256 of its text; may stand several times.
    #[arg(long = "document", value_name = "HASH", requires = "source", conflicts_with = "uri_prefix")]
    documents: Vec<String>,
    /// Documents whose URI begins so.
    #[arg(long, value_name = "BEGINNING", group = "what")]
    uri_prefix: Option<String>,
    /// A file with a passage: whatever holds it, or most of it, in any source.
    #[arg(long, value_name = "PATH", group = "what", conflicts_with_all = ["source", "documents", "uri_prefix"])]
    passage: Option<PathBuf>,
    /// Who asks.
    #[arg(long)]
    claimant: String,
    /// How they are reached.
    #[arg(long, default_value = "")]
    contact: String,
    #[command(flatten)]
    why: Why,
    /// Show the plan, and change nothing.
    #[arg(long)]
    dry_run: bool,
}

impl Submit {
    /// Runs the command.
    pub async fn run(self, as_json: bool) -> Result<()> {
        let selection = match (self.passage, self.uri_prefix, self.source.unwrap_or_default()) {
            (Some(path), ..) => {
                let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
                Selection::Passage(text)
            }
            (None, Some(prefix), source) => Selection::UriPrefix(v1::UriPrefix { prefix, source }),
            (None, None, source) if !self.documents.is_empty() => {
                Selection::Documents(v1::DocumentList { source, documents: self.documents })
            }
            (None, None, source) => Selection::Source(source),
        };
        let connection = self.target.connect().await?;
        let request = v1::SubmitOptOutRequest {
            selection: Some(selection),
            claimant: self.claimant,
            contact: self.contact,
            why: self.why.message(),
            validate_only: self.dry_run,
        };
        let answer = connection.opt_out().submit_opt_out(request).await.map_err(refused)?.into_inner();
        let plan = answer.plan.unwrap_or_default();
        if as_json {
            let optout = answer.opt_out.as_ref().map(print::as_json);
            let quarantine = answer
                .quarantine
                .as_ref()
                .map(|q| json!({"id": q.id, "epoch": q.epoch, "effective_ms": q.effective_ms}));
            output::json(&json!({"plan": print::plan_json(&plan), "opt_out": optout, "quarantine": quarantine}))?;
        } else {
            print::plan(&plan);
            match (&answer.opt_out, &answer.quarantine) {
                (None, _) => println!("\nnothing was changed"),
                (Some(optout), Some(q)) => println!(
                    "\nopt-out {} is in quarantine since epoch {}: used for nothing after {:.1} ms",
                    optout.id, q.epoch, q.effective_ms
                ),
                (Some(optout), None) => println!("\nopt-out {}: nothing of it is in the store", optout.id),
            }
        }
        connection.close().await
    }
}
