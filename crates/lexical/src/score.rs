//! Scores over a set of indexes.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::collections::BTreeMap;

use fixedbitset::FixedBitSet;
use serde::{Deserialize, Serialize};

use crate::index::{analyser, words};
use crate::{LexicalError, PassageIndex};

/// The two parameters of BM25.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bm25 {
    /// How soon further occurrences of a word stop counting.
    pub k1: f64,
    /// How much long passages are held back, from 0 to 1.
    pub b: f64,
}

impl Default for Bm25 {
    /// Pyserini's values, which SILO used.
    fn default() -> Self {
        Self { k1: 0.9, b: 0.4 }
    }
}

/// A passage that was found.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Hit {
    /// Its score, above 0.
    pub score: f64,
    /// Number of its index in the call.
    pub part: u32,
    /// Its number in the index.
    pub passage: u32,
}

/// The order of passages of equal score, given as (part, passage). It must be total.
pub type PassageOrder<'a> = dyn Fn((u32, u32), (u32, u32)) -> Ordering + 'a;

/// An index, and the passages of it that may not be seen.
#[derive(Debug, Clone)]
pub struct Part<'a> {
    /// The index.
    pub index: &'a PassageIndex,
    /// Passages that nobody sees.
    pub hidden: Option<Cow<'a, FixedBitSet>>,
}

impl Part<'_> {
    fn shows(&self, passage: u32) -> bool {
        !self.hidden.as_deref().is_some_and(|h| h.contains(passage as usize))
    }

    /// Passages that may be seen, and their words.
    fn visible(&self) -> (u64, u64) {
        let all = (self.index.n_passages() as u64, self.index.n_words());
        let hidden = self.hidden.iter().flat_map(|h| h.ones());
        hidden.fold(all, |(n, words), p| (n - 1, words - u64::from(self.index.length(p as u32))))
    }
}

