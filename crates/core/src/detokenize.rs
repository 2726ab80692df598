//! Streaming detokenisation that never splits a character.

/// Collects the bytes of tokens and gives back whole characters as soon as they are complete.
#[derive(Debug, Default, Clone)]
pub struct Detokenizer {
    pending: Vec<u8>,
}

impl Detokenizer {
    /// Longest start of a character that can still become one.
    const MAX_INCOMPLETE: usize = 3;

    /// Adds a token's bytes; returns the text that is now certain. Bytes that can never become UTF-8 turn into U+FFFD, as
    /// `String::from_utf8_lossy` does it.
    pub fn push(&mut self, bytes: &[u8]) -> String {
        self.pending.extend_from_slice(bytes);
        let keep = incomplete_suffix(&self.pending);
        let rest = self.pending.split_off(self.pending.len() - keep);
        let text = String::from_utf8_lossy(&self.pending).into_owned();
        self.pending = rest;
        text
    }

    /// Whether a character has begun that is not complete.
    pub fn holds(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Ends the text: what is still incomplete becomes U+FFFD.
    pub fn finish(&mut self) -> String {
        let text = String::from_utf8_lossy(&self.pending).into_owned();
        self.pending.clear();
        text
    }
}

/// Length of the suffix that is the start of a character whose end has not come yet.
fn incomplete_suffix(bytes: &[u8]) -> usize {
    for n in 1..=Detokenizer::MAX_INCOMPLETE.min(bytes.len()) {
        let start = bytes.len() - n;
        if bytes[start] & 0b1100_0000 == 0b1000_0000 {
            continue; // a continuation byte: look for its lead further left
        }
        let incomplete = matches!(std::str::from_utf8(&bytes[start..]), Err(e) if e.error_len().is_none());
        return if incomplete { n } else { 0 };
    }
    0
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_character_comes_when_it_is_whole() {
        let mut d = Detokenizer::default();
        let bytes = "é🦀".as_bytes();
        let parts: Vec<String> = bytes.iter().map(|b| d.push(&[*b])).collect();
        assert_eq!(parts, ["", "é", "", "", "", "🦀"]);
        assert_eq!(d.finish(), "");
    }

    #[test]
    fn broken_bytes_do_not_hold_back_what_follows() {
        let mut d = Detokenizer::default();
        assert_eq!(d.push(b"\xffa"), "\u{fffd}a");
        assert_eq!(d.push(b"\xe2\x82"), "");
        assert_eq!(d.push(b"b"), "\u{fffd}b");
        assert_eq!(d.push(b"\xe2\x82"), "");
        assert_eq!(d.finish(), "\u{fffd}");
    }

    proptest! {
        #[test]
        fn pieces_join_to_the_text(text in ".*", cuts in prop::collection::vec(1usize..4, 0..50)) {
            let mut d = Detokenizer::default();
            let mut out = String::new();
            let mut rest = text.as_bytes();
            for cut in cuts {
                let (now, later) = rest.split_at(cut.min(rest.len()));
                out += &d.push(now);
                rest = later;
            }
            out += &d.push(rest);
            out += &d.finish();
            prop_assert_eq!(out, text);
        }

        #[test]
        fn any_bytes_come_out_as_from_utf8_lossy(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
            let mut d = Detokenizer::default();
            let mut out: String = bytes.iter().map(|b| d.push(&[*b])).collect();
            out += &d.finish();
            prop_assert_eq!(out, String::from_utf8_lossy(&bytes));
        }
    }
}
