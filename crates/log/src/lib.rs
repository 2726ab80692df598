//! The log of changes as a Merkle tree, its signed checkpoints, and receipts of withdrawals with all that proves them.
//!
//! What it is: the tree of RFC 9162 in a file of hashes ([`HashFile`]), proofs of inclusion and consistency ([`tree`]), checkpoints as C2SP
//! signed notes ([`Checkpoint`], [`note`]), receipts ([`Receipt`])
//! and statements ([`Statement`]) that anyone verifies offline with the public key. Useful alone to an
//! auditor.
//!
//! What it is not: it knows no store, and decides nothing about what is logged. `docs/receipts.md` gives the formats to the byte.

mod checkpoint;
mod error;
mod file;
mod keys;
pub mod note;
mod receipt;
mod statement;
pub mod tree;

pub use checkpoint::Checkpoint;
pub use error::LogError;
pub use file::HashFile;
pub use keys::{KeyFile, read_public, with_rotations, write_whole};
pub use note::{SigningKey, VerifyingKey};
pub use receipt::{Absence, Logged, Receipt, TrainedOn, Verified};
pub use statement::{LedgerHour, LedgerReport, Statement, VerifiedStatement};
