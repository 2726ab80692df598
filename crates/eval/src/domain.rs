//! Domains: what of a source goes to the store, and what is held out.

use std::path::Path;

use serde::{Deserialize, Serialize};
use silo_core::{Document, SourceId, TokenId, Tokenizer};
use silo_corpus::{BuildReport, CorpusDocument, Role, SourceReport, Split, about_bytes};

use crate::EvalError;

/// Which text of each domain is used, and how much.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sizes {
    /// Bytes of text that go to the store.
    pub store_bytes: usize,
    /// Tokens to tune on.
    pub validation_tokens: usize,
    /// Tokens to measure on.
    pub test_tokens: usize,
    /// Of a held-out document at most so many tokens, its first ones, so that no long document stands for its domain; 0 for all of it.
    #[serde(default)]
    pub document_tokens: usize,
    /// Test documents that begin in so many bytes are passed over: for measuring on text that has not been looked at.
    #[serde(default)]
    pub passed_over_bytes: usize,
    /// Of each test document so many tokens are passed over, and what follows is scored as if it began there.
    #[serde(default)]
    pub passed_over_tokens: usize,
    /// Held-out text is scored in windows of at most this many tokens; 0 for the model's own.
    #[serde(default)]
    pub window_tokens: usize,
    /// Only sources whose role is neutral, without what repeats training text: what is tuned on them hangs on no governed text.
    #[serde(default)]
    pub neutral: bool,
}

/// A part of a domain's documents for the store.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StorePart<'a> {
    /// Which of the shares it belongs to, by its place; the whole store has it last.
    pub share: usize,
    /// Its documents.
    pub documents: &'a [Document],
}

/// A domain's documents for the store, cut where these shares of their bytes are reached: the first documents that hold a share of it belong
/// to that share and to all larger ones. A share that adds no document has no part.
pub fn store_parts<'a>(stored: &'a [Document], shares: &[f64]) -> Vec<StorePart<'a>> {
    let bytes: usize = stored.iter().map(|d| d.text.len()).sum();
    let (mut out, mut from) = (Vec::new(), 0);
    for (share, part) in shares.iter().copied().chain([1.0]).enumerate() {
        let mut seen = 0;
        let until = stored.iter().take_while(|d| {
            let wanted = (seen as f64) < part * bytes as f64;
            seen += d.text.len();
            wanted
        });
        let to = until.count();
        if to > from {
            out.push(StorePart { share, documents: &stored[from..to] });
            from = to;
        }
    }
    out
}

/// A held-out text, or the beginning of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Text {
    /// Its tokens.
    pub tokens: Vec<TokenId>,
    /// Bytes of those of them that are scored.
    pub n_bytes: u64,
    /// How many are scored.
    pub n_scored: usize,
}

/// A domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Domain {
    /// The source.
    pub source: SourceId,
    /// For the store.
    pub stored: Vec<Document>,
    /// To tune on.
    pub validation: Vec<Text>,
    /// To measure on.
    pub test: Vec<Text>,
    /// Tokens of the windows that texts are scored in; 0 for the model's own.
    pub window_tokens: usize,
}

impl Domain {
    /// Reads a domain of a built corpus. Documents are taken in the order of their hashes, which is a random one, until the size is
    /// reached; the last held-out one is cut there, or before (see [`Sizes`]), the last one for the store is whole.
    pub fn read(corpus: &Path, name: &str, sizes: Sizes, tokenizer: &dyn Tokenizer) -> Result<Self, EvalError> {
        let missing = |what: String| EvalError::NoText { path: corpus.to_owned(), what };
        let (source, mut documents) = documents_of(corpus, name)?;
        if sizes.neutral {
            if source.role != Role::Neutral {
                return Err(EvalError::NoNeutralRole { source_id: name.to_owned() });
            }
            // Training text is not new to a model; governed text may be withdrawn.
            if let Some(other) = documents.iter().find(|d| d.train || !d.tier.is_open()) {
                return Err(EvalError::NotNeutral { source_id: name.to_owned(), uri: other.uri.clone() });
            }
            documents.retain(|d| d.excluded.is_none());
        }
        let of = |split: Split| documents.iter().filter(move |d| d.split == split);
        let domain = Self {
            source: source.name,
            stored: about_bytes(of(Split::Train), sizes.store_bytes).map(document).collect(),
            validation: texts(
                held_out(&documents, Split::Validation),
                Drawn { max_tokens: sizes.validation_tokens, passed_over: 0, of_one: sizes.document_tokens },
                tokenizer,
            )?,
            test: test_texts(&documents, sizes, tokenizer, "")?,
            window_tokens: sizes.window_tokens,
        };
        for (empty, what) in [
            (domain.stored.is_empty(), "text for the store"),
            (domain.validation.is_empty(), "validation text"),
            (held_out(&documents, Split::Test).next().is_none(), "test text"),
        ] {
            if empty {
                return Err(missing(format!("{what} of '{name}'")));
            }
        }
        if domain.test.is_empty() {
            return Err(EvalError::PassedOver { source_id: name.to_owned() });
        }
        Ok(domain)
    }
}

