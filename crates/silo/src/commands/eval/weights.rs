//! `silo eval weights`.

use anyhow::Result;
use serde::Serialize;
use serde_json::json;
use silo_engine::{Evidence, Mode};
use silo_eval::{Gathered, Grid, Loss, RuleKind, Ruled, Scope, choose_kind, tune_rule, tune_shared};

use super::page::{Measured, Table, bits, sum};
use super::{Ground, Run};

/// What is tried: fixed, by distance in more and fewer bins, by relative confidence.
const KINDS: [(&str, RuleKind); 5] = [
    ("fixed", RuleKind::Fixed),
    ("by distance, 8 bins", RuleKind::Distance { bins: 8 }),
    ("by distance, 64 bins", RuleKind::Distance { bins: 64 }),
    ("by distance, 256 bins", RuleKind::Distance { bins: 256 }),
    ("by relative confidence", RuleKind::Confidence),
];

/// Those of them that a server has.
const SERVED: usize = 4;

/// The rule of those that a server has which holds best between the halves of the domains' validation text, tuned on all of it, with its name.
pub fn chosen(ground: &Ground) -> Result<(&'static str, Ruled)> {
    let with = ground.gatherer();
    let (validation, _) = tune_shared(&with, &ground.domains)?;
    let (kind, _) = choose(with.grid, &validation)?;
    let all: Vec<&Evidence> = validation.iter().flat_map(|g| &g.evidence).collect();
    Ok((KINDS[kind].0, tune_rule(KINDS[kind].1, with.grid, &all)?.0))
}

/// The place of the kind, and the loss of each on halves that it was not tuned on, in nats.
fn choose(grid: &Grid, validation: &[Gathered]) -> Result<(usize, Vec<f64>)> {
    let halves = validation.iter().map(|g| g.evidence.split_at(g.evidence.len() / 2));
    let (first, second): (Vec<&[Evidence]>, Vec<&[Evidence]>) = halves.unzip();
    let [first, second] = [first, second].map(|half| half.into_iter().flatten().collect::<Vec<_>>());
    let kinds: Vec<RuleKind> = KINDS[..SERVED].iter().map(|(_, kind)| *kind).collect();
    let (kind, losses) = choose_kind(&kinds, grid, [&first, &second])?;
    Ok((kinds.iter().position(|k| *k == kind).unwrap_or_default(), losses))
}

/// A rule, tuned on the validation text of all domains together, with the whole store.
#[derive(Debug, Serialize)]
struct Row {
    name: &'static str,
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
    let mut rows = Vec::new();
    for (name, kind) in KINDS {
        eprintln!("tuning: {name}");
        let all: Vec<&Evidence> = validation.iter().flat_map(|g| &g.evidence).collect();
        let (tuned, _) = tune_rule(kind, with.grid, &all)?;
        rows.push(row(name, tuned, &validation, &test));
    }
    let (kind, held_out) = choose(with.grid, &validation)?;
    let bytes = validation.iter().map(|g| g.n_bytes).sum::<u64>();
    for (row, nats) in rows.iter_mut().zip(&held_out) {
        row.between_halves = Some(nats / std::f64::consts::LN_2 / bytes as f64);
    }
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
    let gain = fixed.test.bits_per_byte() - chosen.test.bits_per_byte();
    format!(
        "Of the rules that servers have, '{}' is best on halves of the validation text that it was not tuned on: {gain:.4} bits per byte better on test \
         text than a fixed weight.",
        chosen.name
    )
}

const WHAT: &str = "Bits per byte of kNN over the whole store. Each rule was tuned, with k and temperature, on the validation text of all domains \
    together, and scored once on their test text. *Fixed*: one weight everywhere. *By distance*: bins of equally many tokens by the distance of the \
    nearest neighbour, a weight each (Drozdov et al. 2022). *By relative confidence*: a sigmoid of nearest over farthest distance (NEST, Li et al. \
    2024). *Between halves*: each half of the \
    validation text with what was tuned on the other. *Helped* and *hurt*: test tokens that are more and less probable than to the model alone.";

fn row(name: &'static str, tuned: Ruled, validation: &[Gathered], test: &[Gathered]) -> Row {
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
        let first = [row.name.to_owned(), k, temperature, bits(&row.validation), between, bits(&row.test)];
        first.into_iter().chain([percent(row.helped), percent(row.hurt)]).chain(row.domains.iter().map(bits)).collect()
    };
    Table::new(head.iter().chain(domains).copied(), rows.iter().map(cells).collect())
}
