//! Test doubles and contract suites; a dev-dependency only.
//!
//! What it is: suites for the seams of `silo-core` that every implementation of them runs ([`contract`]), a model whose outputs
//! are a known function of its tokens ([`ScriptedModel`]), a tokenizer of bytes ([`ByteTokenizer`]).
//!
//! What it is not: part of the product.

pub mod contract;
mod scripted;

pub use scripted::{ByteTokenizer, ScriptedModel};
