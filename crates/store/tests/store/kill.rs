//! A process that is killed, at every boundary between writes and anywhere.

use std::process::{Child, Command, Stdio};

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use silo_store::Boundary;

use super::crash::{self, Campaign, Plan, Witness};
use super::recipe_of;

/// Tells this test's own binary, started anew, that it is the process to be killed.
const PLAN: &str = "SILO_TEST_CRASH_PLAN";

/// The process that is killed: without a plan there is nothing to do.
#[test]
fn child() {
    if let Ok(plan) = std::env::var(PLAN) {
        let plan: Plan = serde_json::from_str(&plan).unwrap();
        crash::child(&plan, &recipe_of(plan.lists));
    }
}

fn spawn(plan: &Plan) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "kill::child"]).env(PLAN, serde_json::to_string(plan).unwrap());
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

fn campaign(lists: bool, skip_removals: bool, run: impl FnOnce(&mut Campaign<'_>)) -> Witness {
    let (directory, recipe) = (tempfile::tempdir().unwrap(), recipe_of(lists));
    let witness = Witness::default();
    let mut campaign =
        Campaign { directory: directory.path(), recipe: &recipe, lists, skip_removals, spawn: &spawn, witness };
    run(&mut campaign);
    campaign.witness
}

#[test]
fn killed_at_every_boundary() {
    campaign(true, false, |campaign| {
        for boundary in 0..Boundary::ALL.len() {
            assert!(campaign.at_boundary(boundary as u64, boundary, 1), "{:?} was not met", Boundary::ALL[boundary]);
        }
    });
}

#[test]
fn killed_anywhere() {
    let witness = campaign(false, false, |campaign| {
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        (100..115).for_each(|seed| campaign.anywhere(seed, &mut rng));
    });
    assert!(witness.n_acknowledged > 15);
}

/// What cannot be written is not done; what is acknowledged is. The journal itself stays under the least of the limits.
#[test]
fn a_full_disk_and_short_writes() {
    let witness = campaign(true, false, |campaign| {
        [20_000, 40_000, 70_000, 120_000, 200_000].into_iter().for_each(|limit| campaign.on_a_full_disk(7, limit));
    });
    assert!(witness.n_acknowledged > 40);
}

/// Whether the check would notice.
#[test]
#[should_panic(expected = ", should ")]
fn without_the_removals_it_fails() {
    campaign(false, true, |campaign| assert!(campaign.at_boundary(1, 0, 9)));
}
