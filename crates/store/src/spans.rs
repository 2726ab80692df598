//! Where the words of a text stand in what may be seen: the longest runs, how rare they are, and the documents that hold them.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rayon::prelude::*;
use silo_core::{ContentHash, Document, Filter, Purpose, ShardId, Snapshot, SourceId, units};
use silo_spans::{SORTED_BY, Spans};

use crate::search::{Visible, visible};
use crate::{Store, StoreError};

/// What is looked for.
#[derive(Debug, Clone)]
pub struct SpanQuery<'a> {
    /// The text.
    pub text: &'a str,
    /// What may be seen.
    pub filter: &'a Filter,
    /// Words of the shortest runs; at least 1.
    pub min_words: usize,
    /// At most so many runs, the rarest.
    pub max_spans: usize,
    /// At most so many documents of each.
    pub max_documents: usize,
    /// Words before and behind a run that are shown of a document.
    pub context_words: usize,
    /// Gives up once this is true.
    pub cancel: &'a AtomicBool,
}

/// A run of words of a text that stands in the store, and in no longer run of the text that does.
#[derive(Debug, Clone, PartialEq)]
pub struct FoundSpan {
    /// Where it is in the text, in bytes.
    pub at: Range<usize>,
    /// Words.
    pub n_words: usize,
    /// Places in all documents.
    pub n_places: u64,
    /// What makes it rare: −Σ ln of how often each of its words comes among all words, in nats. The unigram measure of OLMoTrace (Liu et al. 2025),
    /// over the words that may be seen.
    pub rarity: f64,
    /// All sources that hold it.
    pub sources: BTreeSet<SourceId>,
    /// Some of the documents, by source and hash.
    pub documents: Vec<SpanDocument>,
}

/// A document that holds a run.
#[derive(Debug, Clone, PartialEq)]
pub struct SpanDocument {
    /// Source.
    pub source: SourceId,
    /// Shard.
    pub shard: ShardId,
    /// SHA-256 of its text.
    pub document: ContentHash,
    /// URI.
    pub uri: String,
    /// Title.
    pub title: String,
    /// Licence of the document.
    pub licence: String,
    /// Where it stands in the document first, in bytes.
    pub at: Range<usize>,
    /// Whether it stands there to the letter: spaces, case and punctuation as in the text.
    pub exact: bool,
    /// Text of the document before it, it, and behind it.
    pub context: [String; 3],
}

/// A shard that may be seen, with its index.
struct Part<'a> {
    visible: &'a Visible<'a>,
    spans: Spans<'a>,
}

impl Part<'_> {
    fn is_live(&self, document: usize) -> bool {
        self.visible.shows(document)
    }

    /// Places of a run in documents that may be seen.
    fn n_places(&self, run: &[u32]) -> u64 {
        if self.visible.shows_all() && run.len() <= SORTED_BY {
            return self.spans.find(run).len() as u64;
        }
        self.spans.find_all(run).filter(|(document, _)| self.is_live(*document)).count() as u64
    }

    /// How often words come in documents that may be seen.
    fn count(&self, words: &[u32]) -> Vec<u64> {
        let mut out: Vec<u64> = words.iter().map(|word| self.spans.find(&[*word]).len() as u64).collect();
        let place: HashMap<u32, usize> = words.iter().zip(0..).map(|(word, i)| (*word, i)).collect();
        for document in (0..self.spans.n_documents()).filter(|i| !self.is_live(*i)) {
            for i in self.spans.document(document).iter().filter_map(|word| place.get(word)) {
                out[*i] -= 1;
            }
        }
        out
    }

    fn n_words(&self) -> u64 {
        let of = |i| self.spans.document(i).len() as u64;
        (0..self.spans.n_documents()).filter(|i| self.is_live(*i)).map(of).sum()
    }
}

impl SpanQuery<'_> {
    fn check(&self) -> Result<(), StoreError> {
        if self.cancel.load(Ordering::Relaxed) { Err(StoreError::Cancelled) } else { Ok(()) }
    }
}

impl Store {
    /// Finds the longest runs of words of a text in the live documents of sources that a filter shows, if they may be consulted or shown; the rarest
    /// first. Letter case, spaces and punctuation do not count ([`silo_core::units`]). What is found is what a store finds that holds what may be seen and nothing else. Also gives the store that it was found in.
    pub fn find_spans(&self, query: &SpanQuery<'_>) -> Result<(Arc<Snapshot>, Vec<FoundSpan>), StoreError> {
        let live = self.live();
        let snapshot = Arc::clone(&live.snapshot);
        let seen = |purpose| snapshot.mask(query.filter, purpose);
        let mask = seen(Purpose::Knn).or(&seen(Purpose::Context)).or(&seen(Purpose::Display));
        let visible = visible(&live, &snapshot, &mask, Purpose::Display);
        let part = |visible| Ok(Part { visible, spans: visible.shard.spans()? });
        let parts: Vec<Part<'_>> = visible.iter().map(part).collect::<Result<_, StoreError>>()?;
        let words: Vec<units::Word> = units::words(query.text).collect();
        let numbers: Vec<u32> = words.iter().map(units::Word::unit).collect();
        let mut spans: Vec<FoundSpan> = maximal(&parts, &numbers, query)?
            .into_iter()
            .map(|range| FoundSpan {
                at: words[range.start].at.start..words[range.end - 1].at.end,
                n_words: range.len(),
                n_places: 0,
                rarity: 0.0,
                sources: BTreeSet::new(),
                documents: Vec::new(),
            })
            .collect();
        weigh(&parts, query.text, &mut spans);
        spans.sort_by(|a, b| b.rarity.total_cmp(&a.rarity).then(a.at.start.cmp(&b.at.start)));
        spans.truncate(query.max_spans);
        let mut texts = Texts::default();
        for span in &mut spans {
            query.check()?;
            let run = units::units(&query.text[span.at.clone()]);
            span.n_places = parts.par_iter().map(|part| part.n_places(&run)).sum();
            let found = documents(&parts, &run, query.max_documents, &mut span.sources);
            let text = &query.text[span.at.clone()];
            let described = found.into_iter().map(|(id, place)| texts.described(id, place, run.len(), query, text));
            span.documents = described.collect::<Result<_, _>>()?;
        }
        Ok((snapshot, spans))
    }
}

