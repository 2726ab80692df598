//! The block kernel on AVX-512, for CPUs without AMX: the portable kernel's sums, eight rows at a time.

use super::{BLOCK, TILE_ROWS, Then, Tile};

/// Whether the CPU has the instructions.
pub(super) fn available() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        std::is_x86_feature_detected!("avx512f")
    }
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// See [`super::BlockKernel`].
///
/// # Panics
///
/// If the CPU has not the instructions.
pub(super) fn block(left: [&[Tile]; 2], right: [&[Tile]; 2], out: &mut [f32], stride: usize, then: Then) {
    assert!(available(), "this kernel is chosen where there is AVX-512");
    if then == Then::Overwrite {
        out.chunks_mut(stride).for_each(|r| r[..BLOCK].fill(0.0));
    }
    #[cfg(target_arch = "x86_64")]
    for (i, left) in left.into_iter().enumerate() {
        for (t, left) in left.iter().enumerate() {
            for (j, right) in right.into_iter().enumerate() {
                let at = i * TILE_ROWS * stride + j * TILE_ROWS;
                // SAFETY: the instructions are there.
                unsafe { x86::tile(left, &right[t], &mut out[at..], stride) };
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{
        __m512, _mm512_add_ps, _mm512_and_si512, _mm512_castsi512_ps, _mm512_fmadd_ps, _mm512_loadu_ps,
        _mm512_loadu_si512, _mm512_set1_epi32, _mm512_set1_ps, _mm512_setzero_ps, _mm512_slli_epi32, _mm512_storeu_ps,
    };

    use super::super::{TILE_ROWS, Tile};

    /// Rows whose chains are in registers at once: two of each.
    const ROWS: usize = 8;

    /// Adds a product of two tiles to 16 × 16 outputs, `stride` apart.
    #[target_feature(enable = "avx512f")]
    pub(super) fn tile(left: &Tile, right: &Tile, out: &mut [f32], stride: usize) {
        let high = _mm512_set1_epi32(0xffff_0000_u32 as i32);
        let (mut even_left, mut odd_left) = ([0.0f32; 256], [0.0f32; 256]);
        for (i, pair) in left.0.iter().enumerate() {
            even_left[i] = f32::from_bits(pair << 16);
            odd_left[i] = f32::from_bits(pair & 0xffff_0000);
        }
        for first in (0..TILE_ROWS).step_by(ROWS) {
            let (mut even, mut odd): ([__m512; ROWS], [__m512; ROWS]) =
                ([_mm512_setzero_ps(); ROWS], [_mm512_setzero_ps(); ROWS]);
            for (depth, pairs) in right.0.as_chunks::<TILE_ROWS>().0.iter().enumerate() {
                // SAFETY: 16 values of 32 bits are read from an array of as many.
                let pairs = unsafe { _mm512_loadu_si512(pairs.as_ptr().cast()) };
                let even_right = _mm512_castsi512_ps(_mm512_slli_epi32::<16>(pairs));
                let odd_right = _mm512_castsi512_ps(_mm512_and_si512(pairs, high));
                for r in 0..ROWS {
                    let at = (first + r) * TILE_ROWS + depth;
                    even[r] = _mm512_fmadd_ps(_mm512_set1_ps(even_left[at]), even_right, even[r]);
                    odd[r] = _mm512_fmadd_ps(_mm512_set1_ps(odd_left[at]), odd_right, odd[r]);
                }
            }
            for r in 0..ROWS {
                let row = &mut out[(first + r) * stride..][..TILE_ROWS];
                let sums = _mm512_add_ps(even[r], odd[r]);
                // SAFETY: the row has 16 values.
                unsafe { _mm512_storeu_ps(row.as_mut_ptr(), _mm512_add_ps(_mm512_loadu_ps(row.as_ptr()), sums)) };
            }
        }
    }
}
