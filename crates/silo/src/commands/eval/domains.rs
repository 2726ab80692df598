//! `silo eval ppl`.

use std::collections::BTreeSet;

use anyhow::Result;
use serde_json::json;
use silo_core::KnnParameters;
use silo_eval::{DomainResult, Grid, Loss, Measurement, Scope, Setting, Together, evaluate};

use super::page::{Measured, Table, bits};
use super::plot::{Axis, Line, Plot};
use super::reference::{Closed, Reference, find, gaps, references};
use super::sure::{Sure, differences};
use super::{Ground, Run, parameters};
use crate::config::{EvalConfig, ReferenceModel};

const WHAT: &str = "Held-out text of domains, scored by the service's engine: document by document from the beginning of text, in windows of the model's \
    context (or `eval.sizes.window_tokens`) that move by half of it, each token once; in the context modes, passages stand before what fits of the text so \
    far, and are retrieved again every stride. How neighbours weigh was chosen on validation text, a gate where that is better, as `silo eval calibrate` chooses: for each domain and \
    mode apart, and for all domains together (\"calibrated once\"; \"one weight\": the best for all together without a gate); \"not calibrated\" is what the configuration has, \
    tuned on none of these domains. Test text was scored with that. The draws are those of hashes: nothing is random.";

/// Columns of the tables, in the order of a reader's interest.
const COLUMNS: [(&str, Setting, Scope); 12] = [
    ("parametric", Setting::Parametric, Scope::Mixed),
    ("its temperature tuned", Setting::Tempered, Scope::Mixed),
    ("kNN, own shard", Setting::Knn, Scope::Matched),
    ("kNN, whole store", Setting::Knn, Scope::Mixed),
    ("kNN, whole store, one weight", Setting::KnnShared, Scope::Mixed),
    ("kNN, whole store, calibrated once", Setting::KnnCalibrated, Scope::Mixed),
    ("kNN, whole store, not calibrated", Setting::KnnNeutral, Scope::Mixed),
    ("context, own shard", Setting::Context, Scope::Matched),
    ("context, whole store", Setting::Context, Scope::Mixed),
    ("both, own shard", Setting::KnnAndContext, Scope::Matched),
    ("both, whole store", Setting::KnnAndContext, Scope::Mixed),
    ("both, whole store, not calibrated", Setting::KnnAndContextNeutral, Scope::Mixed),
];

/// The column of what a server is calibrated with; the next one is what it has without.
const CALIBRATED: usize = 5;

/// Columns of the picture.
const DRAWN: [usize; 5] = [0, 2, 5, 6, 8];

pub fn run(run: &Run) -> Result<Measured<'static>> {
    let ground = Ground::open(&run.config)?;
    let references = references(&ground)?;
    let (results, together) = evaluate(&ground.gatherer())?;
    let closed = gaps(&results, &references, &COLUMNS[1..], ground.config.eval.min_gap_bits);
    let sure = differences(&results, &references, &[COLUMNS[CALIBRATED], COLUMNS[CALIBRATED + 1]]);
    let tables = markdown(&results, (&together, &ground.config.eval.grid), &references, (&closed, &sure));
    let whole = json!({
        "made": ground.facts(&run.config), "together": together, "domains": results, "references": references, "gap_closed": closed,
        "differences": sure,
    });
    let axis = Axis::Names(results.iter().map(|r| r.domain.clone()).collect());
    let plot = Plot { title: "Domains", labels: ["domain", "bits per byte on test text"], axis };
    Ok(Measured {
        name: "domains",
        title: "Domains",
        what: WHAT,
        finding: finding(&results, &closed, &sure) + &unequal(&ground.config),
        whole,
        raw: raw(&results, &references),
        tables,
        picture: Some((plot, lines(&results, &references))),
    })
}

