//! `silo eval keys`.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::Serialize;
use serde_json::{Value, json};
use silo_core::{ContentHash, KnnParameters, Tier};
use silo_corpus::BuildReport;
use silo_engine::{Evidence, Mode};
use silo_eval::{Gathered, Loss, Scope, SearchQuality, search_quality, tune};
use silo_store::Recipe;

use super::page::{Measured, Table, bits, sum};
use super::plot::{Line, Plot};
use super::speed::{sample_keys, shard_bytes};
use super::{Ground, Run};
use crate::commands::index::Quantizer;
use crate::config::{ComparedRecipe, EvalConfig, QuantizerConfig, read_eval_config};
use crate::{output, wiring};

const WHAT: &str = "The same domains in stores of several recipes, each with everything in one mixed store: bits per byte on test text of kNN with one \
    weight at every token, tuned with k, temperature and match bonus on the validation text of all domains together; the share of the exact neighbours that a search finds, its time for one query \
    alone, and bytes of an entry, text and indexes included. The store named below is that of the last row.";

/// What came of a recipe.
#[derive(Debug, Serialize)]
struct Row {
    name: String,
    recipe: Recipe,
    tuned: KnnParameters,
    /// What of it lies at an end of the grid.
    edges: Vec<&'static str>,
    validation: Loss,
    /// Of the model alone.
    alone: Loss,
    test: Loss,
    /// Of each domain, in their order.
    domains: Vec<Loss>,
    search: SearchQuality,
    n_entries: u64,
    n_bytes: u64,
}

pub fn run(run: &Run) -> Result<Measured<'static>> {
    let config = read_eval_config(&run.config)?;
    if config.eval.recipes.is_empty() {
        bail!("eval.recipes names no recipe to compare: add [[eval.recipes]] tables with name and recipe");
    }
    let mut rows = Vec::new();
    let mut facts = Value::Null;
    for compared in &config.eval.recipes {
        eprintln!("recipe {}", compared.name);
        let ground = ground(&config, compared).with_context(|| format!("recipe '{}'", compared.name))?;
        facts = ground.facts(&run.config);
        rows.push(row(&ground, compared)?);
    }
    let raw = table(&config, &rows);
    Ok(Measured {
        name: "keys",
        title: "Keys and their index",
        what: WHAT,
        finding: finding(&rows),
        whole: json!({"made": facts, "recipes": &rows}),
        tables: raw.markdown(),
        raw,
        picture: Some((
            Plot::rows("Keys and their index", "bits per byte on test text", rows.iter().map(|row| row.name.clone())),
            vec![
                Line::of("with neighbours", rows.iter().map(|row| row.test.bits_per_byte())),
                Line::of("the model alone", rows.iter().map(|row| row.alone.bits_per_byte())),
            ],
        )),
    })
}

fn ground(config: &EvalConfig, compared: &ComparedRecipe) -> Result<Ground> {
    let Some(quantizer) = &compared.quantizer else { return Ground::beside(config, &compared.recipe, None) };
    let recipe = with_quantizer(config, &compared.recipe, quantizer)?;
    let mut config = config.clone();
    config.store.comparison_quantizer |= quantizer.of_domains;
    Ground::beside(&config, &recipe, None)
}

/// A recipe with a quantiser of its own, which is made once for a model and a corpus. Both lie beside the evaluation's store.
fn with_quantizer(config: &EvalConfig, recipe: &Path, quantizer: &QuantizerConfig) -> Result<PathBuf> {
    let (model, _) = wiring::load_model(&config.model)?;
    let report = BuildReport::read(&config.eval.corpus)?;
    let made_of: Vec<_> = report.sources.iter().map(|source| (&source.name, source.sha256)).collect();
    let text = std::fs::read_to_string(recipe).with_context(|| format!("cannot read {}", recipe.display()))?;
    let name = json!([model.card().hash, made_of, config.eval.domains, quantizer, text]);
    let name = ContentHash::of(name.to_string().as_bytes()).to_string();
    let folder = config.store.beside("quantizers");
    let (made, of) = (folder.join(format!("{name}.toml")), folder.join(format!("{name}.quantizer")));
    if made.exists() {
        return Ok(made);
    }
    let mut table: toml::Table = text.parse().with_context(|| format!("{} is no recipe", recipe.display()))?;
    let ivf = table.get_mut("ivf").and_then(toml::Value::as_table_mut);
    let ivf =
        ivf.with_context(|| format!("{} has no [ivf], so that a quantiser has no place in it", recipe.display()))?;
    ivf.insert("quantizer".into(), format!("{name}.quantizer").into());
    let QuantizerConfig { projected, lists, keys, of_domains } = *quantizer;
    let train = Quantizer {
        model: config.model.path.clone(),
        recipe: recipe.to_owned(),
        corpus: config.eval.corpus.clone(),
        tiers: vec![Tier::PublicDomain, Tier::Permissive, Tier::Attribution],
        comparison: if of_domains { config.eval.domains.clone() } else { Vec::new() },
        keys,
        lists,
        projected,
        seed: 1,
    };
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    output::file(&of, train.make()?.bytes)?;
    // Last: where the recipe is, its quantiser is.
    output::file(&made, table.to_string())?;
    Ok(made)
}

