//! Weight matrices packed for the kernels, and products with them.

use half::{bf16, f16};
use rayon::prelude::*;

use super::quantized::QuantizedPanels;
use super::{BLOCK, PANEL, QuantizedBlocks, Tile, portable};

/// Rows that one kernel call works on.
const MAX_ROWS: usize = 8;

/// Weights as they are stored in a file: `n_out` rows of `n_in` values.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs, reason = "the variants are the types")]
pub enum Stored {
    F32(Vec<f32>),
    F16(Vec<f16>),
    Bf16(Vec<bf16>),
    Quantized(QuantizedBlocks),
}

impl Stored {
    /// Number of weights.
    pub fn len(&self) -> usize {
        match self {
            Self::F32(v) => v.len(),
            Self::F16(v) => v.len(),
            Self::Bf16(v) => v.len(),
            Self::Quantized(v) => v.codes.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The weights as f32.
    pub fn to_f32(&self) -> Vec<f32> {
        match self {
            Self::F32(v) => v.clone(),
            Self::F16(v) => v.iter().map(|x| x.to_f32()).collect(),
            Self::Bf16(v) => v.iter().map(|x| x.to_f32()).collect(),
            Self::Quantized(v) => (0..v.codes.len()).map(|i| v.weight(i)).collect(),
        }
    }
}

#[derive(Debug)]
enum Panels {
    F32(Vec<f32>),
    F16(Vec<f16>),
    Bf16(Vec<bf16>),
    Quantized(QuantizedPanels),
}

/// A matrix of `n_out` × `n_in` weights in panels: for each group of 32 outputs, `n_in` rows of 32 weights. The kernels read
/// it once from front to back, whatever the number of rows that it is multiplied with.
#[derive(Debug)]
pub struct PackedMatrix {
    n_out: usize,
    n_in: usize,
    panels: Panels,
}

/// Writes to one output matrix from several threads, each to its own columns.
#[derive(Clone, Copy)]
struct SharedOutput(*mut f32);

// SAFETY: every panel writes only its own columns, and the matrix outlives the parallel loop.
unsafe impl Send for SharedOutput {}
// SAFETY: as above.
unsafe impl Sync for SharedOutput {}

impl SharedOutput {
    /// The place of value `i`.
    ///
    /// # Safety
    /// The matrix must have more than `i` values.
    unsafe fn at(self, i: usize) -> *mut f32 {
        // SAFETY: the caller's promise.
        unsafe { self.0.add(i) }
    }
}

impl PackedMatrix {
    /// Packs `n_out` rows of `n_in` weights.
    ///
    /// # Panics
    /// If `weights` has another length, or is quantised and `n_in` is no multiple of 32.
    pub fn pack(n_out: usize, n_in: usize, weights: &Stored) -> Self {
        assert_eq!(weights.len(), n_out * n_in, "a matrix of {n_out} × {n_in}");
        let panels = match weights {
            Stored::F32(v) => Panels::F32(pack(n_out, n_in, v)),
            Stored::F16(v) => Panels::F16(pack(n_out, n_in, v)),
            Stored::Bf16(v) => Panels::Bf16(pack(n_out, n_in, v)),
            Stored::Quantized(v) => {
                assert_eq!(n_in % BLOCK, 0, "a quantised matrix has whole blocks");
                Panels::Quantized(QuantizedPanels::pack(n_out, n_in, v))
            }
        };
        Self { n_out, n_in, panels }
    }

    /// Number of outputs.
    pub fn n_out(&self) -> usize {
        self.n_out
    }

    /// Number of inputs.
    pub fn n_in(&self) -> usize {
        self.n_in
    }

    /// Copies the weights of output `row`.
    pub fn copy_row(&self, row: usize, out: &mut [f32]) {
        let (panel, column) = (row / PANEL, row % PANEL);
        let at = |k: usize| (panel * self.n_in + k) * PANEL + column;
        for (k, out) in out.iter_mut().enumerate().take(self.n_in) {
            *out = match &self.panels {
                Panels::F32(v) => v[at(k)],
                Panels::F16(v) => v[at(k)].to_f32(),
                Panels::Bf16(v) => v[at(k)].to_f32(),
                Panels::Quantized(q) => {
                    let (codes, scales, offsets) = q.panel(panel, self.n_in);
                    let code = QuantizedPanels::unpack(q.bits, codes, k)[column];
                    let block = k / BLOCK * PANEL + column;
                    scales[block].mul_add(f32::from(code), offsets[block])
                }
            };
        }
    }

    /// y = x·Wᵀ: `x` holds rows of `n_in` values, `y` rows of `n_out`.
    pub fn apply(&self, x: &[f32], y: &mut [f32]) {
        Self::apply_all(&[self], x, y);
    }

    /// The same for several matrices with one input, side by side: row r of `y` holds the outputs of all of them.
    ///
    /// # Panics
    /// If the shapes do not fit.
    pub fn apply_all(matrices: &[&Self], x: &[f32], y: &mut [f32]) {
        let n_in = matrices[0].n_in;
        let n_out: usize = matrices.iter().map(|m| m.n_out).sum();
        let n_rows = x.len() / n_in;
        assert!(matrices.iter().all(|m| m.n_in == n_in) && x.len() == n_rows * n_in, "inputs of {n_in} values");
        assert_eq!(y.len(), n_rows * n_out, "outputs of {n_out} values");
        let mut jobs = Vec::new();
        let mut first_column = 0;
        for m in matrices {
            jobs.extend((0..m.n_out.div_ceil(PANEL)).map(|p| (*m, p, first_column + p * PANEL)));
            first_column += m.n_out;
        }
        let out = SharedOutput(y.as_mut_ptr());
        let run = |(matrix, panel, column): &(&Self, usize, usize)| {
            let width = PANEL.min(matrix.n_out - panel * PANEL);
            matrix.apply_panel(*panel, x, n_rows, |row, values: &[f32; PANEL]| {
                // SAFETY: row < n_rows, and columns `column..column + width` belong to this panel alone.
                unsafe {
                    let target = out.at(row * n_out + column);
                    std::ptr::copy_nonoverlapping(values.as_ptr(), target, width);
                }
            });
        };
        // A job is far longer than handing it out, except for the smallest matrices.
        let min_jobs = (32 * 1024 / (n_rows * n_in * PANEL).max(1)).max(1);
        jobs.par_iter().with_min_len(min_jobs).for_each(run);
    }

    fn apply_panel(&self, panel: usize, x: &[f32], n_rows: usize, mut write: impl FnMut(usize, &[f32; PANEL])) {
        let mut row = 0;
        while row < n_rows {
            let n = MAX_ROWS.min(n_rows - row);
            let x = &x[row * self.n_in..(row + n) * self.n_in];
            macro_rules! tile {
                ($($mr:literal)*) => {
                    match n {
                        $($mr => self.tile::<$mr>(panel, x).iter().enumerate().for_each(|(r, v)| write(row + r, v)),)*
                        _ => unreachable!("a tile has 1 to 8 rows"),
                    }
                };
            }
            tile!(1 2 3 4 5 6 7 8);
            row += n;
        }
    }

    fn tile<const MR: usize>(&self, panel: usize, x: &[f32]) -> Tile<MR> {
        let rows = panel * self.n_in * PANEL..(panel + 1) * self.n_in * PANEL;
        match &self.panels {
            Panels::F32(v) => plain_tile::<MR, _>(x, self.n_in, &v[rows], |w| w),
            Panels::F16(v) => plain_tile::<MR, _>(x, self.n_in, &v[rows], f16::to_f32),
            Panels::Bf16(v) => plain_tile::<MR, _>(x, self.n_in, &v[rows], bf16::to_f32),
            Panels::Quantized(q) => q.tile::<MR>(panel, x, self.n_in),
        }
    }
}

fn pack<T: Copy + Default + Send + Sync>(n_out: usize, n_in: usize, weights: &[T]) -> Vec<T> {
    let mut out = vec![T::default(); n_out.div_ceil(PANEL) * n_in * PANEL];
    out.par_chunks_mut(n_in * PANEL).enumerate().for_each(|(panel, out)| {
        for column in 0..PANEL.min(n_out - panel * PANEL) {
            let row = &weights[(panel * PANEL + column) * n_in..][..n_in];
            for (k, w) in row.iter().enumerate() {
                out[k * PANEL + column] = *w;
            }
        }
    });
    out
}

/// What the vector kernels can read.
#[cfg(target_arch = "x86_64")]
trait Element: super::avx512::Load + super::avx2::Load {}
#[cfg(target_arch = "x86_64")]
impl<T: super::avx512::Load + super::avx2::Load> Element for T {}
#[cfg(not(target_arch = "x86_64"))]
trait Element: Copy {}
#[cfg(not(target_arch = "x86_64"))]
impl<T: Copy> Element for T {}

fn plain_tile<const MR: usize, W: Element>(x: &[f32], stride: usize, panel: &[W], load: impl Fn(W) -> f32) -> Tile<MR> {
    #[cfg(target_arch = "x86_64")]
    {
        if std::arch::is_x86_feature_detected!("avx512f") {
            // SAFETY: the CPU has AVX-512F; the kernel checks the lengths.
            return unsafe { super::avx512::tile::<MR, W>(x, stride, panel) };
        }
        let avx2 = std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("f16c");
        if avx2 && std::arch::is_x86_feature_detected!("fma") {
            // SAFETY: the CPU has AVX2, F16C and FMA; the kernel checks the lengths.
            return unsafe { super::avx2::tile::<MR, W>(x, stride, panel) };
        }
    }
    portable::tile::<MR, W>(x, stride, panel, load)
}

impl QuantizedPanels {
    /// Codes, scales and offsets of one panel.
    fn panel(&self, panel: usize, n_in: usize) -> (&[u8], &[f32], &[f32]) {
        let n_codes = n_in * self.row_bytes();
        let n_scales = n_in / BLOCK * PANEL;
        (
            &self.codes[panel * n_codes..][..n_codes],
            &self.scales[panel * n_scales..][..n_scales],
            &self.offsets[panel * n_scales..][..n_scales],
        )
    }

    fn tile<const MR: usize>(&self, panel: usize, x: &[f32], stride: usize) -> Tile<MR> {
        let (codes, scales, offsets) = self.panel(panel, stride);
        #[cfg(target_arch = "x86_64")]
        if std::arch::is_x86_feature_detected!("avx512f") {
            use super::avx512::{Bytes, Nibbles, quantized_tile};
            // SAFETY: the CPU has AVX-512F; the kernel checks the lengths.
            return unsafe {
                match self.bits {
                    4 => quantized_tile::<MR, Nibbles>(x, stride, codes, scales, offsets),
                    _ => quantized_tile::<MR, Bytes>(x, stride, codes, scales, offsets),
                }
            };
        }
        let bits = self.bits;
        portable::quantized_tile::<MR>(x, stride, |k| Self::unpack(bits, codes, k), scales, offsets)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    fn random(n: usize, seed: u64) -> Vec<f32> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        (0..n).map(|_| rng.random_range(-1.0..1.0)).collect()
    }

    fn quantize(bits: u8, n: usize, seed: u64) -> QuantizedBlocks {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        QuantizedBlocks {
            bits,
            codes: (0..n).map(|_| rng.random_range(0..=if bits == 4 { 15 } else { 255 })).collect(),
            scales: random(n / BLOCK, seed + 1),
            offsets: random(n / BLOCK, seed + 2),
        }
    }

    fn kinds(n: usize, seed: u64) -> Vec<Stored> {
        let plain = random(n, seed);
        vec![
            Stored::F16(plain.iter().map(|&x| f16::from_f32(x)).collect()),
            Stored::Bf16(plain.iter().map(|&x| bf16::from_f32(x)).collect()),
            Stored::F32(plain),
            Stored::Quantized(quantize(4, n, seed)),
            Stored::Quantized(quantize(8, n, seed)),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

        #[test]
        fn products_are_the_definition_and_do_not_depend_on_the_batch(
            n_out in 1usize..80, blocks in 1usize..5, n_rows in 1usize..20, seed in any::<u64>(),
        ) {
            let n_in = blocks * BLOCK;
            let x = random(n_rows * n_in, seed);
            for stored in kinds(n_out * n_in, seed) {
                let matrix = PackedMatrix::pack(n_out, n_in, &stored);
                let mut y = vec![0.0; n_rows * n_out];
                matrix.apply(&x, &mut y);
                let weights = stored.to_f32();
                for r in 0..n_rows {
                    let row = &x[r * n_in..][..n_in];
                    let mut alone = vec![0.0; n_out];
                    matrix.apply(row, &mut alone);
                    prop_assert_eq!(&y[r * n_out..][..n_out], &alone[..]);
                    for c in 0..n_out {
                        let terms = row.iter().zip(&weights[c * n_in..]).map(|(x, w)| f64::from(*x) * f64::from(*w));
                        let (sum, size) = terms.fold((0.0, 0.0), |(s, a), t| (s + t, a + t.abs()));
                        prop_assert!((f64::from(alone[c]) - sum).abs() <= 1e-3 * size.max(1.0) * 0.1);
                    }
                }
                let mut copy = vec![0.0; n_in];
                matrix.copy_row(n_out - 1, &mut copy);
                prop_assert_eq!(&copy[..], &weights[(n_out - 1) * n_in..]);
            }
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn vector_kernels_equal_plain_rust_to_the_last_bit() {
        const ROWS: usize = 5;
        let n_in = 3 * BLOCK;
        let x = random(ROWS * n_in, 1);
        for stored in kinds(PANEL * n_in, 2) {
            let matrix = PackedMatrix::pack(PANEL, n_in, &stored);
            let plain: Tile<ROWS> = match &matrix.panels {
                Panels::F32(v) => portable::tile(&x, n_in, v, |w| w),
                Panels::F16(v) => portable::tile(&x, n_in, v, f16::to_f32),
                Panels::Bf16(v) => portable::tile(&x, n_in, v, bf16::to_f32),
                Panels::Quantized(q) => {
                    let unpack = |k| QuantizedPanels::unpack(q.bits, &q.codes, k);
                    portable::quantized_tile(&x, n_in, unpack, &q.scales, &q.offsets)
                }
            };
            assert_eq!(matrix.tile::<ROWS>(0, &x), plain);
            // SAFETY: the test runs on the x86-64-v3 baseline, which has AVX2, FMA and F16C; lengths are checked inside.
            let avx2: Option<Tile<ROWS>> = unsafe {
                match &matrix.panels {
                    Panels::F32(v) => Some(super::super::avx2::tile(&x, n_in, v)),
                    Panels::F16(v) => Some(super::super::avx2::tile(&x, n_in, v)),
                    Panels::Bf16(v) => Some(super::super::avx2::tile(&x, n_in, v)),
                    Panels::Quantized(_) => None, // runs the portable code without AVX-512
                }
            };
            assert!(avx2.is_none_or(|tile| tile == plain));
        }
    }
}
