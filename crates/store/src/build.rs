//! Building a shard's files in a temporary place.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use half::f16;
use sha2::{Digest, Sha256};
use silo_core::{ContentHash, Document, LanguageModel, SourceId, TokenId, Tokenizer};
use silo_lexical::PassageIndexBuilder;

use crate::format::{self, DocumentMetadata, DocumentRecord, FileEntry, Manifest, PassageRecord};
use crate::lists::ListWriter;
use crate::{Encoded, KeyType, Recipe, StoreError, encode};

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

/// Writes a file and hashes it on the way.
pub(crate) struct HashedFile {
    path: PathBuf,
    file: BufWriter<File>,
    digest: Sha256,
    bytes: u64,
}

impl HashedFile {
    pub(crate) fn create(directory: &Path, name: &str) -> Result<Self, StoreError> {
        let path = directory.join(name);
        let file = File::create(&path).map_err(StoreError::io(&path))?;
        Ok(Self { path, file: BufWriter::with_capacity(1 << 20, file), digest: Sha256::new(), bytes: 0 })
    }

    pub(crate) fn write(&mut self, data: &[u8]) -> Result<(), StoreError> {
        self.file.write_all(data).map_err(StoreError::io(&self.path))?;
        self.digest.update(data);
        self.bytes += data.len() as u64;
        Ok(())
    }

    /// Brings the file to disk.
    pub(crate) fn finish(mut self) -> Result<FileEntry, StoreError> {
        self.file.flush().map_err(StoreError::io(&self.path))?;
        self.file.get_ref().sync_all().map_err(StoreError::io(&self.path))?;
        Ok(FileEntry { bytes: self.bytes, sha256: ContentHash(self.digest.finalize().into()) })
    }
}

struct Files {
    documents: HashedFile,
    metadata: HashedFile,
    text: HashedFile,
    tokens: HashedFile,
    keys: HashedFile,
    passages: HashedFile,
    lexical: PassageIndexBuilder,
    lists: Option<ListWriter>,
}

impl ShardBuilder<'_> {
    /// Writes all files of a shard of `source` into the empty `directory`. Documents are sorted by hash and those with equal
    /// text are one, so the files depend on the set of documents alone.
    pub fn build(&self, directory: &Path, source: &SourceId, documents: &[Document]) -> Result<Manifest, StoreError> {
        self.recipe.check_model(self.model.card())?;
        let mut sorted: Vec<(ContentHash, &Document)> = documents.iter().map(|d| (d.hash(), d)).collect();
        sorted.sort_by(|a, b| a.0.cmp(&b.0).then_with(|| a.1.uri.cmp(&b.1.uri)));
        sorted.dedup_by_key(|d| d.0);
        let lexical = directory.join(format::LEXICAL);
        create_directory(&lexical)?;
        let file = |name| HashedFile::create(directory, name);
        let mut files = Files {
            documents: file(format::DOCUMENTS)?,
            metadata: file(format::METADATA)?,
            text: file(format::TEXT)?,
            tokens: file(format::TOKENS)?,
            keys: file(format::KEYS)?,
            passages: file(format::PASSAGES)?,
            lexical: PassageIndexBuilder::create(&lexical)?,
            lists: self.recipe.quantizer().map(|(_, q)| ListWriter::new(q)),
        };
        let mut totals = Totals::default();
        for (i, batch) in sorted.chunks(DOCUMENTS_PER_BATCH).enumerate() {
            (self.progress)((i * DOCUMENTS_PER_BATCH) as u64, sorted.len() as u64);
            self.batch(batch, &mut files, &mut totals)?;
        }
        (self.progress)(sorted.len() as u64, sorted.len() as u64);
        let manifest = self.manifest(directory, source, totals, files)?;
        write_manifest(directory, &manifest)?;
        Ok(manifest)
    }

    fn batch(
        &self,
        batch: &[(ContentHash, &Document)],
        files: &mut Files,
        totals: &mut Totals,
    ) -> Result<(), StoreError> {
        let tokens: Vec<Vec<TokenId>> = batch
            .iter()
            .map(|(_, d)| {
                self.tokenizer.encode(&d.text).map_err(|source| StoreError::Tokenizer { uri: d.uri.clone(), source })
            })
            .collect::<Result<_, _>>()?;
        let slices: Vec<&[TokenId]> = tokens.iter().map(Vec::as_slice).collect();
        let beginning = self.tokenizer.beginning_of_text();
        let encoded = encode(self.model, beginning, &slices, self.recipe, self.cancel).map_err(|source| {
            if self.cancel.load(Ordering::Relaxed) {
                StoreError::Cancelled
            } else {
                StoreError::Model { uri: batch[0].1.uri.clone(), source }
            }
        })?;
        for (((hash, document), tokens), encoded) in batch.iter().zip(&tokens).zip(&encoded) {
            let metadata = metadata(document);
            let record = DocumentRecord {
                hash: hash.0,
                first_token: totals.tokens,
                n_tokens: tokens.len() as u64,
                first_entry: totals.entries,
                n_entries: encoded.keys.n_rows() as u64,
                text_at: files.text.bytes,
                text_bytes: document.text.len() as u64,
                metadata_at: files.metadata.bytes,
                metadata_bytes: metadata.len() as u64,
            };
            self.passages(tokens, files, totals)?;
            totals.documents += 1;
            totals.tokens += record.n_tokens;
            totals.entries += record.n_entries;
            files.documents.write(bytemuck::bytes_of(&record))?;
            files.metadata.write(&metadata)?;
            files.text.write(document.text.as_bytes())?;
            files.tokens.write(bytemuck::cast_slice(tokens))?;
            write_keys(&mut files.keys, encoded, self.recipe.key_type)?;
            if let Some((writer, (_, quantizer))) = files.lists.as_mut().zip(self.recipe.quantizer()) {
                writer.add(quantizer, &encoded.keys.data);
            }
        }
        Ok(())
    }

    /// Cuts the next document into passages. The last one reaches to its end.
    fn passages(&self, tokens: &[TokenId], files: &mut Files, totals: &mut Totals) -> Result<(), StoreError> {
        let (length, stride) = (self.recipe.passage_tokens, self.recipe.passage_stride_tokens);
        let mut start = 0;
        while start < tokens.len() {
            let end = tokens.len().min(start + length);
            let (document, n_tokens) = (totals.documents as u32, (end - start) as u32);
            let record = PassageRecord { document, start: start as u32, n_tokens };
            files.passages.write(bytemuck::bytes_of(&record))?;
            files.lexical.add(&self.tokenizer.decode(&tokens[start..end]))?;
            totals.passages += 1;
            if end == tokens.len() {
                break;
            }
            start += stride;
        }
        Ok(())
    }

    fn manifest(
        &self,
        directory: &Path,
        source: &SourceId,
        totals: Totals,
        files: Files,
    ) -> Result<Manifest, StoreError> {
        files.lexical.finish()?;
        let card = self.model.card();
        let entries = [
            (format::DOCUMENTS, files.documents),
            (format::METADATA, files.metadata),
            (format::TEXT, files.text),
            (format::TOKENS, files.tokens),
            (format::KEYS, files.keys),
            (format::PASSAGES, files.passages),
        ];
        let lists = files.lists.map(|lists| lists.write(directory)).transpose()?;
        let files = entries.into_iter().map(|(name, file)| Ok((name.to_owned(), file.finish()?)));
        let mut files = files.collect::<Result<BTreeMap<_, _>, StoreError>>()?;
        files.extend(hash_directory(directory, format::LEXICAL)?);
        files.extend(lists.into_iter().flatten());
        Ok(Manifest {
            format: format::FORMAT.into(),
            version: format::VERSION,
            source: source.clone(),
            model: card.name.clone(),
            model_hash: card.hash,
            recipe: self.recipe.clone(),
            recipe_hash: self.recipe.hash(),
            distance: "squared-l2".into(),
            key_dim: card.key_dim,
            n_documents: totals.documents,
            n_tokens: totals.tokens,
            n_entries: totals.entries,
            n_passages: totals.passages,
            files,
        })
    }
}

