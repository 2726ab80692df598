//! What must not come in again, known by keyed hashes of its runs of words: neither list nor key tells the text.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use silo_core::{ContentHash, units};
use silo_store::{SHINGLE_WORDS, Suppression};

/// Of a text, one in so many of its runs of words is kept,
const KEPT_OF: usize = 16;
/// but at least so many.
const LEAST_KEPT: usize = 64;
/// So many runs must be those of a longer text for a text to be a part of it.
const LEAST_COMMON: usize = 4;

/// A text as its hashes under a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sketch {
    /// Of the whole text, normalised.
    pub text: ContentHash,
    /// Of all its runs of words, rising, each once.
    pub shingles: Vec<u64>,
}

fn keyed(key: &[u8], parts: &[&str]) -> [u8; 32] {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("every length is a key's");
    for part in parts {
        mac.update(part.as_bytes());
        mac.update(&[0x1f]);
    }
    mac.finalize().into_bytes().into()
}

impl Sketch {
    /// The hashes of a text.
    pub fn of(key: &[u8], text: &str) -> Self {
        let words: Vec<String> = units::words(text).map(|word| word.text).collect();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let first = |hash: [u8; 32]| u64::from_le_bytes(hash[..8].try_into().expect("a hash has 32 bytes"));
        let shingles: BTreeSet<u64> = words.windows(SHINGLE_WORDS).map(|run| first(keyed(key, run))).collect();
        let whole: Vec<&str> = std::iter::once("").chain(words.iter().copied()).collect();
        Self { text: ContentHash(keyed(key, &whole)), shingles: shingles.into_iter().collect() }
    }

    /// What is kept of it for a request.
    pub fn suppression(&self, optout: u64, is_part: bool) -> Suppression {
        let n = self.shingles.len();
        let kept = n.min(LEAST_KEPT.max(n / KEPT_OF));
        let sketch = self.shingles[..kept].to_vec();
        Suppression { optout, text: self.text, is_part, n_shingles: n as u64, sketch }
    }
}

/// All that must not come in again.
#[derive(Debug, Default)]
pub struct Suppressed {
    list: Vec<Suppression>,
    texts: HashMap<ContentHash, usize>,
    /// Hash of a run of words, and which of the list has it, sorted.
    shingles: Vec<(u64, u32)>,
}

/// Why a text must not come in.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Hit {
    /// By which request.
    pub optout: u64,
    /// The part of the runs of words that they have in common, from 0 to 1: of the shorter text.
    pub overlap: f64,
}

impl Suppressed {
    /// A list.
    pub fn new(list: Vec<Suppression>) -> Self {
        let texts = list.iter().enumerate().map(|(i, s)| (s.text, i)).collect();
        let of = |(i, s): (usize, &Suppression)| s.sketch.iter().map(|h| (*h, i as u32)).collect::<Vec<_>>();
        let mut shingles: Vec<(u64, u32)> = list.iter().enumerate().flat_map(of).collect();
        shingles.sort_unstable();
        Self { list, texts, shingles }
    }

    /// Whether nothing is kept out.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// What keeps texts out that come together: what keeps out each, and whatever holds the parts of something that is kept out among them.
    pub fn check_all(&self, sketches: &[Sketch], overlap: f64) -> Vec<Option<Hit>> {
        let mut found: Vec<Option<Hit>> = sketches.iter().map(|sketch| self.check(sketch, overlap)).collect();
        // Of each that is kept out: which of its kept runs came, and with which texts.
        let mut came: BTreeMap<u32, (BTreeSet<u64>, BTreeSet<usize>)> = BTreeMap::new();
        for (place, sketch) in sketches.iter().enumerate() {
            for (shingle, i) in self.common(sketch) {
                let (runs, texts) = came.entry(i).or_default();
                runs.insert(shingle);
                texts.insert(place);
            }
        }
        for (i, (runs, texts)) in came {
            let kept = &self.list[i as usize];
            let hit = Hit { optout: kept.optout, overlap: runs.len() as f64 / kept.sketch.len().max(1) as f64 };
            if hit.overlap >= overlap && runs.len() >= LEAST_COMMON {
                for place in texts {
                    found[place].get_or_insert(hit);
                }
            }
        }
        found
    }

    /// The runs of a text that are kept, and of which each is.
    fn common<'a>(&'a self, sketch: &'a Sketch) -> impl Iterator<Item = (u64, u32)> + 'a {
        sketch.shingles.iter().flat_map(|shingle| {
            let from = self.shingles.partition_point(|(h, _)| h < shingle);
            self.shingles[from..].iter().take_while(move |(h, _)| h == shingle).copied()
        })
    }

