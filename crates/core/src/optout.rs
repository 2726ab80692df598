//! Opt-out requests: what somebody wants out of the store, and what has become of it.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{ContentHash, SourceId};

/// Enumerations whose values have names in files and messages.
macro_rules! named {
    ($(#[$about:meta])* $name:ident, $what:literal { $($(#[$doc:meta])* $variant:ident = $text:literal,)* }) => {
        $(#[$about])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum $name {
            $($(#[$doc])* #[serde(rename = $text)] $variant,)*
        }

        impl $name {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// The name used in files and messages.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.name())
            }
        }

        impl FromStr for $name {
            type Err = String;

            fn from_str(text: &str) -> Result<Self, String> {
                Self::ALL.iter().copied().find(|v| v.name() == text).ok_or_else(|| {
                    let known: Vec<&str> = Self::ALL.iter().map(|v| v.name()).collect();
                    format!("'{text}' is no {}; there are {}", $what, known.join(", "))
                })
            }
        }
    };
}

named! {
    /// What a request is.
    OptOutState, "state of an opt-out" {
        /// It was received, and nothing that it names is in the store.
        Acknowledged = "acknowledged",
        /// What it names is not retrieved any more.
        Quarantined = "quarantined",
        /// Somebody looks into it.
        UnderReview = "under-review",
        /// The other side objects; what it names stays in quarantine.
        Countered = "countered",
        /// It was granted: what it names is withdrawn, or will be when the legal hold on it ends.
        Upheld = "upheld",
        /// The bytes are gone from all files.
        Purged = "purged",
        /// A receipt that says so was given out.
        Proven = "proven",
        /// It was not granted; what it names is still in quarantine.
        Rejected = "rejected",
        /// What it names is retrieved again.
        Restored = "restored",
        /// Its decision is looked into again.
        Appealed = "appealed",
    }
}

named! {
    /// What was done with a request.
    OptOutAction, "step of an opt-out" {
        /// It was made.
        Submit = "submit",
        /// The review began.
        Review = "review",
        /// It was granted.
        Uphold = "uphold",
        /// It was not granted.
        Reject = "reject",
        /// Its bytes must be kept, as evidence.
        Hold = "hold",
        /// They need not be kept any more.
        EndHold = "end-hold",
        /// The other side objected.
        Counter = "counter-notice",
        /// The decision was objected to.
        Appeal = "appeal",
        /// What it named was put back.
        Restore = "restore",
        /// The bytes were deleted.
        Purge = "purge",
        /// A receipt was given out.
        Prove = "prove",
    }
}

named! {
    /// Why a step was taken.
    ReasonCode, "reason code" {
        /// A copyright or related right in the text.
        Copyright = "copyright",
        /// Personal data (for example GDPR art. 17).
        Privacy = "privacy",
        /// A contract or its end.
        Contract = "contract",
        /// The licence ended or was never given.
        Licence = "licence",
        /// A machine-readable reservation of rights (for example DSM art. 4(3)).
        Reservation = "reservation",
        /// A court or an authority asked for it.
        CourtOrder = "court-order",
        /// The request does not say enough.
        Insufficient = "insufficient",
        /// The right that is claimed is not there.
        Unfounded = "unfounded",
        /// The use is permitted.
        Authorised = "authorised",
        /// It says what another request says.
        Duplicate = "duplicate",
        /// Whoever made the request takes it back.
        TakenBack = "taken-back",
        /// The note says it.
        Other = "other",
    }
}

/// What a request wants out. What was written in it goes when it is granted: it may be the very text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum OptOutSelection {
    /// All of a source, and whatever would be added to it.
    Source {
        /// The source.
        source: SourceId,
    },
    /// Documents of a source, by the hash of their text.
    Documents {
        /// The source.
        source: SourceId,
        /// SHA-256 of each text.
        documents: Vec<ContentHash>,
    },
    /// Documents whose URI begins so.
    UriPrefix {
        /// Of this source only, or of all.
        source: Option<SourceId>,
        /// The beginning; `None` once the request was granted.
        prefix: Option<String>,
    },
    /// Whatever holds this text, or most of it, in any source.
    Passage {
        /// The text; `None` once the request was granted.
        text: Option<String>,
        /// SHA-256 of it.
        sha256: ContentHash,
    },
}

impl OptOutSelection {
    /// Its kind.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Source { .. } => "source",
            Self::Documents { .. } => "documents",
            Self::UriPrefix { .. } => "uri-prefix",
            Self::Passage { .. } => "passage",
        }
    }

    /// The same without what was written in it.
    pub fn forgotten(&self) -> Self {
        match self {
            Self::UriPrefix { source, .. } => Self::UriPrefix { source: source.clone(), prefix: None },
            Self::Passage { sha256, .. } => Self::Passage { text: None, sha256: *sha256 },
            other => other.clone(),
        }
    }
}

