//! Building a shard from documents.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use half::f16;
use silo_core::{ContentHash, Document, LanguageModel, SourceId, TokenId, Tokenizer};

use crate::format::DocumentMetadata;
use crate::write::{About, ShardWriter, Written};
use crate::{KeyType, Manifest, Recipe, StoreError, encode};

/// Documents that are tokenised and encoded together.
const DOCUMENTS_PER_BATCH: usize = 64;

/// Builds the files of a shard.
pub struct ShardBuilder<'a> {
    /// The model that makes the keys.
    pub model: &'a dyn LanguageModel,
    /// Its tokenizer.
    pub tokenizer: &'a dyn Tokenizer,
    /// The recipe.
    pub recipe: &'a Recipe,
    /// Given up as soon as this is true.
    pub cancel: &'a AtomicBool,
    /// Told the documents done so far and the number of all.
    pub progress: &'a dyn Fn(u64, u64),
}

/// A document with what it is known by in its shard.
pub(crate) struct Numbered<'a> {
    pub(crate) number: u32,
    /// Where its rows begin, if it has had rows of this model and recipe.
    pub(crate) first_row: Option<u32>,
    pub(crate) hash: ContentHash,
    pub(crate) document: &'a Document,
    /// Other URIs of the same text, sorted.
    pub(crate) other_uris: Vec<String>,
}

/// Numbers documents in the order of their URIs; those with equal text are one, under the first of their URIs.
fn number(documents: &[Document]) -> Vec<Numbered<'_>> {
    let mut sorted: Vec<(ContentHash, &Document)> = documents.iter().map(|d| (d.hash(), d)).collect();
    sorted.sort_by(|a, b| a.0.cmp(&b.0).then_with(|| a.1.uri.cmp(&b.1.uri)));
    let mut out: Vec<Numbered<'_>> = Vec::new();
    for (hash, document) in sorted {
        match out.last_mut().filter(|last| last.hash == hash) {
            None => out.push(Numbered { number: 0, first_row: None, hash, document, other_uris: Vec::new() }),
            Some(last) => last.other_uris.push(document.uri.clone()),
        }
    }
    for numbered in &mut out {
        numbered.other_uris.dedup();
        numbered.other_uris.retain(|uri| *uri != numbered.document.uri);
    }
    out.sort_by(|a, b| a.document.uri.cmp(&b.document.uri).then_with(|| a.hash.cmp(&b.hash)));
    out.iter_mut().zip(0..).for_each(|(d, number)| d.number = number);
    out
}

impl ShardBuilder<'_> {
    /// Writes all files of a shard of `source` into the empty `directory`. They depend on the set of documents alone, those of the passage
    /// index aside, whose names are drawn.
    pub fn build(&self, directory: &Path, source: &SourceId, documents: &[Document]) -> Result<Manifest, StoreError> {
        self.build_numbered(directory, source, &number(documents))
    }

    /// The same for documents that have numbers, which must rise.
    pub(crate) fn build_numbered(
        &self,
        directory: &Path,
        source: &SourceId,
        documents: &[Numbered<'_>],
    ) -> Result<Manifest, StoreError> {
        let card = self.model.card();
        self.recipe.check_model(card)?;
        let n_lists = self.recipe.quantizer().map(|(_, q)| q.n_lists());
        let mut writer = ShardWriter::create(directory, self.tokenizer, self.recipe, n_lists)?;
        for (i, batch) in documents.chunks(DOCUMENTS_PER_BATCH).enumerate() {
            (self.progress)((i * DOCUMENTS_PER_BATCH) as u64, documents.len() as u64);
            self.batch(batch, &mut writer)?;
        }
        (self.progress)(documents.len() as u64, documents.len() as u64);
        writer.finish(&About { source, model: &card.name, model_hash: card.hash, key_dim: card.key_dim })
    }

    fn batch(&self, batch: &[Numbered<'_>], writer: &mut ShardWriter<'_>) -> Result<(), StoreError> {
        let tokenize = |d: &Numbered<'_>| {
            let failed = |source| StoreError::Tokenizer { uri: d.document.uri.clone(), source };
            self.tokenizer.encode(&d.document.text).map_err(failed)
        };
        let tokens: Vec<Vec<TokenId>> = batch.iter().map(tokenize).collect::<Result<_, _>>()?;
        let slices: Vec<&[TokenId]> = tokens.iter().map(Vec::as_slice).collect();
        let beginning = self.tokenizer.beginning_of_text();
        let encoded = encode(self.model, beginning, &slices, self.recipe, self.cancel).map_err(|source| {
            if self.cancel.load(Ordering::Relaxed) {
                StoreError::Cancelled
            } else {
                StoreError::Model { uri: batch[0].document.uri.clone(), source }
            }
        })?;
        for ((numbered, tokens), encoded) in batch.iter().zip(&tokens).zip(&encoded) {
            let lists = self.recipe.quantizer().map(|(_, q)| q.encode(&encoded.keys.data));
            writer.put(&Written {
                number: numbered.number,
                first_row: numbered.first_row,
                hash: numbered.hash,
                metadata: &metadata(numbered),
                text: numbered.document.text.as_bytes(),
                tokens,
                n_entries: encoded.keys.n_rows() as u64,
                keys: &key_bytes(&encoded.keys.data, self.recipe.key_type),
                lists: lists.as_ref().map(|(lists, codes)| (&lists[..], &codes[..])),
            })?;
        }
        Ok(())
    }
}

fn metadata(numbered: &Numbered<'_>) -> Vec<u8> {
    let document = numbered.document;
    let metadata = DocumentMetadata {
        uri: document.uri.clone(),
        title: document.title.clone(),
        other_uris: numbered.other_uris.clone(),
        licence: document.licence.clone(),
        tier: document.tier,
    };
    serde_json::json!(metadata).to_string().into_bytes()
}

fn key_bytes(keys: &[f32], key_type: KeyType) -> Vec<u8> {
    match key_type {
        KeyType::F32 => bytemuck::cast_slice(keys).to_vec(),
        KeyType::F16 => {
            let halves: Vec<f16> = keys.iter().map(|&x| f16::from_f32(x)).collect();
            bytemuck::cast_slice(&halves).to_vec()
        }
    }
}
