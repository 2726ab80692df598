//! `silo key`.

use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, Subcommand};
use serde_json::json;
use silo_govern::now_unix_ms;
use silo_log::KeyFile;

use crate::output;

/// The key that receipts and checkpoints of the log are signed with.
#[derive(Debug, Subcommand)]
pub enum Key {
    /// Make a key. The secret one is never overwritten; the public one stands beside it.
    Create(Create),
    /// Make a key in the place of one, with a statement that both have signed. Receipts of before stay verifiable.
    Rotate(Rotate),
    /// Show the public keys.
    Show(Rotate),
}

/// Makes a key.
#[derive(Debug, Args)]
pub struct Create {
    /// Whose it is, as a name without spaces: example.org/silo. It stands in every receipt.
    name: String,
    #[command(flatten)]
    file: File,
}

/// Replaces a key, or shows it.
#[derive(Debug, Args)]
pub struct Rotate {
    #[command(flatten)]
    file: File,
}

/// The file of the secret key.
#[derive(Debug, Args)]
struct File {
    /// The file of the secret key, `govern.signing_key` of the server's configuration.
    #[arg(long, value_name = "PATH", default_value = "datastore/keys/silo.key")]
    key: PathBuf,
}

impl Key {
    /// Does it.
    pub fn run(self, as_json: bool) -> Result<()> {
        let (path, keys) = match self {
            Self::Create(c) => (c.file.key.clone(), KeyFile::create(&c.file.key, &c.name)?),
            Self::Rotate(c) => (c.file.key.clone(), KeyFile::read(&c.file.key)?.rotate(now_unix_ms())?),
            Self::Show(c) => (c.file.key.clone(), KeyFile::read(&c.file.key)?),
        };
        let public: Vec<String> = keys.verifying.iter().map(ToString::to_string).collect();
        if as_json {
            let (of_public, rotations) = (KeyFile::public_path(&path), KeyFile::rotation_path(&path));
            let rotations = rotations.exists().then_some(rotations);
            return output::json(&json!({"key": path, "public": of_public, "rotations": rotations, "keys": public}));
        }
        println!("{}", public.join("\n"));
        eprintln!("The secret key is in {}: whoever reads it can sign in your name.", path.display());
        eprintln!("Give {} to those who verify receipts.", KeyFile::public_path(&path).display());
        Ok(())
    }
}
