//! One suite per seam. Each function panics with what was violated.

mod language_model;

pub use language_model::language_model;
