//! The finished model: a Hugging Face directory with its training record, its curve and its card.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use serde_json::json;
use silo_core::{SourceId, Tier};
use silo_model::{LlamaShape, NamedTensor, PROVENANCE_FILE, Provenance, parts, save_huggingface};

use crate::params::Layout;
use crate::run::RunFacts;
use crate::{TrainError, card, curve, log};

/// Steps between those that the record keeps of the training curve.
const KEPT_STEPS: u64 = 10;

/// Writes the model beside its place, then puts it there.
pub(crate) fn write(
    facts: &RunFacts<'_>,
    layout: &Layout,
    parameters: &[f32],
    output: &Path,
) -> Result<(), TrainError> {
    refuse_other_things(output)?;
    let parent = output.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(parent).map_err(TrainError::io(parent))?;
    let partial = tempfile::tempdir_in(parent).map_err(TrainError::io(parent))?;
    let shape = facts.config.shape();
    save_huggingface(partial.path(), &shape, facts.tokenizer_json, &tensors(&shape, layout, parameters))?;
    let put = |name: &str, text: String| {
        let path = partial.path().join(name);
        fs::write(&path, text).map_err(TrainError::io(&path))
    };
    let provenance = Provenance {
        name: facts.config.name.clone(),
        training_tiers: tiers(facts),
        training_sources: Some(sources(facts)),
    };
    put(PROVENANCE_FILE, format!("{:#}\n", json!(provenance)))?;
    put("training.json", format!("{:#}\n", record(facts, layout)))?;
    put("training_log.jsonl", kept_lines(facts).map(log::line).collect())?;
    put("README.md", card::text(facts, layout.len))?;
    curve::draw(&facts.config.name, facts.lines, &partial.path().join("curve.svg"))?;
    // The old model is there until the new one is; a crash between the two renames leaves both, under other names.
    let old = parent.join(format!(".replaced-{}", std::process::id()));
    if output.exists() {
        fs::rename(output, &old).map_err(TrainError::io(output))?;
    }
    fs::rename(partial.keep(), output).map_err(TrainError::io(output))?;
    if old.exists() {
        fs::remove_dir_all(&old).map_err(TrainError::io(&old))?;
    }
    Ok(())
}

/// A model of ours may be replaced, and an empty directory filled; anything else is somebody's.
fn refuse_other_things(output: &Path) -> Result<(), TrainError> {
    let holds_something = fs::read_dir(output).is_ok_and(|mut entries| entries.next().is_some());
    if (holds_something && !output.join(PROVENANCE_FILE).is_file()) || output.is_file() {
        return Err(TrainError::OutputTaken(output.to_owned()));
    }
    Ok(())
}

/// Tiers that training documents come from, those of the model that it began with included.
pub(crate) fn tiers(facts: &RunFacts<'_>) -> Vec<Tier> {
    let before = |tier| facts.start.is_some_and(|start| start.provenance.training_tiers.contains(&tier));
    let now = |tier| facts.text.training.iter().any(|d| d.tier == tier);
    Tier::ALL.into_iter().filter(|t| before(*t) || now(*t)).collect()
}

fn sources(facts: &RunFacts<'_>) -> Vec<SourceId> {
    let before = facts.start.iter().flat_map(|start| start.sources());
    let now = facts.text.training.iter().map(|d| &d.source);
    before.chain(now).collect::<BTreeSet<_>>().into_iter().cloned().collect()
}

fn kept_lines<'a>(facts: &'a RunFacts<'_>) -> impl Iterator<Item = &'a log::LogLine> {
    facts.lines.iter().filter(|l| match l {
        log::LogLine::Step { step, .. } => step.is_multiple_of(KEPT_STEPS),
        _ => true,
    })
}

/// The tensors by Hugging Face's names.
fn tensors(shape: &LlamaShape, layout: &Layout, parameters: &[f32]) -> Vec<NamedTensor> {
    let tensor = |part| {
        let (range, dimensions) = layout.place(shape, part);
        NamedTensor { part, shape: dimensions, data: parameters[range].to_vec() }
    };
    parts(shape.n_layers).map(tensor).collect()
}

/// The training record, in the spirit of LLM360 (Liu et al. 2023): all that is needed to do the run again and to compare.
fn record(facts: &RunFacts<'_>, layout: &Layout) -> serde_json::Value {
    let mut per_tier: BTreeMap<String, [usize; 2]> = BTreeMap::new();
    for document in &facts.text.training {
        let [n, bytes] = per_tier.entry(document.tier.to_string()).or_default();
        (*n, *bytes) = (*n + 1, *bytes + document.text.len());
    }
    let (mut checkpoints, mut seconds, mut n_tokens) = (Vec::new(), 0.0, 0);
    for line in facts.lines {
        match line {
            log::LogLine::Checkpoint { step, sha256 } => checkpoints.push(json!({"step": step, "sha256": sha256})),
            log::LogLine::Step { seconds: s, n_tokens: n, .. } => (seconds, n_tokens) = (seconds + s, n_tokens + n),
            log::LogLine::Validation { .. } => {}
        }
    }
    let validation = facts.lines.iter().rev().find_map(|l| match l {
        log::LogLine::Validation { tiers, .. } => Some(tiers),
        _ => None,
    });
    json!({
        "format": 1,
        "silo": env!("CARGO_PKG_VERSION"),
        "configuration": facts.config.identity(),
        "identity": facts.identity,
        "n_parameters": layout.len,
        "started_from": facts.start.map(|start| json!({"name": start.provenance.name, "hash": start.hash})),
        "data": {
            "n_documents": facts.text.training.len(),
            "n_tokens": facts.n_training_tokens,
            "tiers": per_tier.iter().map(|(t, [n, b])| (t.clone(), json!({"n_documents": n, "n_bytes": b}))).collect::<BTreeMap<_, _>>(),
            "sources": facts.text.sources,
        },
        "data_order": {
            "rows_per_epoch": facts.rows_per_epoch,
            "order": "documents by source name and place in the corpus, shuffled with ChaCha8 (seed, stream = epoch + 1), packed one after the other; then the rows, shuffled by the same",
            "sha256_of_tokens_by_epoch": facts.epoch_hashes.values().collect::<Vec<_>>(),
        },
        "steps": facts.step,
        "n_tokens_learnt_from": n_tokens,
        "seconds": seconds,
        "checkpoints": checkpoints,
        "validation": validation,
        "log": "training_log.jsonl",
    })
}
