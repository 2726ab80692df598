//! Attention caches.

use std::any::Any;

use silo_core::SequenceCache;

use crate::kernels::KEY_BLOCK;

/// Keys and values of one sequence, per layer and key-value head in the order of the tokens: values as rows of `head_dim`, keys in blocks
/// of [`KEY_BLOCK`] positions side by side, as [`attend`](crate::kernels::attend) reads them.
#[derive(Debug, Clone)]
pub(crate) struct CpuCache {
    len: usize,
    head_dim: usize,
    n_kv_heads: usize,
    /// `[layer][head]`.
    keys: Vec<Vec<f32>>,
    values: Vec<Vec<f32>>,
}

impl CpuCache {
    pub(crate) fn new(n_layers: usize, n_kv_heads: usize, head_dim: usize) -> Self {
        let empty = vec![Vec::new(); n_layers * n_kv_heads];
        Self { len: 0, head_dim, n_kv_heads, keys: empty.clone(), values: empty }
    }

    /// Whether it was made for a model of this form.
    pub(crate) fn fits(&self, n_layers: usize, n_kv_heads: usize, head_dim: usize) -> bool {
        self.keys.len() == n_layers * n_kv_heads && self.n_kv_heads == n_kv_heads && self.head_dim == head_dim
    }

    /// Adds one token's keys and values (all heads, one after the other) to a layer.
    pub(crate) fn push(&mut self, layer: usize, key: &[f32], value: &[f32]) {
        for head in 0..self.n_kv_heads {
            let range = head * self.head_dim..(head + 1) * self.head_dim;
            let (keys, values) =
                (&mut self.keys[layer * self.n_kv_heads + head], &mut self.values[layer * self.n_kv_heads + head]);
            let position = values.len() / self.head_dim;
            let block = position / KEY_BLOCK * KEY_BLOCK * self.head_dim;
            if keys.len() == block {
                keys.resize(block + KEY_BLOCK * self.head_dim, 0.0);
            }
            for (d, k) in key[range.clone()].iter().enumerate() {
                keys[block + d * KEY_BLOCK + position % KEY_BLOCK] = *k;
            }
            values.extend_from_slice(&value[range]);
        }
    }

    /// Keys and values of a layer's head.
    pub(crate) fn head(&self, layer: usize, head: usize) -> (&[f32], &[f32]) {
        let i = layer * self.n_kv_heads + head;
        (&self.keys[i], &self.values[i])
    }

    /// Counts `n` tokens that were added to all layers.
    pub(crate) fn commit(&mut self, n: usize) {
        self.len += n;
    }
}

impl SequenceCache for CpuCache {
    fn len(&self) -> usize {
        self.len
    }

    fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
        self.values.iter_mut().for_each(|rows| rows.truncate(self.len * self.head_dim));
        let blocks = self.len.div_ceil(KEY_BLOCK) * KEY_BLOCK;
        self.keys.iter_mut().for_each(|keys| keys.truncate(blocks * self.head_dim));
    }

    fn as_any_mut(&mut self) -> &mut dyn Any {
        self
    }
}
