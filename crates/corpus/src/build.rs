//! Declared sources → corpus files.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use silo_core::{ContentHash, LicencePolicy};

use crate::files::{path_of, read_lines};
use crate::package::{Kind, Unpacked, fetch, matching};
use crate::repeats::exclude;
use crate::resolve::{PackageLicence, share_copyright};
use crate::shape;
use crate::{
    BuildReport, CorpusDocument, CorpusError, Format, Importer, Resolver, Role, SourceDeclaration, SourceReport, Split,
    write_documents,
};

/// Texts shorter than this are no documents.
const MIN_BYTES: usize = 200;
/// Sources of fewer files are split by part.
const FEW_FILES: usize = 20;
/// Bytes of a file in which its licence header is looked for.
const HEAD_BYTES: usize = 4096;

/// Builds corpus files.
pub struct CorpusBuilder<'a> {
    /// Licences → tiers.
    pub policy: LicencePolicy,
    /// Where packages are kept.
    pub cache: &'a Path,
    /// Where the corpus goes: `<source>.jsonl.zst` and `report.json`.
    pub output: &'a Path,
    /// Told what is being done.
    pub progress: &'a dyn Fn(&str),
}

/// A line of a JSON Lines source.
#[derive(Deserialize)]
struct Line {
    text: String,
    #[serde(default)]
    uri: String,
    #[serde(default)]
    title: String,
    #[serde(default)]
    licence: Option<String>,
}

struct Imported {
    packages: Vec<String>,
    documents: Vec<CorpusDocument>,
}

