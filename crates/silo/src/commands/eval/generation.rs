//! `silo eval generation`.

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use serde_json::json;
use silo_core::Calibration;
use silo_engine::{Engine, EngineConfig, GuardConfig, Mode, Retrieval};
use silo_eval::{Domain, Loss, Prompt, StoredWords, distinct, divergence, generate, judged};

use super::page::{Measured, Table, bits, sum};
use super::plot::{Line, Plot};
use super::reference::Alone;
use super::{Ground, Run};

const WHAT: &str = "Pieces of each domain's test text, from as many of its documents as there are, begin a text, which is gone on with at temperature 1, in several ways; neighbours as a server has them that was calibrated on the domains' \
    validation text. *Judge*: bits per byte that \
    the first of `eval.references` which has learnt the domains says of what was made, behind its prompt; what really stands there is judged in the first \
    row, and the nearer to it the better: text that repeats itself is easy to predict. *Distinct*: different runs of four tokens among all. \
    *Divergence*: Jensen-Shannon divergence in bits between the tokens made and those of the domain's validation text, mean of the domains. *Longest run*: words \
    of the longest run in a text that stands in the store like that and has generated words in it. *Refused*: draws that the verbatim guard refused.";

/// Tokens of the runs that are counted as different.
const RUN: usize = 4;

/// A way to go on.
struct Way {
    name: &'static str,
    /// `None` for what really stands there.
    mode: Option<Mode>,
    guarded: bool,
}

const WAYS: [Way; 6] = [
    Way { name: "the text itself", mode: None, guarded: false },
    Way { name: "the model alone", mode: Some(Mode::Parametric), guarded: true },
    Way { name: "neighbours, no guard", mode: Some(Mode::Knn), guarded: false },
    Way { name: "neighbours, guard", mode: Some(Mode::Knn), guarded: true },
    Way { name: "passages, guard", mode: Some(Mode::Context), guarded: true },
    Way { name: "both, guard", mode: Some(Mode::KnnAndContext), guarded: true },
];

/// What came of a way.
#[derive(Debug, Serialize)]
struct Row {
    way: &'static str,
    /// Of all domains.
    judge: Loss,
    /// Of each, in their order.
    domains: Vec<Loss>,
    distinct: f64,
    divergence: f64,
    /// Of each text, rising.
    longest_runs: Vec<usize>,
    refused: u64,
}

/// What all ways work with.
struct Scene<'a> {
    ground: &'a Ground,
    prompts: Vec<Vec<Prompt>>,
    stored: StoredWords,
    judge: Alone,
    calibration: Calibration,
    guarded: Engine,
    unguarded: Engine,
}

pub fn run(run: &Run) -> Result<Measured<'static>> {
    let ground = Ground::open(&run.config)?;
    let scene = Scene::of(&ground)?;
    let rows: Vec<Row> = WAYS.iter().map(|way| scene.row(way)).collect::<Result<_>>()?;
    let raw = table(&ground, &rows);
    Ok(Measured {
        name: "generation",
        title: "What is generated",
        what: WHAT,
        finding: finding(&rows),
        whole: json!({
            "made": ground.facts(&run.config), "sizes": ground.config.eval.generation, "calibration": scene.calibration, "guard": ground.config.engine.guard, "ways": &rows,
        }),
        tables: raw.markdown(),
        raw,
        picture: Some((
            Plot::rows("What is generated", "bits", rows.iter().map(|row| row.way.to_owned())),
            vec![
                Line::of("per byte, by the judge", rows.iter().map(|row| row.judge.bits_per_byte())),
                Line::of("of divergence from the domain", rows.iter().map(|row| row.divergence)),
            ],
        )),
    })
}

impl<'a> Scene<'a> {
    fn of(ground: &'a Ground) -> Result<Self> {
        let mut references = ground.config.eval.references.iter();
        let judge = references.find(|r| r.knows_domains && !r.is_per_domain());
        let judge = judge
            .context("eval.references names no model that knows the domains: it is the judge of what is generated")?;
        let calibration = ground.calibration(&ground.chosen()?);
        let guard = ground.config.engine.guard.clone();
        let engine = |guard: GuardConfig| {
            let stream_buffer_tokens = ground.config.eval.generation.new_tokens + 1;
            let config = EngineConfig { guard, stream_buffer_tokens, ..ground.config.engine.clone() };
            let (model, tokenizer, store) = (ground.model.clone(), ground.tokenizer.clone(), ground.store.clone());
            Engine::start(config, Some(calibration.clone()), model, tokenizer, store).context("cannot start the engine")
        };
        Ok(Self {
            ground,
            prompts: prompts(ground)?,
            stored: StoredWords::of(ground.domains.iter().flat_map(|d| &d.stored)),
            judge: Alone::open(ground, &judge.path)?,
            guarded: engine(guard.clone())?,
            unguarded: engine(GuardConfig { public_domain: 0, permissive: 0, attribution: 0, restricted: 0, ..guard })?,
            calibration,
        })
    }

