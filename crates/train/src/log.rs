//! The log of a run: JSON Lines, one per step, validation and checkpoint.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use silo_core::ContentHash;

use crate::TrainError;

/// One line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum LogLine {
    /// A step was made.
    Step {
        /// Steps made.
        step: u64,
        /// Nats per token of its rows, before the step.
        loss: f64,
        /// Learning rate.
        learning_rate: f64,
        /// Length of the gradient before clipping.
        gradient_length: f64,
        /// Tokens learnt from.
        n_tokens: usize,
        /// Time it took.
        seconds: f64,
    },
    /// Held-out text was scored.
    Validation {
        /// Steps made.
        step: u64,
        /// Per tier.
        tiers: BTreeMap<String, Validation>,
    },
    /// A checkpoint was written.
    Checkpoint {
        /// Steps made.
        step: u64,
        /// Of the file.
        sha256: ContentHash,
    },
}

/// Loss on held-out text. Documents are packed as in training: cut where a row is full, without what stood before the cut.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Validation {
    /// Nats per token, the end of text included.
    pub nats_per_token: f64,
    /// Bits per byte of text.
    pub bits_per_byte: f64,
    /// Tokens.
    pub n_tokens: usize,
    /// Bytes of text.
    pub n_bytes: usize,
}

impl LogLine {
    fn step(&self) -> u64 {
        match self {
            Self::Step { step, .. } | Self::Validation { step, .. } | Self::Checkpoint { step, .. } => *step,
        }
    }
}

/// The log of a run, and the file that it goes on in.
pub(crate) struct Log {
    path: PathBuf,
    /// `None` where the run is looked at only.
    file: Option<File>,
    pub(crate) lines: Vec<LogLine>,
}

impl Log {
    /// Reads what was logged up to `step`.
    pub(crate) fn read(path: &Path, step: u64) -> Result<Self, TrainError> {
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(e) => return Err(TrainError::io(path)(e)),
        };
        // The last line may be half-written. It is younger than the last checkpoint, before which the log is brought to disk.
        let n = text.lines().count();
        let mut lines = Vec::with_capacity(n);
        for (i, text) in text.lines().enumerate() {
            match serde_json::from_str::<LogLine>(text) {
                Ok(line) => lines.push(line),
                Err(_) if i + 1 == n => {}
                Err(_) => return Err(TrainError::Log { path: path.to_owned(), line: i + 1 }),
            }
        }
        lines.retain(|l| l.step() <= step);
        Ok(Self { path: path.to_owned(), file: None, lines })
    }

    /// Opens the log for going on; what was written after `step` goes, for those steps will be made again.
    pub(crate) fn open(path: &Path, step: u64) -> Result<Self, TrainError> {
        let mut log = Self::read(path, step)?;
        let partial = path.with_extension("partial");
        fs::write(&partial, log.lines.iter().map(line).collect::<String>()).map_err(TrainError::io(&partial))?;
        fs::rename(&partial, path).map_err(TrainError::io(path))?;
        log.file = Some(OpenOptions::new().append(true).open(path).map_err(TrainError::io(path))?);
        Ok(log)
    }

    /// Brings it to disk.
    pub(crate) fn sync(&self) -> Result<(), TrainError> {
        self.file.as_ref().map_or(Ok(()), |f| f.sync_all().map_err(TrainError::io(&self.path)))
    }

    /// The hash of the checkpoint of a step, if it was noted.
    pub(crate) fn checkpoint(&self, of: u64) -> Option<ContentHash> {
        self.lines.iter().rev().find_map(|l| match l {
            LogLine::Checkpoint { step, sha256 } if *step == of => Some(*sha256),
            _ => None,
        })
    }

    pub(crate) fn add(&mut self, new: LogLine) -> Result<(), TrainError> {
        if let Some(file) = &mut self.file {
            file.write_all(line(&new).as_bytes()).map_err(TrainError::io(&self.path))?;
        }
        self.lines.push(new);
        Ok(())
    }
}

/// A line of JSON. Its types have no map with keys that are not strings, so they can be written.
pub(crate) fn line(entry: &LogLine) -> String {
    serde_json::to_string(entry).expect("a log line is JSON") + "\n"
}
