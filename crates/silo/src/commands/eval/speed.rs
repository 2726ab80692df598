//! `silo bench`.

use std::fmt::Write;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use anyhow::{Context, Result};
use serde_json::json;
use silo_core::TokenId;
use silo_engine::Mode;
use silo_eval::{DecodeSpeed, Effort, SearchQuality, decode_speed, search_quality};
use silo_store::{NewShard, Store, encode};

use super::{Bench, Ground};
use crate::{output, wiring};

pub fn run(command: &Bench, as_json: bool) -> Result<()> {
    let run = &command.run;
    let ground = Ground::open(&run.config)?;
    let speed = ground.config.eval.speed.clone();
    let texts = ground.domains.iter().flat_map(|d| &d.test).map(|t| t.tokens.as_slice());
    let long_enough = texts.filter(|t| t.len() >= speed.prompt_tokens);
    let prompts: Vec<Vec<TokenId>> = long_enough.map(|t| t[..speed.prompt_tokens].to_vec()).collect();
    anyhow::ensure!(!prompts.is_empty(), "no test text has {} tokens", speed.prompt_tokens);
    let mut decoding = Vec::new();
    for &batch in &speed.batches {
        for mode in [Mode::Parametric, Mode::Knn, Mode::Context, Mode::KnnAndContext] {
            eprintln!("decoding: {mode:?}, batch {batch}");
            decoding.push(decode_speed(&ground.engine, &prompts, mode, batch, speed.new_tokens, speed.runs)?);
        }
    }
    let keys = sample_keys(&ground, speed.queries)?;
    let sample: Vec<&[f32]> = keys.iter().map(Vec::as_slice).collect();
    eprintln!("searching {} keys", sample.len());
    if let Some(path) = &command.queries_output {
        let bytes: Vec<u8> = sample.iter().flat_map(|k| k.iter().flat_map(|x| x.to_le_bytes())).collect();
        std::fs::write(path, bytes).with_context(|| format!("cannot write {}", path.display()))?;
    }
    let quality = search_quality(&ground.store, &sample, speed.k, &speed.n_probe)?;
    let memory = resident_bytes();
    eprintln!("building a shard");
    let building = build_speed(&ground)?;
    let facts = ground.facts(&run.config);
    let n_bytes: u64 = shard_bytes(&ground);
    let ready = start_to_ready(ground)?;
    let whole = json!({
        "made": facts, "decoding": decoding, "search": quality, "building": building, "n_bytes_on_disk": n_bytes,
        "resident_bytes": memory, "start_to_ready_seconds": ready,
    });
    std::fs::create_dir_all(&run.output).with_context(|| format!("cannot make {}", run.output.display()))?;
    output::file(&run.output.join("speed.json"), format!("{whole:#}\n"))?;
    let table = markdown(&whole, &decoding, &quality);
    output::file(&run.output.join("speed.md"), &table)?;
    if as_json {
        output::json(&whole)
    } else {
        print!("{table}");
        Ok(())
    }
}

/// Keys of test text, at even distances.
pub fn sample_keys(ground: &Ground, n: usize) -> Result<Vec<Vec<f32>>> {
    let texts: Vec<&[TokenId]> = ground.domains.iter().flat_map(|d| &d.test).map(|t| t.tokens.as_slice()).collect();
    let (begin, recipe, never) = (ground.tokenizer.beginning_of_text(), ground.store.recipe(), AtomicBool::new(false));
    let encoded = encode(&*ground.model, begin, &texts, recipe, &never)?;
    let dim = ground.model.card().key_dim;
    let keys: Vec<&[f32]> = encoded.iter().flat_map(|e| e.keys.data.chunks_exact(dim)).collect();
    let every = (keys.len() / n.max(1)).max(1);
    Ok(keys.into_iter().step_by(every).take(n).map(<[f32]>::to_vec).collect())
}

/// How fast a shard is built, beside the model's part of the work alone.
#[derive(serde::Serialize)]
struct BuildSpeed {
    n_tokens: u64,
    n_bytes_on_disk: u64,
    build_seconds: f64,
    encode_seconds: f64,
}

/// Builds the first domain's shard once more, in a store of its own that is deleted again.
fn build_speed(ground: &Ground) -> Result<BuildSpeed> {
    let root = tempfile::tempdir_in(&ground.config.store.root).context("cannot make a store to build in")?;
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let recipe = ground.store.recipe().clone();
    let options = silo_store::StoreOptions { n_threads: threads, ..Default::default() };
    let store = Store::open(root.path(), ground.model.card(), recipe, ground.tokenizer.clone(), options)?;
    let domain = &ground.domains[0];
    store.by("eval").create_source(&*ground.store.source(&domain.source)?)?;
    let (never, new) = (AtomicBool::new(false), NewShard { source: &domain.source, documents: &domain.stored });
    let start = Instant::now();
    let manifest = store.by("eval").add_shard(&new, &*ground.model, &never, &|_, _| {})?.manifest;
    let build_seconds = start.elapsed().as_secs_f64();
    let tokens = domain.stored.iter().map(|d| ground.tokenizer.encode(&d.text)).collect::<Result<Vec<_>, _>>()?;
    let slices: Vec<&[TokenId]> = tokens.iter().map(Vec::as_slice).collect();
    let start = Instant::now();
    encode(&*ground.model, ground.tokenizer.beginning_of_text(), &slices, ground.store.recipe(), &never)?;
    let encode_seconds = start.elapsed().as_secs_f64();
    let n_bytes_on_disk = manifest.files.values().map(|f| f.bytes).sum();
    Ok(BuildSpeed { n_tokens: manifest.n_tokens, n_bytes_on_disk, build_seconds, encode_seconds })
}

