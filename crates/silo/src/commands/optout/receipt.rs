//! `silo optout receipt|verify`.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;
use silo_log::{Receipt, Verified, read_public, with_rotations};
use silo_proto::v1;

use crate::client::{Target, refused};
use crate::output;
use crate::output::time;

/// Gets a receipt.
#[derive(Debug, Args)]
pub struct GetReceipt {
    #[command(flatten)]
    target: Target,
    /// Number of the withdrawal: what `silo shard remove` calls its entry of the log.
    #[arg(required_unless_present = "optout", conflicts_with = "optout")]
    removal: Option<u64>,
    /// Instead: the number of an opt-out that was granted.
    #[arg(long)]
    optout: Option<u64>,
    /// Write it to this file instead of the standard output.
    #[arg(long, value_name = "PATH")]
    output: Option<PathBuf>,
}

/// Verifies a receipt.
#[derive(Debug, Args)]
pub struct Verify {
    /// The receipt.
    receipt: PathBuf,
    /// The public keys of the one who issued it.
    #[arg(long, value_name = "PATH")]
    key: PathBuf,
    /// Statements about keys that took the place of these.
    #[arg(long, value_name = "PATH")]
    rotations: Option<PathBuf>,
}

impl GetReceipt {
    /// Runs the command.
    pub async fn run(self, as_json: bool) -> Result<()> {
        let connection = self.target.connect().await?;
        let removal = match (self.removal, self.optout) {
            (Some(removal), _) => removal,
            (None, id) => {
                let id = id.unwrap_or_default();
                let request = v1::GetOptOutRequest { id, with_statement: false };
                let answer = connection.opt_out().get_opt_out(request).await.map_err(refused)?.into_inner();
                let removal = answer.opt_out.unwrap_or_default().removal;
                removal.with_context(|| format!("opt-out {id} withdrew nothing, so there is no receipt of it"))?
            }
        };
        let request = v1::GetReceiptRequest { removal };
        let receipt = connection.opt_out().get_receipt(request).await.map_err(refused)?.into_inner();
        match self.output {
            Some(path) => {
                fs::write(&path, &receipt.text).with_context(|| format!("cannot write {}", path.display()))?;
            }
            None if as_json => {
                output::json(&serde_json::json!({"removal": receipt.removal, "text": receipt.text}))?;
            }
            None => print!("{}", receipt.text),
        }
        connection.close().await
    }
}

impl Verify {
    /// Runs the command.
    pub fn run(self, as_json: bool) -> Result<()> {
        let mut keys = read_public(&self.key)?;
        if let Some(path) = &self.rotations {
            keys = with_rotations(keys, path)?;
        }
        let text =
            fs::read_to_string(&self.receipt).with_context(|| format!("cannot read {}", self.receipt.display()))?;
        let verified = Receipt::verify(&text, &keys)?;
        if as_json { output::json(&verified) } else { print(&verified) }
    }
}

fn print(v: &Verified) -> Result<()> {
    println!("The receipt holds. It is signed by {}.", v.signed_by);
    println!();
    println!("Withdrawal {}, by {}, by {}:", v.removal, v.actor, v.selector);
    for set in &v.documents {
        let what = if set.n_documents == 1 { "document" } else { "documents" };
        println!("  {} {what} of {}", set.n_documents, set.source);
    }
    if v.documents.is_empty() {
        println!("  no document left its source: other shards of it hold what was withdrawn");
    }
    println!();
    println!("  asked for               {}", time(v.asked_at_unix_ms));
    println!("  on disk                 {}", time(v.durable_at_unix_ms));
    println!("  in no answer since      {}", time(v.effective_at_unix_ms));
    match v.purged_at_unix_ms {
        Some(at) => println!("  in no file since        {}", time(at)),
        None => println!("  in no file since        not yet: files of the store may still hold it"),
    }
    println!("  proven to be absent at  {} (epoch {})", time(v.absent_as_of_unix_ms), v.absent_as_of_epoch);
    println!();
    println!("  root before  {}\n  root after   {} (epoch {})", v.root_before, v.after.root, v.after.epoch);
    println!("  model {}\n  recipe {}", v.after.model, v.after.recipe);
    println!("  log {} with {} entries", v.origin, v.log_size);
    let backups = if v.backups.is_empty() { "none".to_owned() } else { v.backups.join(", ") };
    println!("  backups that may hold it: {backups}");
    for model in &v.models {
        let trained = match &model.sources {
            None => "it is not known what it was trained on".to_owned(),
            Some(sources) if sources.is_empty() => "it was not trained on any source of this withdrawal".to_owned(),
            Some(sources) => {
                let names: Vec<String> = sources.iter().map(ToString::to_string).collect();
                format!("it was trained on {}, and a withdrawal does not reach weights", names.join(", "))
            }
        };
        println!("  model {}: {trained}", model.model);
    }
    Ok(())
}
