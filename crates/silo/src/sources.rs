//! What a program is made of, as one hash. The build script asks for it as well, for what it was at the time.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

/// Where the sources lie: files, and folders with all that is in them. Tests and pages make no other program.
pub fn places(root: &Path) -> io::Result<Vec<PathBuf>> {
    let mut out = vec![root.join("Cargo.lock"), root.join("Cargo.toml"), root.join("proto"), root.join(".cargo")];
    out.retain(|path| path.exists());
    for part in entries(&root.join("crates"))? {
        let parts = ["Cargo.toml", "build.rs", "src"].map(|name| part.join(name));
        out.extend(parts.into_iter().filter(|path| path.exists()));
    }
    Ok(out)
}

/// SHA-256 of names and contents, as hexadecimal digits.
pub fn hash(root: &Path) -> io::Result<String> {
    let mut digest = Sha256::new();
    for place in places(root)? {
        add(&mut digest, root, &place)?;
    }
    Ok(digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

fn add(digest: &mut Sha256, root: &Path, path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return entries(path)?.iter().try_for_each(|entry| add(digest, root, entry));
    }
    let (name, content) = (path.strip_prefix(root).unwrap_or(path).to_string_lossy(), fs::read(path)?);
    for part in [name.as_bytes(), &content] {
        digest.update((part.len() as u64).to_le_bytes());
        digest.update(part);
    }
    Ok(())
}

/// Sorted by name.
fn entries(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut out = fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?;
    out.sort_unstable();
    Ok(out)
}
