//! Whole-system tests. This root is their table of contents.

/// Who may call what: tokens, roles, scopes, certificates.
mod access;
/// Which crate may know which.
mod arrows;
/// Shares, comparisons, answers that are kept, the ledger, runs of words.
mod attribution;
/// A gate and what matches, against the formula; what was tuned on a source goes with it.
mod calibration;
/// Removed equals never added, with the default model and at random.
mod equality;
/// Receipts of a real store, and forgeries of them.
mod forgery;
/// Withdrawals inside shards, suspension, backup and restore, over gRPC.
mod governed;
/// No long run of a source that may not be reproduced leaves the service.
mod guard;
/// How much a source may weigh, and what a passage does.
mod influence;
/// After an opt-out no call of any service says anything of it.
mod leaks;
/// Licences of all dependencies.
mod licences;
/// Opt-outs: what requests do, what they keep out, what outlives restores.
mod optouts;
/// Permissions, terms and signals of sources.
mod policies;
/// Receipts, their proofs, and the log.
mod receipts;
/// The service over gRPC: generation, shards that come and go, wrong input.
mod service;
/// What removals, slow readers and a full house do to running streams.
mod streams;
/// Module docs, file and function length, words that must not occur.
mod tidy;
/// The smallest real model over a store of its own.
mod world;
