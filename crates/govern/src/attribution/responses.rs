//! Credit of answers that were given, kept for a time. What was withdrawn since shows in it as little as anywhere: of its share, the name of
//! the source and the number stay.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use silo_core::{ContentHash, Filter, Purpose, ShardId, Snapshot, SnapshotProvider, SourceId, TokenId};
use silo_store::now_unix_ms;

use super::AttributionConfig;
use crate::{Caller, GovernError, Governor, Role};

/// An answer, as it is kept.
#[derive(Debug, Clone)]
pub struct KeptAnswer {
    /// Its id.
    pub id: String,
    /// Who got it.
    pub caller: String,
    /// When, in milliseconds since 1970.
    pub at_unix_ms: i64,
    /// The store that it was made from.
    pub snapshot: Arc<Snapshot>,
    /// Its tokens.
    pub tokens: Vec<KeptToken>,
    /// Sources whose passages stood before it.
    pub context_sources: Vec<SourceId>,
    /// Its text, if that is kept.
    pub text: Option<String>,
}

/// A token, as it is kept.
#[derive(Debug, Clone, PartialEq)]
pub struct KeptToken {
    /// The token; only where the text is kept.
    pub token: Option<TokenId>,
    /// Share of the model.
    pub parametric: f64,
    /// Share of each source.
    pub sources: Vec<(SourceId, f64)>,
    /// Source, shard, document and share of the documents with the greatest shares.
    pub documents: Vec<(SourceId, ShardId, ContentHash, f64)>,
}

/// The credit of an answer, as it is shown.
#[derive(Debug, Clone)]
pub struct Answer {
    /// What was kept. Nothing of it is withdrawn.
    pub kept: KeptAnswer,
    /// Its documents that are live.
    pub documents: HashMap<(ShardId, ContentHash), CreditedDocument>,
    /// Its tokens, with their live documents.
    pub tokens: Vec<CreditedToken>,
}

/// A document with a share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CreditedDocument {
    /// URI and title; empty where the source may not be displayed.
    pub uri: String,
    #[allow(missing_docs, reason = "see above")]
    pub title: String,
    /// Licence of the document.
    pub licence: String,
}

/// A token with its credit.
#[derive(Debug, Clone, PartialEq)]
pub struct CreditedToken {
    /// What was kept, with the documents that are live.
    pub kept: KeptToken,
    /// Whether documents were left out because they were withdrawn.
    pub withdrawn: bool,
}

/// The newest answers.
#[derive(Default)]
pub(crate) struct Responses(Mutex<VecDeque<KeptAnswer>>);

impl Responses {
    fn change<T>(&self, change: impl FnOnce(&mut VecDeque<KeptAnswer>) -> T) -> T {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn drop_old(kept: &mut VecDeque<KeptAnswer>, config: &AttributionConfig) {
        let oldest = now_unix_ms() - 1000 * i64::try_from(config.kept_seconds).unwrap_or(i64::MAX / 1000);
        while kept.len() > config.kept_answers || kept.front().is_some_and(|answer| answer.at_unix_ms < oldest) {
            kept.pop_front();
        }
    }
}

impl Governor {
    /// Keeps the credit of an answer. The text goes, if it may not be kept.
    pub fn keep_answer(&self, mut answer: KeptAnswer) {
        let config = &self.config().attribution;
        if !config.keep_text {
            answer.text = None;
            answer.tokens.iter_mut().for_each(|token| token.token = None);
        }
        self.responses.change(|kept| {
            kept.push_back(answer);
            Responses::drop_old(kept, config);
        });
    }

    /// The credit of an answer that this caller got, or may see.
    pub fn answer(&self, caller: &Caller, id: &str) -> Result<Answer, GovernError> {
        self.forget_withdrawn();
        let sees_all = caller.sources.is_none() && matches!(caller.role, Role::Auditor | Role::Legal | Role::Admin);
        let found = self.responses.change(|kept| {
            Responses::drop_old(kept, &self.config().attribution);
            let may = |answer: &&KeptAnswer| answer.id == id && (sees_all || answer.caller == caller.name);
            kept.iter().find(may).cloned()
        });
        let kept = found.ok_or_else(|| GovernError::UnknownAnswer(id.to_owned()))?;
        let mut documents = HashMap::new();
        for (source, shard, hash, _) in kept.tokens.iter().flat_map(|token| &token.documents) {
            let place = (*shard, *hash);
            if documents.contains_key(&place) {
                continue;
            }
            if let Some(stored) = self.store().live_document(*shard, *hash)? {
                let shown = self.store().source(source).is_ok_and(|source| source.permissions.allows(Purpose::Display));
                let text = |text: String| if shown { text } else { String::new() };
                let (uri, title) = (text(stored.document.uri), text(stored.document.title));
                documents.insert(place, CreditedDocument { uri, title, licence: stored.document.licence });
            }
        }
        let credited = |token: &KeptToken| {
            let mut kept = token.clone();
            kept.documents.retain(|(_, shard, hash, _)| documents.contains_key(&(*shard, *hash)));
            CreditedToken { withdrawn: kept.documents.len() < token.documents.len(), kept }
        };
        let tokens = kept.tokens.iter().map(credited).collect();
        Ok(Answer { kept, documents, tokens })
    }

    /// Takes the text out of answers that something was withdrawn from since, if it was kept.
    pub fn forget_withdrawn(&self) {
        self.responses.change(|kept| {
            for answer in kept.iter_mut().filter(|answer| answer.text.is_some()) {
                let of = answer.tokens.iter().flat_map(|token| token.sources.iter().map(|(source, _)| source));
                let allow_sources: Vec<SourceId> = of.chain(&answer.context_sources).cloned().collect();
                if allow_sources.is_empty() {
                    continue;
                }
                let filter = Filter { allow_sources, ..Filter::default() };
                let seen = |purpose| answer.snapshot.mask(&filter, purpose);
                if !self.store().is_live(&answer.snapshot, &seen(Purpose::Knn).or(&seen(Purpose::Context))) {
                    answer.text = None;
                    answer.tokens.iter_mut().for_each(|token| token.token = None);
                }
            }
        });
    }
}
