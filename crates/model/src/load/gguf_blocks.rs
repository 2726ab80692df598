//! The GGUF block types of 32 weights with one scale (and one minimum), as codes, scales and offsets.
//!
//! candle has vector code for few of them, and none that shares the decoding of a block between several rows; re-packed once at
//! load, they all run through one kernel. Layouts: ggml's `block_q4_0` … `block_q8_0`.

use candle_core::quantized::GgmlDType;
use half::f16;

use crate::kernels::QuantizedBlocks;

const WEIGHTS: usize = 32;

/// Adds a block's codes; gives its scale and offset.
type Unpack = fn(&[u8], &mut Vec<u8>) -> (f32, f32);

/// Unpacks the blocks, or `None` for types of another form.
pub(super) fn unpack(dtype: GgmlDType, bytes: &[u8]) -> Option<QuantizedBlocks> {
    let (bits, block): (u8, Unpack) = match dtype {
        GgmlDType::Q4_0 => (4, q4_0),
        GgmlDType::Q4_1 => (4, q4_1),
        GgmlDType::Q5_0 => (8, q5_0),
        GgmlDType::Q5_1 => (8, q5_1),
        GgmlDType::Q8_0 => (8, q8_0),
        _ => return None,
    };
    let n_blocks = bytes.len() / dtype.type_size();
    let mut out = QuantizedBlocks {
        bits,
        codes: Vec::with_capacity(n_blocks * WEIGHTS),
        scales: Vec::with_capacity(n_blocks),
        offsets: Vec::with_capacity(n_blocks),
    };
    for bytes in bytes.chunks_exact(dtype.type_size()) {
        let (scale, offset) = block(bytes, &mut out.codes);
        out.scales.push(scale);
        out.offsets.push(offset);
    }
    Some(out)
}

fn half_at(bytes: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}

/// The first 16 weights are the low halves of the bytes, the others the high ones.
fn nibbles(bytes: &[u8], codes: &mut Vec<u8>) {
    codes.extend(bytes.iter().map(|b| b & 15));
    codes.extend(bytes.iter().map(|b| b >> 4));
}

fn q4_0(bytes: &[u8], codes: &mut Vec<u8>) -> (f32, f32) {
    nibbles(&bytes[2..18], codes);
    let scale = half_at(bytes, 0);
    (scale, -8.0 * scale)
}

fn q4_1(bytes: &[u8], codes: &mut Vec<u8>) -> (f32, f32) {
    nibbles(&bytes[4..20], codes);
    (half_at(bytes, 0), half_at(bytes, 2))
}

/// Four bits as above, and the fifth of weight i at bit i of `high`.
fn five_bits(low: &[u8], high: &[u8], codes: &mut Vec<u8>) {
    let first = codes.len();
    nibbles(low, codes);
    let high = u32::from_le_bytes([high[0], high[1], high[2], high[3]]);
    for (i, code) in codes[first..].iter_mut().enumerate() {
        *code |= (((high >> i) & 1) as u8) << 4;
    }
}

fn q5_0(bytes: &[u8], codes: &mut Vec<u8>) -> (f32, f32) {
    five_bits(&bytes[6..22], &bytes[2..6], codes);
    let scale = half_at(bytes, 0);
    (scale, -16.0 * scale)
}

fn q5_1(bytes: &[u8], codes: &mut Vec<u8>) -> (f32, f32) {
    five_bits(&bytes[8..24], &bytes[4..8], codes);
    (half_at(bytes, 0), half_at(bytes, 2))
}

fn q8_0(bytes: &[u8], codes: &mut Vec<u8>) -> (f32, f32) {
    codes.extend(bytes[2..34].iter().map(|b| b.wrapping_add(128)));
    let scale = half_at(bytes, 0);
    (scale, -128.0 * scale)
}

#[cfg(test)]
mod tests {
    use candle_core::quantized::QTensor;
    use candle_core::{Device, Tensor};

    use super::*;

    #[test]
    fn blocks_hold_what_candle_dequantises() {
        let values: Vec<f32> = (0..256).map(|i| (i as f32 * 0.37).sin() * 3.0 - 0.5).collect();
        let tensor = Tensor::from_vec(values, (4, 64), &Device::Cpu).unwrap();
        for dtype in [GgmlDType::Q4_0, GgmlDType::Q4_1, GgmlDType::Q5_0, GgmlDType::Q5_1, GgmlDType::Q8_0] {
            let quantized = QTensor::quantize(&tensor, dtype).unwrap();
            let expected: Vec<f32> =
                quantized.dequantize(&Device::Cpu).unwrap().flatten_all().unwrap().to_vec1().unwrap();
            let ours = unpack(dtype, &quantized.data().unwrap()).unwrap();
            for (i, e) in expected.iter().enumerate() {
                assert!((ours.weight(i) - e).abs() <= 1e-6, "{dtype:?} {i}: {} against {e}", ours.weight(i));
            }
        }
        assert!(unpack(GgmlDType::Q6K, &[]).is_none());
    }
}
