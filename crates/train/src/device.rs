//! Forward and backward pass in candle's operations, on any device: the way to train on a GPU, and the oracle of the CPU pass.

use candle_core::{D, DType, Device, Result, Tensor, Var};
use silo_model::LlamaShape;

use crate::cpu::Loss;
use crate::data::{NO_TARGET, Row};
use crate::params::Layout;

/// Rows that go through the model at once.
const ROWS_AT_ONCE: usize = 8;
/// What stands in for minus infinity in a mask, within the range of bfloat16 and f16.
const HIDDEN: f32 = -3e4;

/// Computes losses and gradients on a device.
pub(crate) struct TensorPass {
    shape: LlamaShape,
    layout: Layout,
    device: Device,
    /// Of products; norms, softmax and loss are in f32.
    dtype: DType,
    cos: Tensor,
    sin: Tensor,
}

/// The rows of one pass on the device.
struct Batch {
    n: usize,
    t: usize,
    tokens: Tensor,
    /// 0 where there is none.
    targets: Tensor,
    /// 1 where there is a target, else 0.
    counted: Tensor,
    cos: Tensor,
    sin: Tensor,
    mask: Tensor,
}

impl TensorPass {
    pub(crate) fn new(shape: LlamaShape, device: Device, dtype: DType, row_tokens: usize) -> Result<Self> {
        let frequencies = Tensor::new(shape.rope.frequencies(shape.head_dim), &device)?.unsqueeze(0)?;
        let positions = Tensor::arange(0u32, row_tokens as u32, &device)?.to_dtype(DType::F32)?.unsqueeze(1)?;
        let angles = positions.matmul(&frequencies)?;
        let (cos, sin) = (angles.cos()?, angles.sin()?);
        Ok(Self { layout: Layout::new(&shape), shape, device, dtype, cos, sin })
    }

    /// Mean loss over the rows' targets, and its gradients in `out`.
    pub(crate) fn gradients(&mut self, parameters: &[f32], rows: &[Row], out: &mut [f32]) -> Result<Loss> {
        let parameters = Var::from_slice(parameters, parameters.len(), &self.device)?;
        let n_targets: usize = rows.iter().map(Row::n_targets).sum();
        let mut total = Loss::default();
        let mut sum: Option<Tensor> = None;
        for rows in rows.chunks(ROWS_AT_ONCE) {
            let batch = self.batch(rows)?;
            let nats = self.nats(&parameters, &batch)?.sum_all()?;
            total = total
                + Loss { nats: f64::from(nats.to_scalar::<f32>()?), n_tokens: rows.iter().map(Row::n_targets).sum() };
            let gradients = (nats / n_targets.max(1) as f64)?.backward()?;
            let gradient = gradients.get(&parameters).ok_or_else(|| candle_core::Error::msg("no gradient"))?.detach();
            sum = Some(match sum {
                None => gradient,
                Some(sum) => (sum + gradient)?,
            });
        }
        if let Some(sum) = sum {
            out.copy_from_slice(&sum.to_vec1::<f32>()?);
        }
        Ok(total)
    }

    /// Loss of each row.
    pub(crate) fn losses(&mut self, parameters: &[f32], rows: &[Row]) -> Result<Vec<Loss>> {
        let parameters = Tensor::from_slice(parameters, parameters.len(), &self.device)?;
        let mut out = Vec::with_capacity(rows.len());
        for rows in rows.chunks(ROWS_AT_ONCE) {
            let nats = self.nats(&parameters, &self.batch(rows)?)?.sum(1)?.to_vec1::<f32>()?;
            out.extend(rows.iter().zip(nats).map(|(r, nats)| Loss { nats: f64::from(nats), n_tokens: r.n_targets() }));
        }
        Ok(out)
    }

    fn batch(&self, rows: &[Row]) -> Result<Batch> {
        let (n, t) = (rows.len(), rows[0].tokens.len());
        let flat = |values: Vec<u32>| Tensor::from_vec(values, (n, t), &self.device);
        let of = |f: fn(&Row) -> &Vec<u32>| rows.iter().flat_map(|r| f(r).iter().copied()).collect::<Vec<u32>>();
        let targets = of(|r| &r.targets);
        let counted: Vec<f32> = targets.iter().map(|&t| f32::from(t != NO_TARGET)).collect();
        let targets = targets.into_iter().map(|t| if t == NO_TARGET { 0 } else { t }).collect();
        let positions = Tensor::new(of(|r| &r.positions), &self.device)?;
        let mut mask = vec![HIDDEN; n * t * t];
        for (query, mask) in mask.chunks_exact_mut(t).enumerate() {
            mask[rows[query / t].starts[query % t] as usize..=query % t].fill(0.0);
        }
        let angles = |table: &Tensor| table.index_select(&positions, 0)?.reshape((n, t, 1, ()));
        Ok(Batch {
            n,
            t,
            tokens: flat(of(|r| &r.tokens))?,
            targets: flat(targets)?,
            counted: Tensor::from_vec(counted, (n, t), &self.device)?,
            cos: angles(&self.cos)?,
            sin: angles(&self.sin)?,
            mask: Tensor::from_vec(mask, (n, 1, t, t), &self.device)?,
        })
    }

