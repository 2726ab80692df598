//! AdamW (Loshchilov and Hutter 2019) over one flat vector, and the learning rate.

use rayon::prelude::*;

use crate::config::OptimizerConfig;
use crate::params::Layout;

/// Values that one task updates.
const CHUNK: usize = 1 << 16;

/// The moments of every parameter.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Moments {
    pub(crate) first: Vec<f32>,
    pub(crate) second: Vec<f32>,
}

impl Moments {
    pub(crate) fn new(len: usize) -> Self {
        Self { first: vec![0.0; len], second: vec![0.0; len] }
    }
}

/// The optimiser of a run.
pub(crate) struct AdamW {
    config: OptimizerConfig,
    /// Whether a parameter is shrunk.
    decays: Vec<bool>,
}

impl AdamW {
    pub(crate) fn new(config: OptimizerConfig, layout: &Layout) -> Self {
        let mut decays = vec![true; layout.len];
        layout.norms().for_each(|range| decays[range].fill(false));
        Self { config, decays }
    }

    /// Linear warm-up, then half a cosine down to a share of the greatest. `step` counts from 0.
    pub(crate) fn learning_rate(&self, step: u64) -> f64 {
        let c = &self.config;
        if step < c.warmup_steps {
            return c.learning_rate * (step + 1) as f64 / c.warmup_steps as f64;
        }
        let progress = (step - c.warmup_steps) as f64 / (c.steps - c.warmup_steps).max(1) as f64;
        let cosine = (1.0 + (std::f64::consts::PI * progress.min(1.0)).cos()) / 2.0;
        c.learning_rate * (c.final_share + (1.0 - c.final_share) * cosine)
    }

    /// One step; returns the length of the gradient before it is clipped.
    pub(crate) fn step(&self, step: u64, parameters: &mut [f32], moments: &mut Moments, gradients: &[f32]) -> f64 {
        let length = length(gradients);
        let c = &self.config;
        let shrink = (c.clip / length.max(c.clip)) as f32;
        let rate = self.learning_rate(step);
        let [beta1, beta2] = c.betas;
        let n = step as i32 + 1;
        let (unbias1, unbias2) = (1.0 - beta1.powi(n), 1.0 - beta2.powi(n));
        let (step_size, root) = ((rate / unbias1) as f32, (1.0 / unbias2.sqrt()) as f32);
        let (b1, b2, epsilon) = (beta1 as f32, beta2 as f32, c.epsilon as f32);
        let keep = (1.0 - rate * c.weight_decay) as f32;
        parameters
            .par_chunks_mut(CHUNK)
            .zip(moments.first.par_chunks_mut(CHUNK).zip(moments.second.par_chunks_mut(CHUNK)))
            .zip(gradients.par_chunks(CHUNK).zip(self.decays.par_chunks(CHUNK)))
            .for_each(|((parameters, (first, second)), (gradients, decays))| {
                let moments = first.iter_mut().zip(second);
                for ((p, (m, v)), (g, d)) in parameters.iter_mut().zip(moments).zip(gradients.iter().zip(decays)) {
                    let g = g * shrink;
                    *m = b1 * *m + (1.0 - b1) * g;
                    *v = b2 * *v + (1.0 - b2) * g * g;
                    let kept = if *d { *p * keep } else { *p };
                    *p = kept - step_size * *m / (v.sqrt() * root + epsilon);
                }
            });
        length
    }
}

/// Euclidean length, summed in f64 in a fixed order.
fn length(values: &[f32]) -> f64 {
    let parts: Vec<f64> =
        values.par_chunks(CHUNK).map(|c| c.iter().map(|x| f64::from(*x) * f64::from(*x)).sum()).collect();
    parts.iter().sum::<f64>().sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> OptimizerConfig {
        OptimizerConfig {
            steps: 100,
            rows_per_step: 1,
            learning_rate: 0.01,
            warmup_steps: 10,
            final_share: 0.1,
            betas: [0.9, 0.95],
            epsilon: 1e-8,
            weight_decay: 0.1,
            clip: 1.0,
            lanes: 1,
        }
    }

    fn optimizer(len: usize) -> AdamW {
        AdamW { config: config(), decays: (0..len).map(|i| i % 2 == 0).collect() }
    }

    #[test]
    fn the_rate_warms_up_and_follows_a_cosine_to_its_tenth() {
        let o = optimizer(0);
        let close = |a: f64, b: f64| assert!((a - b).abs() < 1e-12, "{a} {b}");
        close(o.learning_rate(0), 0.001);
        close(o.learning_rate(9), 0.01);
        close(o.learning_rate(10), 0.01);
        close(o.learning_rate(55), 0.0055);
        close(o.learning_rate(100), 0.001);
        close(o.learning_rate(1000), 0.001);
    }

    /// Against the formulas of the paper (algorithm 2), in f64.
    #[test]
    fn steps_are_those_of_the_paper() {
        let n = 7;
        let o = optimizer(n);
        let mut got: Vec<f32> = (0..n).map(|i| i as f32 - 3.0).collect();
        let mut moments = Moments::new(n);
        let (mut p, mut m, mut v) = (got.iter().map(|x| f64::from(*x)).collect::<Vec<_>>(), [0.0; 7], [0.0; 7]);
        for step in 0..20u64 {
            let gradient: Vec<f32> = (0..n).map(|i| ((i as f32 + 1.0) * (step as f32 + 0.5)).sin()).collect();
            let norm = gradient.iter().map(|g| f64::from(*g).powi(2)).sum::<f64>().sqrt();
            let reported = o.step(step, &mut got, &mut moments, &gradient);
            assert!((reported - norm).abs() < 1e-9);
            let rate = o.learning_rate(step);
            for i in 0..n {
                let g = f64::from(gradient[i]) * (1.0f64 / norm).min(1.0);
                m[i] = 0.9 * m[i] + 0.1 * g;
                v[i] = 0.95 * v[i] + 0.05 * g * g;
                let t = step as i32 + 1;
                let (mh, vh) = (m[i] / (1.0 - 0.9f64.powi(t)), v[i] / (1.0 - 0.95f64.powi(t)));
                let decay = if i % 2 == 0 { 0.1 } else { 0.0 };
                p[i] -= rate * (mh / (vh.sqrt() + 1e-8) + decay * p[i]);
                assert!((f64::from(got[i]) - p[i]).abs() < 1e-5, "step {step}: {} {}", got[i], p[i]);
            }
        }
    }
}
