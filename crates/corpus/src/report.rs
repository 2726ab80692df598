//! What was built, as it is kept beside the corpus.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use silo_core::{ContentHash, SourceId, Tier};

use crate::files::{path_of, write_whole};
use crate::{CorpusDocument, CorpusError, Role, SourceDeclaration, read_documents};

/// Its name in the directory of the corpus.
const FILE: &str = "report.json";

/// What was built.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BuildReport {
    /// One per source, sorted by name.
    pub sources: Vec<SourceReport>,
}

/// What was built of a source.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SourceReport {
    /// Its name.
    pub name: SourceId,
    /// What it is for.
    pub role: Role,
    /// Its subject.
    pub domain: String,
    /// Its packages with their versions.
    pub packages: Vec<String>,
    /// Documents.
    pub n_documents: u64,
    /// Bytes of text.
    pub n_bytes: u64,
    /// Documents per tier.
    pub tiers: BTreeMap<String, u64>,
    /// Documents per split, without those that are excluded.
    pub splits: BTreeMap<String, u64>,
    /// Documents left out of training and testing, per reason.
    pub excluded: BTreeMap<String, u64>,
    /// SHA-256 over the hashes of its documents, in order.
    pub sha256: ContentHash,
}

impl BuildReport {
    /// The report of a built corpus.
    pub fn read(corpus: &Path) -> Result<Self, CorpusError> {
        let path = corpus.join(FILE);
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                return Err(CorpusError::NoCorpus { path: corpus.to_owned() });
            }
            Err(e) => return Err(CorpusError::io(&path)(e)),
        };
        serde_json::from_str(&text).map_err(|e| CorpusError::Report { path, reason: e.to_string() })
    }

    /// Writes it into the directory of a corpus.
    pub fn write(&self, corpus: &Path) -> Result<(), CorpusError> {
        let path = corpus.join(FILE);
        let text = serde_json::to_string_pretty(self)
            .map_err(|e| CorpusError::Report { path: path.clone(), reason: e.to_string() })?;
        write_whole(&path, |file| file.write_all(text.as_bytes()))
    }

    /// What was built of a source; `None` if the corpus does not hold it.
    pub fn source(&self, name: &str) -> Option<&SourceReport> {
        self.sources.iter().find(|source| source.name.as_str() == name)
    }
}

/// SHA-256 over the hashes of documents, in their order.
pub fn documents_hash(documents: &[CorpusDocument]) -> ContentHash {
    let mut digest = Sha256::new();
    documents.iter().for_each(|d| digest.update(d.hash.0));
    ContentHash(digest.finalize().into())
}

impl SourceReport {
    pub(crate) fn of(declaration: &SourceDeclaration, packages: &[String], documents: &[CorpusDocument]) -> Self {
        let count = |key: &dyn Fn(&CorpusDocument) -> Option<String>| {
            let mut out = BTreeMap::new();
            for name in documents.iter().filter_map(key) {
                *out.entry(name).or_insert(0) += 1;
            }
            out
        };
        Self {
            name: declaration.name.clone(),
            role: declaration.role,
            domain: declaration.domain.clone(),
            packages: packages.to_vec(),
            n_documents: documents.len() as u64,
            n_bytes: documents.iter().map(|d| d.text.len() as u64).sum(),
            tiers: count(&|d| Some(d.tier.name().to_owned())),
            splits: count(&|d| d.excluded.is_none().then(|| d.split.name().to_owned())),
            excluded: count(&|d| d.excluded.map(|e| e.name().to_owned())),
            sha256: documents_hash(documents),
        }
    }

    /// Its documents. A build that was stopped may have left others than the report has; what is said of them beside their texts is not looked at.
    pub fn documents(&self, corpus: &Path) -> Result<Vec<CorpusDocument>, CorpusError> {
        let path = path_of(corpus, &self.name);
        let documents = read_documents(&path)?;
        let is_hashed = |d: &CorpusDocument| ContentHash::of(d.text.as_bytes()) == d.hash;
        if documents_hash(&documents) == self.sha256 && documents.iter().all(is_hashed) {
            Ok(documents)
        } else {
            Err(CorpusError::NotAsBuilt { path })
        }
    }

    /// Whether models learn it, where nothing else is said: its role is train, and every document is of an open tier.
    pub fn is_learnt(&self) -> bool {
        self.role == Role::Train && !self.has_restricted()
    }

    /// Whether a document is restricted.
    pub fn has_restricted(&self) -> bool {
        self.tiers.contains_key(Tier::Restricted.name())
    }
}
