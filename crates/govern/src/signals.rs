//! Machine-readable reservations of rights, read from files that come with a source: TDMRep (W3C community group report, 2024-05-10), AIPREF
//! (`Content-Usage`, draft-ietf-aipref-vocab and -attach), Content Signals, RSL 1.0, robots.txt (RFC 9309) and response headers.
//!
//! What a statement takes away: what reserves text and data mining, or keeps AI agents out, takes away training, neighbours, passages and verbatim
//! text; what speaks of training takes away training alone; what speaks of AI input (grounding, retrieval) takes away neighbours and passages;
//! what speaks of search takes away display. The most restrictive statement of a file wins, and unknown ones are passed over.

use std::fmt;
use std::str::FromStr;

use silo_core::{ContentHash, Permissions, Signal};

/// A file that says something about a source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignalFile {
    /// What it is.
    pub kind: SignalKind,
    /// Its text.
    pub text: String,
    /// The part of the site that the source is: statements about other parts are passed over.
    pub path: String,
    /// Where it was found.
    pub found_at: String,
}

/// Kinds of such files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SignalKind {
    /// robots.txt, with `Content-Usage` and `Content-Signal` lines if it has them.
    Robots,
    /// `/.well-known/tdmrep.json`.
    TdmRep,
    /// Response headers, a line each: `tdm-reservation`, `Content-Usage`, `Content-Signal`, `X-Robots-Tag`.
    Headers,
    /// An RSL document.
    Rsl,
}

impl SignalKind {
    const ALL: [Self; 4] = [Self::Robots, Self::TdmRep, Self::Headers, Self::Rsl];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Robots => "robots",
            Self::TdmRep => "tdmrep",
            Self::Headers => "headers",
            Self::Rsl => "rsl",
        }
    }
}

impl fmt::Display for SignalKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for SignalKind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|kind| kind.name() == text);
        found.ok_or_else(|| format!("'{text}' is no kind of signal; there are robots, tdmrep, headers, rsl"))
    }
}

/// What leaves nothing but showing.
const NO_MINING: Permissions = Permissions { train: false, knn: false, context: false, verbatim: false, display: true };
const NO_TRAINING: Permissions = Permissions { train: false, ..Permissions::ALL };
const NO_INPUT: Permissions = Permissions { knn: false, context: false, ..Permissions::ALL };
const NO_SEARCH: Permissions = Permissions { display: false, ..Permissions::ALL };

/// Agents that collect for AI: a `robots.txt` that keeps one of them out reserves the text.
const AI_AGENTS: [&str; 10] = [
    "*",
    "gptbot",
    "ccbot",
    "google-extended",
    "anthropic-ai",
    "claudebot",
    "applebot-extended",
    "bytespider",
    "meta-externalagent",
    "perplexitybot",
];

/// What was read so far.
struct Reading {
    permits: Permissions,
    statements: Vec<String>,
}

impl Reading {
    fn note(&mut self, statement: &str, permits: Permissions) {
        self.permits = self.permits.and(permits);
        // A line may take away several things.
        if self.statements.last().is_none_or(|last| last != statement.trim()) {
            self.statements.push(statement.trim().to_owned());
        }
    }
}

/// Whether a statement about one path concerns another: one lies within the other. `*` and what follows it are passed over: more is then
/// concerned, not less.
fn concerns(pattern: &str, path: &str) -> bool {
    let plain = pattern.split(['*', '$']).next().unwrap_or_default();
    path.starts_with(plain) || plain.starts_with(path)
}

/// Reads a file. Refused, if it is no such file.
pub fn read_signal(file: &SignalFile, recorded_unix_ms: i64) -> Result<Signal, String> {
    let mut reading = Reading { permits: Permissions::ALL, statements: Vec::new() };
    match file.kind {
        SignalKind::Robots => robots(&file.text, &file.path, &mut reading),
        SignalKind::TdmRep => tdmrep(&file.text, &file.path, &mut reading)?,
        SignalKind::Headers => file.text.lines().for_each(|line| header(line, &mut reading)),
        SignalKind::Rsl => rsl(&file.text, &file.path, &mut reading)?,
    }
    Ok(Signal {
        kind: file.kind.to_string(),
        statements: reading.statements,
        permits: reading.permits,
        path: file.path.clone(),
        found_at: file.found_at.clone(),
        sha256: ContentHash::of(file.text.as_bytes()),
        recorded_unix_ms,
    })
}

fn robots(text: &str, path: &str, reading: &mut Reading) {
    let (mut for_ai, mut in_rules) = (false, false);
    for line in text.lines() {
        let line = line.split('#').next().unwrap_or_default().trim();
        let Some((field, value)) = line.split_once(':') else { continue };
        let value = value.trim();
        match &field.trim().to_ascii_lowercase()[..] {
            "user-agent" => {
                // Several agents in a row share the rules after them.
                for_ai = AI_AGENTS.contains(&&value.to_ascii_lowercase()[..]) || (for_ai && !in_rules);
                in_rules = false;
            }
            "disallow" => {
                in_rules = true;
                if for_ai && !value.is_empty() && concerns(value, path) {
                    reading.note(line, NO_MINING);
                }
            }
            "allow" => in_rules = true,
            "content-usage" => usage(line, value, Some(path), reading),
            "content-signal" => signals(line, value, Some(path), reading),
            _ => {}
        }
    }
}

