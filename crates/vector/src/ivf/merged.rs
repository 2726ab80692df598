//! The lists of many parts as one: a query looks at a list once, however many parts have entries in it.

use std::ops::Range;
use std::sync::Arc;

use super::Lists;

/// Parts with fewer entries in a list, on average, are copied together: each look at one of them alone would wait for memory.
const ALONE_FROM: usize = 32;
/// So many entries in a list, on average, are copied together; a part that comes or changes means one such copy.
const TOGETHER: usize = 64;

/// Entries of one part that follow each other in a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Span {
    /// Slot of the part.
    pub(crate) slot: u32,
    /// First place in the part's lists.
    pub(crate) from: u32,
    /// Number of entries.
    pub(crate) len: u32,
    /// Where they begin among those that were copied together.
    copied_at: u32,
}

/// Parts of neighbouring slots.
#[derive(Debug)]
pub(crate) struct Group {
    slots: Range<u32>,
    /// Where the spans of each list begin, and at last where all end.
    offsets: Vec<usize>,
    /// List after list, and in each by slot.
    spans: Vec<Span>,
    /// What the spans hold, one after the other, if they are of small parts.
    copied: Option<Copied>,
}

#[derive(Debug, Default)]
struct Copied {
    rows: Vec<u32>,
    codes: Vec<u8>,
}

impl Group {
    fn new<'a>(n_lists: usize, slots: Range<u32>, lists: &dyn Fn(u32) -> Option<Lists<'a>>) -> Self {
        let parts: Vec<(u32, Lists<'_>)> = slots.clone().filter_map(|slot| Some((slot, lists(slot)?))).collect();
        let filled = |lists: &Lists<'_>, list: usize| lists.offsets[list] < lists.offsets[list + 1];
        let mut offsets = vec![0; n_lists + 1];
        for list in 0..n_lists {
            offsets[list + 1] = offsets[list] + parts.iter().filter(|(_, lists)| filled(lists, list)).count();
        }
        let mut spans = vec![Span { slot: 0, from: 0, len: 0, copied_at: 0 }; offsets[n_lists]];
        let mut next = offsets.clone();
        // Part after part, so that each one's offsets are read once from the first to the last.
        for (slot, lists) in &parts {
            for (list, bounds) in lists.offsets.windows(2).enumerate().filter(|(_, b)| b[0] < b[1]) {
                spans[next[list]] = Span { slot: *slot, from: bounds[0], len: bounds[1] - bounds[0], copied_at: 0 };
                next[list] += 1;
            }
        }
        let small = parts.iter().all(|(_, lists)| is_small(n_lists, lists));
        let copied = small.then(|| copy(&mut spans, &parts));
        Self { slots, offsets, spans, copied }
    }

    pub(crate) fn spans(&self, list: u32) -> &[Span] {
        &self.spans[self.offsets[list as usize]..self.offsets[list as usize + 1]]
    }

    /// Rows and codes of a span of this group; `lists` are those of its part.
    pub(crate) fn entries<'a>(&'a self, span: &Span, lists: &Lists<'a>, code_bytes: usize) -> (&'a [u32], &'a [u8]) {
        let (rows, codes, at) = match &self.copied {
            Some(copied) => (&copied.rows[..], &copied.codes[..], span.copied_at),
            None => (lists.rows, lists.codes, span.from),
        };
        let (at, end) = (at as usize, (at + span.len) as usize);
        (&rows[at..end], &codes[at * code_bytes..end * code_bytes])
    }
}

fn is_small(n_lists: usize, lists: &Lists<'_>) -> bool {
    lists.rows.len() < ALONE_FROM * n_lists
}

