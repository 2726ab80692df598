//! f32 matrices → tiles of bfloat16.

use super::{BLOCK, TILE_DEPTH, TILE_ROWS, Tile};

/// How a matrix of (row, depth) lies in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Layout {
    /// `data[row * stride + depth]`.
    Contiguous(usize),
    /// `data[depth * stride + row]`.
    Strided(usize),
}

/// A packed operand. Rows are padded to a multiple of 32 and the depth to one of 32 with zeros.
#[derive(Default)]
pub(crate) struct Panel {
    pub(super) tiles: Vec<Tile>,
    pub(super) depth_tiles: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Left,
    Right,
}

impl Panel {
    /// Packs the left operand of a product.
    pub(crate) fn pack_left(&mut self, data: &[f32], layout: Layout, n_rows: usize, depth: usize) {
        self.resize(n_rows, depth);
        self.pack(Source { data, layout, n_rows, depth }, 0, Side::Left);
    }

    /// Packs the right operand of a product.
    pub(crate) fn pack_right(&mut self, data: &[f32], layout: Layout, n_rows: usize, depth: usize) {
        self.resize(n_rows, depth);
        self.pack(Source { data, layout, n_rows, depth }, 0, Side::Right);
    }

    /// Makes room for an operand that is packed in parts by [`Self::pack_left_part`].
    pub(crate) fn resize(&mut self, n_rows: usize, depth: usize) {
        self.depth_tiles = depth.div_ceil(TILE_DEPTH);
        self.tiles.resize(n_rows.next_multiple_of(BLOCK) / TILE_ROWS * self.depth_tiles, Tile::ZERO);
    }

    /// Packs `depth` values of each row of a left operand, from `from` (a multiple of 32) on, which is where `data` begins.
    pub(crate) fn pack_left_part(&mut self, data: &[f32], layout: Layout, n_rows: usize, from: usize, depth: usize) {
        self.pack(Source { data, layout, n_rows, depth }, from / TILE_DEPTH, Side::Left);
    }

    /// Tiles along the depth.
    pub(crate) fn depth_tiles(&self) -> usize {
        self.depth_tiles
    }

    fn pack(&mut self, source: Source<'_>, first_tile: usize, side: Side) {
        let rows = self.tiles.chunks_exact_mut(self.depth_tiles.max(1));
        let tiles = rows.map(|r| &mut r[first_tile..first_tile + source.depth.div_ceil(TILE_DEPTH)]);
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx512bw") && is_x86_feature_detected!("avx512vl") {
            // SAFETY: the instructions are there.
            return unsafe { pack_avx512(tiles, source, side) };
        }
        pack_tiles(tiles, source, side, transpose);
    }
}

#[derive(Clone, Copy)]
struct Source<'a> {
    data: &'a [f32],
    layout: Layout,
    n_rows: usize,
    depth: usize,
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn pack_avx512<'a>(tiles: impl Iterator<Item = &'a mut [Tile]>, source: Source<'_>, side: Side) {
    pack_tiles(tiles, source, side, |t| transpose_avx512(t));
}

#[inline(always)]
fn pack_tiles<'a>(
    tiles: impl Iterator<Item = &'a mut [Tile]>,
    source: Source<'_>,
    side: Side,
    transpose: impl Fn(&mut Tile),
) {
    for (b, row_tiles) in tiles.enumerate() {
        for (t, tile) in row_tiles.iter_mut().enumerate() {
            let natural = load(source, b * TILE_ROWS, t * TILE_DEPTH, tile);
            if natural != side {
                transpose(tile);
            }
        }
    }
}

/// Fills a tile in the form that the layout gives without a transposition, and says which side's form that is.
#[inline(always)]
fn load(source: Source<'_>, row: usize, depth: usize, tile: &mut Tile) -> Side {
    let n_rows = source.n_rows.saturating_sub(row).min(TILE_ROWS);
    let n_depth = source.depth.saturating_sub(depth).min(TILE_DEPTH);
    let whole = n_rows == TILE_ROWS && n_depth == TILE_DEPTH;
    if !whole {
        *tile = Tile::ZERO;
    }
    if n_rows == 0 {
        return match source.layout {
            Layout::Contiguous(_) => Side::Left,
            Layout::Strided(_) => Side::Right,
        };
    }
    match source.layout {
        Layout::Contiguous(stride) => {
            for (r, out) in tile.0.as_chunks_mut::<16>().0.iter_mut().enumerate().take(n_rows) {
                let from = (row + r) * stride + depth;
                match source.data[from..from + n_depth].as_array::<TILE_DEPTH>() {
                    Some(values) => *out = pairs(values),
                    None => {
                        let mut values = [0.0; TILE_DEPTH];
                        values[..n_depth].copy_from_slice(&source.data[from..from + n_depth]);
                        *out = pairs(&values);
                    }
                }
            }
            Side::Left
        }
        Layout::Strided(stride) => {
            let rows_at = |d: usize| {
                if whole {
                    let from = (depth + d) * stride + row;
                    return *source.data[from..from + TILE_ROWS].as_array().expect("16 values");
                }
                let mut values = [0.0; TILE_ROWS];
                if d < n_depth {
                    let from = (depth + d) * stride + row;
                    values[..n_rows].copy_from_slice(&source.data[from..from + n_rows]);
                }
                values
            };
            for (p, out) in tile.0.as_chunks_mut::<16>().0.iter_mut().enumerate().take(n_depth.div_ceil(2)) {
                let (even, odd) = (rows_at(2 * p), rows_at(2 * p + 1));
                for i in 0..TILE_ROWS {
                    out[i] = round(even[i]) >> 16 | round(odd[i]) & 0xffff_0000;
                }
            }
            Side::Right
        }
    }
}

