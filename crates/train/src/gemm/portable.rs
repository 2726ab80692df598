//! The block kernel in plain Rust.

use super::{BLOCK, TILE_ROWS, Then, Tile};

/// See [`super::BlockKernel`].
pub(super) fn block(left: [&[Tile]; 2], right: [&[Tile]; 2], out: &mut [f32], stride: usize, then: Then) {
    if then == Then::Overwrite {
        out.chunks_mut(stride).for_each(|r| r[..BLOCK].fill(0.0));
    }
    for (i, left) in left.into_iter().enumerate() {
        for (j, right) in right.into_iter().enumerate() {
            for (l, r) in left.iter().zip(right) {
                for row in 0..TILE_ROWS {
                    let at = (i * TILE_ROWS + row) * stride + j * TILE_ROWS;
                    let sums = tile_row(&l.0[row * 16..][..16], r);
                    out[at..at + TILE_ROWS].iter_mut().zip(sums).for_each(|(o, s)| *o += s);
                }
            }
        }
    }
}

/// A row of the left tile times the right one: a chain over the even values and one over the odd ones.
#[inline(always)]
fn tile_row(left: &[u32], right: &Tile) -> [f32; TILE_ROWS] {
    let (mut even, mut odd) = ([0.0f32; TILE_ROWS], [0.0f32; TILE_ROWS]);
    for (&pair, right) in left.iter().zip(right.0.as_chunks::<TILE_ROWS>().0) {
        let (a_even, a_odd) = (low(pair), high(pair));
        for (c, &b) in right.iter().enumerate() {
            even[c] = a_even.mul_add(low(b), even[c]);
            odd[c] = a_odd.mul_add(high(b), odd[c]);
        }
    }
    std::array::from_fn(|c| even[c] + odd[c])
}

#[inline(always)]
fn low(pair: u32) -> f32 {
    f32::from_bits(pair << 16)
}

#[inline(always)]
fn high(pair: u32) -> f32 {
    f32::from_bits(pair & 0xffff_0000)
}
