//! A document: the unit of licence, of splitting and of removal.

use serde::{Deserialize, Serialize};

use crate::{ContentHash, SourceId, Tier};

/// One text of a source. Its logical id is (source, [`Document::hash`]).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Document {
    /// The source that it belongs to.
    pub source: SourceId,
    /// Where it came from, as a package URL or a path inside the collection; never a host's address of ours.
    pub uri: String,
    /// A title to show; may be empty.
    pub title: String,
    /// SPDX expression of this document, where it differs from its source's.
    pub licence: String,
    /// Its own tier: a source may hold files of several.
    pub tier: Tier,
    /// The text.
    pub text: String,
}

impl Document {
    /// SHA-256 of the text.
    pub fn hash(&self) -> ContentHash {
        ContentHash::of(self.text.as_bytes())
    }
}
