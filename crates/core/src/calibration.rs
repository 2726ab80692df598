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

    /// SHA-256 over the ends, as 32-bit numbers, and the parts, as 64-bit numbers, all little-endian.
    pub fn hash(&self) -> ContentHash {
        let ends = self.ends.iter().flat_map(|end| end.to_le_bytes());
        ContentHash::of(&ends.chain(self.parts.iter().flat_map(|part| part.to_le_bytes())).collect::<Vec<u8>>())
    }

    /// What is wrong with it, if something is: [`Self::at`] needs a part for each step.
    fn fault(&self) -> Option<&'static str> {
        if self.parts.len() != self.ends.len() + 1 {
            return Some("trust_by_distance must have one part more than ends");
        }
        if !self.ends.iter().all(|end| end.is_finite()) || !self.ends.is_sorted_by(|a, b| a < b) {
            return Some("the ends of trust_by_distance must be numbers that rise");
        }
        if !self.parts.iter().all(|part| (0.0..=1.0).contains(part)) {
            return Some("the parts of trust_by_distance must be from 0 to 1");
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

impl KnnParameters {
    fn fault(&self) -> Option<&'static str> {
        if self.k == 0 {
            return Some("k must be 1 or more");
        }
        if !(0.0..=1.0).contains(&self.knn_weight) {
            return Some("knn_weight must be from 0 to 1");
        }
        if !(self.knn_temperature > 0.0 && self.knn_temperature.is_finite()) {
            return Some("knn_temperature must be above 0");
        }
        None
    }
}

impl Calibration {
    /// What is wrong with it, if something is: an engine takes none with a fault.
    pub fn fault(&self) -> Option<&'static str> {
        let trust = self.trust_by_distance.as_ref().and_then(TrustByDistance::fault);
        self.tuned.fault().or(self.neutral.fault()).or(trust)
    }

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
        let good = KnnParameters { k: 1, knn_weight: 1.0, knn_temperature: 1.0 };
        let calibration = |tuned, neutral| {
            let model = ContentHash::of(b"a model");
            Calibration { model, tuned_on: vec![], tuned, trust_by_distance: None, neutral }.fault()
        };
        assert_eq!(calibration(good, good), None);
        assert!(calibration(KnnParameters { k: 0, ..good }, good).unwrap().contains('k'));
        assert!(calibration(good, KnnParameters { knn_weight: 1.5, ..good }).unwrap().contains("knn_weight"));
        assert!(calibration(good, KnnParameters { knn_temperature: 0.0, ..good }).unwrap().contains("temperature"));
    }

    #[test]
    fn other_steps_have_another_hash() {
        let trust = |ends: &[f32], parts: &[f64]| TrustByDistance { ends: ends.into(), parts: parts.into() }.hash();
        assert_eq!(trust(&[1.0], &[1.0, 0.5]), trust(&[1.0], &[1.0, 0.5]));
        assert_ne!(trust(&[1.0], &[1.0, 0.5]), trust(&[1.5], &[1.0, 0.5]));
        assert_ne!(trust(&[1.0], &[1.0, 0.5]), trust(&[1.0], &[1.0, 0.25]));
    }
}