fn finding(results: &[DomainResult], closed: &[Closed], sure: &[Sure]) -> String {
    let test = |r: &DomainResult, setting, scope| find(r, setting, scope).map_or(f64::NAN, |m| m.test.bits_per_byte());
    let n = results.len();
    let better = |setting: Setting, scope: Scope| {
        let is_better = |r: &&DomainResult| test(r, setting, scope) < test(r, Setting::Parametric, Scope::Mixed);
        results.iter().filter(is_better).count()
    };
    let mut out = format!(
        "Neighbours from one store of all sources make the model better on {} of {n} domains, from the domain's own shard on {}; passages from the \
         whole store on {}.",
        better(Setting::KnnCalibrated, Scope::Mixed),
        better(Setting::Knn, Scope::Matched),
        better(Setting::Context, Scope::Mixed)
    );
    for Closed { reference, gap, .. } in closed.iter().filter(|c| c.setting == COLUMNS[CALIBRATED].0) {
        out += &format!(
            " Gap to '{reference}' closed by the whole store: {} in mean perplexity, {} per domain and capped, {} in log-perplexity; it is beaten on {} \
             of {}.",
            share(gap.mean_perplexity),
            share(gap.capped),
            share(gap.log_perplexity),
            gap.n_beaten,
            gap.n_domains
        );
        let of = |s: &&Sure| s.reference == *reference && s.setting == COLUMNS[CALIBRATED].0;
        out += &sure.iter().find(of).map(Sure::in_words).unwrap_or_default();
    }
    out
}

/// Says so, if a model to compare with has learnt other amounts of text than the store holds.
fn unequal(config: &EvalConfig) -> String {
    let holds = config.eval.sizes.store_bytes;
    let other = |r: &&ReferenceModel| r.learnt_bytes != 0 && r.learnt_bytes != holds;
    let say = |r: &ReferenceModel| {
        format!(
            " '{}' has learnt about {} bytes of each domain, of which the store holds {holds}.",
            r.name, r.learnt_bytes
        )
    };
    config.eval.references.iter().filter(other).map(say).collect()
}

fn share(part: Option<f64>) -> String {
    part.map_or("no gap".to_owned(), |part| format!("{:.0} %", 100.0 * part))
}

fn lines(results: &[DomainResult], references: &[Reference]) -> Vec<Line> {
    let line = |name: &str, of: &dyn Fn(usize) -> Option<f64>| Line {
        name: name.to_owned(),
        points: (0..results.len()).filter_map(|i| Some((i as f64, of(i)?))).collect(),
    };
    let columns = DRAWN.map(|column| {
        let (name, setting, scope) = COLUMNS[column];
        line(name, &|i| find(&results[i], setting, scope).map(|m| m.test.bits_per_byte()))
    });
    let others = references
        .iter()
        .filter(|r| r.temperatures.is_none())
        .map(|r| line(&r.name, &|i| r.test.get(i).map(Loss::bits_per_byte)));
    columns.into_iter().chain(others).collect()
}

/// A row for each cell and each model to compare with: all that was measured.
fn raw(results: &[DomainResult], references: &[Reference]) -> Table {
    let head = [
        "domain",
        "setting",
        "scope",
        "k",
        "knn_weight",
        "knn_temperature",
        "match_bonus",
        "weight_rule",
        "model_temperature",
        "validation_nats",
        "validation_tokens",
        "validation_bytes",
        "test_nats",
        "test_tokens",
        "test_bytes",
        "test_bits_per_byte",
        "test_perplexity",
    ];
    let loss = |l: &Loss| [l.nats.to_string(), l.n_tokens.to_string(), l.n_bytes.to_string()];
    let figures = |l: &Loss| [format!("{:.6}", l.bits_per_byte()), format!("{:.4}", l.perplexity())];
    let text = |value: serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    let mut rows = Vec::new();
    for (i, result) in results.iter().enumerate() {
        for m in &result.measurements {
            let number = |x: Option<f64>| x.map(|x| x.to_string()).unwrap_or_default();
            let p = m.parameters;
            let rule = p.map_or("", |p| if p.gate.is_some() { "gate" } else { "fixed" }).to_owned();
            let shown: [fn(KnnParameters) -> f64; 4] =
                [|p| p.k as f64, |p| p.knn_weight, |p| p.knn_temperature, |p| p.match_bonus];
            let of = shown.map(|show| number(p.map(show)));
            let knn = of.into_iter().chain([rule, number(m.model_temperature)]);
            let first = [result.domain.clone(), text(json!(m.setting)), text(json!(m.scope))];
            let losses = [loss(&m.validation), loss(&m.test)].concat();
            rows.push(first.into_iter().chain(knn).chain(losses).chain(figures(&m.test)).collect());
        }
        for reference in references {
            let first = [result.domain.clone(), format!("reference: {}", reference.name), "none".into()];
            let nothing = vec![String::new(); 9];
            let test = &reference.test[i];
            rows.push(first.into_iter().chain(nothing).chain(loss(test)).chain(figures(test)).collect());
        }
    }
    Table::new(head, rows)
}

