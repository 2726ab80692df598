//! What a reviewer should not have to say twice.

use std::fs;
use std::path::{Path, PathBuf};

const MAX_FILE_LINES: usize = 500;
const MAX_FUNCTION_LINES: usize = 70;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn rust_files() -> Vec<PathBuf> {
    let mut out = Vec::new();
    let mut pending = vec![root().join("crates"), root().join("tests")];
    while let Some(path) = pending.pop() {
        if path.is_dir() {
            pending.extend(fs::read_dir(&path).unwrap().map(|e| e.unwrap().path()));
        } else if path.extension().is_some_and(|e| e == "rs") {
            out.push(path);
        }
    }
    assert!(out.len() > 50);
    out
}

/// (first line, length) of every function, by the indentation of its closing brace.
fn functions(text: &str) -> Vec<(usize, usize)> {
    let lines: Vec<&str> = text.lines().collect();
    let starts = lines.iter().enumerate().filter(|(_, l)| {
        let words: Vec<&str> = l.split_whitespace().take(6).collect();
        words.contains(&"fn") && !l.trim_start().starts_with("//") && !l.trim_end().ends_with(';')
    });
    let mut out = Vec::new();
    for (i, line) in starts {
        let indent = line.len() - line.trim_start().len();
        let closing = format!("{}}}", " ".repeat(indent));
        if let Some(n) = lines[i..].iter().position(|l| *l == closing) {
            out.push((i + 1, n + 1));
        }
    }
    out
}

#[test]
fn files_and_functions_are_short_and_modules_say_what_they_are() {
    let mut faults = Vec::new();
    for path in rust_files() {
        let text = fs::read_to_string(&path).unwrap();
        let name = path.strip_prefix(root()).unwrap().display();
        if !text.starts_with("//!") {
            faults.push(format!("{name} does not begin with a module comment"));
        }
        let n = text.lines().count();
        if n > MAX_FILE_LINES {
            faults.push(format!("{name} has {n} lines"));
        }
        for (line, n) in functions(&text).into_iter().filter(|(_, n)| *n > MAX_FUNCTION_LINES) {
            faults.push(format!("{name}:{line} is a function of {n} lines"));
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn the_code_map_names_every_crate() {
    let map = fs::read_to_string(root().join("crates/README.md")).unwrap();
    for entry in fs::read_dir(root().join("crates")).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        if entry.path().is_dir() {
            assert!(map.contains(&format!("`{name}`")), "crates/README.md does not name `{name}`");
        }
    }
}
