//! `silo eval attribution`.

use std::collections::BTreeSet;

use anyhow::Result;
use serde::Serialize;
use serde_json::json;
use silo_core::{SourceId, TokenId};
use silo_eval::{AttributionConfig, Compared, Domain, NamedText, NamedToken, PlantedRun, plant};

use super::ground::Temporary;
use super::page::{Measured, Table};
use super::plot::{Axis, Line, Plot};
use super::{Ground, Run, parameters};

const WHAT: &str = "Pieces from the middle of each domain's test texts are scored with neighbours from the store of all, as the configuration has them, and each token is credited to sources. The source with the greatest share is \
    *named*: how often it is the one that the text is from (*own*), and what becomes of log p of the token without it (CompareWithout). Then each source is really taken out of another store of the same text, and \
    the texts that it was named in are scored again: what was computed must be what is found, to the last bit. Last, runs of words from the store, from the middle of \
    documents, are put between words of test text and looked for (AttributeText).";

/// A piece of test text, and what credit names in it.
struct Piece<'a> {
    domain: &'a Domain,
    tokens: &'a [TokenId],
    named: NamedText,
}

/// Tokens of which the named source has about so much.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
struct Bucket {
    /// How many.
    tokens: u64,
    /// Those of them whose text is from the source that is named.
    own: u64,
    /// Those that are less probable without it.
    lost: u64,
    /// What log p loses without it, all together, in nats.
    nats: f64,
}

impl Bucket {
    fn of<'a>(named: impl Iterator<Item = (&'a Domain, &'a NamedToken)>) -> Self {
        named.fold(Self::default(), |b, (domain, token)| Self {
            tokens: b.tokens + 1,
            own: b.own + u64::from(token.source == domain.source),
            lost: b.lost + u64::from(token.loss > 0.0),
            nats: b.nats + token.loss,
        })
    }

    fn part(&self, n: u64) -> f64 {
        n as f64 / self.tokens.max(1) as f64
    }

    /// Tokens, own, lost, mean loss.
    fn cells(&self) -> [String; 4] {
        if self.tokens == 0 {
            return ["0".to_owned(), String::new(), String::new(), String::new()];
        }
        [
            self.tokens.to_string(),
            format!("{:.3}", self.part(self.own)),
            format!("{:.3}", self.part(self.lost)),
            format!("{:.3}", self.nats / self.tokens as f64),
        ]
    }
}

/// All figures.
#[derive(Debug, Serialize)]
struct Figures {
    n_scored: usize,
    /// By the greatest share.
    by_share: Vec<Bucket>,
    /// In the order of the domains.
    by_domain: Vec<Bucket>,
    /// What was computed, beside what was found without each source.
    compared: Compared,
    /// By their length, in the order of the configuration.
    runs: Vec<Runs>,
}

/// Runs of one length.
#[derive(Debug, Clone, Copy, Serialize)]
struct Runs {
    n_words: usize,
    runs: usize,
    found: usize,
    /// That stand in one source alone.
    in_one_source: usize,
    /// Sources that hold one, in the mean.
    mean_sources: f64,
}

pub fn run(run: &Run) -> Result<Measured<'static>> {
    let ground = Ground::open(&run.config)?;
    let config = &ground.config.eval.attribution;
    let pieces = pieces(&ground)?;
    let figures = Figures {
        n_scored: pieces.iter().map(|piece| piece.named.n_scored).sum(),
        by_share: by_share(config, &pieces),
        by_domain: ground.domains.iter().map(|d| Bucket::of(named(&pieces).filter(|(of, _)| *of == d))).collect(),
        compared: compared(&ground, &pieces)?,
        runs: runs(&ground)?,
    };
    let [shares, domains, runs] = tables(&ground, &figures);
    Ok(Measured {
        name: "credit",
        title: "What credit names",
        what: WHAT,
        finding: finding(&figures),
        whole: json!({"made": ground.facts(&run.config), "attribution": config, "parameters": ground.engine.config().knn, "figures": &figures}),
        tables: format!(
            "{}\nThe last row has all of them. Neighbours: {}.\n\n## By domain\n\n{}\n## Runs of words\n\n{}",
            shares.markdown(),
            parameters(&ground.engine.config().knn),
            domains.markdown(),
            runs.markdown()
        ),
        raw: raw(&ground, &figures),
        picture: Some(picture(config, &figures)),
    })
}

