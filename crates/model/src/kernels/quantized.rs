//! Weights of 4 and 8 bits: read from GGUF blocks, re-packed into panels.
//!
//! A block is 32 weights of one output along the inner dimension, w = scale·code + offset with a code of 4 or 8 bits. The
//! GGUF types Q4_0, Q4_1, Q5_0, Q5_1 and Q8_0 are of this form, so packing them loses nothing; activations stay f32.

use super::{BLOCK, PANEL};

/// Weights as codes with a scale and an offset per block of 32, row after row.
#[derive(Debug, Clone, PartialEq)]
pub struct QuantizedBlocks {
    /// 4 or 8: whether all codes are under 16.
    pub bits: u8,
    /// One code per weight.
    pub codes: Vec<u8>,
    /// One scale per block.
    pub scales: Vec<f32>,
    /// One offset per block.
    pub offsets: Vec<f32>,
}

impl QuantizedBlocks {
    /// Weight number `i`.
    pub fn weight(&self, i: usize) -> f32 {
        self.scales[i / BLOCK].mul_add(f32::from(self.codes[i]), self.offsets[i / BLOCK])
    }
}

/// The same in panels of 32 outputs.
#[derive(Debug)]
pub(crate) struct QuantizedPanels {
    pub(crate) bits: u8,
    /// Per panel and inner position: 32 codes, one per byte, or as halves of 16 bytes (low half: columns 0 to 15).
    pub(crate) codes: Vec<u8>,
    /// Per panel and block: 32 scales.
    pub(crate) scales: Vec<f32>,
    /// Per panel and block: 32 offsets.
    pub(crate) offsets: Vec<f32>,
}

impl QuantizedPanels {
    /// Bytes that hold the codes of one inner position of a panel.
    pub(crate) fn row_bytes(&self) -> usize {
        if self.bits == 4 { PANEL / 2 } else { PANEL }
    }

    /// Packs `n_out` rows of `n_in` weights; missing columns of the last panel are 0.
    pub(crate) fn pack(n_out: usize, n_in: usize, blocks: &QuantizedBlocks) -> Self {
        let n_panels = n_out.div_ceil(PANEL);
        let n_blocks = n_in / BLOCK;
        let mut out = Self {
            bits: blocks.bits,
            codes: Vec::new(),
            scales: vec![0.0; n_panels * n_blocks * PANEL],
            offsets: vec![0.0; n_panels * n_blocks * PANEL],
        };
        out.codes = vec![0; n_panels * n_in * out.row_bytes()];
        let row_bytes = out.row_bytes();
        for row in 0..n_out {
            let (panel, column) = (row / PANEL, row % PANEL);
            for b in 0..n_blocks {
                let at = (panel * n_blocks + b) * PANEL + column;
                out.scales[at] = blocks.scales[row * n_blocks + b];
                out.offsets[at] = blocks.offsets[row * n_blocks + b];
            }
            for k in 0..n_in {
                let code = blocks.codes[row * n_in + k];
                let codes = &mut out.codes[(panel * n_in + k) * row_bytes..][..row_bytes];
                if blocks.bits == 4 {
                    codes[column % 16] |= code << (4 * (column / 16));
                } else {
                    codes[column] = code;
                }
            }
        }
        out
    }

    /// The codes of inner position `k` of the panel whose codes are `panel`.
    pub(crate) fn unpack(bits: u8, panel: &[u8], k: usize) -> [u8; PANEL] {
        if bits == 8 {
            return std::array::from_fn(|c| panel[k * PANEL + c]);
        }
        let row = &panel[k * PANEL / 2..][..PANEL / 2];
        std::array::from_fn(|c| (row[c % 16] >> (4 * (c / 16))) & 15)
    }
}
