//! Search over the live shards of a snapshot, filtered before the search by the live set of the moment.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use fixedbitset::FixedBitSet;
use silo_core::{
    ContentHash, Detokenizer, Entry, Epoch, Neighbor, NeighborQuery, NeighborSearch, Passage, PassageQuery,
    PassageSearch, Purpose, SearchError, ShardId, ShardIndex, ShardMask, Snapshot, TokenId, Tokenizer,
};
use silo_lexical::{self as lexical, Hit};
use silo_vector::{
    Candidate, Collection, ListPart, Part, Probe, Quantizer, Query, exact_search, ivf_search, n_compared,
};

use crate::live::{Live, Merged};
use crate::live_shard::{Hidden, LiveShard};
use crate::{Shard, Store, StoreError};

/// A shard that may be seen, its place in the snapshot, and its documents that another visible shard holds as well.
pub(crate) struct Visible<'a> {
    pub(crate) id: ShardId,
    index: ShardIndex,
    pub(crate) shard: &'a Shard,
    hidden: Option<&'a Hidden>,
    copies: Vec<u32>,
}

/// The shards that a mask shows, that are live now, and whose sources may be used for this now. A snapshot may list shards that were removed since; they are not looked up
/// anywhere but here, so they give nothing. A text that several visible shards of a source hold counts once.
pub(crate) fn visible<'a>(live: &'a Live, snapshot: &Snapshot, mask: &ShardMask, purpose: Purpose) -> Vec<Visible<'a>> {
    // What a snapshot of now shows is permitted.
    let is_now = live.snapshot.epoch == snapshot.epoch;
    let permitted = |id: ShardId| is_now || live.allows(id, purpose);
    let shown = snapshot.shards.iter().enumerate().filter(|(i, _)| mask.sees(*i));
    let mut out: Vec<Visible<'a>> = shown
        .filter_map(|(i, view)| {
            let LiveShard { shard, hidden, .. } = live.shards.get(&view.id).filter(|_| permitted(view.id))?;
            let hidden = hidden.as_deref();
            Some(Visible { id: view.id, index: ShardIndex(i as u32), shard, hidden, copies: Vec::new() })
        })
        .collect();
    if live.sources.values().all(|s| s.copies.is_empty()) {
        return out;
    }
    let place: HashMap<ShardId, usize> = out.iter().enumerate().map(|(i, v)| (v.id, i)).collect();
    for places in live.sources.values().flat_map(|s| s.copies.values()) {
        let seen = places.iter().filter_map(|(shard, document)| Some((*place.get(shard)?, *document)));
        seen.skip(1).for_each(|(i, document)| out[i].copies.push(document));
    }
    out
}

impl Visible<'_> {
    /// Whether the document at a place of the files may be seen.
    pub(crate) fn shows(&self, document: usize) -> bool {
        let number = self.shard.number_of(document);
        !self.copies.contains(&number) && self.hidden.is_none_or(|hidden| !hidden.holds(number))
    }

    /// Whether all of its documents may be seen.
    pub(crate) fn shows_all(&self) -> bool {
        self.copies.is_empty() && self.hidden.is_none()
    }

    /// Its keys, for the first `n` queries.
    fn part(&self, id: u32, n: usize) -> Part<'_> {
        Part { id, keys: self.shard.keys(), queries: (0..n).collect(), hidden: self.hidden_entries() }
    }

    /// Its inverted lists.
    fn list_part(&self, id: u32) -> Option<ListPart<'_>> {
        let hidden = self.hidden_entries();
        Some(ListPart { id, keys: self.shard.keys(), lists: self.shard.lists()?, hidden })
    }

    /// Its passages.
    fn passages(&self) -> lexical::Part<'_> {
        let n_passages = self.shard.manifest().n_passages;
        let hidden = self.hidden.map(|h| &h.passages);
        lexical::Part { index: self.shard.lexical(), hidden: self.all_hidden(hidden, n_passages, Shard::passages_of) }
    }

    fn hidden_entries(&self) -> Option<Cow<'_, FixedBitSet>> {
        let hidden = self.hidden.map(|h| &h.entries);
        self.all_hidden(hidden, self.shard.manifest().n_entries, Shard::entries_of)
    }

    /// What is hidden of its entries or passages: those of hidden documents, and copies of what another visible shard shows.
    fn all_hidden<'a>(
        &self,
        hidden: Option<&'a FixedBitSet>,
        n: u64,
        range: impl Fn(&Shard, usize) -> Range<u32>,
    ) -> Option<Cow<'a, FixedBitSet>> {
        if self.copies.is_empty() {
            return hidden.map(Cow::Borrowed);
        }
        let mut hidden = hidden.cloned().unwrap_or_else(|| FixedBitSet::with_capacity(n as usize));
        for document in self.copies.iter().filter_map(|&number| self.shard.index_of(number)) {
            let range = range(self.shard, document);
            hidden.insert_range(range.start as usize..range.end as usize);
        }
        Some(Cow::Owned(hidden))
    }
}

