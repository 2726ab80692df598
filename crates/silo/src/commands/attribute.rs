//! `silo attribute`.

use anyhow::Result;
use clap::{Args, Subcommand};
use serde_json::{Value, json};
use silo_proto::v1;
use silo_proto::v1::compare_without_request::Compared as Ask;
use silo_proto::v1::compare_without_response::Compared;

use super::{RetrievalArguments, Text};
use crate::client::{Target, refused};
use crate::output;

/// Whose text made what.
#[derive(Debug, Subcommand)]
pub enum Attribute {
    /// Where a text stands in the store: its longest runs of words, the rarest first.
    Text(Spans),
    /// The credit of an answer that was given, by its response id.
    Response(OfAnswer),
    /// What some sources do to a text: its probability with and without them.
    Without(Without),
}

/// Where a text stands in the store.
#[derive(Debug, Args)]
pub struct Spans {
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    text: Text,
    /// Words of the shortest runs [default: the server's].
    #[arg(long)]
    min_words: Option<u32>,
    /// At most so many runs [default: the server's].
    #[arg(long)]
    max_spans: Option<u32>,
    /// Use only these sources.
    #[arg(long, value_name = "SOURCE")]
    allow_source: Vec<String>,
    /// Do not use these sources.
    #[arg(long, value_name = "SOURCE")]
    deny_source: Vec<String>,
}

/// The credit of an answer.
#[derive(Debug, Args)]
pub struct OfAnswer {
    #[command(flatten)]
    target: Target,
    /// `response_id` of the answer.
    id: String,
}

/// A text with and without some sources.
#[derive(Debug, Args)]
pub struct Without {
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    text: Text,
    #[command(flatten)]
    retrieval: RetrievalArguments,
    /// A source that is taken never to have been there; may be given several times.
    #[arg(long, value_name = "SOURCE", required = true)]
    source: Vec<String>,
}

impl Attribute {
    /// Runs the command.
    pub async fn run(self, as_json: bool) -> Result<()> {
        match self {
            Self::Text(c) => c.run(as_json).await,
            Self::Response(c) => c.run(as_json).await,
            Self::Without(c) => c.run(as_json).await,
        }
    }
}

impl Spans {
    async fn run(self, as_json: bool) -> Result<()> {
        let filter =
            v1::Filter { allow_sources: self.allow_source, deny_sources: self.deny_source, ..v1::Filter::default() };
        let text = self.text.read()?;
        let request = v1::AttributeTextRequest {
            text: text.clone(),
            filter: Some(filter),
            min_words: self.min_words,
            max_spans: self.max_spans,
            ..v1::AttributeTextRequest::default()
        };
        let connection = self.target.connect().await?;
        let found = connection.attribution().attribute_text(request).await.map_err(refused)?.into_inner();
        let run = |s: &v1::TextSpan| text.get(s.start as usize..s.end as usize).unwrap_or_default().to_owned();
        if as_json {
            let spans: Vec<Value> = found.spans.iter().map(|s| span_json(s, &run(s))).collect();
            let provenance = found.provenance.unwrap_or_default();
            output::json(&json!({"spans": spans, "epoch": provenance.epoch, "root": provenance.root}))?;
        } else {
            if found.spans.is_empty() {
                println!("no run of words of this text stands in the store");
            }
            for s in &found.spans {
                println!("{} words, {} places, rarity {:.1}: {}", s.n_words, s.n_places, s.rarity, run(s));
                s.documents.iter().for_each(print_document);
            }
        }
        connection.close().await
    }
}

fn print_document(d: &v1::SpanDocument) {
    let exact = if d.exact { "to the letter" } else { "word by word" };
    let hash = d.document.get(..16).unwrap_or_default();
    let called = format!("{} {}", if d.uri.is_empty() { hash } else { &d.uri }, d.title);
    println!("    {}, {}, {exact}: {}", d.source, d.licence, output::plain(&called));
    if !d.run.is_empty() {
        let shown = format!("{}[{}]{}", d.before, d.run, d.after);
        println!("        … {} …", output::one_line(&output::plain(&shown), 400));
    }
}

fn span_json(s: &v1::TextSpan, run: &str) -> Value {
    let document = |d: &v1::SpanDocument| {
        json!({
            "source": d.source, "shard": d.shard, "document": d.document, "licence": d.licence, "start": d.start, "end": d.end,
            "exact": d.exact, "uri": d.uri, "title": d.title, "before": d.before, "run": d.run, "after": d.after,
        })
    };
    json!({
        "start": s.start, "end": s.end, "text": run, "n_words": s.n_words, "n_places": s.n_places, "rarity": s.rarity,
        "documents": s.documents.iter().map(document).collect::<Vec<_>>(),
    })
}

