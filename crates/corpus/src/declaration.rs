//! `datastore/*.toml`: what a source is, on whose authority, and how its documents are found.

use std::path::Path;

use serde::{Deserialize, Serialize};
use silo_core::{LicencePolicy, Permissions, Source, SourceId, Tier};

use crate::{CorpusError, Format};

/// What a source's text is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Training text, 1 % of it validation and 1 % test text.
    Train,
    /// A domain of the store: 80 % goes to the store, 10 % each are validation and test text.
    Domain,
    /// Openly licensed text that no model learns, split as a domain: what neutral parameters are tuned on, which must see text as new to the model
    /// as governed text is.
    Neutral,
}

impl Role {
    /// The name used in declarations and messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Domain => "domain",
            Self::Neutral => "neutral",
        }
    }
}

/// A declared source.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourceDeclaration {
    /// Its name.
    pub name: SourceId,
    /// What it is, in a line.
    pub title: String,
    /// Who holds the rights, or gave the collection out.
    pub owner: String,
    /// SPDX licence expression of the text (not of a program that carries it).
    pub licence: String,
    /// Where the licence is stated.
    pub licence_stated_at: String,
    /// What the licence asks to be given with what is made from it, word for word; a line that names owner and licence, if left out.
    #[serde(default)]
    pub notice: String,
    /// A tier more restrictive than the licence's, if wanted.
    pub tier: Option<Tier>,
    /// Permissions; the tier's defaults if left out.
    pub permissions: Option<Permissions>,
    /// What it is for.
    pub role: Role,
    /// Subject, for reports.
    pub domain: String,
    /// At most so many bytes of text are taken, documents chosen by hash.
    pub max_bytes: Option<u64>,
    /// How its documents are found.
    pub importer: Importer,
    /// Corrections of the licence of single files, each with its evidence. The first match decides.
    #[serde(default, rename = "override")]
    pub overrides: Vec<Override>,
}

/// How documents are found: `files` and `exclude` are globs over paths in the package, `format` is that of all its files.
#[derive(Debug, Clone, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
#[allow(missing_docs, reason = "the fields are those of the comment above")]
pub enum Importer {
    /// Debian binary packages, fetched and unpacked, never installed; the last one named also gives the copyright file if the
    /// others link to it.
    Debian {
        packages: Vec<String>,
        files: Vec<String>,
        #[serde(default)]
        exclude: Vec<String>,
        format: Format,
    },
    /// A Python package.
    Pypi {
        package: String,
        version: Option<String>,
        files: Vec<String>,
        #[serde(default)]
        exclude: Vec<String>,
        format: Format,
    },
    /// An npm package.
    Npm {
        package: String,
        version: Option<String>,
        files: Vec<String>,
        #[serde(default)]
        exclude: Vec<String>,
        format: Format,
    },
    /// A Rust crate.
    Cargo {
        package: String,
        version: String,
        files: Vec<String>,
        #[serde(default)]
        exclude: Vec<String>,
        format: Format,
    },
    /// JSON Lines (plain, .gz, .zst) with `text` and optionally `uri`, `title`, `licence`.
    Jsonl { path: String },
    /// A directory.
    Directory {
        path: String,
        files: Vec<String>,
        #[serde(default)]
        exclude: Vec<String>,
        format: Format,
    },
}

/// The licence of some files, decided by hand.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Override {
    /// Files, as a glob over paths in the package.
    pub files: String,
    /// Only those of them that contain this among their first 4,096 bytes.
    pub contains: Option<String>,
    /// Their licence.
    pub licence: String,
    /// Why: where it is stated.
    pub evidence: String,
}

impl SourceDeclaration {
    /// Reads one file.
    pub fn read(path: &Path) -> Result<Self, CorpusError> {
        let text = std::fs::read_to_string(path).map_err(CorpusError::io(path))?;
        let refuse = |reason: String| CorpusError::Declaration { path: path.to_owned(), reason };
        let declaration: Self = toml::from_str(&text).map_err(|e| refuse(e.to_string().trim().to_owned()))?;
        declaration.check().map_err(refuse)?;
        Ok(declaration)
    }

