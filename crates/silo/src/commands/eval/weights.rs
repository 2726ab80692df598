//! `silo eval weights`.

use anyhow::{Context, Result};
use serde::Serialize;
use serde_json::json;
use silo_engine::{Evidence, Mode, Sums};
use silo_eval::{Gathered, Loss, Points, RuleKind, Ruled, Scope, Together, tune_rule};

use super::page::{Measured, Table, bits, sum};
use super::plot::{Line, Plot};
use super::{Ground, Run};

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

/// Kinds of rules, each tuned without and with matches; the first is kNN-LM as it was published.
const KINDS: [RuleKind; 6] = [
    RuleKind::Fixed,
    RuleKind::Distance { bins: 8 },
    RuleKind::Distance { bins: 64 },
    RuleKind::Distance { bins: 256 },
    RuleKind::Confidence,
    RuleKind::Gate,
];

pub fn run(run: &Run) -> Result<Measured<'static>> {
    let ground = Ground::open(&run.config)?;
    let with = ground.gatherer();
    let (from, Together { calibrated: chosen, .. }) = Together::choose(&with)?;
    let test = |domain| with.gather(domain, &domain.test, Scope::Mixed, Mode::Knn);
    let test: Vec<Gathered> = ground.domains.iter().map(test).collect::<Result<_, _>>()?;
    let (all, bytes) = (from.evidence(), from.n_bytes());
    let points = Points::of(with.grid, &all)?;
    let mut rows = Vec::new();
    // Where there is nothing but 0 to choose, all are without.
    let with_matches = with.grid.match_bonus.iter().any(|bonus| *bonus != 0.0);
    let both = [false, true].into_iter().filter(|matches| with_matches || !matches);
    for (matches, kind) in both.flat_map(|matches| KINDS.map(|kind| (matches, kind))) {
        let name = if matches { format!("{}, with matches", kind.name()) } else { kind.name() };
        eprintln!("tuning: {name}");
        let (tuned, _) = tune_rule(kind, &points, matches)?;
        let served = RuleKind::SERVED.iter().position(|served| matches == with_matches && *served == kind);
        let nats = served.map(|i| chosen.between_halves[i]);
        let between_halves = nats.map(|nats| nats / std::f64::consts::LN_2 / bytes as f64);
        rows.push(Row { between_halves, ..row(name, tuned, &from.mixed, &test) });
    }
    let is_chosen = |row: &&Row| row.tuned.parameters() == Some(chosen.parameters);
    let row = rows
        .iter()
        .find(is_chosen)
        .context("what is chosen is none of the rules: eval.cache is of another build; delete it")?;
    let finding = finding(&rows[0], row);
    let names: Vec<&str> = ground.domains.iter().map(|d| d.source.as_str()).collect();
    let raw = table(&rows, &names);
    Ok(Measured {
        name: "weights",
        title: "How much neighbours weigh at a token",
        what: WHAT,
        finding,
        whole: json!({"made": ground.facts(&run.config), "rules": &rows}),
        tables: raw.markdown(),
        raw,
        picture: Some((
            Plot::rows("Rules for the neighbours' weight", "bits per byte", rows.iter().map(|row| row.name.clone())),
            vec![
                line("test text", &rows, |row| &row.test),
                line("validation text, tuned on it", &rows, |row| &row.validation),
            ],
        )),
    })
}

fn finding(fixed: &Row, chosen: &Row) -> String {
    let of = format!(
        "Of the rules that servers have, '{}' is best on halves of the validation text that it was not tuned on",
        chosen.name
    );
    let gain = fixed.test.bits_per_byte() - chosen.test.bits_per_byte();
    if gain >= 0.0 {
        format!("{of}: {gain:.4} bits per byte better on test text than a fixed weight and distances alone.")
    } else {
        format!("{of}; on test text it is {:.4} bits per byte worse than a fixed weight and distances alone.", -gain)
    }
}

const WHAT: &str = "Bits per byte of kNN over the whole store. Each rule was tuned, with k, temperature and match bonus, on the validation text of all domains \
    together, and scored once on their test text. *Fixed*: one weight everywhere. *By distance*: bins of equally many tokens by the distance of the \
    nearest neighbour, a weight each (Drozdov et al. 2022). *By relative confidence*: a sigmoid of nearest over farthest distance (NEST, Li et al. \
    2024). *Gate*: shares of the model, of the neighbours at half of the temperature and of them at twice of it, a softmax of sums over distances of the nearest and the \
    64th nearest neighbour, entropies of what model and neighbours say, and the number of different values. *With \
    matches*: a neighbour gains for each token before it that is the text's as well. *Between halves*: each half of the \
    validation text with what was tuned on the other. *Helped* and *hurt*: test tokens that are more and less probable than to the model alone.";

fn row(name: String, tuned: Ruled, validation: &[Gathered], test: &[Gathered]) -> Row {
    let mut sums = Sums::default();
    let (mut n, mut n_helped, mut n_hurt) = (0, 0, 0);
    let validation: Vec<Loss> = validation.iter().map(|g| g.loss_by(|e| tuned.log_probability(e, &mut sums))).collect();
    let mut on_test = |e: &Evidence| {
        let (with, alone) = (tuned.log_probability(e, &mut sums), e.parametric_log_probability);
        n += 1;
        n_helped += usize::from(with > alone);
        n_hurt += usize::from(with < alone);
        with
    };
    let domains: Vec<Loss> = test.iter().map(|g| g.loss_by(&mut on_test)).collect();
    let share = |of: usize| of as f64 / n.max(1) as f64;
    Row {
        name,
        validation: sum(&validation),
        between_halves: None,
        test: sum(&domains),
        helped: share(n_helped),
        hurt: share(n_hurt),
        domains,
        tuned,
    }
}

fn line(name: &str, rows: &[Row], of: fn(&Row) -> &Loss) -> Line {
    Line::of(name, rows.iter().map(|row| of(row).bits_per_byte()))
}

fn table(rows: &[Row], domains: &[&str]) -> Table {
    let head = ["rule", "k", "temperature", "match bonus", "validation", "between halves", "test", "helped", "hurt"];
    let cells = |row: &Row| {
        let percent = |part: f64| format!("{:.1} %", 100.0 * part);
        let knn = row.tuned.knn;
        let tuned = [knn.k.to_string(), knn.knn_temperature.to_string(), knn.match_bonus.to_string()];
        let between = row.between_halves.map(|bits| format!("{bits:.4}")).unwrap_or_default();
        let losses = [bits(&row.validation), between, bits(&row.test)];
        [row.name.clone()]
            .into_iter()
            .chain(tuned)
            .chain(losses)
            .chain([percent(row.helped), percent(row.hurt)])
            .chain(row.domains.iter().map(bits))
            .collect()
    };
    Table::new(head.iter().chain(domains).copied(), rows.iter().map(cells).collect())
}
