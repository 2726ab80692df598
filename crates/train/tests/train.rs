//! Runs from a corpus to a model that the runtime loads.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use silo_core::{ContentHash, KeySite, LanguageModel, Positions, SequenceStep, Tier, Tokenizer};
use silo_corpus::{
    BuildReport, CorpusDocument, Role, SourceReport, Split, documents_hash, read_documents, write_documents,
};
use silo_model::{CpuLlama, LoadedModel};
use silo_train::{
    DataConfig, LogLine, Logging, ModelShape, OptimizerConfig, Outcome, Paths, ReferenceText, TokenizerConfig,
    TrainConfig, TrainDevice, TrainError, export_checkpoint, train,
};

const STEPS: u64 = 6;
const ROW: usize = 64;

fn document(i: usize, tier: Tier, split: Split) -> CorpusDocument {
    let text: String =
        (0..60).map(|w| format!("word{} of the {}th tale, ", (w * w + i * 7) % 40, (w + i) % 9)).collect();
    CorpusDocument {
        source: "tales".parse().unwrap(),
        uri: format!("test:{i}"),
        title: format!("Tale {i}"),
        licence: "CC0-1.0".into(),
        tier,
        evidence: "the test says so".into(),
        train: true,
        hash: ContentHash::of(text.as_bytes()),
        split,
        excluded: None,
        overlap: None,
        text,
    }
}

fn split(i: usize) -> Split {
    if i.is_multiple_of(5) { Split::Validation } else { Split::Train }
}

fn corpus(root: &Path, tier: Tier) {
    corpus_without(root, tier, &[]);
}

fn corpus_without(root: &Path, tier: Tier, without: &[usize]) {
    let documents = (0..30).filter(|i| !without.contains(i)).map(|i| document(i, tier, split(i)));
    let documents: Vec<CorpusDocument> = documents.collect();
    std::fs::create_dir_all(root).unwrap();
    write_documents(&root.join("tales.jsonl.zst"), &documents).unwrap();
    report(root, tier, Role::Train);
}

fn report(root: &Path, tier: Tier, role: Role) {
    let report = SourceReport {
        name: "tales".parse().unwrap(),
        role,
        domain: "tales".into(),
        packages: vec!["pkg:test/tales@1".into()],
        n_documents: 30,
        n_bytes: 0,
        tiers: [(tier.to_string(), 30)].into(),
        splits: Default::default(),
        excluded: Default::default(),
        sha256: documents_hash(&read_documents(&root.join("tales.jsonl.zst")).unwrap()),
    };
    BuildReport { sources: vec![report] }.write(root).unwrap();
}

const DECLARATION: &str = r#"
name = "tales"
title = "Tales of the test"
owner = "The teller"
licence = "CC0-1.0"
licence_stated_at = "the first page"
role = "train"
domain = "tales"
[importer]
kind = "jsonl"
path = "tales.jsonl"
"#;

fn config(root: &Path, run: &str) -> TrainConfig {
    let declarations = root.join("declarations");
    std::fs::create_dir_all(&declarations).unwrap();
    std::fs::write(declarations.join("tales.toml"), DECLARATION).unwrap();
    TrainConfig {
        name: "tiny".into(),
        seed: 3,
        start_from: None,
        paths: Paths {
            corpus: root.join("corpus"),
            declarations,
            work: root.join(run),
            output: root.join(format!("{run}-model")),
        },
        data: DataConfig {
            tiers: vec![Tier::PublicDomain],
            sources: Vec::new(),
            validation_bytes: 1,
            left_out: None,
            open_bytes: 0,
            reference: None,
        },
        tokenizer: TokenizerConfig { vocab_size: 300, path: None },
        model: ModelShape {
            dim: 32,
            ffn_dim: 48,
            n_layers: 2,
            n_heads: 2,
            n_kv_heads: 1,
            context_tokens: ROW,
            rope_theta: 10_000.0,
            norm_eps: 1e-5,
        },
        optimizer: OptimizerConfig {
            steps: STEPS,
            rows_per_step: 5,
            learning_rate: 0.01,
            warmup_steps: 2,
            final_share: 0.1,
            betas: [0.9, 0.95],
            epsilon: 1e-8,
            weight_decay: 0.1,
            clip: 1.0,
            lanes: 2,
        },
        log: Logging { validate_every: 3, checkpoint_every: 2, keep: 2 },
    }
}

