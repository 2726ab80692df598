//! How sure a difference on held-out text is, by the documents that it was measured on.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

use crate::Loss;

/// Draws of the bootstrap.
const DRAWS: usize = 10_000;
/// The same for all: with it, a difference is the same each time.
const SEED: u64 = 0;

/// How much more bits per byte one way to score takes than another.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Difference {
    /// Bits per byte, the mean of the domains; below 0, the first way is better.
    pub bits_per_byte: f64,
    /// Where it lies in 95 of 100 draws of as many documents; `None` where a domain has a single one.
    pub interval: Option<[f64; 2]>,
    /// Documents.
    pub n_texts: usize,
}

impl Difference {
    /// From the losses of both ways on each document of each domain. Documents of a domain are drawn from its own, with replacement (the
    /// percentile bootstrap of Efron 1979): tokens of one document are not independent of each other.
    pub fn of(domains: &[Vec<(Loss, Loss)>]) -> Self {
        let n_texts = domains.iter().map(Vec::len).sum();
        let bits_per_byte = mean(domains.iter().map(|pairs| between(pairs.iter())));
        if domains.is_empty() || domains.iter().any(|pairs| pairs.len() < 2) {
            return Self { bits_per_byte, interval: None, n_texts };
        }
        let mut random = ChaCha8Rng::seed_from_u64(SEED);
        let mut draw = |pairs: &Vec<(Loss, Loss)>| {
            let drawn: Vec<usize> = pairs.iter().map(|_| random.random_range(0..pairs.len())).collect();
            between(drawn.into_iter().map(|i| &pairs[i]))
        };
        let mut draws: Vec<f64> = (0..DRAWS).map(|_| mean(domains.iter().map(&mut draw))).collect();
        draws.sort_by(f64::total_cmp);
        let at = |part: f64| draws[((DRAWS - 1) as f64 * part).round() as usize];
        Self { bits_per_byte, interval: Some([at(0.025), at(0.975)]), n_texts }
    }

    /// Whether 0 lies below the interval (`Greater`), within it, or above it (`Less`); `None` without one.
    pub fn sign(&self) -> Option<std::cmp::Ordering> {
        use std::cmp::Ordering::{Equal, Greater, Less};
        let [low, high] = self.interval?;
        Some(if high < 0.0 {
            Less
        } else if low > 0.0 {
            Greater
        } else {
            Equal
        })
    }
}

fn between<'a>(pairs: impl Iterator<Item = &'a (Loss, Loss)>) -> f64 {
    let (a, b) = pairs.fold((Loss::default(), Loss::default()), |(a, b), pair| (a.and(pair.0), b.and(pair.1)));
    a.bits_per_byte() - b.bits_per_byte()
}

fn mean(of: impl ExactSizeIterator<Item = f64>) -> f64 {
    let n = of.len().max(1) as f64;
    of.sum::<f64>() / n
}

#[cfg(test)]
mod tests {
    use std::cmp::Ordering;

    use super::*;

    fn pair(a: f64, b: f64) -> (Loss, Loss) {
        let loss = |bits: f64| Loss { nats: 100.0 * bits * std::f64::consts::LN_2, n_tokens: 30, n_bytes: 100 };
        (loss(a), loss(b))
    }

    /// Normal differences: an interval is what the standard error makes it, and narrower with more documents.
    #[test]
    fn intervals_are_as_wide_as_documents_differ() {
        let spread = |n: usize| {
            // A sawtooth of mean −0.1 and standard deviation 0.2/√12·√(1 − 1/n²).
            let pairs: Vec<_> = (0..n).map(|i| pair(1.9 + 0.2 * ((i as f64 + 0.5) / n as f64 - 0.5), 2.0)).collect();
            let difference = Difference::of(&[pairs]);
            assert!((difference.bits_per_byte + 0.1).abs() < 1e-12 && difference.n_texts == n);
            assert_eq!(difference.sign(), Some(Ordering::Less));
            let [low, high] = difference.interval.unwrap();
            assert!(low < -0.1 && -0.1 < high);
            high - low
        };
        for n in [25, 400] {
            let expected = 2.0 * 1.96 * 0.2 / (12.0 * n as f64).sqrt();
            assert!((spread(n) / expected - 1.0).abs() < 0.05, "{} {expected}", spread(n));
        }
    }

    #[test]
    fn one_document_says_nothing_of_others() {
        let one = Difference::of(&[vec![pair(1.0, 2.0)], vec![pair(1.0, 2.0), pair(1.5, 2.0)]]);
        assert!((one.bits_per_byte + 0.875).abs() < 1e-12);
        assert_eq!((one.interval, one.sign(), one.n_texts), (None, None, 3));
        let mixed = Difference::of(&[vec![pair(1.0, 2.0), pair(2.0, 1.0), pair(1.5, 1.5)]]);
        assert_eq!(mixed.sign(), Some(Ordering::Equal));
        let worse = Difference::of(&[vec![pair(2.0, 1.0), pair(2.0, 1.5)]]);
        assert_eq!(worse.sign(), Some(Ordering::Greater));
        assert_eq!(worse, Difference::of(&[vec![pair(2.0, 1.0), pair(2.0, 1.5)]]), "the same each time");
    }
}
