//! `silo eval store-size` and `silo eval removal`: the loss over how much of the store is seen.

use anyhow::{Result, bail};
use serde::Serialize;
use serde_json::json;
use silo_core::{Filter, KnnParameters, ShardId, SnapshotProvider, SourceId};
use silo_engine::Mode;
use silo_eval::{Gathered, Loss, View, store_parts};

use super::page::{Measured, Table, bits, sum};
use super::plot::{Axis, Line, Plot};
use super::{Ground, Run};

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
    /// What else is of interest there, as the columns call it.
    more: Vec<(&'static str, Option<Loss>)>,
}

/// Columns beside those that all points have.
const NOT_CALIBRATED: &str = "not calibrated";
const WITHDRAWN: &str = "domains withdrawn";
const WITHDRAWN_ALONE: &str = "these by the model alone";

/// Bits per byte with more and more of each domain's text in the store; how neighbours weigh is chosen anew for each size, and as the configuration
/// has it.
pub fn store_size(run: &Run) -> Result<Measured<'static>> {
    let ground = Ground::open(&run.config)?;
    let shares: Vec<f64> = ground.config.eval.store_shares.iter().copied().chain([1.0]).collect();
    if shares.len() < 2 {
        bail!(
            "eval.store_shares names no size besides the whole store: set it, for example to [0.01, 0.1], and build the store anew"
        );
    }
    let neutral = ground.gatherer().neutral()?;
    let first = alone(&ground)?;
    let mut points = vec![Point { more: vec![(NOT_CALIBRATED, Some(first.test))], ..first }];
    for (i, share) in shares.iter().enumerate() {
        let view = seen(Filter { allow_shards: shards_of_share(&ground, i), ..Filter::default() });
        eprintln!("{:.1} % of each domain", 100.0 * share);
        let validation: Vec<Gathered> = gather(&ground, &view, true)?;
        let tuned = ground.gatherer().suits(&view, &validation)?;
        let n_entries = entries(&ground, &view.filter);
        // Documents are whole, so that the first ones of a domain may be more than its share.
        let share = n_entries as f64 / ground.n_entries().max(1) as f64;
        let test = gather(&ground, &view, false)?;
        let not_calibrated = sum(&losses(&test, Some(&neutral)));
        let seen = point(format!("{:.1} %", 100.0 * share), share, (&test, n_entries), Some(tuned));
        points.push(Point { more: vec![(NOT_CALIBRATED, Some(not_calibrated))], ..seen });
    }
    let plot =
        Plot { title: "Size of the store", labels: ["share of the store", "bits per byte"], axis: Axis::Logarithmic };
    let finding = size_finding(&points);
    Ok(measured(&ground, run, ("store-size", STORE_SIZE, finding), plot, &points))
}

fn size_finding(points: &[Point]) -> String {
    let [alone, .., last_but_one, all] = points else { return String::new() };
    let gain = |point: &Point| alone.test.bits_per_byte() - point.test.bits_per_byte();
    format!(
        "{} entries gain {:.4} bits per byte over the model alone, {} gain {:.4}.",
        last_but_one.n_entries,
        gain(last_but_one),
        all.n_entries,
        gain(all)
    )
}

/// Bits per byte while the sources are withdrawn one after the other, in the order of their names.
pub fn removal(run: &Run) -> Result<Measured<'static>> {
    let ground = Ground::open(&run.config)?;
    let calibration = ground.calibration(&ground.chosen()?);
    ground.gatherer().neutral()?;
    let last = alone(&ground)?;
    let withdrawn = |n: usize, losses: &[Loss]| (n > 0).then(|| sum(&losses[..n]));
    let sources: Vec<SourceId> = ground.domains.iter().map(|d| d.source.clone()).collect();
    let mut points = Vec::new();
    for n in 0..sources.len() {
        let view = seen(Filter { deny_sources: sources[..n].to_vec(), ..Filter::default() });
        let label = if n == 0 { "all sources".to_owned() } else { format!("without {}", sources[n - 1]) };
        eprintln!("{label}");
        let n_entries = entries(&ground, &view.filter);
        // As a server does: what was tuned on a source that is gone does not hold.
        let parameters = if n == 0 { calibration.tuned } else { calibration.neutral };
        let seen = point(label, n as f64, (&gather(&ground, &view, false)?, n_entries), Some(parameters));
        let more = vec![(WITHDRAWN, withdrawn(n, &seen.domains)), (WITHDRAWN_ALONE, withdrawn(n, &last.domains))];
        points.push(Point { more, ..seen });
    }
    let (n, all) = (sources.len(), Some(last.test));
    let more = vec![(WITHDRAWN, all), (WITHDRAWN_ALONE, all)];
    points.push(Point { label: format!("without {}", sources[n - 1]), x: n as f64, more, ..last });
    let plot =
        Plot { title: "Withdrawals", labels: ["sources that were withdrawn", "bits per byte"], axis: Axis::Linear };
    let finding = removal_finding(&points);
    Ok(measured(&ground, run, ("removal-curve", REMOVAL, finding), plot, &points))
}

