//! Packages: fetched by the ordinary clients, unpacked, never installed.

mod archive;
mod fetch;

use std::path::{Path, PathBuf};

use globset::{GlobBuilder, GlobSet, GlobSetBuilder};

use crate::CorpusError;
use crate::resolve::PackageLicence;

pub(crate) use archive::unpack;
pub(crate) use fetch::{Kind, fetch};

/// An unpacked package.
#[derive(Debug, Clone)]
pub(crate) struct Unpacked {
    /// Where it lies.
    pub(crate) root: PathBuf,
    /// Package URL without a path: `pkg:deb/debian/sqlite3-doc@3.40.1`.
    pub(crate) purl: String,
    /// What it says of its licence.
    pub(crate) licence: PackageLicence,
}

fn globs(patterns: &[String]) -> Result<GlobSet, String> {
    let mut set = GlobSetBuilder::new();
    for pattern in patterns {
        set.add(GlobBuilder::new(pattern).literal_separator(true).build().map_err(|e| e.to_string())?);
    }
    set.build().map_err(|e| e.to_string())
}

/// Files below `root` that match, as paths relative to it, sorted. Links are not followed: a package cannot point out of itself.
pub(crate) fn matching(root: &Path, files: &[String], exclude: &[String]) -> Result<Vec<PathBuf>, CorpusError> {
    let refuse = |reason: String| CorpusError::Declaration { path: root.to_owned(), reason };
    let (wanted, unwanted) = (globs(files).map_err(refuse)?, globs(exclude).map_err(refuse)?);
    let mut out = Vec::new();
    for entry in walkdir::WalkDir::new(root).follow_links(false) {
        let entry = entry.map_err(|e| CorpusError::Io { path: root.to_owned(), source: e.into() })?;
        let Ok(relative) = entry.path().strip_prefix(root) else { continue };
        if entry.file_type().is_file() && wanted.is_match(relative) && !unwanted.is_match(relative) {
            out.push(relative.to_owned());
        }
    }
    out.sort();
    Ok(out)
}
