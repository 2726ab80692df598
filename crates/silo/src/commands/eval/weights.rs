//! `silo eval weights`.

use anyhow::Result;
use serde::Serialize;
use serde_json::json;
use silo_engine::{Evidence, Mode};
use silo_eval::{Chosen, Gathered, Loss, Points, RuleKind, Ruled, Scope, choose_rule, tune_rule, tune_shared};

use super::page::{Measured, Table, bits, sum};
use super::{Ground, Run};

/// What a server is calibrated with.
pub fn chosen(ground: &Ground) -> Result<Chosen> {
    let with = ground.gatherer();
    Ok(choose_rule(with.grid, &tune_shared(&with, &ground.domains)?.0)?)
}

/// A rule, tuned on the validation text of all domains together, with the whole store.
#[derive(Debug, Serialize)]
struct Row {
    name: String,
    tuned: Ruled,
    validation: Loss,
    /// Bits per byte on each half of the validation text, tuned on the other, of a rule that servers have.
    between_halves: Option<f64>,
    test: Loss,
    /// Of each domain, in their order.
    domains: Vec<Loss>,
    /// Shares of test tokens that are more and less probable than to the model alone.
    helped: f64,
    hurt: f64,
}

pub fn run(run: &Run) -> Result<Measured<'static>> {
    let ground = Ground::open(&run.config)?;
    let with = ground.gatherer();
    let (validation, _) = tune_shared(&with, &ground.domains)?;
    let test = |domain| with.gather(domain, &domain.test, Scope::Mixed, Mode::Knn);
    let test: Vec<Gathered> = ground.domains.iter().map(test).collect::<Result<_, _>>()?;
    let chosen = choose_rule(with.grid, &validation)?;
    let bytes = validation.iter().map(|g| g.n_bytes).sum::<u64>();
    let all: Vec<&Evidence> = validation.iter().flat_map(|g| &g.evidence).collect();
    let points = Points::of(with.grid, &all)?;
    let mut rows = Vec::new();
    for (i, kind) in RuleKind::SERVED.into_iter().chain([RuleKind::Confidence]).enumerate() {
        eprintln!("tuning: {}", kind.name());
        let (tuned, _) = tune_rule(kind, &points)?;
        let nats = chosen.between_halves.get(i);
        let between_halves = nats.map(|nats| nats / std::f64::consts::LN_2 / bytes as f64);
        rows.push(Row { between_halves, ..row(kind.name(), tuned, &validation, &test) });
    }
    let kind = RuleKind::SERVED.iter().position(|k| *k == chosen.kind).unwrap_or_default();
    let names: Vec<&str> = ground.domains.iter().map(|d| d.source.as_str()).collect();
    let raw = table(&rows, &names);
    Ok(Measured {
        name: "weights",
        title: "How much neighbours weigh at a token",
        what: WHAT,
        finding: finding(&rows[0], &rows[kind]),
        whole: json!({"made": ground.facts(run), "rules": rows}),
        tables: raw.markdown(),
        raw,
        picture: None,
    })
}

fn finding(fixed: &Row, chosen: &Row) -> String {
    let of = format!(
        "Of the rules that servers have, '{}' is best on halves of the validation text that it was not tuned on",
        chosen.name
    );
    let gain = fixed.test.bits_per_byte() - chosen.test.bits_per_byte();
    match (chosen.name == fixed.name, gain >= 0.0) {
        (true, _) => format!("{of}."),
        (_, true) => format!("{of}: {gain:.4} bits per byte better on test text than a fixed weight."),
        (_, false) => format!("{of}; on test text it is {:.4} bits per byte worse than a fixed weight.", -gain),
    }
}

const WHAT: &str = "Bits per byte of kNN over the whole store. Each rule was tuned, with k and temperature, on the validation text of all domains \
    together, and scored once on their test text. *Fixed*: one weight everywhere. *By distance*: bins of equally many tokens by the distance of the \
    nearest neighbour, a weight each (Drozdov et al. 2022). *By relative confidence*: a sigmoid of nearest over farthest distance (NEST, Li et al. \
    2024). *Between halves*: each half of the \
    validation text with what was tuned on the other. *Helped* and *hurt*: test tokens that are more and less probable than to the model alone.";

fn row(name: String, tuned: Ruled, validation: &[Gathered], test: &[Gathered]) -> Row {
    let loss = |of: &Gathered| of.loss_by(|e| tuned.log_probability(e));
    let domains: Vec<Loss> = test.iter().map(loss).collect();
    let all: Vec<&Evidence> = test.iter().flat_map(|g| &g.evidence).collect();
    let share = |better: &dyn Fn(f64, f64) -> bool| {
        let n = all.iter().filter(|e| better(tuned.log_probability(e), e.parametric_log_probability)).count();
        n as f64 / all.len().max(1) as f64
    };
    Row {
        name,
        validation: sum(&validation.iter().map(loss).collect::<Vec<_>>()),
        between_halves: None,
        test: sum(&domains),
        helped: share(&|with, alone| with > alone),
        hurt: share(&|with, alone| with < alone),
        domains,
        tuned,
    }
}

fn table(rows: &[Row], domains: &[&str]) -> Table {
    let head = ["rule", "k", "temperature", "validation", "between halves", "test", "helped", "hurt"];
    let cells = |row: &Row| {
        let percent = |part: f64| format!("{:.1} %", 100.0 * part);
        let (k, temperature) = (row.tuned.k.to_string(), row.tuned.knn_temperature.to_string());
        let between = row.between_halves.map(|bits| format!("{bits:.4}")).unwrap_or_default();
        let first = [row.name.clone(), k, temperature, bits(&row.validation), between, bits(&row.test)];
        first.into_iter().chain([percent(row.helped), percent(row.hurt)]).chain(row.domains.iter().map(bits)).collect()
    };
    Table::new(head.iter().chain(domains).copied(), rows.iter().map(cells).collect())
}