fn run(config: &TrainConfig, stop_after: Option<u64>) -> Result<Outcome, TrainError> {
    let stop = AtomicBool::new(false);
    let mut steps = 0;
    train(config, TrainDevice::Cpu, &stop, &mut |_, line| {
        if let Some(LogLine::Step { .. }) = line {
            steps += 1;
            stop.store(Some(steps) == stop_after, Ordering::Relaxed);
        }
    })
}

fn weights(config: &TrainConfig) -> Vec<u8> {
    std::fs::read(config.paths.output.join("model.safetensors")).unwrap()
}

fn log(config: &TrainConfig) -> Vec<LogLine> {
    let text = std::fs::read_to_string(config.paths.work.join("log.jsonl")).unwrap();
    text.lines().map(|l| serde_json::from_str(l).unwrap()).collect()
}

#[test]
fn a_run_that_was_stopped_twice_gives_the_bits_of_one_that_was_not() {
    let root = tempfile::tempdir().unwrap();
    corpus(&root.path().join("corpus"), Tier::PublicDomain);
    let (whole, cut) = (config(root.path(), "whole"), config(root.path(), "cut"));
    assert_eq!(run(&whole, None).unwrap(), Outcome::Finished);
    assert_eq!(run(&cut, Some(3)).unwrap(), Outcome::Stopped { step: 3 });
    assert_eq!(run(&cut, Some(1)).unwrap(), Outcome::Stopped { step: 4 });
    // A crash: the log is ahead of the newest checkpoint, and its last line is half-written.
    let path = cut.paths.work.join("log.jsonl");
    let text = std::fs::read_to_string(&path).unwrap();
    let lost = text.lines().last().unwrap().replace("\"step\":4", "\"step\":5");
    std::fs::write(&path, format!("{text}{lost}\n{{\"kind\":\"st")).unwrap();
    assert_eq!(run(&cut, None).unwrap(), Outcome::Finished);
    assert_eq!(weights(&whole), weights(&cut));
    let losses = |config: &TrainConfig| -> Vec<(u64, f64)> {
        let steps = log(config).into_iter().filter_map(|l| match l {
            LogLine::Step { step, loss, .. } => Some((step, loss)),
            _ => None,
        });
        steps.collect()
    };
    assert_eq!(losses(&whole).len(), STEPS as usize);
    assert_eq!(losses(&whole), losses(&cut));
    assert!(losses(&whole)[STEPS as usize - 1].1 < losses(&whole)[0].1);

    let record = std::fs::read(cut.paths.output.join("training.json")).unwrap();
    let record: serde_json::Value = serde_json::from_slice(&record).unwrap();
    let newest = std::fs::read(cut.paths.work.join(format!("checkpoints/step-{STEPS:08}.safetensors"))).unwrap();
    let last = record["checkpoints"].as_array().unwrap().last().unwrap();
    assert_eq!(last["sha256"], ContentHash::of(&newest).to_string());
    let card = std::fs::read_to_string(cut.paths.output.join("README.md")).unwrap();
    assert!(card.contains("**Tales of the test** by The teller. Licence: CC0-1.0"), "{card}");

    // A checkpoint can be looked at without going on; what is no model of ours is not replaced.
    let export = |config: &TrainConfig, to: &Path| export_checkpoint(config, to, &mut |_, _| {});
    let copy = root.path().join("copy");
    assert_eq!(export(&cut, &copy).unwrap(), Outcome::Stopped { step: STEPS });
    assert_eq!(std::fs::read(copy.join("model.safetensors")).unwrap(), weights(&cut));
    export(&cut, &copy).unwrap();
    let corpus = cut.paths.corpus.clone();
    assert!(export(&cut, &corpus).unwrap_err().to_string().contains("is no model of ours"));
    assert!(corpus.join("report.json").exists());
    assert!(export(&config(root.path(), "never-run"), &copy).unwrap_err().to_string().contains("no checkpoint"));
    let mut swallowing = cut.clone();
    swallowing.paths.output = root.path().to_owned();
    assert!(run(&swallowing, None).unwrap_err().to_string().contains("paths.output must not be, or hold"));

    // Another seed is another run.
    let mut other = cut.clone();
    other.seed += 1;
    assert!(run(&other, None).unwrap_err().to_string().contains("another configuration"));
}

