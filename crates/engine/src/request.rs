//! What the engine is asked. Values were validated by whoever made them; what depends on the model or the store is checked at
//! admission.

use std::time::Instant;

use serde::{Deserialize, Serialize};
use silo_core::sampling::SamplingParameters;
use silo_core::{Filter, SourceId, TokenId};

use crate::Depth;

/// Which half of the store is consulted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// Neither: the model alone.
    #[default]
    Parametric,
    /// Nearest neighbours weigh in every token (kNN-LM).
    Knn,
    /// Passages stand before the text (retrieve-in-context).
    Context,
    /// Both.
    KnnAndContext,
}

impl Mode {
    /// Whether neighbours are searched.
    pub fn knn(self) -> bool {
        matches!(self, Self::Knn | Self::KnnAndContext)
    }

    /// Whether passages are searched.
    pub fn context(self) -> bool {
        matches!(self, Self::Context | Self::KnnAndContext)
    }
}

/// What a request sets of the neighbours' parameters; the rest is as calibrated.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
#[allow(missing_docs, reason = "see `KnnParameters`")]
pub struct KnnOverrides {
    pub k: Option<usize>,
    pub knn_weight: Option<f64>,
    pub knn_temperature: Option<f64>,
    pub match_tokens: Option<usize>,
    pub match_bonus: Option<f64>,
}

/// Retrieve-in-context (Ram et al. 2023): before every `stride_tokens`-th token the last `query_tokens` tokens are searched
/// for, and the best passages put before the text, best last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ContextParameters {
    /// Passages that are put before the text.
    pub passages: usize,
    /// Tokens between two searches.
    pub stride_tokens: usize,
    /// Tokens of the text that are searched for.
    pub query_tokens: usize,
    /// At most this many tokens of each passage are used.
    pub max_passage_tokens: usize,
}

impl Default for ContextParameters {
    fn default() -> Self {
        Self { passages: 1, stride_tokens: 32, query_tokens: 32, max_passage_tokens: 256 }
    }
}

/// How the store is consulted.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Retrieval {
    /// Which half.
    pub mode: Mode,
    /// What of it may be seen.
    pub filter: Filter,
    /// Sources that are taken never to have been there: besides that they are not seen, what was tuned on them does not hold.
    pub without: Vec<SourceId>,
    /// Parameters of the neighbours.
    pub knn: KnnOverrides,
    /// Greatest part of the neighbours' weight that one source has at a token; `None` for the configured one, which is the most that can
    /// be asked for.
    pub influence_cap: Option<f64>,
    /// Parameters of the passages; `None` for the configured ones.
    pub context: Option<ContextParameters>,
}

/// What happens to a running stream when something that it may see is removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnRemoval {
    /// It ends, and says why.
    #[default]
    End,
    /// It goes on with the store as it is now.
    Repin,
}

/// A text to continue.
#[derive(Debug, Clone, PartialEq)]
pub struct GenerateRequest {
    /// The prompt, without the beginning of text.
    pub prompt: Vec<TokenId>,
    /// At most this many tokens.
    pub max_new_tokens: usize,
    /// How tokens are drawn.
    pub sampling: SamplingParameters,
    /// Makes the draws repeatable.
    pub seed: u64,
    /// The text ends before the first of these.
    pub stop: Vec<String>,
    /// How the store is consulted.
    pub retrieval: Retrieval,
    /// How finely sources are credited.
    pub depth: Depth,
    /// Whether each token is computed without each of its passages too, which the model reads the text again for.
    pub leave_one_passage_out: bool,
    /// What a removal does.
    pub on_removal: OnRemoval,
    /// So many of the most probable tokens are reported with each token.
    pub alternatives: usize,
    /// The text ends at this time, with what there is.
    pub time_limit: Option<Instant>,
    /// The request fails at this time.
    pub deadline: Option<Instant>,
}

impl GenerateRequest {
    /// A request with the defaults of every field.
    pub fn new(prompt: Vec<TokenId>, max_new_tokens: usize) -> Self {
        Self {
            prompt,
            max_new_tokens,
            sampling: SamplingParameters::default(),
            seed: 0,
            stop: Vec::new(),
            retrieval: Retrieval::default(),
            depth: Depth::Sources,
            leave_one_passage_out: false,
            on_removal: OnRemoval::End,
            alternatives: 0,
            time_limit: None,
            deadline: None,
        }
    }
}

/// A text whose probability is asked for.
#[derive(Debug, Clone, PartialEq)]
pub struct ScoreRequest {
    /// The text, without the beginning of text.
    pub tokens: Vec<TokenId>,
    /// The text is scored in windows of at most this many tokens; 0 for the model's window.
    pub window_tokens: usize,
    /// Windows move by so many tokens, each token is scored once; 0 for half a window.
    pub stride_tokens: usize,
    /// How the store is consulted.
    pub retrieval: Retrieval,
    /// How finely sources are credited; not at all, if there is none.
    pub depth: Option<Depth>,
    /// Whether each token is computed without each of its passages too, which the model reads the text again for.
    pub leave_one_passage_out: bool,
    /// The request fails at this time.
    pub deadline: Option<Instant>,
}

impl ScoreRequest {
    /// A request with the defaults of every field.
    pub fn new(tokens: Vec<TokenId>, retrieval: Retrieval) -> Self {
        Self {
            tokens,
            window_tokens: 0,
            stride_tokens: 0,
            retrieval,
            depth: None,
            leave_one_passage_out: false,
            deadline: None,
        }
    }
}
