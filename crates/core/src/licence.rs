//! SPDX licence expression → tier.
//!
//! The taxonomy is SILO's (Min et al. 2023, §3): public domain, permissive, attribution, and everything else. In an
//! expression the most open branch of `OR` and the least open part of `AND` decide. What the tables do not name is
//! restricted.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use spdx::expression::{ExprNode, Operator};
use spdx::{Expression, LicenseItem, ParseMode};

/// How freely a text may be used, most open first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Tier {
    /// No restriction: expired or waived copyright, works of a government without one.
    PublicDomain,
    /// Software licences that ask for little more than their notice: MIT, BSD, Apache, ISC and their like.
    Permissive,
    /// Credit must be given: CC-BY, and CC-BY-SA by default.
    Attribution,
    /// The rest, and whatever is unknown.
    Restricted,
}

impl Tier {
    /// All tiers, most open first.
    pub const ALL: [Self; 4] = [Self::PublicDomain, Self::Permissive, Self::Attribution, Self::Restricted];

    /// Whether a model may be trained on it.
    pub fn is_open(self) -> bool {
        self != Self::Restricted
    }

    /// The name used in files and messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::PublicDomain => "public-domain",
            Self::Permissive => "permissive",
            Self::Attribution => "attribution",
            Self::Restricted => "restricted",
        }
    }
}

impl fmt::Display for Tier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Tier {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|t| t.name() == text).ok_or_else(|| {
            format!("'{text}' is no tier; the tiers are public-domain, permissive, attribution, restricted")
        })
    }
}

/// A text that is no SPDX licence expression.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "'{expression}' is no SPDX licence expression: {reason} at byte {offset}; write for example \"MIT OR Apache-2.0\", \
         or \"LicenseRef-…\" for terms without an SPDX identifier"
)]
pub struct UnknownLicence {
    /// What was given.
    pub expression: String,
    /// What is wrong with it.
    pub reason: String,
    /// Where.
    pub offset: usize,
}

/// The choices that the taxonomy leaves open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LicencePolicy {
    /// Whether permissive licences that SILO does not name (PSF, PostgreSQL, BSL, Zlib, …) count as permissive.
    pub permissive_unnamed: bool,
    /// Whether share-alike licences (CC-BY-SA) count as attribution, as in the paper.
    pub share_alike: bool,
}

impl Default for LicencePolicy {
    fn default() -> Self {
        Self { permissive_unnamed: true, share_alike: true }
    }
}

const PUBLIC_DOMAIN: &[&str] = &[
    "CC0-1.0",
    "CC-PDDC",
    "CC-PDM-1.0",
    "NIST-PD",
    "NIST-PD-fallback",
    "PDDL-1.0",
    "SAX-PD",
    "SAX-PD-2.0",
    "Unlicense",
    "blessing",
    "LicenseRef-public-domain",
    "LicenseRef-US-Gov-public-domain",
];

const PERMISSIVE: &[&str] = &[
    "0BSD",
    "Apache-2.0",
    "BSD-1-Clause",
    "BSD-2-Clause",
    "BSD-2-Clause-FreeBSD",
    "BSD-2-Clause-Patent",
    "BSD-2-Clause-Views",
    "BSD-3-Clause",
    "BSD-3-Clause-Clear",
    "BSD-4-Clause",
    "BSD-4-Clause-UC",
    "BSD-Source-Code",
    "ISC",
    "MIT",
    "MIT-0",
    "MIT-CMU",
    "X11",
];

const PERMISSIVE_UNNAMED: &[&str] = &[
    "BSL-1.0",
    "BlueOak-1.0.0",
    "CDLA-Permissive-1.0",
    "CDLA-Permissive-2.0",
    "HPND",
    "ICU",
    "NCSA",
    "NTP",
    "PSF-2.0",
    "PostgreSQL",
    "Python-2.0",
    "Ruby-pty",
    "TCL",
    "UPL-1.0",
    "Unicode-3.0",
    "Unicode-DFS-2016",
    "Zlib",
    "curl",
    "libpng-2.0",
    "zlib-acknowledgement",
    "LicenseRef-WordNet-3.0",
];

