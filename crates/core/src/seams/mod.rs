//! The few traits between the crates. Their documentation is their contract, and `silo-testkit` holds the suites that every
//! implementation runs: for a model, a tokenizer, and all that a `Datastore` is.

mod model;
mod search;
mod spans;
mod tokenizer;

pub use model::{
    KeySite, LanguageModel, Matrix, ModelCard, ModelError, Positions, SequenceCache, SequenceStep, StepOutput,
};
pub use search::{
    Datastore, Entry, Neighbor, NeighborQuery, NeighborSearch, Passage, PassageQuery, PassageSearch, SearchError,
    SnapshotProvider,
};
pub use spans::{Run, SpanSearch};
pub use tokenizer::{Tokenizer, TokenizerError};
