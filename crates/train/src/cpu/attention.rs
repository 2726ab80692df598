//! Causal attention within documents, in blocks of queries: scores are computed again in the backward pass instead of kept
//! (Dao et al. 2022).

use silo_model::math::{dot, exp};

use super::forward::room;
use super::head::exponentials;
use super::{Fixed, Kept};
use crate::data::Row;
use crate::gemm::{BLOCK, Layout, Operand, Output, Panel, TILE_DEPTH, Then, multiply};

/// Queries of a block.
const QUERIES: usize = 64;

/// Buffers.
#[derive(Default)]
pub(super) struct Attention {
    keys: Panel,
    /// Keys or values with the position as depth.
    by_position: Panel,
    values: Panel,
    left: Panel,
    right: Panel,
    scores: Vec<f32>,
    dscores: Vec<f32>,
}

/// A block of queries and the keys that any of them sees.
struct Span {
    from: usize,
    n: usize,
    first_key: usize,
    n_keys: usize,
}

impl Span {
    fn of(row: &Row, from: usize) -> Self {
        let n = QUERIES.min(row.tokens.len() - from);
        let first_key = row.starts[from] as usize / BLOCK * BLOCK;
        Self { from, n, first_key, n_keys: from + n - first_key }
    }

    /// The keys that the block's query `i` sees, counted from the first one.
    fn visible(&self, row: &Row, i: usize) -> std::ops::Range<usize> {
        let query = self.from + i;
        row.starts[query] as usize - self.first_key..query + 1 - self.first_key
    }
}

/// Where the heads of a query head's products lie.
struct Head {
    query: usize,
    key: usize,
    value: usize,
    /// Number of the query head.
    number: usize,
}

impl Head {
    fn of(fixed: &Fixed, number: usize) -> Self {
        let (d, group) = (fixed.shape.head_dim, fixed.shape.n_heads / fixed.shape.n_kv_heads);
        let key = fixed.q_dim() + number / group * d;
        Self { query: number * d, key, value: key + fixed.kv_dim(), number }
    }
}

/// What the backward pass reads.
struct Given<'a> {
    fixed: &'a Fixed,
    row: &'a Row,
    kept: &'a Kept,
    qkv: &'a [f32],
    dattended: &'a [f32],
}

impl Attention {
    /// attended = softmax(q·kᵀ/√d)·v for every head.
    pub(super) fn forward(
        &mut self,
        fixed: &Fixed,
        row: &Row,
        qkv: &[f32],
        attended: &mut [f32],
        log_sums: &mut [f32],
    ) {
        let (t, d, width) = (row.tokens.len(), fixed.shape.head_dim, fixed.qkv_dim());
        let group = fixed.shape.n_heads / fixed.shape.n_kv_heads;
        for head in (0..fixed.shape.n_heads).map(|h| Head::of(fixed, h)) {
            if head.number % group == 0 {
                self.keys.pack_right(&qkv[head.key..], Layout::Contiguous(width), t, d);
                self.by_position.pack_right(&qkv[head.value..], Layout::Strided(width), d, t);
            }
            for from in (0..t).step_by(QUERIES) {
                let span = Span::of(row, from);
                self.scores(fixed, qkv, &head, &span);
                for (i, scores) in self.scores.chunks_exact_mut(span.n_keys).take(span.n).enumerate() {
                    let log_sum = softmax(scores, span.visible(row, i), scale(d));
                    log_sums[(from + i) * fixed.shape.n_heads + head.number] = log_sum;
                }
                self.left.pack_left(&self.scores, Layout::Contiguous(span.n_keys), span.n, span.n_keys);
                let right = Operand { panel: &self.by_position, row: 0, tile: span.first_key / TILE_DEPTH };
                let stride = fixed.q_dim();
                let data = &mut attended[from * stride + head.query..];
                let out = &mut Output { data, stride, n_rows: span.n, n_cols: d };
                multiply(fixed.kernel, (&self.left).into(), right, self.left.depth_tiles(), out, Then::Overwrite);
            }
        }
    }

    /// Products of the span's queries and keys, in `scores`.
    fn scores(&mut self, fixed: &Fixed, qkv: &[f32], head: &Head, span: &Span) {
        let (d, width) = (fixed.shape.head_dim, fixed.qkv_dim());
        let queries = &qkv[span.from * width + head.query..];
        self.left.pack_left(queries, Layout::Contiguous(width), span.n, d);
        let right = Operand { panel: &self.keys, row: span.first_key, tile: 0 };
        let out = &mut Output::whole(room(&mut self.scores, span.n * span.n_keys), span.n_keys);
        multiply(fixed.kernel, (&self.left).into(), right, self.left.depth_tiles(), out, Then::Overwrite);
    }

