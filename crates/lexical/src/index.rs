//! The inverted lists of one shard.

use std::fs;
use std::path::{Path, PathBuf};

use tantivy::directory::MmapDirectory;
use tantivy::schema::{Field, IndexRecordOption, Schema, TextFieldIndexing, TextOptions};
use tantivy::tokenizer::{LowerCaser, RemoveLongFilter, SimpleTokenizer, TextAnalyzer, TokenStream, TokenizerManager};
use tantivy::{Index, SegmentReader, SingleSegmentIndexWriter, TantivyDocument};

/// Memory that a build may use before it writes to disk.
const BUILD_BYTES: usize = 128 << 20;

/// Words longer than this are left out: base64, not language.
const LONGEST_WORD_BYTES: usize = 60;

/// Name of the only field.
const FIELD: &str = "text";

/// The number of words of each passage as u32, little-endian: tantivy itself keeps them rounded.
const LENGTHS: &str = "lengths.bin";

/// What can go wrong with an index.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages document the variants and their fields")]
pub enum LexicalError {
    #[error("the passage index {} failed: {source}", path.display())]
    Index { path: PathBuf, source: tantivy::TantivyError },
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
    #[error("the passage index {} is damaged: {reason}", path.display())]
    Damaged { path: PathBuf, reason: &'static str },
}

/// Words: runs of letters and digits, in lower case.
pub(crate) fn analyser() -> TextAnalyzer {
    TextAnalyzer::builder(SimpleTokenizer::default())
        .filter(RemoveLongFilter::limit(LONGEST_WORD_BYTES))
        .filter(LowerCaser)
        .build()
}

/// The words of a text.
pub(crate) fn words(analyser: &mut TextAnalyzer, text: &str) -> Vec<String> {
    let mut stream = analyser.token_stream(text);
    let mut out = Vec::new();
    while stream.advance() {
        out.push(stream.token().text.clone());
    }
    out
}

/// Builds an index in an empty directory.
pub struct PassageIndexBuilder {
    path: PathBuf,
    writer: SingleSegmentIndexWriter,
    field: Field,
    analyser: TextAnalyzer,
    lengths: Vec<u8>,
}

impl PassageIndexBuilder {
    /// Starts a build.
    pub fn create(path: &Path) -> Result<Self, LexicalError> {
        let failed = |source| LexicalError::Index { path: path.to_owned(), source };
        let indexing = TextFieldIndexing::default()
            .set_tokenizer(FIELD)
            .set_fieldnorms(false)
            .set_index_option(IndexRecordOption::WithFreqs);
        let mut schema = Schema::builder();
        let field = schema.add_text_field(FIELD, TextOptions::default().set_indexing_options(indexing));
        let tokenizers = TokenizerManager::new();
        tokenizers.register(FIELD, analyser());
        let directory = MmapDirectory::open(path).map_err(|e| failed(e.into()))?;
        let builder = Index::builder().schema(schema.build()).tokenizers(tokenizers);
        // One segment, so that passages keep their numbers, and no background thread.
        let writer = builder.single_segment_index_writer(directory, BUILD_BYTES).map_err(failed)?;
        Ok(Self { path: path.to_owned(), writer, field, analyser: analyser(), lengths: Vec::new() })
    }

    /// Adds a passage; passages are numbered from 0 in this order.
    pub fn add(&mut self, text: &str) -> Result<(), LexicalError> {
        let n = words(&mut self.analyser, text).len() as u32;
        self.lengths.extend_from_slice(&n.to_le_bytes());
        let mut document = TantivyDocument::default();
        document.add_text(self.field, text);
        self.writer.add_document(document).map_err(|source| LexicalError::Index { path: self.path.clone(), source })
    }

    /// Ends the build.
    pub fn finish(self) -> Result<(), LexicalError> {
        let lengths = self.path.join(LENGTHS);
        fs::write(&lengths, &self.lengths).map_err(|source| LexicalError::Io { path: lengths, source })?;
        let finished = self.writer.finalize();
        finished.map(drop).map_err(|source| LexicalError::Index { path: self.path, source })
    }
}

/// The inverted lists of one shard, open for reading.
pub struct PassageIndex {
    path: PathBuf,
    /// At most one: an index without a passage has none.
    segment: Option<SegmentReader>,
    field: Field,
    lengths: Vec<u32>,
    n_words: u64,
}

impl std::fmt::Debug for PassageIndex {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PassageIndex").field("path", &self.path).field("n_passages", &self.n_passages()).finish()
    }
}

impl PassageIndex {
    /// Opens an index.
    pub fn open(path: &Path) -> Result<Self, LexicalError> {
        let failed = |source| LexicalError::Index { path: path.to_owned(), source };
        let index = Index::open_in_dir(path).map_err(failed)?;
        let field = index.schema().get_field(FIELD).map_err(failed)?;
        let reader = index.reader_builder().reload_policy(tantivy::ReloadPolicy::Manual).try_into().map_err(failed)?;
        let mut segments = reader.searcher().segment_readers().to_vec();
        let lengths_path = path.join(LENGTHS);
        let bytes = fs::read(&lengths_path).map_err(|source| LexicalError::Io { path: lengths_path, source })?;
        let lengths: Vec<u32> = bytes.as_chunks().0.iter().map(|b| u32::from_le_bytes(*b)).collect();
        let damaged = |reason| LexicalError::Damaged { path: path.to_owned(), reason };
        if segments.len() > 1 {
            return Err(damaged("it has several segments"));
        }
        let segment = segments.pop();
        if segment.as_ref().map_or(0, |s| s.max_doc() as usize) != lengths.len() || bytes.len() % 4 != 0 {
            return Err(damaged("its lengths are not those of its passages"));
        }
        let n_words = lengths.iter().map(|&n| u64::from(n)).sum();
        Ok(Self { path: path.to_owned(), segment, field, lengths, n_words })
    }

    /// Passages in it.
    pub fn n_passages(&self) -> usize {
        self.lengths.len()
    }

    /// Words of a passage.
    pub(crate) fn length(&self, passage: u32) -> u32 {
        self.lengths[passage as usize]
    }

    /// Words of all passages.
    pub(crate) fn n_words(&self) -> u64 {
        self.n_words
    }

    /// Calls `each` with (passage, occurrences) of every passage that holds `word`.
    pub(crate) fn postings(&self, word: &str, mut each: impl FnMut(u32, u32)) -> Result<(), LexicalError> {
        use tantivy::postings::Postings;
        use tantivy::{DocSet, TERMINATED, Term};
        let failed = |source| LexicalError::Io { path: self.path.clone(), source };
        let Some(segment) = &self.segment else { return Ok(()) };
        let lists = segment
            .inverted_index(self.field)
            .map_err(|source| LexicalError::Index { path: self.path.clone(), source })?;
        let term = Term::from_field_text(self.field, word);
        let Some(mut list) = lists.read_postings(&term, IndexRecordOption::WithFreqs).map_err(failed)? else {
            return Ok(());
        };
        while list.doc() != TERMINATED {
            if list.doc() as usize >= self.lengths.len() {
                let reason = "it lists a passage that is not there";
                return Err(LexicalError::Damaged { path: self.path.clone(), reason });
            }
            each(list.doc(), list.term_freq());
            list.advance();
        }
        Ok(())
    }
}
