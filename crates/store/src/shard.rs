//! A shard on disk, mapped into memory.

use std::ops::Range;
use std::path::{Path, PathBuf};

use half::f16;
use silo_core::{ContentHash, Document, TokenId};
use silo_lexical::PassageIndex;
use silo_vector::{Keys, Lists};

use crate::build::Numbered;
use crate::files::{Mapped, check_file, read_added_manifest, read_manifest};
use crate::format::{self, DocumentMetadata, DocumentRecord, Manifest, PassageRecord};
use crate::guard::WordCache;
use crate::texts::Runs;
use crate::write::Written;
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
    pub(crate) runs: Runs,
    pub(crate) words: WordCache,
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
    /// Its number in the shard, which it keeps for ever.
    pub number: u32,
    /// Other URIs of the same text.
    pub other_uris: Vec<String>,
    /// Where its rows begin.
    pub(crate) first_row: u32,
}

impl StoredDocument {
    /// As it is written anew, under its number, and with the same rows if it is encoded as before.
    pub(crate) fn numbered(&self, same_rows: bool) -> Numbered<'_> {
        Numbered {
            number: self.number,
            first_row: same_rows.then_some(self.first_row),
            hash: self.hash,
            document: &self.document,
            other_uris: self.other_uris.clone(),
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
            runs: Runs::open(path, &manifest)?,
            words: WordCache::default(),
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
        let (mut tokens, mut entries, mut rows, mut last) = (0, 0, 0, None);
        for r in self.records() {
            let inside = r.first_token == tokens
                && r.first_entry == entries
                && r.n_entries <= r.n_tokens
                && r.n_entries + 1 >= r.n_tokens
                && within(r.text_at, r.text_bytes, self.text.bytes())
                && within(r.metadata_at, r.metadata_bytes, self.metadata.bytes())
                && r.first_row >= rows
                && r.number < u64::from(u32::MAX)
                && last.is_none_or(|l| l < r.number);
            if !inside {
                return Err(StoreError::damaged(&self.documents.path, "its records do not fit the other files"));
            }
            (tokens, entries) = (tokens + r.n_tokens, entries + r.n_entries);
            (rows, last) = (r.first_row.saturating_add(r.n_entries), Some(r.number));
        }
        if (tokens, entries) != (m.n_tokens, m.n_entries) || rows > u64::from(u32::MAX) {
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

    /// Gives back the memory of its codes, which are searched elsewhere.
    pub(crate) fn let_go_of_codes(&self) {
        self.lists.iter().for_each(|files| files.codes.let_go());
    }

    /// What it is.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    fn records(&self) -> &[DocumentRecord] {
        self.documents.slice()
    }

    /// Number and hash of its documents, in the order of the numbers.
    pub(crate) fn numbers(&self) -> impl ExactSizeIterator<Item = (u32, ContentHash)> + '_ {
        // Numbers were checked at opening.
        self.records().iter().map(|r| (r.number as u32, ContentHash(r.hash)))
    }

    /// The place of a document among those of the files; `None` if they do not hold it.
    pub(crate) fn index_of(&self, number: u32) -> Option<usize> {
        self.records().binary_search_by_key(&u64::from(number), |r| r.number).ok()
    }

