//! The nouns of the system, the seams between its parts, and its pure arithmetic.
//!
//! What it is: ids, [`Source`], [`Document`], [`Snapshot`], tiers and permissions; the traits that the other crates
//! implement ([`LanguageModel`], [`Tokenizer`], [`NeighborSearch`], [`PassageSearch`], [`SnapshotProvider`]); and the
//! functions that turn logits and neighbours into a token ([`mixture`], [`sampling`]) with the exact share of every source.
//!
//! What it is not: there is no I/O here, no async runtime, no tensor library, no index and no wire format. Everything in
//! this crate can be tested with plain values.
//!
//! ```
//! use silo_core::mixture::{interpolate, log_softmax, NeighborDistribution};
//! use silo_core::{KnnParameters, Neighbor, ShardIndex};
//!
//! let log_p_lm = log_softmax(&[0.0, 0.0]);
//! let neighbors = [Neighbor { distance: 1.0, value: 1, shard: ShardIndex(0), row: 0, matched: 0 }];
//! let knn = NeighborDistribution::new(&neighbors, &KnnParameters::new(1, 0.25, 10.0));
//! let log_p = interpolate(&log_p_lm, &knn, 0.25);
//! assert!((log_p[0].exp() - 0.375).abs() < 1e-12); // 0.75 * 0.5
//! assert!((log_p[1].exp() - 0.625).abs() < 1e-12); // 0.75 * 0.5 + 0.25 * 1
//! ```

mod calibration;
mod change;
mod detokenize;
mod document;
mod id;
mod licence;
pub mod merkle;
pub mod mixture;
mod optout;
mod policy;
pub mod sampling;
mod seams;
mod selection;
mod snapshot;
mod source;
pub mod units;

pub use calibration::{Calibration, Gate, GateFeatures, GateTerms, KnnParameters, is_match_bonus};
pub use change::{Change, ChangeEntry, DocumentSet, StoreState};
pub use detokenize::Detokenizer;
pub use document::Document;
pub use id::{ContentHash, Epoch, InvalidId, RootHash, ShardId, ShardIndex, SourceId, TokenId};
pub use licence::{LicencePolicy, Tier, UnknownLicence};
pub use optout::{
    OptOut, OptOutAction, OptOutEvent, OptOutRequest, OptOutSelection, OptOutState, PassageMatch, ReasonCode,
};
pub use policy::{Signal, SourcePolicy, Term};
pub use seams::*;
pub use selection::Selection;
pub use snapshot::{Filter, ShardMask, ShardView, Snapshot, UnknownName};
pub use source::{Permissions, Purpose, Source};
