//! Search through inverted lists.

use std::borrow::Cow;

use fixedbitset::FixedBitSet;
use rayon::prelude::*;

use super::{MergedLists, Quantizer};
use crate::exact::squared_l2;
use crate::{Candidate, Keys, Query, RowOrder, TopK};

/// Lists that one job looks into.
const JOB_LISTS: usize = 8;
/// Keys that one job compares.
const JOB_KEYS: usize = 512;
/// Keys that are asked for from memory ahead of the one that is compared.
const KEYS_AHEAD: usize = 4;

/// Entries sorted by list.
#[derive(Debug, Clone, Copy)]
pub struct Lists<'a> {
    /// Where each list begins, and at last where all end.
    pub offsets: &'a [u32],
    /// The row of each entry.
    pub rows: &'a [u32],
    /// The code of each entry.
    pub codes: &'a [u8],
}

/// A shard's keys in their own order, and its lists.
#[derive(Debug, Clone)]
pub struct ListPart<'a> {
    /// Its slot, reported with each of its rows.
    pub id: u32,
    /// Its keys, row after row.
    pub keys: Keys<'a>,
    /// Its lists.
    pub lists: Lists<'a>,
    /// Rows that nobody sees.
    pub hidden: Option<Cow<'a, FixedBitSet>>,
}

/// How hard to look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Probe {
    /// Lists that are looked into, and more where these show fewer entries than are ranked again.
    pub n_probe: usize,
    /// So many of the best by code, and at least k, are ranked by their exact distance. Up to here, the first k of a search are what a
    /// search for k finds.
    pub rerank: usize,
}

/// What is searched: lists of many parts as one, and the parts by their slots. A slot without a part is not seen.
#[derive(Debug, Clone, Copy)]
pub struct Collection<'a> {
    /// The lists of all slots.
    pub merged: &'a MergedLists,
    /// The parts that are seen; the id of each is its slot.
    pub parts: &'a [Option<ListPart<'a>>],
}

impl Collection<'_> {
    /// The row at a place in a part's lists.
    fn row(&self, slot: u32, place: u32) -> u32 {
        self.parts[slot as usize].as_ref().map_or(place, |part| part.lists.rows[place as usize])
    }
}

/// What a query found.
#[derive(Debug, Clone, PartialEq)]
pub struct Found {
    /// The k nearest rows, nearest first.
    pub nearest: Vec<Candidate>,
    /// All whose exact distance was looked at. While these are visible, and nothing else becomes so, the nearest stay what they are.
    pub ranked: Vec<Candidate>,
}