#[derive(Default)]
struct Totals {
    documents: u64,
    tokens: u64,
    entries: u64,
    passages: u64,
}

/// Brings the files of a sub-directory to disk; their sizes and hashes, named `sub/file`. Files that the index opens only for
/// itself (locks, which are empty and hidden) are left out and deleted.
fn hash_directory(directory: &Path, sub: &str) -> Result<BTreeMap<String, FileEntry>, StoreError> {
    let path = directory.join(sub);
    let mut out = BTreeMap::new();
    for entry in fs::read_dir(&path).map_err(StoreError::io(&path))? {
        let file = entry.map_err(StoreError::io(&path))?.path();
        let name = file.file_name().and_then(|n| n.to_str()).unwrap_or_default().to_owned();
        if name.ends_with(".lock") {
            fs::remove_file(&file).map_err(StoreError::io(&file))?;
            continue;
        }
        let bytes = fs::read(&file).map_err(StoreError::io(&file))?;
        File::open(&file).and_then(|f| f.sync_all()).map_err(StoreError::io(&file))?;
        let entry = FileEntry { bytes: bytes.len() as u64, sha256: ContentHash::of(&bytes) };
        out.insert(format!("{sub}/{name}"), entry);
    }
    sync_directory(&path)?;
    Ok(out)
}

fn metadata(document: &Document) -> Vec<u8> {
    let metadata = DocumentMetadata {
        uri: document.uri.clone(),
        title: document.title.clone(),
        licence: document.licence.clone(),
        tier: document.tier,
    };
    serde_json::json!(metadata).to_string().into_bytes()
}

fn write_keys(file: &mut HashedFile, encoded: &Encoded, key_type: KeyType) -> Result<(), StoreError> {
    match key_type {
        KeyType::F32 => file.write(bytemuck::cast_slice(&encoded.keys.data)),
        KeyType::F16 => {
            let halves: Vec<f16> = encoded.keys.data.iter().map(|&x| f16::from_f32(x)).collect();
            file.write(bytemuck::cast_slice(&halves))
        }
    }
}

fn write_manifest(directory: &Path, manifest: &Manifest) -> Result<(), StoreError> {
    let mut file = HashedFile::create(directory, format::MANIFEST)?;
    let text = serde_json::to_string_pretty(manifest).map_err(|e| StoreError::damaged(directory, e))?;
    file.write(text.as_bytes())?;
    file.finish()?;
    sync_directory(directory)
}

/// Brings the names in a directory to disk.
pub(crate) fn sync_directory(directory: &Path) -> Result<(), StoreError> {
    File::open(directory).and_then(|d| d.sync_all()).map_err(StoreError::io(directory))
}

/// Creates a directory and its parents.
pub(crate) fn create_directory(directory: &Path) -> Result<(), StoreError> {
    fs::create_dir_all(directory).map_err(StoreError::io(directory))
}