    pub(crate) fn keys(&self) -> Keys<'_> {
        match self.manifest.recipe.key_type {
            KeyType::F32 => Keys::F32(self.keys.slice()),
            KeyType::F16 => Keys::F16(self.keys.slice()),
        }
    }

    /// The document, by its place in the files, that entry `row` of the files belongs to.
    fn document_of(&self, row: u32) -> usize {
        let after = self.records().partition_point(|r| r.first_entry <= u64::from(row));
        // Documents without entries share their first entry with the next one, so the last record at or before `row` is it.
        after - 1
    }

    fn record_of(&self, row: u32) -> &DocumentRecord {
        &self.records()[self.document_of(row)]
    }

    /// The entry of the files that is known by a lasting row; `None` if it is gone from them.
    pub(crate) fn row_of(&self, lasting: u32) -> Option<u32> {
        let records = self.records();
        // Of several records with one first row, only the last can have entries.
        let record = records[..records.partition_point(|r| r.first_row <= u64::from(lasting))].last()?;
        let at = u64::from(lasting) - record.first_row;
        (at < record.n_entries).then(|| (record.first_entry + at) as u32)
    }

    /// The logical id of an entry: document hash and position of its value.
    pub(crate) fn logical(&self, row: u32) -> (ContentHash, u64) {
        let record = self.record_of(row);
        (ContentHash(record.hash), u64::from(row) - record.first_entry)
    }

    /// The token that entry `row` of the files predicts; the row by which the entry is known, now and after other documents are gone from
    /// the shard; and how many tokens of its document before that token are the last ones of `text`.
    pub(crate) fn value_row_matched(&self, row: u32, text: &[TokenId]) -> (TokenId, u32, u16) {
        let record = self.record_of(row);
        let entry = u64::from(row) - record.first_entry;
        let value = record.first_token + record.n_tokens - record.n_entries + entry;
        let (first, value) = (record.first_token as usize, value as usize);
        let tokens = self.tokens.slice::<u32>();
        let alike = tokens[first..value].iter().rev().zip(text.iter().rev()).take_while(|(a, b)| a == b);
        let matched = alike.take(usize::from(u16::MAX)).count() as u16;
        (tokens[value], (record.first_row + entry) as u32, matched)
    }

    /// The document of an entry: its place in the files, and the place of the entry's value among its tokens.
    pub(crate) fn place(&self, row: u32) -> (usize, usize) {
        let document = self.document_of(row);
        let record = &self.records()[document];
        let value = record.n_tokens - record.n_entries + u64::from(row) - record.first_entry;
        (document, value as usize)
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

    /// Number of the document at place `i` of the files.
    pub(crate) fn number_of(&self, i: usize) -> u32 {
        self.records()[i].number as u32 // checked at opening
    }

    /// Hash of the document at place `i` of the files.
    pub(crate) fn hash_of(&self, i: usize) -> ContentHash {
        ContentHash(self.records()[i].hash)
    }

    /// The document at place `i` of the files.
    pub(crate) fn document(&self, i: usize) -> Result<StoredDocument, StoreError> {
        let r = &self.records()[i];
        Ok(StoredDocument {
            tokens: self.tokens_of(i).to_vec(),
            ..read_document(r, &self.manifest, &self.metadata, &self.text)?
        })
    }

    /// URI, title and licence of the document at place `i` of the files.
    pub(crate) fn about(&self, i: usize) -> Result<[String; 3], StoreError> {
        let fields = read_metadata(&self.records()[i], &self.metadata)?;
        Ok([fields.uri, fields.title, fields.licence])
    }

    /// All documents of the files, without their tokens.
    pub(crate) fn all_documents(&self) -> Result<Vec<StoredDocument>, StoreError> {
        let read = |r| read_document(r, &self.manifest, &self.metadata, &self.text);
        self.records().iter().map(read).collect()
    }

    /// List and code of each entry, in the order of the entries.
    pub(crate) fn list_of_each(&self) -> Option<(Vec<u32>, Vec<u8>)> {
        let lists = self.lists()?;
        let (n, n_lists) = (lists.rows.len(), lists.offsets.len() - 1);
        let width = lists.codes.len().checked_div(n).unwrap_or(0);
        let (mut of_row, mut codes) = (vec![0; n], vec![0; n * width]);
        for list in 0..n_lists {
            for at in lists.offsets[list] as usize..lists.offsets[list + 1] as usize {
                let row = lists.rows[at] as usize;
                of_row[row] = list as u32;
                codes[row * width..][..width].copy_from_slice(&lists.codes[at * width..][..width]);
            }
        }
        Some((of_row, codes))
    }

    /// The document at place `i` as it stands in the files.
    pub(crate) fn written(&self, i: usize) -> Result<Written<'_>, StoreError> {
        let r = &self.records()[i];
        let width = self.manifest.key_dim * self.manifest.recipe.key_type.bytes();
        let keys = part(&self.keys, r.first_entry * width as u64, r.n_entries * width as u64)?;
        Ok(Written {
            number: r.number as u32,
            first_row: Some(r.first_row as u32),
            hash: ContentHash(r.hash),
            metadata: part(&self.metadata, r.metadata_at, r.metadata_bytes)?,
            text: part(&self.text, r.text_at, r.text_bytes)?,
            tokens: self.tokens_of(i),
            n_entries: r.n_entries,
            keys,
            lists: None,
        })
    }

    /// The documents of a shard whose other files need not be whole, nor made by the model and recipe of the day: what it can be
    /// rebuilt from. Their tokens are not read.
    pub(crate) fn read_documents(path: &Path, manifest: &Manifest) -> Result<Vec<StoredDocument>, StoreError> {
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

    /// Opens and checks every file of what should be the shard with this manifest.
    pub(crate) fn verify_at(path: &Path, manifest_sha256: &str) -> Result<Self, StoreError> {
        read_added_manifest(path, manifest_sha256)?;
        let shard = Self::open(path)?;
        shard.verify()?;
        Ok(shard)
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

fn read_metadata(r: &DocumentRecord, metadata: &Mapped) -> Result<DocumentMetadata, StoreError> {
    let bytes = part(metadata, r.metadata_at, r.metadata_bytes)?;
    serde_json::from_slice(bytes).map_err(|e| StoreError::damaged(&metadata.path, e))
}

fn read_document(
    r: &DocumentRecord,
    manifest: &Manifest,
    metadata: &Mapped,
    text: &Mapped,
) -> Result<StoredDocument, StoreError> {
    let fields = read_metadata(r, metadata)?;
    let whole = part(text, r.text_at, r.text_bytes)?.to_vec();
    let document = Document {
        source: manifest.source.clone(),
        uri: fields.uri,
        title: fields.title,
        licence: fields.licence,
        tier: fields.tier,
        text: String::from_utf8(whole).map_err(|e| StoreError::damaged(&text.path, e))?,
    };
    Ok(StoredDocument {
        document,
        hash: ContentHash(r.hash),
        tokens: Vec::new(),
        number: r.number as u32,
        other_uris: fields.other_uris,
        first_row: r.first_row as u32,
    })
}

fn part(file: &Mapped, at: u64, n: u64) -> Result<&[u8], StoreError> {
    let range = at as usize..at.saturating_add(n) as usize;
    file.bytes().get(range).ok_or_else(|| StoreError::damaged(&file.path, "it ends before a document does"))
}

fn within(at: u64, n: u64, bytes: &[u8]) -> bool {
    at.checked_add(n).is_some_and(|end| end <= bytes.len() as u64)
}
