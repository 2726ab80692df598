//! Whether text that is said to be neutral is governed after all: a licence on a package does not make others' text free.

use std::path::Path;

use crate::sentences::Sentences;
use crate::{BuildReport, CorpusDocument, CorpusError, Role, SourceReport, read_documents};

impl BuildReport {
    /// Of each of these sources, the share of its sentences, by bytes, that stand word for word in restricted text of sources that are not neutral.
    ///
    /// # Errors
    ///
    /// If a document of one is not of an open tier.
    pub fn governed_shares<'a>(
        &self,
        corpus: &Path,
        sources: &[&'a SourceReport],
    ) -> Result<Vec<(&'a SourceReport, f64)>, CorpusError> {
        if sources.is_empty() {
            return Ok(Vec::new());
        }
        let documents = |s: &SourceReport| read_documents(&corpus.join(format!("{}.jsonl.zst", s.name)));
        let mut restricted = Sentences::default();
        for source in self.sources.iter().filter(|s| s.role != Role::Neutral && s.has_restricted()) {
            documents(source)?.iter().filter(|d| !d.tier.is_open()).for_each(|d| restricted.add(&d.text));
        }
        let share = |source: &&'a SourceReport| Ok((*source, share(&documents(source)?, &restricted)?));
        sources.iter().map(share).collect()
    }
}

fn share(documents: &[CorpusDocument], restricted: &Sentences) -> Result<f64, CorpusError> {
    if let Some(d) = documents.iter().find(|d| !d.tier.is_open()) {
        let (name, uri, licence) = (d.source.to_string(), d.uri.clone(), d.licence.clone());
        return Err(CorpusError::NotOpen { name, uri, licence });
    }
    let counts = documents.iter().map(|d| restricted.count(&d.text));
    let (all, known) = counts.fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1));
    Ok(known as f64 / all.max(1) as f64)
}