/// The k nearest rows that the probe finds for each query, nearest first; rows of equal distance in `order`. Distances are exact.
pub fn ivf_search(
    quantizer: &Quantizer,
    collection: Collection<'_>,
    queries: &[Query<'_>],
    probe: Probe,
    order: &RowOrder<'_>,
) -> Vec<Found> {
    queries.par_iter().map(|query| one(quantizer, collection, query, probe, order)).collect()
}

/// How many entries lie in the lists that a search for a key looks into first: what it costs, whoever sees them.
pub fn n_compared(quantizer: &Quantizer, merged: &MergedLists, key: &[f32], n_probe: usize) -> usize {
    let (_, lists) = quantizer.query(key);
    lists.iter().take(n_probe).map(|list| merged.n_entries(*list)).sum()
}

fn one(
    quantizer: &Quantizer,
    collection: Collection<'_>,
    query: &Query<'_>,
    probe: Probe,
    order: &RowOrder<'_>,
) -> Found {
    if query.k == 0 {
        return Found { nearest: Vec::new(), ranked: Vec::new() };
    }
    let (scaled, lists) = quantizer.query(query.key);
    let wanted = query.k.max(probe.rerank);
    let (first, rest) = lists.split_at(probe.n_probe.clamp(1, lists.len()));
    // Until it is known which are ranked, candidates are places in their part's lists: most rows need not be looked up.
    let row = |(slot, place): (u32, u32)| collection.row(slot, place);
    let by_place: &RowOrder<'_> = &|a, b| order((a.0, row(a)), (b.0, row(b)));
    let (mut best, mut seen) = scan_all(&scaled, collection, first, wanted, by_place);
    for &list in rest {
        if seen >= wanted {
            break;
        }
        let (more, n) = scan_list(&scaled, collection, list, TopK::new(wanted), by_place);
        (best, seen) = (best.merge(more, by_place), seen + n);
    }
    let mut ranked = best.into_kept(by_place);
    ranked.iter_mut().for_each(|c| c.row = row((c.part, c.row)));
    Found { nearest: rerank(quantizer.dim(), collection, query, &ranked, order), ranked }
}

/// The best of some lists, and the number of entries that were visible there.
fn scan_all(
    query: &[i16],
    collection: Collection<'_>,
    lists: &[u32],
    wanted: usize,
    order: &RowOrder<'_>,
) -> (TopK, usize) {
    let job = |lists: &[u32]| {
        lists.iter().fold((TopK::new(wanted), 0), |(best, seen), &list| {
            let (best, n) = scan_list(query, collection, list, best, order);
            (best, seen + n)
        })
    };
    let merge = |a: (TopK, usize), b: (TopK, usize)| (a.0.merge(b.0, order), a.1 + b.1);
    lists.par_chunks(JOB_LISTS).map(job).reduce(|| (TopK::new(wanted), 0), merge)
}

fn scan_list(
    query: &[i16],
    collection: Collection<'_>,
    list: u32,
    mut best: TopK,
    order: &RowOrder<'_>,
) -> (TopK, usize) {
    let mut seen = 0;
    for group in collection.merged.groups() {
        for span in group.spans(list) {
            let Some(part) = &collection.parts[span.slot as usize] else { continue };
            let (rows, codes) = group.entries(span, &part.lists, query.len());
            let hidden = part.hidden.as_deref();
            for ((place, code), row) in (span.from..).zip(codes.chunks_exact(query.len())).zip(rows) {
                if hidden.is_some_and(|h| h.contains(*row as usize)) {
                    continue;
                }
                seen += 1;
                let distance = code_distance(query, code) as f32;
                best.push(Candidate { distance, part: part.id, row: place }, order);
            }
        }
    }
    (best, seen)
}

/// Σ (q_i − c_i)² in integers: no order of additions can change it. Differences fit 16 bits, as the range of queries is bounded, so that
/// pairs of them are multiplied and added by one instruction.
#[inline(always)]
fn code_distance(query: &[i16], code: &[u8]) -> i32 {
    let square = |(&q, &c): (&i16, &u8)| {
        let d = q - i16::from(c);
        i32::from(d) * i32::from(d)
    };
    query.iter().zip(code).map(square).sum()
}

/// Ranks candidates by the exact distance of their keys.
fn rerank(
    dim: usize,
    collection: Collection<'_>,
    query: &Query<'_>,
    candidates: &[Candidate],
    order: &RowOrder<'_>,
) -> Vec<Candidate> {
    let part_of = |candidate: &Candidate| collection.parts[candidate.part as usize].as_ref();
    let job = |candidates: &[Candidate]| {
        let (mut best, mut buffer) = (TopK::new(query.k), vec![0.0; dim]);
        for (i, candidate) in candidates.iter().enumerate() {
            if let Some((ahead, part)) = candidates.get(i + KEYS_AHEAD).and_then(|c| Some((c, part_of(c)?))) {
                part.keys.ask_for(ahead.row as usize, dim);
            }
            let Some(part) = part_of(candidate) else { continue };
            let key = part.keys.row(candidate.row as usize, dim, &mut buffer);
            best.push(Candidate { distance: squared_l2(query.key, key), ..*candidate }, order);
        }
        best
    };
    let ranked = candidates.par_chunks(JOB_KEYS).map(job);
    ranked.reduce(|| TopK::new(query.k), |a, b| a.merge(b, order)).into_sorted(order)
}

#[cfg(test)]
mod tests {
    use std::ops::Range;

    use half::f16;
    use proptest::prelude::*;

    use super::*;
    use crate::{Part, Training, exact_search, train_quantizer};

    const DIM: usize = 12;

    /// Keys in clumps, so that lists differ; several are equal, so that ties are met.
    fn keys(n: usize, seed: u64) -> Vec<f32> {
        let mut state = seed.wrapping_mul(2) + 1;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize
        };
        let mut out = Vec::new();
        for _ in 0..n {
            let clump = next() % 7;
            out.extend((0..DIM).map(|d| ((clump * (d + 3)) % 11) as f32 + (next() % 4) as f32 * 0.25));
        }
        out
    }

    fn quantizer() -> Quantizer {
        let about = (0..5).map(|i| (format!("field {i}"), format!("value {i}"))).collect();
        let training = Training { projected: 6, n_lists: 9, seed: 1, about };
        train_quantizer(&keys(600, 5), DIM, training).unwrap()
    }

    /// Searches parts of which the ids are their places.
    fn search(
        quantizer: &Quantizer,
        parts: Vec<ListPart<'_>>,
        query: Query<'_>,
        probe: Probe,
        order: &RowOrder<'_>,
    ) -> Vec<Candidate> {
        let lists: Vec<Option<Lists<'_>>> = parts.iter().map(|p| Some(p.lists)).collect();
        let merged = MergedLists::new(quantizer.n_lists(), &lists);
        let parts: Vec<Option<ListPart<'_>>> = parts.into_iter().map(Some).collect();
        ivf_search(quantizer, Collection { merged: &merged, parts: &parts }, &[query], probe, order).remove(0).nearest
    }

    /// A part's own arrays.
    struct Owned {
        keys: Vec<f16>,
        offsets: Vec<u32>,
        rows: Vec<u32>,
        codes: Vec<u8>,
    }

    impl Owned {
        fn new(quantizer: &Quantizer, keys: &[f32]) -> Self {
            let (lists, codes) = quantizer.encode(keys);
            let mut out = Self {
                keys: keys.iter().map(|x| f16::from_f32(*x)).collect(),
                offsets: vec![0],
                rows: vec![],
                codes: vec![],
            };
            for list in 0..quantizer.n_lists() as u32 {
                for row in (0..lists.len()).filter(|r| lists[*r] == list) {
                    out.rows.push(row as u32);
                    out.codes.extend(&codes[row * 6..(row + 1) * 6]);
                }
                out.offsets.push(out.rows.len() as u32);
            }
            out
        }

        fn part(&self, id: u32, hidden: Range<u32>) -> ListPart<'_> {
            let lists = Lists { offsets: &self.offsets, rows: &self.rows, codes: &self.codes };
            ListPart { id, keys: Keys::F16(&self.keys), lists, hidden: rows(hidden) }
        }
    }

    fn rows(range: Range<u32>) -> Option<Cow<'static, FixedBitSet>> {
        (!range.is_empty()).then(|| Cow::Owned(range.map(|row| row as usize).collect()))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]

        /// Looking into every list and ranking everything again is exact search.
        #[test]
        fn a_full_probe_is_exact(n in 1usize..300, k in 0usize..30, seed in any::<u64>(), from in 0u32..100) {
            let (quantizer, keys) = (quantizer(), keys(n, seed));
            let owned = Owned::new(&quantizer, &keys);
            let hidden = from..from + 40;
            let query = &keys[..DIM];
            let queries = [Query { key: query, k }];
            let probe = Probe { n_probe: quantizer.n_lists(), rerank: n };
            let merged = MergedLists::new(quantizer.n_lists(), &[Some(owned.part(0, 0..0).lists)]);
            prop_assert_eq!(n_compared(&quantizer, &merged, query, quantizer.n_lists()), n);
            prop_assert!(n_compared(&quantizer, &merged, query, 1) <= n);
            let got = vec![search(&quantizer, vec![owned.part(0, hidden.clone())], queries[0], probe, &|a, b| a.cmp(&b))];
            let part = Part { id: 0, keys: Keys::F16(&owned.keys), queries: vec![0], hidden: rows(hidden) };
            prop_assert_eq!(got, exact_search(DIM, &[part], &queries, &|a, b| a.cmp(&b)));
        }

        /// What is found, at any probe, depends on the visible entries and not on the parts they lie in, nor on hidden ones; k visible
        /// entries are always found where there are as many.
        #[test]
        fn the_layout_does_not_show(n in 1usize..300, cut in 0usize..300, k in 1usize..20, n_probe in 1usize..4, seed in any::<u64>()) {
            let (quantizer, keys) = (quantizer(), keys(n, seed));
            let cut = cut.min(n);
            let noise = Owned::new(&quantizer, &keys);
            let whole = Owned::new(&quantizer, &keys);
            let (left, right) = (Owned::new(&quantizer, &keys[..cut * DIM]), Owned::new(&quantizer, &keys[cut * DIM..]));
            let query = Query { key: &keys[(n - 1) * DIM..], k };
            let probe = Probe { n_probe, rerank: 8 };
            // The logical order: the row in the whole.
            let one = search(&quantizer, vec![whole.part(0, 0..0), noise.part(1, 0..n as u32)], query, probe, &|a, b| a.1.cmp(&b.1));
            let logical = |(part, row): (u32, u32)| row + if part == 1 { cut as u32 } else { 0 };
            let two = search(&quantizer, vec![left.part(0, 0..0), right.part(1, 0..0)], query, probe, &|a, b| logical(a).cmp(&logical(b)));
            let two: Vec<_> = two.iter().map(|c| (c.distance, logical((c.part, c.row)))).collect();
            prop_assert_eq!(one.iter().map(|c| (c.distance, c.row)).collect::<Vec<_>>(), two);
            prop_assert_eq!(one.len(), k.min(n));
        }
    }

    proptest! {
        /// Fewer neighbours are the first of more: what is tuned for several k from one search holds for each of them.
        #[test]
        fn fewer_are_the_first_of_more(n in 1usize..300, k in 1usize..40, n_probe in 1usize..4, seed in any::<u64>()) {
            let (quantizer, keys) = (quantizer(), keys(n, seed));
            let owned = Owned::new(&quantizer, &keys);
            let find = |k| {
                let query = Query { key: &keys[(n / 2) * DIM..][..DIM], k };
                search(&quantizer, vec![owned.part(0, 0..0)], query, Probe { n_probe, rerank: 40 }, &|a, b| a.cmp(&b))
            };
            let more = find(40);
            prop_assert_eq!(&find(k)[..], &more[..k.min(more.len())]);
        }
    }

    #[test]
    fn a_quantiser_survives_its_file_and_nothing_else_passes_for_one() {
        let quantizer = quantizer();
        let bytes = quantizer.to_bytes().unwrap();
        assert_eq!(Quantizer::from_bytes(&bytes).unwrap(), quantizer);
        assert!((0..20).all(|_| quantizer.to_bytes().unwrap() == bytes), "its hash is its name");
        assert!(Quantizer::from_bytes(&bytes[..bytes.len() - 1]).is_err());
        assert!(Quantizer::from_bytes(b"not a quantiser").is_err());
        let few = Training { projected: 6, n_lists: 900, seed: 1, about: Default::default() };
        let message = train_quantizer(&keys(600, 5), DIM, few).unwrap_err().to_string();
        assert!(message.contains("600 keys are too few for 900 lists"), "{message}");
    }
}
