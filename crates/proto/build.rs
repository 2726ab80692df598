//! Compiles `proto/` without a system protoc.

use std::path::PathBuf;

use prost::Message;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = [
        "silo/v1/common.proto",
        "silo/v1/generation.proto",
        "silo/v1/datastore.proto",
        "silo/v1/optout.proto",
        "silo/v1/attribution.proto",
        "google/longrunning/operations.proto",
    ];
    println!("cargo:rerun-if-changed=../../proto");
    let descriptors = protox::compile(files, ["../../proto"])?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?).join("descriptors.bin");
    std::fs::write(out, descriptors.encode_to_vec())?;
    let mut config = prost_build::Config::new();
    config.enable_type_names();
    // Far larger than what else may stand in their places.
    config.boxed(".silo.v1.GenerateChunk.message.finished");
    config.boxed(".silo.v1.CompareWithoutResponse.compared");
    tonic_prost_build::configure().compile_fds_with_config(descriptors, config)?;
    Ok(())
}
