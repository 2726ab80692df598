//! Every change of the store goes through here, and every look at it but the engine's.
//!
//! What it is: [`Governor`] decides a source's tier from its licence, checks what is declared and added, and shows text only of
//! sources that permit it. [`Access`] knows callers by their tokens. [`Notary`] signs the log of changes, and receipts.
//!
//! What it is not: it stores nothing itself, and knows nothing of the wire.

mod access;
mod attribution;
mod declare;
mod error;
mod governor;
mod look;
mod notary;
mod optout;
mod policy;
mod signals;

pub use access::{Access, AccessError, Caller, Denied, NewToken, Role, TokenFile, TokenRecord};
pub use attribution::{
    Answer, AttributionConfig, CreditedDocument, CreditedToken, HOUR_MS, KeptAnswer, KeptToken, Part, PartOfAnswer,
    SourceReport, SpanLimits, TextSpans,
};
pub use declare::{Declaration, declare};
pub use error::GovernError;
pub use governor::{GovernConfig, Governor};
pub use look::{Found, FoundNeighbor, FoundPassage, Look, TRIES};
pub use notary::{LogProof, Notary, ProvenEntry, verify_log};
pub use optout::{
    Decision, Hit, KeptOut, NewOptOut, OptOutConfig, OptOutPlan, Quote, Refusal, Sketch, Suppressed, Verdict, Why,
    after, becomes,
};
pub use policy::{SourceState, SourceUpdate};
pub use signals::{SignalFile, SignalKind, read_signal};
pub use silo_store::{
    AddedShard, BackupManifest, BackupRecord, FoundSpan, LedgerRow, PartDocument, Purged, Removal, RemovalPart,
    ShardDetail, ShardState, SpanDocument, StoreError, Suppression, TextMatch, now_unix_ms,
};
