//! `silo eval export`.

use std::sync::atomic::AtomicBool;

use anyhow::{Context, Result};
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};
use silo_core::TokenId;
use silo_engine::{Mode, Observation, Retrieval, ScoreRequest};
use silo_eval::{Domain, Text};
use silo_store::{Encoded, encode};

use super::{Export, Ground};
use crate::output;

/// Documents that are encoded at a time.
const DOCUMENTS_PER_BATCH: usize = 64;

pub fn run(command: &Export, as_json: bool) -> Result<()> {
    let ground = Ground::open(&command.config)?;
    let mut written = Vec::new();
    for domain in &ground.domains {
        eprintln!("{}", domain.source);
        let mut tensors = stored(&ground, domain, command.packed)?;
        tensors.extend(held_out(&ground, domain, "validation", &domain.validation)?);
        tensors.extend(held_out(&ground, domain, "test", &domain.test)?);
        let path = command.output.join(format!("{}.safetensors", domain.source));
        output::file(&path, bytes(&tensors).with_context(|| format!("what {} would hold", path.display()))?)?;
        let shapes: Vec<Value> = tensors.iter().map(|t| json!([t.name, t.shape])).collect();
        written.push(json!({"domain": domain.source, "tensors": shapes}));
    }
    let whole = json!({"made": ground.facts(&command.config), "packed": command.packed, "domains": written});
    output::file(&command.output.join("export.json"), format!("{whole:#}\n"))?;
    if as_json {
        return output::json(&whole);
    }
    println!("{}: {} domains", command.output.display(), written.len());
    Ok(())
}

/// Numbers under a name.
struct Tensor {
    name: String,
    shape: Vec<usize>,
    data: Data,
}

enum Data {
    F32(Vec<f32>),
    F64(Vec<f64>),
    U32(Vec<u32>),
    U64(Vec<u64>),
}

impl Tensor {
    /// One number after the other, or rows of `dim`.
    fn new(name: String, dim: Option<usize>, data: Data) -> Self {
        let n = match &data {
            Data::F32(x) => x.len(),
            Data::F64(x) => x.len(),
            Data::U32(x) => x.len(),
            Data::U64(x) => x.len(),
        };
        let shape = dim.map_or_else(|| vec![n], |dim| vec![n / dim.max(1), dim]);
        Self { name, shape, data }
    }

    fn view(&self) -> Result<TensorView<'_>> {
        let (kind, bytes): (Dtype, &[u8]) = match &self.data {
            Data::F32(x) => (Dtype::F32, bytemuck::cast_slice(x)),
            Data::F64(x) => (Dtype::F64, bytemuck::cast_slice(x)),
            Data::U32(x) => (Dtype::U32, bytemuck::cast_slice(x)),
            Data::U64(x) => (Dtype::U64, bytemuck::cast_slice(x)),
        };
        Ok(TensorView::new(kind, self.shape.clone(), bytes)?)
    }
}

fn bytes(tensors: &[Tensor]) -> Result<Vec<u8>> {
    let views = tensors.iter().map(|t| Ok((t.name.as_str(), t.view()?))).collect::<Result<Vec<_>>>()?;
    Ok(safetensors::serialize(views, None)?)
}

/// The entries of a domain: keys, values, and how many each document has, in the order of documents and positions.
fn stored(ground: &Ground, domain: &Domain, packed: bool) -> Result<Vec<Tensor>> {
    let texts = domain.stored.iter().map(|d| ground.tokenizer.encode(&d.text)).collect::<Result<Vec<_>, _>>()?;
    let texts = if packed { vec![texts.concat()] } else { texts };
    let (begin, never) = (ground.tokenizer.beginning_of_text(), AtomicBool::new(false));
    let (mut keys, mut values, mut lengths) = (Vec::new(), Vec::new(), Vec::new());
    for batch in texts.chunks(DOCUMENTS_PER_BATCH) {
        let slices: Vec<&[TokenId]> = batch.iter().map(Vec::as_slice).collect();
        for (text, Encoded { keys: of, first_value }) in
            batch.iter().zip(encode(&*ground.model, begin, &slices, ground.store.recipe(), &never)?)
        {
            lengths.push(of.n_rows() as u64);
            keys.extend(of.data);
            values.extend_from_slice(&text[text.len().min(first_value)..]);
        }
    }
    let name = |what: &str| format!("store.{what}");
    Ok(vec![
        Tensor::new(name("keys"), Some(ground.model.card().key_dim), Data::F32(keys)),
        Tensor::new(name("values"), None, Data::U32(values)),
        Tensor::new(name("entries_of_documents"), None, Data::U64(lengths)),
    ])
}

/// Each scored token of held-out text: its key, log p and entropy by the model alone; how many each text has, and their bytes.
fn held_out(ground: &Ground, domain: &Domain, split: &str, texts: &[Text]) -> Result<Vec<Tensor>> {
    let mut observed: Vec<Vec<Observation>> = Vec::new();
    for text in texts {
        let retrieval = Retrieval { mode: Mode::Knn, ..Retrieval::default() };
        let mut request = ScoreRequest::new(text.tokens.clone(), retrieval);
        request.window_tokens = domain.window_tokens;
        observed.push(ground.engine.observe(&request, &AtomicBool::new(false))?);
    }
    let name = |what: &str| format!("{split}.{what}");
    let all = || observed.iter().flatten();
    let (dim, keys) = (ground.model.card().key_dim, all().flat_map(|o| o.key.iter().copied()).collect());
    Ok(vec![
        Tensor::new(name("keys"), Some(dim), Data::F32(keys)),
        Tensor::new(name("tokens"), None, Data::U32(all().map(|o| o.token).collect())),
        Tensor::new(name("log_p"), None, Data::F64(all().map(|o| o.parametric_log_probability).collect())),
        Tensor::new(name("entropy"), None, Data::F64(all().map(|o| o.model_entropy).collect())),
        Tensor::new(name("tokens_of_texts"), None, Data::U64(observed.iter().map(|o| o.len() as u64).collect())),
        Tensor::new(name("bytes_of_texts"), None, Data::U64(texts.iter().map(|t| t.n_bytes).collect())),
    ])
}