/// Runs that stand somewhere and lie in no longer one that does, as ranges of words.
fn maximal(parts: &[Part<'_>], words: &[u32], query: &SpanQuery<'_>) -> Result<Vec<Range<usize>>, StoreError> {
    let longest = |from: usize| {
        query.check()?;
        let of = |part: &Part<'_>| part.spans.longest(&words[from..], |document| part.is_live(document));
        Ok(from + parts.iter().map(of).max().unwrap_or(0))
    };
    let ends: Vec<usize> = (0..words.len()).into_par_iter().map(longest).collect::<Result<_, StoreError>>()?;
    let mut out: Vec<Range<usize>> = Vec::new();
    for (start, end) in ends.into_iter().enumerate() {
        let inside = out.last().is_some_and(|last| end <= last.end);
        if end - start >= query.min_words.max(1) && !inside {
            out.push(start..end);
        }
    }
    Ok(out)
}

/// Says how rare the words of each run are among all that may be seen.
fn weigh(parts: &[Part<'_>], text: &str, spans: &mut [FoundSpan]) {
    if spans.is_empty() {
        return;
    }
    let mut of_each: Vec<Vec<u32>> = spans.iter().map(|span| units::units(&text[span.at.clone()])).collect();
    let mut distinct: Vec<u32> = of_each.iter().flatten().copied().collect();
    distinct.sort_unstable();
    distinct.dedup();
    let sum = |mut a: Vec<u64>, b: Vec<u64>| {
        a.iter_mut().zip(b).for_each(|(a, b)| *a += b);
        a
    };
    let counts = parts.par_iter().map(|part| part.count(&distinct)).reduce(|| vec![0; distinct.len()], sum);
    let all: u64 = parts.par_iter().map(Part::n_words).sum();
    for (span, words) in spans.iter_mut().zip(&mut of_each) {
        let often = |word: &u32| distinct.binary_search(word).map_or(1, |i| counts[i]).max(1);
        span.rarity = words.iter().map(|word| -(often(word) as f64 / all.max(1) as f64).ln()).sum();
    }
}

/// Where a document lies, and the first of its words that a run begins with.
type Place<'a> = (&'a Part<'a>, usize, usize);

/// Some documents that hold a run, by their logical ids; all their sources go into `sources`.
fn documents<'a>(
    parts: &'a [Part<'a>],
    run: &'a [u32],
    max: usize,
    sources: &mut BTreeSet<SourceId>,
) -> BTreeMap<(&'a SourceId, ContentHash), Place<'a>> {
    let mut found: BTreeMap<(&SourceId, ContentHash), Place<'_>> = BTreeMap::new();
    for part in parts {
        let source = &part.visible.shard.manifest().source;
        for (document, word) in part.spans.find_all(run).filter(|(document, _)| part.is_live(*document)) {
            if !sources.contains(source) {
                sources.insert(source.clone());
            }
            let first = found.entry((source, part.visible.shard.hash_of(document))).or_insert((part, document, word));
            first.2 = first.2.min(word);
            if found.len() > max {
                found.pop_last();
            }
        }
    }
    found
}

/// Documents whose texts are kept at hand.
const KEPT_TEXTS: usize = 16;

/// A document, and where its words stand.
type Text = (Document, Vec<Range<usize>>);

/// Texts that were read last: runs that follow each other are often of one document.
#[derive(Default)]
struct Texts(HashMap<(ShardId, usize), Text>);

impl Texts {
    fn get(&mut self, part: &Part<'_>, place: usize) -> Result<&Text, StoreError> {
        let key = (part.visible.id, place);
        if !self.0.contains_key(&key) && self.0.len() >= KEPT_TEXTS {
            self.0.clear();
        }
        Ok(match self.0.entry(key) {
            Entry::Occupied(kept) => kept.into_mut(),
            Entry::Vacant(free) => {
                let stored = part.visible.shard.document(place)?.document;
                let words = units::words(&stored.text).map(|word| word.at).collect();
                free.insert((stored, words))
            }
        })
    }

    fn described(
        &mut self,
        (source, document): (&SourceId, ContentHash),
        (part, place, first): Place<'_>,
        n_words: usize,
        query: &SpanQuery<'_>,
        text: &str,
    ) -> Result<SpanDocument, StoreError> {
        let (stored, words) = self.get(part, place)?;
        let last = first + n_words - 1;
        let at = words[first].start..words[last].end;
        let from = words[first.saturating_sub(query.context_words)].start;
        let to = words[last.saturating_add(query.context_words).min(words.len() - 1)].end;
        let pieces = [from..at.start, at.clone(), at.end..to].map(|piece| stored.text[piece].to_owned());
        Ok(SpanDocument {
            source: source.clone(),
            shard: part.visible.id,
            document,
            uri: stored.uri.clone(),
            title: stored.title.clone(),
            licence: stored.licence.clone(),
            exact: pieces[1] == text,
            at,
            context: pieces,
        })
    }
}
