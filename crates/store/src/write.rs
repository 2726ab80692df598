//! Writing a shard's files.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use silo_core::{ContentHash, SourceId, TokenId, Tokenizer, units};
use silo_lexical::PassageIndexBuilder;
use silo_spans::SpanFiles;

use crate::format::{self, DocumentRecord, FileEntry, Manifest, PassageRecord};
use crate::lists::ListWriter;
use crate::{Recipe, StoreError};

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

/// A document of a shard that is being written.
pub(crate) struct Written<'a> {
    pub(crate) number: u32,
    /// Where its rows begin; right after those of the document before it if it has none yet.
    pub(crate) first_row: Option<u32>,
    pub(crate) hash: ContentHash,
    /// [`format::DocumentMetadata`] as JSON.
    pub(crate) metadata: &'a [u8],
    pub(crate) text: &'a [u8],
    pub(crate) tokens: &'a [TokenId],
    pub(crate) n_entries: u64,
    /// As they stand in the file.
    pub(crate) keys: &'a [u8],
    /// List and code of each entry, with a recipe of inverted lists.
    pub(crate) lists: Option<(&'a [u32], &'a [u8])>,
}

/// What the manifest says of a shard besides its files.
pub(crate) struct About<'a> {
    pub(crate) source: &'a SourceId,
    pub(crate) model: &'a str,
    pub(crate) model_hash: ContentHash,
    pub(crate) key_dim: usize,
}

/// Writes the files of a shard into an empty directory, document after document in the order of their numbers.
pub(crate) struct ShardWriter<'a> {
    directory: PathBuf,
    tokenizer: &'a dyn Tokenizer,
    recipe: &'a Recipe,
    documents: HashedFile,
    metadata: HashedFile,
    text: HashedFile,
    tokens: HashedFile,
    keys: HashedFile,
    passages: HashedFile,
    lexical: PassageIndexBuilder,
    lists: Option<ListWriter>,
    /// The words of each document.
    words: Vec<Vec<u32>>,
    totals: Totals,
}

#[derive(Default)]
struct Totals {
    documents: u64,
    tokens: u64,
    entries: u64,
    passages: u64,
    /// Row after the last one.
    rows: u64,
}

impl<'a> ShardWriter<'a> {
    /// `n_lists` is the number of inverted lists, with a recipe that has them.
    pub(crate) fn create(
        directory: &Path,
        tokenizer: &'a dyn Tokenizer,
        recipe: &'a Recipe,
        n_lists: Option<usize>,
    ) -> Result<Self, StoreError> {
        let lexical = directory.join(format::LEXICAL);
        create_directory(&lexical)?;
        let file = |name| HashedFile::create(directory, name);
        Ok(Self {
            directory: directory.to_owned(),
            tokenizer,
            recipe,
            documents: file(format::DOCUMENTS)?,
            metadata: file(format::METADATA)?,
            text: file(format::TEXT)?,
            tokens: file(format::TOKENS)?,
            keys: file(format::KEYS)?,
            passages: file(format::PASSAGES)?,
            lexical: PassageIndexBuilder::create(&lexical)?,
            lists: n_lists.map(ListWriter::new),
            words: Vec::new(),
            totals: Totals::default(),
        })
    }

    pub(crate) fn put(&mut self, document: &Written<'_>) -> Result<(), StoreError> {
        let first_row = document.first_row.map_or(self.totals.rows, u64::from);
        let record = DocumentRecord {
            hash: document.hash.0,
            number: document.number.into(),
            first_row,
            first_token: self.totals.tokens,
            n_tokens: document.tokens.len() as u64,
            first_entry: self.totals.entries,
            n_entries: document.n_entries,
            text_at: self.text.bytes,
            text_bytes: document.text.len() as u64,
            metadata_at: self.metadata.bytes,
            metadata_bytes: document.metadata.len() as u64,
        };
        self.put_passages(document.tokens)?;
        self.documents.write(bytemuck::bytes_of(&record))?;
        self.metadata.write(document.metadata)?;
        self.text.write(document.text)?;
        self.words.push(units::units(&String::from_utf8_lossy(document.text)));
        self.tokens.write(bytemuck::cast_slice(document.tokens))?;
        self.keys.write(document.keys)?;
        if let Some((writer, (lists, codes))) = self.lists.as_mut().zip(document.lists) {
            writer.add(lists, codes);
        }
        self.totals.documents += 1;
        self.totals.tokens += record.n_tokens;
        self.totals.entries += record.n_entries;
        self.totals.rows = first_row + record.n_entries;
        Ok(())
    }

    /// Cuts the next document into passages. The last one reaches to its end.
    fn put_passages(&mut self, tokens: &[TokenId]) -> Result<(), StoreError> {
        let (length, stride) = (self.recipe.passage_tokens, self.recipe.passage_stride_tokens);
        let mut start = 0;
        while start < tokens.len() {
            let end = tokens.len().min(start + length);
            let (document, n_tokens) = (self.totals.documents as u32, (end - start) as u32);
            let record = PassageRecord { document, start: start as u32, n_tokens };
            self.passages.write(bytemuck::bytes_of(&record))?;
            self.lexical.add(&self.tokenizer.decode(&tokens[start..end]))?;
            self.totals.passages += 1;
            if end == tokens.len() {
                break;
            }
            start += stride;
        }
        Ok(())
    }

    /// Brings everything to disk; the manifest is the last file.
    pub(crate) fn finish(self, about: &About<'_>) -> Result<Manifest, StoreError> {
        self.lexical.finish()?;
        let entries = [
            (format::DOCUMENTS, self.documents),
            (format::METADATA, self.metadata),
            (format::TEXT, self.text),
            (format::TOKENS, self.tokens),
            (format::KEYS, self.keys),
            (format::PASSAGES, self.passages),
        ];
        let lists = self.lists.map(|lists| lists.write(&self.directory)).transpose()?;
        let runs = write_runs(&self.directory, &SpanFiles::build(self.words))?;
        let files = entries.into_iter().map(|(name, file)| Ok((name.to_owned(), file.finish()?)));
        let mut files = files.collect::<Result<BTreeMap<_, _>, StoreError>>()?;
        files.extend(hash_directory(&self.directory, format::LEXICAL)?);
        files.extend(lists.into_iter().flatten().chain(runs));
        let manifest = Manifest {
            format: format::FORMAT.into(),
            version: format::VERSION,
            source: about.source.clone(),
            model: about.model.to_owned(),
            model_hash: about.model_hash,
            recipe: self.recipe.clone(),
            recipe_hash: self.recipe.hash(),
            distance: "squared-l2".into(),
            key_dim: about.key_dim,
            n_documents: self.totals.documents,
            n_tokens: self.totals.tokens,
            n_entries: self.totals.entries,
            n_passages: self.totals.passages,
            files,
        };
        write_manifest(&self.directory, &manifest)?;
        Ok(manifest)
    }
}

fn write_runs(directory: &Path, runs: &SpanFiles) -> Result<Vec<(String, FileEntry)>, StoreError> {
    let parts = [(format::UNITS, &runs.units), (format::ORDER, &runs.order), (format::STARTS, &runs.starts)];
    let write = |(name, numbers): (&str, &Vec<u32>)| {
        let mut file = HashedFile::create(directory, name)?;
        file.write(bytemuck::cast_slice(numbers))?;
        Ok((name.to_owned(), file.finish()?))
    };
    parts.into_iter().map(write).collect()
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