/// A path before the expressions, where there may be one.
fn path_and_rest<'a>(value: &'a str, path: Option<&str>) -> Option<&'a str> {
    match value.split_once(char::is_whitespace) {
        Some((of, rest)) if of.starts_with('/') => path.is_none_or(|path| concerns(of, path)).then_some(rest),
        _ => Some(value),
    }
}

/// AIPREF: the last of several values of one key holds; labels that are not known are passed over.
fn usage(line: &str, value: &str, path: Option<&str>, reading: &mut Reading) {
    let Some(value) = path_and_rest(value, path) else { return };
    let last = |key: &str| {
        let all = value.split([',', ';']).filter_map(|part| part.split_once('='));
        all.rev().find(|(k, _)| k.trim().eq_ignore_ascii_case(key)).map(|(_, v)| v.trim().eq_ignore_ascii_case("n"))
    };
    for (key, permits) in [("train-ai", NO_TRAINING), ("search", NO_SEARCH)] {
        if last(key) == Some(true) {
            reading.note(line, permits);
        }
    }
}

/// Content Signals.
fn signals(line: &str, value: &str, path: Option<&str>, reading: &mut Reading) {
    let Some(value) = path_and_rest(value, path) else { return };
    for (key, said) in value.split(',').filter_map(|part| part.split_once('=')) {
        let permits = match &key.trim().to_ascii_lowercase()[..] {
            "ai-train" => NO_TRAINING,
            "ai-input" => NO_INPUT,
            "search" => NO_SEARCH,
            _ => continue,
        };
        if said.trim().eq_ignore_ascii_case("no") {
            reading.note(line, permits);
        }
    }
}

fn header(line: &str, reading: &mut Reading) {
    let Some((name, value)) = line.split_once(':') else { return };
    let value = value.trim();
    match &name.trim().to_ascii_lowercase()[..] {
        "tdm-reservation" if value == "1" => reading.note(line, NO_MINING),
        "content-usage" => usage(line, value, None, reading),
        "content-signal" => signals(line, value, None, reading),
        "x-robots-tag" => {
            let says = |word: &str| value.split([',', ':']).any(|part| part.trim().eq_ignore_ascii_case(word));
            if says("noai") || says("notrain") {
                reading.note(line, NO_MINING);
            }
        }
        _ => {}
    }
}

/// The first rule that matches holds.
fn tdmrep(text: &str, path: &str, reading: &mut Reading) -> Result<(), String> {
    let rules: serde_json::Value = serde_json::from_str(text).map_err(|e| format!("it is no JSON: {e}"))?;
    let rules = rules.as_array().ok_or("it is no list of rules, as tdmrep.json is")?;
    // A rule about part of what the source is does not end the search for one about all of it.
    for rule in rules {
        let location = rule["location"].as_str().unwrap_or("/");
        let whole = path.starts_with(location.split(['*', '$']).next().unwrap_or_default());
        if !concerns(location, path) {
            continue;
        }
        if rule["tdm-reservation"].as_i64() == Some(1) {
            reading.note(&rule.to_string(), NO_MINING);
        }
        if whole {
            break;
        }
    }
    Ok(())
}

fn rsl(text: &str, path: &str, reading: &mut Reading) -> Result<(), String> {
    let mut reader = quick_xml::Reader::from_str(text);
    let (mut here, mut usages, mut inside) = (true, None::<(bool, String)>, false);
    loop {
        use quick_xml::events::Event;
        let event = reader.read_event().map_err(|e| format!("it is no XML: {e}"))?;
        match event {
            Event::Start(e) | Event::Empty(e) => {
                inside = true;
                let attribute = |name: &str| {
                    let found = e.attributes().flatten().find(|a| a.key.local_name().as_ref() == name);
                    found.map(|a| a.value.to_string())
                };
                match e.local_name().as_ref() {
                    "content" => here = attribute("url").is_none_or(|url| concerns(&path_of(&url), path)),
                    "permits" | "prohibits" if attribute("type").as_deref() == Some("usage") => {
                        usages = Some((e.local_name().as_ref() == "permits", String::new()));
                    }
                    _ => {}
                }
            }
            Event::Text(t) => {
                if let Some((_, words)) = &mut usages {
                    words.push_str(&t);
                }
            }
            Event::End(e) if matches!(e.local_name().as_ref(), "permits" | "prohibits") => {
                if let Some((permits, words)) = usages.take().filter(|_| here) {
                    rsl_usages(permits, &words, reading);
                }
            }
            Event::Eof if inside => return Ok(()),
            Event::Eof => return Err("it holds no element".into()),
            _ => {}
        }
    }
}

/// The path of an address, or what is one already.
fn path_of(url: &str) -> String {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest.find('/').map_or("/", |at| &rest[at..]));
    rest.to_owned()
}

