//! GGUF files, with the tokenizer inside. candle reads the container and all of its quantised types.

use std::collections::HashSet;
use std::fs::File;
use std::io::{Cursor, Read};
use std::path::{Path, PathBuf};

use candle_core::Device;
use candle_core::quantized::GgmlDType;
use candle_core::quantized::gguf_file::{Content, TensorInfo, Value, VersionedMagic};
use half::f16;
use memmap2::Mmap;
use silo_core::ContentHash;

use super::{LoadError, LoadedModel, Part, WeightSource, gguf_blocks};
use crate::kernels::Stored;
use crate::llama::{LlamaShape, Rope, RopeScaling, RopeStyle};
use crate::tokenizer::{ByteLevelTokenizer, GgufVocabulary};

pub(super) fn open(path: &Path) -> Result<LoadedModel, LoadError> {
    let mut file = File::open(path).map_err(|e| LoadError::io(path, e))?;
    let mut magic = [0; 4];
    file.read_exact(&mut magic).map_err(|_| LoadError::format(path, "the file is shorter than a GGUF header"))?;
    if &magic != b"GGUF" {
        return Err(LoadError::format(path, "the file does not begin with 'GGUF'"));
    }
    // SAFETY: the map is read only; weights are not changed while a model that uses them is being loaded.
    let map = unsafe { Mmap::map(&file) }.map_err(|e| LoadError::io(path, e))?;
    let content = Content::read(&mut Cursor::new(&map[..])).map_err(|e| LoadError::format(path, first_line(&e)))?;
    check_names(path, &content, &map)?;
    check_extent(path, &content, map.len())?;
    check_places(path, &content)?;

    let metadata = Metadata { path, content: &content };
    let shape = shape(&metadata)?;
    check_parts(path, &content, &shape)?;
    let tokenizer = tokenizer(&metadata)?;
    let name = metadata.text("general.name")?.unwrap_or("unnamed").to_owned();
    let hash = ContentHash::of(&map);
    let weights = Box::new(GgufWeights { path: path.to_owned(), map, content });
    Ok(LoadedModel { name, hash, shape, provenance: None, tokenizer, weights })
}

/// candle's errors carry a backtrace after the first line.
fn first_line(error: &candle_core::Error) -> String {
    error.to_string().lines().next().unwrap_or_default().to_owned()
}

/// What comes twice is read once, whichever of the two: the header says how many there should be.
fn check_names(path: &Path, content: &Content, file: &[u8]) -> Result<(), LoadError> {
    // Version 1 counts in 32 bits, all later ones in 64.
    let number = |at: usize| match content.magic {
        VersionedMagic::GgufV1 => Some(u64::from(u32::from_le_bytes(*file.get(8 + 4 * at..)?.first_chunk()?))),
        _ => Some(u64::from_le_bytes(*file.get(8 + 8 * at..)?.first_chunk()?)),
    };
    for (at, what, found) in [(0, "tensors", content.tensor_infos.len()), (1, "metadata", content.metadata.len())] {
        if number(at) != Some(found as u64) {
            return Err(LoadError::format(path, format!("a name of its {what} comes twice")));
        }
    }
    Ok(())
}

/// Tensors begin where the file's alignment says, and none within another.
fn check_places(path: &Path, content: &Content) -> Result<(), LoadError> {
    let alignment = content.metadata.get("general.alignment").and_then(|v| v.to_u32().ok()).unwrap_or(32);
    let mut places: Vec<(u64, u64, &String)> =
        content.tensor_infos.iter().map(|(name, info)| (info.offset, n_bytes(info), name)).collect();
    places.sort_unstable();
    let mut end = 0;
    for (offset, n_bytes, name) in places {
        if !offset.is_multiple_of(u64::from(alignment.max(1))) || offset < end {
            let reason =
                format!("tensor '{name}' begins at byte {offset} of the data, which is not aligned or within another");
            return Err(LoadError::format(path, reason));
        }
        end = offset.saturating_add(n_bytes);
    }
    Ok(())
}

fn n_bytes(info: &TensorInfo) -> u64 {
    let blocks = info.shape.elem_count() / info.ggml_dtype.block_size();
    (blocks as u64).saturating_mul(info.ggml_dtype.type_size() as u64)
}

