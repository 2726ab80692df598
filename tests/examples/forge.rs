//! Receipts of a small store, and forgeries of them, for trying a verifier:
//!
//! `cargo run --release -p silo-tests --example forge -- FOLDER 1000`
//!
//! Writes `true-0.receipt` and so on, `forged-0.receipt` and so on, `keys.pub`, `true.statement` of what a source gave to answers, and
//! `forged-0.statement` and so on, in each of which a number is another, signed by the true key.

use std::path::PathBuf;

#[path = "../forgery/mod.rs"]
mod forgery;

fn main() {
    let mut arguments = std::env::args().skip(1);
    let folder = PathBuf::from(arguments.next().expect("a folder"));
    let n: u64 = arguments.next().expect("how many forgeries").parse().expect("a number");
    std::fs::create_dir_all(&folder).expect("a folder");
    let write = |name: String, text: &str| std::fs::write(folder.join(name), text).expect("a file");
    let (world, made) = forgery::receipts();
    let key = world.signing();
    write("keys.pub".into(), &world.keys.iter().map(|k| format!("{k}\n")).collect::<String>());
    made.iter().enumerate().for_each(|(i, text)| write(format!("true-{i}.receipt"), text));
    for seed in 0..n {
        let (what, forged) = forgery::forge(&made[seed as usize % made.len()], &key, seed);
        assert!(silo_log::Receipt::verify(&forged, &world.keys).is_err(), "seed {seed}, {what}");
        write(format!("forged-{seed}.receipt"), &forged);
    }
    let swapped: Vec<_> = made[1..].iter().flat_map(|text| forgery::swaps(&world, text)).collect();
    for (i, (what, forged)) in swapped.iter().enumerate() {
        assert!(silo_log::Receipt::verify(forged, &world.keys).is_err(), "{what}");
        write(format!("forged-swap-{i}.receipt"), forged);
    }
    let n = n + swapped.len() as u64;
    let (statement, forged) = forgery::statements(&world);
    write("true.statement".into(), &statement);
    for (i, text) in forged.iter().enumerate() {
        assert!(silo_log::Statement::verify(text, &world.keys).is_err(), "{text}");
        write(format!("forged-{i}.statement"), text);
    }
    let n = n + forged.len() as u64;
    println!("{} receipts, a statement, {n} forgeries, which our own verifier refuses", made.len());
}
