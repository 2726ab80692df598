//! AVX2 kernels: the baseline of x86-64 builds. Each lane computes what [`super::portable`] computes, to the last bit.

use std::arch::x86_64::*;

use super::{PANEL, Tile};

/// Vectors in a panel row.
const VECTORS: usize = PANEL / 8;

/// Loads 8 columns of a panel row as f32.
pub(crate) trait Load: Copy {
    /// Reads 8 values from `p`.
    ///
    /// # Safety
    /// `p` must point to 8 readable values, and the CPU must have AVX2 and F16C.
    unsafe fn load(p: *const Self) -> __m256;
}

impl Load for f32 {
    #[inline(always)]
    unsafe fn load(p: *const Self) -> __m256 {
        // SAFETY: the caller's promise.
        unsafe { _mm256_loadu_ps(p) }
    }
}

impl Load for half::bf16 {
    #[inline(always)]
    unsafe fn load(p: *const Self) -> __m256 {
        // SAFETY: the caller's promise; bf16 is two bytes and the upper half of an f32.
        unsafe { _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast())))) }
    }
}

impl Load for half::f16 {
    #[inline(always)]
    unsafe fn load(p: *const Self) -> __m256 {
        // SAFETY: the caller's promise; f16 is two bytes.
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(p.cast())) }
    }
}

/// See [`super::portable::tile`].
///
/// # Safety
/// The CPU must have AVX2, FMA and F16C; `x` must hold `MR` rows of `panel.len() / 32` values, `stride` apart.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) unsafe fn tile<const MR: usize, W: Load>(x: &[f32], stride: usize, panel: &[W]) -> Tile<MR> {
    let n = panel.len() / PANEL;
    assert!((MR - 1) * stride + n <= x.len());
    let mut acc = [[_mm256_setzero_ps(); VECTORS]; MR];
    for k in 0..n {
        let mut w = [_mm256_setzero_ps(); VECTORS];
        for (i, w) in w.iter_mut().enumerate() {
            // SAFETY: k < n and i < VECTORS, so the eight values lie in the panel.
            *w = unsafe { W::load(panel.as_ptr().add(k * PANEL + 8 * i)) };
        }
        for (r, acc) in acc.iter_mut().enumerate() {
            // SAFETY: r < MR and k < n: asserted above.
            let v = _mm256_set1_ps(unsafe { *x.get_unchecked(r * stride + k) });
            for (acc, w) in acc.iter_mut().zip(w) {
                *acc = _mm256_fmadd_ps(v, w, *acc);
            }
        }
    }
    let mut out = [[0.0; PANEL]; MR];
    for (out, acc) in out.iter_mut().zip(acc) {
        for (i, acc) in acc.iter().enumerate() {
            // SAFETY: a row of the tile has room for four vectors.
            unsafe { _mm256_storeu_ps(out.as_mut_ptr().add(8 * i), *acc) };
        }
    }
    out
}
