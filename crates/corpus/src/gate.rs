//! The licence gate: what stands between a corpus and a model.

use silo_core::Tier;

use crate::{CorpusDocument, CorpusError};

/// Documents named in an error.
const NAMED: usize = 20;

/// A document that may not be trained on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Its URI.
    pub uri: String,
    /// What forbids it.
    pub reason: String,
}

/// Lets only documents of given open tiers through that may be trained on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LicenceGate {
    tiers: Vec<Tier>,
}

impl LicenceGate {
    /// A gate for these tiers. The restricted tier passes no gate, whatever is asked for.
    pub fn new(tiers: &[Tier]) -> Self {
        Self { tiers: tiers.iter().copied().filter(|t| t.is_open()).collect() }
    }

    /// What forbids a document, if anything.
    pub fn violation(&self, document: &CorpusDocument) -> Option<Violation> {
        let reason = if !document.tier.is_open() {
            format!("tier restricted (licence '{}': {})", document.licence, document.evidence)
        } else if !document.train {
            "its source does not permit training".to_owned()
        } else if !self.tiers.contains(&document.tier) {
            format!("tier {} was not asked for", document.tier)
        } else {
            return None;
        };
        Some(Violation { uri: document.uri.clone(), reason })
    }

    /// Refuses a training text with a violation, naming the documents.
    pub fn check<'a>(&self, documents: impl IntoIterator<Item = &'a CorpusDocument>) -> Result<(), CorpusError> {
        let violations: Vec<Violation> = documents.into_iter().filter_map(|d| self.violation(d)).collect();
        if violations.is_empty() {
            return Ok(());
        }
        let list: Vec<String> = violations.iter().take(NAMED).map(|v| format!("  {}: {}", v.uri, v.reason)).collect();
        Err(CorpusError::Gate { n: violations.len(), list: list.join("\n") })
    }
}

#[cfg(test)]
mod tests {
    use silo_core::ContentHash;

    use super::*;
    use crate::Split;

    fn document(tier: Tier, train: bool) -> CorpusDocument {
        CorpusDocument {
            source: "s".parse().unwrap(),
            uri: format!("test:{tier}"),
            title: String::new(),
            licence: "MIT".into(),
            tier,
            evidence: "e".into(),
            train,
            hash: ContentHash::of(b""),
            split: Split::Train,
            excluded: None,
            overlap: None,
            text: String::new(),
        }
    }

    #[test]
    fn nothing_restricted_passes_whatever_is_asked_for() {
        let gate = LicenceGate::new(&Tier::ALL);
        assert!(gate.check(&[document(Tier::PublicDomain, true), document(Tier::Attribution, true)]).is_ok());
        let message =
            gate.check(&[document(Tier::Permissive, true), document(Tier::Restricted, true)]).unwrap_err().to_string();
        assert!(message.contains("1 documents") && message.contains("test:restricted: tier restricted"), "{message}");
        assert!(
            gate.check(&[document(Tier::Permissive, false)])
                .unwrap_err()
                .to_string()
                .contains("does not permit training")
        );
        assert!(LicenceGate::new(&[Tier::PublicDomain]).check(&[document(Tier::Permissive, true)]).is_err());
    }
}
