//! Whether runs of words stand in live documents.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use silo_core::{Purpose, Run, SearchError, Source, SpanSearch, Tier, units};
use silo_spans::{END, SORTED_BY};

use crate::live::Live;
use crate::live_shard::LiveShard;
use crate::store::unpoisoned;
use crate::{Shard, Store, StoreError};

/// Documents of a shard whose words are kept at hand.
const KEPT: usize = 16;

/// The words of documents that were asked for last: a text that follows one asks for its words again and again.
#[derive(Debug, Default)]
pub(crate) struct WordCache(Mutex<HashMap<usize, Arc<Vec<String>>>>);

impl Shard {
    /// The words of the document at place `i` of the files.
    fn words_of(&self, i: usize) -> Result<Arc<Vec<String>>, StoreError> {
        if let Some(words) = unpoisoned(&self.words.0).get(&i) {
            return Ok(words.clone());
        }
        let words = Arc::new(units::words(&self.document(i)?.document.text).map(|word| word.text).collect());
        let mut kept = unpoisoned(&self.words.0);
        if kept.len() >= KEPT {
            kept.clear();
        }
        kept.insert(i, Arc::clone(&words));
        Ok(words)
    }
}

/// Words that may stand behind a run: where there are more, the run says nothing, and is taken to go on with any word.
const MAX_NEXT_WORDS: usize = 64;

/// Whether a run stands in a document of a shard that is retrieved.
fn stands_in(shard: &LiveShard, run: &Run<'_>) -> Result<bool, StoreError> {
    let spans = shard.shard.spans()?;
    let is_live = |document: usize| !shard.hides(shard.shard.number_of(document));
    if run.begun.is_empty() || run.words.len() >= SORTED_BY {
        return Ok(spans.find_all(run.words).any(|(document, _)| is_live(document)));
    }
    for (n, (next, part)) in spans.next_words(spans.find(run.words), run.words.len()).enumerate() {
        let Some((document, at)) = spans.places(part).find(|(document, _)| is_live(*document)) else { continue };
        if next == END {
            continue;
        }
        if n >= MAX_NEXT_WORDS || shard.shard.words_of(document)?[at + run.words.len()].starts_with(run.begun) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn stands(live: &Live, run: &Run<'_>, of: impl Fn(&Source) -> bool) -> Result<bool, SearchError> {
    let failed = |e: StoreError| SearchError::Passages { reason: e.to_string() };
    for view in live.snapshot.shards.iter().filter(|view| of(&view.source)) {
        let Some(shard) = live.shards.get(&view.id) else { continue };
        if stands_in(shard, run).map_err(failed)? {
            return Ok(true);
        }
    }
    Ok(false)
}

impl SpanSearch for Store {
    fn is_guarded(&self, run: &Run<'_>, tiers: &[Tier]) -> Result<bool, SearchError> {
        stands(&self.live(), run, |s| !s.permissions.allows(Purpose::Verbatim) && tiers.contains(&s.tier))
    }

    fn is_free(&self, run: &Run<'_>) -> Result<bool, SearchError> {
        stands(&self.live(), run, |s| s.permissions.allows(Purpose::Verbatim))
    }
}
