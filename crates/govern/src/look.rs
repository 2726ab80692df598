//! What the store would retrieve for a text.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use silo_core::{
    Entry, Filter, NeighborQuery, NeighborSearch, Passage, PassageQuery, PassageSearch, Positions, Purpose,
    SequenceStep, Snapshot, SnapshotProvider, Source,
};

use crate::{GovernError, Governor};

/// Tokens of an entry's context that are shown.
const CONTEXT_TOKENS: usize = 24;

/// How often a look that a change came across is repeated.
pub const TRIES: usize = 20;

/// Bytes of text that are looked at for each token of the window; few tokens are longer.
const BYTES_PER_TOKEN: usize = 16;

/// The last `n` bytes of a text, from a character's start on.
fn last_bytes(text: &str, n: usize) -> &str {
    let from = text.len().saturating_sub(n);
    let from = (from..=text.len()).find(|&i| text.is_char_boundary(i)).unwrap_or(text.len());
    &text[from..]
}

/// A question.
#[derive(Debug, Clone, PartialEq)]
pub struct Look<'a> {
    /// The text; neighbours are those of its last token.
    pub text: &'a str,
    /// What may be seen.
    pub filter: &'a Filter,
    /// Neighbours.
    pub k: usize,
    /// Passages.
    pub passages: usize,
}

/// The answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Found {
    /// The store that it was made from.
    pub snapshot: Arc<Snapshot>,
    /// Nearest first.
    pub neighbors: Vec<FoundNeighbor>,
    /// Best first.
    pub passages: Vec<FoundPassage>,
}

/// A neighbour.
#[derive(Debug, Clone, PartialEq)]
pub struct FoundNeighbor {
    /// Squared L2 distance.
    pub distance: f32,
    /// The token that followed; `None` where the source may not be displayed.
    pub value: Option<u32>,
    /// Where it is from; without text, URI and title where the source may not be displayed, and its position says nothing then.
    pub entry: Entry,
}

/// A passage.
#[derive(Debug, Clone, PartialEq)]
pub struct FoundPassage {
    /// Its source.
    pub source: Arc<Source>,
    /// The passage; without URI and title where the source may not be displayed.
    pub passage: Passage,
    /// Its text; `None` where the source may not be displayed.
    pub text: Option<String>,
}

impl Governor {
    /// What the store would retrieve for a text, both ways. Sources without `display` are shown without their text.
    pub fn look(&self, look: &Look<'_>) -> Result<Found, GovernError> {
        for _ in 0..TRIES {
            let found = self.look_once(look)?;
            // What was withdrawn while this looked must not be shown.
            let seen = |purpose| found.snapshot.mask(look.filter, purpose);
            if self.store().is_live(&found.snapshot, &seen(Purpose::Knn).or(&seen(Purpose::Context))) {
                return Ok(found);
            }
        }
        Err(GovernError::Changing { tries: TRIES })
    }

    fn look_once(&self, look: &Look<'_>) -> Result<Found, GovernError> {
        let snapshot = self.store().snapshot();
        snapshot.check_names(look.filter)?;
        let neighbors = self.neighbors(look, &snapshot)?;
        let mask = snapshot.mask(look.filter, Purpose::Context);
        let text = last_bytes(look.text, self.store().recipe().window_tokens * BYTES_PER_TOKEN);
        let query = PassageQuery { snapshot: &snapshot, mask: &mask, text, k: look.passages };
        let shown = |mut passage: Passage| {
            let source = snapshot.shards[passage.shard.0 as usize].source.clone();
            let text = source.permissions.display.then(|| self.tokenizer.decode(&passage.tokens));
            if text.is_none() {
                (passage.uri, passage.title) = (String::new(), String::new());
            }
            FoundPassage { source, passage, text }
        };
        let passages = self.store().passages(&query)?.into_iter().map(shown).collect();
        Ok(Found { snapshot: snapshot.clone(), neighbors, passages })
    }

    fn neighbors(&self, look: &Look<'_>, snapshot: &Snapshot) -> Result<Vec<FoundNeighbor>, GovernError> {
        let mask = snapshot.mask(look.filter, Purpose::Knn);
        // The store's keys saw windows of this length, so more of the text would not make the key more alike.
        let window = self.store().recipe().window_tokens;
        let tokens = self.tokenizer.encode(last_bytes(look.text, window * BYTES_PER_TOKEN))?;
        let beginning = self.tokenizer.beginning_of_text();
        let room = window - usize::from(beginning.is_some());
        let end = &tokens[tokens.len().saturating_sub(room)..];
        let input: Vec<u32> = beginning.into_iter().chain(end.iter().copied()).collect();
        if look.k == 0 || input.is_empty() {
            return Ok(Vec::new());
        }
        let mut cache = self.model.new_cache();
        let mut steps =
            [SequenceStep { cache: cache.as_mut(), tokens: &input, logits: Positions::None, keys: Positions::Last }];
        let output = self.model.step(&mut steps, &AtomicBool::new(false))?.remove(0);
        let query = NeighborQuery { snapshot, mask: &mask, key: output.keys.row(0), k: look.k, text: &[] };
        let found = self.store().neighbors(&[query])?.remove(0);
        let shown = |n: &silo_core::Neighbor| {
            let mut entry = self.store().entry(snapshot, n, CONTEXT_TOKENS)?; // nothing, if it was removed just now
            let shown = snapshot.shards[n.shard.0 as usize].source.permissions.display;
            if !shown {
                (entry.uri, entry.title) = (String::new(), String::new());
                (entry.context, entry.continuation) = (String::new(), String::new());
            }
            Some(FoundNeighbor { distance: n.distance, value: shown.then_some(n.value), entry })
        };
        Ok(found.iter().filter_map(shown).collect())
    }
}
