//! Which sources of the store are seen.

use serde::{Deserialize, Serialize};
use silo_core::{Filter, SourceId};

use crate::Domain;

/// What of the store is seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scope {
    /// The domain's own source.
    Matched,
    /// All sources.
    Mixed,
    /// All but the domain's own source, as after its withdrawal.
    Others,
    /// One source alone that is not the domain's own, the next of the domains: a store in which next to nothing suits the text.
    Another,
}

impl Scope {
    pub(crate) const MEASURED: [Self; 2] = [Self::Matched, Self::Mixed];

    /// What of the store a domain sees.
    pub(crate) fn filter(self, domain: &SourceId, domains: &[Domain]) -> Filter {
        let own = || vec![domain.clone()];
        let next = || domains.iter().skip_while(|d| d.source != *domain).nth(1).or(domains.first());
        match self {
            Self::Matched => Filter { allow_sources: own(), ..Filter::default() },
            Self::Mixed => Filter::default(),
            Self::Others => Filter { deny_sources: own(), ..Filter::default() },
            Self::Another => Filter {
                allow_sources: next().map(|d| d.source.clone()).into_iter().collect(),
                deny_sources: own(),
                ..Filter::default()
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_source_is_the_next_one_alone() {
        let [validation, test] = [Vec::new(), Vec::new()];
        let empty = Domain { source: "alpha".parse().unwrap(), stored: Vec::new(), validation, test, window_tokens: 0 };
        let domains = ["alpha", "beta", "gamma"].map(|name| Domain { source: name.parse().unwrap(), ..empty.clone() });
        for (own, next) in [(0, 1), (1, 2), (2, 0)] {
            let filter = Scope::Another.filter(&domains[own].source, &domains);
            assert_eq!(filter.allow_sources, [domains[next].source.clone()]);
        }
        // Alone among the domains, it sees nothing.
        let filter = Scope::Another.filter(&empty.source, &domains[..1]);
        assert_eq!((filter.allow_sources, filter.deny_sources), (vec![empty.source.clone()], vec![empty.source]));
    }
}