/// Copies what spans hold.
fn copy(spans: &mut [Span], parts: &[(u32, Lists<'_>)]) -> Copied {
    let n: usize = parts.iter().map(|(_, lists)| lists.rows.len()).sum();
    let bytes: usize = parts.iter().map(|(_, lists)| lists.codes.len()).sum();
    let mut out = Copied { rows: Vec::with_capacity(n), codes: Vec::with_capacity(bytes) };
    for span in spans {
        // The slots of spans are those of parts.
        let Ok(part) = parts.binary_search_by_key(&span.slot, |(slot, _)| *slot) else { continue };
        let lists = &parts[part].1;
        let (from, to) = (span.from as usize, (span.from + span.len) as usize);
        let code_bytes = lists.codes.len() / lists.rows.len();
        span.copied_at = out.rows.len() as u32;
        out.rows.extend_from_slice(&lists.rows[from..to]);
        out.codes.extend_from_slice(&lists.codes[from * code_bytes..to * code_bytes]);
    }
    out
}

/// For each list, the spans of the parts that have entries in it, in the order of the slots. Codes and rows of small parts are copied, so that
/// those of a list lie together: a thousand small parts are read as one is.
#[derive(Debug, Clone, Default)]
pub struct MergedLists {
    n_lists: usize,
    groups: Vec<Arc<Group>>,
}

impl MergedLists {
    /// Merges parts; the slot of each is its place among them. `None` has no entries.
    pub fn new(n_lists: usize, parts: &[Option<Lists<'_>>]) -> Self {
        Self { n_lists, groups: groups(n_lists, 0..parts.len() as u32, &|slot| parts[slot as usize]) }
    }

    /// The same with another part in a slot, or in the one after the last. `lists` gives the part of a slot; it is asked for the new one and
    /// some of its neighbours.
    pub fn with<'a>(&self, slot: u32, lists: &dyn Fn(u32) -> Option<Lists<'a>>) -> Self {
        let at = self.groups.partition_point(|group| group.slots.end <= slot);
        let (before, after) = if at < self.groups.len() { (at, at + 1) } else { (at.saturating_sub(1), at) };
        let first = self.groups.get(before).map_or(0, |group| group.slots.start);
        let end = self.groups.get(at).map_or(slot + 1, |group| group.slots.end);
        let mut out = self.groups[..before].to_vec();
        out.extend(groups(self.n_lists, first..end, lists));
        out.extend_from_slice(&self.groups[after..]);
        Self { n_lists: self.n_lists, groups: out }
    }

    /// Whether the codes and rows of a slot were copied, so that its own are not read while searching.
    pub fn copies(&self, slot: u32) -> bool {
        let group = self.groups.partition_point(|group| group.slots.end <= slot);
        self.groups.get(group).is_some_and(|group| group.copied.is_some())
    }

    pub(crate) fn groups(&self) -> impl Iterator<Item = &Group> {
        self.groups.iter().map(|group| &**group)
    }

    /// How many entries lie in a list.
    pub(crate) fn n_entries(&self, list: u32) -> usize {
        self.groups().flat_map(|group| group.spans(list)).map(|span| span.len as usize).sum()
    }
}

/// Groups of neighbouring slots: small parts together up to a size, others each alone.
fn groups<'a>(n_lists: usize, slots: Range<u32>, lists: &dyn Fn(u32) -> Option<Lists<'a>>) -> Vec<Arc<Group>> {
    let (mut out, mut first, mut n_together, mut closed) = (Vec::new(), slots.start, 0, false);
    for slot in slots.clone() {
        let part = lists(slot);
        let n = part.map_or(0, |lists| lists.rows.len());
        let alone = part.is_some_and(|lists| !is_small(n_lists, &lists));
        if first < slot && (closed || alone || n_together + n > TOGETHER * n_lists) {
            out.push(Arc::new(Group::new(n_lists, first..slot, lists)));
            (first, n_together) = (slot, 0);
        }
        (n_together, closed) = (n_together + n, alone);
    }
    if first < slots.end {
        out.push(Arc::new(Group::new(n_lists, first..slots.end, lists)));
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const N_LISTS: usize = 5;
    const CODE_BYTES: usize = 2;

    /// A part's own arrays, of lists of these sizes.
    struct Owned(Vec<u32>, Vec<u32>, Vec<u8>);

    impl Owned {
        fn new(sizes: &[u32], seed: u32) -> Self {
            let mut offsets = vec![0];
            sizes.iter().for_each(|n| offsets.push(offsets[offsets.len() - 1] + n));
            let rows: Vec<u32> = (0..offsets[N_LISTS]).map(|i| i * 7 + seed).collect();
            let codes = rows.iter().flat_map(|row| [(row % 251) as u8, (row % 13) as u8]).collect();
            Self(offsets, rows, codes)
        }

        fn lists(&self) -> Lists<'_> {
            Lists { offsets: &self.0, rows: &self.1, codes: &self.2 }
        }
    }

    /// What stands in each list: slot, first place, rows and codes.
    type Content = Vec<Vec<(u32, u32, Vec<u32>, Vec<u8>)>>;

    fn content(merged: &MergedLists, parts: &[Option<Owned>]) -> Content {
        let of_list = |list: usize| {
            let mut out = Vec::new();
            for group in merged.groups() {
                for span in group.spans(list as u32) {
                    let lists = parts[span.slot as usize].as_ref().expect("a part in this slot").lists();
                    let (rows, codes) = group.entries(span, &lists, CODE_BYTES);
                    out.push((span.slot, span.from, rows.to_vec(), codes.to_vec()));
                }
            }
            out
        };
        (0..N_LISTS).map(of_list).collect()
    }

    /// The same from the parts themselves.
    fn expected(parts: &[Option<Owned>]) -> Content {
        let of_list = |list: usize| {
            let there = parts.iter().zip(0..).filter_map(|(part, slot)| Some((slot, part.as_ref()?)));
            let span = |(slot, part): (u32, &Owned)| {
                let (from, to) = (part.0[list] as usize, part.0[list + 1] as usize);
                let codes = part.2[from * CODE_BYTES..to * CODE_BYTES].to_vec();
                (from < to).then(|| (slot, from as u32, part.1[from..to].to_vec(), codes))
            };
            there.filter_map(span).collect()
        };
        (0..N_LISTS).map(of_list).collect()
    }

    fn sizes() -> impl Strategy<Value = Option<Vec<u32>>> {
        // Empty, small, and too large to be copied; small ones fill several groups.
        let most = prop_oneof![4 => Just(4u32), 2 => Just(30), 1 => Just(90)];
        prop::option::weighted(0.9, most.prop_flat_map(|most| prop::collection::vec(0..most, N_LISTS)))
    }

    proptest! {
        #[test]
        fn parts_that_come_or_change_are_merged_as_they_are(
            before in prop::collection::vec(sizes(), 0..20), changes in prop::collection::vec((0usize..24, sizes()), 0..6),
        ) {
            let mut parts: Vec<Option<Owned>> =
                before.iter().zip(0..).map(|(sizes, seed)| Some(Owned::new(sizes.as_ref()?, seed))).collect();
            let lists = |parts: &[Option<Owned>], slot: u32| parts[slot as usize].as_ref().map(|part| {
                // What a part holds lives as long as the test needs it.
                Lists { offsets: part.0.clone().leak(), rows: part.1.clone().leak(), codes: part.2.clone().leak() }
            });
            let all: Vec<Option<Lists<'_>>> = parts.iter().map(|part| part.as_ref().map(Owned::lists)).collect();
            let mut merged = MergedLists::new(N_LISTS, &all);
            prop_assert_eq!(content(&merged, &parts), expected(&parts));
            for (seed, (slot, sizes)) in changes.into_iter().enumerate() {
                let (slot, new) = (slot.min(parts.len()), sizes.map(|sizes| Owned::new(&sizes, 1000 + seed as u32)));
                if slot < parts.len() { parts[slot] = new } else { parts.push(new) }
                merged = merged.with(slot as u32, &|slot| lists(&parts, slot));
                prop_assert_eq!(content(&merged, &parts), expected(&parts));
                for (part, slot) in parts.iter().zip(0..).filter_map(|(part, slot)| Some((part.as_ref()?, slot))) {
                    prop_assert_eq!(merged.copies(slot), part.1.len() < ALONE_FROM * N_LISTS);
                }
                let n: usize = (0..N_LISTS as u32).map(|list| merged.n_entries(list)).sum();
                prop_assert_eq!(n, parts.iter().flatten().map(|part| part.1.len()).sum::<usize>());
            }
        }
    }
}