fn check_dimensions(live: &Live, queries: &[NeighborQuery<'_>]) -> Result<(), SearchError> {
    for query in queries {
        if query.key.len() != live.key_dim {
            return Err(SearchError::Dimension { got: query.key.len(), expected: live.key_dim });
        }
    }
    Ok(())
}

/// Ties by logical id: source, document, position.
fn by_logical_id(a: (&Shard, u32), b: (&Shard, u32)) -> Ordering {
    let sources = a.0.manifest().source.cmp(&b.0.manifest().source);
    sources.then_with(|| a.0.logical(a.1).cmp(&b.0.logical(b.1)))
}

fn neighbor(visible: &Visible<'_>, c: &Candidate, text: &[TokenId]) -> Neighbor {
    let (value, row, matched) = visible.shard.value_row_matched(c.row, text);
    Neighbor { distance: c.distance, value, shard: visible.index, row, matched }
}

fn vectors<'a>(queries: &[NeighborQuery<'a>]) -> Vec<Query<'a>> {
    queries.iter().map(|query| Query { key: query.key, k: query.k }).collect()
}

/// What a query got.
struct Answer {
    neighbors: Vec<Neighbor>,
    /// Entries by their rows in the files. While these are there, and nothing else comes, the neighbours are what they are.
    rests_on: Vec<(ShardId, u32)>,
}

impl Answer {
    fn new<'a>(
        (nearest, ranked): (&[Candidate], &[Candidate]),
        query: &NeighborQuery<'_>,
        of: impl Fn(u32) -> &'a Visible<'a>,
    ) -> Self {
        Self {
            neighbors: nearest.iter().map(|c| neighbor(of(c.part), c, query.text)).collect(),
            rests_on: ranked.iter().map(|c| (of(c.part).id, c.row)).collect(),
        }
    }

    /// Whether it is also what `now` would say.
    fn holds(&self, before: &Live, now: &Live) -> bool {
        now.only_shrank_since(before) && self.rests_on.iter().all(|(id, row)| now.shows_as(before, *id, *row))
    }
}

impl Store {
    /// Looks at every entry, for queries that see the same shards.
    fn scan_all(&self, key_dim: usize, visible: &[Visible<'_>], queries: &[NeighborQuery<'_>]) -> Vec<Answer> {
        let of = |id: u32| &visible[id as usize];
        let order = |a: (u32, u32), b: (u32, u32)| by_logical_id((of(a.0).shard, a.1), (of(b.0).shard, b.1));
        let parts: Vec<Part<'_>> = visible.iter().zip(0..).map(|(v, id)| v.part(id, queries.len())).collect();
        let found = self.threads().install(|| exact_search(key_dim, &parts, &vectors(queries), &order));
        found.iter().zip(queries).map(|(nearest, query)| Answer::new((nearest, nearest), query, of)).collect()
    }

