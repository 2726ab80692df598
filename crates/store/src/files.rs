//! Files that a manifest lists: mapped into memory, and checked.

use std::fs::File;
use std::path::{Path, PathBuf};

use bytemuck::PodCastError;
use memmap2::{Mmap, UncheckedAdvice};
use sha2::{Digest, Sha256};
use silo_core::ContentHash;

use crate::StoreError;
use crate::format::{self, FileEntry, Manifest};

#[derive(Debug)]
pub(crate) struct Mapped {
    pub(crate) path: PathBuf,
    /// `None` for an empty file, which cannot be mapped.
    map: Option<Mmap>,
}

impl Mapped {
    pub(crate) fn open(directory: &Path, name: &str, manifest: &Manifest) -> Result<Self, StoreError> {
        let (path, file, expected) = open_listed(directory, manifest, name)?;
        let len = expected.bytes;
        // SAFETY: files of a published shard are never written again; they are deleted while mapped, which keeps the map.
        let map = if len == 0 { None } else { Some(unsafe { Mmap::map(&file) }.map_err(StoreError::io(&path))?) };
        Ok(Self { path, map })
    }

    /// Gives its memory back. What is read of it later comes from the file again.
    pub(crate) fn let_go(&self) {
        if let Some(map) = &self.map {
            // SAFETY: the map is of a file, which is never written, and is not written through: pages that are given up read as before.
            // It may fail without harm.
            let _ = unsafe { map.unchecked_advise(UncheckedAdvice::DontNeed) };
        }
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        self.map.as_deref().unwrap_or(&[])
    }

    pub(crate) fn slice<T: bytemuck::Pod>(&self) -> &[T] {
        // Lengths were checked at opening, and a map begins at a page.
        bytemuck::try_cast_slice(self.bytes()).unwrap_or(&[])
    }

    pub(crate) fn check<T: bytemuck::Pod>(&self, n: u64) -> Result<(), StoreError> {
        let slice: Result<&[T], PodCastError> = bytemuck::try_cast_slice(self.bytes());
        match slice {
            Ok(s) if s.len() as u64 == n => Ok(()),
            _ => Err(StoreError::damaged(&self.path, format!("it does not hold {n} records"))),
        }
    }
}

/// Opens a file that the manifest lists, if it has the size that is written there.
fn open_listed<'a>(
    directory: &Path,
    manifest: &'a Manifest,
    name: &str,
) -> Result<(PathBuf, File, &'a FileEntry), StoreError> {
    let path = directory.join(name);
    let unlisted = || StoreError::damaged(&path, "the manifest does not list it");
    let expected = manifest.files.get(name).ok_or_else(unlisted)?;
    let file = File::open(&path).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => StoreError::damaged(&path, "the file is missing"),
        _ => StoreError::Io { path: path.clone(), source: e },
    })?;
    let len = file.metadata().map_err(StoreError::io(&path))?.len();
    if len != expected.bytes {
        return Err(StoreError::damaged(&path, format!("it has {len} bytes, the manifest says {}", expected.bytes)));
    }
    Ok((path, file, expected))
}

/// Checks the size and hash of a file.
pub(crate) fn check_file(directory: &Path, manifest: &Manifest, name: &str) -> Result<(), StoreError> {
    let (path, mut file, expected) = open_listed(directory, manifest, name)?;
    let found = hash_of(&mut file).map_err(StoreError::io(&path))?;
    if expected.sha256 != found {
        return Err(StoreError::damaged(&path, format!("its SHA-256 is {found}, which is not the manifest's")));
    }
    Ok(())
}

/// Size and hash of a file.
pub(crate) fn entry_of(path: &Path) -> Result<FileEntry, StoreError> {
    let mut file = File::open(path).map_err(StoreError::io(path))?;
    let bytes = file.metadata().map_err(StoreError::io(path))?.len();
    Ok(FileEntry { bytes, sha256: hash_of(&mut file).map_err(StoreError::io(path))? })
}

fn hash_of(file: &mut File) -> std::io::Result<ContentHash> {
    let mut digest = Sha256::new();
    std::io::copy(file, &mut HashWriter(&mut digest))?;
    Ok(ContentHash(digest.finalize().into()))
}

/// Feeds what is written to it into a digest.
struct HashWriter<'a>(&'a mut Sha256);

impl std::io::Write for HashWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Reads a manifest; also its SHA-256.
pub(crate) fn read_manifest(directory: &Path) -> Result<(Manifest, String), StoreError> {
    /// Read first, because a manifest of another version may have other fields.
    #[derive(serde::Deserialize)]
    struct Version {
        format: String,
        version: u32,
    }
    let path = directory.join(format::MANIFEST);
    let bytes = std::fs::read(&path).map_err(StoreError::io(&path))?;
    let version: Version = serde_json::from_slice(&bytes).map_err(|e| StoreError::damaged(&path, e))?;
    if version.format != format::FORMAT {
        return Err(StoreError::damaged(&path, format!("it describes a '{}', not a shard", version.format)));
    }
    if version.version != format::VERSION {
        return Err(StoreError::Version { path, found: version.version, expected: format::VERSION });
    }
    let manifest = serde_json::from_slice(&bytes).map_err(|e| StoreError::damaged(&path, e))?;
    Ok((manifest, ContentHash::of(&bytes).to_string()))
}

/// Reads the manifest that was added, and no other one.
pub(crate) fn read_added_manifest(directory: &Path, sha256: &str) -> Result<Manifest, StoreError> {
    let (manifest, found) = read_manifest(directory)?;
    if found == sha256 {
        return Ok(manifest);
    }
    Err(StoreError::damaged(directory, "its manifest is not the one that was added"))
}
