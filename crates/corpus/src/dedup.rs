//! Repeated text: exact, near, and across the splits.

use std::collections::{HashMap, HashSet};

use sha2::{Digest, Sha256};

/// Words of a near-duplicate shingle.
const SHINGLE_WORDS: usize = 5;
/// Rows of a band: documents are compared if one band of their sketches is equal.
const BAND_ROWS: usize = 4;
/// Bands of a sketch.
const BANDS: usize = 16;
/// Words of an overlap n-gram: the field's choice for decontamination.
const OVERLAP_WORDS: usize = 13;

/// A 64-bit hash that is the same on every machine and in every version.
pub(crate) fn hash(words: &[&str]) -> u64 {
    let mut state = 0xcbf2_9ce4_8422_2325_u64; // FNV-1a
    for word in words {
        for byte in word.bytes().chain([b' ']) {
            state = (state ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
        }
    }
    mix(state)
}

/// The finaliser of SplitMix64.
fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

fn grams(text: &str, n: usize) -> Vec<u64> {
    let lower = text.to_lowercase();
    let words: Vec<&str> = lower.split_whitespace().collect();
    words.windows(n).map(hash).collect()
}

/// Hash of a text's words, for exact repetition up to case and spacing.
pub(crate) fn exact_key(text: &str) -> [u8; 32] {
    let mut digest = Sha256::new();
    for word in text.to_lowercase().split_whitespace() {
        digest.update(word.as_bytes());
        digest.update(b" ");
    }
    digest.finalize().into()
}

/// Finds texts that nearly repeat an earlier one: MinHash (Broder 1997) over shingles of five words, candidates by bands, verified by
/// the Jaccard similarity of the shingles themselves.
#[derive(Debug)]
pub struct NearDuplicates {
    threshold: f64,
    shingles: Vec<HashSet<u64>>,
    bands: HashMap<(usize, u64), Vec<usize>>,
}

impl NearDuplicates {
    /// Texts whose shingles have at least this Jaccard similarity are near-duplicates.
    pub fn new(threshold: f64) -> Self {
        Self { threshold, shingles: Vec::new(), bands: HashMap::new() }
    }

    fn sketch(shingles: &HashSet<u64>) -> Vec<u64> {
        let smallest = |i: u64| shingles.iter().map(|s| mix(s ^ mix(i + 1))).min().unwrap_or(u64::MAX);
        (0..(BANDS * BAND_ROWS) as u64).map(smallest).collect()
    }

    /// Whether an earlier text is nearly this one; if not, later texts are compared with it too. Texts of fewer than five words are
    /// left to exact comparison.
    pub fn seen(&mut self, text: &str) -> bool {
        let shingles: HashSet<u64> = grams(text, SHINGLE_WORDS).into_iter().collect();
        if shingles.is_empty() {
            return false;
        }
        let sketch = Self::sketch(&shingles);
        let keys: Vec<(usize, u64)> = sketch
            .chunks(BAND_ROWS)
            .enumerate()
            .map(|(band, rows)| (band, rows.iter().fold(0, |h, r| mix(h ^ r))))
            .collect();
        let candidates: HashSet<usize> = keys.iter().filter_map(|k| self.bands.get(k)).flatten().copied().collect();
        if candidates.iter().any(|&c| jaccard(&self.shingles[c], &shingles) >= self.threshold) {
            return true;
        }
        let number = self.shingles.len();
        self.shingles.push(shingles);
        for key in keys {
            self.bands.entry(key).or_default().push(number);
        }
        false
    }
}

fn jaccard(a: &HashSet<u64>, b: &HashSet<u64>) -> f64 {
    let both = a.intersection(b).count() as f64;
    both / (a.len() as f64 + b.len() as f64 - both)
}

/// Which of the held-out texts' 13-grams stand in other text.
#[derive(Debug, Default)]
pub struct Overlap {
    held_out: HashMap<u64, bool>,
}

impl Overlap {
    /// Registers a held-out text.
    pub fn hold_out(&mut self, text: &str) {
        for gram in grams(text, OVERLAP_WORDS) {
            self.held_out.entry(gram).or_insert(false);
        }
    }

    /// Looks at a text that will be trained on or stored.
    pub fn look_at(&mut self, text: &str) {
        for gram in grams(text, OVERLAP_WORDS) {
            if let Some(seen) = self.held_out.get_mut(&gram) {
                *seen = true;
            }
        }
    }

    /// Share of a held-out text's 13-grams that were seen elsewhere; 0 for texts of fewer than 13 words.
    pub fn share(&self, text: &str) -> f64 {
        let grams = grams(text, OVERLAP_WORDS);
        let seen = grams.iter().filter(|g| self.held_out.get(g).copied().unwrap_or(false)).count();
        if grams.is_empty() { 0.0 } else { seen as f64 / grams.len() as f64 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(n: usize, from: usize) -> String {
        (from..from + n).map(|i| format!("word{}", i * 7919 % 1000)).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn near_repetition_is_found_and_other_text_is_not() {
        let mut seen = NearDuplicates::new(0.8);
        let first = text(200, 0);
        assert!(!seen.seen(&first));
        assert!(seen.seen(&first.to_uppercase()));
        assert!(seen.seen(&format!("{first} and a few words more")));
        assert!(!seen.seen(&text(200, 500)));
        assert!(!seen.seen("too short") && !seen.seen("too short"));
    }

    #[test]
    fn exact_repetition_ignores_case_and_spacing() {
        assert_eq!(exact_key("A  b\nc"), exact_key("a b C"));
        assert_ne!(exact_key("ab c"), exact_key("a bc"));
    }

    #[test]
    fn overlap_is_the_share_of_grams_seen() {
        let mut overlap = Overlap::default();
        let held_out = text(113, 0); // 101 grams
        overlap.hold_out(&held_out);
        assert_eq!(overlap.share(&held_out), 0.0);
        overlap.look_at(&text(63, 0)); // 51 of them
        assert!((overlap.share(&held_out) - 51.0 / 101.0).abs() < 1e-9);
    }
}