impl LicencePolicy {
    /// The tier of a licence expression. `/` is read as `OR`, as old Cargo manifests write it; names that SPDX does not know
    /// ("GPL", "BSD") are refused, since it would be a guess which licence they mean.
    pub fn tier(&self, expression: &str) -> Result<Tier, UnknownLicence> {
        let mode = ParseMode { allow_unknown: false, allow_imprecise_license_names: false, ..ParseMode::LAX };
        let parsed = Expression::parse_mode(expression, mode).map_err(|e| UnknownLicence {
            expression: expression.chars().take(200).collect(),
            reason: e.reason.to_string(),
            offset: e.span.start,
        })?;
        let mut stack = Vec::new();
        for node in parsed.iter() {
            match node {
                ExprNode::Req(r) => stack.push(self.tier_of_item(&r.req.license)),
                ExprNode::Op(op) => {
                    // The parser has checked the arity; a missing operand would still fall to the safe side.
                    let b = stack.pop().unwrap_or(Tier::Restricted);
                    let a = stack.pop().unwrap_or(Tier::Restricted);
                    stack.push(match op {
                        Operator::Or => a.min(b),
                        Operator::And => a.max(b),
                    });
                }
            }
        }
        Ok(stack.pop().unwrap_or(Tier::Restricted))
    }

    /// An exception (`WITH …`) only adds permissions, so the licence before it decides.
    fn tier_of_item(&self, item: &LicenseItem) -> Tier {
        let name = match item {
            LicenseItem::Spdx { id, .. } => id.name.to_owned(),
            LicenseItem::Other(reference) => reference.to_string(),
        };
        let name = name.as_str();
        if PUBLIC_DOMAIN.contains(&name) {
            Tier::PublicDomain
        } else if PERMISSIVE.contains(&name) || (self.permissive_unnamed && PERMISSIVE_UNNAMED.contains(&name)) {
            Tier::Permissive
        } else if is_cc_by(name) || (self.share_alike && name.starts_with("CC-BY-SA-")) || name == "ODC-By-1.0" {
            Tier::Attribution
        } else {
            Tier::Restricted
        }
    }
}

/// CC-BY in any version and jurisdiction, without the NC, ND and SA variants.
fn is_cc_by(name: &str) -> bool {
    name.strip_prefix("CC-BY-").is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(expression: &str, tier: Tier) {
        assert_eq!(LicencePolicy::default().tier(expression).unwrap(), tier, "{expression}");
    }

    #[test]
    fn tiers_of_single_licences() {
        check("CC0-1.0", Tier::PublicDomain);
        check("Unlicense", Tier::PublicDomain);
        check("LicenseRef-public-domain", Tier::PublicDomain);
        check("MIT", Tier::Permissive);
        check("BSD-3-Clause", Tier::Permissive);
        check("PSF-2.0", Tier::Permissive);
        check("CC-BY-4.0", Tier::Attribution);
        check("CC-BY-SA-3.0", Tier::Attribution);
        check("CC-BY-NC-4.0", Tier::Restricted);
        check("CC-BY-NC-SA-4.0", Tier::Restricted);
        check("CC-BY-ND-4.0", Tier::Restricted);
        check("GPL-3.0-or-later", Tier::Restricted);
        check("LicenseRef-unclear", Tier::Restricted);
        check("OPUBL-1.0", Tier::Restricted);
    }

    #[test]
    fn or_takes_the_most_open_branch_and_and_the_least_open_part() {
        check("Unlicense OR MIT", Tier::PublicDomain);
        check("Unlicense/MIT", Tier::PublicDomain);
        check("MIT/Apache-2.0", Tier::Permissive);
        check("MIT or Apache-2.0", Tier::Permissive);
        check("CC-BY-SA-3.0 OR GFDL-1.3-or-later", Tier::Attribution);
        check("Apache-2.0 AND ISC", Tier::Permissive);
        check("MIT AND GPL-2.0-only", Tier::Restricted);
        check("(MIT OR GPL-2.0-only) AND CC-BY-4.0", Tier::Attribution);
        check("Apache-2.0 WITH LLVM-exception OR Apache-2.0 OR MIT", Tier::Permissive);
        check("GPL-2.0-or-later WITH Classpath-exception-2.0", Tier::Restricted);
        check("Artistic-1.0-Perl OR GPL-1.0-or-later", Tier::Restricted);
    }

    #[test]
    fn policy_switches() {
        let strict = LicencePolicy { permissive_unnamed: false, share_alike: false };
        assert_eq!(strict.tier("PSF-2.0").unwrap(), Tier::Restricted);
        assert_eq!(strict.tier("CC-BY-SA-4.0").unwrap(), Tier::Restricted);
        assert_eq!(strict.tier("CC-BY-4.0").unwrap(), Tier::Attribution);
        assert_eq!(strict.tier("MIT").unwrap(), Tier::Permissive);
    }

    #[test]
    fn what_is_no_expression_says_where_and_what_to_do() {
        for bad in ["", "free", "MIT OR", "Licence: GPL", "MIT AND (ISC"] {
            let error = LicencePolicy::default().tier(bad).unwrap_err().to_string();
            assert!(error.contains("no SPDX licence expression") && error.contains("MIT OR Apache-2.0"), "{error}");
        }
    }
}
