//! What is said about a source after it was declared: permissions taken back, terms, and machine-readable reservations of rights.

use serde::{Deserialize, Serialize};

use crate::{ContentHash, Permissions};

/// From when until when a source may be used for anything.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Term {
    /// From then on, in milliseconds since 1970; always, if there is none.
    pub starts_unix_ms: Option<i64>,
    /// Until just before then; for ever, if there is none.
    pub ends_unix_ms: Option<i64>,
}

impl Term {
    /// Whether a time lies in it.
    pub fn contains(&self, unix_ms: i64) -> bool {
        self.starts_unix_ms.is_none_or(|starts| unix_ms >= starts)
            && self.ends_unix_ms.is_none_or(|ends| unix_ms < ends)
    }
}

/// A statement about rights in a file that came with a source, kept as evidence.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Signal {
    /// What kind of file it was found in.
    pub kind: String,
    /// The lines or elements that say it.
    pub statements: Vec<String>,
    /// What it leaves permitted.
    pub permits: Permissions,
    /// The part of the site that the source is, as the file counts paths.
    pub path: String,
    /// Where the file was found, as it was said.
    pub found_at: String,
    /// SHA-256 of the file.
    pub sha256: ContentHash,
    /// When it was recorded, in milliseconds since 1970.
    pub recorded_unix_ms: i64,
}

/// What was said about a source since it was declared.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourcePolicy {
    /// Grows with every change of it.
    pub revision: u64,
    /// What is permitted at most, if that was said.
    pub permissions: Option<Permissions>,
    /// From when until when.
    pub term: Term,
    /// Signals.
    pub signals: Vec<Signal>,
}

impl SourcePolicy {
    /// What is permitted at a time, of what the declaration permits: the most restrictive statement wins.
    pub fn permits(&self, declared: Permissions, unix_ms: i64) -> Permissions {
        if !self.term.contains(unix_ms) {
            return Permissions::NONE;
        }
        let said = self.signals.iter().fold(declared, |permitted, signal| permitted.and(signal.permits));
        said.and(self.permissions.unwrap_or(Permissions::ALL))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_restrictive_statement_wins_within_the_term() {
        let signal = |permits| Signal {
            kind: "robots".into(),
            statements: Vec::new(),
            permits,
            path: "/".into(),
            found_at: String::new(),
            sha256: ContentHash([0; 32]),
            recorded_unix_ms: 0,
        };
        let no_train = Permissions { train: false, ..Permissions::ALL };
        let no_knn = Permissions { knn: false, ..Permissions::ALL };
        let no_display = Permissions { display: false, ..Permissions::ALL };
        let policy = SourcePolicy {
            revision: 1,
            permissions: Some(no_train),
            term: Term { starts_unix_ms: Some(10), ends_unix_ms: Some(20) },
            signals: vec![signal(no_knn), signal(Permissions::ALL)],
        };
        let expected = no_train.and(no_knn).and(no_display);
        for (at, permitted) in [(9, Permissions::NONE), (10, expected), (19, expected), (20, Permissions::NONE)] {
            assert_eq!(policy.permits(no_display, at), permitted, "at {at}");
        }
        assert_eq!(SourcePolicy::default().permits(no_display, 5), no_display);
    }
}
