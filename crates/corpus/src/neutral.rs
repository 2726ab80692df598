//! Whether text that is said to be neutral is governed after all: a licence on a package does not make others' text free.

use std::path::Path;

use crate::known::KnownText;
use crate::{BuildReport, CorpusDocument, CorpusError, Role, SourceDeclaration, SourceReport};

/// How much of a neutral source may stand in restricted text, if nothing else is said.
pub const MAX_GOVERNED: f64 = 0.02;

/// And of a single document: of a source only some documents are tuned on.
pub const MAX_GOVERNED_OF_DOCUMENT: f64 = 0.5;

/// How much of neutral sources stands word for word in restricted text of sources that are not neutral.
#[derive(Debug, Clone, PartialEq)]
pub struct Governed<'a> {
    /// How many sources with restricted text they were compared with.
    pub n_compared: usize,
    /// Of each.
    pub shares: Vec<GovernedShare<'a>>,
}

/// How much of a neutral source is governed.
#[derive(Debug, Clone, PartialEq)]
pub struct GovernedShare<'a> {
    /// The source.
    pub source: &'a SourceReport,
    /// Of its words, by bytes.
    pub share: f64,
    /// The document of which most is governed, and how much of its words.
    pub most: Option<(String, f64)>,
}

impl Governed<'_> {
    /// Refuses sources of which more than a share is governed, or more than another of one of their documents.
    pub fn refuse_above(&self, limit: f64, limit_of_document: f64) -> Result<(), CorpusError> {
        let refused = |share: f64, limit: f64, what: String, source: &SourceReport| {
            let (percent, limit, name) = (100.0 * share, 100.0 * limit, source.name.to_string());
            if percent > limit { Err(CorpusError::Governed { what, name, percent, limit }) } else { Ok(()) }
        };
        for GovernedShare { source, share, most } in &self.shares {
            refused(*share, limit, format!("'{}'", source.name), source)?;
            if let Some((uri, share)) = most {
                refused(*share, limit_of_document, uri.clone(), source)?;
            }
        }
        Ok(())
    }
}

impl BuildReport {
    /// Refuses a corpus without some declared source: neutral sources would not be compared with it.
    pub fn check_whole(&self, corpus: &Path, declarations: &[SourceDeclaration]) -> Result<(), CorpusError> {
        match declarations.iter().find(|d| self.source(d.name.as_str()).is_none()) {
            Some(missing) => Err(CorpusError::NotWhole { path: corpus.to_owned(), name: missing.name.to_string() }),
            None => Ok(()),
        }
    }

    /// Compares neutral sources with all restricted text of the others.
    ///
    /// # Errors
    ///
    /// If a document of one is not of an open tier.
    pub fn governed<'a>(&self, corpus: &Path, sources: &[&'a SourceReport]) -> Result<Governed<'a>, CorpusError> {
        let restricted = self.sources.iter().filter(|s| s.role != Role::Neutral && s.has_restricted());
        let mut out = Governed { n_compared: restricted.clone().count(), shares: Vec::new() };
        if sources.is_empty() {
            return Ok(out);
        }
        let mut known = KnownText::default();
        for source in restricted {
            source.documents(corpus)?.iter().filter(|d| !d.tier.is_open()).for_each(|d| known.add(&d.text));
        }
        for source in sources {
            out.shares.push(share(source, &source.documents(corpus)?, &known)?);
        }
        Ok(out)
    }
}

fn share<'a>(
    source: &'a SourceReport,
    documents: &[CorpusDocument],
    known: &KnownText,
) -> Result<GovernedShare<'a>, CorpusError> {
    if let Some(d) = documents.iter().find(|d| !d.tier.is_open()) {
        let (name, uri, licence) = (d.source.to_string(), d.uri.clone(), d.licence.clone());
        return Err(CorpusError::NotOpen { name, uri, licence });
    }
    let of = |(all, known): (usize, usize)| known as f64 / all.max(1) as f64;
    // What repeats learnt text is not tuned on, and must not hide how much of the rest is governed.
    let documents: Vec<&CorpusDocument> = documents.iter().filter(|d| d.excluded.is_none()).collect();
    let counts: Vec<(usize, usize)> = documents.iter().map(|d| known.count(&d.text)).collect();
    let each = documents.iter().zip(&counts).map(|(d, counts)| (d.uri.clone(), of(*counts)));
    let most = each.max_by(|a, b| a.1.total_cmp(&b.1));
    let all = counts.iter().fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1));
    Ok(GovernedShare { source, share: of(all), most })
}
