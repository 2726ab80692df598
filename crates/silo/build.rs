//! Gives the program the hash of its sources, so that results can say which commit they are of.

#[path = "src/sources.rs"]
mod sources;

use std::path::Path;

fn main() -> std::io::Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    for place in sources::places(&root)? {
        println!("cargo::rerun-if-changed={}", place.display());
    }
    println!("cargo::rustc-env=SILO_SOURCES={}", sources::hash(&root)?);
    Ok(())
}