/// A file that was cut off still has a good header: look whether all tensors lie inside. The last one says how long the file should be.
fn check_extent(path: &Path, content: &Content, len: usize) -> Result<(), LoadError> {
    let ends = content.tensor_infos.iter().map(|(name, info)| {
        (content.tensor_data_offset.saturating_add(info.offset).saturating_add(n_bytes(info)), name)
    });
    match ends.max() {
        Some((end, name)) if end > len as u64 => {
            let reason = format!("tensor '{name}' ends at byte {end}, but the file has {len}: it was cut off");
            Err(LoadError::format(path, reason))
        }
        _ => Ok(()),
    }
}

/// Tensors that we would pass over, as biases and experts, make another model.
fn check_parts(path: &Path, content: &Content, shape: &LlamaShape) -> Result<(), LoadError> {
    // No more layers than tensors, whatever the metadata says.
    let n_layers = shape.n_layers.min(content.tensor_infos.len());
    let known: HashSet<String> = Part::all(n_layers).map(Part::gguf).collect();
    // The first by name, so that the message is the same each time.
    match content.tensor_infos.keys().filter(|name| !known.contains(*name)).min() {
        Some(name) => Err(LoadError::unsupported(path, format!("the tensor '{name}'"))),
        None => Ok(()),
    }
}

struct Metadata<'a> {
    path: &'a Path,
    content: &'a Content,
}

impl Metadata<'_> {
    fn value(&self, key: &str) -> Option<&Value> {
        self.content.metadata.get(key)
    }

    fn missing(&self, key: &str) -> LoadError {
        LoadError::format(self.path, format!("the metadata has no usable '{key}'"))
    }

    /// A value that need not be there; one of another kind is refused, not passed over.
    fn read<'a, T>(
        &'a self,
        key: &str,
        kind: &str,
        read: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, LoadError> {
        let refused = || LoadError::format(self.path, format!("'{key}' in the metadata is not {kind}"));
        self.value(key).map(|value| read(value).ok_or_else(refused)).transpose()
    }

    fn text(&self, key: &str) -> Result<Option<&str>, LoadError> {
        self.read(key, "a text", |value| value.to_string().ok().map(String::as_str))
    }

    fn number(&self, key: &str) -> Result<Option<usize>, LoadError> {
        let read =
            |value: &Value| value.to_u64().ok().or_else(|| value.to_i64().ok()?.try_into().ok())?.try_into().ok();
        self.read(key, "a whole number of 0 or more", read)
    }

    fn required(&self, key: &str) -> Result<usize, LoadError> {
        self.number(key)?.filter(|&n| n > 0).ok_or_else(|| self.missing(key))
    }

    fn real(&self, key: &str) -> Result<Option<f32>, LoadError> {
        self.read(key, "a 32-bit floating-point number", |value| value.to_f32().ok())
    }

    fn flag(&self, key: &str) -> Result<Option<bool>, LoadError> {
        self.read(key, "true or false", |value| value.to_bool().ok())
    }

    fn token(&self, key: &str) -> Result<Option<u32>, LoadError> {
        self.read(key, "a token", |value| value.to_u64().ok()?.try_into().ok())
    }

    fn list<T>(&self, key: &str, each: impl Fn(&Value) -> Option<T>) -> Result<Vec<T>, LoadError> {
        let values = self.value(key).and_then(|v| v.to_vec().ok()).ok_or_else(|| self.missing(key))?;
        values.iter().map(each).collect::<Option<_>>().ok_or_else(|| self.missing(key))
    }
}

const EPSILON: &str = "llama.attention.layer_norm_rms_epsilon";