impl OfAnswer {
    async fn run(self, as_json: bool) -> Result<()> {
        let connection = self.target.connect().await?;
        let request = v1::AttributeResponseRequest { response_id: self.id };
        let a = connection.attribution().attribute_response(request).await.map_err(refused)?.into_inner();
        if as_json {
            output::json(&answer_json(&a))?;
        } else {
            println!("{} tokens, made at {}, epoch {}", a.tokens.len(), output::time(a.at_unix_ms), a.epoch);
            let percent = |share: f64| format!("{:.1} %", 100.0 * share);
            let row = |(i, t): (usize, &v1::KeptToken)| {
                let named = t.sources.iter().map(|s| format!("{} {}", s.source, percent(s.share)));
                let withdrawn = if t.withdrawn { "documents withdrawn" } else { "" };
                vec![i.to_string(), percent(t.parametric), named.collect::<Vec<_>>().join(", "), withdrawn.to_owned()]
            };
            let rows: Vec<Vec<String>> = a.tokens.iter().enumerate().map(row).collect();
            output::table(&["token", "model", "sources", ""], &rows);
            for d in &a.documents {
                let called = output::plain(&format!("{} {}", d.uri, d.title));
                println!("{}  {}  {called}", d.document.get(..16).unwrap_or_default(), d.licence);
            }
        }
        connection.close().await
    }
}

fn answer_json(a: &v1::AttributeResponseResponse) -> Value {
    let token = |t: &v1::KeptToken| {
        json!({
            "id": t.id, "parametric": t.parametric, "withdrawn": t.withdrawn,
            "sources": t.sources.iter().map(|s| json!({"source": s.source, "share": s.share})).collect::<Vec<_>>(),
            "documents": t.documents.iter().map(|d| json!({"source": d.source, "shard": d.shard, "document": d.document, "share": d.share}))
                .collect::<Vec<_>>(),
        })
    };
    let document = |d: &v1::CreditedDocument| json!({"shard": d.shard, "document": d.document, "licence": d.licence, "uri": d.uri, "title": d.title});
    json!({
        "response_id": a.response_id, "at_unix_ms": a.at_unix_ms, "epoch": a.epoch, "root": a.root,
        "tokens": a.tokens.iter().map(token).collect::<Vec<_>>(),
        "documents": a.documents.iter().map(document).collect::<Vec<_>>(),
        "context_sources": a.context_sources, "text": a.text,
    })
}

fn in_force(p: v1::InForce) -> Value {
    json!({
        "k": p.k, "knn_weight": p.knn_weight, "knn_temperature": p.knn_temperature, "match_tokens": p.match_tokens,
        "match_bonus": p.match_bonus, "gate": p.gate.map(gate),
    })
}

fn gate(g: v1::Gate) -> Value {
    json!({"sharp": g.sharp.map(gate_terms), "broad": g.broad.map(gate_terms)})
}

fn gate_terms(t: v1::GateTerms) -> Value {
    json!({
        "bias": t.bias, "nearest": t.nearest, "spread": t.spread, "model_entropy": t.model_entropy, "neighbor_entropy": t.neighbor_entropy,
        "log_distinct": t.log_distinct,
    })
}

impl Without {
    async fn run(self, as_json: bool) -> Result<()> {
        let score = v1::ScoreRequest {
            input: Some(v1::score_request::Input::Text(self.text.read()?)),
            retrieval: Some(self.retrieval.message()),
            ..v1::ScoreRequest::default()
        };
        let request = v1::CompareWithoutRequest { sources: self.source, compared: Some(Ask::Score(score)) };
        let connection = self.target.connect().await?;
        let found = connection.attribution().compare_without(request).await.map_err(refused)?.into_inner();
        let Some(Compared::Score(c)) = found.compared else { anyhow::bail!("the server compared nothing") };
        if as_json {
            let token = |t: &v1::ComparedToken| {
                json!({
                    "id": t.id, "position": t.position, "log_probability": t.log_probability,
                    "log_probability_without": t.log_probability_without, "total_variation": t.total_variation,
                    "mass": t.mass, "bound": t.bound,
                })
            };
            output::json(&json!({
                "log_probability": c.log_probability, "log_probability_without": c.log_probability_without,
                "epoch": c.provenance.as_ref().map(|p| p.epoch), "root": c.provenance.as_ref().map(|p| &p.root),
                "in_force": c.in_force.map(in_force), "in_force_without": c.in_force_without.map(in_force),
                "tokens": c.tokens.iter().map(token).collect::<Vec<_>>(),
            }))?;
        } else {
            let n = c.tokens.len().max(1) as f64;
            let perplexity = |log_p: f64| (-log_p / n).exp();
            println!("{} tokens", c.tokens.len());
            println!("perplexity with    {:.3}", perplexity(c.log_probability));
            println!("perplexity without {:.3}", perplexity(c.log_probability_without));
            let mean = |of: &dyn Fn(&v1::ComparedToken) -> f64| c.tokens.iter().map(of).sum::<f64>() / n;
            println!(
                "total variation per token {:.4}, mass among the neighbours {:.4}",
                mean(&|t| t.total_variation),
                mean(&|t| t.mass)
            );
        }
        connection.close().await
    }
}
