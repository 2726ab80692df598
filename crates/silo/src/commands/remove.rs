//! `silo shard remove`.

use anyhow::{Result, bail};
use clap::Args;
use serde_json::{Value, json};
use silo_proto::v1;
use v1::remove_documents_request::Selection;

use super::operation;
use crate::client::{Connection, Target, refused};
use crate::output;

/// Withdraws.
#[derive(Debug, Args)]
#[group(id = "what", required = true, multiple = true)]
pub struct Remove {
    #[command(flatten)]
    target: Target,
    /// The number of a shard.
    #[arg(group = "what", conflicts_with_all = ["source", "documents", "uri_prefix"])]
    id: Option<u64>,
    /// All of this source; with --document or --uri-prefix, only those of it.
    #[arg(long, group = "what")]
    source: Option<String>,
    /// A document, by the SHA-256 of its text; may stand several times.
    #[arg(long = "document", value_name = "HASH", requires = "source", conflicts_with = "uri_prefix")]
    documents: Vec<String>,
    /// Documents whose URI begins so.
    #[arg(long, value_name = "BEGINNING", group = "what")]
    uri_prefix: Option<String>,
    /// Say what would be withdrawn, and change nothing.
    #[arg(long)]
    dry_run: bool,
    /// Do not wait until the bytes are gone from all files.
    #[arg(long)]
    no_wait: bool,
}

impl Remove {
    /// Runs the command.
    pub async fn run(self, as_json: bool) -> Result<()> {
        let connection = self.target.connect().await?;
        let selection = match (self.uri_prefix, self.source.unwrap_or_default()) {
            (Some(prefix), source) => Selection::UriPrefix(v1::UriPrefix { prefix, source }),
            (None, source) if !self.documents.is_empty() => {
                Selection::Documents(v1::DocumentList { source, documents: self.documents })
            }
            (None, source) => Selection::Source(source),
        };
        let removal = if let Some(id) = self.id {
            let request = v1::RemoveShardRequest { id, validate_only: self.dry_run };
            let answer = connection.datastore().remove_shard(request).await.map_err(refused)?.into_inner();
            let shard = answer.shard.unwrap_or_default();
            let parts = vec![v1::RemovedPart { shard: id, whole_shard: true, n_documents: shard.n_documents }];
            answer.removal.ok_or(parts)
        } else {
            let request = v1::RemoveDocumentsRequest { selection: Some(selection), validate_only: self.dry_run };
            let answer = connection.datastore().remove_documents(request).await.map_err(refused)?.into_inner();
            answer.removal.ok_or(answer.parts)
        };
        match removal {
            Err(parts) => print_plan(&parts, as_json)?,
            Ok(removal) => {
                if !as_json {
                    print(&removal, "is withdrawn", false)?;
                }
                let purged = if self.no_wait { None } else { Some(purged(&connection, &removal).await?) };
                match purged {
                    _ if as_json => {
                        output::json(&json!({"removal": removal_json(&removal), "purged": purged.is_some()}))?
                    }
                    Some(()) => println!("its bytes are gone from all files of the store"),
                    None => {}
                }
            }
        }
        connection.close().await
    }
}

/// What a change concerns, as JSON.
pub fn parts_json(parts: &[v1::RemovedPart]) -> Value {
    let part =
        |p: &v1::RemovedPart| json!({"shard": p.shard, "whole_shard": p.whole_shard, "n_documents": p.n_documents});
    parts.iter().map(part).collect()
}

fn print_parts(parts: &[v1::RemovedPart]) {
    let row = |p: &v1::RemovedPart| {
        let how_much = if p.whole_shard { "all" } else { "some" };
        vec![p.shard.to_string(), how_much.to_owned(), p.n_documents.to_string()]
    };
    output::table(&["shard", "of it", "documents"], &parts.iter().map(row).collect::<Vec<_>>());
}

fn print_plan(parts: &[v1::RemovedPart], as_json: bool) -> Result<()> {
    if as_json {
        return output::json(&json!({"would_withdraw": parts_json(parts)}));
    }
    println!("would be withdrawn; nothing was changed");
    print_parts(parts);
    Ok(())
}

/// What a change did, as JSON.
pub fn removal_json(r: &v1::Removal) -> Value {
    json!({
        "id": r.id, "epoch": r.epoch, "root_before": r.root_before, "root_after": r.root_after,
        "parts": parts_json(&r.parts), "durable_ms": r.durable_ms, "effective_ms": r.effective_ms,
        "backups": r.backups, "purge_operation": r.purge_operation,
    })
}

/// Prints what a change did.
pub fn print(r: &v1::Removal, what: &str, as_json: bool) -> Result<()> {
    if as_json {
        return output::json(&removal_json(r));
    }
    print_parts(&r.parts);
    println!(
        "this {what} at epoch {}, entry {} of the log: on disk after {:.1} ms, for all requests after {:.1} ms",
        r.epoch, r.id, r.durable_ms, r.effective_ms
    );
    println!("root before {}\nroot after  {}", r.root_before, r.root_after);
    if !r.backups.is_empty() {
        println!("still in the backups {}; a restore withdraws it again", r.backups.join(", "));
    }
    Ok(())
}

/// Waits until the bytes are gone.
pub async fn purged(connection: &Connection, removal: &v1::Removal) -> Result<()> {
    let begun = operation::ask(connection, removal.purge_operation.clone()).await?;
    let answer: v1::PurgeResponse = operation::wait(connection, begun, "entries").await?;
    let here = |f: &&v1::PurgeFailure| removal.parts.iter().any(|p| p.shard == f.shard);
    match answer.failures.iter().find(here) {
        None => Ok(()),
        Some(failure) => bail!(
            "it is withdrawn, but bytes of it are still in the files of shard {}: {}",
            failure.shard,
            failure.reason
        ),
    }
}
