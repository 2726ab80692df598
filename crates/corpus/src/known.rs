//! Text that stands elsewhere word for word, whatever its lines, paragraphs and pages are.

use std::collections::HashSet;
use std::ops::Range;

use crate::dedup::hash;

/// Words of a run that is no coincidence.
const RUN_WORDS: usize = 8;
/// Shorter sentences are everybody's.
const SENTENCE_WORDS: usize = 5;
/// From here on there are scripts that put no spaces between words.
const WITHOUT_SPACES: char = '\u{2e80}';

/// Runs of eight words, and sentences of five words and more, which end with lines too, as those of a dialogue. Case, spacing, punctuation, numbers (so
/// those of lines as well) and hyphens do not count.
#[derive(Debug, Default)]
pub(crate) struct KnownText {
    runs: HashSet<u64>,
    sentences: HashSet<u64>,
}

impl KnownText {
    /// Takes up a text.
    pub(crate) fn add(&mut self, text: &str) {
        let words = Words::of(text);
        self.runs.extend(words.runs().map(|(hash, _)| hash));
        self.sentences.extend(words.sentences().map(|(hash, _)| hash));
    }

    /// How many bytes the words of a text have, and how many of them stand in text that was taken up.
    pub(crate) fn count(&self, text: &str) -> (usize, usize) {
        let words = Words::of(text);
        let mut known = vec![false; words.words.len()];
        let runs = words.runs().filter(|(hash, _)| self.runs.contains(hash));
        let sentences = words.sentences().filter(|(hash, _)| self.sentences.contains(hash));
        for (_, range) in runs.chain(sentences) {
            known[range].fill(true);
        }
        let bytes = |(word, known): (&String, &bool)| (word.len(), if *known { word.len() } else { 0 });
        words.words.iter().zip(&known).map(bytes).fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1))
    }
}

/// As keyboards have it, and as typesetting does: U+2010, U+2011, and U+00AD, which shows only where a line ends.
fn is_hyphen(c: char) -> bool {
    matches!(c, '-' | '\u{2010}' | '\u{2011}' | '\u{ad}')
}

#[derive(Default)]
struct Words {
    words: Vec<String>,
    /// Where sentences end, in words; one of no words, if two ends follow each other.
    ends: Vec<usize>,
}

impl Words {
    fn of(text: &str) -> Self {
        let mut out = Self::default();
        let mut word = String::new();
        let mut rest = text.chars().peekable();
        while let Some(c) = rest.next() {
            if c >= WITHOUT_SPACES && c.is_alphabetic() {
                out.take(&mut word);
                out.words.push(c.to_string());
            } else if c.is_alphanumeric() {
                word.extend(c.to_lowercase());
            } else if is_hyphen(c) && !word.is_empty() && !rest.peek().is_some_and(|next| is_hyphen(*next)) {
                // A word that is cut at the end of a line, or put together of two, is one; two hyphens are a dash.
                while rest.next_if(|c| c.is_whitespace()).is_some() {}
            } else {
                out.take(&mut word);
                if "\n.?!。！？".contains(c) {
                    out.ends.push(out.words.len());
                }
            }
        }
        out.take(&mut word);
        out.ends.push(out.words.len());
        out
    }

    fn take(&mut self, word: &mut String) {
        let word = std::mem::take(word);
        if word.chars().any(char::is_alphabetic) {
            self.words.push(word);
        }
    }

    fn hash(&self, range: Range<usize>) -> (u64, Range<usize>) {
        let words: Vec<&str> = self.words[range.clone()].iter().map(String::as_str).collect();
        (hash(&words), range)
    }

    fn runs(&self) -> impl Iterator<Item = (u64, Range<usize>)> + '_ {
        (RUN_WORDS..=self.words.len()).map(|end| self.hash(end - RUN_WORDS..end))
    }

    fn sentences(&self) -> impl Iterator<Item = (u64, Range<usize>)> + '_ {
        let begins = std::iter::once(0).chain(self.ends.iter().copied());
        let ranges = begins.zip(&self.ends).map(|(begin, end)| begin..*end);
        ranges.filter(|range| range.len() >= SENTENCE_WORDS).map(|range| self.hash(range))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(governed: &str, text: &str) -> (usize, usize) {
        let mut known = KnownText::default();
        known.add(governed);
        known.count(text)
    }

    #[test]
    fn what_is_said_elsewhere_is_found_in_another_setting() {
        let dialogue = "What about poor old it?\nHAL has a few issues to work out. Yes, indeed.";
        let found = "movies:\n- - what about poor old it?\n  - hal has  a few issues to work out";
        let without = "movies".len();
        let (all, of_them) = known(dialogue, found);
        assert_eq!(all - of_them, without);
        assert_eq!(known(dialogue, "HAL has a few issues to talk about. Yes, indeed.").1, 0);
        assert_eq!(known(dialogue, ""), (0, 0));
    }

    const PROSE: &str = "The first sentence of this text is rather long, so that it has to go on in another line; the second one is as long as the first \
        one and is cut elsewhere. And a third, to end with, hyphenated here or there.";

    fn wrapped(width: usize, between_lines: &str) -> String {
        let mut lines = vec![String::new()];
        for word in PROSE.split(' ') {
            match lines.last_mut() {
                Some(line) if line.is_empty() => line.push_str(word),
                Some(line) if line.len() + word.len() < width => *line += &format!(" {word}"),
                _ => lines.push(word.to_owned()),
            }
        }
        lines.join(between_lines)
    }

    #[test]
    fn prose_is_found_however_it_is_laid_out() {
        let (all, _) = known("", PROSE);
        let numbered: Vec<String> =
            wrapped(40, "\n").lines().enumerate().map(|(i, line)| format!("{i:4} {line}")).collect();
        let laid_out = [
            wrapped(30, "\n"),
            wrapped(1_000, "\n"),
            wrapped(30, "\n// "),
            wrapped(30, "\n\n"),
            wrapped(30, "\r\n"),
            numbered.join("\n"),
            PROSE.replace("elsewhere", "else-\n   where").replace("sentence", "sen-\ntence"),
            PROSE.replace("elsewhere", "else\u{2010}\nwhere").replace("sentence", "sen\u{ad}tence"),
            PROSE.replace("; ", "\u{2014}"),
            PROSE.replace("; ", "--"),
        ];
        for (i, text) in laid_out.iter().enumerate() {
            assert_eq!(known(&wrapped(47, "\n"), text), (all, all), "{i}");
            assert_eq!(known(text, &wrapped(47, "\n")), (all, all), "{i}");
        }
        // Page headers between lines cost what they cut off.
        let (all, of_them) = known(PROSE, &wrapped(100, "\nThe title\n"));
        assert!(of_them as f64 > 0.9 * (all - "thetitle".len()) as f64, "{of_them} of {all}");
    }

    #[test]
    fn scripts_without_spaces_have_words_too() {
        let text = "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。";
        let (all, of_them) = known(text, &text.replace('。', "。\n"));
        assert_eq!((all, of_them), ("吾輩は猫である名前はまだ無いどこで生れたかとんと見当がつかぬ".len(), all));
        assert_eq!(known(text, "昔々ある所にお爺さんとお婆さんが住んでいました。").1, 0);
    }
}
