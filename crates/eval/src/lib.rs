//! Measuring on held-out text: bits per byte and perplexity of every mode, and the tuning of the neighbours' parameters.
//!
//! What it is: held-out texts of a corpus's domains ([`Domain`]), evidence gathered once through the engine that serves and scored under
//! many settings ([`tune`]), the table of domains and modes ([`evaluate`]); speed of decoding and
//! recall of search.
//!
//! What it is not: it tunes nothing on test text, which is looked at once, with the parameters that validation text chose.

mod domain;
mod error;
mod evaluate;
mod loss;
mod speed;
mod tune;

pub use domain::{Domain, Sizes, Text};
pub use error::EvalError;
pub use evaluate::{DomainResult, Gathered, Measurement, Progress, Scope, Setting, evaluate, tune_shared};
pub use loss::Loss;
pub use speed::{DecodeSpeed, Effort, SearchQuality, decode_speed, search_quality};
pub use tune::{Grid, Tuned, tune};
