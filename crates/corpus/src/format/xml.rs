//! DocBook, Mallard and AIML → paragraphs.

use quick_xml::Reader;
use quick_xml::events::Event;

use super::Cleaned;

/// What elements mean.
pub(super) struct Vocabulary {
    /// Elements that begin a paragraph.
    blocks: &'static [&'static str],
    /// Elements that are no text of the page.
    skipped: &'static [&'static str],
}

/// DocBook and Mallard.
pub(super) const DOCBOOK: Vocabulary = Vocabulary { blocks: BLOCKS, skipped: SKIPPED };

/// AIML 1.0.1: categories of pattern and template. What a bot only notes for itself is no text.
pub(super) const AIML: Vocabulary = Vocabulary {
    blocks: &["category", "pattern", "template", "li"],
    skipped: &["think", "that", "topic", "condition"],
};

const BLOCKS: &[&str] = &[
    "para",
    "simpara",
    "p",
    "title",
    "subtitle",
    "section",
    "sect1",
    "sect2",
    "sect3",
    "chapter",
    "screen",
    "programlisting",
    "code",
    "listitem",
    "item",
    "note",
    "example",
    "row",
    "refsect1",
    "steps",
    "list",
];
const SKIPPED: &[&str] = &["info", "bookinfo", "articleinfo", "indexterm", "remark", "legalnotice", "revhistory"];

/// Reads as much as is well formed; entities that the file defines itself are left out.
pub(super) fn clean(text: &str, vocabulary: &Vocabulary) -> Cleaned {
    let mut reader = Reader::from_str(text);
    reader.config_mut().check_end_names = false;
    let (mut out, mut title) = (String::new(), String::new());
    let (mut skipped, mut in_title) = (0usize, false);
    loop {
        match reader.read_event() {
            Ok(Event::Start(e)) => {
                let name = e.local_name();
                if skipped > 0 || vocabulary.skipped.contains(&name.as_ref()) {
                    skipped += 1;
                } else if vocabulary.blocks.contains(&name.as_ref()) {
                    out.push_str("\n\n");
                    in_title = name.as_ref() == "title" && title.is_empty();
                }
            }
            Ok(Event::End(e)) => {
                skipped = skipped.saturating_sub(1);
                if skipped == 0 && vocabulary.blocks.contains(&e.local_name().as_ref()) {
                    out.push_str("\n\n");
                    in_title = false;
                }
            }
            Ok(Event::Text(t)) if skipped == 0 => {
                push_words(&mut out, &t);
                if in_title {
                    title.push_str(&t);
                }
            }
            Ok(Event::CData(t)) if skipped == 0 => out.push_str(&t),
            Ok(Event::GeneralRef(r)) if skipped == 0 => out.push_str(entity(&r)),
            Ok(Event::Eof) | Err(_) => break,
            Ok(_) => {}
        }
    }
    Cleaned { title, text: out }
}

fn entity(name: &str) -> &'static str {
    match name {
        "amp" => "&",
        "lt" => "<",
        "gt" => ">",
        "quot" => "\"",
        "apos" => "'",
        _ => "",
    }
}

fn push_words(out: &mut String, text: &str) {
    let lead = text.starts_with(char::is_whitespace);
    let words: Vec<&str> = text.split_whitespace().collect();
    if lead && !out.ends_with(char::is_whitespace) {
        out.push(' ');
    }
    out.push_str(&words.join(" "));
    if !words.is_empty() && text.ends_with(char::is_whitespace) {
        out.push(' ');
    }
}

#[cfg(test)]
mod tests {
    use crate::Format;

    #[test]
    fn elements_become_paragraphs() {
        let text = "<page xmlns='u'><info><desc>no</desc></info><title>A &amp; b</title><p>One <em>two</em>\n three.</p><p>Four</p></page>";
        let cleaned = Format::Docbook.clean(text.as_bytes());
        assert_eq!(cleaned.text, "A & b\n\nOne two three.\n\nFour\n");
    }

    #[test]
    fn what_is_said_and_answered_becomes_text() {
        let text = "<aiml><category><pattern>HELLO *</pattern><template><think><set name='a'>x</set></think>Hi &amp; welcome.\n\
                    <random><li>One.</li><li>Two.</li></random></template></category></aiml>";
        assert_eq!(Format::Aiml.clean(text.as_bytes()).text, "HELLO *\n\nHi & welcome.\n\nOne.\n\nTwo.\n");
    }

    #[test]
    fn broken_files_give_what_is_before_the_break() {
        assert_eq!(Format::Docbook.clean(b"<p>One</p><p>Two<").text, "One\n\nTwo\n");
    }
}
