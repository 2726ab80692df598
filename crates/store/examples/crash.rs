//! Kills a process that works on a store, at every boundary between writes and at random, and looks at what it leaves:
//! `cargo run --release -p silo-store --example crash -- SEED KILLS` (of each boundary 5; random ones KILLS).

#[path = "../tests/crash/mod.rs"]
mod crash;
#[path = "../tests/recipes/mod.rs"]
mod recipes;
#[path = "../tests/reference/mod.rs"]
mod reference;

use std::process::{Child, Command, Stdio};

use crash::{Campaign, Plan, Witness};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use silo_store::Boundary;

/// Occurrences of each boundary that a child is killed at.
const OF_EACH: u64 = 5;

fn spawn(plan: &Plan) -> Child {
    let mut command = Command::new(std::env::current_exe().expect("a program knows itself"));
    command.args(["child", &serde_json::to_string(plan).expect("a plan is JSON")]);
    command.stdout(Stdio::null()).spawn().expect("the program starts")
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [role, plan] = &arguments[..]
        && role == "child"
    {
        let plan: Plan = serde_json::from_str(plan).expect("the parent writes plans");
        return crash::child(&plan, &recipes::recipe_of(plan.lists));
    }
    let number = |i: usize, default| arguments.get(i).map_or(default, |a| a.parse::<u64>().expect("a number"));
    let (seed, kills) = (number(0, 1), number(1, 300));
    for lists in [false, true] {
        let (directory, recipe) = (tempfile::tempdir().expect("a directory"), recipes::recipe_of(lists));
        let witness = Witness::default();
        let mut campaign = Campaign {
            directory: directory.path(),
            recipe: &recipe,
            lists,
            skip_removals: false,
            spawn: &spawn,
            witness,
        };
        let mut met = vec![0; Boundary::ALL.len()];
        for nth in 1..=OF_EACH {
            for (boundary, met) in met.iter_mut().enumerate() {
                *met += u64::from(campaign.at_boundary(seed * 1_000_000 + nth * 100 + boundary as u64, boundary, nth));
            }
        }
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        for kill in 0..kills / 2 {
            campaign.anywhere(seed * 1_000_000 + 1000 + kill, &mut rng);
        }
        for limit in [20_000, 40_000, 70_000, 120_000, 200_000] {
            campaign.on_a_full_disk(seed, limit);
        }
        let w = &campaign.witness;
        let recipe = &recipe.name;
        println!(
            "seed {seed}, recipe {recipe}: {} random kills; {} operations acknowledged, none lost",
            kills / 2,
            w.n_acknowledged
        );
        println!("  {} cut off in the midst, of which {} were found done and the others undone", w.n_cut, w.n_cut_done);
        for (boundary, met) in Boundary::ALL.iter().zip(met) {
            println!("  {boundary:?}: killed {met} times");
        }
    }
}
