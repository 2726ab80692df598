//! Modules of the SWORD library (texts and commentaries: zText, zCom) → paragraphs.
//!
//! A data file is a row of zlib streams with OSIS markup, now and then with unused bytes between them.

use std::borrow::Cow;
use std::io::Read;

use flate2::read::ZlibDecoder;

use quick_xml::escape::unescape;

use super::Cleaned;

/// Elements that begin a paragraph, and those within which nothing is text of the work.
const BREAKS: [&str; 5] = ["div", "title", "chapter", "lg", "p"];
const LEFT_OUT: [&str; 2] = ["note", "reference"];

pub(super) fn clean(bytes: &[u8]) -> Cleaned {
    Cleaned { title: String::new(), text: text_of(&String::from_utf8_lossy(&inflate(bytes))) }
}

/// All streams, one after the other.
fn inflate(bytes: &[u8]) -> Vec<u8> {
    let (mut out, mut at) = (Vec::new(), 0);
    while at < bytes.len() {
        let mut decoder = ZlibDecoder::new(&bytes[at..]);
        let mut stream = Vec::new();
        let whole = bytes[at] == 0x78 && decoder.read_to_end(&mut stream).is_ok();
        at += if whole { decoder.total_in().max(1) as usize } else { 1 };
        if whole {
            out.append(&mut stream);
        }
    }
    out
}

fn text_of(markup: &str) -> String {
    let mut out = String::with_capacity(markup.len() / 3);
    let mut left_out = 0;
    for piece in markup.split('<') {
        let (tag, text) = piece.split_once('>').unwrap_or(("", piece));
        let (closes, name) = tag.strip_prefix('/').map_or((false, tag), |name| (true, name));
        let empty = name.ends_with('/');
        let name = name.split([' ', '/']).next().unwrap_or_default();
        if LEFT_OUT.contains(&name) && !empty {
            left_out = if closes { usize::saturating_sub(left_out, 1) } else { left_out + 1 };
        }
        match name {
            name if BREAKS.contains(&name) => out.push_str("\n\n"),
            "l" | "lb" if !closes => out.push('\n'),
            _ => (),
        }
        if left_out == 0 {
            out.push_str(&unescape(text).unwrap_or(Cow::Borrowed(text)));
        }
    }
    let lines = out.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "));
    lines.collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::ZlibEncoder;

    use crate::Format;

    #[test]
    fn streams_are_joined_and_markup_goes() {
        let mut bytes = Vec::new();
        for text in [
            r#"<div sID="a" type="x-p"/><w lemma="x">In</w> the  beginning&amp;<note place="foot"><reference>1</reference>not this</note> end.<div eID="a" type="x-p"/>"#,
            r#"<title>Psalm</title><l>one</l><l>two</l>"#,
        ] {
            let mut encoder = ZlibEncoder::new(Vec::new(), Compression::fast());
            encoder.write_all(text.as_bytes()).unwrap();
            bytes.extend(encoder.finish().unwrap());
            bytes.extend([0, 7, 0x78]); // what a module leaves unused
        }
        assert_eq!(Format::Sword.clean(&bytes).text, "In the beginning& end.\n\nPsalm\n\none\ntwo\n");
    }
}
