//! From what a curator writes to a source.

use silo_core::{LicencePolicy, Permissions, Source, Tier};

use crate::GovernError;

/// What a curator writes about a source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Declaration {
    /// Its name.
    pub name: String,
    /// Who holds the rights, or gave the collection out.
    pub owner: String,
    /// SPDX licence expression.
    pub licence: String,
    /// Where the licence is stated.
    pub licence_stated_at: String,
    /// What the licence asks to be given with what is made from it.
    pub notice: String,
    /// A tier, if it should be more restrictive than the licence.
    pub tier: Option<Tier>,
    /// What is permitted; the tier's defaults if left out.
    pub permissions: Option<Permissions>,
}

/// A notice goes with every answer that its source has a part in.
const MAX_NOTICE_BYTES: usize = 16 * 1024;

/// Checks a declaration. The tier is the licence's unless a more restrictive one is declared; permissions are never more than
/// the tier's.
pub fn declare(declaration: &Declaration, policy: &LicencePolicy) -> Result<Source, GovernError> {
    let id = declaration.name.parse()?;
    if declaration.owner.trim().is_empty() {
        return Err(GovernError::Missing {
            field: "owner",
            rule: "say who holds the rights, or who gave the collection out",
        });
    }
    if declaration.notice.len() > MAX_NOTICE_BYTES {
        return Err(GovernError::Long { field: "notice", bytes: declaration.notice.len(), limit: MAX_NOTICE_BYTES });
    }
    let by_licence = policy.tier(&declaration.licence)?;
    let tier = declaration.tier.unwrap_or(by_licence);
    if tier < by_licence {
        let licence = declaration.licence.clone();
        return Err(GovernError::TierTooOpen { declared: tier, licence, by_licence });
    }
    let of_tier = Permissions::of_tier(tier);
    Ok(Source {
        id,
        owner: declaration.owner.clone(),
        licence: declaration.licence.clone(),
        licence_stated_at: declaration.licence_stated_at.clone(),
        notice: declaration.notice.clone(),
        tier,
        permissions: declaration.permissions.map_or(of_tier, |p| p.and(of_tier)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn declaration(licence: &str, tier: Option<Tier>) -> Declaration {
        Declaration {
            name: "s".into(),
            owner: "o".into(),
            licence: licence.into(),
            licence_stated_at: String::new(),
            notice: String::new(),
            tier,
            permissions: None,
        }
    }

    fn check(declaration: &Declaration) -> Result<Source, GovernError> {
        declare(declaration, &LicencePolicy::default())
    }

    #[test]
    fn the_licence_decides_and_a_declaration_may_only_restrict() {
        assert_eq!(check(&declaration("MIT", None)).unwrap().tier, Tier::Permissive);
        assert_eq!(check(&declaration("MIT", Some(Tier::Restricted))).unwrap().tier, Tier::Restricted);
        let error = check(&declaration("GPL-2.0-only", Some(Tier::Permissive))).unwrap_err().to_string();
        assert!(error.contains("declared as permissive") && error.contains("makes it restricted"), "{error}");
        assert!(matches!(check(&declaration("GPL", None)), Err(GovernError::Licence(_))));
    }

    #[test]
    fn permissions_never_exceed_the_tiers() {
        let all = Declaration { permissions: Some(Permissions::ALL), ..declaration("GPL-2.0-only", None) };
        let source = check(&all).unwrap();
        assert_eq!(source.permissions, Permissions::of_tier(Tier::Restricted));
        let none = Permissions { knn: false, ..Permissions::ALL };
        let fewer = Declaration { permissions: Some(none), ..declaration("MIT", None) };
        assert!(!check(&fewer).unwrap().permissions.knn);
    }

    #[test]
    fn what_is_missing_is_named() {
        let anonymous = Declaration { owner: " ".into(), ..declaration("MIT", None) };
        assert!(check(&anonymous).unwrap_err().to_string().starts_with("owner is missing"));
        let long = Declaration { notice: "x".repeat(MAX_NOTICE_BYTES + 1), ..declaration("MIT", None) };
        assert!(check(&long).unwrap_err().to_string().contains("at most 16384 bytes"));
    }
}
