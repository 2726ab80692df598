//! Formats of one work each, in which every line or comment is an entry.

use super::Cleaned;

/// WordNet's `data.*`: the words of a set of synonyms, and what they mean.
pub(super) fn wordnet(text: &str) -> Cleaned {
    let mut out = String::with_capacity(text.len() / 2);
    for line in text.lines().filter(|l| l.starts_with(|c: char| c.is_ascii_digit())) {
        let Some((data, gloss)) = line.split_once(" | ") else { continue };
        let fields: Vec<&str> = data.split(' ').collect();
        // offset, file, kind, number of words (hexadecimal); then each word and a number.
        let n = fields.get(3).and_then(|n| usize::from_str_radix(n, 16).ok()).unwrap_or_default();
        let words: Vec<String> = fields.iter().skip(4).step_by(2).take(n).map(|w| w.replace('_', " ")).collect();
        out.push_str(&format!("{}: {}\n\n", words.join(", "), gloss.trim()));
    }
    Cleaned { title: String::new(), text: out }
}

/// Metamath databases: the comments, which are prose; formulas are left out.
pub(super) fn metamath(text: &str) -> Cleaned {
    let mut out = String::new();
    for comment in text.split("$(").skip(1).filter_map(|rest| rest.split("$)").next()) {
        let words: Vec<&str> = comment.split_whitespace().collect();
        // Rulers of headings, and what is no sentence.
        if words.len() >= 5 && !words[0].starts_with("#*") {
            out.push_str(&words.join(" "));
            out.push_str("\n\n");
        }
    }
    Cleaned { title: String::new(), text: out }
}

/// JSON: the strings in it that are sentences.
pub(super) fn json(text: &str) -> Cleaned {
    let mut out = String::new();
    if let Ok(value) = serde_json::from_str(text) {
        collect(&value, &mut out);
    }
    Cleaned { title: String::new(), text: out }
}

/// Strings of so many words are text, shorter ones names and numbers.
const MIN_WORDS: usize = 5;

fn collect(value: &serde_json::Value, out: &mut String) {
    use serde_json::Value;
    match value {
        Value::String(s) if s.split_whitespace().nth(MIN_WORDS - 1).is_some() => {
            out.push_str(&super::html::clean(s.as_bytes()).text);
            out.push_str("\n\n");
        }
        Value::Array(items) => items.iter().for_each(|v| collect(v, out)),
        Value::Object(fields) => fields.values().for_each(|v| collect(v, out)),
        _ => (),
    }
}

#[cfg(test)]
mod tests {
    use crate::Format;

    #[test]
    fn entries_become_paragraphs() {
        let wordnet =
            "  1 licence\n00039297 04 n 02 contact 2 hot_spot 0 005 @ 00037396 n 0000 | close interaction; \"x\"  \n";
        assert_eq!(Format::Wordnet.clean(wordnet.as_bytes()).text, "contact, hot spot: close interaction; \"x\"\n");
        let metamath = "$( #*#*# \n Heading\n#*#* $) x $p |- y $.\n$( A rule of\n inference that holds. $) $( short $)";
        assert_eq!(Format::Metamath.clean(metamath.as_bytes()).text, "A rule of inference that holds.\n");
        let json = r#"{"name": "short", "a": ["One <b>two</b> three &amp; four five.", {"b": 3}], "c": "six of the best words"}"#;
        assert_eq!(Format::Json.clean(json.as_bytes()).text, "One two three & four five.\n\nsix of the best words\n");
        assert_eq!(Format::Json.clean(b"{").text, "");
    }
}
