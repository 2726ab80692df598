//! `silo eval opt-out`: a work is withdrawn from the store of all.

use std::sync::atomic::AtomicBool;

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;
use serde_json::json;
use silo_core::{Document, KnnParameters, Selection, SnapshotProvider};
use silo_engine::{Evidence, Mode, Sums};
use silo_eval::{Domain, Gathered, Loss, Text, View, held_out_of};

use super::ground::Temporary;
use super::page::{Measured, Table, bits, sum};
use super::plot::{Line, Plot};
use super::{Ground, Run, parameters};
use crate::config::OptOutConfig;

const WHAT: &str = "Works in the store of all domains opt out, after the author's opt-out of SILO (Min et al. 2023, table 6): bits per byte of their held-out text by the model alone, \
    with neighbours while the rest of them is in the store, after all of them were withdrawn together by their URIs and purged, and with a store that never held them. The \
    last two must be equal to the last bit, token by token. Neighbours weigh as the configuration has it.";

/// A work that opts out.
struct Work<'a> {
    config: &'a OptOutConfig,
    domain: &'a Domain,
    /// Held-out text of it.
    texts: Vec<Text>,
}

/// What becomes of a work's text.
#[derive(Debug, Serialize)]
struct Row {
    name: String,
    source: String,
    uri_prefix: String,
    /// In the store.
    documents: usize,
    /// Held-out ones.
    held_out: usize,
    alone: Loss,
    with: Loss,
    withdrawn: Loss,
    never: Loss,
    /// Tokens with the same bits in the last two.
    equal: usize,
}

/// A work's text in the three stores.
struct Scored {
    with: Vec<Gathered>,
    withdrawn: Vec<Gathered>,
    never: Vec<Gathered>,
}

pub fn run(run: &Run) -> Result<Measured<'static>> {
    let ground = Ground::open(&run.config)?;
    let works = works(&ground)?;
    let knn = ground.gatherer().neutral()?;
    let with = gathered(&ground, &works)?;
    let (withdrawn, root_withdrawn) = anew(&ground, ground.domains.clone(), &works, true)?;
    let (never, root_never) = anew(&ground, without(&ground, &works), &works, false)?;
    let scored = Scored { with, withdrawn, never };
    let rows: Vec<Row> = works.iter().enumerate().map(|(i, work)| scored.row(i, work, &knn)).collect();
    let raw = table(&rows);
    Ok(Measured {
        name: "works",
        title: "Works that opt out",
        what: WHAT,
        finding: finding(&rows, root_withdrawn == root_never),
        whole: json!({
            "made": ground.facts(&run.config), "parameters": knn, "root_withdrawn": root_withdrawn, "root_never": root_never, "works": &rows,
        }),
        tables: format!("{}\nNeighbours: {}.\n", raw.markdown(), parameters(&knn)),
        raw,
        picture: Some(picture(&rows)),
    })
}

/// The works' text with a store that is made for this, and its root at the end: what is withdrawn does not come back.
fn anew(
    ground: &Ground,
    domains: Vec<Domain>,
    works: &[Work<'_>],
    withdrawing: bool,
) -> Result<(Vec<Gathered>, String)> {
    let Temporary { ground: other, .. } = &ground.stored_anew(domains)?;
    if withdrawing {
        withdraw(other, works)?;
    }
    Ok((gathered(other, works)?, other.store.snapshot().root.to_string()))
}

fn works(ground: &Ground) -> Result<Vec<Work<'_>>> {
    let eval = &ground.config.eval;
    if eval.opt_outs.is_empty() {
        bail!("eval.opt_outs names no work: add [[eval.opt_outs]] tables with name, source and uri_prefix");
    }
    for (i, work) in eval.opt_outs.iter().enumerate() {
        let stored = ground.domains.iter().flat_map(|d| &d.stored).filter(|d| work.is_of(d));
        let both = |document: &Document| eval.opt_outs[..i].iter().find(|other| other.is_of(document));
        if let Some(other) = stored.filter_map(both).next() {
            bail!(
                "eval.opt_outs: a document is of '{}' and of '{}'; name works that have none in common",
                other.name,
                work.name
            );
        }
    }
    eval.opt_outs.iter().map(|config| work(ground, config)).collect()
}

fn work<'a>(ground: &'a Ground, config: &'a OptOutConfig) -> Result<Work<'a>> {
    let (eval, OptOutConfig { name, source, uri_prefix }) = (&ground.config.eval, config);
    let domain = ground.domains.iter().find(|d| d.source == *source);
    let domain = domain.with_context(|| format!("eval.opt_outs: '{source}', of '{name}', is not in eval.domains"))?;
    let begins_so = format!("document of '{source}' has a URI that begins with '{uri_prefix}' (eval.opt_outs)");
    ensure!(domain.stored.iter().any(|d| config.is_of(d)), "in the store no {begins_so}");
    let texts = held_out_of(&eval.corpus, source, uri_prefix, eval.sizes, &*ground.tokenizer)?;
    ensure!(!texts.is_empty(), "held out no {begins_so}: name a longer part of the source");
    Ok(Work { config, domain, texts })
}

