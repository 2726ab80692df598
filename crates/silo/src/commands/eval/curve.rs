//! `silo eval store-size` and `silo eval removal`: the loss over how much of the store is seen.

use anyhow::{Result, bail};
use serde::Serialize;
use serde_json::json;
use silo_core::{Filter, KnnParameters, ShardId, SnapshotProvider, SourceId};
use silo_engine::{Evidence, Mode};
use silo_eval::{Gathered, Loss, View, store_parts, tune, tune_shared};

use super::plot::{Line, Plot};
use super::{Ground, Run, bits, markdown_table, publish};
use crate::output;

/// The losses with a part of the store.
#[derive(Debug, Serialize)]
struct Point {
    /// What is seen.
    label: String,
    /// Where it stands in the plot.
    x: f64,
    /// Entries that are seen.
    n_entries: u64,
    /// With which parameters; `None` where nothing is seen.
    parameters: Option<KnnParameters>,
    /// Of all domains.
    test: Loss,
    /// Of each, in their order.
    domains: Vec<Loss>,
}

/// Bits per byte with more and more of each domain's text in the store; k, weight and temperature tuned anew for each size.
pub fn store_size(run: &Run, as_json: bool) -> Result<()> {
    let ground = Ground::open(&run.config)?;
    let shares: Vec<f64> = ground.config.eval.store_shares.iter().copied().chain([1.0]).collect();
    if shares.len() < 2 {
        bail!(
            "eval.store_shares names no size besides the whole store: set it, for example to [0.01, 0.1], and build the store anew"
        );
    }
    let mut points = vec![alone(&ground)?];
    for (i, share) in shares.iter().enumerate() {
        let view = seen(Filter { allow_shards: shards_of_share(&ground, i), ..Filter::default() });
        eprintln!("{:.1} % of the store", 100.0 * share);
        let validation: Vec<Gathered> = gather(&ground, &view, true)?;
        let all: Vec<&Evidence> = validation.iter().flat_map(|g| &g.evidence).collect();
        let tuned = tune(&ground.config.eval.grid, &all)?.parameters;
        let n_entries = entries(&ground, &view.filter);
        points.push(point(&ground, format!("{:.1} %", 100.0 * share), *share, (&view, n_entries), Some(tuned))?);
    }
    let what = "Bits per byte on test text of kNN over the whole store, of which more and more is seen: of each domain the first documents, by their \
                hashes. k, weight and temperature were tuned on the validation text of all domains together, for each size.";
    let plot = Plot { title: "Size of the store", axes: ["share of the store", "bits per byte"], logarithmic: true };
    finish(&ground, run, as_json, ("store-size", "Size of the store", what), &plot, &points)
}

/// Bits per byte while the sources are withdrawn one after the other, in the order of their names.
pub fn removal(run: &Run, as_json: bool) -> Result<()> {
    let ground = Ground::open(&run.config)?;
    let (_, shared) = tune_shared(&ground.gatherer(), &ground.domains)?;
    let sources: Vec<SourceId> = ground.domains.iter().map(|d| d.source.clone()).collect();
    let mut points = Vec::new();
    for n in 0..sources.len() {
        let view = seen(Filter { deny_sources: sources[..n].to_vec(), ..Filter::default() });
        let label = if n == 0 { "all sources".to_owned() } else { format!("without {}", sources[n - 1]) };
        eprintln!("{label}");
        let n_entries = entries(&ground, &view.filter);
        // As a server does: what was tuned on a source that is gone does not hold.
        let parameters = if n == 0 { shared.parameters } else { ground.config.engine.knn };
        points.push(point(&ground, label, n as f64, (&view, n_entries), Some(parameters))?);
    }
    let last = alone(&ground)?;
    points.push(Point { label: format!("without {}", sources[sources.len() - 1]), x: sources.len() as f64, ..last });
    let what = "Bits per byte on test text of kNN over the whole store while one source after the other is withdrawn, and stays withdrawn. With all there, k, \
                weight and temperature are those tuned on the validation text of all; after the first withdrawal the neutral ones of the configuration, as \
                on a server. The last row is the model alone.";
    let plot =
        Plot { title: "Withdrawals", axes: ["sources that were withdrawn", "bits per byte"], logarithmic: false };
    finish(&ground, run, as_json, ("removal-curve", "Withdrawals", what), &plot, &points)
}

