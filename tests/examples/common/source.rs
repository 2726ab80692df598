//! A source.

use silo_core::{Permissions, Source, Tier};

/// A restricted source of that name.
pub fn source(id: &str) -> Source {
    Source {
        id: id.parse().expect("a plain name"),
        owner: "somebody".into(),
        licence: "LicenseRef-any".into(),
        licence_stated_at: String::new(),
        notice: String::new(),
        tier: Tier::Restricted,
        permissions: Permissions::of_tier(Tier::Restricted),
    }
}
