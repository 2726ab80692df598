//! Where runs of words stand in a set of documents: a suffix array over the words of their texts.
//!
//! What it is: words come as numbers ([`silo_core::units`], though this crate does not know it); [`SpanFiles::build`] sorts all places of all
//! documents by the words from there on, and [`Spans::find`] gives all places of a run by two binary searches. Four bytes for the word and
//! four for its place in the order.
//!
//! What it is not: it knows no shards, no liveness and no text. Words with equal numbers are equal here.
//!
//! ```
//! use silo_spans::{SpanFiles, Spans};
//! let files = SpanFiles::build([vec![1, 2, 3, 2, 3], vec![2, 3]]);
//! let spans = Spans::new(&files.units, &files.order, &files.starts).unwrap();
//! let mut places = spans.places(spans.find(&[2, 3])).collect::<Vec<_>>();
//! places.sort();
//! assert_eq!(places, [(0, 1), (0, 3), (1, 0)]); // document, word
//! ```

use std::cmp::Ordering;
use std::ops::Range;

use rayon::slice::ParallelSliceMut;

/// Stands behind the last word of each document: no word has this number.
pub const END: u32 = 0;

/// Places are sorted by so many words from there on. Longer runs are looked at word by word.
pub const SORTED_BY: usize = 512;

/// A suffix array, as it is written to files.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SpanFiles {
    /// The words of all documents, [`END`] after each document.
    pub units: Vec<u32>,
    /// Places in `units`, sorted by what begins there.
    pub order: Vec<u32>,
    /// Where each document begins in `units`, and at last where all end.
    pub starts: Vec<u32>,
}

/// Why files are no suffix array.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("they are no index of runs of words: {0}")]
pub struct NotSpans(&'static str);

impl SpanFiles {
    /// Sorts the places of documents, each given as its words.
    ///
    /// # Panics
    ///
    /// If a word is [`END`], or there are more than 2^32 words.
    pub fn build(documents: impl IntoIterator<Item = Vec<u32>>) -> Self {
        let (mut units, mut starts) = (Vec::new(), vec![0]);
        for document in documents {
            assert!(!document.contains(&END), "no word has the number of the end");
            units.extend_from_slice(&document);
            units.push(END);
            starts.push(u32::try_from(units.len()).expect("a shard has fewer than 2^32 words"));
        }
        let order = sorted(&units);
        Self { units, order, starts }
    }
}

/// The places of words, sorted by what begins there. The first two words are compared as one number that lies beside the place, so that few
/// comparisons go to the words themselves.
fn sorted(units: &[u32]) -> Vec<u32> {
    let first_two = |at: usize| u64::from(units[at]) << 32 | u64::from(*units.get(at + 1).unwrap_or(&END));
    let words = units.iter().enumerate().filter(|(_, unit)| **unit != END);
    let mut places: Vec<(u64, u32)> = words.map(|(at, _)| (first_two(at), at as u32)).collect();
    let rest = |at: u32| {
        let from = (at as usize + 2).min(units.len());
        &units[from..(from + SORTED_BY).min(units.len())]
    };
    let later = |a: &(u64, u32), b: &(u64, u32)| rest(a.1).cmp(rest(b.1)).then(a.1.cmp(&b.1));
    places.par_sort_unstable_by(|a, b| a.0.cmp(&b.0).then_with(|| later(a, b)));
    places.into_iter().map(|(_, at)| at).collect()
}

/// A suffix array, as it lies in memory.
#[derive(Debug, Clone, Copy)]
pub struct Spans<'a> {
    units: &'a [u32],
    order: &'a [u32],
    starts: &'a [u32],
}

impl<'a> Spans<'a> {
    /// Takes what [`SpanFiles`] were written with. Refused, if a search could leave it; whether the order is right is not looked at.
    pub fn new(units: &'a [u32], order: &'a [u32], starts: &'a [u32]) -> Result<Self, NotSpans> {
        let ends = starts.windows(2).all(|w| w[0] < w[1] && units.get(w[1] as usize - 1) == Some(&END));
        if starts.first() != Some(&0) || starts.last().copied() != u32::try_from(units.len()).ok() || !ends {
            return Err(NotSpans("documents do not begin and end where they should"));
        }
        if order.len() + starts.len() - 1 != units.len() || order.iter().any(|at| *at as usize >= units.len()) {
            return Err(NotSpans("not every word has a place"));
        }
        Ok(Self { units, order, starts })
    }