fn row(ground: &Ground, compared: &ComparedRecipe) -> Result<Row> {
    let with = ground.gatherer();
    let gather = |validation: bool| -> Result<Vec<Gathered>> {
        let texts = |d| with.gather(d, if validation { &d.validation } else { &d.test }, Scope::Mixed, Mode::Knn);
        Ok(ground.domains.iter().map(texts).collect::<Result<_, _>>()?)
    };
    let (validation, test) = (gather(true)?, gather(false)?);
    let all: Vec<&Evidence> = validation.iter().flat_map(|g| &g.evidence).collect();
    let tuned = tune(with.grid, &all)?.parameters;
    let loss = |of: &[Gathered]| of.iter().map(|g| g.loss(Some(&tuned))).collect::<Vec<_>>();
    let domains = loss(&test);
    let keys = sample_keys(ground, ground.config.eval.speed.queries)?;
    let keys: Vec<&[f32]> = keys.iter().map(Vec::as_slice).collect();
    Ok(Row {
        name: compared.name.clone(),
        recipe: ground.store.recipe().clone(),
        tuned,
        edges: with.grid.edges(&tuned),
        validation: sum(&loss(&validation)),
        alone: sum(&test.iter().map(|g| g.loss(None)).collect::<Vec<_>>()),
        test: sum(&domains),
        domains,
        search: search_quality(&ground.store, &keys, ground.config.eval.speed.k, &[])?,
        n_entries: ground.n_entries(),
        n_bytes: shard_bytes(ground),
    })
}

fn table(config: &EvalConfig, rows: &[Row]) -> Table {
    let head = [
        "recipe",
        "key site",
        "k",
        "weight",
        "temperature",
        "match bonus",
        "validation",
        "test",
        "recall",
        "codes compared",
        "ms a query",
        "bytes an entry",
        "at an end of the grid",
    ];
    let cells = |row: &Row| {
        let p = row.tuned;
        let tuned =
            [p.k.to_string(), p.knn_weight.to_string(), p.knn_temperature.to_string(), p.match_bonus.to_string()];
        let search = &row.search;
        let cost = [
            format!("{:.4}", search.recall),
            format!("{:.0}", search.compared),
            format!("{:.2}", search.milliseconds),
            format!("{:.0}", row.n_bytes as f64 / row.n_entries.max(1) as f64),
        ];
        let first = [row.name.clone(), row.recipe.key_site.name().to_owned()];
        let losses = [bits(&row.validation), bits(&row.test)];
        first
            .into_iter()
            .chain(tuned)
            .chain(losses)
            .chain(cost)
            .chain([row.edges.join(", ")])
            .chain(row.domains.iter().map(bits))
            .collect()
    };
    let head = head.into_iter().chain(config.eval.domains.iter().map(String::as_str));
    Table::new(head, rows.iter().map(cells).collect())
}

fn finding(rows: &[Row]) -> String {
    let on_validation = |row: &&Row| row.validation.bits_per_byte();
    let Some(best) = rows.iter().min_by(|a, b| on_validation(a).total_cmp(&on_validation(b))) else {
        return String::new();
    };
    let gain = |row: &Row| row.alone.bits_per_byte() - row.test.bits_per_byte();
    format!(
        "Best on validation text: '{}', which gains {:.4} bits per byte over the model alone on test text; '{}', the first, gains {:.4}.",
        best.name,
        gain(best),
        rows[0].name,
        gain(&rows[0])
    )
}
