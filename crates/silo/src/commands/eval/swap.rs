//! `silo eval swap`: which part moves, the keys or the model.

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;
use serde_json::json;
use silo_core::Tokenizer;
use silo_engine::{Evidence, Mode};
use silo_eval::{Gathered, Loss, Scope, tune};

use super::page::{Measured, Table, bits, sum};
use super::plot::{Line, Plot};
use super::{Ground, Run};
use crate::config::{ModelConfig, SwapConfig, read_eval_config};
use crate::wiring;

/// A model with the keys of one.
#[derive(Debug, Serialize)]
struct Row {
    model: String,
    keys: String,
    /// Of all domains.
    test: Loss,
    /// Of each, in their order.
    domains: Vec<Loss>,
}

const WHAT: &str = "Bits per byte on test text of kNN over the whole store, where p of the model and the neighbours come from one model or from two: each has encoded \
    the store and the text for itself. k, weight, temperature and match bonus were tuned on the validation text of all domains together, for each pair.";

/// Evidence of a model on validation and test text, domain by domain.
struct Side {
    name: String,
    validation: Vec<Gathered>,
    test: Vec<Gathered>,
}

pub fn run(run: &Run) -> Result<Measured<'static>> {
    let config = read_eval_config(&run.config)?;
    let Some(SwapConfig { model, recipe }) = &config.eval.swap else {
        bail!("eval.swap names no model to exchange with: add [eval.swap] with model and recipe");
    };
    let ground = Ground::beside(&config, recipe, None)?;
    let of_model = ModelConfig { path: model.clone(), require_open_training: false, ..config.model.clone() };
    let (_, tokenizer) = wiring::load_model(&of_model).context("eval.swap.model")?;
    check_tokenizer(&ground, &*tokenizer)?;
    let other = Ground::beside(&config, recipe, Some(model)).context("eval.swap")?;
    let sides = [side(&ground)?, side(&other)?];
    sides[0].check_tokens(&sides[1])?;
    let mut rows = Vec::new();
    for model in &sides {
        for keys in &sides {
            rows.push(row(&ground, model, keys)?);
        }
    }
    let head = ["model", "keys", "all domains"].map(str::to_owned);
    let head = head.into_iter().chain(ground.domains.iter().map(|d| d.source.to_string()));
    let cells = |row: &Row| {
        let first = [row.model.clone(), row.keys.clone(), bits(&row.test)];
        first.into_iter().chain(row.domains.iter().map(bits)).collect()
    };
    let raw = Table::new(head, rows.iter().map(cells).collect());
    Ok(Measured {
        name: "swap",
        title: "Keys and model exchanged",
        what: WHAT,
        finding: finding(&rows),
        whole: json!({"made": ground.facts(&run.config), "other": other.facts(&run.config), "pairs": &rows}),
        tables: raw.markdown(),
        raw,
        picture: Some((
            Plot::rows(
                "Keys and model exchanged",
                "bits per byte on test text",
                rows.iter().map(|row| format!("{}, keys of {}", row.model, row.keys)),
            ),
            vec![Line::of("all domains", rows.iter().map(|row| row.test.bits_per_byte()))],
        )),
    })
}

/// Before the other model has encoded everything.
fn check_tokenizer(ground: &Ground, other: &dyn Tokenizer) -> Result<()> {
    for document in ground.domains.iter().filter_map(|domain| domain.stored.first()) {
        let same = ground.tokenizer.encode(&document.text)? == other.encode(&document.text)?;
        ensure!(same, "the model that eval.swap names cuts text into other tokens: it needs the same tokenizer");
    }
    Ok(())
}

/// From the four pairs in their order: both of the first, its model with the other's keys, and so on.
fn finding(rows: &[Row]) -> String {
    let [own, other_keys, other_model, _] = rows else { return String::new() };
    let from_own = |row: &Row| own.test.bits_per_byte() - row.test.bits_per_byte();
    format!(
        "From {0} with its own keys, the keys of {1} gain {2:.4} bits per byte, the model {1} gains {3:.4}.",
        own.model,
        other_keys.keys,
        from_own(other_keys),
        from_own(other_model)
    )
}

impl Side {
    /// Tokens can be exchanged one by one only if both have scored the same, with a beginning of text or without.
    fn check_tokens(&self, other: &Self) -> Result<()> {
        let tokens = |side: &Self| -> Vec<u32> {
            let all = side.validation.iter().chain(&side.test);
            all.flat_map(|g| &g.evidence).map(|e| e.token).collect()
        };
        ensure!(
            tokens(self) == tokens(other),
            "the model that eval.swap names scores other tokens: it needs the same tokenizer"
        );
        Ok(())
    }
}

fn side(ground: &Ground) -> Result<Side> {
    let with = ground.gatherer();
    let gather = |validation: bool| -> Result<Vec<Gathered>> {
        let texts = |d| with.gather(d, if validation { &d.validation } else { &d.test }, Scope::Mixed, Mode::Knn);
        Ok(ground.domains.iter().map(texts).collect::<Result<_, _>>()?)
    };
    Ok(Side { name: ground.model.card().name.clone(), validation: gather(true)?, test: gather(false)? })
}

/// p of one model with the neighbours of another.
fn exchanged(model: &Gathered, keys: &Gathered) -> Gathered {
    let pair = |(model, keys): (&Evidence, &Evidence)| Evidence { neighbors: keys.neighbors.clone(), ..model.clone() };
    let evidence = model.evidence.iter().zip(&keys.evidence).map(pair).collect();
    Gathered { evidence, texts: model.texts.clone() }
}

fn row(ground: &Ground, model: &Side, keys: &Side) -> Result<Row> {
    let pairs = |models: &[Gathered], keys: &[Gathered]| -> Vec<Gathered> {
        models.iter().zip(keys).map(|(model, keys)| exchanged(model, keys)).collect()
    };
    let validation = pairs(&model.validation, &keys.validation);
    let all: Vec<&Evidence> = validation.iter().flat_map(|g| &g.evidence).collect();
    let tuned = tune(&ground.config.eval.grid, &all)?.parameters;
    let domains: Vec<Loss> = pairs(&model.test, &keys.test).iter().map(|g| g.loss(Some(&tuned))).collect();
    let test = sum(&domains);
    Ok(Row { model: model.name.clone(), keys: keys.name.clone(), test, domains })
}
