//! Making a quantiser with Faiss: PCA (Jégou et al. 2010), then k-means.

use std::collections::BTreeMap;

use faiss::cluster::{Clustering, ClusteringParameters};
use faiss::index::flat::FlatIndex;
use faiss::vector_transform::{NativeVectorTransform, PCAMatrix, VectorTransform};

use super::quantizer::{MAX_PROJECTED, Parts, Quantizer, QuantizerError};

/// Iterations of k-means.
const ITERATIONS: u32 = 20;
/// Largest code on either side of zero.
const CODE_RANGE: f32 = 127.0;
/// Keys whose values may leave the range of codes, one in so many.
const CLIPPED: usize = 100;

/// What a quantiser is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Training {
    /// Values of a projected key.
    pub projected: usize,
    /// Lists.
    pub n_lists: usize,
    /// Draws the first centroids.
    pub seed: u32,
    /// Kept with the quantiser.
    pub about: BTreeMap<String, String>,
}

/// Makes a quantiser from sample keys that stand one after the other, `dim` values each.
pub fn train_quantizer(keys: &[f32], dim: usize, training: Training) -> Result<Quantizer, QuantizerError> {
    let Training { projected, n_lists, seed, about } = training;
    let n = keys.len() / dim.max(1);
    let fail = |what: String| QuantizerError::from_training(what);
    let most = dim.min(MAX_PROJECTED);
    if projected == 0 || projected > most {
        return Err(fail(format!("keys of {dim} values can be projected to 1 to {most}, not {projected}")));
    }
    if n_lists == 0 || n < n_lists.max(projected) {
        return Err(fail(format!("{n} keys are too few for {n_lists} lists of {projected} values; give more text")));
    }
    let faiss_failed = |e: faiss::error::Error| fail(format!("Faiss said: {e}"));
    let mut pca = PCAMatrix::new(dim as u32, projected as u32, 0.0, false).map_err(faiss_failed)?;
    pca.train(n, keys).map_err(faiss_failed)?;
    let (projection, bias) = matrix(&pca, dim, projected);
    let mut sample = vec![0.0f32; n * projected];
    apply(&pca, keys, n, &mut sample);

    let mut parameters = ClusteringParameters::new();
    parameters.set_niter(ITERATIONS);
    parameters.set_seed(seed);
    parameters.set_min_points_per_centroid(1);
    let mut clustering =
        Clustering::new_with_params(projected as u32, n_lists as u32, &parameters).map_err(faiss_failed)?;
    let mut index = FlatIndex::new_l2(projected as u32).map_err(faiss_failed)?;
    clustering.train(&sample, &mut index).map_err(faiss_failed)?;
    let centroids = clustering.centroids().map_err(faiss_failed)?.concat();
    Quantizer::new(Parts { dim, projection, bias, centroids, step: code_step(&sample, projected) }, about)
}

/// y = A·x + b of a trained transform: b is the image of 0, column i of A that of the unit vector i, less b.
fn matrix(pca: &PCAMatrix, dim: usize, projected: usize) -> (Vec<f32>, Vec<f32>) {
    let mut inputs = vec![0.0f32; (dim + 1) * dim];
    (0..dim).for_each(|i| inputs[(i + 1) * dim + i] = 1.0);
    let mut images = vec![0.0f32; (dim + 1) * projected];
    apply(pca, &inputs, dim + 1, &mut images);
    let (bias, columns) = images.split_at(projected);
    let value = |r: usize, c: usize| columns[c * projected + r] - bias[r];
    let projection = (0..projected).flat_map(|r| (0..dim).map(move |c| (r, c))).map(|(r, c)| value(r, c)).collect();
    (projection, bias.to_vec())
}

/// The crate's own `apply_noalloc` returns a vector of length 0.
fn apply(pca: &PCAMatrix, inputs: &[f32], n: usize, outputs: &mut [f32]) {
    assert_eq!((inputs.len(), outputs.len()), (n * pca.d_in() as usize, n * pca.d_out() as usize));
    // SAFETY: the transform reads n·d_in and writes n·d_out values, which is what the slices hold.
    unsafe {
        faiss_sys::faiss_VectorTransform_apply_noalloc(
            pca.inner_ptr(),
            n as i64,
            inputs.as_ptr(),
            outputs.as_mut_ptr(),
        );
    }
}

/// The step at which all but a hundredth of the keys fit the range of codes.
fn code_step(sample: &[f32], projected: usize) -> f32 {
    let mut largest: Vec<f32> =
        sample.chunks_exact(projected).map(|y| y.iter().fold(0.0f32, |m, x| m.max(x.abs()))).collect();
    largest.sort_unstable_by(f32::total_cmp);
    let at = largest.len() - 1 - largest.len() / CLIPPED;
    (largest[at] / CODE_RANGE).max(f32::MIN_POSITIVE)
}
