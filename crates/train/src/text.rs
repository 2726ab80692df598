//! The text of a run: through the licence gate, into tokens.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use rayon::prelude::*;
use sha2::{Digest, Sha256};
use silo_core::{ContentHash, Tier, Tokenizer};
use silo_corpus::{BuildReport, CorpusDocument, LicenceGate, SourceReport, Split, about_bytes};
use silo_model::ByteLevelTokenizer;

use crate::TrainError;
use crate::config::{ReferenceText, TrainConfig};
use crate::data::Documents;

/// Documents of a run.
pub(crate) struct Text {
    /// What is learnt, in the order of sources and documents of the corpus.
    pub(crate) training: Vec<CorpusDocument>,
    /// What is looked at while learning.
    pub(crate) validation: Vec<CorpusDocument>,
    /// Reports of the sources that training documents come from.
    pub(crate) sources: Vec<SourceReport>,
    /// Documents that were left out because somebody asked for it.
    pub(crate) n_left_out: usize,
}

/// The documents that a file says are left out.
fn left_out(path: Option<&Path>) -> Result<BTreeSet<ContentHash>, TrainError> {
    let Some(path) = path else { return Ok(BTreeSet::new()) };
    let failed = |reason: String| TrainError::LeftOut { path: path.to_owned(), reason };
    let text = std::fs::read_to_string(path).map_err(|e| failed(e.to_string()))?;
    let hash = |(i, line): (usize, &str)| line.trim().parse().map_err(|e| failed(format!("line {}: {e}", i + 1)));
    text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()).map(hash).collect()
}

/// What a source gives to a reference, if it does.
fn of_reference<'a>(config: &'a TrainConfig, source: &SourceReport) -> Option<&'a ReferenceText> {
    let reference = config.data.reference.as_ref()?;
    reference.sources.iter().any(|s| source.name.as_str() == s).then_some(reference)
}

/// What of a source's documents an evaluation puts into its store.
fn stored(mut documents: Vec<CorpusDocument>, bytes: usize) -> impl Iterator<Item = CorpusDocument> {
    documents.sort_by_key(|d| d.hash);
    let of_store = documents.iter().filter(|d| d.split == Split::Train);
    about_bytes(of_store, bytes).cloned().collect::<Vec<_>>().into_iter()
}

/// Keeps documents in the order of their hashes until there are so many bytes.
fn keep_open(documents: &mut Vec<CorpusDocument>, bytes: usize) {
    if bytes == 0 {
        return;
    }
    let mut order: Vec<&CorpusDocument> = documents.iter().collect();
    order.sort_by_key(|d| d.hash);
    let kept: BTreeSet<ContentHash> = about_bytes(order.into_iter(), bytes).map(|d| d.hash).collect();
    documents.retain(|d| kept.contains(&d.hash));
}

impl Text {
    /// Reads the corpus; every training document has passed the gate, but for those of a reference.
    pub(crate) fn read(config: &TrainConfig) -> Result<Self, TrainError> {
        let path = &config.paths.corpus;
        let missing = |what: &str| TrainError::NoText { path: path.clone(), what: what.to_owned() };
        let report = BuildReport::read(path)?;
        let wanted = &config.data.sources;
        let references = config.data.reference.iter().flat_map(|r| &r.sources);
        if let Some(unknown) = wanted.iter().chain(references).find(|w| report.source(w).is_none()) {
            return Err(missing(&format!("source '{unknown}'")));
        }
        let gate = LicenceGate::new(&config.data.tiers);
        let (left_out, mut n_left_out) = (left_out(config.data.left_out.as_deref())?, 0);
        let (mut training, mut validation, mut sources) = (Vec::new(), Vec::new(), Vec::new());
        let mut restricted = Vec::new();
        let mut validation_bytes: BTreeMap<Tier, usize> = BTreeMap::new();
        for source in report.sources {
            if let Some(reference) = of_reference(config, &source) {
                let all = source.documents(path)?;
                n_left_out += all.iter().filter(|d| left_out.contains(&d.hash)).count();
                restricted.extend(stored(all, reference.store_bytes).filter(|d| !left_out.contains(&d.hash)));
                sources.push(source);
                continue;
            }
            let named = wanted.iter().any(|w| source.name.as_str() == w);
            if !(named || wanted.is_empty() && source.is_learnt()) {
                continue;
            }
            let before = training.len();
            for document in source.documents(path)?.into_iter().filter(|d| d.excluded.is_none()) {
                if left_out.contains(&document.hash) {
                    n_left_out += 1;
                    continue;
                }
                // Sources that were named must pass as a whole; of all others, only documents of the tiers asked for are taken.
                let asked_for = named || config.data.tiers.contains(&document.tier);
                match document.split {
                    Split::Train if asked_for => training.push(document),
                    Split::Validation if asked_for => {
                        let bytes = validation_bytes.entry(document.tier).or_default();
                        if *bytes < config.data.validation_bytes {
                            *bytes += document.text.len();
                            validation.push(document);
                        }
                    }
                    _ => {}
                }
            }
            if training.len() > before {
                sources.push(source);
            }
        }
        gate.check(&training)?;
        keep_open(&mut training, config.data.open_bytes);
        sources.retain(|s| training.iter().chain(&restricted).any(|d| d.source == s.name));
        training.append(&mut restricted);
        if training.is_empty() {
            return Err(missing("training document of the tiers and sources asked for"));
        }
        Ok(Self { training, validation, sources, n_left_out })
    }
}

/// Documents → tokens, and the hash of all.
pub(crate) fn tokenize(
    documents: &[CorpusDocument],
    tokenizer: &ByteLevelTokenizer,
) -> Result<(Documents, ContentHash), TrainError> {
    let encoded: Vec<_> = documents.par_iter().map(|d| tokenizer.encode(&d.text)).collect();
    let (mut out, mut hash) = (Documents::default(), Sha256::new());
    for tokens in encoded {
        let tokens = tokens.map_err(|e| TrainError::Tokenizer(e.to_string()))?;
        hash.update((tokens.len() as u64).to_le_bytes());
        hash.update(bytemuck::cast_slice(&tokens));
        out.push(&tokens);
    }
    Ok((out, ContentHash(hash.finalize().into())))
}
