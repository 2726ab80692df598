//! The parametric model.

use std::any::Any;
use std::fmt;
use std::str::FromStr;
use std::sync::atomic::AtomicBool;

use serde::{Deserialize, Serialize};

use crate::{ContentHash, SourceId, Tier, TokenId};

/// Which hidden state is the key of kNN-LM (Khandelwal et al. 2020, table 5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KeySite {
    /// The input of the last block's feed-forward, after its norm: the best site in the paper, and the default.
    #[default]
    LastFfnInput,
    /// The output of the last block, before the final norm.
    LastBlockOutput,
    /// The output of the final norm, which SILO's own code used.
    FinalNorm,
}

impl KeySite {
    /// All sites.
    pub const ALL: [Self; 3] = [Self::LastFfnInput, Self::LastBlockOutput, Self::FinalNorm];

    /// The name used in files and messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::LastFfnInput => "last-ffn-input",
            Self::LastBlockOutput => "last-block-output",
            Self::FinalNorm => "final-norm",
        }
    }
}

impl fmt::Display for KeySite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for KeySite {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|s| s.name() == text).ok_or_else(|| {
            format!("'{text}' is no key site; the sites are last-ffn-input, last-block-output, final-norm")
        })
    }
}

/// What a model says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelCard {
    /// A name to show.
    pub name: String,
    /// SHA-256 over its weights and configuration: keys of one hash are comparable, keys of two are not.
    pub hash: ContentHash,
    /// Architecture, as `llama`.
    pub architecture: String,
    /// Tokens in the vocabulary: the length of a row of logits.
    pub vocab_size: usize,
    /// Length of a key.
    pub key_dim: usize,
    /// Which hidden state is the key.
    pub key_site: KeySite,
    /// Longest sequence, in tokens.
    pub context_tokens: usize,
    /// Parameters.
    pub n_parameters: u64,
    /// Tiers of the text that it was trained on; `None` when others trained it and it is unknown.
    pub training_tiers: Option<Vec<Tier>>,
    /// Sources of that text; `None` when they are unknown.
    pub training_sources: Option<Vec<SourceId>>,
}

/// At which of a step's positions an output is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Positions {
    /// Nowhere.
    None,
    /// At the step's last token.
    Last,
    /// At this token of the step (counted from 0) and all after it.
    From(usize),
}

impl Positions {
    /// The first position that is wanted in a step of `n` tokens; `n` if none is.
    pub fn first(self, n: usize) -> usize {
        match self {
            Self::None => n,
            Self::Last => n.saturating_sub(1),
            Self::From(i) => i.min(n),
        }
    }
}

/// Rows of f32, row after row.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Matrix {
    /// Length of a row.
    pub n_cols: usize,
    /// The values; a multiple of `n_cols` of them.
    pub data: Vec<f32>,
}

impl Matrix {
    /// Number of rows.
    pub fn n_rows(&self) -> usize {
        self.data.len().checked_div(self.n_cols).unwrap_or(0)
    }

    /// Row `i`.
    pub fn row(&self, i: usize) -> &[f32] {
        &self.data[i * self.n_cols..(i + 1) * self.n_cols]
    }

    /// All rows in order.
    pub fn rows(&self) -> impl ExactSizeIterator<Item = &[f32]> {
        self.data.chunks_exact(self.n_cols.max(1))
    }
}

/// The attention cache of one sequence. Its owner keeps it between steps, may cut it, and drops it.
pub trait SequenceCache: Send {
    /// Tokens that it holds.
    fn len(&self) -> usize;

    /// Whether it holds none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Forgets all tokens from position `len` on.
    fn truncate(&mut self, len: usize);

    /// For the model that made it.
    fn as_any_mut(&mut self) -> &mut dyn Any;
}

/// One sequence's part of a step: any number of new tokens, from one (decoding) to a whole prompt.
pub struct SequenceStep<'a> {
    /// Its cache, which grows by the tokens.
    pub cache: &'a mut dyn SequenceCache,
    /// The new tokens; at least one.
    pub tokens: &'a [TokenId],
    /// Where logits are wanted.
    pub logits: Positions,
    /// Where keys are wanted.
    pub keys: Positions,
}

/// What a step gives one sequence: a row per position asked for.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct StepOutput {
    /// Rows of `vocab_size` logits.
    pub logits: Matrix,
    /// Rows of `key_dim` values.
    pub keys: Matrix,
}

impl StepOutput {
    /// Refuses what is no answer: with it, every probability and every distance would be none.
    pub fn check_finite(&self) -> Result<(), ModelError> {
        let finite = |matrix: &Matrix| matrix.data.iter().all(|x| x.is_finite());
        if finite(&self.logits) && finite(&self.keys) { Ok(()) } else { Err(ModelError::NotFinite) }
    }
}

/// Why a model could not do a step.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// A sequence would outgrow the model's window.
    #[error("the sequence would have {got} tokens, but the model's window holds {limit}; shorten the prompt")]
    ContextOverflow {
        /// Tokens that it would have.
        got: usize,
        /// Tokens that the window holds.
        limit: usize,
    },
    /// A token outside the vocabulary.
    #[error("token {token} is outside the vocabulary of {vocab_size}")]
    UnknownToken {
        /// The token.
        token: TokenId,
        /// Tokens in the vocabulary.
        vocab_size: usize,
    },
    /// A cache of another model, or an empty step.
    #[error("wrong use of the model: {0}")]
    Misuse(&'static str),
    /// The step was given up because nobody waits for it any more.
    #[error("the step was given up: its callers have gone")]
    Interrupted,
    /// A logit or a value of a key is infinite or no number.
    #[error("the model gave infinite values, or none at all: its weights are damaged, or too large")]
    NotFinite,
    /// The device or the tensor library failed.
    #[error("the model's device failed: {0}")]
    Device(String),
}

/// A causal language model with a key tap.
///
/// Contract: a step takes many sequences of different lengths, each with its own cache. What a sequence gets does not depend
/// on what else is in the step nor on how its tokens are cut into steps, to the last bit, unless the implementation states a
/// narrower scope. On an error no cache has changed. Position i's logits are over the token that follows token i; position
/// i's key is the hidden state at [`ModelCard::key_site`] from which they were made.
pub trait LanguageModel: Send + Sync {
    /// What it says of itself.
    fn card(&self) -> &ModelCard;

    /// An empty cache for one sequence.
    fn new_cache(&self) -> Box<dyn SequenceCache>;

    /// Runs one step. `interrupt` is looked at between layers; once it is true the step ends with
    /// [`ModelError::Interrupted`].
    fn step(&self, batch: &mut [SequenceStep<'_>], interrupt: &AtomicBool) -> Result<Vec<StepOutput>, ModelError>;
}
