//! Random operations against a store and an in-memory model of it: `cargo run --release -p silo-store --example simulate -- 1 50000`
//! (seed, operations; seeds that are odd use the exact recipe, even ones inverted lists).

#[path = "../tests/recipes/mod.rs"]
mod recipes;
#[path = "../tests/reference/mod.rs"]
mod reference;
#[path = "../tests/simulation/mod.rs"]
mod simulation;

fn main() {
    let mut arguments = std::env::args().skip(1).map(|a| a.parse::<u64>().expect("a seed and a number of operations"));
    let (seed, n_operations) = (arguments.next().unwrap_or(1), arguments.next().unwrap_or(10_000));
    let recipe = recipes::recipe_of(seed.is_multiple_of(2));
    let plan = simulation::Plan { seed, n_operations, recipe, skip_removals: false };
    let counts = simulation::run(plan);
    println!("seed {seed}: {n_operations} operations, no difference");
    for (operation, n) in counts {
        println!("  {operation:?} {n}");
    }
}
