//! AVX-512 kernels, chosen at run time. Each lane computes what [`super::portable`] computes, to the last bit.

use std::arch::x86_64::*;

use super::{BLOCK, PANEL, Tile};

/// Loads 16 columns of a panel row as f32.
pub(crate) trait Load: Copy {
    /// Reads 16 values from `p`.
    ///
    /// # Safety
    /// `p` must point to 16 readable values, and the CPU must have AVX-512F.
    unsafe fn load(p: *const Self) -> __m512;
}

impl Load for f32 {
    #[inline(always)]
    unsafe fn load(p: *const Self) -> __m512 {
        // SAFETY: the caller's promise.
        unsafe { _mm512_loadu_ps(p) }
    }
}

impl Load for half::bf16 {
    #[inline(always)]
    unsafe fn load(p: *const Self) -> __m512 {
        // SAFETY: the caller's promise; bf16 is two bytes and the upper half of an f32.
        unsafe { _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast())))) }
    }
}

impl Load for half::f16 {
    #[inline(always)]
    unsafe fn load(p: *const Self) -> __m512 {
        // SAFETY: the caller's promise; f16 is two bytes.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(p.cast())) }
    }
}

/// See [`super::portable::tile`].
///
/// # Safety
/// The CPU must have AVX-512F; `x` must hold `MR` rows of `panel.len() / 32` values, `stride` apart.
#[target_feature(enable = "avx512f")]
pub(crate) unsafe fn tile<const MR: usize, W: Load>(x: &[f32], stride: usize, panel: &[W]) -> Tile<MR> {
    let n = panel.len() / PANEL;
    assert!((MR - 1) * stride + n <= x.len());
    let mut acc = [[_mm512_setzero_ps(); 2]; MR];
    for k in 0..n {
        // SAFETY: k < n, so both halves of row k lie in the panel.
        let (lo, hi) = unsafe {
            let p = panel.as_ptr().add(k * PANEL);
            (W::load(p), W::load(p.add(16)))
        };
        for (r, acc) in acc.iter_mut().enumerate() {
            // SAFETY: r < MR and k < n: asserted above.
            let v = _mm512_set1_ps(unsafe { *x.get_unchecked(r * stride + k) });
            acc[0] = _mm512_fmadd_ps(v, lo, acc[0]);
            acc[1] = _mm512_fmadd_ps(v, hi, acc[1]);
        }
    }
    store(acc)
}

#[target_feature(enable = "avx512f")]
fn store<const MR: usize>(acc: [[__m512; 2]; MR]) -> Tile<MR> {
    let mut out = [[0.0; PANEL]; MR];
    for (out, acc) in out.iter_mut().zip(acc) {
        // SAFETY: a row of the tile has room for two vectors.
        unsafe {
            _mm512_storeu_ps(out.as_mut_ptr(), acc[0]);
            _mm512_storeu_ps(out.as_mut_ptr().add(16), acc[1]);
        }
    }
    out
}

/// Codes of one inner position: 32 of them as two vectors of f32.
pub(crate) trait Codes: Copy {
    /// Bytes per inner position.
    const BYTES: usize;

    /// Reads the codes of one inner position.
    ///
    /// # Safety
    /// `p` must point to `BYTES` readable bytes, and the CPU must have AVX-512F.
    unsafe fn load(p: *const u8) -> (__m512, __m512);
}

/// One byte per code.
#[derive(Clone, Copy)]
pub(crate) struct Bytes;

impl Codes for Bytes {
    const BYTES: usize = PANEL;

    #[inline(always)]
    unsafe fn load(p: *const u8) -> (__m512, __m512) {
        // SAFETY: the caller's promise.
        unsafe {
            let lo = _mm512_cvtepu8_epi32(_mm_loadu_si128(p.cast()));
            let hi = _mm512_cvtepu8_epi32(_mm_loadu_si128(p.add(16).cast()));
            (_mm512_cvtepi32_ps(lo), _mm512_cvtepi32_ps(hi))
        }
    }
}

/// Half a byte per code: the low halves are columns 0 to 15, the high ones 16 to 31.
#[derive(Clone, Copy)]
pub(crate) struct Nibbles;

impl Codes for Nibbles {
    const BYTES: usize = PANEL / 2;

    #[inline(always)]
    unsafe fn load(p: *const u8) -> (__m512, __m512) {
        // SAFETY: the caller's promise.
        unsafe {
            let wide = _mm512_cvtepu8_epi32(_mm_loadu_si128(p.cast()));
            let lo = _mm512_and_si512(wide, _mm512_set1_epi32(15));
            let hi = _mm512_srli_epi32::<4>(wide);
            (_mm512_cvtepi32_ps(lo), _mm512_cvtepi32_ps(hi))
        }
    }
}

/// See [`super::portable::quantized_tile`].
///
/// # Safety
/// The CPU must have AVX-512F.
#[target_feature(enable = "avx512f")]
pub(crate) unsafe fn quantized_tile<const MR: usize, C: Codes>(
    x: &[f32],
    stride: usize,
    codes: &[u8],
    scales: &[f32],
    offsets: &[f32],
) -> Tile<MR> {
    let n_blocks = scales.len() / PANEL;
    assert!(offsets.len() == scales.len() && codes.len() == n_blocks * BLOCK * C::BYTES);
    assert!((MR - 1) * stride + n_blocks * BLOCK <= x.len());
    let mut acc = [[_mm512_setzero_ps(); 2]; MR];
    for b in 0..n_blocks {
        let mut sum = [[_mm512_setzero_ps(); 2]; MR];
        let mut sum_x = [0.0f32; MR];
        for k in b * BLOCK..(b + 1) * BLOCK {
            // SAFETY: k is under the number of inner positions, whose codes were asserted to be there.
            let (lo, hi) = unsafe { C::load(codes.as_ptr().add(k * C::BYTES)) };
            for r in 0..MR {
                // SAFETY: asserted above.
                let x = unsafe { *x.get_unchecked(r * stride + k) };
                let v = _mm512_set1_ps(x);
                sum[r][0] = _mm512_fmadd_ps(v, lo, sum[r][0]);
                sum[r][1] = _mm512_fmadd_ps(v, hi, sum[r][1]);
                sum_x[r] += x;
            }
        }
        for half in 0..2 {
            // SAFETY: block b has 32 scales and 32 offsets.
            let (s, o) = unsafe {
                let at = b * PANEL + half * 16;
                (_mm512_loadu_ps(scales.as_ptr().add(at)), _mm512_loadu_ps(offsets.as_ptr().add(at)))
            };
            for r in 0..MR {
                acc[r][half] = _mm512_fmadd_ps(s, sum[r][half], acc[r][half]);
                acc[r][half] = _mm512_fmadd_ps(o, _mm512_set1_ps(sum_x[r]), acc[r][half]);
            }
        }
    }
    store(acc)
}
