//! What lies in `configs/`: that it is read, and that its parts agree.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_json::Value;
use silo_core::ContentHash;
use silo_corpus::{Role, read_declarations};

use crate::config::{ConfigFile, EvalConfig, ServeConfig, read_eval_config, read_train_config};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn config(name: &str) -> ConfigFile {
    root().join("configs").join(name).as_path().into()
}

fn eval(name: &str) -> EvalConfig {
    read_eval_config(&config(name)).unwrap()
}

fn serve(name: &str) -> ServeConfig {
    ServeConfig::read(&root().join("configs").join(name)).unwrap()
}

#[test]
fn the_shipped_configurations_are_good() {
    for name in ["serve.toml", "demo.toml", "test.toml"] {
        serve(name);
    }
    for name in ["train.toml", "reference.toml"] {
        read_train_config(&config(name)).unwrap();
    }
    for name in ["eval.toml", "eval_small.toml", "eval_smollm2.toml", "eval_test.toml", "neutral.toml"] {
        eval(name);
    }
    let files = std::fs::read_dir(root().join("indexes")).unwrap().map(|e| e.unwrap().path());
    for recipe in files.filter(|p| p.extension().is_some_and(|e| e == "toml")) {
        silo_store::Recipe::read(&recipe).unwrap();
    }
}

/// Every number to four digits.
fn rounded(value: &mut Value) {
    match value {
        Value::Object(map) => map.values_mut().for_each(rounded),
        Value::Number(n) if n.is_f64() => *value = format!("{:.4}", n.as_f64().unwrap()).parse::<f64>().unwrap().into(),
        _ => {}
    }
}

#[test]
fn neutral_parameters_are_those_that_were_measured() {
    let results = std::fs::read_to_string(root().join("docs/results/neutral.json")).unwrap();
    let mut calibration = serde_json::from_str::<Value>(&results).unwrap()["calibration"].take();
    let mut tuned = calibration["tuned"].take();
    let model = silo_model::LoadedModel::open(&root().join("models/silo-open-6m")).unwrap().hash;
    assert_eq!(serde_json::from_value::<ContentHash>(calibration["model"].take()).unwrap(), model);
    rounded(&mut tuned);
    let shipped = ["serve.toml", "demo.toml"].map(|name| serve(name).engine);
    for engine in shipped.into_iter().chain(["eval.toml", "eval_small.toml"].map(|name| eval(name).engine)) {
        assert_eq!(serde_json::to_value(engine.knn).unwrap(), tuned);
        assert_eq!(engine.knn_model, Some(model), "another model is refused");
    }
}

#[test]
fn neutral_parameters_are_tuned_on_all_neutral_sources() {
    let declared = read_declarations(&root().join("datastore")).unwrap();
    let neutral = declared.iter().filter(|d| d.role == Role::Neutral).map(|d| d.name.to_string());
    let config = eval("neutral.toml");
    assert!(config.eval.sizes.neutral);
    assert_eq!(config.eval.domains.iter().cloned().collect::<BTreeSet<_>>(), neutral.collect());
}
