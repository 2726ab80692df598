//! `silo shard`.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use prost::Message as _;
use serde::Deserialize;
use serde_json::{Value, json};
use silo_corpus::{CorpusDocument, Split, about_bytes};
use silo_proto::v1;

use super::corpus::corpus_documents;
use super::operation;
use crate::client::{Target, refused};
use crate::output;

/// Documents go out in messages of about this size.
const CHUNK_BYTES: usize = 1 << 20;

/// Shards: add, list, show, rebuild, remove.
#[derive(Debug, Subcommand)]
pub enum Shard {
    /// Add documents of a source as a shard.
    Add(Add),
    /// List the shards.
    Ls(List),
    /// Show one shard.
    Show(One),
    /// Encode the stored documents of shards again, with the served model and recipe.
    Rebuild(Rebuild),
    /// Take a shard out of what is retrieved, until it is resumed.
    Suspend(One),
    /// Put a suspended shard back.
    Resume(One),
    /// Withdraw a shard, a source, documents, or all documents whose URI begins so: for good, and at once.
    Remove(super::remove::Remove),
}

/// Adds a shard.
#[derive(Debug, Args)]
pub struct Add {
    #[command(flatten)]
    target: Target,
    /// The source, declared before.
    #[arg(long)]
    source: String,
    /// JSON Lines files with `text`, and optionally `uri`, `title`, `licence`, per line; or text files, one document each.
    #[arg(required_unless_present = "corpus")]
    files: Vec<PathBuf>,
    /// Take the source's text from a corpus that `silo corpus build` made: the part that is neither validation nor test text.
    #[arg(long, value_name = "PATH", conflicts_with = "files")]
    corpus: Option<PathBuf>,
    /// Of a corpus, take about so many bytes: documents in the order of their hashes.
    #[arg(long, value_name = "N", requires = "corpus")]
    max_bytes: Option<usize>,
}

impl Add {
    fn documents(&self) -> Result<Vec<v1::Document>> {
        let Some(corpus) = &self.corpus else {
            let read = self.files.iter().map(|f| read(f)).collect::<Result<Vec<_>>>()?;
            return Ok(read.concat());
        };
        let mut documents = corpus_documents(corpus, &self.source, Split::Train)?;
        documents.sort_by_key(|d| d.hash);
        let message = |d: &CorpusDocument| v1::Document {
            uri: d.uri.clone(),
            title: d.title.clone(),
            licence: d.licence.clone(),
            text: d.text.clone(),
        };
        Ok(about_bytes(documents.iter(), self.max_bytes.unwrap_or(usize::MAX)).map(message).collect())
    }
}

/// Lists the shards.
#[derive(Debug, Args)]
pub struct List {
    #[command(flatten)]
    target: Target,
    /// Only those of this source.
    #[arg(long, default_value = "")]
    source: String,
    /// Also those that were removed.
    #[arg(long)]
    removed: bool,
}

/// Rebuilds shards.
#[derive(Debug, Args)]
pub struct Rebuild {
    #[command(flatten)]
    target: Target,
    /// Their numbers; all that are not retrieved from if none is named.
    ids: Vec<u64>,
}

/// One shard.
#[derive(Debug, Args)]
pub struct One {
    #[command(flatten)]
    target: Target,
    /// Its number.
    id: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    text: String,
    #[serde(default)]
    uri: String,
    #[serde(default)]
    title: String,
    #[serde(default)]
    licence: String,
}

/// Documents of a file.
fn read(path: &Path) -> Result<Vec<v1::Document>> {
    let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let text = String::from_utf8(bytes).map_err(|e| {
        anyhow::anyhow!(
            "{} is not UTF-8: byte {} does not fit; convert it first",
            path.display(),
            e.utf8_error().valid_up_to()
        )
    })?;
    let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
    if path.extension().is_none_or(|e| e != "jsonl") {
        let (uri, title) = (format!("file:{name}"), name.to_owned());
        return Ok(vec![v1::Document { uri, title, licence: String::new(), text }]);
    }
    let lines = text.lines().enumerate().filter(|(_, l)| !l.trim().is_empty());
    let document = |(i, line): (usize, &str)| {
        let parsed: Line = serde_json::from_str(line)
            .with_context(|| format!("{}, line {}: not a document", path.display(), i + 1))?;
        let uri = if parsed.uri.is_empty() { format!("file:{name}#{}", i + 1) } else { parsed.uri };
        Ok(v1::Document { uri, title: parsed.title, licence: parsed.licence, text: parsed.text })
    };
    lines.map(document).collect()
}

/// A header and then the documents, in messages of a good size.
fn messages(source: String, documents: Vec<v1::Document>) -> Vec<v1::AddShardRequest> {
    use v1::add_shard_request::Message;
    let mut out = vec![v1::AddShardRequest { message: Some(Message::Header(v1::AddShardHeader { source })) }];
    let (mut chunk, mut bytes) = (v1::DocumentChunk::default(), 0);
    for document in documents {
        let full = !chunk.documents.is_empty() && bytes + document.encoded_len() > CHUNK_BYTES;
        if full {
            out.push(v1::AddShardRequest { message: Some(Message::Documents(std::mem::take(&mut chunk))) });
            bytes = 0;
        }
        bytes += document.encoded_len();
        chunk.documents.push(document);
    }
    if !chunk.documents.is_empty() {
        out.push(v1::AddShardRequest { message: Some(Message::Documents(chunk)) });
    }
    out
}

fn state(s: &v1::Shard) -> String {
    s.state().as_str_name().to_lowercase()
}

