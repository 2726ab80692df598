//! Every dependency is under an open licence, by the same rule that decides the tier of a text.

use cargo_metadata::MetadataCommand;
use silo_core::{LicencePolicy, Tier};

/// Crates whose licence the tier table does not call open, and why they may be used.
const EXCEPTIONS: &[(&str, &str)] =
    &[("option-ext", "MPL-2.0: file-level copyleft on unmodified files, used through their interface")];

#[test]
fn dependencies_are_openly_licensed() {
    let metadata = MetadataCommand::new().exec().unwrap();
    let policy = LicencePolicy::default();
    let mut faults = Vec::new();
    for package in metadata.packages.iter().filter(|p| p.source.is_some()) {
        if EXCEPTIONS.iter().any(|(name, _)| *name == package.name.as_str()) {
            continue;
        }
        match package.license.as_deref().map(|l| policy.tier(l)) {
            Some(Ok(Tier::PublicDomain | Tier::Permissive)) => {}
            Some(Ok(tier)) => {
                faults.push(format!("{} {} is {tier}: {:?}", package.name, package.version, package.license))
            }
            Some(Err(error)) => faults.push(format!("{} {}: {error}", package.name, package.version)),
            None => faults.push(format!("{} {} states no licence", package.name, package.version)),
        }
    }
    assert!(metadata.packages.len() > 100);
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}