/// 32 values as pairs: the first of a pair in the low half.
#[inline(always)]
fn pairs(values: &[f32; TILE_DEPTH]) -> [u32; 16] {
    let mut out = [0; 16];
    for (o, v) in out.iter_mut().zip(values.as_chunks::<2>().0) {
        *o = round(v[0]) >> 16 | round(v[1]) & 0xffff_0000;
    }
    out
}

/// A number rounded to the nearest bfloat16, ties to even, in the upper half of the result. A NaN stays one: it must not be lost.
#[inline(always)]
fn round(x: f32) -> u32 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1));
    if x.is_nan() { bits | 0x0040_0000 } else { rounded }
}

fn transpose(tile: &mut Tile) {
    for r in 0..16 {
        for c in 0..r {
            tile.0.swap(r * 16 + c, c * 16 + r);
        }
    }
}

/// The same in registers.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn transpose_avx512(tile: &mut Tile) {
    use std::arch::x86_64::*;
    let rows = tile.0.as_chunks_mut::<16>().0;
    // SAFETY: each row is 16 values.
    let load = |i: usize| unsafe { _mm512_loadu_si512(rows[i].as_ptr().cast()) };
    let mut a: [__m512i; 16] = std::array::from_fn(load);
    let mut b = a;
    for i in 0..8 {
        b[2 * i] = _mm512_unpacklo_epi32(a[2 * i], a[2 * i + 1]);
        b[2 * i + 1] = _mm512_unpackhi_epi32(a[2 * i], a[2 * i + 1]);
    }
    for i in 0..4 {
        a[4 * i] = _mm512_unpacklo_epi64(b[4 * i], b[4 * i + 2]);
        a[4 * i + 1] = _mm512_unpackhi_epi64(b[4 * i], b[4 * i + 2]);
        a[4 * i + 2] = _mm512_unpacklo_epi64(b[4 * i + 1], b[4 * i + 3]);
        a[4 * i + 3] = _mm512_unpackhi_epi64(b[4 * i + 1], b[4 * i + 3]);
    }
    for i in 0..4 {
        b[i] = _mm512_shuffle_i32x4::<0x88>(a[i], a[i + 4]);
        b[i + 4] = _mm512_shuffle_i32x4::<0xdd>(a[i], a[i + 4]);
        b[i + 8] = _mm512_shuffle_i32x4::<0x88>(a[i + 8], a[i + 12]);
        b[i + 12] = _mm512_shuffle_i32x4::<0xdd>(a[i + 8], a[i + 12]);
    }
    for i in 0..8 {
        a[i] = _mm512_shuffle_i32x4::<0x88>(b[i], b[i + 8]);
        a[i + 8] = _mm512_shuffle_i32x4::<0xdd>(b[i], b[i + 8]);
    }
    for (row, value) in rows.iter_mut().zip(a) {
        // SAFETY: the row is 16 values.
        unsafe { _mm512_storeu_si512(row.as_mut_ptr().cast(), value) };
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn numbers_are_rounded_as_half_rounds_them(bits in any::<u32>()) {
            let x = f32::from_bits(bits);
            let got = f32::from_bits(round(x) & 0xffff_0000);
            let expected = bf16::from_f32(x).to_f32();
            prop_assert!(got.to_bits() == expected.to_bits() || got.is_nan() && expected.is_nan(), "{x}: {got} {expected}");
        }

        #[test]
        fn a_tile_is_transposed_in_registers_as_by_hand(seed in any::<u32>()) {
            let tile = Tile(std::array::from_fn(|i| (i as u32).wrapping_mul(2_654_435_761) ^ seed));
            let mut by_hand = tile;
            transpose(&mut by_hand);
            prop_assert!((0..256).all(|i| by_hand.0[i] == tile.0[i % 16 * 16 + i / 16]));
            #[cfg(target_arch = "x86_64")]
            if is_x86_feature_detected!("avx512f") {
                let mut in_registers = tile;
                // SAFETY: the instructions are there.
                unsafe { transpose_avx512(&mut in_registers) };
                prop_assert_eq!(in_registers.0, by_hand.0);
            }
        }
    }
}
