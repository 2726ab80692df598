//! A shard on disk, mapped into memory.

use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

use bytemuck::PodCastError;
use half::f16;
use memmap2::Mmap;
use sha2::{Digest, Sha256};
use silo_core::{ContentHash, Document, TokenId};
use silo_lexical::PassageIndex;
use silo_vector::{Keys, Lists};

use crate::format::{self, DocumentMetadata, DocumentRecord, FileEntry, Manifest, PassageRecord};
use crate::{KeyType, StoreError};

/// A shard, open for reading. Its files never change.
#[derive(Debug)]
pub struct Shard {
    path: PathBuf,
    manifest: Manifest,
    documents: Mapped,
    metadata: Mapped,
    text: Mapped,
    tokens: Mapped,
    keys: Mapped,
    passages: Mapped,
    lexical: PassageIndex,
    lists: Option<ListFiles>,
}

/// Inverted lists on disk.
#[derive(Debug)]
struct ListFiles {
    offsets: Mapped,
    rows: Mapped,
    codes: Mapped,
}

/// A document as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredDocument {
    /// The document.
    pub document: Document,
    /// Its hash.
    pub hash: ContentHash,
    /// Its tokens.
    pub tokens: Vec<TokenId>,
}

#[derive(Debug)]
struct Mapped {
    path: PathBuf,
    /// `None` for an empty file, which cannot be mapped.
    map: Option<Mmap>,
}

impl Mapped {
    fn open(directory: &Path, name: &str, manifest: &Manifest) -> Result<Self, StoreError> {
        let (path, file, expected) = open_listed(directory, manifest, name)?;
        let len = expected.bytes;
        // SAFETY: files of a published shard are never written again; they are deleted while mapped, which keeps the map.
        let map = if len == 0 { None } else { Some(unsafe { Mmap::map(&file) }.map_err(StoreError::io(&path))?) };
        Ok(Self { path, map })
    }

    fn bytes(&self) -> &[u8] {
        self.map.as_deref().unwrap_or(&[])
    }

    fn slice<T: bytemuck::Pod>(&self) -> &[T] {
        // Lengths were checked at opening, and a map begins at a page.
        bytemuck::try_cast_slice(self.bytes()).unwrap_or(&[])
    }

    fn check<T: bytemuck::Pod>(&self, n: u64) -> Result<(), StoreError> {
        let slice: Result<&[T], PodCastError> = bytemuck::try_cast_slice(self.bytes());
        match slice {
            Ok(s) if s.len() as u64 == n => Ok(()),
            _ => Err(StoreError::damaged(&self.path, format!("it does not hold {n} records"))),
        }
    }
}