/// Bytes of all live shards' files.
pub fn shard_bytes(ground: &Ground) -> u64 {
    use silo_core::SnapshotProvider;
    let snapshot = ground.store.snapshot();
    let manifests = snapshot.shards.iter().filter_map(|s| ground.store.manifest(s.id));
    manifests.map(|m| m.files.values().map(|f| f.bytes).sum::<u64>()).sum()
}

/// Seconds from nothing to an engine that answers: model loaded and packed, store opened and checked. Files are in the page cache.
fn start_to_ready(ground: Ground) -> Result<f64> {
    let config = ground.config.clone();
    drop(ground);
    let start = Instant::now();
    let (model, tokenizer) = wiring::load_model(&config.model)?;
    let store = wiring::open_store(&config.store, &*model, tokenizer)?;
    let seconds = start.elapsed().as_secs_f64();
    drop(store);
    Ok(seconds)
}

/// Memory of this process that is held now, as Linux counts it: mapped files that were read are part of it.
fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

fn spread(values: &[f64]) -> String {
    let (low, high) = values.iter().fold((f64::MAX, f64::MIN), |(l, h), v| (l.min(*v), h.max(*v)));
    format!("{:.1} ({low:.1}–{high:.1})", median(values))
}

fn efforts(efforts: &[Effort]) -> String {
    if efforts.is_empty() {
        return String::new();
    }
    let mut out =
        "\n| lists looked into | codes compared | recall | ms a query |\n| --- | --- | --- | --- |\n".to_owned();
    for e in efforts {
        let Effort { n_probe, compared, recall, milliseconds } = e;
        out += &format!("| {n_probe} | {compared:.0} | {recall:.4} | {milliseconds:.2} |\n");
    }
    out
}

fn markdown(whole: &serde_json::Value, decoding: &[DecodeSpeed], quality: &SearchQuality) -> String {
    let made = &whole["made"];
    let text = |v: &serde_json::Value| v.as_str().unwrap_or_default().to_owned();
    let mut out = format!(
        "# Speed\n\n* Command: `{}`\n* Commit: {}\n* Machine: {}\n* Model: {}, {} parameters\n* Store: {} entries, recipe {}, {} bytes on disk \
         ({:.0} per entry, text and indexes included)\n* Raw data: `speed.json`\n\n## Decoding, tokens per second\n\nMedian (least–greatest) of several runs; greedy, \
         all texts of a batch together. \"After the first token\" is decoding alone.\n\n| mode | batch | after the first token | from submission on | of parametric |\n| --- | --- | --- | --- | --- |\n",
        text(&made["command"]),
        text(&made["commit"]),
        text(&made["machine"]),
        text(&made["model"]["name"]),
        made["model"]["n_parameters"],
        made["n_entries"],
        text(&made["recipe"]["name"]),
        whole["n_bytes_on_disk"],
        whole["n_bytes_on_disk"].as_f64().unwrap_or(0.0) / made["n_entries"].as_f64().unwrap_or(1.0)
    );
    for d in decoding {
        let base = decoding.iter().find(|b| b.batch == d.batch && b.mode == "Parametric");
        let ratio =
            base.map_or(f64::NAN, |b| median(&d.decode_tokens_per_second) / median(&b.decode_tokens_per_second));
        let (decode, total) = (spread(&d.decode_tokens_per_second), spread(&d.total_tokens_per_second));
        out.write_fmt(format_args!("| {} | {} | {decode} | {total} | {ratio:.2} |\n", d.mode, d.batch))
            .expect("a string takes all text");
    }
    out.write_fmt(format_args!(
        "\n## Search\n\nk = {}, {} keys of test text, one at a time: recall {:.4} of exact search (nearest neighbour: {:.4}), {:.0} codes compared; {:.2} ms a query ({:.2} ms in batches of 32), exact {:.2} ms.\n",
        quality.k, quality.n_queries, quality.recall, quality.recall_of_nearest, quality.compared, quality.milliseconds, quality.milliseconds_in_batches, quality.exact_milliseconds
    )).expect("a string takes all text");
    out += &efforts(&quality.by_lists);
    let (b, number) = (&whole["building"], |v: &serde_json::Value| v.as_f64().unwrap_or(f64::NAN));
    let (tokens, build, encode) = (number(&b["n_tokens"]), number(&b["build_seconds"]), number(&b["encode_seconds"]));
    out.write_fmt(format_args!(
        "\n## Building\n\n{tokens:.0} tokens in {build:.1} s: {:.0} tokens per second with text, passages, BM25 and lists; the model alone over the \
         same windows: {:.0} tokens per second (ratio {:.2}). {:.0} bytes per token on disk.\n",
        tokens / build,
        tokens / encode,
        encode / build,
        number(&b["n_bytes_on_disk"]) / tokens
    ))
    .expect("a string takes all text");
    out.write_fmt(format_args!(
        "\n## Memory and start\n\nResident after the runs above, which read all keys: {} bytes. From start to ready (files in the page cache): {:.2} s.\n",
        whole["resident_bytes"], whole["start_to_ready_seconds"].as_f64().unwrap_or(f64::NAN)
    )).expect("a string takes all text");
    out
}
