//! One suite per seam. Each function panics with what was violated.

mod language_model;
mod search;
mod tokenizer;

pub use language_model::language_model;
pub use search::{Stocked, datastore};
pub use tokenizer::tokenizer;