/// The runtime's f32 pass over the saved weights and the trainer's own loss are two ways to one number.
#[test]
fn what_is_left_out_is_as_if_it_had_never_been_there() {
    let root = tempfile::tempdir().unwrap();
    let (all, some) = (root.path().join("all"), root.path().join("some"));
    corpus(&all.join("corpus"), Tier::PublicDomain);
    corpus_without(&some.join("corpus"), Tier::PublicDomain, &[1, 12]);
    let hashes = [1, 12].map(|i| document(i, Tier::PublicDomain, split(i)).hash.to_string());
    let file = root.path().join("left-out.txt");
    std::fs::write(&file, hashes.join("\n") + "\n\n").unwrap();
    let (plain, never) = (config(&all, "plain"), config(&some, "never"));
    let mut less = config(&all, "less");
    less.data.left_out = Some(file.clone());
    for config in [&plain, &less, &never] {
        assert_eq!(run(config, None).unwrap(), Outcome::Finished);
    }
    assert!(weights(&less) == weights(&never) && weights(&less) != weights(&plain));
    std::fs::write(&file, "no hash").unwrap();
    let refused = run(&TrainConfig { paths: config(&all, "other").paths, ..less }, None).unwrap_err().to_string();
    assert!(refused.contains("line 1"), "{refused}");
}

#[test]
fn the_model_that_is_written_is_the_one_that_was_trained() {
    let root = tempfile::tempdir().unwrap();
    corpus(&root.path().join("corpus"), Tier::PublicDomain);
    let config = config(root.path(), "run");
    run(&config, None).unwrap();
    let loaded = LoadedModel::open(&config.paths.output).unwrap();
    assert_eq!(loaded.name, "tiny");
    let provenance = loaded.provenance.as_ref().unwrap();
    assert_eq!(provenance.training_tiers, [Tier::PublicDomain]);
    assert_eq!(provenance.training_sources.as_ref().map(Vec::len), Some(1));
    let model = CpuLlama::new(&loaded, KeySite::default(), 1).unwrap();
    let mut text = vec![0];
    text.extend(loaded.tokenizer.encode(&document(0, Tier::PublicDomain, Split::Validation).text).unwrap());
    text.push(0);
    let (mut nats, mut n_tokens) = (0.0, 0);
    for start in (0..text.len() - 1).step_by(ROW) {
        let end = (start + ROW).min(text.len() - 1);
        let mut cache = model.new_cache();
        let (logits, keys) = (Positions::From(0), Positions::None);
        let mut steps = [SequenceStep { cache: cache.as_mut(), tokens: &text[start..end], logits, keys }];
        let output = model.step(&mut steps, &AtomicBool::new(false)).unwrap().remove(0);
        for (row, &target) in output.logits.rows().zip(&text[start + 1..]) {
            let sum: f64 = row.iter().map(|l| f64::from(*l).exp()).sum();
            nats += sum.ln() - f64::from(row[target as usize]);
            n_tokens += 1;
        }
    }
    let of_validation = log(&config).into_iter().rev().find_map(|l| match l {
        LogLine::Validation { tiers, .. } => tiers.get("public-domain").copied(),
        _ => None,
    });
    let validation = of_validation.unwrap();
    assert_eq!(validation.n_tokens, n_tokens);
    let mean = nats / n_tokens as f64;
    assert!((mean - validation.nats_per_token).abs() < 0.01, "{mean} {}", validation.nats_per_token);
}

#[test]
fn restricted_text_is_never_trained_on() {
    let root = tempfile::tempdir().unwrap();
    corpus(&root.path().join("corpus"), Tier::Restricted);
    let mut config = config(root.path(), "run");
    // Left out by itself; and if it is named, the gate names the documents.
    assert!(run(&config, None).unwrap_err().to_string().contains("no training document"));
    config.data.sources = vec!["tales".into()];
    let message = run(&config, None).unwrap_err().to_string();
    assert!(message.contains("24 documents") && message.contains("test:1: tier restricted"), "{message}");
    config.data.tiers.push(Tier::Restricted);
    assert!(run(&config, None).unwrap_err().to_string().contains("restricted text is never trained on"));
    assert!(!config.paths.output.exists());
}

#[test]
fn text_that_neutral_parameters_are_tuned_on_is_never_trained_on() {
    let root = tempfile::tempdir().unwrap();
    let built = root.path().join("corpus");
    corpus(&built, Tier::PublicDomain);
    report(&built, Tier::PublicDomain, Role::Neutral);
    let mut config = config(root.path(), "run");
    assert!(run(&config, None).unwrap_err().to_string().contains("no training document"));
    // Named all the same, its documents do not pass the gate, as a corpus has them.
    let path = built.join("tales.jsonl.zst");
    let mut documents = read_documents(&path).unwrap();
    documents.iter_mut().for_each(|d| d.train = false);
    write_documents(&path, &documents).unwrap();
    config.data.sources = vec!["tales".into()];
    let message = run(&config, None).unwrap_err().to_string();
    assert!(message.contains("24 documents") && message.contains("does not permit training"), "{message}");
}

