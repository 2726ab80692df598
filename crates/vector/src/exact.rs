//! Exhaustive search.

use std::borrow::Cow;

use fixedbitset::FixedBitSet;
use half::f16;
use half::slice::HalfFloatSliceExt;
use rayon::prelude::*;

use crate::prefetch::prefetch;
use crate::{Candidate, RowOrder, TopK};

/// Rows of keys, one after the other.
#[derive(Debug, Clone, Copy)]
#[allow(missing_docs, reason = "the variants are the types")]
pub enum Keys<'a> {
    F32(&'a [f32]),
    F16(&'a [f16]),
}

impl Keys<'_> {
    fn len(&self) -> usize {
        match self {
            Self::F32(v) => v.len(),
            Self::F16(v) => v.len(),
        }
    }

    /// Asks for the beginning of a row from memory; the processor goes on by itself.
    pub(crate) fn ask_for(&self, row: usize, dim: usize) {
        const LINE_BYTES: usize = 64;
        match self {
            Self::F32(v) => (0..2).for_each(|line| prefetch(v, row * dim + line * LINE_BYTES / size_of::<f32>())),
            Self::F16(v) => (0..2).for_each(|line| prefetch(v, row * dim + line * LINE_BYTES / size_of::<f16>())),
        }
    }

    /// Row `row` as f32; `buffer` is used where the row has to be converted.
    pub(crate) fn row<'b>(&'b self, row: usize, dim: usize, buffer: &'b mut [f32]) -> &'b [f32] {
        match self {
            Self::F32(v) => &v[row * dim..(row + 1) * dim],
            Self::F16(v) => {
                v[row * dim..(row + 1) * dim].convert_to_f32_slice(buffer);
                buffer
            }
        }
    }
}

/// Keys that are searched together, and the queries that may see them.
#[derive(Debug, Clone)]
pub struct Part<'a> {
    /// Reported with each of its rows.
    pub id: u32,
    /// Its keys.
    pub keys: Keys<'a>,
    /// Numbers of the queries that see it.
    pub queries: Vec<usize>,
    /// Rows that nobody sees.
    pub hidden: Option<Cow<'a, FixedBitSet>>,
}

/// One query.
#[derive(Debug, Clone, Copy)]
pub struct Query<'a> {
    /// The key to search for.
    pub key: &'a [f32],
    /// How many neighbours.
    pub k: usize,
}

/// Rows that one job scans.
const JOB_ROWS: usize = 8192;

/// Σ f(a_i, b_i), in sixteen lanes that are added in a fixed order, so that a result does not depend on what else is computed.
#[inline(always)]
fn reduce(a: &[f32], b: &[f32], f: impl Fn(f32, f32, f32) -> f32) -> f32 {
    const LANES: usize = 16;
    let mut acc = [0.0f32; LANES];
    let (a_head, a_tail) = a.as_chunks::<LANES>();
    let (b_head, b_tail) = b.as_chunks::<LANES>();
    for (x, y) in a_head.iter().zip(b_head) {
        for i in 0..LANES {
            acc[i] = f(x[i], y[i], acc[i]);
        }
    }
    for (i, (x, y)) in a_tail.iter().zip(b_tail).enumerate() {
        acc[i] = f(*x, *y, acc[i]);
    }
    let mut width = LANES;
    while width > 1 {
        width /= 2;
        for i in 0..width {
            acc[i] += acc[i + width];
        }
    }
    acc[0]
}

/// Σ (a_i − b_i)².
#[inline]
pub fn squared_l2(a: &[f32], b: &[f32]) -> f32 {
    reduce(a, b, |x, y, sum| {
        let d = x - y;
        d.mul_add(d, sum)
    })
}

/// Σ a_i · b_i.
#[inline]
pub(crate) fn dot(a: &[f32], b: &[f32]) -> f32 {
    reduce(a, b, f32::mul_add)
}