    /// −ln p of every target, `[n, t]`.
    fn nats(&self, parameters: &Tensor, batch: &Batch) -> Result<Tensor> {
        let matrix = |range: std::ops::Range<usize>, n_in: usize| {
            parameters.narrow(0, range.start, range.len())?.reshape(((), n_in))?.to_dtype(self.dtype)
        };
        let vector = |range: std::ops::Range<usize>| parameters.narrow(0, range.start, range.len());
        let (dim, ffn_dim) = (self.shape.dim, self.shape.ffn_dim);
        let embedding = matrix(self.layout.embedding.clone(), dim)?;
        let mut stream = embedding
            .index_select(&batch.tokens.flatten_all()?, 0)?
            .reshape((batch.n, batch.t, dim))?
            .to_dtype(DType::F32)?;
        for block in &self.layout.blocks {
            let x = self.norm(&stream, &vector(block.attention_norm.clone())?)?;
            let qkv = linear(&x, &matrix(block.qkv.clone(), dim)?)?;
            let attended = self.attend(&qkv, batch)?;
            let q_dim = self.shape.n_heads * self.shape.head_dim;
            let out = linear(&attended, &matrix(block.output.clone(), q_dim)?)?;
            stream = (stream + out.to_dtype(DType::F32)?)?;
            let x = self.norm(&stream, &vector(block.ffn_norm.clone())?)?;
            let gate_up = linear(&x, &matrix(block.gate_up.clone(), dim)?)?;
            let act =
                (gate_up.narrow(D::Minus1, 0, ffn_dim)?.silu()? * gate_up.narrow(D::Minus1, ffn_dim, ffn_dim)?)?;
            stream = (stream + linear(&act, &matrix(block.down.clone(), ffn_dim)?)?.to_dtype(DType::F32)?)?;
        }
        let x = self.norm(&stream, &vector(self.layout.final_norm.clone())?)?;
        let logits = linear(&x, &embedding)?.to_dtype(DType::F32)?;
        let max = logits.max_keepdim(D::Minus1)?.detach();
        let shifted = logits.broadcast_sub(&max)?;
        let log_sum = shifted.exp()?.sum(D::Minus1)?.log()?;
        let of_target = shifted.gather(&batch.targets.unsqueeze(D::Minus1)?, D::Minus1)?.squeeze(D::Minus1)?;
        (log_sum - of_target)? * &batch.counted
    }

    fn norm(&self, x: &Tensor, weight: &Tensor) -> Result<Tensor> {
        let scale = ((x.sqr()?.mean_keepdim(D::Minus1)? + f64::from(self.shape.norm_eps))?).sqrt()?.recip()?;
        x.broadcast_mul(&scale)?.broadcast_mul(weight)?.to_dtype(self.dtype)
    }

    fn attend(&self, qkv: &Tensor, batch: &Batch) -> Result<Tensor> {
        let (d, n_heads, n_kv) = (self.shape.head_dim, self.shape.n_heads, self.shape.n_kv_heads);
        let heads = |from: usize, n: usize| qkv.narrow(D::Minus1, from * d, n * d)?.reshape((batch.n, batch.t, n, d));
        let rotate = |x: Tensor| -> Result<Tensor> {
            let x = x.to_dtype(DType::F32)?;
            let (a, b) = (x.narrow(D::Minus1, 0, d / 2)?, x.narrow(D::Minus1, d / 2, d / 2)?);
            let first = (a.broadcast_mul(&batch.cos)? - b.broadcast_mul(&batch.sin)?)?;
            let second = (b.broadcast_mul(&batch.cos)? + a.broadcast_mul(&batch.sin)?)?;
            Tensor::cat(&[first, second], D::Minus1)?.to_dtype(self.dtype)
        };
        let spread = |x: Tensor| -> Result<Tensor> {
            let x = x.transpose(1, 2)?.unsqueeze(2)?;
            let shape = (batch.n, n_kv, n_heads / n_kv, batch.t, d);
            x.broadcast_as(shape)?.contiguous()?.reshape((batch.n, n_heads, batch.t, d))
        };
        let q = rotate(heads(0, n_heads)?)?.transpose(1, 2)?.contiguous()?;
        let k = spread(rotate(heads(n_heads, n_kv)?)?)?;
        let v = spread(heads(n_heads + n_kv, n_kv)?)?;
        let scores = (q.matmul(&k.t()?.contiguous()?)? / (d as f64).sqrt())?.to_dtype(DType::F32)?;
        let scores = scores.broadcast_add(&batch.mask)?;
        let max = scores.max_keepdim(D::Minus1)?.detach();
        let e = scores.broadcast_sub(&max)?.exp()?;
        let p = e.broadcast_div(&e.sum_keepdim(D::Minus1)?)?.to_dtype(self.dtype)?;
        p.matmul(&v)?.transpose(1, 2)?.reshape((batch.n, batch.t, n_heads * d))
    }
}

