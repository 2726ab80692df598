//! Where any text stands in the store.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use serde::{Deserialize, Serialize};
use silo_core::{Filter, Purpose, Snapshot, SnapshotProvider};
use silo_store::{FoundSpan, SpanQuery};

use crate::look::TRIES;
use crate::{GovernError, Governor};

/// Limits of a look for runs of words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SpanLimits {
    /// Words of the shortest runs.
    pub min_words: usize,
    /// At most so many runs, the rarest.
    pub max_spans: usize,
    /// At most so many documents of each.
    pub max_documents: usize,
    /// Words before and behind a run that are shown.
    pub context_words: usize,
}

impl Default for SpanLimits {
    fn default() -> Self {
        Self { min_words: 6, max_spans: 50, max_documents: 10, context_words: 20 }
    }
}

/// Runs of a text's words, and the store that they were found in.
#[derive(Debug, Clone)]
pub struct TextSpans {
    /// The store.
    pub snapshot: Arc<Snapshot>,
    /// The rarest first. Documents of sources that may not be displayed are without their text, URI and title.
    pub spans: Vec<FoundSpan>,
}

impl Governor {
    /// Finds runs of a text's words in what a filter shows, on threads of its own, until `cancel` is true.
    pub fn find_spans(
        &self,
        text: &str,
        filter: &Filter,
        limits: SpanLimits,
        cancel: &AtomicBool,
    ) -> Result<TextSpans, GovernError> {
        let config = &self.config().attribution;
        if text.len() > config.max_text_bytes {
            let (got, limit, setting) = (text.len(), config.max_text_bytes, "attribution.max_text_bytes");
            return Err(GovernError::Limit { what: "the text in bytes", got, limit, setting });
        }
        self.store().snapshot().check_names(filter)?;
        let SpanLimits { min_words, max_spans, max_documents, context_words } = limits;
        let query = SpanQuery { text, filter, min_words, max_spans, max_documents, context_words, cancel };
        for _ in 0..TRIES {
            let (snapshot, mut spans) = self.attribution_threads.install(|| self.store().find_spans(&query))?;
            let seen = |purpose| snapshot.mask(filter, purpose);
            let mask = seen(Purpose::Knn).or(&seen(Purpose::Context)).or(&seen(Purpose::Display));
            // What was withdrawn while this looked must not be shown.
            if !self.store().is_live(&snapshot, &mask) {
                continue;
            }
            let display = |span: &FoundSpan, i: usize| {
                let id = &span.documents[i].source;
                snapshot.sources.iter().any(|s| s.id == *id && s.permissions.allows(Purpose::Display))
            };
            for span in &mut spans {
                for i in 0..span.documents.len() {
                    if !display(span, i) {
                        let document = &mut span.documents[i];
                        (document.uri, document.title) = (String::new(), String::new());
                        document.context = Default::default();
                    }
                }
            }
            return Ok(TextSpans { snapshot, spans });
        }
        Err(GovernError::Changing { tries: TRIES })
    }
}
