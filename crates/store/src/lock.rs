//! One process at a time.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use crate::StoreError;

/// A holder that is just ending, or a process that the holder is just starting and that has its files for a moment, is waited for so long.
const LETTING_GO: Duration = Duration::from_millis(500);

/// Holds the store until it is dropped; the system lets go of it when the process ends, however it ends.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: File,
}

impl Lock {
    pub(crate) fn take(root: &Path) -> Result<Self, StoreError> {
        let path = root.join("store.lock");
        let io = || StoreError::io(&path);
        let mut file =
            OpenOptions::new().create(true).read(true).write(true).truncate(false).open(&path).map_err(io())?;
        let start = Instant::now();
        let locked = loop {
            match file.try_lock() {
                Err(TryLockError::WouldBlock) if start.elapsed() < LETTING_GO => std::thread::sleep(LETTING_GO / 50),
                other => break other,
            }
        };
        match locked {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut pid = String::new();
                let _ = file.read_to_string(&mut pid); // for the message only
                let pid = if pid.trim().is_empty() { "unknown".to_owned() } else { pid.trim().to_owned() };
                return Err(StoreError::Locked { path: root.to_owned(), pid });
            }
            Err(TryLockError::Error(e)) => return Err(StoreError::Io { path, source: e }),
        }
        file.set_len(0).map_err(io())?;
        file.rewind().map_err(io())?;
        write!(file, "{}", std::process::id()).map_err(io())?;
        Ok(Self { _file: file })
    }
}