/// x · Wᵀ over the last dimension.
fn linear(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    let (n, t, n_in) = x.dims3()?;
    x.reshape((n * t, n_in))?.matmul(&weight.t()?)?.reshape((n, t, ()))
}

#[cfg(test)]
mod tests {
    use silo_model::{Rope, RopeStyle};

    use super::*;
    use crate::cpu::CpuPass;
    use crate::data::Documents;
    use crate::gemm::Kernel;

    pub(crate) fn shape() -> LlamaShape {
        LlamaShape {
            dim: 64,
            ffn_dim: 96,
            n_layers: 3,
            n_heads: 4,
            n_kv_heads: 2,
            head_dim: 16,
            vocab_size: 120,
            context_tokens: 160,
            norm_eps: 1e-5,
            rope: Rope::plain(10_000.0, RopeStyle::Halves),
            tied_head: true,
            beginning_of_text: Some(0),
            end_of_text: vec![0],
        }
    }

    pub(crate) fn rows() -> Vec<Row> {
        let mut documents = Documents::default();
        for (d, n) in [70usize, 3, 130, 1, 220, 31].into_iter().enumerate() {
            documents.push(&(0..n).map(|i| ((i * i * 7 + i * 3 + d * 11) % 119) as u32 + 1).collect::<Vec<u32>>());
        }
        documents.in_order(0, 160)
    }

    /// Parameters far from their first values, so that no part of the gradient is close to nothing.
    pub(crate) fn parameters(shape: &LlamaShape) -> Vec<f32> {
        let layout = Layout::new(shape);
        let mut out = layout.initial(5);
        let noise = layout.initial(6);
        out.iter_mut().zip(noise).for_each(|(o, n)| *o += if n == 1.0 { 0.1 } else { 4.0 * n });
        out
    }

    #[test]
    fn the_hand_written_pass_is_the_one_of_autograd() {
        let (shape, rows) = (shape(), rows());
        let parameters = parameters(&shape);
        let layout = Layout::new(&shape);
        let mut expected = vec![0.0; parameters.len()];
        let mut oracle = TensorPass::new(shape.clone(), Device::Cpu, DType::F32, 160).unwrap();
        let oracle_loss = oracle.gradients(&parameters, &rows, &mut expected).unwrap();
        for n_lanes in [1, 3] {
            let mut got = vec![f32::NAN; parameters.len()];
            let mut pass = CpuPass::new(shape.clone(), Kernel::best(), 160, n_lanes);
            let loss = pass.gradients(&parameters, &rows, &mut got);
            assert_eq!(loss.n_tokens, oracle_loss.n_tokens);
            assert!((loss.mean() - oracle_loss.mean()).abs() < 2e-3, "{} {}", loss.mean(), oracle_loss.mean());
            let blocks = layout.blocks.iter().flat_map(|b| {
                [&b.attention_norm, &b.qkv, &b.output, &b.ffn_norm, &b.gate_up, &b.down].map(Clone::clone)
            });
            for range in blocks.chain([layout.embedding.clone(), layout.final_norm.clone()]) {
                let (e, g) = (&expected[range.clone()], &got[range.clone()]);
                let norm: f32 = e.iter().map(|x| x * x).sum::<f32>().sqrt();
                let distance: f32 = e.iter().zip(g).map(|(x, y)| (x - y) * (x - y)).sum::<f32>().sqrt();
                assert!(distance < 0.02 * norm, "{range:?}: |difference| {distance} of {norm}");
            }
            let of_rows = pass.losses(&parameters, &rows).into_iter().fold(Loss::default(), |a, b| a + b);
            assert!((of_rows.nats - loss.nats).abs() < 1e-6 * loss.nats);
        }
    }

    /// Not one bit of a step depends on the number of threads or on the instructions that multiply.
    #[test]
    fn a_step_has_the_same_bits_on_any_threads_and_kernel() {
        let (shape, rows) = (shape(), rows());
        let parameters = parameters(&shape);
        let gradients = |kernel, n_threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(n_threads).build().unwrap();
            pool.install(|| {
                let mut out = vec![0.0; parameters.len()];
                let loss = CpuPass::new(shape.clone(), kernel, 160, 3).gradients(&parameters, &rows, &mut out);
                (loss.nats.to_bits(), out.into_iter().map(f32::to_bits).collect::<Vec<_>>())
            })
        };
        let expected = gradients(Kernel::Portable, 1);
        assert!(gradients(Kernel::Portable, 3) == expected);
        // The same again where there is no AMX.
        assert!(gradients(Kernel::best(), 1) == expected && gradients(Kernel::best(), 3) == expected);
    }
}