/// What is not among those that are permitted is not.
fn rsl_usages(permits: bool, words: &str, reading: &mut Reading) {
    let named: Vec<String> = words.split([',', ' ', '\n', '\t']).map(|w| w.trim().to_ascii_lowercase()).collect();
    let has = |usage: &str| named.iter().any(|n| n == usage || n == "all");
    let statement = format!("{}: {}", if permits { "permits" } else { "prohibits" }, words.trim());
    for (usage, without) in [("ai-train", NO_TRAINING), ("ai-input", NO_INPUT), ("search", NO_SEARCH)] {
        let ai = usage != "search" && named.iter().any(|n| n == "ai-all");
        if (has(usage) || ai) != permits {
            reading.note(&statement, without);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(kind: SignalKind, path: &str, text: &str, expected: Permissions, n_statements: usize) {
        let file = SignalFile { kind, text: text.into(), path: path.into(), found_at: "there".into() };
        let signal = read_signal(&file, 5).unwrap();
        assert_eq!((signal.permits, signal.statements.len()), (expected, n_statements), "{text}");
        assert_eq!(signal.sha256, ContentHash::of(text.as_bytes()));
    }

    #[test]
    fn robots_txt() {
        let robots = SignalKind::Robots;
        check(robots, "/", "User-agent: *\nDisallow:\n", Permissions::ALL, 0);
        check(robots, "/", "User-agent: GPTBot\nDisallow: / # all\n", NO_MINING, 1);
        check(robots, "/", "User-agent: Someone\nDisallow: /\n", Permissions::ALL, 0);
        check(robots, "/", "User-agent: Someone\nUser-agent: CCBot\nDisallow: /\n", NO_MINING, 1);
        check(robots, "/", "User-agent: CCBot\nAllow: /a\nUser-agent: Someone\nDisallow: /\n", Permissions::ALL, 0);
        check(robots, "/docs/", "User-agent: *\nDisallow: /private/\n", Permissions::ALL, 0);
        check(robots, "/", "User-agent: *\nDisallow: /private/\n", NO_MINING, 1);
        check(robots, "/docs/", "User-agent: *\nContent-Usage: /docs/ train-ai=n\n", NO_TRAINING, 1);
        check(robots, "/docs/", "User-agent: *\nContent-Usage: /blog/ train-ai=n\n", Permissions::ALL, 0);
        check(robots, "/", "Content-Usage: train-ai=n, train-ai=y, other=n", Permissions::ALL, 0);
        check(robots, "/", "Content-Signal: search=yes, ai-train=no, ai-input=no", NO_TRAINING.and(NO_INPUT), 1);
    }

    #[test]
    fn tdmrep_json() {
        let text = r#"[{"location": "/open/", "tdm-reservation": 0}, {"location": "/", "tdm-reservation": 1, "tdm-policy": "x"}]"#;
        check(SignalKind::TdmRep, "/open/", text, Permissions::ALL, 0);
        check(SignalKind::TdmRep, "/books/", text, NO_MINING, 1);
        check(SignalKind::TdmRep, "/", text, NO_MINING, 1);
        let file = |text: &str| SignalFile {
            kind: SignalKind::TdmRep,
            text: text.into(),
            path: "/".into(),
            found_at: String::new(),
        };
        assert!(read_signal(&file("{}"), 0).is_err() && read_signal(&file("x"), 0).is_err());
    }

    #[test]
    fn response_headers() {
        let headers = SignalKind::Headers;
        check(headers, "/", "tdm-reservation: 1\ntdm-policy: https://example.org/p\n", NO_MINING, 1);
        check(headers, "/", "tdm-reservation: 0\n", Permissions::ALL, 0);
        check(headers, "/", "Content-Usage: train-ai=n\nX-Robots-Tag: noai, noimageai", NO_MINING, 2);
        check(headers, "/", "Content-Type: text/html", Permissions::ALL, 0);
    }

    #[test]
    fn rsl_documents() {
        let rsl = |inner: &str| {
            format!(
                "<rsl xmlns=\"https://rslstandard.org/rsl\"><content url=\"/books/\"><license>{inner}</license></content></rsl>"
            )
        };
        let kind = SignalKind::Rsl;
        check(kind, "/books/", &rsl("<prohibits type=\"usage\">ai-train</prohibits>"), NO_TRAINING, 1);
        check(kind, "/books/", &rsl("<prohibits type=\"usage\">ai-all</prohibits>"), NO_TRAINING.and(NO_INPUT), 1);
        check(kind, "/books/", &rsl("<permits type=\"usage\">search</permits>"), NO_TRAINING.and(NO_INPUT), 1);
        check(kind, "/books/", &rsl("<permits type=\"usage\">all</permits>"), Permissions::ALL, 0);
        check(kind, "/films/", &rsl("<prohibits type=\"usage\">all</prohibits>"), Permissions::ALL, 0);
        let file = SignalFile { kind, text: "no".into(), path: "/".into(), found_at: String::new() };
        assert!(read_signal(&file, 0).is_err());
    }
}
