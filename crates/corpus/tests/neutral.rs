//! Sources that neutral parameters are tuned on.
#![allow(missing_docs, reason = "tests")]

use std::collections::BTreeMap;
use std::path::Path;

use silo_core::LicencePolicy;
use silo_corpus::{
    BuildReport, CorpusBuilder, CorpusDocument, Exclusion, Role, SourceDeclaration, Split, read_documents,
};

/// Texts that each pair of sources has in common, and all; and per source texts that are half another's, and own ones.
const KINDS: [(&str, [usize; 3]); 7] = [
    ("all", [0, 0, 0]),
    ("learnt and governed", [1, 1, 2]),
    ("learnt and neutral", [3, 4, 3]),
    ("governed and neutral", [5, 6, 6]),
    ("restricted of a training source, and neutral", [7, 8, 7]),
    ("own", [9, 10, 11]),
    ("own too", [12, 13, 14]),
];
const OF_A_KIND: usize = 40;

fn words(seed: usize, n: usize) -> String {
    (0..n).map(|i| format!("w{}", seed * 1000 + i)).collect::<Vec<_>>().join(" ")
}

fn write_texts(root: &Path) {
    for (column, source) in ["learnt", "governed", "neutral"].into_iter().enumerate() {
        std::fs::create_dir_all(root.join(source)).unwrap();
        for (kind, (_, seeds)) in KINDS.into_iter().enumerate() {
            for i in 0..OF_A_KIND {
                // Half of each text is its own, in every second document, so that it has much in common with others and repeats none.
                let seed = seeds[column] * OF_A_KIND + i;
                let own = if i % 2 == 0 { String::new() } else { words(10_000 * (column + 1) + seed, 120) };
                let name =
                    if kind == 4 && column == 0 { format!("{kind}-{i}.not.txt") } else { format!("{kind}-{i}.txt") };
                std::fs::write(root.join(source).join(name), format!("{} {own}", words(seed, 120))).unwrap();
            }
        }
    }
}

fn declaration(root: &Path, name: &str, role: &str, licence: &str) -> SourceDeclaration {
    let path = root.join(format!("{name}.toml"));
    let text = format!(
        "name = \"{name}\"\ntitle = \"t\"\nowner = \"o\"\nlicence = \"{licence}\"\nlicence_stated_at = \"here\"\nrole = \"{role}\"\ndomain = \"d\"\n\
         [importer]\nkind = \"directory\"\npath = \"{}\"\nfiles = [\"*.txt\"]\nformat = \"text\"\n\
         [[override]]\nfiles = \"*.not.txt\"\nlicence = \"GPL-3.0-only\"\nevidence = \"the test\"\n",
        root.join(name).display(),
    );
    std::fs::write(&path, text).unwrap();
    SourceDeclaration::read(&path).unwrap()
}

/// What is reported, and the documents by source.
fn build(output: &Path, declarations: &[&SourceDeclaration]) -> (BuildReport, BTreeMap<String, Vec<CorpusDocument>>) {
    let declarations: Vec<_> = declarations.iter().map(|d| (*d).clone()).collect();
    let builder = CorpusBuilder { policy: LicencePolicy::default(), cache: output, output, progress: &|_| {} };
    let report = builder.build(&declarations).unwrap();
    let read = |name: &str| read_documents(&output.join(format!("{name}.jsonl.zst"))).unwrap();
    let files = report.sources.iter().map(|s| (s.name.to_string(), read(s.name.as_str()))).collect();
    (report, files)
}

/// Documents of a kind that are left out for a reason, or kept.
fn count(documents: &[CorpusDocument], kind: usize, excluded: Option<Exclusion>) -> usize {
    documents.iter().filter(|d| d.uri.contains(&format!("#{kind}-")) && d.excluded == excluded).count()
}

#[test]
fn neutral_sources_change_no_others_and_governed_text_changes_none_of_them() {
    let root = tempfile::tempdir().unwrap();
    write_texts(root.path());
    let learnt = declaration(root.path(), "learnt", "train", "MIT");
    let governed = declaration(root.path(), "governed", "domain", "GPL-3.0-only");
    let neutral = declaration(root.path(), "neutral", "neutral", "MIT");
    let (report, all) = build(&root.path().join("all"), &[&governed, &learnt, &neutral]);
    let (_, without_neutral) = build(&root.path().join("without_neutral"), &[&governed, &learnt]);
    assert_eq!(all["learnt"], without_neutral["learnt"]);
    assert_eq!(all["governed"], without_neutral["governed"]);
    // Without governed sources, and without the restricted documents of the training source.
    for i in 0..OF_A_KIND {
        std::fs::remove_file(root.path().join(format!("learnt/4-{i}.not.txt"))).unwrap();
    }
    let (open, without_governed) = build(&root.path().join("without_governed"), &[&learnt, &neutral]);
    assert_eq!(all["neutral"], without_governed["neutral"]);

    // What it has in common with text that is learnt is left out of it, whole repetitions and held-out text that is half of it; with others, not.
    let documents = &all["neutral"];
    for kind in [0, 2] {
        assert_eq!(count(documents, kind, Some(Exclusion::ExactDuplicate)), OF_A_KIND / 2, "{}", KINDS[kind].0);
        assert!(count(documents, kind, Some(Exclusion::Contaminated)) > 0, "{}", KINDS[kind].0);
    }
    for kind in [1, 3, 4, 5, 6] {
        assert_eq!(count(documents, kind, None), OF_A_KIND, "{}", KINDS[kind].0);
    }
    // The same texts do leave governed ones out, so that there was something to find.
    assert!(count(&all["governed"], 1, Some(Exclusion::ExactDuplicate)) > 0);

    assert!(documents.iter().all(|d| !d.train), "no model learns it");
    assert!(documents.iter().any(|d| d.split == Split::Validation), "it is tuned on");
    let learns = |report: BuildReport| report.sources.iter().map(|s| (s.role, s.is_learnt())).collect::<Vec<_>>();
    let roles = [Role::Domain, Role::Train, Role::Neutral];
    assert_eq!(learns(report), roles.map(|role| (role, false)), "a restricted document keeps its source out");
    assert_eq!(learns(open), [(Role::Train, true), (Role::Neutral, false)]);
}

