//! Checkpoints: all that a run needs to go on with the same bits.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use serde::{Deserialize, Serialize};
use silo_core::ContentHash;

use crate::TrainError;
use crate::optimizer::Moments;

/// What a run is opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Goal {
    /// To go on.
    Train,
    /// To write its newest checkpoint as a model.
    Export,
}

/// What must be the same for a checkpoint to be gone on from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RunIdentity {
    /// Of [`crate::TrainConfig::identity`].
    pub(crate) configuration: ContentHash,
    pub(crate) tokenizer: ContentHash,
    /// Of the documents' tokens, in order.
    pub(crate) data: ContentHash,
    /// What computes: instructions or device decide the bits.
    pub(crate) backend: String,
}

impl RunIdentity {
    /// The first difference, in words. What only looks at a run may do so on another kind of processor.
    pub(crate) fn difference(&self, other: &Self, goal: Goal) -> Option<&'static str> {
        let checks = [
            (self.configuration == other.configuration, "configuration"),
            (self.tokenizer == other.tokenizer, "tokenizer"),
            (self.data == other.data, "training text"),
            (self.backend == other.backend || goal == Goal::Export, "kind of processor"),
        ];
        checks.into_iter().find(|(same, _)| !same).map(|(_, what)| what)
    }
}

/// The state of a run after `step` steps.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Checkpoint {
    pub(crate) step: u64,
    pub(crate) identity: RunIdentity,
    pub(crate) parameters: Vec<f32>,
    pub(crate) moments: Moments,
}

const PARTS: [&str; 3] = ["parameters", "first_moment", "second_moment"];
const FORMAT: &str = "silo-checkpoint-1";
/// The metadata entry that holds [`Header`].
const HEADER: &str = "silo";

#[derive(Serialize, Deserialize)]
struct Header {
    format: String,
    step: u64,
    identity: RunIdentity,
}

fn name(step: u64) -> String {
    format!("step-{step:08}.safetensors")
}

/// Checkpoints of a directory, oldest first.
fn list(directory: &Path) -> Result<Vec<PathBuf>, TrainError> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(TrainError::Io { path: directory.to_owned(), source: e }),
    };
    let mut out: Vec<PathBuf> = entries.flatten().map(|e| e.path()).collect();
    out.retain(|p| p.extension().is_some_and(|e| e == "safetensors"));
    out.sort();
    Ok(out)
}

impl Checkpoint {
    /// Writes the checkpoint whole or not at all, deletes all but the newest `keep`; returns the hash of the file.
    pub(crate) fn write(&self, directory: &Path, keep: usize) -> Result<ContentHash, TrainError> {
        fs::create_dir_all(directory).map_err(TrainError::io(directory))?;
        let path = directory.join(name(self.step));
        let partial = path.with_extension("partial");
        let damaged = |e: &dyn std::fmt::Display| TrainError::Checkpoint { path: path.clone(), reason: e.to_string() };
        let data = [&self.parameters, &self.moments.first, &self.moments.second];
        let mut views = BTreeMap::new();
        for (part, data) in PARTS.into_iter().zip(data) {
            let bytes = bytemuck::cast_slice(data);
            views.insert(part, TensorView::new(Dtype::F32, vec![data.len()], bytes).map_err(|e| damaged(&e))?);
        }
        let header = Header { format: FORMAT.into(), step: self.step, identity: self.identity.clone() };
        // One entry: the order of several is random in the file, whose hash is to be that of the run's state.
        let metadata = [(HEADER.to_owned(), serde_json::to_string(&header).map_err(|e| damaged(&e))?)];
        let bytes = safetensors::serialize(views, Some(metadata.into())).map_err(|e| damaged(&e))?;
        fs::write(&partial, &bytes).map_err(TrainError::io(&partial))?;
        File::open(&partial).and_then(|f| f.sync_all()).map_err(TrainError::io(&partial))?;
        fs::rename(&partial, &path).map_err(TrainError::io(&path))?;
        File::open(directory).and_then(|f| f.sync_all()).map_err(TrainError::io(directory))?;
        let all = list(directory)?;
        for old in &all[..all.len().saturating_sub(keep)] {
            fs::remove_file(old).map_err(TrainError::io(old))?;
        }
        Ok(ContentHash::of(&bytes))
    }

    /// The newest checkpoint, if there is one, and the hash of its file.
    pub(crate) fn newest(directory: &Path) -> Result<Option<(Self, ContentHash)>, TrainError> {
        list(directory)?.last().map(|path| Self::read(path)).transpose()
    }

    /// That the file of a step is not what was written.
    pub(crate) fn changed(directory: &Path, step: u64) -> TrainError {
        TrainError::Checkpoint { path: directory.join(name(step)), reason: "its SHA-256 is not the logged one".into() }
    }

    fn read(path: &Path) -> Result<(Self, ContentHash), TrainError> {
        let damaged = |reason: String| TrainError::Checkpoint { path: path.to_owned(), reason };
        let bytes = fs::read(path).map_err(TrainError::io(path))?;
        let (_, header) = SafeTensors::read_metadata(&bytes).map_err(|e| damaged(e.to_string()))?;
        let metadata = header.metadata().as_ref().ok_or_else(|| damaged("it has no metadata".into()))?;
        let text = metadata.get(HEADER).ok_or_else(|| damaged(format!("it has no '{HEADER}'")))?;
        let header: Header = serde_json::from_str(text).map_err(|e| damaged(e.to_string()))?;
        if header.format != FORMAT {
            return Err(damaged(format!("its format is '{}', not '{FORMAT}'", header.format)));
        }
        let tensors = SafeTensors::deserialize(&bytes).map_err(|e| damaged(e.to_string()))?;
        let part = |name: &str| {
            let view = tensors.tensor(name).map_err(|e| damaged(e.to_string()))?;
            Ok::<Vec<f32>, TrainError>(view.data().as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect())
        };
        let [parameters, first, second] = PARTS.map(part);
        let checkpoint = Self {
            step: header.step,
            identity: header.identity,
            parameters: parameters?,
            moments: Moments { first: first?, second: second? },
        };
        Ok((checkpoint, ContentHash::of(&bytes)))
    }
}
