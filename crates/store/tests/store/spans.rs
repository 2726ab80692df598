//! Runs of words against a look everywhere.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::AtomicBool;

use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use silo_core::{Filter, Purpose, Selection, SnapshotProvider, units};
use silo_store::{SpanQuery, Store};

use super::{add, open, purge};

const WORDS: [&str; 5] = ["Ant", "bee", "cat,", "dog", "eel"];

fn words(rng: &mut ChaCha8Rng, n: usize) -> String {
    (0..n).map(|_| *WORDS.choose(rng).unwrap()).collect::<Vec<_>>().join(" ")
}

/// What stands in the live documents, each text of a source once.
fn live_units(store: &Store, filter: &Filter) -> BTreeMap<(String, String), Vec<u32>> {
    let snapshot = store.snapshot();
    let mask = snapshot.mask(filter, Purpose::Knn);
    let mut out = BTreeMap::new();
    for (_, view) in snapshot.shards.iter().enumerate().filter(|(i, _)| mask.sees(*i)) {
        for stored in store.documents(view.id).unwrap() {
            let units = units::units(&stored.document.text);
            out.insert((view.source.id.to_string(), stored.hash.to_string()), units);
        }
    }
    out
}

type Run = (Range<usize>, u64, u64, Vec<(String, String)>);

/// Runs that stand somewhere and in no longer one that does: as ranges of words, with their places, rarity in millionths, and documents.
fn slowly(documents: &BTreeMap<(String, String), Vec<u32>>, text: &[u32], min_words: usize) -> Vec<Run> {
    let places = |run: &[u32]| {
        documents.values().map(|d| d.windows(run.len()).filter(|w| *w == run).count() as u64).sum::<u64>()
    };
    let all: usize = documents.values().map(Vec::len).sum();
    let mut out: Vec<Run> = Vec::new();
    for start in 0..text.len() {
        let longest = (1..=text.len() - start).take_while(|n| places(&text[start..start + n]) > 0).last().unwrap_or(0);
        let range = start..start + longest;
        if longest < min_words || out.iter().any(|(other, ..)| other.end >= range.end) {
            continue;
        }
        let run = &text[range.clone()];
        let rarity: f64 = run.iter().map(|w| -(places(&[*w]) as f64 / all as f64).ln()).sum();
        let holds =
            |(id, d): (&(String, String), &Vec<u32>)| d.windows(run.len()).any(|w| w == run).then(|| id.clone());
        out.push((range, places(run), (rarity * 1e6).round() as u64, documents.iter().filter_map(holds).collect()));
    }
    out
}

fn found(store: &Store, filter: &Filter, text: &str, min_words: usize) -> Vec<Run> {
    let query = SpanQuery {
        text,
        filter,
        min_words,
        max_spans: 1000,
        max_documents: 1000,
        context_words: 2,
        cancel: &AtomicBool::new(false),
    };
    let at: Vec<Range<usize>> = units::words(text).map(|word| word.at).collect();
    let (_, spans) = store.find_spans(&query).unwrap();
    assert!(spans.is_sorted_by(|a, b| a.rarity >= b.rarity), "the rarest first");
    let mut out: Vec<Run> = (spans.into_iter())
        .map(|span| {
            let first = at.iter().position(|w| w.start == span.at.start).unwrap();
            let mut documents: Vec<(String, String)> =
                span.documents.iter().map(|d| (d.source.to_string(), d.document.to_string())).collect();
            documents.sort_unstable();
            for d in &span.documents {
                assert_eq!(units::units(&d.context[1]), units::units(&text[span.at.clone()]));
                assert_eq!(d.exact, d.context[1] == text[span.at.clone()]);
            }
            (first..first + span.n_words, span.n_places, (span.rarity * 1e6).round() as u64, documents)
        })
        .collect();
    out.sort_by_key(|(range, ..)| range.start);
    out
}

#[test]
fn the_longest_runs_of_what_may_be_seen_are_found() {
    let mut n_found = 0;
    for seed in 0..6 {
        let (root, mut rng) = (tempfile::tempdir().unwrap(), ChaCha8Rng::seed_from_u64(seed));
        let store = open(root.path());
        let twice = words(&mut rng, 9);
        for name in ["one", "one", "two", "two"] {
            let n = rng.random_range(1..5);
            let mut texts: Vec<String> = (0..n)
                .map(|_| {
                    let n = rng.random_range(1..25);
                    words(&mut rng, n)
                })
                .collect();
            texts.push(twice.clone());
            texts.sort_unstable();
            texts.dedup();
            add(&store, name, &texts.iter().map(String::as_str).collect::<Vec<_>>()).unwrap();
        }
        for round in 0..5 {
            let deny = Filter { deny_sources: vec!["two".parse().unwrap()], ..Filter::default() };
            for filter in [Filter::default(), deny] {
                let live = live_units(&store, &filter);
                for _ in 0..4 {
                    let (n, min_words) = (rng.random_range(1..30), rng.random_range(1..5));
                    let text = words(&mut rng, n);
                    let expected = slowly(&live, &units::units(&text), min_words);
                    n_found += expected.len();
                    assert_eq!(
                        found(&store, &filter, &text, min_words),
                        expected,
                        "seed {seed}, round {round}: {text}"
                    );
                }
            }
            let snapshot = store.snapshot();
            let Some(shard) = snapshot.shards.choose(&mut rng) else { break };
            let victim = store.documents(shard.id).unwrap().choose(&mut rng).unwrap().hash;
            let selection = Selection::Documents { source: shard.source.id.clone(), documents: vec![victim] };
            store.by("test").withdraw(&selection).unwrap();
            if rng.random_bool(0.3) {
                purge(&store);
            }
        }
    }
    assert!(n_found > 300, "{n_found} runs");
}

#[test]
fn long_runs_are_found_as_one() {
    let (root, mut rng) = (tempfile::tempdir().unwrap(), ChaCha8Rng::seed_from_u64(9));
    let store = open(root.path());
    let (long, other) = (words(&mut rng, 1300), words(&mut rng, 700));
    add(&store, "one", &[&long, &other, &format!("{other} and more")]).unwrap();
    let text = format!("nothing {long} nothing {other} nothing");
    let expected = slowly(&live_units(&store, &Filter::default()), &units::units(&text), 600);
    assert_eq!(expected.iter().map(|(range, n, ..)| (range.len(), *n)).collect::<Vec<_>>(), [(1300, 1), (700, 2)]);
    assert_eq!(found(&store, &Filter::default(), &text, 600), expected);
}
