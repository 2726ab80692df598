//! Files of keys: the secret one, and beside it those that its holder's signatures are checked with.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::LogError;
use crate::note::{self, SigningKey, VerifyingKey};

/// The keys of somebody who signs.
pub struct KeyFile {
    path: PathBuf,
    /// Signs.
    pub signing: SigningKey,
    /// Its public half, and those of the keys that it took the place of.
    pub verifying: Vec<VerifyingKey>,
}

fn beside(path: &Path, end: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(end);
    PathBuf::from(name)
}

/// Writes a file whole or not at all, and brings it to disk; readable by its owner only if it is secret.
pub fn write_whole(path: &Path, text: &str, secret: bool) -> std::io::Result<()> {
    let new = beside(path, ".new");
    let _ = fs::remove_file(&new); // of an attempt that was cut off
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(if secret { 0o600 } else { 0o644 });
    let mut file = options.open(&new)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::File::open(folder)?.sync_all()
}

impl KeyFile {
    /// Where the public keys are, for a file with the secret one.
    pub fn public_path(path: &Path) -> PathBuf {
        beside(path, ".pub")
    }

    /// Where the statements about rotations are.
    pub fn rotation_path(path: &Path) -> PathBuf {
        beside(path, ".rotations")
    }

    /// Draws a key and writes it. A file that is there is left alone.
    pub fn create(path: &Path, name: &str) -> Result<Self, LogError> {
        for path in [path.to_owned(), Self::public_path(path)] {
            if path.exists() {
                let source = std::io::Error::new(
                    std::io::ErrorKind::AlreadyExists,
                    "it is there already; a key is never overwritten",
                );
                return Err(LogError::Io { path, source });
            }
        }
        let signing = SigningKey::generate(name)?;
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(LogError::io(folder))?;
        }
        let verifying = vec![signing.verifying_key().clone()];
        let made = Self { path: path.to_owned(), signing, verifying };
        made.write()?;
        Ok(made)
    }

    /// Reads the keys.
    pub fn read(path: &Path) -> Result<Self, LogError> {
        let text = fs::read_to_string(path).map_err(|error| {
            let missing = error.kind() == std::io::ErrorKind::NotFound;
            let advice = || std::io::Error::new(error.kind(), "there is no key; `silo key create` makes one");
            LogError::Io { path: path.to_owned(), source: if missing { advice() } else { error } }
        })?;
        let signing = SigningKey::from_secret_text(&text)?;
        let mut verifying = read_public(&Self::public_path(path))?;
        if !verifying.contains(signing.verifying_key()) {
            // A rotation was cut off before the public half was written.
            verifying.insert(0, signing.verifying_key().clone());
        }
        Ok(Self { path: path.to_owned(), signing, verifying })
    }

    /// Draws another key in the place of this one, of the same name, with a statement that both have signed. The old secret is gone then.
    pub fn rotate(self, at_unix_ms: i64) -> Result<Self, LogError> {
        let signing = SigningKey::generate(self.signing.verifying_key().name())?;
        let statement = note::rotation(&self.signing, &signing, at_unix_ms);
        let path = Self::rotation_path(&self.path);
        let before =
            if path.exists() { fs::read_to_string(&path).map_err(LogError::io(&path))? } else { String::new() };
        // Before the secret: a statement that nobody needs does no harm.
        write_whole(&path, &format!("{before}{}{statement}", if before.is_empty() { "" } else { "\n" }), false)
            .map_err(LogError::io(&path))?;
        let verifying = std::iter::once(signing.verifying_key().clone()).chain(self.verifying).collect();
        let made = Self { path: self.path, signing, verifying };
        made.write()?;
        Ok(made)
    }

    fn write(&self) -> Result<(), LogError> {
        let secret = format!("{}\n", self.signing.to_secret_text());
        write_whole(&self.path, &secret, true).map_err(LogError::io(&self.path))?;
        let public: String = self.verifying.iter().map(|key| format!("{key}\n")).collect();
        let path = Self::public_path(&self.path);
        write_whole(&path, &public, false).map_err(LogError::io(&path))
    }
}

/// Reads public keys, one in a line.
pub fn read_public(path: &Path) -> Result<Vec<VerifyingKey>, LogError> {
    let text = fs::read_to_string(path).map_err(LogError::io(path))?;
    let keys: Result<Vec<VerifyingKey>, LogError> =
        text.lines().filter(|l| !l.trim().is_empty()).map(str::parse).collect();
    match keys {
        Ok(keys) if keys.is_empty() => Err(LogError::Key(format!("there is none in {}", path.display()))),
        other => other,
    }
}

/// The keys, and those that took their place by the statements in a file, one after the other.
pub fn with_rotations(mut keys: Vec<VerifyingKey>, path: &Path) -> Result<Vec<VerifyingKey>, LogError> {
    let text = fs::read_to_string(path).map_err(LogError::io(path))?;
    for statement in note::statements(&text) {
        let next = note::rotated(&statement, &keys)?;
        keys.push(next);
    }
    Ok(keys)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn keys_are_made_read_and_rotated() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys/silo.key");
        let first = KeyFile::create(&path, "example.org/silo").unwrap();
        let old = first.verifying.clone();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(KeyFile::create(&path, "example.org/silo").is_err(), "a key is never overwritten");
        let before = note::sign("text\n", &[&first.signing]);
        let second = KeyFile::read(&path).unwrap().rotate(1).unwrap();
        KeyFile::read(&path).unwrap().rotate(2).unwrap();
        let third = KeyFile::read(&path).unwrap();
        assert_eq!(third.verifying.len(), 3);
        for text in [before, note::sign("text\n", &[&second.signing]), note::sign("text\n", &[&third.signing])] {
            assert!(note::open(&text, &third.verifying).is_ok());
        }
        let followed = with_rotations(old.clone(), &KeyFile::rotation_path(&path)).unwrap();
        assert_eq!(followed.into_iter().rev().collect::<Vec<_>>(), third.verifying);
        let stranger = KeyFile::create(&folder.path().join("other"), "example.org/silo").unwrap();
        assert!(with_rotations(stranger.verifying, &KeyFile::rotation_path(&path)).is_err());
        assert_eq!(read_public(&KeyFile::public_path(&path)).unwrap(), third.verifying);
    }
}