    fn check(&self) -> Result<(), String> {
        let policy = LicencePolicy::default();
        let tier = policy.tier(&self.licence).map_err(|e| e.to_string())?;
        for o in &self.overrides {
            policy.tier(&o.licence).map_err(|e| e.to_string())?;
            if o.evidence.trim().is_empty() {
                return Err(format!("the override of '{}' gives no evidence", o.files));
            }
        }
        if self.owner.trim().is_empty() || self.licence_stated_at.trim().is_empty() {
            return Err("owner and licence_stated_at must say something".into());
        }
        if self.tier.is_some_and(|t| t < tier) {
            return Err(format!("the declared tier is more open than the licence's, which is {tier}"));
        }
        if self.role != Role::Domain && !self.tier.unwrap_or(tier).is_open() {
            return Err(format!("its role is {}, but its licence '{}' is restricted", self.role.name(), self.licence));
        }
        Ok(())
    }

    /// The source as the store knows it.
    pub fn source(&self, policy: &LicencePolicy) -> Source {
        // The expression was parsed when the declaration was read.
        let by_licence = policy.tier(&self.licence).unwrap_or(Tier::Restricted);
        let tier = self.tier.unwrap_or(by_licence).max(by_licence);
        let of_tier = Permissions::of_tier(tier);
        let permissions = self.permissions.map_or(of_tier, |p| p.and(of_tier));
        Source {
            id: self.name.clone(),
            owner: self.owner.clone(),
            licence: self.licence.clone(),
            licence_stated_at: self.licence_stated_at.clone(),
            notice: self.notice.clone(),
            tier,
            permissions: Permissions { train: permissions.train && self.role != Role::Neutral, ..permissions },
        }
    }
}

/// Reads all declarations of a directory, sorted by name.
pub fn read_declarations(directory: &Path) -> Result<Vec<SourceDeclaration>, CorpusError> {
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(CorpusError::io(directory))? {
        let path = entry.map_err(CorpusError::io(directory))?.path();
        if path.extension().is_some_and(|e| e == "toml") {
            paths.push(path);
        }
    }
    let mut out = paths.iter().map(|p| SourceDeclaration::read(p)).collect::<Result<Vec<_>, _>>()?;
    out.sort_by(|a, b| a.name.cmp(&b.name));
    if let Some(pair) = out.windows(2).find(|w| w[0].name == w[1].name) {
        let reason = format!("the source '{}' is declared twice", pair[0].name);
        return Err(CorpusError::Declaration { path: directory.to_owned(), reason });
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
        name = "s"
        title = "t"
        owner = "o"
        licence = "MIT"
        licence_stated_at = "here"
        role = "train"
        domain = "d"
        [importer]
        kind = "directory"
        path = "p"
        files = ["*.txt"]
        format = "text"
    "#;

    fn check(text: &str) -> Result<SourceDeclaration, String> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s.toml");
        std::fs::write(&path, text).unwrap();
        SourceDeclaration::read(&path).map_err(|e| e.to_string())
    }

    #[test]
    fn a_declaration_gives_a_source() {
        let source = check(GOOD).unwrap().source(&LicencePolicy::default());
        assert_eq!((source.tier, source.permissions), (Tier::Permissive, Permissions::ALL));
        let neutral = check(&GOOD.replace("\"train\"", "\"neutral\"")).unwrap().source(&LicencePolicy::default());
        assert_eq!(neutral.permissions, Permissions { train: false, ..Permissions::ALL });
    }

    #[test]
    fn faults_are_named() {
        for (from, to, says) in [
            ("\"MIT\"", "\"free\"", "no SPDX"),
            ("\"MIT\"", "\"GPL-2.0-only\"", "is restricted"),
            ("owner = \"o\"", "owner = \"\"", "owner"),
            ("title", "titel", "titel"),
            ("\"text\"", "\"word\"", "word"),
            ("name = \"s\"", "name = \"S S\"", "no source id"),
            ("role", "tier = \"public-domain\"\n role", "more open"),
            ("\"train\"", "\"neutral\"\n tier = \"restricted\"", "its role is neutral"),
        ] {
            let message = check(&GOOD.replace(from, to)).unwrap_err();
            assert!(message.contains(says), "{message:?} should say {says:?}");
        }
    }

    #[test]
    fn the_shipped_declarations_are_good() {
        let all = read_declarations(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../../datastore")).unwrap();
        let policy = LicencePolicy::default();
        for tier in [Tier::PublicDomain, Tier::Permissive, Tier::Attribution] {
            let n = all.iter().filter(|d| d.role == Role::Train && d.source(&policy).tier == tier).count();
            assert!(n >= 2, "{tier} has {n} training sources");
        }
        let domains = all.iter().filter(|d| d.role == Role::Domain && !d.source(&policy).tier.is_open());
        assert!(domains.count() >= 4);
    }
}
