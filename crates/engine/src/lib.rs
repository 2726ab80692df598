//! The decode loop: many requests in one step of the model, each with its own view of the store.
//!
//! What it is: [`Engine`] takes validated requests, batches them into steps on its own thread, consults the store between the
//! model and the draw (kNN-LM, retrieve-in-context), and sends tokens with the exact shares of their sources through bounded
//! channels. [`Engine::score`] gives the log-probabilities of a given text under the same modes, [`Engine::compare_without`] with and without
//! some sources.
//!
//! What it is not: it knows the model, the tokenizer and the store only as the seams of `silo-core`, and nothing of the wire.
//! Tokio appears at its rim alone, as the channel in which tokens leave.

mod check;
mod compare;
mod config;
mod context;
mod credit;
mod error;
mod event;
mod evidence;
mod found;
mod guard;
mod pinned;
mod queue;
mod reader;
mod request;
mod scheduler;
mod score;
mod sequence;
mod stop;

pub use compare::{ComparedToken, Comparison};
pub use config::EngineConfig;
pub use credit::{Credit, Depth, DocumentId, LeftOut, NeighborShare, PassageId, SourceCredit, TokenCredit};
pub use error::EngineError;
pub use event::{Event, FinishReason, Finished, InForce, TokenEvent, Usage, View};
pub use evidence::{Evidence, Observation, Retrieved, Sums, Weighed};
pub use guard::{GuardConfig, OnRun};
pub use request::{ContextParameters, GenerateRequest, KnnOverrides, Mode, OnRemoval, Retrieval, ScoreRequest};
pub use scheduler::{Engine, EngineStatus, Generation};
pub use score::{Score, ScoredToken};