impl Shard {
    /// Opens a shard. Every file but keys and codes is checked against its hash, and the relations between them; keys and codes, which
    /// are most of the bytes, are checked by [`Shard::verify`].
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let manifest = read_manifest(path)?.0;
        for name in manifest.files.keys().filter(|n| *n != format::KEYS && *n != format::CODES) {
            check_file(path, &manifest, name)?;
        }
        let open = |name| Mapped::open(path, name, &manifest);
        let shard = Self {
            path: path.to_owned(),
            documents: open(format::DOCUMENTS)?,
            metadata: open(format::METADATA)?,
            text: open(format::TEXT)?,
            tokens: open(format::TOKENS)?,
            keys: open(format::KEYS)?,
            passages: open(format::PASSAGES)?,
            lexical: PassageIndex::open(&path.join(format::LEXICAL))?,
            lists: match manifest.recipe.ivf {
                None => None,
                Some(_) => Some(ListFiles {
                    offsets: open(format::LISTS)?,
                    rows: open(format::ROWS)?,
                    codes: open(format::CODES)?,
                }),
            },
            manifest,
        };
        shard.check_relations()?;
        shard.check_lists()?;
        Ok(shard)
    }

    fn check_relations(&self) -> Result<(), StoreError> {
        let m = &self.manifest;
        self.documents.check::<DocumentRecord>(m.n_documents)?;
        self.tokens.check::<u32>(m.n_tokens)?;
        self.passages.check::<PassageRecord>(m.n_passages)?;
        if self.lexical.n_passages() as u64 != m.n_passages {
            return Err(StoreError::damaged(&self.path.join(format::LEXICAL), "it does not hold the shard's passages"));
        }
        let n_values = m.n_entries.saturating_mul(m.key_dim as u64);
        match m.recipe.key_type {
            KeyType::F32 => self.keys.check::<f32>(n_values)?,
            KeyType::F16 => self.keys.check::<f16>(n_values)?,
        }
        let (mut tokens, mut entries, mut last) = (0, 0, None);
        for r in self.records() {
            let inside = r.first_token == tokens
                && r.first_entry == entries
                && r.n_entries <= r.n_tokens
                && r.n_entries + 1 >= r.n_tokens
                && within(r.text_at, r.text_bytes, self.text.bytes())
                && within(r.metadata_at, r.metadata_bytes, self.metadata.bytes())
                && last.is_none_or(|l| l < r.hash);
            if !inside {
                return Err(StoreError::damaged(&self.documents.path, "its records do not fit the other files"));
            }
            (tokens, entries, last) = (tokens + r.n_tokens, entries + r.n_entries, Some(r.hash));
        }
        if (tokens, entries) != (m.n_tokens, m.n_entries) {
            return Err(StoreError::damaged(&self.documents.path, "its records do not add up to the manifest"));
        }
        let fits = |p: &PassageRecord| {
            let record = self.records().get(p.document as usize);
            record.is_some_and(|r| u64::from(p.start) + u64::from(p.n_tokens) <= r.n_tokens)
        };
        if !self.passages.slice::<PassageRecord>().iter().all(fits) {
            return Err(StoreError::damaged(&self.passages.path, "its records do not fit the documents"));
        }
        Ok(())
    }

    fn check_lists(&self) -> Result<(), StoreError> {
        let Some(files) = &self.lists else { return Ok(()) };
        let n_entries = self.manifest.n_entries;
        files.rows.check::<u32>(n_entries)?;
        let (offsets, rows) = (files.offsets.slice::<u32>(), files.rows.slice::<u32>());
        let ends = offsets.first() == Some(&0) && offsets.last().is_some_and(|l| u64::from(*l) == n_entries);
        if !ends || !offsets.is_sorted() {
            return Err(StoreError::damaged(&files.offsets.path, "its lists do not hold the shard's entries"));
        }
        if rows.iter().any(|r| u64::from(*r) >= n_entries) {
            return Err(StoreError::damaged(&files.rows.path, "it names entries that the shard does not have"));
        }
        if n_entries > 0 && !(files.codes.bytes().len() as u64).is_multiple_of(n_entries) {
            return Err(StoreError::damaged(&files.codes.path, "it does not hold a code for each entry"));
        }
        Ok(())
    }

    /// Whether its lists are those of a quantiser with `n_lists` lists and codes of `code_bytes`.
    pub(crate) fn fits(&self, n_lists: usize, code_bytes: usize) -> bool {
        let Some(files) = &self.lists else { return false };
        files.offsets.slice::<u32>().len() == n_lists + 1
            && files.codes.bytes().len() as u64 == self.manifest.n_entries * code_bytes as u64
    }

    /// Its inverted lists, if its recipe has them.
    pub(crate) fn lists(&self) -> Option<Lists<'_>> {
        let files = self.lists.as_ref()?;
        Some(Lists { offsets: files.offsets.slice(), rows: files.rows.slice(), codes: files.codes.bytes() })
    }

    /// What it is.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    fn records(&self) -> &[DocumentRecord] {
        self.documents.slice()
    }

    /// Hashes of its documents, sorted.
    pub fn document_hashes(&self) -> impl ExactSizeIterator<Item = ContentHash> + '_ {
        self.records().iter().map(|r| ContentHash(r.hash))
    }

    pub(crate) fn keys(&self) -> Keys<'_> {
        match self.manifest.recipe.key_type {
            KeyType::F32 => Keys::F32(self.keys.slice()),
            KeyType::F16 => Keys::F16(self.keys.slice()),
        }
    }

    /// The record of the document that entry `row` belongs to.
    fn record_of(&self, row: u32) -> &DocumentRecord {
        let records = self.records();
        let after = records.partition_point(|r| r.first_entry <= u64::from(row));
        // Documents without entries share their first entry with the next one, so the last record at or before `row` is it.
        &records[after - 1]
    }

    /// The logical id of an entry: document hash and position of its value.
    pub(crate) fn logical(&self, row: u32) -> (ContentHash, u64) {
        let record = self.record_of(row);
        (ContentHash(record.hash), u64::from(row) - record.first_entry)
    }

    /// The token that entry `row` predicts.
    pub(crate) fn value(&self, row: u32) -> TokenId {
        let record = self.record_of(row);
        let first_value = record.n_tokens - record.n_entries;
        let token = record.first_token + first_value + u64::from(row) - record.first_entry;
        self.tokens.slice::<u32>()[token as usize]
    }

    /// The document of an entry: its number, and the place of the entry's value among its tokens.
    pub(crate) fn place(&self, row: u32) -> (usize, usize) {
        let record = self.record_of(row);
        let first = self.records().partition_point(|r| r.hash < record.hash);
        let value = record.n_tokens - record.n_entries + u64::from(row) - record.first_entry;
        (first, value as usize)
    }

    /// Tokens of document number `i`.
    pub(crate) fn tokens_of(&self, i: usize) -> &[TokenId] {
        let r = &self.records()[i];
        &self.tokens.slice::<u32>()[r.first_token as usize..(r.first_token + r.n_tokens) as usize]
    }

    pub(crate) fn lexical(&self) -> &PassageIndex {
        &self.lexical
    }

    /// Passage number `i`: its document's number, its first token there, its tokens.
    pub(crate) fn passage(&self, i: u32) -> (usize, u32, &[TokenId]) {
        let p = &self.passages.slice::<PassageRecord>()[i as usize];
        let (document, start) = (p.document as usize, p.start as usize);
        (document, p.start, &self.tokens_of(document)[start..start + p.n_tokens as usize])
    }

    /// Entries of document number `i`.
    pub(crate) fn entries_of(&self, i: usize) -> Range<u32> {
        let r = &self.records()[i];
        r.first_entry as u32..(r.first_entry + r.n_entries) as u32
    }

    /// Passages of document number `i`.
    pub(crate) fn passages_of(&self, i: usize) -> Range<u32> {
        let all = self.passages.slice::<PassageRecord>();
        let at = |document: usize| all.partition_point(|p| (p.document as usize) < document) as u32;
        at(i)..at(i + 1)
    }

    /// Hash of document number `i`.
    pub(crate) fn hash_of(&self, i: usize) -> ContentHash {
        ContentHash(self.records()[i].hash)
    }

    /// Document number `i`, in the order of the hashes.
    pub fn document(&self, i: usize) -> Result<StoredDocument, StoreError> {
        let r = &self.records()[i];
        let document = read_document(r, &self.manifest, &self.metadata, &self.text)?;
        Ok(StoredDocument { document, hash: ContentHash(r.hash), tokens: self.tokens_of(i).to_vec() })
    }

    /// The documents of a shard whose other files need not be whole, nor made by the model and recipe of the day: what it can be
    /// rebuilt from.
    pub(crate) fn read_documents(path: &Path, manifest: &Manifest) -> Result<Vec<Document>, StoreError> {
        let open = |name| {
            check_file(path, manifest, name)?;
            Mapped::open(path, name, manifest)
        };
        let (documents, metadata, text) = (open(format::DOCUMENTS)?, open(format::METADATA)?, open(format::TEXT)?);
        documents.check::<DocumentRecord>(manifest.n_documents)?;
        documents.slice().iter().map(|r| read_document(r, manifest, &metadata, &text)).collect()
    }

    /// Checks every file against its hash.
    pub fn verify(&self) -> Result<(), StoreError> {
        self.manifest.files.keys().try_for_each(|name| check_file(&self.path, &self.manifest, name))
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

fn read_document(
    r: &DocumentRecord,
    manifest: &Manifest,
    metadata: &Mapped,
    text: &Mapped,
) -> Result<Document, StoreError> {
    let part = |file: &Mapped, at: u64, n: u64| {
        let range = at as usize..at.saturating_add(n) as usize;
        let bytes = file.bytes().get(range).map(<[u8]>::to_vec);
        bytes.ok_or_else(|| StoreError::damaged(&file.path, "it ends before a document does"))
    };
    let fields: DocumentMetadata = serde_json::from_slice(&part(metadata, r.metadata_at, r.metadata_bytes)?)
        .map_err(|e| StoreError::damaged(&metadata.path, e))?;
    let whole =
        String::from_utf8(part(text, r.text_at, r.text_bytes)?).map_err(|e| StoreError::damaged(&text.path, e))?;
    Ok(Document {
        source: manifest.source.clone(),
        uri: fields.uri,
        title: fields.title,
        licence: fields.licence,
        tier: fields.tier,
        text: whole,
    })
}

/// Opens a file that the manifest lists, if it has the size that is written there.
fn open_listed<'a>(
    directory: &Path,
    manifest: &'a Manifest,
    name: &str,
) -> Result<(PathBuf, File, &'a FileEntry), StoreError> {
    let path = directory.join(name);
    let unlisted = || StoreError::damaged(&path, "the manifest does not list it");
    let expected = manifest.files.get(name).ok_or_else(unlisted)?;
    let file = File::open(&path).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => StoreError::damaged(&path, "the file is missing"),
        _ => StoreError::Io { path: path.clone(), source: e },
    })?;
    let len = file.metadata().map_err(StoreError::io(&path))?.len();
    if len != expected.bytes {
        return Err(StoreError::damaged(&path, format!("it has {len} bytes, the manifest says {}", expected.bytes)));
    }
    Ok((path, file, expected))
}

