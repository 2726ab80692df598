//! `silo eval context`.

use anyhow::{Result, bail};
use serde::Serialize;
use serde_json::json;
use silo_engine::{ContextParameters, Mode};
use silo_eval::{Loss, View};

use super::{Ground, Run, bits, markdown_table, publish};
use crate::output;

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

pub fn run(run: &Run, as_json: bool) -> Result<()> {
    let ground = Ground::open(&run.config)?;
    if ground.config.eval.contexts.is_empty() {
        bail!("eval.contexts names no way to retrieve passages: add [[eval.contexts]] tables, as [engine.context]");
    }
    let ways = [None].into_iter().chain(ground.config.eval.contexts.iter().copied().map(Some));
    let rows: Vec<Row> = ways.map(|parameters| row(&ground, parameters)).collect::<Result<_>>()?;
    let head = ["passages", "stride", "query", "length", "validation", "test"].map(str::to_owned);
    let head: Vec<String> = head.into_iter().chain(ground.domains.iter().map(|d| d.source.to_string())).collect();
    let cells = |row: &Row| {
        let of = |show: fn(&ContextParameters) -> usize| row.parameters.as_ref().map(|p| show(p).to_string());
        let first = [of(|p| p.passages), of(|p| p.stride_tokens), of(|p| p.query_tokens), of(|p| p.max_passage_tokens)];
        let first = first.into_iter().map(Option::unwrap_or_default);
        first.chain([bits(&row.validation), bits(&row.test)]).chain(row.domains.iter().map(bits)).collect()
    };
    let table = markdown_table(&head, &rows.iter().map(cells).collect::<Vec<_>>());
    let whole = json!({"made": ground.facts(run), "ways": rows});
    publish(run, "context", ("Ways to retrieve passages", WHAT), &whole, &table)?;
    if as_json {
        return output::json(&whole);
    }
    print!("{table}");
    Ok(())
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
    let test = domains.iter().copied().fold(Loss::default(), Loss::and);
    Ok(Row { parameters, validation, test, domains })
}
