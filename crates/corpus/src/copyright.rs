//! Debian copyright files (DEP-5) → SPDX expressions.

use std::path::Path;
use std::str::FromStr;

use debian_copyright::GlobPattern;
use debian_copyright::lossless::{Copyright, FilesParagraph};

/// Debian's short names and SPDX's. Names that are equal in both are left out.
const NAMES: &[(&str, &str)] = &[
    ("Expat", "MIT"),
    ("Apache-2", "Apache-2.0"),
    ("APACHE-2-LLVM-EXCEPTIONS", "Apache-2.0 WITH LLVM-exception"),
    ("BSD-2", "BSD-2-Clause"),
    ("BSD-2-clause", "BSD-2-Clause"),
    ("BSD-3", "BSD-3-Clause"),
    ("BSD-3-clause", "BSD-3-Clause"),
    ("BSD-4-clause", "BSD-4-Clause"),
    ("Go", "BSD-3-Clause"),
    ("ISC", "ISC"),
    ("public-domain", "LicenseRef-public-domain"),
    ("PD", "LicenseRef-public-domain"),
    ("GPL-2", "GPL-2.0-only"),
    ("GPL-2+", "GPL-2.0-or-later"),
    ("GPL-3", "GPL-3.0-only"),
    ("GPL-3+", "GPL-3.0-or-later"),
    ("LGPL-2.1", "LGPL-2.1-only"),
    ("LGPL-2.1+", "LGPL-2.1-or-later"),
    ("LGPL-3+", "LGPL-3.0-or-later"),
    ("GFDL-1.1+", "GFDL-1.1-or-later"),
    ("GFDL-1.2+", "GFDL-1.2-or-later"),
    ("GFDL-1.3", "GFDL-1.3-only"),
    ("GFDL-1.3+", "GFDL-1.3-or-later"),
    ("GFDL-NIV-1.3", "GFDL-1.3-no-invariants-only"),
    ("OPL-1+", "OPUBL-1.0"),
    ("CC-BY-3", "CC-BY-3.0"),
    ("CC-BY-4", "CC-BY-4.0"),
    ("CC-BY-SA-3", "CC-BY-SA-3.0"),
    ("CC-BY-SA-4", "CC-BY-SA-4.0"),
    ("Boost-1.0", "BSL-1.0"),
    ("BSL-1", "BSL-1.0"),
    ("PSF-2", "PSF-2.0"),
    ("Artistic", "Artistic-1.0-Perl"),
    ("ZLIB", "Zlib"),
];

/// A copyright file, read once for all files of its package: some have hundreds of globs.
///
/// Its globs name paths in the source package, while we hold paths of installed files. Besides `*` only globs that happen to match are
/// found, and those that end in the very name of the file. Whoever calls takes the most restrictive of all of these and of the declaration.
#[derive(Debug, Clone, Default)]
pub struct FileLicences {
    paragraphs: Vec<(Vec<GlobPattern>, Option<String>)>,
    is_missing: bool,
}

impl FileLicences {
    /// Reads a copyright file. One that is no DEP-5 file says nothing of any path; an empty one is a missing one.
    pub fn parse(text: &str) -> Self {
        let is_missing = text.is_empty();
        let Ok(parsed) = Copyright::from_str(text) else { return Self { paragraphs: Vec::new(), is_missing } };
        let paragraph = |p: FilesParagraph| {
            let name = p.license().and_then(|l| l.name().map(spdx));
            (p.try_compiled_patterns().unwrap_or_default(), name)
        };
        Self { paragraphs: parsed.iter_files().map(paragraph).collect(), is_missing }
    }

    /// Whether the package has none of its own.
    pub(crate) fn is_missing(&self) -> bool {
        self.is_missing
    }

    /// What it says of a path, by the last paragraph that names it, and of files of this name elsewhere; nothing where it says nothing that
    /// can be read.
    pub(crate) fn of(&self, path: &Path) -> Vec<&str> {
        let Some((whole, name)) = path.to_str().zip(path.file_name().and_then(|n| n.to_str())) else {
            return Vec::new();
        };
        // Installed files are often compressed.
        let name = name.trim_end_matches(".gz");
        let matching = |globs: &[GlobPattern]| globs.iter().any(|g| g.is_match(whole));
        let named = |globs: &[GlobPattern]| globs.iter().any(|g| g.pattern().rsplit('/').next() == Some(name));
        let Some((_, Some(last))) = self.paragraphs.iter().rfind(|(globs, _)| matching(globs)) else {
            return Vec::new();
        };
        let others =
            self.paragraphs.iter().filter(|(globs, _)| named(globs)).filter_map(|(_, licence)| licence.as_deref());
        std::iter::once(last.as_str()).chain(others).collect()
    }
}

/// Debian's expression (`A or B`, `A and B`, commas) as an SPDX one.
pub(crate) fn spdx(expression: &str) -> String {
    let spaced = expression.replace(',', " ").replace('(', " ( ").replace(')', " ) ");
    let words = spaced.split_whitespace().map(|word| match word {
        "or" | "and" | "with" => word.to_uppercase(),
        "|" => "OR".to_owned(),
        word => NAMES.iter().find(|(debian, _)| debian.eq_ignore_ascii_case(word)).map_or(word, |(_, s)| s).to_owned(),
    });
    words.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEP5: &str = "Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\n\n\
        Files: *\nCopyright: A\nLicense: Expat\n\n\
        Files: doc/*\nCopyright: B\nLicense: CC-BY-SA-3 or GFDL-1.3+\n\n\
        License: Expat\n text\n";

    #[test]
    fn the_last_matching_paragraph_decides() {
        let licences = FileLicences::parse(DEP5);
        assert_eq!(licences.of(Path::new("src/a.c")), ["MIT"]);
        assert_eq!(licences.of(Path::new("doc/a.html")), ["CC-BY-SA-3.0 OR GFDL-1.3-or-later"]);
    }

    #[test]
    fn a_misspelt_field_and_free_text_say_nothing() {
        for text in [&DEP5.replace("License:", "Licence:"), "This package is in the public domain."] {
            assert_eq!(FileLicences::parse(text).of(Path::new("a")), [""; 0]);
        }
    }
}
