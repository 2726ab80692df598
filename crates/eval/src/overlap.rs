//! What held-out text has in common with the store, and what neighbours are worth without that.

use serde::{Deserialize, Serialize};
use silo_core::{KnnParameters, Tokenizer};
use silo_corpus::Overlap;
use silo_engine::{Evidence, Sums};

use crate::{Domain, EvalError, Text};

/// How overlap with the store is looked at.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OverlapConfig {
    /// Ends of the buckets of held-out texts, by the share of their 13-grams of words that stand in the store; what is above the last one is a
    /// bucket as well.
    #[serde(default = "shares")]
    pub shares: Vec<f64>,
    /// Neighbours are left out that have so many tokens or more before them in common with the text.
    #[serde(default = "matches")]
    pub matches: Vec<u16>,
}

fn shares() -> Vec<f64> {
    vec![0.0, 0.01, 0.05]
}

fn matches() -> Vec<u16> {
    vec![16, 8, 4, 2, 1]
}

impl Default for OverlapConfig {
    fn default() -> Self {
        Self { shares: shares(), matches: matches() }
    }
}

impl OverlapConfig {
    /// Refuses what means nothing; `match_tokens` are compared.
    pub fn check(&self, match_tokens: usize) -> Result<(), EvalError> {
        let is_share = |s: &f64| (0.0..1.0).contains(s);
        if !(self.shares.is_sorted_by(|a, b| a < b) && self.shares.iter().all(is_share)) {
            return Err(EvalError::SenselessOverlap("shares must rise, from 0 or more to below 1".to_owned()));
        }
        if self.matches.iter().any(|m| *m == 0 || usize::from(*m) > match_tokens) {
            let what = format!("matches must be from 1 to eval.grid.match_tokens, {match_tokens}");
            return Err(EvalError::SenselessOverlap(what));
        }
        Ok(())
    }

    /// The bucket of a share.
    pub fn bucket(&self, share: f64) -> usize {
        self.shares.partition_point(|end| *end < share)
    }

    /// How many buckets there are.
    pub fn n_buckets(&self) -> usize {
        self.shares.len() + 1
    }
}

/// Of each domain's test texts, the share of the 13-grams of words that stand in any domain's text for the store; 0 for texts of fewer words.
pub fn overlaps(domains: &[Domain], tokenizer: &dyn Tokenizer) -> Vec<Vec<f64>> {
    let words = |text: &Text| {
        let bytes: Vec<u8> = text.tokens.iter().flat_map(|t| tokenizer.bytes(*t).to_vec()).collect();
        String::from_utf8_lossy(&bytes).into_owned()
    };
    let texts: Vec<Vec<String>> = domains.iter().map(|d| d.test.iter().map(words).collect()).collect();
    let mut overlap = Overlap::default();
    texts.iter().flatten().for_each(|text| overlap.hold_out(text));
    domains.iter().flat_map(|d| &d.stored).for_each(|document| overlap.look_at(&document.text));
    texts.iter().map(|texts| texts.iter().map(|text| overlap.share(text)).collect()).collect()
}

/// log p of the token without the neighbours that have `matched` tokens or more before them in common with the text; none take their place.
pub fn without_matches(evidence: &Evidence, matched: u16, knn: &KnnParameters, sums: &mut Sums) -> f64 {
    let searched = &evidence.neighbors[..evidence.neighbors.len().min(knn.k)];
    let neighbors = searched.iter().filter(|n| n.matched < matched).copied().collect();
    Evidence { neighbors, tempered: Vec::new(), ..*evidence }.log_probability(knn, sums)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::tests::evidence;

    proptest! {
        /// Nothing changes where nothing matches; where all do, the model is alone.
        #[test]
        fn neighbours_that_match_are_as_if_they_were_not_there(evidence in evidence()) {
            let (knn, mut sums) = (KnnParameters::new(8, 0.5, 10.0), Sums::default());
            let whole = evidence.log_probability(&knn, &mut sums);
            prop_assert_eq!(without_matches(&evidence, u16::MAX, &knn, &mut sums), whole);
            prop_assert_eq!(without_matches(&evidence, 0, &knn, &mut sums), evidence.parametric_log_probability);
        }
    }

    #[test]
    fn shares_fall_into_buckets_that_end_with_them() {
        let config = OverlapConfig { shares: vec![0.0, 0.1], matches: vec![16] };
        config.check(16).unwrap();
        assert_eq!([0.0, 0.05, 0.1, 0.11, 1.0].map(|share| config.bucket(share)), [0, 1, 1, 2, 2]);
        assert_eq!(config.n_buckets(), 3);
        for (shares, matches) in [(vec![0.1, 0.1], vec![]), (vec![1.0], vec![]), (vec![], vec![0]), (vec![], vec![17])]
        {
            OverlapConfig { shares, matches }.check(16).unwrap_err();
        }
    }
}