    /// Takes what was taken before: nothing is looked at again.
    pub fn checked(units: &'a [u32], order: &'a [u32], starts: &'a [u32]) -> Self {
        Self { units, order, starts }
    }

    /// The words from a place on, as many as are compared.
    fn from(&self, at: u32, n: usize) -> &'a [u32] {
        let at = at as usize;
        &self.units[at..(at + n).min(self.units.len())]
    }

    /// Where the order holds the places of a run of words; of a run that is longer than what places are sorted by, those of its beginning.
    pub fn find(&self, run: &[u32]) -> Range<usize> {
        let run = &run[..run.len().min(SORTED_BY)];
        let compare = |at: &u32| self.from(*at, run.len()).cmp(run);
        let from = self.order.partition_point(|at| compare(at) == Ordering::Less);
        let n = self.order[from..].partition_point(|at| compare(at) == Ordering::Equal);
        from..from + n
    }

    /// How many words of a run, from its first on, stand somewhere in a document that `is_live` lets pass. In the order the places that have most
    /// in common with the run are next to where it would stand.
    pub fn longest(&self, run: &[u32], is_live: impl Fn(usize) -> bool) -> usize {
        let sorted = self.longest_sorted(&run[..run.len().min(SORTED_BY)], &is_live);
        if sorted < SORTED_BY || run.len() == SORTED_BY {
            return sorted;
        }
        // Among places that are alike for as long as they are sorted, each is looked at to its end.
        let goes_on = |(document, at): (usize, usize)| {
            let words = &self.document(document)[at..];
            words.iter().zip(run).take_while(|(a, b)| a == b).count()
        };
        let places = self.places(self.find(run)).filter(|(document, _)| is_live(*document));
        places.map(goes_on).max().unwrap_or(sorted)
    }

    fn longest_sorted(&self, run: &[u32], is_live: &impl Fn(usize) -> bool) -> usize {
        let at = self.order.partition_point(|at| self.from(*at, run.len()) < run);
        let in_common = |place: u32| self.from(place, run.len()).iter().zip(run).take_while(|(a, b)| a == b).count();
        let lives = |place: &&u32| is_live(self.document_of(**place));
        // What is farther away has no more in common.
        let behind = self.order[at..].iter().take_while(|place| in_common(**place) > 0).find(lives);
        let before = self.order[..at].iter().rev().take_while(|place| in_common(**place) > 0).find(lives);
        behind.into_iter().chain(before).map(|place| in_common(*place)).max().unwrap_or(0)
    }

    /// The document that a place is in.
    fn document_of(&self, place: u32) -> usize {
        self.starts.partition_point(|start| *start <= place) - 1
    }

    /// Parts of a part of the order, each with what stands behind a run of `n` words there: [`END`], or a word. Each word comes once.
    pub fn next_words(&self, range: Range<usize>, n: usize) -> impl Iterator<Item = (u32, Range<usize>)> + 'a {
        let (spans, mut rest) = (*self, range);
        let behind = move |at: u32| spans.units.get(at as usize + n).copied().unwrap_or(END);
        std::iter::from_fn(move || {
            let first = *spans.order.get(rest.start).filter(|_| !rest.is_empty())?;
            let word = behind(first);
            let same = spans.order[rest.clone()].partition_point(|at| behind(*at) <= word);
            let part = rest.start..rest.start + same;
            rest.start = part.end;
            Some((word, part))
        })
    }

    /// Document and word of the places in a part of the order.
    pub fn places(&self, range: Range<usize>) -> impl ExactSizeIterator<Item = (usize, usize)> + 'a {
        let spans = *self;
        self.order[range].iter().map(move |&at| {
            let document = spans.document_of(at);
            (document, (at - spans.starts[document]) as usize)
        })
    }

    /// How many documents there are.
    pub fn n_documents(&self) -> usize {
        self.starts.len() - 1
    }

    /// The words of a document.
    pub fn document(&self, i: usize) -> &'a [u32] {
        &self.units[self.starts[i] as usize..self.starts[i + 1] as usize - 1]
    }

    /// Documents and words where a whole run stands, however long it is.
    pub fn find_all(&self, run: &'a [u32]) -> impl Iterator<Item = (usize, usize)> + 'a {
        let spans = *self;
        self.places(self.find(run)).filter(move |(document, at)| spans.document(*document)[*at..].starts_with(run))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Looks everywhere.
    fn slowly(documents: &[Vec<u32>], run: &[u32]) -> Vec<(usize, usize)> {
        let places = |(d, words): (usize, &Vec<u32>)| {
            (0..words.len()).filter(|at| words[*at..].starts_with(run)).map(|at| (d, at)).collect::<Vec<_>>()
        };
        documents.iter().enumerate().flat_map(places).collect()
    }

    proptest! {
        #[test]
        fn all_places_are_found(
            documents in prop::collection::vec(prop::collection::vec(1u32..4, 0..30), 0..6),
            run in prop::collection::vec(1u32..4, 1..5),
        ) {
            let files = SpanFiles::build(documents.clone());
            let spans = Spans::new(&files.units, &files.order, &files.starts).unwrap();
            let mut found: Vec<_> = spans.find_all(&run).collect();
            found.sort_unstable();
            prop_assert_eq!(found, slowly(&documents, &run));
            prop_assert!((0..documents.len()).all(|i| spans.document(i) == documents[i]));
        }
    }

    proptest! {
        #[test]
        fn what_stands_behind_a_run_comes_word_by_word(
            documents in prop::collection::vec(prop::collection::vec(1u32..4, 0..30), 0..6),
            run in prop::collection::vec(1u32..4, 1..4),
        ) {
            let files = SpanFiles::build(documents.clone());
            let spans = Spans::new(&files.units, &files.order, &files.starts).unwrap();
            let mut found = Vec::new();
            let mut words = Vec::new();
            for (word, part) in spans.next_words(spans.find(&run), run.len()) {
                prop_assert!(!words.contains(&word) && !part.is_empty());
                words.push(word);
                found.extend(spans.places(part).map(|place| (word, place)));
            }
            let behind = |(d, at): (usize, usize)| (documents[d].get(at + run.len()).copied().unwrap_or(END), (d, at));
            let mut expected: Vec<_> = slowly(&documents, &run).into_iter().map(behind).collect();
            found.sort_unstable();
            expected.sort_unstable();
            prop_assert_eq!(found, expected);
        }
    }

    proptest! {
        #[test]
        fn the_longest_run_is_that_of_a_look_everywhere(
            documents in prop::collection::vec(prop::collection::vec(1u32..4, 0..30), 0..6),
            run in prop::collection::vec(1u32..5, 0..12), hidden in prop::collection::vec(any::<bool>(), 6),
        ) {
            let files = SpanFiles::build(documents.clone());
            let spans = Spans::new(&files.units, &files.order, &files.starts).unwrap();
            let stands = |n: &usize| slowly(&documents, &run[..*n]).iter().any(|(document, _)| !hidden[*document]);
            let expected = (1..=run.len()).rev().find(stands).unwrap_or(0);
            prop_assert_eq!(spans.longest(&run, |document| !hidden[document]), expected);
        }
    }

    #[test]
    fn runs_that_are_longer_than_what_is_sorted_are_found() {
        let same: Vec<u32> = vec![7; 2 * SORTED_BY];
        let mut other = same.clone();
        other[SORTED_BY + 20] = 8;
        let documents = vec![same.clone(), other.clone(), vec![7; SORTED_BY / 2]];
        let files = SpanFiles::build(documents.clone());
        let spans = Spans::new(&files.units, &files.order, &files.starts).unwrap();
        let far: Vec<u32> = other.iter().chain(&[7, 9]).copied().collect();
        assert_eq!(spans.longest(&far, |_| true), far.len() - 2);
        assert_eq!(spans.longest(&other, |document| document != 1), SORTED_BY + 20);
        for run in [&same[..], &other[..], &same[..SORTED_BY + 1]] {
            let mut found: Vec<_> = spans.find_all(run).collect();
            found.sort_unstable();
            assert_eq!(found, slowly(&documents, run));
        }
    }

    #[test]
    fn what_is_no_index_is_refused() {
        let SpanFiles { units, order, starts } = SpanFiles::build([vec![1, 2], vec![3]]);
        assert!(Spans::new(&units, &order, &starts).is_ok());
        assert!(Spans::new(&units, &order[1..], &starts).is_err());
        assert!(Spans::new(&units, &[0, 1, 9], &starts).is_err());
        assert!(Spans::new(&units, &order, &[0, 2, 5]).is_err());
        assert!(Spans::new(&units, &order, &[0]).is_err());
        assert!(Spans::new(&[], &[], &[0]).is_ok());
    }
}
