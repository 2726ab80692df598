//! Measuring on held-out text: bits per byte and perplexity of every mode, and the tuning of the neighbours' parameters.
//!
//! What it is: held-out texts of a corpus's domains ([`Domain`]), evidence gathered once through the engine that serves and scored under
//! many settings ([`tune`], [`tune_rule`]) and kept on disk ([`EvidenceCache`]), the table of domains and modes ([`evaluate`]), the gap closed to
//! a model that has learnt all text ([`GapClosed`]) and how sure a difference is ([`Difference`]); what credit names, put to the test ([`NamedText`]); what is generated ([`generate`]), by a judge and against the store; speed of decoding and
//! recall of search.
//!
//! What it is not: it tunes nothing on test text, which is scored with the parameters that validation text chose.

mod attribution;
mod cache;
mod domain;
mod ensemble;
mod error;
mod evaluate;
mod gap;
mod gate;
mod generation;
mod interval;
mod loss;
mod overlap;
mod scope;
mod speed;
#[cfg(test)]
mod tests;
mod tune;
mod weight;

pub use attribution::{AttributionConfig, Compared, NamedText, NamedToken, PlantedRun, plant};
pub use cache::EvidenceCache;
pub use domain::{Domain, Sizes, StorePart, Text, held_out_of, store_parts};
pub use error::EvalError;
pub use evaluate::{
    DomainResult, Gathered, Gatherer, Measurement, Progress, Setting, Together, TunedOn, View, evaluate,
};
pub use gap::{GapClosed, GapLosses};
pub use generation::{Generated, GenerationSizes, Prompt, StoredWords, distinct, divergence, generate, judged};
pub use interval::Difference;
pub use loss::Loss;
pub use overlap::{OverlapConfig, overlaps, without_matches};
pub use scope::Scope;
pub use speed::{DecodeSpeed, Effort, SearchQuality, decode_speed, search_quality};
pub use tune::{Grid, Points, Tuned, is_repeated, tune};
pub use weight::{Chosen, RuleKind, Ruled, WeightRule, tune_rule};
