//! Text as runs of words: what is compared where letter case, spaces, line ends and punctuation do not count.
//!
//! A word is a run of letters and digits (Unicode's alphabetic and numeric characters), in the compatibility form NFKC, without regard to case and
//! to characters that cannot be seen. Scripts that write no spaces (Chinese, Japanese, Thai, Lao, Khmer, Burmese) give a word per character; so does
//! what follows the first [`MAX_WORD_CHARS`] characters of a longer run, such as encoded data, so that it is cut alike wherever a look at it begins.

use std::ops::Range;

use unicode_normalization::UnicodeNormalization;

/// Longest word: what follows it without a space is taken character by character.
pub const MAX_WORD_CHARS: usize = 32;

/// A word of a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Word {
    /// As it is compared.
    pub text: String,
    /// Where it stands, in bytes.
    pub at: Range<usize>,
}

impl Word {
    /// What stands for it where texts are compared word by word: never 0. Different words may have the same.
    pub fn unit(&self) -> u32 {
        unit(&self.text)
    }
}

/// What stands for a normalised word: FNV-1a, mixed and folded. It is part of a format on disk.
pub fn unit(word: &str) -> u32 {
    let hash = word.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
    let mixed = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    ((mixed >> 32) as u32).max(1)
}

fn is_alone(c: char) -> bool {
    matches!(u32::from(c), 0x0e00..=0x0eff | 0x1000..=0x109f | 0x1780..=0x17ff | 0x2e80..=0x9fff | 0xf900..=0xfaff | 0x20000..=0x3ffff)
}

/// What is not seen: soft hyphens, joiners, directions, variation selectors.
fn is_invisible(c: char) -> bool {
    matches!(
        u32::from(c),
        0xad | 0x34f | 0x61c | 0x180b..=0x180f | 0x200b..=0x200f | 0x202a..=0x202e | 0x2060..=0x206f | 0xfe00..=0xfe0f | 0xfeff
            | 0xe0000..=0xe0fff
    )
}

fn is_part_of_a_word(c: char) -> bool {
    c.is_alphanumeric() || unicode_normalization::char::is_combining_mark(c)
}

fn normalised(word: &str) -> String {
    if word.is_ascii() {
        return word.to_ascii_lowercase();
    }
    // By way of upper case: letters with several lower-case forms become one, and sharp s becomes ss.
    let seen = word.chars().filter(|c| !is_invisible(*c)).nfkc();
    seen.flat_map(char::to_uppercase).flat_map(char::to_lowercase).collect()
}

/// The words of a text, in order.
pub fn words(text: &str) -> impl Iterator<Item = Word> + '_ {
    let mut characters = text.char_indices().peekable();
    // Where a run goes on that is longer than a word.
    let mut goes_on = None;
    std::iter::from_fn(move || {
        while characters.next_if(|(_, c)| !is_part_of_a_word(*c)).is_some() {}
        let (start, first) = characters.next()?;
        let longest = if is_alone(first) || goes_on == Some(start) { 1 } else { MAX_WORD_CHARS };
        let (mut end, mut n) = (start + first.len_utf8(), 1);
        // What is not seen belongs to the word before it.
        let belongs = |c: char, n: usize| is_invisible(c) || (n < longest && is_part_of_a_word(c) && !is_alone(c));
        while let Some((at, c)) = characters.next_if(|(_, c)| belongs(*c, n)) {
            (end, n) = (at + c.len_utf8(), n + usize::from(!is_invisible(c)));
        }
        goes_on = (n >= longest && !is_alone(first)).then_some(end);
        Some(Word { text: normalised(&text[start..end]), at: start..end })
    })
}

/// The units of a text, in order.
pub fn units(text: &str) -> Vec<u32> {
    words(text).map(|word| word.unit()).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn check(text: &str, expected: &[&str]) {
        assert_eq!(words(text).map(|w| w.text).collect::<Vec<_>>(), expected, "{text:?}");
    }

    #[test]
    fn what_does_not_count_does_not_count() {
        check("It\u{2019}s  a Test\u{2014}or\nnot?", &["it", "s", "a", "test", "or", "not"]);
        check("\u{fb01}nd \u{ff21}\u{ff11} Stra\u{df}e \u{c9}te\u{301}", &["find", "a1", "strasse", "\u{e9}t\u{e9}"]);
        check("e\u{301}t\u{e9}", &["\u{e9}t\u{e9}"]);
        check("\u{4f60}\u{597d}abc", &["\u{4f60}", "\u{597d}", "abc"]);
        check(
            "STRASSE \u{3c3}\u{3bf}\u{3c6}\u{3cc}\u{3c2} in\u{ad}vis\u{200b}ible\u{feff}",
            &["strasse", "\u{3c3}\u{3bf}\u{3c6}\u{3cc}\u{3c3}", "invisible"],
        );
        check(&("x".repeat(34) + " xx"), &[&"x".repeat(32), "x", "x", "xx"]);
        check(" -- ", &[]);
    }

    /// They stand in files: another value makes old ones useless.
    #[test]
    fn units_are_those_of_the_format() {
        assert_eq!(units("The quick brown fox"), [570_688_499, 1_196_131_361, 3_476_744_742, 197_576_307]);
    }

    proptest! {
        #[test]
        fn words_lie_where_they_say(text in "\\PC{0,60}") {
            let mut last = 0;
            for word in words(&text) {
                prop_assert!(word.at.start >= last && word.at.end > word.at.start);
                prop_assert_eq!(&word.text, &normalised(&text[word.at.clone()]));
                last = word.at.end;
            }
            let again: String = words(&text).map(|w| w.text + " ").collect();
            prop_assert_eq!(words(&again).next().is_some(), last > 0);
        }
    }
}