fn removal_finding(points: &[Point]) -> String {
    let [all, between @ .., none] = points else { return String::new() };
    let test = |point: &Point| point.test.bits_per_byte();
    let worse = between.iter().filter(|p| test(p) > test(none)).count();
    // What is gained on domains that are still there must not hide what is lost on those that are gone.
    let lost = between.iter().filter_map(|p| match p.more[..] {
        [(_, Some(with)), (_, Some(alone))] => Some(with.bits_per_byte() - alone.bits_per_byte()),
        _ => None,
    });
    let range = lost.fold(None, |range, x| range.map_or(Some((x, x)), |(l, m): (f64, f64)| Some((l.min(x), m.max(x)))));
    let gone = range.map(|(least, most)| {
        format!(
            " On the domains whose sources are gone, what is left of the store changes the model's bits per byte by {least:+.4} to {most:+.4} there."
        )
    });
    format!(
        "From {:.4} bits per byte with all sources to {:.4} with none; at {worse} of the {} points between, the store is worse than none.{}",
        test(all),
        test(none),
        between.len(),
        gone.unwrap_or_default()
    )
}

const STORE_SIZE: &str = "Bits per byte on test text of kNN over the whole store, of which more and more is seen: of each domain the first documents, by \
    their hashes. How neighbours weigh was chosen on the validation text of all domains together, for each size; *not calibrated*: as the configuration has it, which \
    was tuned on none of these domains.";

const REMOVAL: &str = "Bits per byte on test text of kNN over the whole store while one source after the other is withdrawn, and stays withdrawn. With all \
    there, neighbours weigh as on a server that was calibrated on the validation text of all; after the first withdrawal the neutral ones of the configuration, as \
    on a server. *Domains withdrawn*: on the text of those alone whose sources are gone. The last row is the model alone.";

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
    Ok(point("the model alone".into(), f64::NAN, (&gather(ground, &view, false)?, 0), None))
}

/// Of each domain.
fn losses(gathered: &[Gathered], parameters: Option<&KnnParameters>) -> Vec<Loss> {
    gathered.iter().map(|g| g.loss(parameters)).collect()
}

fn point(label: String, x: f64, (test, n_entries): (&[Gathered], u64), parameters: Option<KnnParameters>) -> Point {
    let domains = losses(test, parameters.as_ref());
    Point { label, x, n_entries, parameters, test: sum(&domains), domains, more: Vec::new() }
}

fn measured<'a>(
    ground: &Ground,
    run: &Run,
    (name, what, finding): (&'a str, &'a str, String),
    plot: Plot<'a>,
    points: &[Point],
) -> Measured<'a> {
    let names: Vec<String> = ground.domains.iter().map(|d| d.source.to_string()).collect();
    let more = points.first().into_iter().flat_map(|p| &p.more).map(|(name, _)| (*name).to_owned());
    let head = ["seen", "entries", "k", "weight", "temperature", "match bonus", "all domains"].map(str::to_owned);
    let head = head.into_iter().chain(more);
    let cells = |p: &Point| {
        let of = |show: &dyn Fn(&KnnParameters) -> String| p.parameters.as_ref().map(show).unwrap_or_default();
        let weight = |p: &KnnParameters| if p.gate.is_some() { "gate".into() } else { p.knn_weight.to_string() };
        let distances = [of(&|p| p.k.to_string()), of(&weight), of(&|p| p.knn_temperature.to_string())];
        let tuned = distances.into_iter().chain([of(&|p| p.match_bonus.to_string())]);
        let first = [p.label.clone(), p.n_entries.to_string()];
        let more = p.more.iter().map(|(_, loss)| loss.as_ref().map(bits).unwrap_or_default());
        first.into_iter().chain(tuned).chain([bits(&p.test)]).chain(more).chain(p.domains.iter().map(bits)).collect()
    };
    let raw = Table::new(head.chain(names.iter().cloned()), points.iter().map(cells).collect());
    let drawn = || points.iter().filter(|p| p.x.is_finite());
    let line = |name: &str, of: &dyn Fn(&Point) -> &Loss| Line {
        name: name.to_owned(),
        points: drawn().map(|p| (p.x, of(p).bits_per_byte())).collect(),
    };
    let all = line("all domains", &|p| &p.test);
    let each = names.iter().enumerate().map(|(i, name)| line(name, &|p| &p.domains[i]));
    let more = points.first().into_iter().flat_map(|p| p.more.iter().enumerate()).map(|(i, (name, _))| Line {
        name: (*name).to_owned(),
        points: drawn().filter_map(|p| Some((p.x, p.more.get(i)?.1?.bits_per_byte()))).collect(),
    });
    let lines = [all].into_iter().chain(more).chain(each).collect();
    let whole = json!({"made": ground.facts(&run.config), "points": points});
    let tables = raw.markdown();
    Measured { name, title: plot.title, what, finding, whole, raw, tables, picture: Some((plot, lines)) }
}