/// The k nearest rows of each query among the parts that see it, nearest first; rows of equal distance in `order`. Keys have
/// `dim` values.
pub fn exact_search(
    dim: usize,
    parts: &[Part<'_>],
    queries: &[Query<'_>],
    order: &RowOrder<'_>,
) -> Vec<Vec<Candidate>> {
    let jobs: Vec<(&Part<'_>, std::ops::Range<usize>)> = parts
        .iter()
        .filter(|p| !p.queries.is_empty())
        .flat_map(|part| {
            let n = part.keys.len() / dim;
            (0..n).step_by(JOB_ROWS).map(move |from| (part, from..n.min(from + JOB_ROWS)))
        })
        .collect();
    let empty = || queries.iter().map(|q| TopK::new(q.k)).collect::<Vec<_>>();
    let scan = |mut best: Vec<TopK>, (part, rows): &(&Part<'_>, std::ops::Range<usize>)| {
        let mut buffer = vec![0.0; dim];
        let hidden = part.hidden.as_deref();
        for row in rows.clone() {
            if hidden.is_some_and(|h| h.contains(row)) {
                continue;
            }
            let key = part.keys.row(row, dim, &mut buffer);
            for &query in &part.queries {
                let distance = squared_l2(queries[query].key, key);
                best[query].push(Candidate { distance, part: part.id, row: row as u32 }, order);
            }
        }
        best
    };
    let merge = |a: Vec<TopK>, b: Vec<TopK>| a.into_iter().zip(b).map(|(a, b)| a.merge(b, order)).collect::<Vec<_>>();
    let best = jobs.par_iter().fold(empty, scan).reduce(empty, merge);
    best.into_iter().map(|top| top.into_sorted(order)).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn results_are_those_of_the_definition(
            dim in 1usize..40,
            raw in prop::collection::vec(-3i8..3, 0..1200),
            query in prop::collection::vec(-3i8..3, 40),
            k in 0usize..20,
            half_precision in any::<bool>(),
        ) {
            let values: Vec<f32> = raw.iter().map(|&x| f32::from(x)).collect();
            let values = &values[..values.len() / dim * dim];
            let halves: Vec<f16> = values.iter().map(|&x| f16::from_f32(x)).collect();
            let query: Vec<f32> = query[..dim].iter().map(|&x| f32::from(x)).collect();
            let n = values.len() / dim;
            let cut = n / 3 * dim;
            let keys = |from: usize, to: usize| if half_precision { Keys::F16(&halves[from..to]) } else { Keys::F32(&values[from..to]) };
            let parts = [
                Part { id: 0, keys: keys(0, cut), queries: vec![0, 1], hidden: None },
                Part { id: 1, keys: keys(cut, values.len()), queries: vec![1], hidden: Some(Cow::Owned([1, 4, 5].into_iter().collect())) },
            ];
            let queries = [Query { key: &query, k }, Query { key: &query, k }];
            let found = exact_search(dim, &parts, &queries, &|a, b| a.cmp(&b));
            let mut expected: Vec<(f32, u32, u32)> = (0..n).map(|row| {
                let d: f32 = (0..dim).map(|i| (values[row * dim + i] - query[i]).powi(2)).sum();
                if row < n / 3 { (d, 0, row as u32) } else { (d, 1, (row - n / 3) as u32) }
            }).collect();
            expected.retain(|e| e.1 == 0 || ![1, 4, 5].contains(&e.2));
            expected.sort_by(|a, b| a.partial_cmp(b).unwrap());
            let as_tuples = |c: &[Candidate]| c.iter().map(|c| (c.distance, c.part, c.row)).collect::<Vec<_>>();
            prop_assert_eq!(as_tuples(&found[1]), expected.iter().take(k).copied().collect::<Vec<_>>());
            let first: Vec<_> = expected.into_iter().filter(|e| e.1 == 0).take(k).collect();
            prop_assert_eq!(as_tuples(&found[0]), first);
        }
    }
}