/// What the domains' text for the store is without the works.
fn without(ground: &Ground, works: &[Work<'_>]) -> Vec<Domain> {
    let stays = |document: &Document| !works.iter().any(|work| work.config.is_of(document));
    let mut domains = ground.domains.clone();
    domains.iter_mut().for_each(|domain| domain.stored.retain(stays));
    domains
}

/// Withdraws the works, and waits until their bytes are gone.
fn withdraw(ground: &Ground, works: &[Work<'_>]) -> Result<()> {
    for work in works {
        eprintln!("withdrawing {}", work.config.name);
        let (source, prefix) = (Some(work.config.source.clone()), work.config.uri_prefix.clone());
        ground.store.by("eval").withdraw(&Selection::UriPrefix { source, prefix })?;
    }
    let purged = ground.store.purge(&AtomicBool::new(false), &|_, _| {})?;
    ensure!(purged.failures.is_empty(), "withdrawn text is left in files: {:?}", purged.failures);
    Ok(())
}

fn gathered(ground: &Ground, works: &[Work<'_>]) -> Result<Vec<Gathered>> {
    let with = ground.gatherer();
    let view = View { mode: Mode::Knn, ..View::default() };
    Ok(works.iter().map(|work| with.gather_from(work.domain, &work.texts, &view)).collect::<Result<_, _>>()?)
}

impl Scored {
    fn row(&self, i: usize, work: &Work<'_>, knn: &KnnParameters) -> Row {
        let [with, withdrawn, never] = [&self.with[i], &self.withdrawn[i], &self.never[i]];
        let config = work.config;
        Row {
            name: config.name.clone(),
            source: config.source.to_string(),
            uri_prefix: config.uri_prefix.clone(),
            documents: work.domain.stored.iter().filter(|d| config.is_of(d)).count(),
            held_out: work.texts.len(),
            alone: with.loss(None),
            with: with.loss(Some(knn)),
            withdrawn: withdrawn.loss(Some(knn)),
            never: never.loss(Some(knn)),
            equal: equal(withdrawn, never, knn),
        }
    }
}

/// Tokens with the same bits.
fn equal(a: &Gathered, b: &Gathered, knn: &KnnParameters) -> usize {
    let mut sums = Sums::default();
    let mut bits = |evidence: &Evidence| evidence.log_probability(knn, &mut sums).to_bits();
    a.evidence.iter().zip(&b.evidence).filter(|(a, b)| bits(a) == bits(b)).count()
}

fn table(rows: &[Row]) -> Table {
    let head = [
        "work",
        "source",
        "documents in the store",
        "held-out documents",
        "tokens",
        "the model alone",
        "in the store",
        "withdrawn",
        "never in the store",
        "tokens with equal bits",
    ];
    let cells = |row: &Row| {
        let counts = [row.documents.to_string(), row.held_out.to_string(), row.alone.n_tokens.to_string()];
        let losses = [&row.alone, &row.with, &row.withdrawn, &row.never].map(bits);
        let names = [row.name.clone(), row.source.clone()];
        names.into_iter().chain(counts).chain(losses).chain([row.equal.to_string()]).collect()
    };
    Table::new(head, rows.iter().map(cells).collect())
}

fn picture(rows: &[Row]) -> (Plot<'static>, Vec<Line>) {
    let plot =
        Plot::rows("Works that opt out", "bits per byte of held-out text", rows.iter().map(|row| row.name.clone()));
    let line = |name: &str, of: fn(&Row) -> &Loss| Line::of(name, rows.iter().map(|row| of(row).bits_per_byte()));
    (
        plot,
        vec![
            line("the model alone", |r| &r.alone),
            line("in the store", |r| &r.with),
            line("withdrawn", |r| &r.withdrawn),
        ],
    )
}

fn finding(rows: &[Row], same_root: bool) -> String {
    let all = |of: fn(&Row) -> &Loss| sum(rows.iter().map(of));
    let (alone, with, withdrawn) = (all(|r| &r.alone), all(|r| &r.with), all(|r| &r.withdrawn));
    let equal: usize = rows.iter().map(|row| row.equal).sum();
    format!(
        "{:.4} bits per byte by the model alone, {:.4} with the works in the store, {:.4} after their withdrawal. {equal} of {} tokens have the bits of a store that never held \
         them; its root is {}.",
        alone.bits_per_byte(),
        with.bits_per_byte(),
        withdrawn.bits_per_byte(),
        withdrawn.n_tokens,
        if same_root { "the same" } else { "another one, which is a fault" }
    )
}