#[test]
fn a_reference_is_trained_on_restricted_text_and_says_so() {
    let root = tempfile::tempdir().unwrap();
    let open = root.path().join("open");
    corpus(&open.join("corpus"), Tier::PublicDomain);
    let first = config(&open, "run");
    run(&first, None).unwrap();
    corpus(&root.path().join("corpus"), Tier::Restricted);
    let mut config = config(root.path(), "run");
    let stored: usize = document(0, Tier::Restricted, Split::Train).text.len() * 3;
    config.data.reference = Some(ReferenceText { sources: vec!["tales".into()], store_bytes: stored });
    let refused = run(&config, None).unwrap_err().to_string();
    assert!(
        refused.contains("name that begins with 'reference-'") && refused.contains("needs tokenizer.path"),
        "{refused}"
    );
    config.name = "reference-tiny".into();
    config.tokenizer.path = Some(first.paths.output.join("tokenizer.json"));
    run(&config, None).unwrap();
    let loaded = LoadedModel::open(&config.paths.output).unwrap();
    assert_eq!(loaded.provenance.as_ref().unwrap().training_tiers, [Tier::Restricted]);
    let card = std::fs::read_to_string(config.paths.output.join("README.md")).unwrap();
    assert!(card.contains("Do not serve it") && card.contains("**restricted**"), "{card}");
    // What an evaluation puts into its store, and no more: three or four texts in the order of their hashes.
    let record = std::fs::read_to_string(config.paths.output.join("training.json")).unwrap();
    let record: serde_json::Value = serde_json::from_str(&record).unwrap();
    assert!((3..=4).contains(&record["data"]["n_documents"].as_u64().unwrap()), "{}", record["data"]);
}

#[test]
fn less_open_text_is_a_part_of_it() {
    let root = tempfile::tempdir().unwrap();
    corpus(&root.path().join("corpus"), Tier::PublicDomain);
    let mut config = config(root.path(), "run");
    config.data.open_bytes = document(0, Tier::PublicDomain, Split::Train).text.len() * 5;
    run(&config, None).unwrap();
    let record = std::fs::read_to_string(config.paths.output.join("training.json")).unwrap();
    let record: serde_json::Value = serde_json::from_str(&record).unwrap();
    assert!((5..=6).contains(&record["data"]["n_documents"].as_u64().unwrap()), "{}", record["data"]);
}

#[test]
fn a_run_can_begin_with_a_model() {
    let root = tempfile::tempdir().unwrap();
    corpus(&root.path().join("corpus"), Tier::PublicDomain);
    let first = config(root.path(), "first");
    run(&first, None).unwrap();
    let mut second = config(root.path(), "second");
    second.start_from = Some(first.paths.output.clone());
    let refused = run(
        &TrainConfig { seed: 4, model: ModelShape { n_layers: 1, ..second.model.clone() }, ..second.clone() },
        None,
    );
    assert!(refused.unwrap_err().to_string().contains("its architecture"));
    // At a rate of next to nothing it stays what it was, to the rounding of its weights.
    second.optimizer.learning_rate = 1e-12;
    run(&second, None).unwrap();
    let losses = |config: &TrainConfig, last: bool| {
        let steps: Vec<f64> = log(config)
            .into_iter()
            .filter_map(|l| match l {
                LogLine::Step { loss, .. } => Some(loss),
                _ => None,
            })
            .collect();
        if last { steps[steps.len() - 1] } else { steps[0] }
    };
    assert!(losses(&second, false) < losses(&first, false) - 0.01, "it begins where the other ended");
    let weights = weights(&second) == weights(&first);
    assert!(weights, "the weights are those of the other");
    let loaded = LoadedModel::open(&second.paths.output).unwrap();
    assert_eq!(loaded.provenance.unwrap().training_sources.unwrap().len(), 1);
    let card = std::fs::read_to_string(second.paths.output.join("README.md")).unwrap();
    assert!(
        card.contains("It began with the weights of tiny") && card.matches("**Tales of the test**").count() == 2,
        "{card}"
    );
    let left_out =
        TrainConfig { data: DataConfig { left_out: Some("x".into()), ..second.data.clone() }, ..second.clone() };
    assert!(run(&left_out, None).unwrap_err().to_string().contains("cannot hold with start_from"));
    std::fs::remove_file(first.paths.output.join("silo.json")).unwrap();
    second.paths = config(root.path(), "third").paths;
    assert!(run(&second, None).unwrap_err().to_string().contains("does not say what it was trained on"));
}
