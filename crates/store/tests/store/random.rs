//! A short run of what `examples/simulate.rs` does at length.

use super::recipe_of;
use super::simulation::{Plan, run};

fn plan(seed: u64, lists: bool) -> Plan {
    Plan { seed, n_operations: 1500, recipe: recipe_of(lists), skip_removals: false }
}

#[test]
fn random_operations_on_an_exact_store() {
    run(plan(1, false));
}

#[test]
fn random_operations_on_a_store_of_inverted_lists() {
    run(plan(2, true));
}

/// Whether the run would notice.
#[test]
#[should_panic(expected = "left == right")]
fn without_the_removals_it_fails() {
    run(Plan { skip_removals: true, ..plan(3, false) });
}