    /// Looks into inverted lists, for queries that see the same shards.
    fn scan_lists(
        &self,
        merged: &Merged,
        visible: &[Visible<'_>],
        queries: &[NeighborQuery<'_>],
        (probe, quantizer): (Probe, &Quantizer),
    ) -> Vec<Answer> {
        let mut parts: Vec<Option<ListPart<'_>>> = Vec::with_capacity(merged.slots.len());
        let mut of_slot = vec![0; merged.slots.len()];
        // Slots and what is visible are both in the order of the shards' numbers.
        let mut left = visible.iter().enumerate().peekable();
        for (slot, id) in merged.slots.iter().enumerate() {
            while left.next_if(|(_, v)| v.id < *id).is_some() {}
            let found = left.next_if(|(_, v)| v.id == *id);
            parts.push(found.and_then(|(_, v)| v.list_part(slot as u32)));
            of_slot[slot] = found.map_or(0, |(i, _)| i);
        }
        let of = |slot: u32| &visible[of_slot[slot as usize]];
        let order = |a: (u32, u32), b: (u32, u32)| by_logical_id((of(a.0).shard, a.1), (of(b.0).shard, b.1));
        let collection = Collection { merged: &merged.lists, parts: &parts };
        let found = self.threads().install(|| ivf_search(quantizer, collection, &vectors(queries), probe, &order));
        let pairs = found.iter().zip(queries);
        pairs.map(|(found, query)| Answer::new((&found.nearest, &found.ranked), query, of)).collect()
    }
}

impl Store {
    /// The same as [`NeighborSearch::neighbors`], looking less or more hard than the recipe says; exhaustively, whatever the recipe, without a
    /// `probe`. What approximate search is measured against.
    pub fn neighbors_with(
        &self,
        queries: &[NeighborQuery<'_>],
        probe: Option<Probe>,
    ) -> Result<Vec<Vec<Neighbor>>, SearchError> {
        let lists = probe.zip(self.recipe().quantizer().map(|(_, quantizer)| quantizer));
        Ok(self.search(queries, lists, &|| ())?.0)
    }

    /// The same as [`NeighborSearch::neighbors_as_of`], with something that happens in the midst of it: what streams meet that search while
    /// something is withdrawn.
    pub fn neighbors_across(
        &self,
        queries: &[NeighborQuery<'_>],
        happens: &dyn Fn(),
    ) -> Result<(Vec<Vec<Neighbor>>, Epoch), SearchError> {
        self.search(queries, self.recipe().quantizer().map(|(ivf, quantizer)| (ivf.probe(), quantizer)), happens)
    }

    /// How many entries' codes a search for a key in so many lists compares; `None` where all keys are.
    pub fn n_compared(&self, key: &[f32], n_probe: usize) -> Option<usize> {
        let live = self.live();
        let ((_, quantizer), merged) = self.recipe().quantizer().zip(live.merged.as_deref())?;
        Some(n_compared(quantizer, &merged.lists, key, n_probe))
    }

    /// Answers of the store as it is at the end. A withdrawal that comes in the midst of a search touches few of its answers: the others hold.
    fn search(
        &self,
        queries: &[NeighborQuery<'_>],
        lists: Option<(Probe, &Quantizer)>,
        happens: &dyn Fn(),
    ) -> Result<(Vec<Vec<Neighbor>>, Epoch), SearchError> {
        let before = Arc::clone(&self.live());
        let mut answers = self.search_in(&before, queries, lists)?;
        happens();
        let now = Arc::clone(&self.live());
        if now.snapshot.epoch != before.snapshot.epoch {
            let touched: Vec<usize> = (0..queries.len()).filter(|&i| !answers[i].holds(&before, &now)).collect();
            let again: Vec<NeighborQuery<'_>> = touched.iter().map(|&i| queries[i]).collect();
            for (i, answer) in touched.into_iter().zip(self.search_in(&now, &again, lists)?) {
                answers[i] = answer;
            }
        }
        Ok((answers.into_iter().map(|answer| answer.neighbors).collect(), now.snapshot.epoch))
    }

    fn search_in(
        &self,
        live: &Live,
        queries: &[NeighborQuery<'_>],
        lists: Option<(Probe, &Quantizer)>,
    ) -> Result<Vec<Answer>, SearchError> {
        check_dimensions(live, queries)?;
        let mut out: Vec<(usize, Answer)> = Vec::with_capacity(queries.len());
        let mut left: Vec<usize> = (0..queries.len()).collect();
        while let Some(&first) = left.first() {
            let (snapshot, mask) = (queries[first].snapshot, queries[first].mask);
            let alike = |&i: &usize| std::ptr::eq(queries[i].snapshot, snapshot) && queries[i].mask == mask;
            let (group, rest): (Vec<usize>, Vec<usize>) = left.into_iter().partition(alike);
            left = rest;
            let asked: Vec<NeighborQuery<'_>> = group.iter().map(|&i| queries[i]).collect();
            let visible = visible(live, snapshot, mask, Purpose::Knn);
            let found = match lists.zip(live.merged.as_deref()) {
                Some((recipe, merged)) => self.scan_lists(merged, &visible, &asked, recipe),
                None => self.scan_all(live.key_dim, &visible, &asked),
            };
            out.extend(group.into_iter().zip(found));
        }
        out.sort_by_key(|(i, _)| *i);
        Ok(out.into_iter().map(|(_, answer)| answer).collect())
    }
}

impl NeighborSearch for Store {
    fn neighbors_as_of(&self, queries: &[NeighborQuery<'_>]) -> Result<(Vec<Vec<Neighbor>>, Epoch), SearchError> {
        self.neighbors_across(queries, &|| ())
    }

    fn place(&self, snapshot: &Snapshot, neighbor: &Neighbor) -> Option<(ContentHash, u32)> {
        let live = self.live();
        let found = live.shards.get(&snapshot.shards.get(neighbor.shard.0 as usize)?.id)?;
        let (document, value) = found.shard.place(found.shard.row_of(neighbor.row)?);
        let shown = !found.hides(found.shard.number_of(document));
        shown.then(|| (found.shard.hash_of(document), value as u32))
    }

    fn entry(&self, snapshot: &Snapshot, neighbor: &Neighbor, context_tokens: usize) -> Option<Entry> {
        let view = snapshot.shards.get(neighbor.shard.0 as usize)?;
        let live = self.live();
        let found = live.shards.get(&view.id)?;
        let shard = &found.shard;
        let (document, value) = shard.place(shard.row_of(neighbor.row)?);
        let tokens = shard.tokens_of(document);
        let stored = shard.document(document).ok()?;
        if found.hides(stored.number) {
            return None;
        }
        let from = value.saturating_sub(context_tokens);
        Some(Entry {
            source: view.source.id.clone(),
            document: stored.hash,
            position: value as u32,
            uri: stored.document.uri,
            title: stored.document.title,
            context: text(self.tokenizer(), &tokens[from..value]),
            continuation: text(self.tokenizer(), &tokens[value..=value]),
        })
    }
}

impl PassageSearch for Store {
    fn passages(&self, query: &PassageQuery<'_>) -> Result<Vec<Passage>, SearchError> {
        let live = self.live();
        let visible = visible(&live, query.snapshot, query.mask, Purpose::Context);
        // Ties by logical id: source, document, start.
        let logical = |(part, passage): (u32, u32)| {
            let shard = visible[part as usize].shard;
            let (document, start, _) = shard.passage(passage);
            (&shard.manifest().source, shard.hash_of(document), start)
        };
        let parts: Vec<lexical::Part<'_>> = visible.iter().map(Visible::passages).collect();
        let order = |a, b| logical(a).cmp(&logical(b));
        let hits = lexical::search(&parts, query.text, query.k, self.recipe().bm25, &order)
            .map_err(|e| SearchError::Passages { reason: e.to_string() })?;
        let passage = |hit: &Hit| {
            let Visible { index, shard, .. } = &visible[hit.part as usize];
            let (document, start, tokens) = shard.passage(hit.passage);
            let failed = |e: StoreError| SearchError::Passages { reason: e.to_string() };
            let stored = shard.document(document).map_err(failed)?;
            Ok(Passage {
                score: hit.score,
                shard: *index,
                document: stored.hash,
                start,
                tokens: tokens.to_vec(),
                uri: stored.document.uri,
                title: stored.document.title,
            })
        };
        hits.iter().map(passage).collect()
    }
}

fn text(tokenizer: &dyn Tokenizer, tokens: &[u32]) -> String {
    let mut detokenizer = Detokenizer::default();
    let mut out: String = tokens.iter().map(|&t| detokenizer.push(tokenizer.bytes(t))).collect();
    out += &detokenizer.finish();
    out
}
