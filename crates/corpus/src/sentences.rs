//! Sentences that texts have in common, word for word: also where they are too short for n-grams of words, as the lines of a dialogue are.

use std::collections::HashSet;

use crate::dedup::hash;

/// Shorter sentences are everybody's.
const SENTENCE_WORDS: usize = 5;

/// Sentences of five words and more. They end with `.`, `?` and `!`, and either with lines, as those of a dialogue, or with paragraphs only, as those of
/// prose that was cut into lines of some width. Case, spacing and punctuation do not count.
#[derive(Debug, Default)]
pub(crate) struct Sentences(HashSet<u64>);

impl Sentences {
    /// Takes up a text's.
    pub(crate) fn add(&mut self, text: &str) {
        self.0.extend(by_lines(text).chain(by_paragraphs(text)).map(|(hash, _)| hash));
    }

    /// How many bytes the words of a text's sentences have, and how many of them are of sentences that were taken up: by lines or by paragraphs,
    /// whichever finds more.
    pub(crate) fn count(&self, text: &str) -> (usize, usize) {
        let (lines, paragraphs) = (self.known(by_lines(text)), self.known(by_paragraphs(text)));
        // known / all, compared without dividing by a text that has no sentence.
        if lines.1 * paragraphs.0.max(1) > paragraphs.1 * lines.0.max(1) { lines } else { paragraphs }
    }

    fn known(&self, sentences: impl Iterator<Item = (u64, usize)>) -> (usize, usize) {
        sentences.fold((0, 0), |(all, known), (hash, n)| (all + n, known + if self.0.contains(&hash) { n } else { 0 }))
    }
}

fn by_lines(text: &str) -> impl Iterator<Item = (u64, usize)> {
    text.lines().flat_map(sentences)
}

fn by_paragraphs(text: &str) -> impl Iterator<Item = (u64, usize)> {
    let lines: Vec<&str> = text.lines().collect();
    let paragraphs: Vec<String> = lines.split(|line| line.trim().is_empty()).map(|lines| lines.join(" ")).collect();
    paragraphs.into_iter().flat_map(|paragraph| sentences(&paragraph).collect::<Vec<_>>())
}

fn sentences(text: &str) -> impl Iterator<Item = (u64, usize)> {
    text.split(['.', '?', '!']).filter_map(|sentence| {
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

    #[test]
    fn prose_is_found_whatever_its_lines_are_wide() {
        let prose = "The first sentence of this text is rather long, so that it has to go on in another line. The second one is as long as the first \
                     one and is cut elsewhere. And a third, to end with.";
        let wrapped = |width: usize| {
            prose.split(' ').fold(String::new(), |text, word| {
                let line = text.lines().last().unwrap_or_default().len();
                let between = if text.is_empty() {
                    ""
                } else if line + word.len() < width {
                    " "
                } else {
                    "\n"
                };
                text + between + word
            })
        };
        for (governed, neutral) in [(30, 47), (47, 30), (72, 1_000), (1_000, 72)] {
            let mut sentences = Sentences::default();
            sentences.add(&wrapped(governed));
            let (all, known) =
                sentences.count(&format!("{}\n\nWhat is said here is said nowhere else.", wrapped(neutral)));
            assert_eq!(
                (all - known, known > 100),
                ("whatissaidhereissaidnowhereelse".len(), true),
                "{governed} and {neutral}"
            );
        }
        assert_eq!(Sentences::default().count(""), (0, 0));
    }
}