/// A document that a passage was found in.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PassageMatch {
    /// Its source.
    pub source: SourceId,
    /// SHA-256 of its text.
    pub document: ContentHash,
    /// Whether it holds the whole passage, letter case, spaces and line ends aside.
    pub exact: bool,
    /// The part of the passage's runs of words that it holds, from 0 to 1.
    pub overlap: f64,
    /// Whether it was put in quarantine when the request was made.
    pub quarantined: bool,
}

/// A request, as it was made and as it is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OptOutRequest {
    /// What it wants out.
    pub selection: OptOutSelection,
    /// Who asks.
    pub claimant: String,
    /// How they are reached.
    pub contact: String,
    /// What a passage was found in; empty for other selections.
    pub matches: Vec<PassageMatch>,
    /// Documents that the decision let stay.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub spared: Vec<(SourceId, ContentHash)>,
    /// Until when it should be decided, in milliseconds since 1970.
    pub decide_by_unix_ms: i64,
    /// From when on it may be restored, after a counter-notice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restore_from_unix_ms: Option<i64>,
    /// Until when its decision may be appealed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub appeal_until_unix_ms: Option<i64>,
}

/// A step of a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OptOutEvent {
    /// When, in milliseconds since 1970.
    pub at_unix_ms: i64,
    /// Who: the name of a token, or `silo`.
    pub actor: String,
    /// What was done.
    pub action: OptOutAction,
    /// What the request was after it.
    pub becomes: OptOutState,
    /// Why.
    pub reason: ReasonCode,
    /// In words.
    pub note: String,
}

/// A request with its history.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OptOut {
    /// From 1, never reused.
    pub id: u64,
    /// What it is.
    pub state: OptOutState,
    /// Whether its bytes must be kept.
    pub legal_hold: bool,
    /// The entry of the log of removals by which it is withheld; `None` if nothing is.
    pub hold: Option<u64>,
    /// The entry by which it was withdrawn.
    pub removal: Option<u64>,
    /// What was asked for.
    pub request: OptOutRequest,
    /// All steps, oldest first: the first is its submission. There is always one.
    pub events: Vec<OptOutEvent>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_in_files() {
        for state in OptOutState::ALL {
            assert_eq!(serde_json::to_string(state).unwrap(), format!("\"{state}\""));
            assert_eq!(state.name().parse::<OptOutState>().unwrap(), *state);
        }
        assert!("gone".parse::<ReasonCode>().unwrap_err().contains("copyright, privacy"));
    }

    #[test]
    fn what_was_granted_holds_no_text() {
        let passage = OptOutSelection::Passage { text: Some("a secret".into()), sha256: ContentHash::of(b"a secret") };
        assert!(!serde_json::to_string(&passage.forgotten()).unwrap().contains("a secret"));
        let prefix = OptOutSelection::UriPrefix { source: None, prefix: Some("pkg:secret".into()) };
        assert!(!serde_json::to_string(&prefix.forgotten()).unwrap().contains("secret"));
    }
}
