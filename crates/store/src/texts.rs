//! Where a text stands in the store: exactly, or nearly.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::sync::OnceLock;

use rayon::prelude::*;
use silo_core::{ContentHash, ShardId, SourceId, units};
use silo_spans::{SpanFiles, Spans};

use crate::files::Mapped;
use crate::format::{self, Manifest};
use crate::live_shard::LiveShard;
use crate::{Shard, Store, StoreError};

/// Words of a run that is looked for where a text is not found as a whole.
pub const SHINGLE_WORDS: usize = 8;

/// At most so many runs of a text are looked for, spread over it.
const MAX_SHINGLES: usize = 256;

/// A run that stands in more places than this says nothing about where a text is from.
const MAX_PLACES: usize = 10_000;

/// The index of runs of words of a shard.
#[derive(Debug)]
pub(crate) enum Runs {
    /// In its files.
    Files { units: Mapped, order: Mapped, starts: Mapped },
    /// Files of before there was such an index: made when it is first asked for.
    Made(OnceLock<SpanFiles>),
}

impl Runs {
    pub(crate) fn open(path: &Path, manifest: &Manifest) -> Result<Self, StoreError> {
        if !manifest.files.contains_key(format::UNITS) {
            return Ok(Self::Made(OnceLock::new()));
        }
        let open = |name| Mapped::open(path, name, manifest);
        let (units, order, starts) = (open(format::UNITS)?, open(format::ORDER)?, open(format::STARTS)?);
        let damaged = |reason: String| StoreError::damaged(&units.path, reason);
        let spans = Spans::new(units.slice(), order.slice(), starts.slice()).map_err(|e| damaged(e.to_string()))?;
        if spans.n_documents() as u64 != manifest.n_documents {
            return Err(damaged("it does not hold the shard's documents".into()));
        }
        Ok(Self::Files { units, order, starts })
    }
}

impl Shard {
    /// Its index of runs of words.
    pub(crate) fn spans(&self) -> Result<Spans<'_>, StoreError> {
        let (units, order, starts) = match &self.runs {
            Runs::Files { units, order, starts } => (units.slice(), order.slice(), starts.slice()),
            Runs::Made(made) => {
                let files = match made.get() {
                    Some(files) => files,
                    None => {
                        let texts = self.all_documents()?;
                        made.get_or_init(|| SpanFiles::build(texts.iter().map(|d| units::units(&d.document.text))))
                    }
                };
                (&files.units[..], &files.order[..], &files.starts[..])
            }
        };
        Ok(Spans::checked(units, order, starts))
    }
}

/// A document that holds a text, or part of it.
#[derive(Debug, Clone, PartialEq)]
pub struct TextMatch {
    /// Its source.
    pub source: SourceId,
    /// SHA-256 of its text.
    pub document: ContentHash,
    /// Whether it holds all words of the text, one after the other.
    pub exact: bool,
    /// The part of the text's runs of [`SHINGLE_WORDS`] words that it holds, or the part of its own that are the text's, if that is more; from 0
    /// to 1.
    pub overlap: f64,
    /// Its tokens.
    pub n_tokens: u64,
    /// Its URI.
    pub uri: String,
    /// Its title.
    pub title: String,
}

impl Store {
    /// Documents that hold a text, or at least the part `least` of its runs of words, or of which that part is the text's, whether they are
    /// retrieved or not; those that hold all of it first. Letter case, spaces, line ends and punctuation do not count ([`silo_core::units`]). Shards that cannot be read are not looked
    /// into: [`Store::unavailable`].
    pub fn find_text(&self, text: &str, least: f64) -> Result<Vec<TextMatch>, StoreError> {
        let words = units::units(text);
        if words.is_empty() {
            return Ok(Vec::new());
        }
        let live = self.live();
        let open: Vec<(&ShardId, &LiveShard)> = live.shards.iter().chain(&live.suspended).collect();
        let found: Vec<Vec<TextMatch>> = self.threads().install(|| {
            open.par_iter().map(|(_, shard)| find_in(shard, &words, least)).collect::<Result<_, StoreError>>()
        })?;
        // A text that several shards of a source hold is one document.
        let mut all: BTreeMap<(SourceId, ContentHash), TextMatch> = BTreeMap::new();
        all.extend(found.into_iter().flatten().map(|m| ((m.source.clone(), m.document), m)));
        let mut all: Vec<TextMatch> = all.into_values().collect();
        all.sort_by(|a, b| b.exact.cmp(&a.exact).then(b.overlap.total_cmp(&a.overlap)));
        Ok(all)
    }
}

/// The runs of a text that are looked for: all, or as many as are looked for, spread evenly; and how many there are.
fn shingles(words: &[u32]) -> (Vec<&[u32]>, usize) {
    let all: HashSet<&[u32]> = words.windows(SHINGLE_WORDS).collect();
    let mut all: Vec<&[u32]> = all.into_iter().collect();
    // In the order of what they are: the same for the same text.
    all.sort_unstable();
    let n = all.len();
    if n <= MAX_SHINGLES {
        return (all, n);
    }
    ((0..MAX_SHINGLES).map(|i| all[i * n / MAX_SHINGLES]).collect(), n)
}

/// The part that a text and a document have in common, of the one of which it is more: `hits` of so many runs that were looked for, of so many
/// that there are, stand in the document.
fn in_common(hits: u32, (looked_for, there): (usize, usize), document_words: usize) -> f64 {
    let of_text = if looked_for == 0 { 1.0 } else { f64::from(hits) / looked_for as f64 };
    let of_document = of_text * there as f64 / document_words.saturating_sub(SHINGLE_WORDS - 1).max(1) as f64;
    // One common run makes no document part of a text.
    if hits < 2 { of_text } else { of_text.max(of_document.min(1.0)) }
}

fn find_in(shard: &LiveShard, words: &[u32], least: f64) -> Result<Vec<TextMatch>, StoreError> {
    let spans = shard.shard.spans()?;
    let exact: HashSet<usize> = spans.find_all(words).map(|(document, _)| document).collect();
    let (runs, n_runs) = shingles(words);
    let mut hits: BTreeMap<usize, u32> = BTreeMap::new();
    for run in &runs {
        let places = spans.find(run);
        if places.len() > MAX_PLACES {
            continue;
        }
        let documents: HashSet<usize> = spans.places(places).map(|(document, _)| document).collect();
        documents.into_iter().for_each(|document| *hits.entry(document).or_default() += 1);
    }
    hits.extend(exact.iter().map(|document| (*document, runs.len() as u32)));
    let mut out = Vec::new();
    for (i, n) in hits {
        let (exact, overlap) = (exact.contains(&i), in_common(n, (runs.len(), n_runs), spans.document(i).len()));
        if !shard.keeps(shard.shard.number_of(i)) || !exact && overlap < least {
            continue;
        }
        let stored = shard.shard.document(i)?;
        out.push(TextMatch {
            source: stored.document.source,
            document: stored.hash,
            exact,
            overlap,
            n_tokens: stored.tokens.len() as u64,
            uri: stored.document.uri,
            title: stored.document.title,
        });
    }
    Ok(out)
}
