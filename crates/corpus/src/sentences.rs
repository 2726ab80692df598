//! Sentences that texts have in common, word for word: also where they are too short for n-grams of words, as the lines of a dialogue are.

use std::collections::HashSet;

use crate::dedup::hash;

/// Shorter sentences are everybody's.
const SENTENCE_WORDS: usize = 5;

/// Sentences of five words and more. They end with lines and with `.`, `?` and `!`; case, spacing and punctuation do not count.
#[derive(Debug, Default)]
pub struct Sentences(HashSet<u64>);

impl Sentences {
    /// Takes up a text's.
    pub fn add(&mut self, text: &str) {
        self.0.extend(sentences(text).map(|(hash, _)| hash));
    }

    /// How many bytes the words of a text's sentences have, and how many of them are of sentences that were taken up.
    pub fn count(&self, text: &str) -> (usize, usize) {
        sentences(text)
            .fold((0, 0), |(all, known), (hash, n)| (all + n, known + if self.0.contains(&hash) { n } else { 0 }))
    }
}

fn sentences(text: &str) -> impl Iterator<Item = (u64, usize)> {
    text.split(['\n', '.', '?', '!']).filter_map(|sentence| {
        let lower = sentence.to_lowercase();
        let words: Vec<&str> = lower.split(|c: char| !c.is_alphanumeric()).filter(|w| !w.is_empty()).collect();
        (words.len() >= SENTENCE_WORDS).then(|| (hash(&words), words.iter().map(|w| w.len()).sum()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_elsewhere_is_found_in_another_setting() {
        let mut sentences = Sentences::default();
        sentences.add("What about it?\nHAL has a few issues to work out. Yes, indeed.");
        let found = "movies:\n- - what about HAL?\n  - hal has  a few issues to work out";
        assert_eq!(sentences.count(found), (25, 25));
        assert_eq!(sentences.count("HAL has a few issues to work out today. Yes, indeed."), (30, 0));
        assert_eq!(sentences.count("HAL has a few issues to work out? It seems so to me."), (38, 25));
    }
}
