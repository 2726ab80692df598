//! Weights and temperatures that were tuned on validation text, and when they may be used.

use serde::{Deserialize, Serialize};

use crate::{ContentHash, Snapshot, SourceId};

/// The three numbers of kNN-LM.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct KnnParameters {
    /// Neighbours per token.
    pub k: usize,
    /// Weight of the neighbours in p(y), from 0 to 1.
    pub knn_weight: f64,
    /// Divides the negative squared L2 distance; above 0.
    pub knn_temperature: f64,
}

/// How much of `knn_weight` the neighbours have at a token, by the squared distance of the nearest one (Drozdov et al. 2022, where each bin of
/// distances has a weight): steps, from the nearest on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrustByDistance {
    /// The greatest distance of each step but the last, rising: the last one has no end.
    pub ends: Vec<f32>,
    /// Part of `knn_weight` in each step, from 0 to 1.
    pub parts: Vec<f64>,
}

impl TrustByDistance {
    /// The part at a token whose nearest neighbour is this far away.
    pub fn at(&self, nearest: f32) -> f64 {
        self.parts[self.ends.partition_point(|end| *end < nearest)]
    }

    /// What is wrong with it, if something is: [`Self::at`] needs a part for each step.
    pub fn fault(&self) -> Option<&'static str> {
        if self.parts.len() != self.ends.len() + 1 {
            return Some("it must have one part more than ends");
        }
        if !self.ends.iter().all(|end| end.is_finite()) || !self.ends.is_sorted_by(|a, b| a < b) {
            return Some("its ends must be numbers that rise");
        }
        if !self.parts.iter().all(|part| (0.0..=1.0).contains(part)) {
            return Some("its parts must be from 0 to 1");
        }
        None
    }
}

/// Parameters tuned on the text of named sources. Nothing that was tuned on removable data survives it: as soon as one of the
/// sources is gone, the neutral parameters take over, in the same epoch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Calibration {
    /// The model that it was tuned with.
    pub model: ContentHash,
    /// Sources whose text it was tuned on.
    pub tuned_on: Vec<SourceId>,
    /// What was found best there.
    pub tuned: KnnParameters,
    /// How far neighbours are trusted there, by their distance; everywhere alike if there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trust_by_distance: Option<TrustByDistance>,
    /// What holds otherwise; tuned on open text, or chosen by hand.
    pub neutral: KnnParameters,
}

impl Calibration {
    /// The parameters in force for a snapshot, and how far neighbours are trusted.
    pub fn in_force(&self, snapshot: &Snapshot) -> (KnnParameters, Option<&TrustByDistance>) {
        let live = |id: &SourceId| snapshot.shards.iter().any(|s| s.source.id == *id);
        let ours = snapshot.shards.iter().all(|s| s.model == self.model);
        if ours && !self.tuned_on.is_empty() && self.tuned_on.iter().all(live) {
            (self.tuned, self.trust_by_distance.as_ref())
        } else {
            (self.neutral, None)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trust_goes_by_steps() {
        let trust = TrustByDistance { ends: vec![1.0, 4.0], parts: vec![1.0, 0.5, 0.0] };
        assert_eq!(trust.fault(), None);
        assert_eq!([0.0, 1.0, 1.1, 4.0, 4.1, f32::INFINITY].map(|d| trust.at(d)), [1.0, 1.0, 0.5, 0.5, 0.0, 0.0]);
    }

    #[test]
    fn senseless_steps_have_a_fault() {
        let fault = |ends: &[f32], parts: &[f64]| TrustByDistance { ends: ends.into(), parts: parts.into() }.fault();
        assert!(fault(&[], &[1.0]).is_none());
        assert!(fault(&[], &[]).unwrap().contains("one part more"));
        assert!(fault(&[2.0, 1.0], &[1.0, 1.0, 1.0]).unwrap().contains("rise"));
        assert!(fault(&[f32::NAN], &[1.0, 1.0]).unwrap().contains("rise"));
        assert!(fault(&[1.0], &[1.0, 1.5]).unwrap().contains("0 to 1"));
    }
}
