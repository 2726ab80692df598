//! Hugging Face directories: `config.json`, `tokenizer.json`, one or several `*.safetensors`.

use std::collections::{BTreeMap, BTreeSet, HashSet};
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
    weights.check_parts(shape.n_layers)?;
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
        let mut files = Vec::new();
        let mut tensors = BTreeMap::new();
        for name in weight_files(path)? {
            let file = File::open(&name).map_err(|e| LoadError::io(&name, e))?;
            // SAFETY: the map is read only; weights are not changed while a model that uses them is being loaded.
            let map = unsafe { Mmap::map(&file) }.map_err(|e| LoadError::io(&name, e))?;
            let parsed = SafeTensors::deserialize(&map).map_err(|e| LoadError::format(&name, e))?;
            for tensor in parsed.names() {
                if tensors.insert(tensor.to_owned(), files.len()).is_some() {
                    let reason =
                        format!("tensor '{tensor}' stands in another file of the directory too: leave one of them");
                    return Err(LoadError::format(&name, reason));
                }
            }
            files.push((name, map));
        }
        Ok(Self { path: path.to_owned(), files, tensors })
    }
}

impl Directory {
    /// Tensors that we would pass over, as biases and further layers, make another model.
    fn check_parts(&self, n_layers: usize) -> Result<(), LoadError> {
        let known: HashSet<String> = Part::all(n_layers.min(self.tensors.len())).map(Part::huggingface).collect();
        // Old files keep the frequencies of the rotation, which follow from the configuration.
        let is_unknown = |name: &&String| !known.contains(*name) && !name.ends_with(".rotary_emb.inv_freq");
        match self.tensors.keys().find(is_unknown) {
            Some(name) => Err(LoadError::unsupported(&self.path, format!("the tensor '{name}'"))),
            None => Ok(()),
        }
    }
}

/// As transformers looks for them: `model.safetensors`, or the files that `model.safetensors.index.json` names, or else all `*.safetensors`; in the order
/// of their names.
fn weight_files(directory: &Path) -> Result<Vec<PathBuf>, LoadError> {
    let whole = directory.join("model.safetensors");
    if whole.exists() {
        return Ok(vec![whole]);
    }
    let index = directory.join("model.safetensors.index.json");
    if index.exists() {
        let Index { weight_map } = serde_json::from_slice(&read(&index)?).map_err(|e| LoadError::format(&index, e))?;
        let names: BTreeSet<&String> = weight_map.values().collect();
        if let Some(name) = names.iter().find(|name| Path::new(name).components().count() != 1) {
            return Err(LoadError::format(&index, format!("'{name}' is no name of a file in the directory")));
        }
        if names.is_empty() {
            return Err(LoadError::format(&index, "it names no file"));
        }
        return Ok(names.into_iter().map(|name| directory.join(name)).collect());
    }
    let entries = std::fs::read_dir(directory).map_err(|e| LoadError::io(directory, e))?;
    let mut names: Vec<PathBuf> = entries.flatten().map(|e| e.path()).collect();
    names.retain(|p| p.extension().is_some_and(|e| e == "safetensors"));
    names.sort();
    if names.is_empty() {
        return Err(LoadError::format(directory, "the directory holds no *.safetensors file"));
    }
    Ok(names)
}

/// What says which file has which tensor.
#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
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