fn describe(s: &v1::Shard) -> Value {
    json!({
        "id": s.id, "source": s.source, "state": state(s), "reason": s.reason, "n_documents": s.n_documents,
        "n_tokens": s.n_tokens, "n_entries": s.n_entries, "n_bytes": s.n_bytes, "added_epoch": s.added_epoch,
        "removed_epoch": s.removed_epoch, "model_hash": s.model_hash, "recipe_hash": s.recipe_hash,
        "n_duplicates": s.n_duplicates, "files": s.files.map(|f| json!({
            "n_documents": f.n_documents, "n_tokens": f.n_tokens, "n_entries": f.n_entries,
            "n_withdrawn_documents": f.n_withdrawn_documents,
        })),
    })
}

fn print(shards: &[v1::Shard]) {
    let row = |s: &v1::Shard| {
        vec![
            s.id.to_string(),
            s.source.clone(),
            state(s),
            s.n_documents.to_string(),
            s.n_entries.to_string(),
            s.files.map_or(0, |f| f.n_withdrawn_documents).to_string(),
            s.n_bytes.to_string(),
            s.added_epoch.to_string(),
            output::one_line(&s.reason, 80),
        ]
    };
    let header = ["id", "source", "state", "documents", "entries", "still in files", "bytes", "epoch", "reason"];
    output::table(&header, &shards.iter().map(row).collect::<Vec<_>>());
}

impl Shard {
    /// Runs the command.
    pub async fn run(self, as_json: bool) -> Result<()> {
        match self {
            Self::Add(c) => c.run(as_json).await,
            Self::Ls(c) => c.run(as_json).await,
            Self::Show(c) => {
                let connection = c.target.connect().await?;
                let request = v1::GetShardRequest { id: c.id };
                let shard = connection.datastore().get_shard(request).await.map_err(refused)?.into_inner();
                if as_json {
                    output::json(&describe(&shard))?
                } else {
                    print(&[shard])
                }
                connection.close().await
            }
            Self::Rebuild(c) => c.run(as_json).await,
            Self::Suspend(c) => c.suspend(as_json).await,
            Self::Resume(c) => c.resume(as_json).await,
            Self::Remove(c) => c.run(as_json).await,
        }
    }
}

impl Add {
    async fn run(self, as_json: bool) -> Result<()> {
        let documents = self.documents()?;
        let connection = self.target.connect().await?;
        let stream = tokio_stream::iter(messages(self.source, documents));
        let operation = connection.datastore().add_shard(stream).await.map_err(refused)?.into_inner();
        let shard: v1::Shard = operation::wait(&connection, operation, "documents").await?;
        if as_json {
            output::json(&describe(&shard))?;
        } else {
            println!(
                "shard {}: {} documents, {} entries of {}, epoch {}; {} documents were there already",
                shard.id, shard.n_documents, shard.n_entries, shard.source, shard.added_epoch, shard.n_duplicates
            );
        }
        connection.close().await
    }
}

impl Rebuild {
    async fn run(self, as_json: bool) -> Result<()> {
        let connection = self.target.connect().await?;
        let request = v1::RebuildShardsRequest { ids: self.ids };
        let operation = connection.datastore().rebuild_shards(request).await.map_err(refused)?.into_inner();
        let answer: v1::RebuildShardsResponse = operation::wait(&connection, operation, "documents").await?;
        if as_json {
            let failures: Vec<Value> =
                answer.failures.iter().map(|f| json!({"id": f.id, "reason": f.reason})).collect();
            let shards: Vec<Value> = answer.shards.iter().map(describe).collect();
            output::json(&json!({"shards": shards, "failures": failures}))?;
        } else if answer.shards.is_empty() && answer.failures.is_empty() {
            println!("all shards are retrieved from: there is nothing to rebuild");
        } else {
            print(&answer.shards);
        }
        connection.close().await?;
        match answer.failures.first() {
            None => Ok(()),
            Some(f) => bail!("{} shards could not be rebuilt; shard {}: {}", answer.failures.len(), f.id, f.reason),
        }
    }
}

impl List {
    async fn run(self, as_json: bool) -> Result<()> {
        let connection = self.target.connect().await?;
        let (mut shards, mut page_token) = (Vec::new(), String::new());
        loop {
            let source = self.source.clone();
            let request = v1::ListShardsRequest { page_size: 1000, page_token, source, show_removed: self.removed };
            let page = connection.datastore().list_shards(request).await.map_err(refused)?.into_inner();
            shards.extend(page.shards);
            if page.next_page_token.is_empty() {
                break;
            }
            page_token = page.next_page_token;
        }
        if as_json {
            output::json(&shards.iter().map(describe).collect::<Vec<_>>())?
        } else {
            print(&shards)
        }
        connection.close().await
    }
}

impl One {
    async fn suspend(self, as_json: bool) -> Result<()> {
        let connection = self.target.connect().await?;
        let request = v1::SuspendShardRequest { id: self.id };
        let answer = connection.datastore().suspend_shard(request).await.map_err(refused)?.into_inner();
        super::remove::print(&answer.removal.unwrap_or_default(), "is suspended", as_json)?;
        connection.close().await
    }

    async fn resume(self, as_json: bool) -> Result<()> {
        let connection = self.target.connect().await?;
        let request = v1::ResumeShardRequest { id: self.id };
        let answer = connection.datastore().resume_shard(request).await.map_err(refused)?.into_inner();
        super::remove::print(&answer.removal.unwrap_or_default(), "is retrieved from again", as_json)?;
        connection.close().await
    }
}