fn markdown(
    results: &[DomainResult],
    (together, grid): (&Together, &Grid),
    references: &[Reference],
    (closed, sure): (&[Closed], &[Sure]),
) -> String {
    let mut out = String::new();
    for (title, show) in [
        ("Bits per byte on test text", (|m| bits(&m.test)) as fn(&Measurement) -> String),
        ("Perplexity per token on test text", |m| format!("{:.2}", m.test.perplexity())),
    ] {
        let row = |result: &DomainResult| {
            let cell = |(_, setting, scope)| find(result, setting, scope).map(show).unwrap_or_default();
            std::iter::once(result.domain.clone()).chain(COLUMNS.map(cell)).collect()
        };
        let head = ["domain"].into_iter().chain(COLUMNS.map(|(name, ..)| name));
        let table = Table::new(head, results.iter().map(row).collect());
        out += &format!("## {title}\n\n{}\n", table.markdown());
    }
    let [shared, calibrated] = [together.shared.parameters, together.calibrated.parameters];
    out += &format!("One weight: {}. Calibrated once: {}.\n", parameters(&shared), parameters(&calibrated));
    let all = ("all together", [shared, calibrated].iter().flat_map(|p| grid.edges(p)).collect::<BTreeSet<_>>());
    let edges = results.iter().map(|r| (r.domain.as_str(), r.edges.clone())).chain([all]);
    let edges = edges.filter(|(_, edges)| !edges.is_empty());
    let edges: Vec<String> = edges.map(|(of, edges)| format!("{of} ({})", join(edges))).collect();
    if !edges.is_empty() {
        out += &format!("At an end of the grid, so that more may be gained beyond it: {}.\n", edges.join(", "));
    }
    if references.is_empty() {
        return out;
    }
    let domains: Vec<&str> = results.iter().map(|r| r.domain.as_str()).collect();
    out + &compared(results, references) + &gap_table(closed) + &super::sure::table(&domains, sure)
}

fn join(names: BTreeSet<&str>) -> String {
    names.into_iter().collect::<Vec<_>>().join(", ")
}

/// What other models say of the same text alone.
fn compared(results: &[DomainResult], references: &[Reference]) -> String {
    let own = ["domain", "parametric", "kNN, whole store, calibrated once", "not calibrated"];
    let head = own.into_iter().chain(references.iter().map(|r| r.name.as_str()));
    let row = |(i, result): (usize, &DomainResult)| {
        let cell = |setting| find(result, setting, Scope::Mixed).map(|m| bits(&m.test)).unwrap_or_default();
        let with_store = [Setting::KnnCalibrated, Setting::KnnNeutral].map(cell);
        let own = [result.domain.clone(), cell(Setting::Parametric)].into_iter().chain(with_store);
        own.chain(references.iter().map(|r| bits(&r.test[i]))).collect()
    };
    let table = Table::new(head, results.iter().enumerate().map(row).collect());
    format!("\n## Models without a store, bits per byte on test text\n\n{}", table.markdown())
}

/// How much of the gap to those that have learnt the domains is closed.
fn gap_table(closed: &[Closed]) -> String {
    let head = [
        "reference",
        "x",
        "of mean perplexity",
        "per domain, capped",
        "of log-perplexity",
        "domains without a gap",
        "beaten",
    ];
    let row = |Closed { reference, setting, gap }: &Closed| {
        let shares = [gap.mean_perplexity, gap.capped, gap.log_perplexity].map(share);
        let counts = [gap.n_without_a_gap.to_string(), format!("{} of {}", gap.n_beaten, gap.n_domains)];
        [reference.clone(), setting.clone()].into_iter().chain(shares).chain(counts).collect()
    };
    let table = Table::new(head, closed.iter().map(row).collect());
    format!(
        "\n## Gap closed\n\n(LM − x) / (LM − reference): of mean perplexities, as the paper; of each domain's, at most 1, averaged; of mean \
         log-perplexities. Beaten: domains in which x is better than the reference.\n\n{}",
        table.markdown()
    )
}