/// Checks the size and hash of a file.
fn check_file(directory: &Path, manifest: &Manifest, name: &str) -> Result<(), StoreError> {
    let (path, mut file, expected) = open_listed(directory, manifest, name)?;
    let mut digest = Sha256::new();
    std::io::copy(&mut file, &mut HashWriter(&mut digest)).map_err(StoreError::io(&path))?;
    let found = ContentHash(digest.finalize().into());
    if expected.sha256 != found {
        return Err(StoreError::damaged(&path, format!("its SHA-256 is {found}, which is not the manifest's")));
    }
    Ok(())
}

/// Feeds what is written to it into a digest.
struct HashWriter<'a>(&'a mut Sha256);

impl std::io::Write for HashWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn within(at: u64, n: u64, bytes: &[u8]) -> bool {
    at.checked_add(n).is_some_and(|end| end <= bytes.len() as u64)
}

/// Reads a manifest; also its SHA-256.
pub(crate) fn read_manifest(directory: &Path) -> Result<(Manifest, String), StoreError> {
    /// Read first, because a manifest of another version may have other fields.
    #[derive(serde::Deserialize)]
    struct Version {
        format: String,
        version: u32,
    }
    let path = directory.join(format::MANIFEST);
    let bytes = std::fs::read(&path).map_err(StoreError::io(&path))?;
    let version: Version = serde_json::from_slice(&bytes).map_err(|e| StoreError::damaged(&path, e))?;
    if version.format != format::FORMAT {
        return Err(StoreError::damaged(&path, format!("it describes a '{}', not a shard", version.format)));
    }
    if version.version != format::VERSION {
        return Err(StoreError::Version { path, found: version.version, expected: format::VERSION });
    }
    let manifest = serde_json::from_slice(&bytes).map_err(|e| StoreError::damaged(&path, e))?;
    Ok((manifest, ContentHash::of(&bytes).to_string()))
}