impl CorpusBuilder<'_> {
    /// Builds all declared sources. Files are written when everything is known, one by one, each whole or not at all.
    pub fn build(&self, declarations: &[SourceDeclaration]) -> Result<BuildReport, CorpusError> {
        self.refuse_to_forget_others(declarations)?;
        std::fs::create_dir_all(self.output).map_err(CorpusError::io(self.output))?;
        let mut all = Vec::new();
        for declaration in declarations {
            (self.progress)(&format!("importing {}", declaration.name));
            all.push(self.import(declaration)?);
        }
        (self.progress)("looking for repeated text");
        exclude(declarations.iter().map(|d| d.role).zip(all.iter_mut().map(|i| &mut i.documents)).collect());
        let mut sources = Vec::new();
        for (declaration, imported) in declarations.iter().zip(&all) {
            write_documents(&path_of(self.output, &declaration.name), &imported.documents)?;
            sources.push(SourceReport::of(declaration, &imported.packages, &imported.documents));
        }
        let report = BuildReport { sources };
        report.write(self.output)?;
        Ok(report)
    }

    /// What repeats another source's text is left out: some sources cannot be built anew beside others that are not looked at.
    fn refuse_to_forget_others(&self, declarations: &[SourceDeclaration]) -> Result<(), CorpusError> {
        let report = match BuildReport::read(self.output) {
            Err(CorpusError::NoCorpus { .. }) => return Ok(()),
            report => report?,
        };
        let built = |s: &&SourceReport| declarations.iter().any(|d| d.name == s.name);
        let others: Vec<&SourceReport> = report.sources.iter().filter(|s| !built(s)).collect();
        let others = match others[..] {
            [] => return Ok(()),
            [other] => format!("'{}'", other.name),
            [other, ref more @ ..] => format!("'{}' and {} more", other.name, more.len()),
        };
        Err(CorpusError::HoldsOthers { path: self.output.to_owned(), others })
    }

    fn import(&self, declaration: &SourceDeclaration) -> Result<Imported, CorpusError> {
        let resolver = Resolver::new(declaration, self.policy)
            .map_err(|reason| CorpusError::Declaration { path: PathBuf::from(declaration.name.as_str()), reason })?;
        let mut documents = match &declaration.importer {
            Importer::Jsonl { path } => self.lines(declaration, &resolver, Path::new(path))?,
            other => self.files(declaration, &resolver, other)?,
        };
        shape::drop_repeated(documents.documents.iter_mut().map(|d| &mut d.text));
        let role = (documents.documents.len() < FEW_FILES).then_some(declaration.role);
        documents.documents = documents.documents.into_iter().flat_map(|d| cut(d, role)).collect();
        cap(&mut documents.documents, declaration.max_bytes);
        if documents.documents.is_empty() {
            let patterns = patterns(&declaration.importer);
            return Err(CorpusError::NoDocument { name: declaration.name.to_string(), patterns });
        }
        documents.documents.sort_by(|a, b| a.uri.cmp(&b.uri));
        Ok(documents)
    }

    fn packages(&self, importer: &Importer) -> Result<Vec<Unpacked>, CorpusError> {
        let one = |kind, package: &str, version: Option<&str>| Ok(vec![fetch(kind, package, version, self.cache)?]);
        match importer {
            Importer::Debian { packages, .. } => {
                let mut all =
                    packages.iter().map(|p| fetch(Kind::Debian, p, None, self.cache)).collect::<Result<Vec<_>, _>>()?;
                share_copyright(all.iter_mut().map(|u| &mut u.licence));
                Ok(all)
            }
            Importer::Pypi { package, version, .. } => one(Kind::Pypi, package, version.as_deref()),
            Importer::Npm { package, version, .. } => one(Kind::Npm, package, version.as_deref()),
            Importer::Cargo { package, version, .. } => one(Kind::Cargo, package, Some(version)),
            Importer::Directory { path, .. } => {
                let root = PathBuf::from(path);
                // A directory has no package around it; what its owner declared is all there is.
                Ok(vec![Unpacked { root, purl: String::new(), licence: PackageLicence::default() }])
            }
            Importer::Jsonl { .. } => Ok(Vec::new()),
        }
    }

    fn files(
        &self,
        declaration: &SourceDeclaration,
        resolver: &Resolver,
        importer: &Importer,
    ) -> Result<Imported, CorpusError> {
        let (files, exclude, format) = match importer {
            Importer::Debian { files, exclude, format, .. }
            | Importer::Pypi { files, exclude, format, .. }
            | Importer::Npm { files, exclude, format, .. }
            | Importer::Cargo { files, exclude, format, .. }
            | Importer::Directory { files, exclude, format, .. } => (files, exclude, *format),
            Importer::Jsonl { .. } => return Ok(Imported { packages: Vec::new(), documents: Vec::new() }),
        };
        let directory = matches!(importer, Importer::Directory { .. });
        let mut out = Imported { packages: Vec::new(), documents: Vec::new() };
        for mut unpacked in self.packages(importer)? {
            if directory {
                unpacked.purl = format!("dir:{}", declaration.name);
                unpacked.licence.expression = Some(declaration.licence.clone());
            }
            for path in matching(&unpacked.root, files, exclude)? {
                out.documents.extend(self.document(declaration, resolver, &unpacked, &path, format)?);
            }
            out.packages.push(unpacked.purl);
        }
        Ok(out)
    }

    fn document(
        &self,
        declaration: &SourceDeclaration,
        resolver: &Resolver,
        unpacked: &Unpacked,
        path: &Path,
        format: Format,
    ) -> Result<Option<CorpusDocument>, CorpusError> {
        let full = unpacked.root.join(path);
        let mut bytes = std::fs::read(&full).map_err(CorpusError::io(&full))?;
        if path.extension().is_some_and(|e| e == "gz" || e == "dz") {
            let mut plain = Vec::new();
            std::io::Read::read_to_end(&mut flate2::read::MultiGzDecoder::new(&bytes[..]), &mut plain)
                .map_err(CorpusError::io(&full))?;
            bytes = plain;
        }
        let cleaned = format.clean(&bytes);
        if cleaned.text.len() < MIN_BYTES {
            return Ok(None);
        }
        let head = String::from_utf8_lossy(&bytes[..bytes.len().min(HEAD_BYTES)]);
        let evidence = resolver.decide(path, &head, &unpacked.licence);
        let uri = format!("{}#{}", unpacked.purl, path.display());
        Ok(Some(self.make(declaration, uri, cleaned.title, cleaned.text, evidence)))
    }

    fn make(
        &self,
        declaration: &SourceDeclaration,
        uri: String,
        title: String,
        text: String,
        evidence: crate::Evidence,
    ) -> CorpusDocument {
        let source = declaration.source(&self.policy);
        CorpusDocument {
            source: source.id,
            title,
            licence: evidence.licence,
            tier: evidence.tier,
            evidence: evidence.ground,
            train: source.permissions.train && evidence.tier.is_open(),
            hash: ContentHash::of(text.as_bytes()),
            split: Split::of(&uri, declaration.role),
            excluded: None,
            overlap: None,
            uri,
            text,
        }
    }

    fn lines(
        &self,
        declaration: &SourceDeclaration,
        resolver: &Resolver,
        path: &Path,
    ) -> Result<Imported, CorpusError> {
        let lines: Vec<Line> = read_lines(path)?;
        let document = |(i, line): (usize, Line)| {
            let cleaned = Format::Text.clean(line.text.as_bytes());
            let package = PackageLicence {
                copyright: None,
                expression: Some(line.licence.unwrap_or(declaration.licence.clone())),
            };
            let evidence = resolver.decide(path, "", &package);
            let uri = if line.uri.is_empty() { format!("jsonl:{}#{}", declaration.name, i + 1) } else { line.uri };
            self.make(declaration, uri, line.title, cleaned.text, evidence)
        };
        let documents: Vec<_> =
            lines.into_iter().enumerate().map(document).filter(|d| !d.text.trim().is_empty()).collect();
        Ok(Imported { packages: vec![format!("jsonl:{}", declaration.name)], documents })
    }
}

