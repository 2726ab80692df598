//! The kernels in plain Rust: what runs where there is no vector code for the machine, and the oracle of the vector code.

use super::{BLOCK, PANEL, Tile};

/// acc\[r\]\[c\] = Σ_k x\[r\]\[k\]·panel\[k\]\[c\], k in order, fused. `x` holds `MR` rows of `k` values, `stride` apart.
pub(crate) fn tile<const MR: usize, W: Copy>(
    x: &[f32],
    stride: usize,
    panel: &[W],
    load: impl Fn(W) -> f32,
) -> Tile<MR> {
    let mut acc = [[0.0; PANEL]; MR];
    for (k, row) in panel.chunks_exact(PANEL).enumerate() {
        for (r, acc) in acc.iter_mut().enumerate() {
            let x = x[r * stride + k];
            for (a, w) in acc.iter_mut().zip(row) {
                *a = x.mul_add(load(*w), *a);
            }
        }
    }
    acc
}

/// The same over a quantised panel: per block of 32 inner positions acc += scale·(Σ x·code) + offset·(Σ x), both sums in
/// order and fused. `codes` gives the 32 codes of an inner position; `scales` and `offsets` hold a value per block and column.
pub(crate) fn quantized_tile<const MR: usize>(
    x: &[f32],
    stride: usize,
    codes: impl Fn(usize) -> [u8; PANEL],
    scales: &[f32],
    offsets: &[f32],
) -> Tile<MR> {
    let mut acc = [[0.0; PANEL]; MR];
    let blocks = scales.chunks_exact(PANEL).zip(offsets.chunks_exact(PANEL));
    for (b, (scales, offsets)) in blocks.enumerate() {
        let mut sum = [[0.0f32; PANEL]; MR];
        let mut sum_x = [0.0f32; MR];
        for k in b * BLOCK..(b + 1) * BLOCK {
            let codes = codes(k).map(f32::from);
            for r in 0..MR {
                let x = x[r * stride + k];
                for (sum, code) in sum[r].iter_mut().zip(codes) {
                    *sum = x.mul_add(code, *sum);
                }
                sum_x[r] += x;
            }
        }
        for r in 0..MR {
            for c in 0..PANEL {
                acc[r][c] = scales[c].mul_add(sum[r][c], acc[r][c]);
                acc[r][c] = offsets[c].mul_add(sum_x[r], acc[r][c]);
            }
        }
    }
    acc
}
