//! Package files: ar with tar (Debian), zip (wheels), tar.gz (sdists, npm, crates).

use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::CorpusError;

/// Most bytes that one package may unpack to: a bound on archives made to fill disks.
const MAX_UNPACKED_BYTES: u64 = 4 << 30;

/// Unpacks a package file into a directory. Entries that would leave it are refused by the archive libraries; links, devices and
/// the like are left out.
pub(crate) fn unpack(package: &Path, into: &Path) -> Result<(), CorpusError> {
    let fail = |reason: String| CorpusError::Unpack { path: package.to_owned(), reason };
    let name = package.file_name().and_then(|n| n.to_str()).unwrap_or_default();
    let file = File::open(package).map_err(CorpusError::io(package))?;
    std::fs::create_dir_all(into).map_err(CorpusError::io(into))?;
    if name.ends_with(".deb") {
        unpack_deb(file, into).map_err(fail)
    } else if name.ends_with(".whl") || name.ends_with(".zip") {
        unpack_zip(file, into).map_err(fail)
    } else if name.ends_with(".tar.gz") || name.ends_with(".tgz") || name.ends_with(".crate") {
        unpack_tar(flate2::read::MultiGzDecoder::new(file), into).map_err(fail)
    } else {
        Err(fail("its name ends in none of .deb, .whl, .zip, .tar.gz, .tgz, .crate".into()))
    }
}

fn unpack_deb(file: File, into: &Path) -> Result<(), String> {
    let mut archive = ar::Archive::new(file);
    while let Some(entry) = archive.next_entry() {
        let entry = entry.map_err(|e| e.to_string())?;
        let name = String::from_utf8_lossy(entry.header().identifier()).into_owned();
        match name.as_str() {
            "data.tar.xz" => return unpack_tar(liblzma::read::XzDecoder::new(entry), into),
            "data.tar.zst" => return unpack_tar(zstd::Decoder::new(entry).map_err(|e| e.to_string())?, into),
            "data.tar.gz" => return unpack_tar(flate2::read::GzDecoder::new(entry), into),
            "data.tar" => return unpack_tar(entry, into),
            _ => {}
        }
    }
    Err("it holds no data.tar".into())
}

fn unpack_tar(reader: impl Read, into: &Path) -> Result<(), String> {
    let mut archive = tar::Archive::new(reader.take(MAX_UNPACKED_BYTES));
    archive.set_preserve_permissions(false);
    archive.set_preserve_mtime(false);
    for entry in archive.entries().map_err(|e| e.to_string())? {
        let mut entry = entry.map_err(|e| e.to_string())?;
        let kind = entry.header().entry_type();
        if kind.is_file() || kind.is_dir() {
            entry.unpack_in(into).map_err(|e| e.to_string())?;
        }
    }
    Ok(())
}

fn unpack_zip(file: File, into: &Path) -> Result<(), String> {
    let mut archive = zip::ZipArchive::new(file).map_err(|e| e.to_string())?;
    let mut left = MAX_UNPACKED_BYTES;
    for i in 0..archive.len() {
        let entry = archive.by_index(i).map_err(|e| e.to_string())?;
        let Some(path) = entry.enclosed_name().filter(|_| entry.is_file()) else { continue };
        let target = into.join(path);
        if let Some(parent) = target.parent() {
            std::fs::create_dir_all(parent).map_err(|e| e.to_string())?;
        }
        let mut out = File::create(&target).map_err(|e| e.to_string())?;
        let copied = std::io::copy(&mut entry.take(left), &mut out).map_err(|e| e.to_string())?;
        left -= copied;
        if left == 0 {
            return Err(format!("it unpacks to more than {MAX_UNPACKED_BYTES} bytes"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn archives_are_unpacked_and_links_left_out() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("p.crate");
        let encoder = flate2::write::GzEncoder::new(File::create(&path).unwrap(), flate2::Compression::fast());
        let mut builder = tar::Builder::new(encoder);
        let mut header = tar::Header::new_gnu();
        header.set_size(5);
        header.set_cksum();
        builder.append_data(&mut header, "p-1/a.txt", &b"hello"[..]).unwrap();
        let mut link = tar::Header::new_gnu();
        link.set_entry_type(tar::EntryType::Symlink);
        link.set_size(0);
        builder.append_link(&mut link, "p-1/out", "/etc/passwd").unwrap();
        builder.into_inner().unwrap().finish().unwrap();
        let into = directory.path().join("x");
        unpack(&path, &into).unwrap();
        assert_eq!(std::fs::read(into.join("p-1/a.txt")).unwrap(), b"hello");
        assert!(!into.join("p-1/out").exists());
    }

    #[test]
    fn broken_archives_are_named() {
        let directory = tempfile::tempdir().unwrap();
        for name in ["a.deb", "a.whl", "a.tar.gz", "a.rar"] {
            let path = directory.path().join(name);
            File::create(&path).unwrap().write_all(b"not an archive").unwrap();
            let message = unpack(&path, &directory.path().join("x")).unwrap_err().to_string();
            assert!(message.contains(name), "{message}");
        }
    }
}