/// Cuts a document into parts that share its URI up to the number; texts that are too short are left out. Parts share the split of
/// their document, unless a role is given: then each has its own, so that a source of a few long files has all three splits.
fn cut(document: CorpusDocument, role: Option<Role>) -> Vec<CorpusDocument> {
    let parts = shape::parts(&document.text);
    let several = parts.len() > 1;
    let part = |(i, text): (usize, &str)| {
        let uri = if several { format!("{}&part={}", document.uri, i + 1) } else { document.uri.clone() };
        let text = format!("{}\n", text.trim_end());
        CorpusDocument {
            hash: ContentHash::of(text.as_bytes()),
            split: role.map_or(document.split, |role| Split::of(&uri, role)),
            title: document.title.clone(),
            source: document.source.clone(),
            licence: document.licence.clone(),
            evidence: document.evidence.clone(),
            excluded: None,
            overlap: None,
            tier: document.tier,
            train: document.train,
            uri,
            text,
        }
    };
    parts.into_iter().enumerate().map(part).filter(|d| d.text.len() >= MIN_BYTES).collect()
}

fn patterns(importer: &Importer) -> Vec<String> {
    match importer {
        Importer::Debian { files, .. }
        | Importer::Pypi { files, .. }
        | Importer::Npm { files, .. }
        | Importer::Cargo { files, .. }
        | Importer::Directory { files, .. } => files.clone(),
        Importer::Jsonl { path } => vec![path.clone()],
    }
}

/// Keeps documents in the order of their hashes until the cap is reached: a sample that depends on the texts alone.
fn cap(documents: &mut Vec<CorpusDocument>, max_bytes: Option<u64>) {
    let Some(max) = max_bytes else { return };
    documents.sort_by_key(|d| d.hash);
    let mut total = 0;
    documents.retain(|d| {
        total += d.text.len() as u64;
        total <= max
    });
}
