//! Matrix products of bfloat16 operands with f32 sums: what mixed-precision training spends its time on.
//!
//! Operands are packed into tiles of 16 rows by 32 values (Intel AMX's shape). A tile's products are summed in two f32 chains, one over
//! its even values and one over its odd ones, whose sum is added to the output: the order of AMX's TDPBF16PS, which the portable kernel
//! follows, so that both give the same bits (subnormal numbers aside, which AMX takes as 0). The AVX-512 kernel follows it too.

mod amx;
mod avx512;
mod pack;
mod portable;

pub(crate) use pack::{Layout, Panel};

/// Rows of a tile.
pub(crate) const TILE_ROWS: usize = 16;
/// Values in a row of a tile: the depth of one tile product.
pub(crate) const TILE_DEPTH: usize = 32;
/// Rows and columns of the output block that a kernel computes at once: 2 × 2 tiles.
pub(crate) const BLOCK: usize = 2 * TILE_ROWS;

/// 16 rows of 16 pairs of bfloat16 (left operand), or 16 pairs of rows of 16 pairs (right operand).
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Tile([u32; 256]);

impl Tile {
    const ZERO: Self = Self([0; 256]);
}

/// Which instructions multiply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kernel {
    /// Intel AMX: 1024 products and sums a cycle.
    Amx,
    /// AVX-512: 32 products and sums a cycle at best.
    Avx512,
    /// Any CPU.
    Portable,
}

impl Kernel {
    /// The fastest that this machine has and allows.
    pub fn best() -> Self {
        match (amx::available(), avx512::available()) {
            (true, _) => Self::Amx,
            (false, true) => Self::Avx512,
            (false, false) => Self::Portable,
        }
    }
}

/// Part of a packed operand: from row `row` (a multiple of [`BLOCK`]) and tile `tile` of the depth on.
#[derive(Clone, Copy)]
pub(crate) struct Operand<'a> {
    pub(crate) panel: &'a Panel,
    pub(crate) row: usize,
    pub(crate) tile: usize,
}

impl<'a> From<&'a Panel> for Operand<'a> {
    fn from(panel: &'a Panel) -> Self {
        Self { panel, row: 0, tile: 0 }
    }
}

impl Operand<'_> {
    /// The tiles of the 16 rows from `self.row + row` on.
    fn tiles(&self, row: usize, depth_tiles: usize) -> &[Tile] {
        let start = (self.row + row) / TILE_ROWS * self.panel.depth_tiles + self.tile;
        &self.panel.tiles[start..start + depth_tiles]
    }
}

/// Where a product goes: rows of `n_cols` values, `stride` apart.
pub(crate) struct Output<'a> {
    pub(crate) data: &'a mut [f32],
    pub(crate) stride: usize,
    pub(crate) n_rows: usize,
    pub(crate) n_cols: usize,
}

impl<'a> Output<'a> {
    /// A whole matrix of rows without gaps.
    pub(crate) fn whole(data: &'a mut [f32], n_cols: usize) -> Self {
        Self { stride: n_cols, n_rows: data.len() / n_cols, n_cols, data }
    }
}

/// What happens to what stood in the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Then {
    Overwrite,
    Add,
}

/// out (+)= left · rightᵀ over `depth_tiles` tiles of depth.
pub(crate) fn multiply(
    kernel: Kernel,
    left: Operand<'_>,
    right: Operand<'_>,
    depth_tiles: usize,
    out: &mut Output<'_>,
    then: Then,
) {
    match kernel {
        Kernel::Amx => {
            let tiles = amx::Tiles::configure();
            let block = |l: [&[Tile]; 2], r: [&[Tile]; 2], out: &mut [f32], stride, then| {
                amx::block(&tiles, l, r, out, stride, then);
            };
            blocks(&block, left, right, depth_tiles, out, then);
        }
        Kernel::Avx512 => blocks(&avx512::block, left, right, depth_tiles, out, then),
        Kernel::Portable => blocks(&portable::block, left, right, depth_tiles, out, then),
    }
}

/// One block: `out[r][c] (+)= Σ left · right` for 32 × 32 outputs, `stride` apart.
type BlockKernel<'a> = dyn Fn([&[Tile]; 2], [&[Tile]; 2], &mut [f32], usize, Then) + 'a;

