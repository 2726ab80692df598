//! Documents from the standard input, as `silo corpus build` writes them.

use std::io::BufRead;

use serde_json::Value;
use silo_core::{Document, Source, Tier};

use super::source::source;

/// Reads documents source by source, up to so many bytes of text.
pub fn read(max_bytes: usize) -> Vec<(Source, Vec<Document>)> {
    let (mut out, mut bytes): (Vec<(Source, Vec<Document>)>, usize) = (Vec::new(), 0);
    for line in std::io::stdin().lock().lines() {
        let line: Value = serde_json::from_str(&line.expect("text")).expect("a document a line");
        let field = |name: &str| line[name].as_str().unwrap_or_default().to_owned();
        let (id, text) = (field("source"), field("text"));
        if text.trim().is_empty() || bytes > max_bytes {
            continue;
        }
        bytes += text.len();
        if out.last().is_none_or(|(source, _)| source.id.as_str() != id) {
            out.push((source(&id), Vec::new()));
        }
        let (source, documents) = out.last_mut().expect("one was pushed");
        let (uri, title, licence) = (field("uri"), field("title"), source.licence.clone());
        documents.push(Document { source: source.id.clone(), uri, title, licence, tier: Tier::Restricted, text });
    }
    out
}
