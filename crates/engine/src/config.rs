//! Limits and defaults of the engine.

use serde::{Deserialize, Serialize};
use silo_core::{ContentHash, KnnParameters};

use crate::{ContextParameters, GuardConfig};

/// Limits and defaults of the engine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct EngineConfig {
    /// Requests that decode together.
    pub max_active: usize,
    /// Requests that wait for a place; one more is refused at once.
    pub max_queued: usize,
    /// Texts that are scored at the same time; one more is refused at once.
    pub max_scoring: usize,
    /// Tokens of one prompt that a step works on: the longest that a cancelled or removed text is still worked with.
    pub prefill_chunk_tokens: usize,
    /// Tokens that wait for a slow reader before its request pauses. A removal takes back what waits here.
    pub stream_buffer_tokens: usize,
    /// A request whose reader takes nothing for so long is given up.
    pub stalled_reader_seconds: u64,
    /// Greatest k of a request.
    pub max_k: usize,
    /// Greatest `match_tokens` of a request: so many tokens are compared for each of k neighbours at a token.
    pub max_match_tokens: usize,
    /// Greatest number of passages of a request.
    pub max_context_passages: usize,
    /// And of one that asks for each of them to be left out, for which the model reads the text again.
    pub max_left_out_passages: usize,
    /// How neighbours weigh, where neither the request nor a calibration says otherwise.
    pub knn: KnnParameters,
    /// The model that they were tuned with, if it matters: distances of another one are not of the same size.
    pub knn_model: Option<ContentHash>,
    /// Greatest part of the neighbours' weight that one source has at a token, from above 0 to 1. Requests may ask for less.
    pub influence_cap: f64,
    /// Least cap that a request may ask for: each source above it costs two more searches at a token, and there are at most one in so many.
    pub min_influence_cap: f64,
    /// Retrieve-in-context, where the request does not say otherwise.
    pub context: ContextParameters,
    /// How much of a source may leave in one piece.
    pub guard: GuardConfig,
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            max_active: 16,
            max_queued: 64,
            max_scoring: 2,
            prefill_chunk_tokens: 64,
            stream_buffer_tokens: 16,
            stalled_reader_seconds: 60,
            max_k: 8192,
            max_match_tokens: 256,
            max_context_passages: 16,
            max_left_out_passages: 4,
            knn: KnnParameters::new(1024, 0.25, 10.0),
            knn_model: None,
            influence_cap: 1.0,
            min_influence_cap: 0.01,
            context: ContextParameters::default(),
            guard: GuardConfig::default(),
        }
    }
}
