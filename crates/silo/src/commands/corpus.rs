//! `silo corpus`.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand, ValueEnum};
use silo_core::{LicencePolicy, Tier};
use silo_corpus::{
    BuildReport, CorpusBuilder, CorpusDocument, Governed, GovernedShare, LicenceGate, MAX_GOVERNED,
    MAX_GOVERNED_OF_DOCUMENT, Role, SourceReport, Split, read_declarations,
};

use crate::output;

/// Documents with licences and tiers, from declared sources.
#[derive(Debug, Subcommand)]
pub enum Corpus {
    /// Fetch, clean, decide licences, split; writes one file per source.
    Build(Build),
    /// What a built corpus holds.
    Stats(Stats),
    /// Whether its training text may be trained on, and its neutral text is nobody's who might withdraw it.
    Check(Check),
    /// Print documents of a source.
    Text(PrintText),
}

/// Prints documents, a blank line between them (or one per line with --json).
#[derive(Debug, Args)]
pub struct PrintText {
    #[command(flatten)]
    place: Place,
    /// The source.
    source: String,
    /// Which part.
    #[arg(long, value_enum, default_value = "test")]
    split: SplitName,
    /// At most so many documents.
    #[arg(long, default_value_t = 1)]
    documents: usize,
    /// At most so many bytes of each, cut between characters.
    #[arg(long)]
    max_bytes: Option<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum SplitName {
    Train,
    Validation,
    Test,
}

/// Documents of one part of a source that is not left out, in the order of the corpus.
pub fn corpus_documents(corpus: &Path, source: &str, split: Split) -> Result<Vec<CorpusDocument>> {
    let report = BuildReport::read(corpus)?;
    let Some(source) = report.source(source) else {
        bail!("the corpus at {} holds no source '{source}'", corpus.display());
    };
    let documents = source.documents(corpus)?;
    // What goes to the store keeps what is too much like other text.
    let wanted = |d: &CorpusDocument| d.split == split && (split == Split::Train || d.excluded.is_none());
    Ok(documents.into_iter().filter(wanted).collect())
}

impl PrintText {
    fn run(self, as_json: bool) -> Result<()> {
        let split = match self.split {
            SplitName::Train => Split::Train,
            SplitName::Validation => Split::Validation,
            SplitName::Test => Split::Test,
        };
        let documents = corpus_documents(&self.place.corpus, &self.source, split)?;
        if documents.is_empty() {
            bail!("'{}' has no {} text", self.source, split.name());
        }
        for mut document in documents.into_iter().take(self.documents) {
            let most = self.max_bytes.unwrap_or(usize::MAX).min(document.text.len());
            document.text.truncate(document.text.floor_char_boundary(most));
            if as_json { output::json(&document)? } else { println!("{}", document.text) }
        }
        Ok(())
    }
}

/// Where a corpus lies.
#[derive(Debug, Clone, Args)]
struct Place {
    /// Directory of the built corpus.
    #[arg(long, default_value = "work/corpus", value_name = "PATH")]
    corpus: PathBuf,
}

/// Builds a corpus.
#[derive(Debug, Args)]
pub struct Build {
    #[command(flatten)]
    place: Place,
    /// Directory of the declarations.
    #[arg(long, default_value = "datastore", value_name = "PATH")]
    declarations: PathBuf,
    /// Directory where packages are kept.
    #[arg(long, default_value = "work/packages", value_name = "PATH")]
    cache: PathBuf,
    /// Only these sources; all by default.
    sources: Vec<String>,
}

/// Shows a corpus.
#[derive(Debug, Args)]
pub struct Stats {
    #[command(flatten)]
    place: Place,
}

/// Checks the training text and the neutral text.
#[derive(Debug, Args)]
pub struct Check {
    #[command(flatten)]
    place: Place,
    /// Tiers to train on.
    #[arg(long, value_delimiter = ',', default_value = "public-domain,permissive,attribution")]
    tiers: Vec<Tier>,
    /// Neutral text is refused if more than this share of a source's words, by bytes, stands word for word in restricted text.
    #[arg(long, default_value_t = MAX_GOVERNED, value_name = "SHARE", value_parser = share)]
    max_governed: f64,
    /// And if more than this share of one of its documents does.
    #[arg(long, default_value_t = MAX_GOVERNED_OF_DOCUMENT, value_name = "SHARE", value_parser = share)]
    max_governed_of_document: f64,
    /// Sources to check; by default those whose role is train, and the neutral ones.
    sources: Vec<String>,
}

impl Corpus {
    /// Runs the command.
    pub fn run(self, as_json: bool) -> Result<()> {
        match self {
            Self::Build(c) => c.run(as_json),
            Self::Stats(c) => show(&BuildReport::read(&c.place.corpus)?, as_json),
            Self::Check(c) => c.run(as_json),
            Self::Text(c) => c.run(as_json),
        }
    }
}

impl Build {
    fn run(self, as_json: bool) -> Result<()> {
        let mut declarations = read_declarations(&self.declarations)?;
        if !self.sources.is_empty() {
            if let Some(unknown) = self.sources.iter().find(|s| !declarations.iter().any(|d| d.name.as_str() == **s)) {
                bail!("there is no declaration of '{unknown}' in {}", self.declarations.display());
            }
            declarations.retain(|d| self.sources.iter().any(|s| s == d.name.as_str()));
        }
        std::fs::create_dir_all(&self.cache).with_context(|| format!("cannot make {}", self.cache.display()))?;
        let cache = self.cache.canonicalize().with_context(|| format!("cannot use {}", self.cache.display()))?;
        let progress = |what: &str| eprintln!("{what}");
        let builder = CorpusBuilder {
            policy: LicencePolicy::default(),
            cache: &cache,
            output: &self.place.corpus,
            progress: &progress,
        };
        show(&builder.build(&declarations)?, as_json)
    }
}

fn show(report: &BuildReport, as_json: bool) -> Result<()> {
    if as_json {
        return output::json(report);
    }
    let counts = |map: &std::collections::BTreeMap<String, u64>| {
        map.iter().map(|(k, v)| format!("{k} {v}")).collect::<Vec<_>>().join(", ")
    };
    let row = |s: &SourceReport| {
        let mb = format!("{:.2}", s.n_bytes as f64 / 1e6);
        vec![
            s.name.to_string(),
            s.role.name().to_owned(),
            s.domain.clone(),
            mb,
            s.n_documents.to_string(),
            counts(&s.tiers),
            counts(&s.splits),
            counts(&s.excluded),
        ]
    };
    let rows: Vec<Vec<String>> = report.sources.iter().map(row).collect();
    output::table(&["source", "role", "domain", "MB", "documents", "tiers", "splits", "left out"], &rows);
    Ok(())
}

/// A share: from 0 to 1.
fn share(text: &str) -> Result<f64, String> {
    let share: f64 = text.parse().map_err(|_| "it is no number".to_owned())?;
    if (0.0..=1.0).contains(&share) { Ok(share) } else { Err("it must be from 0 to 1".to_owned()) }
}

impl Check {
    fn run(self, as_json: bool) -> Result<()> {
        let report = BuildReport::read(&self.place.corpus)?;
        let named = |s: &SourceReport| self.sources.iter().any(|n| n == s.name.as_str());
        if let Some(unknown) = self.sources.iter().find(|n| report.source(n).is_none()) {
            bail!("the corpus holds no source '{unknown}'");
        }
        let all = self.sources.is_empty();
        let (neutral, others): (Vec<&SourceReport>, Vec<_>) =
            report.sources.iter().filter(|s| all || named(s)).partition(|s| s.role == Role::Neutral);
        let gate = LicenceGate::new(&self.tiers);
        let (mut n_documents, mut n_bytes, mut n_sources) = (0, 0, 0);
        for source in others.into_iter().filter(|s| !all || s.is_learnt()) {
            let documents = source.documents(&self.place.corpus)?;
            let training: Vec<&CorpusDocument> =
                documents.iter().filter(|d| d.split == Split::Train && d.excluded.is_none()).collect();
            gate.check(training.iter().copied())?;
            n_sources += 1;
            n_documents += training.len();
            n_bytes += training.iter().map(|d| d.text.len()).sum::<usize>();
        }
        let governed = report.governed(&self.place.corpus, &neutral)?;
        governed.refuse_above(self.max_governed, self.max_governed_of_document)?;
        if as_json {
            let of = |s: &GovernedShare<'_>| {
                let most = s.most.as_ref().map(|(uri, share)| serde_json::json!({"uri": uri, "share": share}));
                (s.source.name.to_string(), serde_json::json!({"share": s.share, "most_of_a_document": most}))
            };
            let shares: serde_json::Map<_, _> = governed.shares.iter().map(of).collect();
            return output::json(&serde_json::json!({
                "n_sources": n_sources, "n_documents": n_documents, "n_bytes": n_bytes,
                "neutral": {"n_compared_with": governed.n_compared, "sources": shares},
            }));
        }
        println!("{n_documents} documents of {n_sources} sources may be trained on: {:.2} MB", n_bytes as f64 / 1e6);
        show_governed(&governed);
        Ok(())
    }
}

fn show_governed(governed: &Governed<'_>) {
    if governed.shares.is_empty() {
        return;
    }
    if governed.n_compared == 0 {
        println!("{} neutral sources: compared with nothing, as no source here is restricted", governed.shares.len());
        return;
    }
    let by_share = governed.shares.iter().max_by(|a, b| a.share.total_cmp(&b.share));
    let documents = governed.shares.iter().filter_map(|s| s.most.as_ref());
    if let (Some(most), Some((uri, share))) = (by_share, documents.max_by(|a, b| a.1.total_cmp(&b.1))) {
        println!(
            "{} neutral sources, compared with {} that have restricted text: at most {:.2} % of one stand there word for word ('{}'), and {:.0} % of a \
             document ({uri})",
            governed.shares.len(),
            governed.n_compared,
            100.0 * most.share,
            most.source.name,
            100.0 * share
        );
    }
}
