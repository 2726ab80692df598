//! How fast texts are generated, and how much of exact search an approximate one finds.

use std::collections::HashSet;
use std::time::Instant;

use serde::Serialize;
use silo_core::{
    Filter, Neighbor, NeighborQuery, NeighborSearch, Purpose, SearchError, SnapshotProvider, TokenId,
    sampling::SamplingParameters,
};
use silo_engine::{Engine, Event, GenerateRequest, Mode, Retrieval};
use silo_store::Store;

use crate::EvalError;

/// Tokens per second of one mode at one batch size.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DecodeSpeed {
    /// The mode.
    pub mode: String,
    /// Texts generated at the same time.
    pub batch: usize,
    /// New tokens of each.
    pub new_tokens: usize,
    /// New tokens of all texts per second from the first token of the last to begin until the end, per run: decoding alone.
    pub decode_tokens_per_second: Vec<f64>,
    /// The same from submission on: prompt and first retrieval included.
    pub total_tokens_per_second: Vec<f64>,
}

/// Generates `batch` texts at a time from the prompts, greedily, `runs` times.
pub fn decode_speed(
    engine: &Engine,
    prompts: &[Vec<TokenId>],
    mode: Mode,
    batch: usize,
    new_tokens: usize,
    runs: usize,
) -> Result<DecodeSpeed, EvalError> {
    let (mut decode, mut total) = (Vec::new(), Vec::new());
    for run in 0..runs {
        let start = Instant::now();
        let mut streams = Vec::new();
        for i in 0..batch {
            let mut request = GenerateRequest::new(prompts[(run * batch + i) % prompts.len()].clone(), new_tokens);
            request.sampling = SamplingParameters { temperature: 0.0, ..SamplingParameters::default() };
            request.retrieval = Retrieval { mode, ..Retrieval::default() };
            streams.push(engine.generate(request)?);
        }
        let (mut n_tokens, mut after_first, mut last_first) = (0usize, 0usize, start);
        let readers: Vec<_> = streams
            .into_iter()
            .map(|mut stream| {
                std::thread::spawn(move || {
                    let mut times = Vec::new();
                    while let Some(event) = stream.blocking_next() {
                        match event {
                            Event::Token(..) => times.push(Instant::now()),
                            Event::Finished(_) => {}
                            Event::Failed(e) => return Err(e),
                        }
                    }
                    Ok(times)
                })
            })
            .collect();
        let mut all = Vec::new();
        for reader in readers {
            let times = reader.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            last_first = times.first().copied().into_iter().chain([last_first]).max().unwrap_or(last_first);
            n_tokens += times.len();
            all.extend(times);
        }
        let end = all.iter().copied().max().unwrap_or(start);
        after_first += all.iter().filter(|t| **t > last_first).count();
        decode.push(after_first as f64 / (end - last_first).as_secs_f64().max(1e-9));
        total.push(n_tokens as f64 / (end - start).as_secs_f64().max(1e-9));
    }
    let mode = format!("{mode:?}");
    Ok(DecodeSpeed { mode, batch, new_tokens, decode_tokens_per_second: decode, total_tokens_per_second: total })
}

/// How an approximate search compares to an exact one over the same queries.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SearchQuality {
    /// Neighbours asked for.
    pub k: usize,
    /// Queries.
    pub n_queries: usize,
    /// Share of the exact k neighbours that were found.
    pub recall: f64,
    /// Share of queries whose nearest neighbour was found.
    pub recall_of_nearest: f64,
    /// Entries whose codes a query is compared with, on average; all of them without lists.
    pub compared: f64,
    /// Milliseconds per query, one at a time: the store's search.
    pub milliseconds: f64,
    /// The same, 32 queries at a time.
    pub milliseconds_in_batches: f64,
    /// The same of exact search.
    pub exact_milliseconds: f64,
}

/// Queries of a batch.
const BATCH: usize = 32;

/// Searches for each key in the whole store, in the store's way and exactly.
pub fn search_quality(store: &Store, keys: &[&[f32]], k: usize) -> Result<SearchQuality, SearchError> {
    let snapshot = store.snapshot();
    let mask = snapshot.mask(&Filter::default(), Purpose::Knn);
    let query = |key| [NeighborQuery { snapshot: &snapshot, mask: &mask, key, k }];
    let (mut found, mut nearest, mut wanted) = (0usize, 0usize, 0usize);
    let (mut seconds, mut exact_seconds) = (0.0, 0.0);
    let n_entries: u64 = snapshot.shards.iter().map(|s| s.n_entries).sum();
    let mut compared = 0;
    for key in keys {
        compared += store.n_compared(key).unwrap_or(n_entries as usize);
        let start = Instant::now();
        let got = store.neighbors(&query(key))?.remove(0);
        seconds += start.elapsed().as_secs_f64();
        let start = Instant::now();
        let exact = store.exact_neighbors(&query(key))?.remove(0);
        exact_seconds += start.elapsed().as_secs_f64();
        let id = |n: &Neighbor| (n.shard, n.row);
        let set: HashSet<_> = got.iter().map(id).collect();
        found += exact.iter().filter(|n| set.contains(&id(n))).count();
        nearest += usize::from(exact.first().is_some_and(|n| set.contains(&id(n))));
        wanted += exact.len();
    }
    let n = keys.len().max(1) as f64;
    let start = Instant::now();
    for batch in keys.chunks(BATCH) {
        let queries: Vec<_> = batch.iter().flat_map(|key| query(key)).collect();
        store.neighbors(&queries)?;
    }
    let milliseconds_in_batches = start.elapsed().as_secs_f64() * 1e3 / n;
    Ok(SearchQuality {
        k,
        n_queries: keys.len(),
        recall: found as f64 / wanted.max(1) as f64,
        recall_of_nearest: nearest as f64 / n,
        compared: compared as f64 / n,
        milliseconds: seconds * 1e3 / n,
        milliseconds_in_batches,
        exact_milliseconds: exact_seconds * 1e3 / n,
    })
}
