//! What tests of several modules are made from.

use proptest::prelude::*;
use silo_engine::{Evidence, Retrieved};

/// A token with some neighbours, of a small vocabulary.
pub(crate) fn evidence() -> impl Strategy<Value = Evidence> {
    let neighbor = (0.0f32..50.0, 0u32..4, 0u16..5);
    let neighbors = prop::collection::vec(neighbor, 0..8).prop_map(|mut neighbors| {
        neighbors.sort_by(|a, b| a.0.total_cmp(&b.0));
        neighbors.into_iter().map(|(distance, value, matched)| Retrieved { distance, value, matched }).collect()
    });
    let tempered = prop::collection::vec(-9.0f64..0.0, 0..3);
    let one = (0u32..4, -9.0f64..-0.01, 0.0f64..3.0, tempered, neighbors);
    one.prop_map(|(token, parametric_log_probability, model_entropy, tempered, neighbors)| Evidence {
        token,
        parametric_log_probability,
        model_entropy,
        tempered,
        neighbors,
    })
}
