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
    /// What holds otherwise; tuned on open text, or chosen by hand.
    pub neutral: KnnParameters,
}

impl Calibration {
    /// The parameters in force for a snapshot.
    pub fn parameters(&self, snapshot: &Snapshot) -> KnnParameters {
        let live = |id: &SourceId| snapshot.shards.iter().any(|s| s.source.id == *id);
        let ours = snapshot.shards.iter().all(|s| s.model == self.model);
        if ours && !self.tuned_on.is_empty() && self.tuned_on.iter().all(live) { self.tuned } else { self.neutral }
    }
}