    /// Gradients of queries, keys and values in `dqkv`, from that of what was attended to.
    pub(super) fn backward(&mut self, fixed: &Fixed, row: &Row, kept: &Kept, dattended: &[f32], dqkv: &mut [f32]) {
        let (t, d, width) = (row.tokens.len(), fixed.shape.head_dim, fixed.qkv_dim());
        let group = fixed.shape.n_heads / fixed.shape.n_kv_heads;
        let qkv = &kept.qkv[..t * width];
        let given = Given { fixed, row, kept, qkv, dattended };
        dqkv.fill(0.0);
        for head in (0..fixed.shape.n_heads).map(|h| Head::of(fixed, h)) {
            if head.number % group == 0 {
                self.keys.pack_right(&qkv[head.key..], Layout::Contiguous(width), t, d);
                self.by_position.pack_right(&qkv[head.key..], Layout::Strided(width), d, t);
                self.values.pack_right(&qkv[head.value..], Layout::Contiguous(width), t, d);
            }
            for from in (0..t).step_by(QUERIES) {
                let span = Span::of(row, from);
                self.scores(fixed, qkv, &head, &span);
                self.score_gradients(&given, &head, &span);
                self.add_gradients(&given, dqkv, &head, &span);
            }
        }
    }

    /// Turns `scores` into probabilities and fills `dscores` with the gradient of the unscaled scores.
    fn score_gradients(&mut self, given: &Given<'_>, head: &Head, span: &Span) {
        let Given { fixed, row, kept, dattended, .. } = *given;
        let (d, stride) = (fixed.shape.head_dim, fixed.q_dim());
        let gradient = &dattended[span.from * stride + head.query..];
        self.left.pack_left(gradient, Layout::Contiguous(stride), span.n, d);
        let right = Operand { panel: &self.values, row: span.first_key, tile: 0 };
        let out = &mut Output::whole(room(&mut self.dscores, span.n * span.n_keys), span.n_keys);
        multiply(fixed.kernel, (&self.left).into(), right, self.left.depth_tiles(), out, Then::Overwrite);

        let rows = self.scores.chunks_exact_mut(span.n_keys).zip(self.dscores.chunks_exact_mut(span.n_keys));
        for (i, (p, dp)) in rows.take(span.n).enumerate() {
            let query = span.from + i;
            let at = query * stride + head.query;
            let along = dot(&dattended[at..at + d], &kept.attended[at..at + d]);
            let log_sum = kept.log_sums[query * fixed.shape.n_heads + head.number];
            let visible = span.visible(row, i);
            for hidden in [0..visible.start, visible.end..span.n_keys] {
                p[hidden.clone()].fill(0.0);
                dp[hidden].fill(0.0);
            }
            for (p, dp) in p[visible.clone()].iter_mut().zip(&mut dp[visible]) {
                *p = exp(*p * scale(d) - log_sum);
                *dp = *p * (*dp - along) * scale(d);
            }
        }
    }

    fn add_gradients(&mut self, given: &Given<'_>, dqkv: &mut [f32], head: &Head, span: &Span) {
        let Given { fixed, qkv, dattended, .. } = *given;
        let (d, width, q_dim, kernel) = (fixed.shape.head_dim, fixed.qkv_dim(), fixed.q_dim(), fixed.kernel);
        let (n, n_keys) = (span.n, span.n_keys);
        let (probabilities, dscores) = (&self.scores[..n * n_keys], &self.dscores[..n * n_keys]);

        self.left.pack_left(dscores, Layout::Contiguous(n_keys), n, n_keys);
        let keys = Operand { panel: &self.by_position, row: 0, tile: span.first_key / TILE_DEPTH };
        let data = &mut dqkv[span.from * width + head.query..];
        let out = &mut Output { data, stride: width, n_rows: n, n_cols: d };
        multiply(kernel, (&self.left).into(), keys, self.left.depth_tiles(), out, Then::Add);

        self.left.pack_left(dscores, Layout::Strided(n_keys), n_keys, n);
        self.right.pack_right(&qkv[span.from * width + head.query..], Layout::Strided(width), d, n);
        let data = &mut dqkv[span.first_key * width + head.key..];
        let out = &mut Output { data, stride: width, n_rows: n_keys, n_cols: d };
        multiply(kernel, (&self.left).into(), (&self.right).into(), self.left.depth_tiles(), out, Then::Add);

        self.left.pack_left(probabilities, Layout::Strided(n_keys), n_keys, n);
        self.right.pack_right(&dattended[span.from * q_dim + head.query..], Layout::Strided(q_dim), d, n);
        let data = &mut dqkv[span.first_key * width + head.value..];
        let out = &mut Output { data, stride: width, n_rows: n_keys, n_cols: d };
        multiply(kernel, (&self.left).into(), (&self.right).into(), self.left.depth_tiles(), out, Then::Add);
    }
}

fn scale(head_dim: usize) -> f32 {
    1.0 / (head_dim as f32).sqrt()
}

/// Probabilities of the visible scores, 0 for the others; returns the log of the sum of exponentials.
fn softmax(scores: &mut [f32], visible: std::ops::Range<usize>, scale: f32) -> f32 {
    scores[..visible.start].fill(0.0);
    scores[visible.end..].fill(0.0);
    let scores = &mut scores[visible];
    scores.iter_mut().for_each(|s| *s *= scale);
    let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum = exponentials(scores, max);
    let factor = 1.0 / sum;
    scores.iter_mut().for_each(|s| *s *= factor);
    max + sum.ln()
}