    /// What keeps a text out: the same text, letter case, spaces and punctuation aside; one that has at least the part `overlap` of the runs of
    /// words of one that is kept out; or one that is to that part made of it. Of several the one with most in common.
    pub fn check(&self, sketch: &Sketch, overlap: f64) -> Option<Hit> {
        if let Some(i) = self.texts.get(&sketch.text) {
            return Some(Hit { optout: self.list[*i].optout, overlap: 1.0 });
        }
        let mut common: BTreeMap<u32, usize> = BTreeMap::new();
        self.common(sketch).for_each(|(_, i)| *common.entry(i).or_default() += 1);
        let hits = common.into_iter().map(|(i, n)| {
            let s = &self.list[i as usize];
            Hit { optout: s.optout, overlap: in_common(s, sketch, n) }
        });
        hits.filter(|hit| hit.overlap >= overlap).max_by(|a, b| a.overlap.total_cmp(&b.overlap))
    }
}

/// The part that two texts have in common, of the one of which it is more, where `n` of the kept runs of one are the other's.
fn in_common(kept: &Suppression, text: &Sketch, n: usize) -> f64 {
    let of_kept = n as f64 / kept.sketch.len().max(1) as f64;
    // Of the text, only the runs count that would have been kept.
    let all = kept.sketch.len() as u64 == kept.n_shingles;
    let last = if all { u64::MAX } else { kept.sketch.last().copied().unwrap_or_default() };
    let comparable = text.shingles.partition_point(|h| *h <= last);
    let of_text = if n >= LEAST_COMMON.min(text.shingles.len()) { n as f64 / comparable.max(1) as f64 } else { 0.0 };
    // A text of which a kept one is a part may say much else; a part of a passage that is kept out is no offence by itself.
    if kept.is_part { of_kept } else { of_kept.max(of_text) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &[u8] = b"a key";

    fn text(from: usize, n: usize) -> String {
        (from..from + n).map(|i| format!("word{i} ")).collect()
    }

    fn check(kept: &str, is_part: bool, new: &str) -> Option<f64> {
        let list = Suppressed::new(vec![Sketch::of(KEY, kept).suppression(7, is_part)]);
        list.check(&Sketch::of(KEY, new), 0.5).map(|hit| {
            assert_eq!(hit.optout, 7);
            hit.overlap
        })
    }

    #[test]
    fn the_same_text_stays_out_however_it_is_written() {
        assert_eq!(check("One, two: three!", false, "one TWO\n\nthree"), Some(1.0));
        assert_eq!(check("One, two: three!", false, "one two four"), None);
        assert_eq!(check(&text(0, 5000), false, &text(0, 5000).to_uppercase()), Some(1.0));
    }

    #[test]
    fn most_of_a_text_and_what_is_made_of_it_stay_out() {
        let kept = text(0, 3000);
        assert!(check(&kept, false, &text(500, 3000)).is_some());
        assert!(check(&kept, false, &text(1000, 300)).is_some(), "a chapter");
        assert!(check(&kept, false, &(text(9000, 9000) + &kept)).is_some(), "within a longer text");
        assert_eq!(check(&kept, false, &text(2900, 3000)), None, "a short quotation");
        assert_eq!(check(&kept, false, &text(5000, 3000)), None);
    }

    #[test]
    fn of_a_passage_only_texts_that_hold_it_stay_out() {
        let passage = text(0, 40);
        assert!(check(&passage, true, &(text(500, 400) + &passage + &text(1000, 400))).is_some());
        assert_eq!(check(&passage, true, &text(0, 12)), None, "a line of it");
        assert_eq!(check(&passage, true, &passage), Some(1.0));
    }

    #[test]
    fn a_text_that_comes_in_pieces_stays_out() {
        let list = Suppressed::new(vec![Sketch::of(KEY, &text(0, 6000)).suppression(7, false)]);
        let pieces: Vec<Sketch> = (0..120).map(|i| Sketch::of(KEY, &text(i * 50, 50))).collect();
        let others = [Sketch::of(KEY, &text(9000, 50))];
        let found = list.check_all(&[&pieces[..], &others].concat(), 0.5);
        // Of a piece none of the runs may be kept.
        assert!(found.iter().filter(|hit| hit.is_some()).count() > 90 && found[120].is_none());
    }

    #[test]
    fn another_key_makes_other_hashes() {
        let (a, b) = (Sketch::of(KEY, &text(0, 100)), Sketch::of(b"another", &text(0, 100)));
        assert!(a.text != b.text && a.shingles.iter().all(|h| !b.shingles.contains(h)));
    }
}
