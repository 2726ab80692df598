//! A generation under way, and what is noted of it at its end.

use std::sync::Arc;

use silo_core::{Filter, ShardMask, SnapshotProvider, SourceId};
use silo_engine::{Credit, Depth, DocumentId, Event, FinishReason, Finished, Generation, TokenEvent};
use silo_govern::{Governor, KeptAnswer, KeptToken, Part, PartOfAnswer, now_unix_ms};

use crate::to_proto::Asked;

/// A generation under way. What was handed out of it is noted when it is dropped, whether or not it came to its end.
pub(crate) struct Running {
    generation: Generation,
    pub(crate) asked: Asked,
    governor: Arc<Governor>,
    filter: Filter,
    /// It is an answer, and no comparison.
    counts: bool,
    /// Of what was handed out.
    credit: Credit,
    /// What is kept of each token.
    kept: Vec<KeptToken>,
    /// Its text, token by token.
    pieces: Vec<String>,
    context_sources: Vec<SourceId>,
    /// Something that it was made from was withdrawn before its end.
    cut: bool,
}

impl Running {
    pub(crate) fn new(
        generation: Generation,
        (asked, counts): (Asked, bool),
        governor: Arc<Governor>,
        filter: Filter,
    ) -> Self {
        let (credit, kept, pieces) = (Credit::default(), Vec::new(), Vec::new());
        Self {
            generation,
            asked,
            governor,
            filter,
            counts,
            credit,
            kept,
            pieces,
            context_sources: Vec::new(),
            cut: false,
        }
    }

    /// What it says next.
    pub(crate) async fn next(&mut self) -> Option<Event> {
        let mut event = self.generation.next().await;
        match &mut event {
            Some(Event::Token(token, _)) => self.token(token),
            Some(Event::Finished(finished)) => self.finished(finished),
            Some(Event::Failed(_)) | None => {}
        }
        event
    }

    /// Whether something that it was made from was withdrawn before its end.
    pub(crate) fn rests_on_what_went(&self) -> bool {
        self.cut
    }

    /// Nobody is credited with it from now on. Gives whether somebody was.
    pub(crate) fn counts_not(&mut self) -> bool {
        std::mem::replace(&mut self.counts, false)
    }

    /// Whether sources are credited with it.
    pub(crate) fn counts(&mut self, counts: bool) {
        self.counts = counts;
    }

    fn token(&mut self, token: &TokenEvent) {
        self.pieces.push(token.text.clone());
        self.credit.add(&token.credit);
        self.credit.add_passages(token.log_probability, &token.left_out);
        if self.asked.id.is_empty() {
            return;
        }
        let mut documents: Vec<&(DocumentId, f64)> = token.credit.documents.iter().collect();
        documents.sort_by(|a, b| b.1.total_cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
        documents.truncate(self.governor.config().attribution.kept_documents);
        let document = |(id, share): &(DocumentId, f64)| (id.source.clone(), id.shard, id.document, *share);
        self.kept.push(KeptToken {
            token: Some(token.token),
            parametric: token.credit.parametric,
            sources: token.credit.sources.clone(),
            capped: token.credit.capped.clone(),
            documents: documents.into_iter().map(document).collect(),
        });
    }

    fn finished(&mut self, finished: &mut Finished) {
        let store = self.governor.store();
        let removed = finished.repinned || finished.reason == FinishReason::SourceRemoved;
        self.cut = removed;
        if finished.reason == FinishReason::SourceRemoved {
            // Tokens that were held back were not given.
            finished.credit = self.credit.clone();
        }
        if removed || store.snapshot().epoch != finished.view.snapshot.epoch {
            // What cannot be read is not shown.
            let live = |id: &DocumentId| store.retrieves(id.shard, id.document).unwrap_or(false);
            finished.credit.documents.retain(|id, _| live(id));
            finished.credit.passages.retain(|id, _| live(&id.document));
        }
        if let Some(last) = self.pieces.last_mut() {
            last.push_str(&finished.text);
        }
        self.context_sources = finished.context_sources.clone();
        if !self.asked.id.is_empty() {
            let view = &finished.view;
            self.governor.keep_answer(KeptAnswer {
                id: self.asked.id.clone(),
                caller: self.asked.caller.clone(),
                at_unix_ms: now_unix_ms(),
                snapshot: view.snapshot.clone(),
                mask: ShardMask::clone(&view.mask),
                tokens: std::mem::take(&mut self.kept),
                context_sources: finished.context_sources.clone(),
                text: (!removed).then(|| self.pieces.concat()),
            });
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.counts {
            return;
        }
        let part = |credit: &silo_engine::SourceCredit| Part {
            source: credit.source.clone(),
            share: credit.total,
            n_tokens: credit.n_tokens,
        };
        self.governor.note_answer(PartOfAnswer {
            parts: self.credit.sources.iter().filter(|credit| credit.n_tokens > 0).map(part).collect(),
            context_sources: std::mem::take(&mut self.context_sources),
            pieces: std::mem::take(&mut self.pieces),
            filter: std::mem::take(&mut self.filter),
        });
    }
}

/// How deep credit must go for what is shown and what is kept.
pub(crate) fn depth(asked: &Asked) -> Depth {
    if asked.id.is_empty() { asked.depth } else { asked.depth.max(Depth::Documents) }
}
