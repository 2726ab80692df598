//! Projection, centroids and code step: everything that sorts keys into lists.

use std::collections::BTreeMap;

use rayon::prelude::*;
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};

use crate::exact::{dot, squared_l2};

/// The metadata entry of a quantiser's file that says what it was made from.
const ABOUT: &str = "about";
/// Greatest number of projected values: the sum of as many squared differences still fits 31 bits.
pub(crate) const MAX_PROJECTED: usize = 256;
/// What a code of zero stands for.
const ZERO_CODE: f32 = 128.0;
/// Queries may lie this far outside of what codes can say.
const QUERY_RANGE: (f32, f32) = (-2048.0, 2047.0);

/// Sorts keys into lists and gives them small codes. Made once from training text, then shared by all shards.
#[derive(Debug, Clone, PartialEq)]
pub struct Quantizer {
    /// Values of a key.
    dim: usize,
    /// `[projected, dim]`
    projection: Vec<f32>,
    /// `[projected]`
    bias: Vec<f32>,
    /// `[n_lists, projected]`
    centroids: Vec<f32>,
    /// Difference of two neighbouring codes.
    step: f32,
    /// What it was made from: free text.
    about: BTreeMap<String, String>,
}

/// Why bytes are no quantiser.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no quantiser: {0}")]
pub struct QuantizerError(String);

impl QuantizerError {
    pub(crate) fn from_training(what: String) -> Self {
        Self(what)
    }
}

/// The parts of a quantiser.
pub(crate) struct Parts {
    pub(crate) dim: usize,
    pub(crate) projection: Vec<f32>,
    pub(crate) bias: Vec<f32>,
    pub(crate) centroids: Vec<f32>,
    pub(crate) step: f32,
}

impl Quantizer {
    pub(crate) fn new(parts: Parts, about: BTreeMap<String, String>) -> Result<Self, QuantizerError> {
        let Parts { dim, projection, bias, centroids, step } = parts;
        let projected = bias.len();
        let fits = dim > 0
            && (1..=MAX_PROJECTED).contains(&projected)
            && projection.len() == projected * dim
            && !centroids.is_empty()
            && centroids.len().is_multiple_of(projected);
        if !fits {
            return Err(QuantizerError("its parts do not fit together".into()));
        }
        let finite = projection.iter().chain(&bias).chain(&centroids).all(|x| x.is_finite());
        if !finite || !step.is_finite() || step <= 0.0 {
            return Err(QuantizerError("it holds numbers that are not finite, or a step that is not above 0".into()));
        }
        Ok(Self { dim, projection, bias, centroids, step, about })
    }

    /// Reads the bytes that [`Self::to_bytes`] gave.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, QuantizerError> {
        let fail = |e: safetensors::SafeTensorError| QuantizerError(e.to_string());
        let tensors = SafeTensors::deserialize(bytes).map_err(fail)?;
        let (_, header) = SafeTensors::read_metadata(bytes).map_err(fail)?;
        let read = |name: &str| {
            let view = tensors.tensor(name).map_err(fail)?;
            if view.dtype() != Dtype::F32 {
                return Err(QuantizerError(format!("'{name}' is not of 32-bit numbers")));
            }
            let data: Vec<f32> = view.data().as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
            Ok((data, view.shape().to_vec()))
        };
        let (projection, shape) = read("projection")?;
        let dim = shape.get(1).copied().unwrap_or(0);
        let step = read("step")?.0.first().copied().unwrap_or(0.0);
        let parts = Parts { dim, projection, bias: read("bias")?.0, centroids: read("centroids")?.0, step };
        let about = header.metadata().as_ref().and_then(|m| m.get(ABOUT));
        let about = about.ok_or_else(|| QuantizerError(format!("it has no '{ABOUT}'")))?;
        Self::new(parts, serde_json::from_str(about).map_err(|e| QuantizerError(format!("its '{ABOUT}': {e}")))?)
    }

    /// As a safetensors file.
    pub fn to_bytes(&self) -> Result<Vec<u8>, QuantizerError> {
        let projected = self.projected();
        let step = [self.step];
        let tensors: [(&str, &[f32], Vec<usize>); 4] = [
            ("projection", &self.projection, vec![projected, self.dim]),
            ("bias", &self.bias, vec![projected]),
            ("centroids", &self.centroids, vec![self.n_lists(), projected]),
            ("step", &step, vec![1]),
        ];
        let fail = |e: safetensors::SafeTensorError| QuantizerError(e.to_string());
        let mut views = Vec::new();
        for (name, data, shape) in tensors {
            views.push((name, TensorView::new(Dtype::F32, shape, bytemuck::cast_slice(data)).map_err(fail)?));
        }
        // One entry: the order of several is random in the file, and its hash is what names a quantiser.
        let about = serde_json::to_string(&self.about).map_err(|e| QuantizerError(e.to_string()))?;
        safetensors::serialize(views, Some([(ABOUT.to_owned(), about)].into())).map_err(fail)
    }

    /// What it was made from.
    pub fn about(&self) -> &BTreeMap<String, String> {
        &self.about
    }

    /// Values of a key.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// Values of a projected key: bytes of a code.
    pub fn projected(&self) -> usize {
        self.bias.len()
    }

    /// Lists.
    pub fn n_lists(&self) -> usize {
        self.centroids.len() / self.projected()
    }

    fn project(&self, key: &[f32]) -> Vec<f32> {
        self.projection.chunks_exact(self.dim).zip(&self.bias).map(|(row, b)| dot(row, key) + b).collect()
    }

    /// The list and the code of each key of `keys`, which stand one after the other.
    pub fn encode(&self, keys: &[f32]) -> (Vec<u32>, Vec<u8>) {
        let rows = keys.par_chunks_exact(self.dim).map(|key| {
            let projected = self.project(key);
            let distances = self.centroids.chunks_exact(self.projected()).map(|c| squared_l2(&projected, c));
            let nearest = distances.enumerate().min_by(|a, b| a.1.total_cmp(&b.1)).map_or(0, |(list, _)| list as u32);
            let code: Vec<u8> = projected
                .iter()
                .map(|y| (y / self.step + ZERO_CODE).round_ties_even().clamp(0.0, 255.0) as u8)
                .collect();
            (nearest, code)
        });
        let (lists, codes): (Vec<u32>, Vec<Vec<u8>>) = rows.unzip();
        (lists, codes.concat())
    }

    /// A query in the unit of codes, and all lists, nearest first.
    pub(crate) fn query(&self, key: &[f32]) -> (Vec<i16>, Vec<u32>) {
        let projected = self.project(key);
        let of_centroids = self.centroids.chunks_exact(self.projected()).map(|c| squared_l2(&projected, c));
        let mut lists: Vec<(f32, u32)> = of_centroids.enumerate().map(|(list, d)| (d, list as u32)).collect();
        lists.sort_unstable_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        let (low, high) = QUERY_RANGE;
        let scaled = projected.iter().map(|y| (y / self.step + ZERO_CODE).round_ties_even().clamp(low, high) as i16);
        (scaled.collect(), lists.into_iter().map(|(_, list)| list).collect())
    }
}
