//! Inverted lists under a quantiser that all shards share: one search over many shards costs what one over a single shard costs, for
//! the lists to look into are the same in all of them.
//!
//! A search projects the query, looks into the nearest lists, ranks what it finds there by small integer codes, and ranks the best of
//! that again by the exact distance of the whole keys. What is found depends on the visible entries alone, not on how they are spread
//! over parts: codes and lists of an entry depend on its key, ties go by the caller's order, and where the first lists show too
//! few entries the next ones are looked into.

mod merged;
mod quantizer;
mod search;
mod train;

pub use merged::MergedLists;
pub use quantizer::{Quantizer, QuantizerError};
pub use search::{Collection, Found, ListPart, Lists, Probe, ivf_search, n_compared};
pub use train::{Training, train_quantizer};