#[test]
fn shares_are_of_others_restricted_text_and_neutral_text_has_none_itself() {
    let root = tempfile::tempdir().unwrap();
    let write = |source: &str, name: &str, text: &str| {
        std::fs::create_dir_all(root.path().join(source)).unwrap();
        std::fs::write(root.path().join(source).join(name), text).unwrap();
    };
    let lines =
        |of: &str| (0..30).map(|i| format!("Sentence {i} of {of} is said by nobody else.\n")).collect::<String>();
    write("governed", "a.txt", &lines("the governor"));
    write("neutral", "a.txt", &lines("neutrals"));
    write("neutral", "b.txt", &lines("the governor"));
    let governed = declaration(root.path(), "governed", "domain", "GPL-3.0-only");
    let neutral = declaration(root.path(), "neutral", "neutral", "MIT");
    let corpus = root.path().join("corpus");
    let shares = |corpus: &Path, report: &BuildReport| {
        let of: Vec<_> = report.sources.iter().filter(|s| s.role == Role::Neutral).collect();
        report.governed(corpus, &of).map(|governed| (governed.n_compared, governed.shares[0].clone().share))
    };
    let (report, _) = build(&corpus, &[&governed, &neutral]);
    let (n_compared, share) = shares(&corpus, &report).unwrap();
    assert!(n_compared == 1 && (0.5..0.6).contains(&share), "{share}: the longer half");
    let refused = |limit, limit_of_document| {
        let of: Vec<_> = report.sources.iter().filter(|s| s.role == Role::Neutral).collect();
        let governed = report.governed(&corpus, &of).unwrap();
        governed.refuse_above(limit, limit_of_document).err().map(|error| error.to_string())
    };
    assert_eq!(refused(0.6, 1.0), None);
    assert!(refused(0.5, 1.0).is_some_and(|error| error.contains(" of 'neutral' stand")));
    assert!(refused(0.6, 0.9).is_some_and(|error| error.contains("b.txt stand") && error.starts_with("100.00 %")));
    // Of a build without the governed source there is nothing to find: what is declared must be there.
    let alone = root.path().join("alone");
    let (without, _) = build(&alone, &[&neutral]);
    assert_eq!(shares(&alone, &without).unwrap(), (0, 0.0));
    let declared = [governed.clone(), neutral.clone()];
    let message = without.check_whole(&alone, &declared).unwrap_err().to_string();
    assert!(message.contains("has no 'governed'"), "{message}");
    report.check_whole(&corpus, &declared).unwrap();
    // Nor can it be forgotten: not by a build without it, and not by one that finds a report it cannot read.
    let again = |damage: bool| {
        if damage {
            std::fs::write(corpus.join("report.json"), "{").unwrap();
        }
        let builder =
            CorpusBuilder { policy: LicencePolicy::default(), cache: &corpus, output: &corpus, progress: &|_| {} };
        builder.build(std::slice::from_ref(&neutral)).unwrap_err().to_string()
    };
    assert!(again(false).contains("holds 'governed' too"), "{}", again(false));
    assert!(again(true).contains("is damaged"), "{}", again(true));
    std::fs::remove_dir_all(&corpus).unwrap();
    // What is restricted itself is not compared with anything.
    write("neutral", "c.not.txt", &lines("a licence"));
    let (report, _) = build(&corpus, &[&governed, &neutral]);
    let error = shares(&corpus, &report).unwrap_err().to_string();
    assert!(error.contains("c.not.txt") && error.contains("GPL-3.0-only"), "{error}");
}

/// Text that is left out since models learn it must not make the rest look less governed than it is.
#[test]
fn shares_are_of_what_is_tuned_on() {
    let root = tempfile::tempdir().unwrap();
    let lines =
        |of: &str| (0..30).map(|i| format!("Sentence {i} of {of} is said by nobody else.\n")).collect::<String>();
    for (source, name, of) in [
        ("governed", "a.txt", "the governor"),
        ("learnt", "a.txt", "the learner"),
        ("neutral", "a.txt", "the governor"),
        ("neutral", "b.txt", "the learner"),
    ] {
        std::fs::create_dir_all(root.path().join(source)).unwrap();
        std::fs::write(root.path().join(source).join(name), lines(of)).unwrap();
    }
    let governed = declaration(root.path(), "governed", "domain", "GPL-3.0-only");
    let learnt = declaration(root.path(), "learnt", "train", "MIT");
    let neutral = declaration(root.path(), "neutral", "neutral", "MIT");
    let corpus = root.path().join("corpus");
    let (report, documents) = build(&corpus, &[&governed, &learnt, &neutral]);
    let left_out = documents["neutral"].iter().filter(|d| d.excluded == Some(Exclusion::ExactDuplicate)).count();
    let shares = report.governed(&corpus, &[report.source("neutral").unwrap()]).unwrap().shares;
    assert_eq!((left_out, shares[0].share), (1, 1.0));
}
