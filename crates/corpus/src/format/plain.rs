//! Plain text, and what all formats end with.

use unicode_normalization::UnicodeNormalization;

use super::Cleaned;

/// Longest title taken from a first line.
const TITLE_CHARS: usize = 120;

/// UTF-8, or what old files are usually written in.
pub(super) fn decode(bytes: &[u8]) -> String {
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => encoding_rs::WINDOWS_1252.decode(bytes).0.into_owned(),
    }
}

pub(super) fn clean(text: &str) -> Cleaned {
    let first = text.lines().map(str::trim).find(|l| !l.is_empty()).unwrap_or_default();
    let title = if first.chars().count() <= TITLE_CHARS { first.to_owned() } else { String::new() };
    Cleaned { title, text: text.to_owned() }
}

/// Unicode normal form C, no control characters, no spaces at the ends of lines, at most one empty line in a row.
pub(super) fn tidy(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut empty = 0;
    for line in text.replace("\r\n", "\n").replace(['\r', '\u{c}'], "\n").lines() {
        let line: String = line.chars().filter(|c| *c == '\t' || !c.is_control()).nfc().collect();
        let line = line.trim_end();
        if line.is_empty() {
            empty += 1;
            continue;
        }
        if !out.is_empty() {
            out.push_str(if empty > 0 { "\n\n" } else { "\n" });
        }
        out.push_str(line);
        empty = 0;
    }
    if !out.is_empty() {
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn lines_and_characters_are_tidied() {
        assert_eq!(tidy("\n\na \r\nb\n\n\n\u{7}c\u{c}e\u{301}\n"), "a\nb\n\nc\né\n");
        assert_eq!(decode(b"caf\xe9"), "café");
        assert_eq!(decode("\u{feff}x".as_bytes()), "x");
    }

    proptest! {
        #[test]
        fn tidying_twice_changes_nothing_more(text in any::<String>()) {
            let once = tidy(&text);
            prop_assert_eq!(tidy(&once), once);
        }
    }
}