    fn row(&self, way: &Way) -> Result<Row> {
        eprintln!("generating: {}", way.name);
        let (mut all, mut domains, mut divergences, mut longest_runs, mut refused) =
            (Vec::new(), Vec::new(), Vec::new(), Vec::new(), 0);
        for (domain, prompts) in self.ground.domains.iter().zip(&self.prompts) {
            let made = match way.mode {
                None => prompts.iter().map(|p| p.continuation.clone()).collect(),
                Some(mode) => {
                    let engine = if way.guarded { &self.guarded } else { &self.unguarded };
                    let new_tokens = self.ground.config.eval.generation.new_tokens;
                    let generated = generate(engine, prompts, &Retrieval { mode, ..Retrieval::default() }, new_tokens)?;
                    refused += generated.refused;
                    generated.tokens
                }
            };
            let text = |tokens: &[u32]| self.ground.tokenizer.decode(tokens);
            let texts: Vec<(String, String)> =
                prompts.iter().zip(&made).map(|(p, m)| (text(&p.tokens), text(m))).collect();
            longest_runs.extend(texts.iter().map(|(prompt, made)| self.stored.longest_run(prompt, made)));
            domains.push(judged(&self.judge.engine, &*self.judge.tokenizer, &texts)?);
            let held_out = domain.validation.iter().flat_map(|text| &text.tokens);
            divergences.push(divergence(made.iter().flatten(), held_out));
            all.extend(made);
        }
        longest_runs.sort_unstable();
        let divergence = divergences.iter().sum::<f64>() / divergences.len().max(1) as f64;
        let (judge, distinct) = (sum(&domains), distinct(&all, RUN));
        Ok(Row { way: way.name, judge, domains, distinct, divergence, longest_runs, refused })
    }
}

/// As many as asked for, of each domain.
fn prompts(ground: &Ground) -> Result<Vec<Vec<Prompt>>> {
    let sizes = ground.config.eval.generation;
    let (length, window) = (sizes.prompt_tokens + sizes.new_tokens, ground.model.card().context_tokens);
    ensure!(length < window, "eval.generation asks for texts of {length} tokens; the model's window holds {window}");
    let of = |domain: &Domain| {
        let (prompts, name) = (Prompt::of(domain, sizes), &domain.source);
        let n = prompts.len();
        ensure!(
            n == sizes.prompts,
            "the test text of '{name}' has {n} pieces of {length} tokens, and eval.generation asks for {}: lower that, or raise \
             eval.sizes.test_tokens",
            sizes.prompts
        );
        Ok(prompts)
    };
    ground.domains.iter().map(of).collect()
}

fn quantile(sorted: &[usize], q: f64) -> usize {
    sorted.get((sorted.len().saturating_sub(1) as f64 * q).round() as usize).copied().unwrap_or(0)
}

fn table(ground: &Ground, rows: &[Row]) -> Table {
    let head = ["way", "tokens", "judge", "distinct", "divergence", "longest run, p50", "p99", "longest", "refused"]
        .map(str::to_owned);
    let names = ground.domains.iter().map(|d| format!("judge, {}", d.source));
    let cells = |row: &Row| {
        let runs = [0.5, 0.99, 1.0].map(|q| quantile(&row.longest_runs, q).to_string());
        let first = [
            row.way.to_owned(),
            row.judge.n_tokens.to_string(),
            bits(&row.judge),
            format!("{:.3}", row.distinct),
            format!("{:.3}", row.divergence),
        ];
        first.into_iter().chain(runs).chain([row.refused.to_string()]).chain(row.domains.iter().map(bits)).collect()
    };
    Table::new(head.into_iter().chain(names), rows.iter().map(cells).collect())
}

fn finding(rows: &[Row]) -> String {
    let [text, alone, unguarded, guarded, ..] = rows else { return String::new() };
    let longest = |row: &Row| quantile(&row.longest_runs, 1.0);
    format!(
        "The judge gives the text itself {:.3} bits per byte, what the model alone makes {:.3}, with neighbours {:.3}; divergence from the domain {:.3} \
         and {:.3} (the text itself: {:.3}). Longest run of words from the store: {} alone, {} with neighbours and no guard, {} with the guard, {} in the \
         text itself.{}",
        text.judge.bits_per_byte(),
        alone.judge.bits_per_byte(),
        guarded.judge.bits_per_byte(),
        alone.divergence,
        guarded.divergence,
        text.divergence,
        longest(alone),
        longest(unguarded),
        longest(guarded),
        longest(text),
        if guarded.refused == 0 { " The guard refused nothing: no run was as long as its limit." } else { "" }
    )
}
