//! Credit of answers that were given, kept for a time. What was withdrawn since shows in it as little as anywhere: of its share, the name of
//! the source and the number stay.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use silo_core::{ContentHash, Purpose, ShardId, ShardMask, Snapshot, SnapshotProvider, SourceId, TokenId};
use silo_store::now_unix_ms;

use super::AttributionConfig;
use crate::look::TRIES;
use crate::{Caller, GovernError, Governor, Role};

/// An answer, as it is kept.
#[derive(Debug, Clone)]
pub struct KeptAnswer {
    /// Its id.
    pub id: String,
    /// Who got it.
    pub caller: Caller,
    /// When, in milliseconds since 1970.
    pub at_unix_ms: i64,
    /// The store that it was made from.
    pub snapshot: Arc<Snapshot>,
    /// What of it the request could see.
    pub mask: ShardMask,
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
    /// Sources that a cap on their influence held.
    pub capped: Vec<SourceId>,
    /// Source, shard, document and share of the documents with the greatest shares.
    pub documents: Vec<(SourceId, ShardId, ContentHash, f64)>,
}

/// The credit of an answer, as it is shown.
#[derive(Debug, Clone)]
pub struct Answer {
    /// What was kept.
    pub kept: Arc<KeptAnswer>,
    /// Its documents that are live.
    pub documents: HashMap<(ShardId, ContentHash), CreditedDocument>,
    /// Its tokens, with their live documents.
    pub tokens: Vec<CreditedToken>,
}

/// A document with a share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CreditedDocument {
    /// URI; empty where the source may not be displayed.
    pub uri: String,
    /// Title; likewise.
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
pub(crate) struct Responses(Mutex<VecDeque<Arc<KeptAnswer>>>);

impl Responses {
    fn change<T>(&self, change: impl FnOnce(&mut VecDeque<Arc<KeptAnswer>>) -> T) -> T {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Lets go of what is out of time; and beyond the limits, of the oldest answer of the caller who has most: nobody pushes out what others got.
fn drop_old(kept: &mut VecDeque<Arc<KeptAnswer>>, config: &AttributionConfig) {
    let milliseconds = i64::try_from(config.kept_seconds).unwrap_or(i64::MAX).saturating_mul(1000);
    let oldest = now_unix_ms().saturating_sub(milliseconds);
    kept.retain(|answer| answer.at_unix_ms >= oldest);
    loop {
        let mut of_caller: BTreeMap<&str, usize> = BTreeMap::new();
        let n_tokens: usize = kept.iter().map(|answer| answer.tokens.len()).sum();
        let too_many = kept.len() > config.kept_answers;
        if !too_many && n_tokens <= config.kept_tokens {
            return;
        }
        for answer in kept.iter() {
            *of_caller.entry(&answer.caller.name).or_default() += if too_many { 1 } else { answer.tokens.len() };
        }
        let most = of_caller.into_iter().max_by_key(|(_, n)| *n).map(|(name, _)| name);
        let Some(place) = kept.iter().position(|answer| Some(&answer.caller.name[..]) == most) else { return };
        kept.remove(place);
    }
}

impl Governor {
    /// Keeps the credit of an answer. The text goes, if it may not be kept.
    pub fn keep_answer(&self, mut answer: KeptAnswer) {
        let config = &self.config().attribution;
        if !config.keep_text {
            answer.text = None;
        }
        if answer.text.is_none() {
            answer.tokens.iter_mut().for_each(|token| token.token = None);
        }
        self.responses.change(|kept| {
            kept.push_back(Arc::new(answer));
            drop_old(kept, config);
        });
    }

    /// The credit of an answer that this caller got, or may see.
    pub fn answer(&self, caller: &Caller, id: &str) -> Result<Answer, GovernError> {
        for _ in 0..TRIES {
            self.forget_withdrawn();
            let epoch = self.store().snapshot().epoch;
            let answer = self.answer_once(caller, id)?;
            // What was withdrawn while this looked must not be shown.
            if self.store().snapshot().epoch == epoch {
                return Ok(answer);
            }
        }
        Err(GovernError::Changing { tries: TRIES })
    }

    fn answer_once(&self, caller: &Caller, id: &str) -> Result<Answer, GovernError> {
        let sees_all = caller.sources.is_none() && matches!(caller.role, Role::Auditor | Role::Legal | Role::Admin);
        // Who has fewer sources now than then does not see it any more.
        let may = |answer: &&Arc<KeptAnswer>| answer.id == id && (sees_all || answer.caller == *caller);
        let kept = self.responses.change(|kept| kept.iter().find(may).cloned());
        let kept = kept.ok_or_else(|| GovernError::UnknownAnswer(id.to_owned()))?;
        let mut documents = HashMap::new();
        for (source, shard, hash, _) in kept.tokens.iter().flat_map(|token| &token.documents) {
            let place = (*shard, *hash);
            if documents.contains_key(&place) {
                continue;
            }
            if let Some([uri, title, licence]) = self.store().live_document(*shard, *hash)? {
                let shown = self.store().source(source).is_ok_and(|source| source.permissions.allows(Purpose::Display));
                let text = |text: String| if shown { text } else { String::new() };
                documents.insert(place, CreditedDocument { uri: text(uri), title: text(title), licence });
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

    /// Lets go of answers whose time is over, and of the texts of those that something was withdrawn from since.
    pub fn forget_withdrawn(&self) {
        self.responses.change(|kept| {
            drop_old(kept, &self.config().attribution);
            for answer in kept.iter_mut().filter(|answer| answer.text.is_some()) {
                if !answer.mask.is_empty() && !self.store().is_live(&answer.snapshot, &answer.mask) {
                    let answer = Arc::make_mut(answer);
                    answer.text = None;
                    answer.tokens.iter_mut().for_each(|token| token.token = None);
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(caller: &str, id: usize, n_tokens: usize) -> Arc<KeptAnswer> {
        let token =
            KeptToken { token: None, parametric: 1.0, sources: Vec::new(), capped: Vec::new(), documents: Vec::new() };
        Arc::new(KeptAnswer {
            id: id.to_string(),
            caller: Caller { name: caller.into(), ..Caller::local() },
            at_unix_ms: now_unix_ms(),
            snapshot: Arc::new(Snapshot::empty()),
            mask: ShardMask::default(),
            tokens: vec![token; n_tokens],
            context_sources: Vec::new(),
            text: None,
        })
    }

    #[test]
    fn who_asks_much_pushes_out_own_answers_only() {
        let config = AttributionConfig { kept_answers: 10, kept_tokens: 100, ..AttributionConfig::default() };
        let mut kept: VecDeque<_> = (0..2).map(|i| answer("quiet", i, 5)).collect();
        for i in 2..200 {
            kept.push_back(answer("loud", i, 1 + i % 30));
            drop_old(&mut kept, &config);
            assert!(kept.len() <= 10 && kept.iter().map(|a| a.tokens.len()).sum::<usize>() <= 100);
            assert_eq!(kept.iter().filter(|a| a.caller.name == "quiet").count(), 2);
            assert_eq!(kept.back().map(|a| a.id.clone()), Some(i.to_string()), "the newest is kept");
        }
        // One long answer is one answer.
        let mut kept = VecDeque::from([answer("long", 0, 90)]);
        kept.extend((1..11).map(|i| answer("many", i, 1)));
        drop_old(&mut kept, &config);
        assert!(kept.len() == 10 && kept[0].caller.name == "long" && kept[1].id == "2");
        drop_old(&mut kept, &AttributionConfig { kept_answers: 0, ..config });
        assert!(kept.is_empty());
    }
}
