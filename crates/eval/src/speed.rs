//! How fast texts are generated, and how much of exact search an approximate one finds.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Instant;

use serde::Serialize;
use silo_core::{
    Filter, Neighbor, NeighborQuery, NeighborSearch, Purpose, SearchError, ShardIndex, ShardMask, Snapshot,
    SnapshotProvider, TokenId, sampling::SamplingParameters,
};
use silo_engine::{Engine, Event, GenerateRequest, Mode, Retrieval};
use silo_store::{Ivf, Probe, Store};

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
    /// What is found by looking into fewer or more lists.
    pub by_lists: Vec<Effort>,
}

/// What a search finds, by how hard it looks.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Effort {
    /// Lists that a query looks into.
    pub n_probe: usize,
    /// Entries whose codes a query is compared with, on average.
    pub compared: f64,
    /// Share of the exact k neighbours that were found.
    pub recall: f64,
    /// Milliseconds per query, one at a time.
    pub milliseconds: f64,
}

/// Queries of a batch.
const BATCH: usize = 32;

/// Looks for the neighbours of keys in a store as it is now.
struct Searches<'a> {
    store: &'a Store,
    snapshot: Arc<Snapshot>,
    mask: ShardMask,
    keys: &'a [&'a [f32]],
    k: usize,
}

/// What searches found for each key, and how many milliseconds one took on average.
type Searched = (Vec<Vec<Neighbor>>, f64);

impl Searches<'_> {
    fn one_at_a_time(
        &self,
        search: impl Fn(&[NeighborQuery<'_>]) -> Result<Vec<Vec<Neighbor>>, SearchError>,
    ) -> Result<Searched, SearchError> {
        let start = Instant::now();
        let found = self.keys.iter().map(|key| Ok(search(&self.queries(&[key]))?.remove(0)));
        let found = found.collect::<Result<_, SearchError>>()?;
        Ok((found, self.milliseconds(start)))
    }

    fn queries<'a>(&'a self, keys: &[&'a [f32]]) -> Vec<NeighborQuery<'a>> {
        let Self { snapshot, mask, k, .. } = self;
        keys.iter().map(|key| NeighborQuery { snapshot, mask, key, k: *k, text: &[] }).collect()
    }

    fn milliseconds(&self, since: Instant) -> f64 {
        since.elapsed().as_secs_f64() * 1e3 / self.keys.len().max(1) as f64
    }

    /// Codes that are compared per key; all entries without lists.
    fn compared(&self, n_probe: Option<usize>) -> f64 {
        let all: u64 = self.snapshot.shards.iter().map(|s| s.n_entries).sum();
        let of = |key: &&[f32]| n_probe.and_then(|n| self.store.n_compared(key, n)).unwrap_or(all as usize);
        self.keys.iter().map(of).sum::<usize>() as f64 / self.keys.len().max(1) as f64
    }
}

fn id(n: &Neighbor) -> (ShardIndex, u32) {
    (n.shard, n.row)
}

/// Share of the exact neighbours that were found.
fn recall(found: &[Vec<Neighbor>], exact: &[Vec<Neighbor>]) -> f64 {
    let wanted: usize = exact.iter().map(Vec::len).sum();
    let in_both = |(found, exact): (&Vec<Neighbor>, &Vec<Neighbor>)| {
        let found: HashSet<_> = found.iter().map(id).collect();
        exact.iter().filter(|n| found.contains(&id(n))).count()
    };
    found.iter().zip(exact).map(in_both).sum::<usize>() as f64 / wanted.max(1) as f64
}

/// Searches for each key in the whole store, in the store's way and exactly, and by looking into other numbers of lists.
pub fn search_quality(
    store: &Store,
    keys: &[&[f32]],
    k: usize,
    n_probes: &[usize],
) -> Result<SearchQuality, SearchError> {
    let snapshot = store.snapshot();
    let mask = snapshot.mask(&Filter::default(), Purpose::Knn);
    let searches = Searches { store, snapshot, mask, keys, k };
    let (exact, exact_milliseconds) = searches.one_at_a_time(|q| store.neighbors_with(q, None))?;
    let (found, milliseconds) = searches.one_at_a_time(|q| store.neighbors(q))?;
    let start = Instant::now();
    for batch in keys.chunks(BATCH) {
        store.neighbors(&searches.queries(batch))?;
    }
    let milliseconds_in_batches = searches.milliseconds(start);
    let ivf = store.recipe().ivf.as_ref();
    let effort = |(ivf, &n_probe): (&Ivf, &usize)| {
        let probe = Probe { n_probe, ..ivf.probe() };
        let (found, milliseconds) = searches.one_at_a_time(|q| store.neighbors_with(q, Some(probe)))?;
        let (compared, recall) = (searches.compared(Some(n_probe)), recall(&found, &exact));
        Ok(Effort { n_probe, compared, recall, milliseconds })
    };
    let by_lists = ivf.iter().flat_map(|ivf| n_probes.iter().map(move |n| (*ivf, n))).map(effort);
    let first_is_found = |(found, exact): &(&Vec<Neighbor>, &Vec<Neighbor>)| {
        exact.first().is_some_and(|first| found.iter().any(|n| id(n) == id(first)))
    };
    Ok(SearchQuality {
        k,
        n_queries: keys.len(),
        recall: recall(&found, &exact),
        recall_of_nearest: found.iter().zip(&exact).filter(first_is_found).count() as f64 / keys.len().max(1) as f64,
        compared: searches.compared(ivf.map(|ivf| ivf.n_probe)),
        milliseconds,
        milliseconds_in_batches,
        exact_milliseconds,
        by_lists: by_lists.collect::<Result<_, SearchError>>()?,
    })
}
