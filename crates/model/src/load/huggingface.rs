//! Hugging Face directories: `config.json`, `tokenizer.json`, one or several `*.safetensors`.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use memmap2::Mmap;
use safetensors::{Dtype, SafeTensors};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use silo_core::{ContentHash, SourceId, Tier};

use super::{LoadError, LoadedModel, Part, WeightSource};
use crate::kernels::Stored;
use crate::llama::HfConfig;
use crate::tokenizer::ByteLevelTokenizer;

/// Where [`Provenance`] stands.
pub const PROVENANCE_FILE: &str = "silo.json";

/// What we write beside a model that we trained.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Provenance {
    /// Its name.
    pub name: String,
    /// Tiers of its training text.
    pub training_tiers: Vec<Tier>,
    /// Sources of that text, sorted by name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub training_sources: Option<Vec<SourceId>>,
}

pub(super) fn open(directory: &Path) -> Result<LoadedModel, LoadError> {
    let config_path = directory.join("config.json");
    let config_text = read(&config_path)?;
    let config: HfConfig = serde_json::from_slice(&config_text).map_err(|e| LoadError::format(&config_path, e))?;
    let shape = config.shape().map_err(|what| LoadError::unsupported(&config_path, what))?;

    let tokenizer_path = directory.join("tokenizer.json");
    let tokenizer_text = read(&tokenizer_path)?;
    let tokenizer = ByteLevelTokenizer::from_json(&tokenizer_text, shape.beginning_of_text, &shape.end_of_text)
        .map_err(|what| LoadError::unsupported(&tokenizer_path, what))?;

    let provenance_path = directory.join(PROVENANCE_FILE);
    let provenance: Option<Provenance> = if provenance_path.exists() {
        let text = read(&provenance_path)?;
        Some(serde_json::from_slice(&text).map_err(|e| LoadError::format(&provenance_path, e))?)
    } else {
        None
    };

    let weights = Directory::open(directory)?;
    let mut digest = Sha256::new();
    digest.update(ContentHash::of(&config_text).0);
    digest.update(ContentHash::of(&tokenizer_text).0);
    for (_, map) in &weights.files {
        digest.update(ContentHash::of(map).0);
    }
    let name =
        provenance.as_ref().map(|p| p.name.clone()).or_else(|| Some(directory.file_name()?.to_str()?.to_owned()));
    Ok(LoadedModel {
        name: name.unwrap_or_else(|| "unnamed".into()),
        hash: ContentHash(digest.finalize().into()),
        shape,
        provenance,
        tokenizer,
        weights: Box::new(weights),
    })
}

fn read(path: &Path) -> Result<Vec<u8>, LoadError> {
    std::fs::read(path).map_err(|e| LoadError::io(path, e))
}

struct Directory {
    path: PathBuf,
    /// In the order of their names.
    files: Vec<(PathBuf, Mmap)>,
    /// Tensor → number of its file.
    tensors: BTreeMap<String, usize>,
}

impl Directory {
    fn open(path: &Path) -> Result<Self, LoadError> {
        let entries = std::fs::read_dir(path).map_err(|e| LoadError::io(path, e))?;
        let mut names: Vec<PathBuf> = entries.flatten().map(|e| e.path()).collect();
        names.retain(|p| p.extension().is_some_and(|e| e == "safetensors"));
        names.sort();
        if names.is_empty() {
            return Err(LoadError::format(path, "the directory holds no *.safetensors file"));
        }
        let mut files = Vec::new();
        let mut tensors = BTreeMap::new();
        for name in names {
            let file = File::open(&name).map_err(|e| LoadError::io(&name, e))?;
            // SAFETY: the map is read only; weights are not changed while a model that uses them is being loaded.
            let map = unsafe { Mmap::map(&file) }.map_err(|e| LoadError::io(&name, e))?;
            let parsed = SafeTensors::deserialize(&map).map_err(|e| LoadError::format(&name, e))?;
            tensors.extend(parsed.names().into_iter().map(|t| (t.to_owned(), files.len())));
            files.push((name, map));
        }
        Ok(Self { path: path.to_owned(), files, tensors })
    }
}

impl WeightSource for Directory {
    fn has(&self, part: Part) -> bool {
        self.tensors.contains_key(&part.huggingface())
    }

    fn tensor(&self, part: Part, shape: &[usize]) -> Result<Stored, LoadError> {
        let name = part.huggingface();
        let missing = || LoadError::MissingTensor { path: self.path.clone(), name: name.clone() };
        let (path, map) = &self.files[*self.tensors.get(&name).ok_or_else(missing)?];
        let parsed = SafeTensors::deserialize(map).map_err(|e| LoadError::format(path, e))?;
        let view = parsed.tensor(&name).map_err(|e| LoadError::format(path, e))?;
        if view.shape() != shape {
            let (got, expected) = (view.shape().to_vec(), shape.to_vec());
            return Err(LoadError::Shape { path: path.clone(), name, got, expected });
        }
        let data = view.data();
        match view.dtype() {
            Dtype::F32 => Ok(Stored::F32(data.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect())),
            Dtype::F16 => Ok(Stored::F16(data.as_chunks().0.iter().map(|b| f16::from_le_bytes(*b)).collect())),
            Dtype::BF16 => Ok(Stored::Bf16(data.as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b)).collect())),
            other => Err(LoadError::unsupported(path, format!("tensor '{name}' of type {other:?}"))),
        }
    }
}