fn shape(m: &Metadata<'_>) -> Result<LlamaShape, LoadError> {
    let architecture = m.text("general.architecture")?.unwrap_or("unknown");
    if architecture != "llama" {
        return Err(LoadError::unsupported(m.path, format!("the architecture '{architecture}'")));
    }
    let dim = m.required("llama.embedding_length")?;
    let n_heads = m.required("llama.attention.head_count")?;
    let embedding = m.content.tensor_infos.get("token_embd.weight");
    let vocab_size = embedding
        .and_then(|t| t.shape.dims().first().copied())
        .ok_or_else(|| LoadError::MissingTensor { path: m.path.to_owned(), name: "token_embd.weight".into() })?;
    let head_dim = m.number("llama.attention.key_length")?.unwrap_or(dim / n_heads);
    if let Some(n) = m.number("llama.rope.dimension_count")?.filter(|n| *n != head_dim) {
        return Err(LoadError::unsupported(m.path, format!("a rotation of {n} of {head_dim} values of a head")));
    }
    let shape = LlamaShape {
        dim,
        ffn_dim: m.required("llama.feed_forward_length")?,
        n_layers: m.required("llama.block_count")?,
        n_heads,
        n_kv_heads: m.number("llama.attention.head_count_kv")?.unwrap_or(n_heads),
        head_dim,
        vocab_size,
        context_tokens: m.required("llama.context_length")?,
        norm_eps: m.real(EPSILON)?.ok_or_else(|| m.missing(EPSILON))?,
        rope: rope(m)?,
        tied_head: !m.content.tensor_infos.contains_key("output.weight"),
        beginning_of_text: beginning_of_text(m)?,
        end_of_text: m.token("tokenizer.ggml.eos_token_id")?.into_iter().collect(),
    };
    shape.check().map_err(|what| LoadError::format(m.path, what))?;
    Ok(shape)
}

/// As llama.cpp reads it: a factor that is not there, or is 0, is 1, and without a type it is linear. Llama 3's scaling is no key of the metadata but a
/// tensor of factors ([`super::Part::RopeFactors`]).
fn rope(m: &Metadata<'_>) -> Result<Rope, LoadError> {
    let mut rope = Rope::plain(m.real("llama.rope.freq_base")?.unwrap_or(10_000.0), RopeStyle::Interleaved);
    let factor = m.real("llama.rope.scaling.factor")?.or(m.real("llama.rope.scale_linear")?);
    rope.scaling = match (m.text("llama.rope.scaling.type")?.unwrap_or("linear"), factor.unwrap_or(1.0)) {
        ("none", _) | ("linear", 0.0 | 1.0) => RopeScaling::None,
        ("linear", factor) => RopeScaling::Linear { factor },
        (other, _) => {
            return Err(LoadError::unsupported(m.path, format!("rope scaling of type '{other}' in a GGUF file")));
        }
    };
    Ok(rope)
}

/// llama.cpp's name of the way in which text is cut into words.
fn pre_tokenizer<'a>(m: &'a Metadata<'_>) -> Result<&'a str, LoadError> {
    Ok(m.text("tokenizer.ggml.pre")?.filter(|name| !name.is_empty()).unwrap_or("default"))
}

/// The token that texts begin with, where the file asks for one, or says nothing and its kind of tokenizer does.
fn beginning_of_text(m: &Metadata<'_>) -> Result<Option<u32>, LoadError> {
    let by_kind = GgufVocabulary::begins_texts(pre_tokenizer(m)?);
    let wanted = m.flag("tokenizer.ggml.add_bos_token")?.unwrap_or(by_kind);
    Ok(m.token("tokenizer.ggml.bos_token_id")?.filter(|_| wanted))
}

fn tokenizer(m: &Metadata<'_>) -> Result<ByteLevelTokenizer, LoadError> {
    let kind = m.text("tokenizer.ggml.model")?.unwrap_or("none");
    if kind != "gpt2" {
        return Err(LoadError::unsupported(m.path, format!("a tokenizer of the kind '{kind}'")));
    }
    let text = |v: &Value| v.to_string().ok().cloned();
    let vocabulary = GgufVocabulary {
        tokens: m.list("tokenizer.ggml.tokens", text)?,
        kinds: m.list("tokenizer.ggml.token_type", |v| v.to_i32().ok())?,
        merges: m.list("tokenizer.ggml.merges", text)?,
        pre: pre_tokenizer(m)?.to_owned(),
        beginning_of_text: beginning_of_text(m)?,
        end_of_text: m.token("tokenizer.ggml.eos_token_id")?.into_iter().collect(),
    };
    ByteLevelTokenizer::from_gguf(vocabulary).map_err(|what| LoadError::unsupported(m.path, what))
}

struct GgufWeights {
    path: PathBuf,
    map: Mmap,
    content: Content,
}

impl WeightSource for GgufWeights {
    fn has(&self, part: Part) -> bool {
        self.content.tensor_infos.contains_key(&part.gguf())
    }