fn blocks(
    kernel: &BlockKernel<'_>,
    left: Operand<'_>,
    right: Operand<'_>,
    depth_tiles: usize,
    out: &mut Output<'_>,
    then: Then,
) {
    for col in (0..out.n_cols).step_by(BLOCK) {
        let right_tiles = [right.tiles(col, depth_tiles), right.tiles(col + TILE_ROWS, depth_tiles)];
        for row in (0..out.n_rows).step_by(BLOCK) {
            let left_tiles = [left.tiles(row, depth_tiles), left.tiles(row + TILE_ROWS, depth_tiles)];
            let (rows, cols) = ((out.n_rows - row).min(BLOCK), (out.n_cols - col).min(BLOCK));
            let at = row * out.stride + col;
            if rows == BLOCK && cols == BLOCK {
                let target = &mut out.data[at..at + (BLOCK - 1) * out.stride + BLOCK];
                kernel(left_tiles, right_tiles, target, out.stride, then);
            } else {
                let mut edge = [0.0f32; BLOCK * BLOCK];
                for r in 0..rows {
                    let from = at + r * out.stride;
                    edge[r * BLOCK..][..cols].copy_from_slice(&out.data[from..from + cols]);
                }
                kernel(left_tiles, right_tiles, &mut edge, BLOCK, then);
                for r in 0..rows {
                    let to = at + r * out.stride;
                    out.data[to..to + cols].copy_from_slice(&edge[r * BLOCK..][..cols]);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;
    use proptest::prelude::*;

    use super::*;

    fn numbers(n: usize, seed: u64) -> Vec<f32> {
        let mut state = seed | 1;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            ((state >> 40) as f32 / (1 << 24) as f32 - 0.5) * 4.0
        };
        (0..n).map(|_| next()).collect()
    }

    fn transposed(a: &[f32], n_cols: usize) -> Vec<f32> {
        let n_rows = a.len() / n_cols;
        (0..a.len()).map(|i| a[i % n_rows * n_cols + i / n_rows]).collect()
    }

    proptest! {
        /// Any shape and layout, against the sum in f64 of the rounded operands; both kernels to the last bit.
        #[test]
        fn products_are_products(m in 1usize..70, n in 1usize..70, k in 1usize..100, strided in any::<[bool; 2]>(), add in any::<bool>(), seed in any::<u64>()) {
            let (a, b, c) = (numbers(m * k, seed), numbers(n * k, seed ^ 99), numbers(m * n, seed ^ 7));
            let pack = |data: &[f32], rows: usize, strided: bool, right: bool| {
                let mut panel = Panel::default();
                let columns = transposed(data, k);
                let (data, layout) = if strided { (&columns[..], Layout::Strided(rows)) } else { (data, Layout::Contiguous(k)) };
                if right { panel.pack_right(data, layout, rows, k) } else { panel.pack_left(data, layout, rows, k) }
                panel
            };
            let (left, right) = (pack(&a, m, strided[0], false), pack(&b, n, strided[1], true));
            let then = if add { Then::Add } else { Then::Overwrite };
            let run = |kernel| {
                let mut out = c.clone();
                multiply(kernel, (&left).into(), (&right).into(), left.depth_tiles, &mut Output::whole(&mut out, n), then);
                out
            };
            let portable = run(Kernel::Portable);
            let rounded = |x: f32| f64::from(bf16::from_f32(x).to_f32());
            for r in 0..m {
                for j in 0..n {
                    let sum: f64 = (0..k).map(|x| rounded(a[r * k + x]) * rounded(b[j * k + x])).sum();
                    let expected = sum + if add { f64::from(c[r * n + j]) } else { 0.0 };
                    prop_assert!((f64::from(portable[r * n + j]) - expected).abs() < 1e-3, "{} {}", portable[r * n + j], expected);
                }
            }
            let mut others = vec![Kernel::best()];
            if avx512::available() {
                others.push(Kernel::Avx512);
            }
            for other in others {
                prop_assert!(run(other).iter().zip(&portable).all(|(x, y)| x.to_bits() == y.to_bits()), "{other:?}");
            }
        }
    }
}
