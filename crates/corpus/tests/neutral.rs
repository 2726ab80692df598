//! Sources that neutral parameters are tuned on.
#![allow(missing_docs, reason = "tests")]

use std::collections::BTreeMap;
use std::path::Path;

use silo_core::LicencePolicy;
use silo_corpus::{BuildReport, CorpusBuilder, SourceDeclaration, Split, read_documents};

/// Sixty texts of each source, half of which all have in common.
fn write_texts(root: &Path) {
    let words = |seed: usize| (0..120).map(|i| format!("w{}", seed * 1000 + i)).collect::<Vec<_>>().join(" ");
    for (n, source) in ["learnt", "governed", "neutral"].into_iter().enumerate() {
        std::fs::create_dir_all(root.join(source)).unwrap();
        for i in 0..60 {
            let text = if i < 30 { words(i) } else { words(100 * (n + 1) + i) };
            std::fs::write(root.join(source).join(format!("{i}.txt")), text).unwrap();
        }
    }
}

fn declaration(root: &Path, name: &str, role: &str, licence: &str) -> SourceDeclaration {
    let path = root.join(format!("{name}.toml"));
    let text = format!(
        "name = \"{name}\"\ntitle = \"t\"\nowner = \"o\"\nlicence = \"{licence}\"\nlicence_stated_at = \"here\"\nrole = \"{role}\"\ndomain = \"d\"\n\
         [importer]\nkind = \"directory\"\npath = \"{}\"\nfiles = [\"*.txt\"]\nformat = \"text\"\n",
        root.join(name).display(),
    );
    std::fs::write(&path, text).unwrap();
    SourceDeclaration::read(&path).unwrap()
}

/// What is reported, and the files by source.
fn build(output: &Path, declarations: &[&SourceDeclaration]) -> (BuildReport, BTreeMap<String, Vec<u8>>) {
    let declarations: Vec<_> = declarations.iter().map(|d| (*d).clone()).collect();
    let builder = CorpusBuilder { policy: LicencePolicy::default(), cache: output, output, progress: &|_| {} };
    let report = builder.build(&declarations).unwrap();
    let file = |name: &str| std::fs::read(output.join(format!("{name}.jsonl.zst"))).unwrap();
    let files = report.sources.iter().map(|s| (s.name.to_string(), file(s.name.as_str()))).collect();
    (report, files)
}

#[test]
fn neutral_sources_change_no_others_and_governed_ones_change_none_of_them() {
    let root = tempfile::tempdir().unwrap();
    write_texts(root.path());
    let learnt = declaration(root.path(), "learnt", "train", "MIT");
    let governed = declaration(root.path(), "governed", "domain", "GPL-3.0-only");
    let neutral = declaration(root.path(), "neutral", "neutral", "MIT");
    let (report, all) = build(&root.path().join("all"), &[&governed, &learnt, &neutral]);
    let (_, without_neutral) = build(&root.path().join("without_neutral"), &[&governed, &learnt]);
    let (_, without_governed) = build(&root.path().join("without_governed"), &[&learnt, &neutral]);
    assert_eq!(all["learnt"], without_neutral["learnt"]);
    assert_eq!(all["governed"], without_neutral["governed"]);
    assert_eq!(all["neutral"], without_governed["neutral"]);

    let documents = read_documents(&root.path().join("all/neutral.jsonl.zst")).unwrap();
    assert!(documents.iter().all(|d| !d.train), "no model learns it");
    assert!(documents.iter().any(|d| d.split != Split::Train && d.excluded.is_none()), "it is tuned on");
    let excluded = documents.iter().filter(|d| d.excluded.is_some()).count();
    assert_eq!(excluded, 30, "what a model has learnt is not new to it");
    let learns: Vec<bool> = report.sources.iter().map(|s| s.is_learnt()).collect();
    assert_eq!(learns, [false, true, false]);
}
