//! `silo eval context`.

use anyhow::{Result, bail};
use serde::Serialize;
use serde_json::json;
use silo_engine::{ContextParameters, Mode};
use silo_eval::{Domain, Loss, Text, View};

use super::page::{Measured, Table, bits, sum};
use super::plot::{Axis, Line, Plot};
use super::{Ground, Run};

/// What the model reads before the text.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(tag = "way", content = "parameters", rename_all = "kebab-case")]
enum Way {
    /// Nothing.
    Alone,
    /// Passages, one after the other.
    Passages(ContextParameters),
    /// Each of two passages by itself.
    Ensemble(ContextParameters),
}

/// A way to retrieve passages.
#[derive(Debug, Serialize)]
struct Row {
    way: Way,
    /// Of all domains.
    validation: Loss,
    test: Loss,
    /// Of each, in their order.
    domains: Vec<Loss>,
}

const WHAT: &str = "Bits per byte of the model with passages of the whole store before the text (retrieve-in-context, Ram et al. 2023), found by BM25 for \
    the last `query` tokens, anew every `stride` tokens. The first row is the model alone; an ensemble of two is the mean of what the model says with each alone before the text. What is chosen is chosen on validation text.";

pub fn run(run: &Run) -> Result<Measured<'static>> {
    let ground = Ground::open(&run.config)?;
    if ground.config.eval.contexts.is_empty() {
        bail!("eval.contexts names no way to retrieve passages: add [[eval.contexts]] tables, as [engine.context]");
    }
    let eval = &ground.config.eval;
    let passages = eval.contexts.iter().copied().map(Way::Passages);
    let ways =
        [Way::Alone].into_iter().chain(passages).chain(eval.context_ensembles.iter().copied().map(Way::Ensemble));
    let rows: Vec<Row> = ways.map(|way| row(&ground, way)).collect::<Result<_>>()?;
    let names = || ground.domains.iter().map(|d| d.source.to_string());
    let head = ["passages", "stride", "query", "length", "validation", "test"].map(str::to_owned);
    let cells = |row: &Row| {
        let (n, p) = match row.way {
            Way::Alone => (String::new(), None),
            Way::Passages(p) => (p.passages.to_string(), Some(p)),
            Way::Ensemble(p) => ("ensemble of 2".to_owned(), Some(p)),
        };
        let of = |show: fn(ContextParameters) -> usize| p.map(|p| show(p).to_string()).unwrap_or_default();
        let first = [n, of(|p| p.stride_tokens), of(|p| p.query_tokens), of(|p| p.max_passage_tokens)].into_iter();
        first.chain([bits(&row.validation), bits(&row.test)]).chain(row.domains.iter().map(bits)).collect()
    };
    let raw = Table::new(head.into_iter().chain(names()), rows.iter().map(cells).collect());
    let axis = Axis::Names(names().collect());
    let plot = Plot { title: "Ways to retrieve passages", labels: ["domain", "bits per byte"], axis };
    Ok(Measured {
        name: "context",
        title: "Ways to retrieve passages",
        what: WHAT,
        finding: finding(&rows),
        whole: json!({"made": ground.facts(&run.config), "ways": rows}),
        tables: raw.markdown(),
        raw,
        picture: Some((plot, rows.iter().map(line).collect())),
    })
}

fn name(way: &Way) -> String {
    let named = |n: String, p: &ContextParameters| {
        let (stride, query, length) = (p.stride_tokens, p.query_tokens, p.max_passage_tokens);
        format!("{n} of {length}, stride {stride}, query {query}")
    };
    match way {
        Way::Alone => "the model alone".into(),
        Way::Passages(p) => named(p.passages.to_string(), p),
        Way::Ensemble(p) => named("ensemble of 2".into(), p),
    }
}

fn line(row: &Row) -> Line {
    let points = row.domains.iter().enumerate().map(|(i, loss)| (i as f64, loss.bits_per_byte())).collect();
    Line { name: name(&row.way), points }
}

fn finding(rows: &[Row]) -> String {
    let on_validation = |row: &&Row| row.validation.bits_per_byte();
    let best = rows.iter().min_by(|a, b| on_validation(a).total_cmp(&on_validation(b)));
    let (Some(alone), Some(best)) = (rows.first(), best) else { return String::new() };
    let gain = alone.test.bits_per_byte() - best.test.bits_per_byte();
    format!("The way that is best on validation text ({}) gains {gain:.4} bits per byte on test text.", name(&best.way))
}

fn row(ground: &Ground, way: Way) -> Result<Row> {
    let with = ground.gatherer();
    let loss = |domain: &Domain, texts: &[Text]| -> Result<Loss> {
        let (mode, context) = match way {
            Way::Ensemble(context) => return Ok(sum(&with.ensemble(domain, texts, context)?)),
            Way::Alone => (Mode::Parametric, None),
            Way::Passages(context) => (Mode::Context, Some(context)),
        };
        let view = View { mode, context, ..View::default() };
        Ok(with.gather_from(domain, texts, &view)?.loss(None))
    };
    let (mut validation, mut domains) = (Loss::default(), Vec::new());
    for domain in &ground.domains {
        validation = validation.and(loss(domain, &domain.validation)?);
        domains.push(loss(domain, &domain.test)?);
    }
    let test = sum(&domains);
    Ok(Row { way, validation, test, domains })
}
