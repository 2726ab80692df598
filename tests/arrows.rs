//! The arrows of crates/README.md.

use std::collections::{BTreeMap, BTreeSet};

use cargo_metadata::{DependencyKind, MetadataCommand};

/// What each crate may know. `silo` may know everything, `silo-tests` is not part of the product.
const ARROWS: &[(&str, &[&str])] = &[
    ("silo-core", &[]),
    ("silo-corpus", &["silo-core"]),
    ("silo-engine", &["silo-core"]),
    ("silo-eval", &["silo-engine", "silo-store", "silo-spans", "silo-corpus", "silo-core"]),
    ("silo-govern", &["silo-store", "silo-log", "silo-core"]),
    ("silo-lexical", &[]),
    ("silo-log", &["silo-core"]),
    ("silo-model", &["silo-core"]),
    ("silo-proto", &[]),
    ("silo-server", &["silo-proto", "silo-engine", "silo-govern", "silo-core"]),
    ("silo-spans", &[]),
    ("silo-store", &["silo-vector", "silo-lexical", "silo-spans", "silo-core"]),
    ("silo-testkit", &["silo-core"]),
    ("silo-train", &["silo-model", "silo-corpus", "silo-core"]),
    ("silo-vector", &[]),
];

/// Heavy or foreign dependencies, and the only crates that may name them.
const HELD_BEHIND: &[(&str, &[&str])] = &[
    ("candle-core", &["silo-model", "silo-train", "silo"]),
    ("tokenizers", &["silo-model", "silo-train"]),
    ("faiss", &["silo-vector"]),
    ("faiss-sys", &["silo-vector"]),
    ("tantivy", &["silo-lexical"]),
    ("rusqlite", &["silo-store"]),
    ("ed25519-dalek", &["silo-log"]),
    ("tonic", &["silo-proto", "silo-server", "silo"]),
    ("tokio", &["silo-engine", "silo-server", "silo"]),
];

#[test]
fn crates_know_only_what_they_may() {
    let metadata = MetadataCommand::new().no_deps().exec().unwrap();
    let arrows: BTreeMap<&str, &[&str]> = ARROWS.iter().copied().collect();
    let mut faults = Vec::new();
    let mut seen = BTreeSet::new();
    for package in metadata.packages.iter().filter(|p| p.name.as_str() != "silo-tests") {
        let name = package.name.as_str();
        seen.insert(name);
        let normal = package.dependencies.iter().filter(|d| d.kind == DependencyKind::Normal);
        for dependency in normal {
            let to = dependency.name.as_str();
            if to.starts_with("silo-") && name != "silo" && !arrows.get(name).is_some_and(|a| a.contains(&to)) {
                faults.push(format!("{name} must not know {to}"));
            }
            if let Some((_, holders)) = HELD_BEHIND.iter().find(|(held, _)| *held == to)
                && !holders.contains(&name)
            {
                faults.push(format!("{name} must not know {to}, which is held behind {holders:?}"));
            }
        }
    }
    assert!(seen.contains("silo-core") && seen.contains("silo"));
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}
