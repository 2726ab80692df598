//! `silo generate`.

use std::collections::HashMap;
use std::io::{IsTerminal, Write};
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::Args;
use serde_json::{Value, json};
use silo_proto::v1;
use silo_proto::v1::generate_chunk::Message;

use super::credit::{self, Credited, Palette};
use super::{RetrievalArguments, Text, tier_name};
use crate::client::{Connection, Target, refused};
use crate::output;

/// Continue a prompt; the text is printed as it comes.
#[derive(Debug, Args)]
pub struct Generate {
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    prompt: Text,
    #[command(flatten)]
    retrieval: RetrievalArguments,
    /// At most this many tokens [default: the server's].
    #[arg(long, value_name = "N")]
    max_new_tokens: Option<u32>,
    /// 0 takes the most probable token.
    #[arg(long, allow_negative_numbers = true)]
    temperature: Option<f64>,
    /// Keep the most probable tokens up to this mass.
    #[arg(long, allow_negative_numbers = true)]
    top_p: Option<f64>,
    /// Keep the k most probable tokens; 0 keeps all.
    #[arg(long)]
    top_k: Option<u32>,
    /// Makes draws repeatable.
    #[arg(long)]
    seed: Option<u64>,
    /// End before this string; may be given several times.
    #[arg(long)]
    stop: Vec<String>,
    /// Credit sources: the text coloured by source on a terminal, and after it shares, licences, documents and notices.
    #[arg(long)]
    attribute: bool,
    /// Also write the text with its credit as one HTML file.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Credit sources of every token, in a table after the text; also the totals.
    #[arg(long)]
    attribute_tokens: bool,
    /// In the context modes: also compute every token without each of its passages, and sum up what each passage did.
    #[arg(long)]
    leave_one_passage_out: bool,
}

impl Generate {
    fn request(&self) -> Result<v1::GenerateRequest> {
        let sampling = v1::Sampling {
            temperature: self.temperature,
            top_p: self.top_p,
            top_k: self.top_k,
            seed: self.seed,
            ..v1::Sampling::default()
        };
        let attribution = match (self.attribute_tokens, self.credits()) {
            (false, false) => v1::AttributionDetail::Unspecified,
            _ => v1::AttributionDetail::PerToken,
        };
        Ok(v1::GenerateRequest {
            prompt: Some(v1::generate_request::Prompt::Text(self.prompt.read()?)),
            max_new_tokens: self.max_new_tokens,
            sampling: Some(sampling),
            stop: self.stop.clone(),
            retrieval: Some(self.retrieval.message()),
            attribution: attribution.into(),
            attribution_depth: v1::AttributionDepth::Documents.into(),
            leave_one_passage_out: self.leave_one_passage_out,
            ..v1::GenerateRequest::default()
        })
    }

    fn credits(&self) -> bool {
        self.attribute || self.html.is_some()
    }

    /// Runs the command.
    pub async fn run(self, as_json: bool) -> Result<()> {
        let request = self.request()?;
        let prompt = match &request.prompt {
            Some(v1::generate_request::Prompt::Text(text)) => text.clone(),
            _ => String::new(),
        };
        let connection = self.target.connect().await?;
        let mut stream = connection.generation().generate_stream(request).await.map_err(refused)?.into_inner();
        let mut out = std::io::stdout();
        let is_terminal = out.is_terminal() && !self.credits();
        let mut text = String::new();
        let mut show = |piece: &str, painted: &str| -> Result<()> {
            text.push_str(piece);
            if !as_json {
                let painted = output::printable(painted, is_terminal);
                write!(out, "{painted}").and_then(|()| out.flush()).context("cannot write to standard output")?;
            }
            Ok(())
        };
        let mut palette = (self.credits() && std::io::stdout().is_terminal()).then(Palette::default);
        let (mut finished, mut tokens) = (None, Vec::new());
        while let Some(chunk) = stream.message().await.map_err(refused)? {
            match chunk.message {
                Some(Message::Token(token)) => {
                    let painted = palette.as_mut().map(|palette| credit::coloured(&token, palette));
                    show(&token.text, painted.as_deref().unwrap_or(&token.text))?;
                    if self.attribute_tokens || self.credits() {
                        tokens.push(token);
                    }
                }
                Some(Message::Finished(f)) => {
                    show(&f.text, &f.text)?;
                    finished = Some(f);
                }
                None => {}
            }
        }
        let Some(finished) = finished else { bail!("the server ended the text without a reason") };
        if as_json {
            output::json(&describe(&text, &finished, &tokens))?;
        } else {
            println!();
            if self.attribute_tokens {
                print_tokens(&tokens);
            }
            print_end(&finished);
        }
        drop(stream);
        if self.attribute_tokens || self.credits() {
            // The text was printed: what its documents are called may be missing.
            let found = documents(&connection, &finished.response_id).await;
            let documents = found.unwrap_or_else(|error| {
                eprintln!("silo: documents are named by their hashes: {}", output::chain(&error));
                HashMap::new()
            });
            let credited = Credited { prompt: &prompt, tokens: &tokens, finished: &finished, documents: &documents };
            if !as_json {
                credited.print_legend(palette.as_mut());
            }
            if let Some(path) = &self.html {
                let written = std::fs::write(path, credited.page());
                written.with_context(|| format!("cannot write {}", path.display()))?;
            }
        } else if !as_json {
            finished.notices.iter().for_each(|notice| eprintln!("[{}] {}", notice.source, output::plain(&notice.text)));
        }
        connection.close().await
    }
}

