//! Corpus files: documents as JSON Lines, compressed.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use silo_core::{ContentHash, SourceId, Tier};

use crate::{CorpusError, Split};

/// Why a document is not trained or tested on. The store keeps it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Exclusion {
    /// Another document has the same text.
    ExactDuplicate,
    /// Another document has nearly the same text.
    NearDuplicate,
    /// Too much of a held-out text stands in the training text.
    Contaminated,
}

impl Exclusion {
    /// The name used in files and messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::ExactDuplicate => "exact-duplicate",
            Self::NearDuplicate => "near-duplicate",
            Self::Contaminated => "contaminated",
        }
    }
}

/// A document of a corpus.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CorpusDocument {
    /// Its source.
    pub source: SourceId,
    /// A package URL with the path of the file.
    pub uri: String,
    /// A title; may be empty.
    pub title: String,
    /// SPDX expression.
    pub licence: String,
    /// Its tier.
    pub tier: Tier,
    /// Why it has this licence.
    pub evidence: String,
    /// Whether it may be trained on.
    pub train: bool,
    /// SHA-256 of the text.
    pub hash: ContentHash,
    /// The part of the corpus that it belongs to.
    pub split: Split,
    /// Why it is left out of training and testing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub excluded: Option<Exclusion>,
    /// Share of its 13-grams that stand in training text or, for a domain, in the part that goes to the store.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overlap: Option<f64>,
    /// The text.
    pub text: String,
}

/// Writes documents as `.jsonl.zst`, whole or not at all.
pub fn write_documents(path: &Path, documents: &[CorpusDocument]) -> Result<(), CorpusError> {
    write_whole(path, |file| {
        let mut encoder = zstd::Encoder::new(file, 9)?;
        for document in documents {
            serde_json::to_writer(&mut encoder, document)?;
            encoder.write_all(b"\n")?;
        }
        encoder.finish().map(drop)
    })
}

/// Writes a file whole or not at all: what was there stays until all of it is on disk.
pub(crate) fn write_whole(
    path: &Path,
    write: impl FnOnce(&mut File) -> std::io::Result<()>,
) -> Result<(), CorpusError> {
    let partial = path.with_extension("partial");
    let written = || -> std::io::Result<()> {
        let mut file = File::create(&partial)?;
        write(&mut file)?;
        file.sync_all()
    };
    written().map_err(CorpusError::io(&partial))?;
    std::fs::rename(&partial, path).map_err(CorpusError::io(path))
}

/// Where a corpus has the documents of a source.
pub(crate) fn path_of(corpus: &Path, source: &SourceId) -> PathBuf {
    corpus.join(format!("{source}.jsonl.zst"))
}

/// The first documents until there are `bytes` of text, the last one whole.
pub fn about_bytes<'a>(
    documents: impl Iterator<Item = &'a CorpusDocument>,
    bytes: usize,
) -> impl Iterator<Item = &'a CorpusDocument> {
    let mut taken = 0;
    documents.take_while(move |d| {
        let wanted = taken < bytes;
        taken += d.text.len();
        wanted
    })
}

/// Reads documents.
pub fn read_documents(path: &Path) -> Result<Vec<CorpusDocument>, CorpusError> {
    read_lines(path)
}

/// Reads JSON Lines, plain or compressed, by the ending of the name.
pub(crate) fn read_lines<T: for<'a> Deserialize<'a>>(path: &Path) -> Result<Vec<T>, CorpusError> {
    let file = File::open(path).map_err(CorpusError::io(path))?;
    let reader: Box<dyn Read> = match path.extension().and_then(|e| e.to_str()) {
        Some("gz") => Box::new(flate2::read::MultiGzDecoder::new(file)),
        Some("zst") => Box::new(zstd::Decoder::new(file).map_err(CorpusError::io(path))?),
        _ => Box::new(file),
    };
    let mut out = Vec::new();
    for (i, line) in BufReader::new(reader).lines().enumerate() {
        let fail = |reason: String| CorpusError::Line { path: path.to_owned(), line: i + 1, reason };
        let line = line.map_err(|e| fail(e.to_string()))?;
        if !line.trim().is_empty() {
            out.push(serde_json::from_str(&line).map_err(|e| fail(e.to_string()))?);
        }
    }
    Ok(out)
}