fn seen(filter: Filter) -> View {
    View { filter, mode: Mode::Knn, context: None }
}

/// The shards that belong to a share of the store, of each domain.
fn shards_of_share(ground: &Ground, share: usize) -> Vec<ShardId> {
    let snapshot = ground.store.snapshot();
    let mut out = Vec::new();
    for domain in &ground.domains {
        let parts = store_parts(&domain.stored, &ground.config.eval.store_shares);
        let shards = snapshot.shards.iter().filter(|s| s.source.id == domain.source);
        out.extend(shards.zip(parts).filter(|(_, part)| part.share <= share).map(|(shard, _)| shard.id));
    }
    out
}

fn entries(ground: &Ground, filter: &Filter) -> u64 {
    let snapshot = ground.store.snapshot();
    let sees = |id: &ShardId, source: &SourceId| {
        !filter.deny_sources.contains(source) && (filter.allow_shards.is_empty() || filter.allow_shards.contains(id))
    };
    snapshot.shards.iter().filter(|s| sees(&s.id, &s.source.id)).map(|s| s.n_entries).sum()
}

fn gather(ground: &Ground, view: &View, validation: bool) -> Result<Vec<Gathered>> {
    let with = ground.gatherer();
    let texts = |d| with.gather_from(d, if validation { &d.validation } else { &d.test }, view);
    Ok(ground.domains.iter().map(texts).collect::<Result<_, _>>()?)
}

/// The model alone, which is what a store of which nothing is seen leaves.
fn alone(ground: &Ground) -> Result<Point> {
    let view = View { mode: Mode::Parametric, ..View::default() };
    let point = point(ground, "the model alone".into(), f64::NAN, (&view, 0), None)?;
    Ok(point)
}

fn point(
    ground: &Ground,
    label: String,
    x: f64,
    (view, n_entries): (&View, u64),
    parameters: Option<KnnParameters>,
) -> Result<Point> {
    let domains: Vec<Loss> = gather(ground, view, false)?.iter().map(|g| g.loss(parameters.as_ref())).collect();
    let test = domains.iter().copied().fold(Loss::default(), Loss::and);
    Ok(Point { label, x, n_entries, parameters, test, domains })
}

fn finish(
    ground: &Ground,
    run: &Run,
    as_json: bool,
    (name, title, what): (&str, &str, &str),
    plot: &Plot<'_>,
    points: &[Point],
) -> Result<()> {
    let names: Vec<String> = ground.domains.iter().map(|d| d.source.to_string()).collect();
    let head = ["seen", "entries", "k", "weight", "temperature", "all domains"].map(str::to_owned);
    let head: Vec<String> = head.into_iter().chain(names.iter().cloned()).collect();
    let cells = |p: &Point| {
        let of = |show: &dyn Fn(&KnnParameters) -> String| p.parameters.as_ref().map(show).unwrap_or_default();
        let tuned =
            [of(&|p| p.k.to_string()), of(&|p| p.knn_weight.to_string()), of(&|p| p.knn_temperature.to_string())];
        let first = [p.label.clone(), p.n_entries.to_string()];
        first.into_iter().chain(tuned).chain([bits(&p.test)]).chain(p.domains.iter().map(bits)).collect()
    };
    let table = markdown_table(&head, &points.iter().map(cells).collect::<Vec<_>>());
    let whole = json!({"made": ground.facts(run), "points": points});
    publish(run, name, (title, what), &whole, &format!("![{title}]({name}.svg)\n\n{table}"))?;
    let drawn = || points.iter().filter(|p| p.x.is_finite());
    let line = |name: &str, of: &dyn Fn(&Point) -> &Loss| Line {
        name: name.to_owned(),
        points: drawn().map(|p| (p.x, of(p).bits_per_byte())).collect(),
    };
    let all = line("all domains", &|p| &p.test);
    let each = names.iter().enumerate().map(|(i, name)| line(name, &|p| &p.domains[i]));
    plot.draw(&[all].into_iter().chain(each).collect::<Vec<_>>(), &run.output.join(format!("{name}.svg")))?;
    if as_json {
        return output::json(&whole);
    }
    print!("{table}");
    Ok(())
}
