//! The files of a shard. All numbers are little-endian.

use std::collections::BTreeMap;

use bytemuck::{Pod, Zeroable};
use serde::{Deserialize, Serialize};
use silo_core::{ContentHash, SourceId, Tier};

use crate::Recipe;

#[cfg(target_endian = "big")]
compile_error!("shards are mapped into memory as little-endian numbers");

/// Version of the format. It grows with every change; old versions open or fail with advice.
pub const VERSION: u32 = 2;

/// Marks a manifest.
pub const FORMAT: &str = "silo-shard";

pub(crate) const MANIFEST: &str = "manifest.json";
/// [`DocumentRecord`]s, sorted by number.
pub(crate) const DOCUMENTS: &str = "documents.bin";
/// [`DocumentMetadata`] as JSON, one after the other.
pub(crate) const METADATA: &str = "metadata.bin";
/// Texts, one after the other.
pub(crate) const TEXT: &str = "text.bin";
/// Tokens as u32, document after document.
pub(crate) const TOKENS: &str = "tokens.bin";
/// Keys, row after row.
pub(crate) const KEYS: &str = "keys.bin";

/// Where each inverted list begins, as u32, and at last where all end. Only with a recipe of inverted lists, like the next two.
pub(crate) const LISTS: &str = "lists.bin";
/// The entry of each place in the lists, as u32.
pub(crate) const ROWS: &str = "rows.bin";
/// The code of each place in the lists.
pub(crate) const CODES: &str = "codes.bin";
/// The index of runs of words ([`silo_spans::SpanFiles`]), as u32: words, their places in order, where documents begin. Shards of before there
/// was one lack these three.
pub(crate) const UNITS: &str = "units.bin";
/// See [`UNITS`].
pub(crate) const ORDER: &str = "order.bin";
/// See [`UNITS`].
pub(crate) const STARTS: &str = "starts.bin";
/// [`PassageRecord`]s, in the order of the documents.
pub(crate) const PASSAGES: &str = "passages.bin";
/// Directory of the passage index.
pub(crate) const LEXICAL: &str = "bm25";

/// What a shard is; `manifest.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// [`FORMAT`].
    pub format: String,
    /// [`VERSION`].
    pub version: u32,
    /// The source of all its documents.
    pub source: SourceId,
    /// Name of the model that made its keys.
    pub model: String,
    /// Hash of that model.
    pub model_hash: ContentHash,
    /// The recipe.
    pub recipe: Recipe,
    /// Hash of the recipe.
    pub recipe_hash: ContentHash,
    /// The distance of its keys: always `squared-l2`.
    pub distance: String,
    /// Values of a key.
    pub key_dim: usize,
    /// Documents.
    pub n_documents: u64,
    /// Tokens of the documents.
    pub n_tokens: u64,
    /// Entries: keys with their next token.
    pub n_entries: u64,
    /// Passages.
    pub n_passages: u64,
    /// Size and hash of each file.
    pub files: BTreeMap<String, FileEntry>,
}

/// A file of a shard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileEntry {
    /// Its size.
    pub bytes: u64,
    /// Its SHA-256.
    pub sha256: ContentHash,
}

/// Where a document's parts lie in the other files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct DocumentRecord {
    pub(crate) hash: [u8; 32],
    /// Given when the shard was first built, in the order of URIs, so that those with a common beginning are a range; kept for ever.
    pub(crate) number: u64,
    /// Row of its first entry in the shard as it was first built. What was found is named by such rows, which stay when other documents
    /// of the shard are withdrawn and its files are written anew.
    pub(crate) first_row: u64,
    pub(crate) first_token: u64,
    pub(crate) n_tokens: u64,
    pub(crate) first_entry: u64,
    pub(crate) n_entries: u64,
    pub(crate) text_at: u64,
    pub(crate) text_bytes: u64,
    pub(crate) metadata_at: u64,
    pub(crate) metadata_bytes: u64,
}

/// A passage: some tokens of a document.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct PassageRecord {
    pub(crate) document: u32,
    pub(crate) start: u32,
    pub(crate) n_tokens: u32,
}

/// What is known of a document besides its text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DocumentMetadata {
    pub(crate) uri: String,
    pub(crate) title: String,
    /// Other URIs under which the same text came: a withdrawal of any of them withdraws it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) other_uris: Vec<String>,
    pub(crate) licence: String,
    pub(crate) tier: Tier,
}