    fn tensor(&self, part: Part, shape: &[usize]) -> Result<Stored, LoadError> {
        let name = part.gguf();
        let missing = || LoadError::MissingTensor { path: self.path.clone(), name: name.clone() };
        let info = self.content.tensor_infos.get(&name).ok_or_else(missing)?;
        if info.shape.dims() != shape {
            let (got, expected) = (info.shape.dims().to_vec(), shape.to_vec());
            return Err(LoadError::Shape { path: self.path.clone(), name, got, expected });
        }
        let failed = |e: candle_core::Error| LoadError::format(&self.path, first_line(&e));
        let mut reader = Cursor::new(&self.map[..]);
        let tensor = self.content.tensor(&mut reader, &name, &Device::Cpu).map_err(failed)?;
        let bytes = tensor.data().map_err(failed)?;
        if let Some(blocks) = gguf_blocks::unpack(tensor.dtype(), &bytes) {
            return Ok(Stored::Quantized(blocks));
        }
        if tensor.dtype() == GgmlDType::F16 {
            return Ok(Stored::F16(bytes.as_chunks().0.iter().map(|b| f16::from_le_bytes(*b)).collect()));
        }
        let flat = tensor.dequantize(&Device::Cpu).and_then(|t| t.flatten_all()?.to_vec1::<f32>()).map_err(failed)?;
        Ok(Stored::F32(flat))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    fn with<T>(metadata: &[(&str, Value)], read: impl Fn(&Metadata<'_>) -> T) -> T {
        let metadata: HashMap<String, Value> = metadata.iter().map(|(k, v)| ((*k).to_owned(), v.clone())).collect();
        let magic = VersionedMagic::GgufV3;
        let content = Content { magic, metadata, tensor_infos: HashMap::new(), tensor_data_offset: 0 };
        read(&Metadata { path: Path::new("x.gguf"), content: &content })
    }

    #[test]
    fn rope_is_scaled_as_llama_cpp_reads_it() {
        let text = |t: &str| Value::String(t.to_owned());
        let (kind, factor, old) = ("llama.rope.scaling.type", "llama.rope.scaling.factor", "llama.rope.scale_linear");
        let scaling = |metadata: &[(&str, Value)]| with(metadata, |m| rope(m).map(|rope| rope.scaling).ok());
        let linear = Some(RopeScaling::Linear { factor: 4.0 });
        assert_eq!(scaling(&[]), Some(RopeScaling::None));
        assert_eq!(scaling(&[(kind, text("none")), (factor, Value::F32(4.0))]), Some(RopeScaling::None));
        assert_eq!(scaling(&[(kind, text("linear"))]), Some(RopeScaling::None));
        assert_eq!(scaling(&[(kind, text("linear")), (factor, Value::F32(0.0))]), Some(RopeScaling::None));
        assert_eq!(scaling(&[(kind, text("linear")), (factor, Value::F32(4.0))]), linear);
        assert_eq!(scaling(&[(factor, Value::F32(4.0))]), linear);
        assert_eq!(scaling(&[(old, Value::F32(4.0))]), linear);
        assert_eq!(scaling(&[(kind, text("yarn")), (factor, Value::F32(4.0))]), None);
        // A number of another kind is no number that is not there.
        assert_eq!(scaling(&[(kind, text("linear")), (factor, Value::F64(4.0))]), None);
    }

    #[test]
    fn texts_begin_as_the_file_says_or_its_tokenizer() {
        let (add, id, pre) = ("tokenizer.ggml.add_bos_token", "tokenizer.ggml.bos_token_id", "tokenizer.ggml.pre");
        let llama3 = (pre, Value::String("llama-bpe".into()));
        let begins = |metadata: &[(&str, Value)]| with(metadata, |m| beginning_of_text(m).unwrap());
        let refused = [(id, Value::U32(7)), (add, Value::U8(1))];
        let message = with(&refused, |m| beginning_of_text(m).unwrap_err().to_string());
        assert!(message.contains("'tokenizer.ggml.add_bos_token' in the metadata is not true or false"), "{message}");
        assert_eq!(begins(&[(id, Value::U32(7))]), None);
        assert_eq!(begins(&[(id, Value::U32(7)), (add, Value::Bool(true))]), Some(7));
        assert_eq!(begins(&[(id, Value::U32(7)), llama3.clone()]), Some(7));
        assert_eq!(begins(&[(id, Value::U32(7)), llama3, (add, Value::Bool(false))]), None);
    }
}