/// Test text of a domain, of those documents alone whose URIs begin so; drawn like the rest ([`Sizes`]).
pub fn held_out_of(
    corpus: &Path,
    source: &SourceId,
    uri_prefix: &str,
    sizes: Sizes,
    tokenizer: &dyn Tokenizer,
) -> Result<Vec<Text>, EvalError> {
    let (_, documents) = documents_of(corpus, source.as_str())?;
    test_texts(&documents, sizes, tokenizer, uri_prefix)
}

/// A source of a corpus, and its documents in the order of their hashes.
fn documents_of(corpus: &Path, name: &str) -> Result<(SourceReport, Vec<CorpusDocument>), EvalError> {
    let missing = || EvalError::NoText { path: corpus.to_owned(), what: format!("source '{name}'") };
    let source = BuildReport::read(corpus)?.source(name).cloned().ok_or_else(missing)?;
    let mut documents = source.documents(corpus)?;
    documents.sort_by_key(|d| d.hash);
    Ok((source, documents))
}

/// The store keeps what is too much like other text; held-out text must not be.
fn held_out(documents: &[CorpusDocument], split: Split) -> impl Iterator<Item = &CorpusDocument> {
    documents.iter().filter(move |d| d.split == split && d.excluded.is_none())
}

fn test_texts(
    documents: &[CorpusDocument],
    sizes: Sizes,
    tokenizer: &dyn Tokenizer,
    uri_prefix: &str,
) -> Result<Vec<Text>, EvalError> {
    let drawn =
        Drawn { max_tokens: sizes.test_tokens, passed_over: sizes.passed_over_tokens, of_one: sizes.document_tokens };
    let of_work = behind(held_out(documents, Split::Test), sizes.passed_over_bytes);
    texts(of_work.filter(|d| d.uri.starts_with(uri_prefix)), drawn, tokenizer)
}

fn document(d: &CorpusDocument) -> Document {
    Document {
        source: d.source.clone(),
        uri: d.uri.clone(),
        title: d.title.clone(),
        licence: d.licence.clone(),
        tier: d.tier,
        text: d.text.clone(),
    }
}

/// Documents behind those that begin in the first so many bytes, which are the same for every tokenizer.
fn behind<'a>(
    documents: impl Iterator<Item = &'a CorpusDocument>,
    n_bytes: usize,
) -> impl Iterator<Item = &'a CorpusDocument> {
    let mut begins = 0;
    documents.skip_while(move |document| {
        let is_looked_at = begins < n_bytes;
        begins += document.text.len();
        is_looked_at
    })
}

/// How much of documents is taken.
#[derive(Clone, Copy)]
struct Drawn {
    /// Tokens of all together.
    max_tokens: usize,
    /// Tokens of each that are passed over.
    passed_over: usize,
    /// Tokens of each that are taken after those; 0 for all.
    of_one: usize,
}

fn texts<'a>(
    documents: impl Iterator<Item = &'a CorpusDocument>,
    drawn: Drawn,
    tokenizer: &dyn Tokenizer,
) -> Result<Vec<Text>, EvalError> {
    let of_one = if drawn.of_one == 0 { usize::MAX } else { drawn.of_one };
    let (mut out, mut left) = (Vec::new(), drawn.max_tokens);
    for document in documents {
        if left == 0 {
            break;
        }
        let mut tokens = tokenizer.encode(&document.text)?;
        tokens.drain(..drawn.passed_over.min(tokens.len()));
        tokens.truncate(left.min(of_one));
        if tokens.is_empty() {
            continue;
        }
        left -= tokens.len();
        // Without a beginning of text nothing predicts the first token: its bytes are not scored.
        let first_scored = usize::from(tokenizer.beginning_of_text().is_none());
        let n_bytes = tokens.iter().skip(first_scored).map(|t| tokenizer.bytes(*t).len() as u64).sum();
        let n_scored = tokens.len().saturating_sub(first_scored);
        out.push(Text { tokens, n_bytes, n_scored });
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_all_documents_in_their_order() {
        let document = |i: usize| Document {
            source: "s".parse().unwrap(),
            uri: i.to_string(),
            title: String::new(),
            licence: String::new(),
            tier: silo_core::Tier::Restricted,
            text: "x".repeat(10),
        };
        let stored: Vec<Document> = (0..100).map(document).collect();
        let parts = |shares: &[f64]| -> Vec<(usize, usize)> {
            store_parts(&stored, shares).iter().map(|part| (part.share, part.documents.len())).collect()
        };
        assert_eq!(parts(&[0.01, 0.1, 0.5]), [(0, 1), (1, 9), (2, 40), (3, 50)]);
        // One document is more than one share of the store: it belongs to the first, and the next one adds nothing.
        assert_eq!(parts(&[0.001, 0.002, 0.5]), [(0, 1), (2, 49), (3, 50)]);
        assert_eq!(parts(&[]), [(0, 100)]);
        let all: Vec<&Document> = store_parts(&stored, &[0.3, 0.7]).iter().flat_map(|part| part.documents).collect();
        assert!(all.into_iter().eq(&stored));
        assert!(store_parts(&[], &[0.5]).is_empty());
    }
}
