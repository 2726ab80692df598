//! Rotary position embedding (Su et al. 2021).

/// Which values of a head are rotated together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RopeStyle {
    /// Value i with value i + d/2: Hugging Face.
    Halves,
    /// Value 2i with value 2i + 1: the original, and GGUF, whose converter reorders the weights for it.
    Interleaved,
}

/// How frequencies are changed for windows longer than those trained on.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// All divided by a factor.
    Linear {
        /// The factor.
        factor: f32,
    },
    /// Llama 3: low frequencies divided, high ones kept, between them a ramp.
    Llama3 {
        /// What low frequencies are divided by.
        factor: f32,
        /// Wavelengths over `original_context / low_freq_factor` are low frequencies.
        low_freq_factor: f32,
        /// Wavelengths under `original_context / high_freq_factor` are high frequencies.
        high_freq_factor: f32,
        /// The window trained on.
        original_context: f32,
    },
}

/// Rotary position embedding.
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    /// Base of the frequencies.
    pub theta: f32,
    /// Pairs that are rotated together.
    pub style: RopeStyle,
    /// Change for longer windows.
    pub scaling: RopeScaling,
    /// What each frequency is divided by, where the model file has a table.
    pub factors: Option<Vec<f32>>,
}

impl Rope {
    /// Without scaling.
    pub fn plain(theta: f32, style: RopeStyle) -> Self {
        Self { theta, style, scaling: RopeScaling::None, factors: None }
    }

    /// Whether frequencies can be computed.
    pub(crate) fn check(&self) -> Result<(), String> {
        let good = |x: f32| x > 0.0 && x.is_finite();
        let scaling = match self.scaling {
            RopeScaling::None => true,
            RopeScaling::Linear { factor } => good(factor),
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => {
                [factor, low_freq_factor, high_freq_factor, original_context].into_iter().all(good)
                    && low_freq_factor < high_freq_factor
            }
        };
        if good(self.theta) && scaling { Ok(()) } else { Err(format!("a rotary embedding of {self:?}")) }
    }

    /// Frequency of each pair, in radians per position.
    pub fn frequencies(&self, head_dim: usize) -> Vec<f32> {
        let base = (0..head_dim / 2).map(|i| 1.0 / self.theta.powf(2.0 * i as f32 / head_dim as f32));
        let scaled = base.map(|f| match self.scaling {
            RopeScaling::None => f,
            RopeScaling::Linear { factor } => f / factor,
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => {
                let wavelength = 2.0 * std::f32::consts::PI / f;
                if wavelength < original_context / high_freq_factor {
                    f
                } else if wavelength > original_context / low_freq_factor {
                    f / factor
                } else {
                    let smooth =
                        (original_context / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor);
                    (1.0 - smooth) * f / factor + smooth * f
                }
            }
        });
        match &self.factors {
            None => scaled.collect(),
            Some(factors) => scaled.zip(factors).map(|(f, by)| f / by).collect(),
        }
    }
}

/// cos and sin of every position and pair.
#[derive(Debug)]
pub(crate) struct RopeTable {
    style: RopeStyle,
    half: usize,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl RopeTable {
    pub(crate) fn new(rope: &Rope, head_dim: usize, positions: usize) -> Self {
        let frequencies = rope.frequencies(head_dim);
        let angles = (0..positions).flat_map(|p| frequencies.iter().map(move |f| p as f32 * f));
        let (sin, cos) = angles.map(f32::sin_cos).unzip();
        Self { style: rope.style, half: head_dim / 2, cos, sin }
    }

    /// Rows of cos and of sin, `head_dim / 2` wide, for `n` positions from `from` on.
    pub(crate) fn rows(&self, from: usize, n: usize) -> (&[f32], &[f32]) {
        let range = from * self.half..(from + n) * self.half;
        (&self.cos[range.clone()], &self.sin[range])
    }

    /// Rotates the heads in `heads` (one after the other) for `position`.
    pub(crate) fn rotate(&self, heads: &mut [f32], position: usize) {
        let (cos, sin) = self.rows(position, 1);
        for head in heads.chunks_exact_mut(2 * self.half) {
            match self.style {
                RopeStyle::Halves => {
                    let (a, b) = head.split_at_mut(self.half);
                    for (((a, b), c), s) in a.iter_mut().zip(b).zip(cos).zip(sin) {
                        (*a, *b) = (*a * c - *b * s, *b * c + *a * s);
                    }
                }
                RopeStyle::Interleaved => {
                    for ((pair, c), s) in head.chunks_exact_mut(2).zip(cos).zip(sin) {
                        (pair[0], pair[1]) = (pair[0] * c - pair[1] * s, pair[1] * c + pair[0] * s);
                    }
                }
            }
        }
    }
}
