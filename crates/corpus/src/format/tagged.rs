//! Corpora with part-of-speech tags → running text.

use super::Cleaned;

/// Words that stand close to the one before them.
const CLOSE: &[&str] = &[".", ",", ";", ":", "!", "?", ")", "''", "'", "%"];
/// Words that the next one stands close to.
const OPEN: &[&str] = &["(", "``", "`", "$"];

pub(super) fn clean(text: &str) -> Cleaned {
    let mut out = String::with_capacity(text.len() / 2);
    for line in text.lines() {
        let mut glue = true;
        for token in line.split_whitespace() {
            let word = token.rsplit_once('/').map_or(token, |(word, _)| word);
            if !glue && !CLOSE.contains(&word) {
                out.push(' ');
            }
            out.push_str(match word {
                "``" | "''" => "\"",
                word => word,
            });
            glue = OPEN.contains(&word);
        }
        out.push('\n');
    }
    Cleaned { title: String::new(), text: out }
}

#[cfg(test)]
mod tests {
    use crate::Format;

    #[test]
    fn tags_go_and_punctuation_closes_up() {
        let text = "\tThe/at jury/nn said/vbd ,/, ``/`` No/at evidence/nn (/( 1\\/2/cd )/) ''/'' ./.\n\nNext/ap\n";
        assert_eq!(Format::Tagged.clean(text.as_bytes()).text, "The jury said, \"No evidence (1\\/2)\".\n\nNext\n");
    }
}
