//! What a search should find, by looking at everything.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;

use silo_core::{ContentHash, LanguageModel, SourceId, Tokenizer};
use silo_store::{Bm25, Recipe, encode};
use silo_testkit::ByteTokenizer;
use silo_vector::{Collection, Keys, ListPart, Lists, MergedLists, Query, ivf_search, squared_l2};

use super::super::reference::Visible;

/// Neighbours without row numbers: distance, value, source, document, position.
pub type Found = Vec<(u32, u32, SourceId, ContentHash, u32)>;

/// Passages without row numbers: score, source, document, start.
pub type FoundPassages = Vec<(u64, SourceId, ContentHash, u32)>;

/// All entries of the documents: where each is, its value, and its key.
struct Entries {
    places: Vec<(SourceId, ContentHash, u32, u32)>,
    keys: Vec<f32>,
}

fn entries(model: &dyn LanguageModel, recipe: &Recipe, visible: &Visible<'_>) -> Entries {
    let tokenizer = ByteTokenizer::default();
    let mut out = Entries { places: Vec::new(), keys: Vec::new() };
    for ((source, hash), text) in visible {
        let tokens = tokenizer.encode(text).unwrap();
        let never = AtomicBool::new(false);
        let encoded = encode(model, tokenizer.beginning_of_text(), &[&tokens], recipe, &never).unwrap().remove(0);
        for (value, token) in tokens.iter().enumerate().skip(encoded.first_value) {
            out.places.push((source.clone(), *hash, value as u32, *token));
        }
        out.keys.extend(&encoded.keys.data);
    }
    out
}

pub fn neighbors(model: &dyn LanguageModel, recipe: &Recipe, visible: &Visible<'_>, query: &[f32], k: usize) -> Found {
    let all = entries(model, recipe, visible);
    let dim = model.card().key_dim;
    let ranked: Vec<(f32, usize)> = match recipe.quantizer() {
        None => {
            let mut ranked: Vec<(f32, usize)> =
                all.keys.chunks(dim).map(|key| squared_l2(query, key)).zip(0..).collect();
            ranked.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
            ranked
        }
        Some((ivf, quantizer)) => {
            let (lists, codes) = quantizer.encode(&all.keys);
            let width = quantizer.projected();
            let (mut offsets, mut rows, mut sorted) = (vec![0], Vec::new(), Vec::new());
            for list in 0..quantizer.n_lists() as u32 {
                for row in (0..lists.len()).filter(|&r| lists[r] == list) {
                    rows.push(row as u32);
                    sorted.extend(&codes[row * width..][..width]);
                }
                offsets.push(rows.len() as u32);
            }
            let lists = Lists { offsets: &offsets, rows: &rows, codes: &sorted };
            let part = ListPart { id: 0, keys: Keys::F32(&all.keys), lists, hidden: None };
            let merged = MergedLists::new(quantizer.n_lists(), &[Some(lists)]);
            let collection = Collection { merged: &merged, parts: &[Some(part)] };
            let found = ivf_search(quantizer, collection, &[Query { key: query, k }], ivf.probe(), &|a, b| a.cmp(&b));
            found[0].nearest.iter().map(|c| (c.distance, c.row as usize)).collect()
        }
    };
    let describe = |&(distance, row): &(f32, usize)| {
        let (source, hash, position, value) = all.places[row].clone();
        (distance.to_bits(), value, source, hash, position)
    };
    ranked.iter().take(k).map(describe).collect()
}

fn words(text: &str) -> Vec<String> {
    let split = text.split(|c: char| !c.is_alphanumeric());
    split.filter(|w| !w.is_empty()).map(str::to_lowercase).collect()
}

/// BM25 by the formula, over a flat list of passages.
pub fn passages(recipe: &Recipe, visible: &Visible<'_>, query: &str, k: usize) -> FoundPassages {
    let tokenizer = ByteTokenizer::default();
    let mut all = Vec::new();
    for ((source, hash), text) in visible {
        let tokens = tokenizer.encode(text).unwrap();
        let mut start = 0;
        while start < tokens.len() {
            let end = tokens.len().min(start + recipe.passage_tokens);
            all.push((source.clone(), *hash, start as u32, words(&tokenizer.decode(&tokens[start..end]))));
            if end == tokens.len() {
                break;
            }
            start += recipe.passage_stride_tokens;
        }
    }
    let n_words: usize = all.iter().map(|p| p.3.len()).sum();
    let average = n_words as f64 / all.len().max(1) as f64;
    let mut counts: BTreeMap<String, u32> = BTreeMap::new();
    words(query).into_iter().for_each(|w| *counts.entry(w).or_default() += 1);
    let Bm25 { k1, b } = recipe.bm25;
    let mut scores = vec![0.0f64; all.len()];
    for (word, count) in counts {
        let tf: Vec<f64> = all.iter().map(|p| p.3.iter().filter(|w| **w == word).count() as f64).collect();
        let df = tf.iter().filter(|&&n| n > 0.0).count() as f64;
        let idf = (1.0 + (all.len() as f64 - df + 0.5) / (df + 0.5)).ln();
        for (i, tf) in tf.into_iter().enumerate().filter(|(_, tf)| *tf > 0.0) {
            let norm = k1 * (1.0 - b + b * all[i].3.len() as f64 / average);
            scores[i] += f64::from(count) * idf * tf * (k1 + 1.0) / (tf + norm);
        }
    }
    let mut ranked: Vec<usize> = (0..all.len()).filter(|&i| scores[i] > 0.0).collect();
    ranked.sort_by(|&x, &y| scores[y].total_cmp(&scores[x]).then(x.cmp(&y)));
    let describe = |i: usize| (scores[i].to_bits(), all[i].0.clone(), all[i].1, all[i].2);
    ranked.into_iter().take(k).map(describe).collect()
}