fn pieces(ground: &Ground) -> Result<Vec<Piece<'_>>> {
    let with = ground.gatherer();
    let mut out = Vec::new();
    for domain in &ground.domains {
        eprintln!("{}: what credit names", domain.source);
        for tokens in ground.config.eval.attribution.pieces(domain) {
            out.push(Piece { domain, tokens, named: with.named(domain, tokens)? });
        }
    }
    Ok(out)
}

fn named<'a>(pieces: &'a [Piece<'a>]) -> impl Iterator<Item = (&'a Domain, &'a NamedToken)> {
    pieces.iter().flat_map(|piece| piece.named.named.iter().map(move |token| (piece.domain, token)))
}

fn by_share(config: &AttributionConfig, pieces: &[Piece<'_>]) -> Vec<Bucket> {
    let bucket = |b| Bucket::of(named(pieces).filter(|(_, token)| config.bucket(token.share) == b));
    (0..config.n_buckets()).map(bucket).collect()
}

/// Each source that is named is taken out of a store like that, and the texts are scored without it.
fn compared(ground: &Ground, pieces: &[Piece<'_>]) -> Result<Compared> {
    let sources: BTreeSet<&SourceId> = pieces.iter().flat_map(|piece| piece.named.without.keys()).collect();
    let Temporary { ground: other, .. } = &ground.stored_anew(ground.domains.clone())?;
    let with = other.gatherer();
    let mut out = Compared::default();
    for source in sources {
        eprintln!("{source} is taken out");
        let texts = pieces.iter().map(|piece| (piece.domain, piece.tokens, &piece.named));
        out = out.and(with.taken_out(&other.store, source, texts)?);
    }
    Ok(out)
}

fn runs(ground: &Ground) -> Result<Vec<Runs>> {
    eprintln!("looking for runs of words");
    let config = &ground.config.eval.attribution;
    let planted = |domain| plant(&ground.store, &*ground.tokenizer, domain, config);
    let planted: Vec<PlantedRun> =
        ground.domains.iter().map(planted).collect::<Result<Vec<_>, _>>()?.into_iter().flatten().collect();
    let of = |n_words: &usize| {
        let runs = || planted.iter().filter(move |run| run.n_words == *n_words);
        Runs {
            n_words: *n_words,
            runs: runs().count(),
            found: runs().filter(|run| run.found).count(),
            in_one_source: runs().filter(|run| run.n_sources == 1).count(),
            mean_sources: runs().map(|run| run.n_sources).sum::<usize>() as f64 / runs().count().max(1) as f64,
        }
    };
    Ok(config.run_words.iter().map(of).collect())
}

fn label(config: &AttributionConfig, bucket: usize) -> String {
    match (bucket.checked_sub(1).map(|b| config.shares[b]), config.shares.get(bucket)) {
        (None, Some(end)) => format!("under {end}"),
        (Some(start), Some(end)) => format!("{start} to {end}"),
        (Some(start), None) => format!("{start} or more"),
        (None, None) => "any".to_owned(),
    }
}

const COLUMNS: [&str; 4] = ["tokens", "own", "less probable without", "mean loss of log p"];

fn tables(ground: &Ground, figures: &Figures) -> [Table; 3] {
    let config = &ground.config.eval.attribution;
    let row = |name: String, bucket: &Bucket| -> Vec<String> { [name].into_iter().chain(bucket.cells()).collect() };
    let table = |first: &'static str, rows: Vec<Vec<String>>| Table::new([first].into_iter().chain(COLUMNS), rows);
    let mut by_share: Vec<Vec<String>> =
        figures.by_share.iter().enumerate().map(|(b, bucket)| row(label(config, b), bucket)).collect();
    by_share.push(row("any".to_owned(), &figures.all()));
    let domains = ground.domains.iter().zip(&figures.by_domain);
    let by_domain = domains.map(|(domain, bucket)| row(domain.source.to_string(), bucket)).collect();
    [table("greatest share", by_share), table("domain", by_domain), run_table(figures)]
}

fn run_table(figures: &Figures) -> Table {
    let cells = |runs: &Runs| {
        let counts = [runs.n_words, runs.runs, runs.found, runs.in_one_source].map(|n| n.to_string());
        counts.into_iter().chain([format!("{:.2}", runs.mean_sources)]).collect()
    };
    Table::new(
        ["words", "runs", "found with their source", "in one source alone", "sources, mean"],
        figures.runs.iter().map(cells).collect(),
    )
}

impl Figures {
    fn all(&self) -> Bucket {
        self.by_share.iter().fold(Bucket::default(), |a, b| Bucket {
            tokens: a.tokens + b.tokens,
            own: a.own + b.own,
            lost: a.lost + b.lost,
            nats: a.nats + b.nats,
        })
    }
}

/// All rows of all tables: of what, and figures.
fn raw(ground: &Ground, figures: &Figures) -> Table {
    let config = &ground.config.eval.attribution;
    let named = |of: &str, name: String, bucket: &Bucket| -> Vec<String> {
        let first = [of.to_owned(), name];
        let numbers = [bucket.tokens, bucket.own, bucket.lost].map(|n| n.to_string());
        first
            .into_iter()
            .chain(numbers)
            .chain([bucket.nats.to_string()])
            .chain([String::new(), String::new()])
            .collect()
    };
    let shares = figures.by_share.iter().enumerate().map(|(b, bucket)| named("share", label(config, b), bucket));
    let domains = ground.domains.iter().zip(&figures.by_domain);
    let domains = domains.map(|(domain, bucket)| named("domain", domain.source.to_string(), bucket));
    let runs = figures.runs.iter().map(|runs| {
        let numbers = [runs.runs, runs.found].map(|n| n.to_string());
        let behind = [String::new(), String::new(), runs.in_one_source.to_string(), runs.mean_sources.to_string()];
        [vec!["runs of words".to_owned(), runs.n_words.to_string()], numbers.to_vec(), behind.to_vec()].concat()
    });
    Table::new(
        [
            "of",
            "which",
            "number",
            "own or found",
            "less probable without",
            "nats lost",
            "in one source alone",
            "mean sources",
        ],
        shares.chain(domains).chain(runs).collect(),
    )
}

fn picture(config: &AttributionConfig, figures: &Figures) -> (Plot<'static>, Vec<Line>) {
    let axis = Axis::Names((0..config.n_buckets()).map(|b| label(config, b)).collect());
    let plot = Plot { title: "What credit names", labels: ["greatest share of a source", "part of the tokens"], axis };
    let line = |name: &str, count: fn(&Bucket) -> u64| {
        let there = figures.by_share.iter().enumerate().filter(|(_, bucket)| bucket.tokens > 0);
        Line { name: name.to_owned(), points: there.map(|(i, b)| (i as f64, b.part(count(b)))).collect() }
    };
    (plot, vec![line("named: the text's own source", |b| b.own), line("less probable without it", |b| b.lost)])
}

fn finding(figures: &Figures) -> String {
    let (all, Compared { tokens, equal }) = (figures.all(), figures.compared);
    let strongest = figures.by_share.last().copied().unwrap_or_default();
    let (runs, found) = figures.runs.iter().fold((0, 0), |(n, f), runs| (n + runs.runs, f + runs.found));
    format!(
        "Of {} tokens, {} have a source with a share; it is the text's own for {:.1} %, and for {:.1} % where its share is in the last bucket, where log p falls by {:.3} without it in the \
         mean. {equal} of {tokens} log-probabilities computed without a source are those of a store that it was taken out of, to the last bit. {found} of {runs} runs of words from the store are \
         found with their source.",
        figures.n_scored,
        all.tokens,
        100.0 * all.part(all.own),
        100.0 * strongest.part(strongest.own),
        strongest.nats / strongest.tokens.max(1) as f64,
    )
}
