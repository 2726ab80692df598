//! CPU kernels of the forward pass.
//!
//! Every result is independent of what else is in the batch, of the number of threads and of the instruction set: an output
//! of a matrix product is one chain of fused multiply-adds over the inner dimension in order, whatever the number of rows; a
//! norm, a softmax and an attention row are computed alone, in a fixed order.

mod attention;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
pub mod math;
mod matrix;
mod portable;
mod quantized;

pub(crate) use attention::{KEY_BLOCK, attend};
pub(crate) use math::{add_into, rms_norm, silu_multiply};
pub use matrix::{PackedMatrix, Stored};
pub use quantized::QuantizedBlocks;

/// Columns of a panel: outputs that are computed side by side.
pub(crate) const PANEL: usize = 32;

/// Inner positions that share a scale in a quantised panel.
pub(crate) const BLOCK: usize = 32;

/// The accumulators of `MR` rows against one panel.
pub(crate) type Tile<const MR: usize> = [[f32; PANEL]; MR];