/// The at most k best passages of `parts` for the words of `query`, best first. A word that stands twice in the query counts
/// twice.
pub fn search(
    parts: &[Part<'_>],
    query: &str,
    k: usize,
    bm25: Bm25,
    order: &PassageOrder<'_>,
) -> Result<Vec<Hit>, LexicalError> {
    let mut counts: BTreeMap<String, u32> = BTreeMap::new();
    for word in words(&mut analyser(), query) {
        *counts.entry(word).or_default() += 1;
    }
    let visible = parts.iter().map(Part::visible);
    let (n_passages, n_words) = visible.fold((0, 0), |(p, w), (passages, words)| (p + passages, w + words));
    let average = n_words as f64 / n_passages.max(1) as f64;
    let mut scores: Vec<Vec<f64>> = parts.iter().map(|p| vec![0.0; p.index.n_passages()]).collect();
    let mut touched: Vec<(u32, u32)> = Vec::new();
    // In the order of the words, so that every sum has one order.
    for (word, count) in &counts {
        let mut postings: Vec<(u32, u32, u32)> = Vec::new();
        for (number, part) in parts.iter().enumerate() {
            part.index.postings(word, |passage, occurrences| {
                if part.shows(passage) {
                    postings.push((number as u32, passage, occurrences));
                }
            })?;
        }
        let df = postings.len() as f64;
        let idf = (1.0 + (n_passages as f64 - df + 0.5) / (df + 0.5)).ln();
        for (part, passage, occurrences) in postings {
            let tf = f64::from(occurrences);
            let length = f64::from(parts[part as usize].index.length(passage));
            let norm = bm25.k1 * (1.0 - bm25.b + bm25.b * length / average);
            let score = &mut scores[part as usize][passage as usize];
            if *score == 0.0 {
                touched.push((part, passage));
            }
            *score += f64::from(*count) * idf * tf * (bm25.k1 + 1.0) / (tf + norm);
        }
    }
    let hit = |&(part, passage): &(u32, u32)| Hit { score: scores[part as usize][passage as usize], part, passage };
    let mut hits: Vec<Hit> = touched.iter().map(hit).collect();
    let compare =
        |a: &Hit, b: &Hit| b.score.total_cmp(&a.score).then_with(|| order((a.part, a.passage), (b.part, b.passage)));
    if k > 0 && hits.len() > k {
        hits.select_nth_unstable_by(k - 1, compare);
    }
    hits.truncate(k);
    hits.sort_unstable_by(compare);
    Ok(hits)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tempfile::TempDir;

    use super::*;
    use crate::PassageIndexBuilder;

    fn build(passages: &[String]) -> (TempDir, PassageIndex) {
        let directory = tempfile::tempdir().unwrap();
        let mut builder = PassageIndexBuilder::create(directory.path()).unwrap();
        passages.iter().for_each(|p| builder.add(p).unwrap());
        builder.finish().unwrap();
        let index = PassageIndex::open(directory.path()).unwrap();
        (directory, index)
    }

    /// The formula, word by word.
    fn oracle(passages: &[String], query: &str, bm25: Bm25) -> Vec<f64> {
        let split = |t: &str| t.split(' ').filter(|w| !w.is_empty()).map(str::to_owned).collect::<Vec<_>>();
        let all: Vec<Vec<String>> = passages.iter().map(|p| split(p)).collect();
        let n = all.len() as f64;
        let average = all.iter().map(Vec::len).sum::<usize>() as f64 / n;
        let score = |passage: &Vec<String>| -> f64 {
            split(query)
                .iter()
                .map(|word| {
                    let tf = passage.iter().filter(|w| *w == word).count() as f64;
                    let df = all.iter().filter(|p| p.contains(word)).count() as f64;
                    let idf = (1.0 + (n - df + 0.5) / (df + 0.5)).ln();
                    let norm = bm25.k1 * (1.0 - bm25.b + bm25.b * passage.len() as f64 / average);
                    idf * tf * (bm25.k1 + 1.0) / (tf + norm)
                })
                .sum()
        };
        all.iter().map(score).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

        #[test]
        fn scores_are_the_formula_and_do_not_see_the_layout(
            passages in prop::collection::vec("[abc]{1,2}( [abc]{1,2}){0,8}", 1..20),
            query in "[abc]{1,2}( [abc]{1,2}){0,4}",
            cut in 0usize..20, k in 0usize..10,
        ) {
            let bm25 = Bm25 { k1: 1.2, b: 0.75 };
            let (_a, whole) = build(&passages);
            let (left, right) = passages.split_at(cut.min(passages.len()));
            let ((_b, left), (_c, right)) = (build(left), build(right));
            let split = left.n_passages() as u32;
            let number = |(part, passage): (u32, u32)| if part == 0 { passage } else { split + passage };
            let all = |index| Part { index, hidden: None };
            let one = search(&[all(&whole)], &query, k, bm25, &|a, b| a.cmp(&b)).unwrap();
            let two = search(&[all(&left), all(&right)], &query, k, bm25, &|a, b| number(a).cmp(&number(b))).unwrap();
            let bits = |hits: &[Hit]| hits.iter().map(|h| (number((h.part, h.passage)), h.score.to_bits())).collect::<Vec<_>>();
            prop_assert_eq!(one.iter().map(|h| (h.passage, h.score.to_bits())).collect::<Vec<_>>(), bits(&two));
            // What is hidden is as if it were not there.
            let behind = (left.n_passages()..passages.len()).collect();
            let hidden = Part { index: &whole, hidden: Some(Cow::Owned(behind)) };
            let rest = search(&[hidden], &query, k, bm25, &|a, b| a.cmp(&b)).unwrap();
            prop_assert_eq!(rest, search(&[all(&left)], &query, k, bm25, &|a, b| a.cmp(&b)).unwrap());
            let expected = oracle(&passages, &query, bm25);
            let mut ranked: Vec<usize> = (0..passages.len()).filter(|&i| expected[i] > 0.0).collect();
            ranked.sort_by(|&a, &b| expected[b].total_cmp(&expected[a]));
            prop_assert_eq!(one.len(), k.min(ranked.len()));
            for (hit, &best) in one.iter().zip(&ranked) {
                prop_assert!((hit.score - expected[hit.passage as usize]).abs() < 1e-9);
                prop_assert!((hit.score - expected[best]).abs() < 1e-9);
            }
        }
    }

    #[test]
    fn a_truncated_index_is_refused() {
        let (directory, _) = build(&["a b c".into()]);
        std::fs::write(directory.path().join("lengths.bin"), [1, 2]).unwrap();
        assert!(PassageIndex::open(directory.path()).unwrap_err().to_string().contains("damaged"));
        std::fs::write(directory.path().join("meta.json"), "{").unwrap();
        assert!(PassageIndex::open(directory.path()).is_err());
    }
}
