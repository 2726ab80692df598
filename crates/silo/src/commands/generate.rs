//! `silo generate`.

use std::io::Write;

use anyhow::{Context, Result, bail};
use clap::Args;
use serde_json::{Value, json};
use silo_proto::v1;
use silo_proto::v1::generate_chunk::Message;

use super::{RetrievalArguments, Text, tier_name};
use crate::client::{Target, refused};
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
    #[arg(long)]
    temperature: Option<f64>,
    /// Keep the most probable tokens up to this mass.
    #[arg(long)]
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
    /// Credit sources: totals after the text.
    #[arg(long)]
    attribute: bool,
    /// Credit sources of every token, in a table after the text; also the totals.
    #[arg(long)]
    attribute_tokens: bool,
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
        let attribution = match (self.attribute_tokens, self.attribute) {
            (true, _) => v1::AttributionDetail::PerToken,
            (false, true) => v1::AttributionDetail::PerResponse,
            (false, false) => v1::AttributionDetail::Unspecified,
        };
        Ok(v1::GenerateRequest {
            prompt: Some(v1::generate_request::Prompt::Text(self.prompt.read()?)),
            max_new_tokens: self.max_new_tokens,
            sampling: Some(sampling),
            stop: self.stop.clone(),
            retrieval: Some(self.retrieval.message()),
            attribution: attribution.into(),
            ..v1::GenerateRequest::default()
        })
    }

    /// Runs the command.
    pub async fn run(self, as_json: bool) -> Result<()> {
        let request = self.request()?;
        let connection = self.target.connect().await?;
        let mut stream = connection.generation().generate_stream(request).await.map_err(refused)?.into_inner();
        let mut out = std::io::stdout();
        let mut text = String::new();
        let mut show = |piece: &str| -> Result<()> {
            text.push_str(piece);
            if !as_json {
                write!(out, "{piece}").and_then(|()| out.flush()).context("cannot write to standard output")?;
            }
            Ok(())
        };
        let (mut finished, mut tokens) = (None, Vec::new());
        while let Some(chunk) = stream.message().await.map_err(refused)? {
            match chunk.message {
                Some(Message::Token(token)) => {
                    show(&token.text)?;
                    if self.attribute_tokens {
                        tokens.push(token);
                    }
                }
                Some(Message::Finished(f)) => {
                    show(&f.text)?;
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
            print_tokens(&tokens);
            print_end(&finished, self.attribute || self.attribute_tokens);
        }
        drop(stream);
        connection.close().await
    }
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
    json!({
        "text": text, "reason": reason(f), "seed": f.seed,
        "prompt_tokens": usage.prompt_tokens, "new_tokens": usage.new_tokens,
        "epoch": provenance.epoch, "root": provenance.root, "model_hash": provenance.model_hash,
        "parametric_total": f.parametric_total, "sources": sources, "context_sources": f.context_sources,
        "tokens": tokens.iter().map(|t| json!({
            "id": t.id, "text": t.text, "log_probability": t.log_probability,
            "shares": t.shares.iter().map(|s| json!({"source": s.source, "share": s.share})).collect::<Vec<_>>(),
        })).collect::<Vec<_>>(),
    })
}

fn print_end(f: &v1::Finished, attribute: bool) {
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
    if !attribute {
        return;
    }
    if !f.context_sources.is_empty() {
        eprintln!(
            "[passages before the text: {}; their part in the model's share is not known]",
            f.context_sources.join(", ")
        );
    }
    let tokens = usage.new_tokens.max(1) as f64;
    let percent = |share: f64| format!("{:.1} %", 100.0 * share / tokens);
    let mut rows =
        vec![vec![percent(f.parametric_total), "(model)".into(), String::new(), String::new(), String::new()]];
    for s in &f.sources {
        rows.push(vec![
            percent(s.total),
            s.source.clone(),
            tier_name(s.tier).into(),
            s.licence.clone(),
            s.owner.clone(),
        ]);
    }
    output::table(&["share", "source", "tier", "licence", "owner"], &rows);
}
