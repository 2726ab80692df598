//! Search over the live shards of a snapshot: the one place where liveness is decided for every read.

use std::cmp::Ordering;
use std::sync::Arc;

use silo_core::{
    Detokenizer, Entry, Neighbor, NeighborQuery, NeighborSearch, Passage, PassageQuery, PassageSearch, SearchError,
    ShardIndex, ShardView, Snapshot, Tokenizer,
};
use silo_lexical::{Hit, PassageIndex, search};
use silo_vector::{Part, Query, exact_search};

use crate::store::Live;
use crate::{Shard, Store, StoreError};

/// A shard that some query of a batch may see: its place among the parts is its place in the list.
struct Visible {
    shard: Arc<Shard>,
    queries: Vec<usize>,
}

/// Where a shard stands in a snapshot.
fn place(live: &Live, snapshot: &Snapshot, shard: &Arc<Shard>) -> Option<ShardIndex> {
    let ours = |id| live.shards.get(id).is_some_and(|s| Arc::ptr_eq(s, shard));
    snapshot.shards.iter().position(|view| ours(&view.id)).map(|i| ShardIndex(i as u32))
}

/// The shards that the queries may see and that are live now. A snapshot may list shards that were removed since; they are
/// not looked up anywhere but here, so they give nothing.
fn visible(live: &Live, queries: &[NeighborQuery<'_>]) -> Vec<Visible> {
    let mut out: Vec<Visible> = Vec::new();
    for (number, query) in queries.iter().enumerate() {
        for (index, view) in query.snapshot.shards.iter().enumerate() {
            if !query.mask.sees(index) {
                continue;
            }
            let Some(shard) = live.shards.get(&view.id) else { continue };
            match out.iter_mut().find(|v| Arc::ptr_eq(&v.shard, shard)) {
                Some(v) => v.queries.push(number),
                None => out.push(Visible { shard: shard.clone(), queries: vec![number] }),
            }
        }
    }
    out
}

fn check_dimensions(live: &Live, queries: &[NeighborQuery<'_>]) -> Result<(), SearchError> {
    for query in queries {
        if query.key.len() != live.key_dim {
            return Err(SearchError::Dimension { got: query.key.len(), expected: live.key_dim });
        }
    }
    Ok(())
}

impl NeighborSearch for Store {
    fn neighbors(&self, queries: &[NeighborQuery<'_>]) -> Result<Vec<Vec<Neighbor>>, SearchError> {
        let live = self.live();
        check_dimensions(&live, queries)?;
        let visible = visible(&live, queries);
        let parts: Vec<Part<'_>> = visible
            .iter()
            .enumerate()
            .map(|(id, v)| Part { id: id as u32, keys: v.shard.keys(), queries: v.queries.clone() })
            .collect();
        let vectors: Vec<Query<'_>> = queries.iter().map(|q| Query { key: q.key, k: q.k }).collect();
        // Ties by logical id: source, document, position.
        let order = |a: (u32, u32), b: (u32, u32)| -> Ordering {
            let (sa, sb) = (&visible[a.0 as usize].shard, &visible[b.0 as usize].shard);
            let sources = sa.manifest().source.cmp(&sb.manifest().source);
            sources.then_with(|| sa.logical(a.1).cmp(&sb.logical(b.1)))
        };
        let found = self.threads().install(|| exact_search(live.key_dim, &parts, &vectors, &order));
        let neighbors = queries.iter().zip(found).map(|(query, candidates)| {
            let mut places: Vec<Option<Option<ShardIndex>>> = vec![None; visible.len()];
            let neighbor = |c: silo_vector::Candidate| {
                let shard = (*places[c.part as usize]
                    .get_or_insert_with(|| place(&live, query.snapshot, &visible[c.part as usize].shard)))?;
                let value = visible[c.part as usize].shard.value(c.row);
                Some(Neighbor { distance: c.distance, value, shard, row: c.row })
            };
            candidates.into_iter().filter_map(neighbor).collect()
        });
        Ok(neighbors.collect())
    }

    fn entry(&self, snapshot: &Snapshot, neighbor: &Neighbor, context_tokens: usize) -> Option<Entry> {
        let view = snapshot.shards.get(neighbor.shard.0 as usize)?;
        let live = self.live();
        let shard = live.shards.get(&view.id)?;
        let (document, value) = shard.place(neighbor.row);
        let tokens = shard.tokens_of(document);
        let stored = shard.document(document).ok()?;
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
        let shown = |(i, _): &(usize, &ShardView)| query.mask.sees(*i);
        let visible: Vec<(ShardIndex, Arc<Shard>)> = (query.snapshot.shards.iter().enumerate().filter(shown))
            .filter_map(|(i, view)| Some((ShardIndex(i as u32), live.shards.get(&view.id)?.clone())))
            .collect();
        // Ties by logical id: source, document, start.
        let logical = |(part, passage): (u32, u32)| {
            let shard = &visible[part as usize].1;
            let (document, start, _) = shard.passage(passage);
            (&shard.manifest().source, shard.hash_of(document), start)
        };
        let parts: Vec<&PassageIndex> = visible.iter().map(|(_, shard)| shard.lexical()).collect();
        let order = |a, b| logical(a).cmp(&logical(b));
        let hits = search(&parts, query.text, query.k, self.recipe().bm25, &order)
            .map_err(|e| SearchError::Passages { reason: e.to_string() })?;
        let passage = |hit: &Hit| {
            let (index, shard) = &visible[hit.part as usize];
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
