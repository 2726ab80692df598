//! The tree of a long log: how fast it is made, how long its proofs are, and what they take:
//!
//! `cargo run --release -p silo-tests --example log -- FILE 1000000`
//!
//! Prints a JSON object. Entries are withdrawals with numbers of their own, as long as real ones.

use std::path::Path;
use std::time::Instant;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};
use silo_core::merkle::leaf_hash;
use silo_core::{Change, ChangeEntry, ContentHash, DocumentSet, Epoch, RootHash, StoreState};
use silo_log::{HashFile, tree};

const PROOFS: usize = 10_000;
/// Entries that are made at once.
const BATCH: u64 = 10_000;

fn entry(i: u64) -> String {
    let hash = ContentHash::of(&i.to_le_bytes());
    let state = StoreState { epoch: Epoch(i), root: RootHash(hash.0), model: hash, recipe: hash };
    let documents = vec![DocumentSet::of("source".parse().expect("a plain name"), &[hash])];
    let (selector, root_before) = ("documents".to_owned(), RootHash(hash.0));
    let change = Change::Remove { removal: i, selector, documents, root_before, state };
    let entry = ChangeEntry { at_unix_ms: 1_800_000_000_000 + i as i64, actor: "legal".into(), change };
    serde_json::to_string(&entry).expect("an entry is JSON")
}

/// Microseconds of each call.
fn timed(mut f: impl FnMut(&mut ChaCha8Rng)) -> Value {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let mut times: Vec<f64> = Vec::new();
    for _ in 0..PROOFS {
        let start = Instant::now();
        f(&mut rng);
        times.push(start.elapsed().as_secs_f64() * 1e6);
    }
    times.sort_by(f64::total_cmp);
    json!({"p50": times[PROOFS / 2], "p99": times[PROOFS * 99 / 100]})
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next().expect("a file");
    let n: u64 = arguments.next().expect("how many entries").parse().expect("a number");
    let _ = std::fs::remove_file(&path);
    let mut file = HashFile::open(Path::new(&path), None).expect("a file");
    let (mut making, mut appending) = (0.0, Instant::now());
    let mut bytes = 0;
    for from in (0..n).step_by(BATCH as usize) {
        let start = Instant::now();
        let entries: Vec<String> = (from..n.min(from + BATCH)).map(entry).collect();
        bytes += entries.iter().map(String::len).sum::<usize>();
        making += start.elapsed().as_secs_f64();
        file.append(entries.iter().map(String::as_bytes)).expect("room");
    }
    let append_seconds = appending.elapsed().as_secs_f64() - making;
    appending = Instant::now();
    let root = tree::root(&file, n).expect("hashes");
    let root_us = appending.elapsed().as_secs_f64() * 1e6;
    let mut longest = 0;
    let inclusion = timed(|rng| {
        let proof = tree::inclusion_proof(&file, rng.random_range(0..n), n).expect("hashes");
        longest = longest.max(proof.len());
    });
    let one = n / 3;
    let (leaf, proof) = (leaf_hash(entry(one).as_bytes()), tree::inclusion_proof(&file, one, n).expect("hashes"));
    let verification = timed(|_| assert!(tree::includes(&leaf, one, n, &proof, &root)));
    let mut longest_consistency = 0;
    let consistency = timed(|rng| {
        let old = rng.random_range(1..n);
        let proof = tree::consistency_proof(&file, old, n).expect("hashes");
        longest_consistency = longest_consistency.max(proof.len());
    });
    let (longest, longest_consistency) = (longest * 32, longest_consistency * 32);
    println!(
        "{}",
        json!({
            "entries": n, "entry_bytes": bytes as f64 / n as f64, "file_bytes": file_bytes(&path),
            "appended_per_second": n as f64 / append_seconds, "root_us": root_us,
            "inclusion_proof_bytes_at_most": longest, "inclusion_proof_us": inclusion, "verification_us": verification,
            "consistency_proof_bytes_at_most": longest_consistency, "consistency_proof_us": consistency,
        })
    );
}

fn file_bytes(path: &str) -> u64 {
    std::fs::metadata(path).expect("a file").len()
}
