//! The cache of a model that remembers nothing.

use silo_core::SequenceCache;

/// Only how much was read.
pub struct NoCache(pub usize);

impl SequenceCache for NoCache {
    fn len(&self) -> usize {
        self.0
    }

    fn truncate(&mut self, len: usize) {
        self.0 = len;
    }

    fn as_any_mut(&mut self) -> &mut dyn std::any::Any {
        self
    }
}
