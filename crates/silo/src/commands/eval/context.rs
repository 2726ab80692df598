//! `silo eval context`.

use anyhow::{Result, bail};
use serde::Serialize;
use serde_json::json;
use silo_engine::{ContextParameters, Mode};
use silo_eval::{Loss, View};

use super::page::{Measured, Table, bits, sum};
use super::plot::{Axis, Line, Plot};
use super::{Ground, Run};

/// A way to retrieve passages.
#[derive(Debug, Serialize)]
struct Row {
    /// `None` for the model alone.
    parameters: Option<ContextParameters>,
    /// Of all domains.
    validation: Loss,
    test: Loss,
    /// Of each, in their order.
    domains: Vec<Loss>,
}

const WHAT: &str = "Bits per byte of the model with passages of the whole store before the text (retrieve-in-context, Ram et al. 2023), found by BM25 for \
    the last `query` tokens, anew every `stride` tokens. The first row is the model alone. What is chosen is chosen on validation text.";

pub fn run(run: &Run) -> Result<Measured<'static>> {
    let ground = Ground::open(&run.config)?;
    if ground.config.eval.contexts.is_empty() {
        bail!("eval.contexts names no way to retrieve passages: add [[eval.contexts]] tables, as [engine.context]");
    }
    let ways = [None].into_iter().chain(ground.config.eval.contexts.iter().copied().map(Some));
    let rows: Vec<Row> = ways.map(|parameters| row(&ground, parameters)).collect::<Result<_>>()?;
    let names = || ground.domains.iter().map(|d| d.source.to_string());
    let head = ["passages", "stride", "query", "length", "validation", "test"].map(str::to_owned);
    let cells = |row: &Row| {
        let of = |show: fn(&ContextParameters) -> usize| row.parameters.as_ref().map(|p| show(p).to_string());
        let first = [of(|p| p.passages), of(|p| p.stride_tokens), of(|p| p.query_tokens), of(|p| p.max_passage_tokens)];
        let first = first.into_iter().map(Option::unwrap_or_default);
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

fn name(parameters: &Option<ContextParameters>) -> String {
    parameters.map_or("the model alone".into(), |p| {
        let (n, stride, query, length) = (p.passages, p.stride_tokens, p.query_tokens, p.max_passage_tokens);
        format!("{n} of {length}, stride {stride}, query {query}")
    })
}

fn line(row: &Row) -> Line {
    let points = row.domains.iter().enumerate().map(|(i, loss)| (i as f64, loss.bits_per_byte())).collect();
    Line { name: name(&row.parameters), points }
}

fn finding(rows: &[Row]) -> String {
    let on_validation = |row: &&Row| row.validation.bits_per_byte();
    let best = rows.iter().min_by(|a, b| on_validation(a).total_cmp(&on_validation(b)));
    let (Some(alone), Some(best)) = (rows.first(), best) else { return String::new() };
    let gain = alone.test.bits_per_byte() - best.test.bits_per_byte();
    format!(
        "The way that is best on validation text ({}) gains {gain:.4} bits per byte on test text.",
        name(&best.parameters)
    )
}

fn row(ground: &Ground, parameters: Option<ContextParameters>) -> Result<Row> {
    let with = ground.gatherer();
    let mode = if parameters.is_some() { Mode::Context } else { Mode::Parametric };
    let view = View { mode, context: parameters, ..View::default() };
    let (mut validation, mut domains) = (Loss::default(), Vec::new());
    for domain in &ground.domains {
        validation = validation.and(with.gather_from(domain, &domain.validation, &view)?.loss(None));
        domains.push(with.gather_from(domain, &domain.test, &view)?.loss(None));
    }
    let test = sum(&domains);
    Ok(Row { parameters, validation, test, domains })
}
