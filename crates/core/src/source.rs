//! A rights holder's collection, and what may be done with it.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{SourceId, Tier};

/// What a text may be used for. Each is permitted or not; the most restrictive statement wins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Purpose {
    /// May enter training text.
    Train,
    /// Its entries may weigh in next-token odds.
    Knn,
    /// Its passages may be put before a prompt.
    Context,
    /// Long runs of its tokens may leave in generated text.
    Verbatim,
    /// Its text may be shown to callers with the right role.
    Display,
}

impl Purpose {
    /// All purposes, in the order in which they are shown.
    pub const ALL: [Self; 5] = [Self::Train, Self::Knn, Self::Context, Self::Verbatim, Self::Display];

    /// The name used in files and messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Knn => "knn",
            Self::Context => "context",
            Self::Verbatim => "verbatim",
            Self::Display => "display",
        }
    }
}

impl fmt::Display for Purpose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One yes or no per [`Purpose`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs, reason = "the fields are the purposes, documented at `Purpose`")]
pub struct Permissions {
    pub train: bool,
    pub knn: bool,
    pub context: bool,
    pub verbatim: bool,
    pub display: bool,
}

impl Permissions {
    /// Everything is permitted.
    pub const ALL: Self = Self { train: true, knn: true, context: true, verbatim: true, display: true };

    /// Nothing is permitted.
    pub const NONE: Self = Self { train: false, knn: false, context: false, verbatim: false, display: false };

    /// What a tier permits where nobody said otherwise: open tiers everything; the restricted tier may be consulted and
    /// shown to callers with the right role, but neither trained on nor reproduced at length.
    pub fn of_tier(tier: Tier) -> Self {
        match tier {
            Tier::PublicDomain | Tier::Permissive | Tier::Attribution => Self::ALL,
            Tier::Restricted => Self { train: false, verbatim: false, ..Self::ALL },
        }
    }

    /// Whether `purpose` is permitted.
    pub fn allows(self, purpose: Purpose) -> bool {
        match purpose {
            Purpose::Train => self.train,
            Purpose::Knn => self.knn,
            Purpose::Context => self.context,
            Purpose::Verbatim => self.verbatim,
            Purpose::Display => self.display,
        }
    }

    /// What both permit: the most restrictive statement wins.
    pub fn and(self, other: Self) -> Self {
        Self {
            train: self.train && other.train,
            knn: self.knn && other.knn,
            context: self.context && other.context,
            verbatim: self.verbatim && other.verbatim,
            display: self.display && other.display,
        }
    }
}

/// A rights holder's collection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// Its logical id.
    pub id: SourceId,
    /// Who holds the rights, or gave the collection out.
    pub owner: String,
    /// SPDX licence expression.
    pub licence: String,
    /// Where the licence is stated: a path in the package, a URL, a contract's number.
    pub licence_stated_at: String,
    /// The tier that the licence puts it in.
    pub tier: Tier,
    /// What it may be used for.
    pub permissions: Permissions,
    /// What its licence asks to be given with what is made from it, word for word; empty, where a line that names owner and licence will do.
    #[serde(default)]
    pub notice: String,
}

impl Source {
    /// What is given with an answer that it had a part in: its notice, else a line that names it, its owner and licence. Nothing for the public
    /// domain, which asks for nothing.
    pub fn notice(&self) -> Option<String> {
        if !self.notice.is_empty() {
            return Some(self.notice.clone());
        }
        let stated = if self.licence_stated_at.is_empty() { "" } else { &format!(" ({})", self.licence_stated_at) };
        let line = || format!("{}: {}, {}{stated}", self.id, self.owner, self.licence);
        (self.tier != Tier::PublicDomain).then(line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn restricted_text_is_never_trained_on_nor_reproduced_by_default() {
        let p = Permissions::of_tier(Tier::Restricted);
        assert!(!p.allows(Purpose::Train) && !p.allows(Purpose::Verbatim));
        assert!(p.allows(Purpose::Knn) && p.allows(Purpose::Context) && p.allows(Purpose::Display));
    }

    #[test]
    fn every_tier_but_the_public_domain_has_a_notice() {
        let source = |tier, notice: &str| Source {
            id: "s".parse().unwrap(),
            owner: "The owner".into(),
            licence: "CC-BY-4.0".into(),
            licence_stated_at: "LICENSE".into(),
            tier,
            permissions: Permissions::of_tier(tier),
            notice: notice.into(),
        };
        let line = "s: The owner, CC-BY-4.0 (LICENSE)";
        assert_eq!(source(Tier::Attribution, "").notice().as_deref(), Some(line));
        assert_eq!(source(Tier::Restricted, "Copyright").notice().as_deref(), Some("Copyright"));
        assert_eq!(source(Tier::PublicDomain, "").notice(), None);
    }

    #[test]
    fn the_most_restrictive_statement_wins() {
        let no_knn = Permissions { knn: false, ..Permissions::ALL };
        let both = Permissions::of_tier(Tier::Restricted).and(no_knn);
        let allowed: Vec<_> = Purpose::ALL.into_iter().filter(|&p| both.allows(p)).collect();
        assert_eq!(allowed, [Purpose::Context, Purpose::Display]);
    }
}