/// What documents are called, as far as it may be shown.
async fn documents(connection: &Connection, response_id: &str) -> Result<HashMap<(u64, String), (String, String)>> {
    if response_id.is_empty() {
        return Ok(HashMap::new());
    }
    let request = v1::AttributeResponseRequest { response_id: response_id.to_owned() };
    let answer = connection.attribution().attribute_response(request).await.map_err(refused)?.into_inner();
    Ok(answer.documents.into_iter().map(|d| ((d.shard, d.document), (d.uri, d.title))).collect())
}

fn reason(finished: &v1::Finished) -> &'static str {
    let reason = finished.reason().as_str_name();
    reason.strip_prefix("FINISH_REASON_").unwrap_or(reason)
}

/// A row per token: what the model and each source have in its probability.
fn print_tokens(tokens: &[v1::Token]) {
    let percent = |share: f64| format!("{:.1} %", 100.0 * share);
    let row = |t: &v1::Token| {
        let model = 1.0 - t.shares.iter().map(|s| s.share).sum::<f64>();
        let mut shares: Vec<&v1::SourceShare> = t.shares.iter().collect();
        shares.sort_by(|a, b| b.share.total_cmp(&a.share));
        let named = shares.iter().map(|s| format!("{} {}", s.source, percent(s.share)));
        let probability = format!("{:.3}", t.log_probability.exp());
        vec![format!("{:?}", t.text), probability, percent(model), named.collect::<Vec<_>>().join(", ")]
    };
    if !tokens.is_empty() {
        output::table(&["token", "p", "model", "sources"], &tokens.iter().map(row).collect::<Vec<_>>());
    }
}

fn describe(text: &str, f: &v1::Finished, tokens: &[v1::Token]) -> Value {
    let sources: Vec<Value> = f
        .sources
        .iter()
        .map(|s| json!({"source": s.source, "total": s.total, "owner": s.owner, "licence": s.licence, "tier": tier_name(s.tier)}))
        .collect();
    let usage = f.usage.unwrap_or_default();
    let provenance = f.provenance.clone().unwrap_or_default();
    let document =
        |d: &v1::DocumentShare| json!({"source": d.source, "shard": d.shard, "document": d.document, "share": d.share});
    let left_out = |p: &v1::LeftOutPassage| json!({"source": p.source, "shard": p.shard, "document": p.document, "start": p.start, "log_probability": p.log_probability});
    let passage = |p: &v1::PassageTotal| {
        json!({
            "source": p.source, "shard": p.shard, "document": p.document, "start": p.start,
            "log_probability_gain": p.log_probability_gain, "n_tokens": p.n_tokens,
        })
    };
    json!({
        "text": text, "reason": reason(f), "seed": f.seed,
        "prompt_tokens": usage.prompt_tokens, "new_tokens": usage.new_tokens,
        "epoch": provenance.epoch, "root": provenance.root, "model_hash": provenance.model_hash,
        "parametric_total": f.parametric_total, "sources": sources, "context_sources": f.context_sources,
        "response_id": f.response_id,
        "passages": f.passages.iter().map(passage).collect::<Vec<_>>(), "capped": capped(&f.capped),
        "notices": f.notices.iter().map(|n| json!({"source": n.source, "text": n.text})).collect::<Vec<_>>(),
        "documents": f.documents.iter().map(document).collect::<Vec<_>>(),
        "tokens": tokens.iter().map(|t| json!({
            "id": t.id, "text": t.text, "log_probability": t.log_probability,
            "shares": t.shares.iter().map(|s| json!({"source": s.source, "share": s.share})).collect::<Vec<_>>(),
            "documents": t.documents.iter().map(document).collect::<Vec<_>>(), "capped_sources": t.capped_sources,
            "left_out": t.left_out.iter().map(left_out).collect::<Vec<_>>(),
        })).collect::<Vec<_>>(),
    })
}

/// Sources that a cap held, and for how many tokens.
pub fn capped(sources: &[v1::CappedSource]) -> Value {
    sources.iter().map(|c| json!({"source": c.source, "n_tokens": c.n_tokens})).collect()
}

fn print_end(f: &v1::Finished) {
    let usage = f.usage.unwrap_or_default();
    let provenance = f.provenance.clone().unwrap_or_default();
    let root = provenance.root.get(..12).unwrap_or_default();
    eprintln!(
        "[{} tokens, ended by {}, seed {}, epoch {}, root {root}]",
        usage.new_tokens,
        reason(f),
        f.seed,
        provenance.epoch
    );
    if !f.context_sources.is_empty() {
        eprintln!(
            "[passages before the text: {}; their part in the model's share is not known]",
            f.context_sources.join(", ")
        );
    }
    for one in &f.capped {
        eprintln!("[{} was held at the cap on its influence for {} tokens]", one.source, one.n_tokens);
    }
    if !f.passages.is_empty() {
        eprintln!(
            "[what each passage did, by leaving it out; these are no shares and add up to nothing in particular:]"
        );
    }
    for p in &f.passages {
        let (document, gain) = (p.document.get(..12).unwrap_or_default(), p.log_probability_gain);
        eprintln!("[  {} {document} at {}: {gain:+.3} nats over {} tokens]", p.source, p.start, p.n_tokens);
    }
}
