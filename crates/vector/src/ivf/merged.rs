//! The lists of many parts as one: a query looks at a list once, however many parts have entries in it.

/// Entries of one part that follow each other in a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Span {
    /// Slot of the part.
    pub(crate) slot: u32,
    /// First place in the part's lists.
    pub(crate) from: u32,
    /// The place after the last.
    pub(crate) to: u32,
}

/// For each list, the spans of the parts that have entries in it, in the order of the slots.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MergedLists {
    /// Where the spans of each list begin, and at last where all end.
    offsets: Vec<usize>,
    spans: Vec<Span>,
}

impl MergedLists {
    /// Merges parts, given by their [`Lists::offsets`](crate::Lists::offsets); the slot of each is its place among them.
    pub fn new(n_lists: usize, parts: &[&[u32]]) -> Self {
        let mut offsets = vec![0; n_lists + 1];
        let filled = |part: &&&[u32], list: usize| part[list] < part[list + 1];
        for list in 0..n_lists {
            offsets[list + 1] = offsets[list] + parts.iter().filter(|part| filled(part, list)).count();
        }
        let mut spans = vec![Span { slot: 0, from: 0, to: 0 }; offsets[n_lists]];
        let mut next = offsets.clone();
        // Part after part, so that each one's offsets are read once from the first to the last.
        for (slot, part) in parts.iter().enumerate() {
            for (list, bounds) in part.windows(2).enumerate().filter(|(_, b)| b[0] < b[1]) {
                spans[next[list]] = Span { slot: slot as u32, from: bounds[0], to: bounds[1] };
                next[list] += 1;
            }
        }
        Self { offsets, spans }
    }

    /// The same with another part in a slot, or in the one after the last. Costs a copy of what is there, and no look at the other parts.
    pub fn with(&self, slot: u32, part: &[u32]) -> Self {
        let (mut offsets, mut spans) = (vec![0], Vec::with_capacity(self.spans.len() + part.len()));
        for (list, bounds) in part.windows(2).enumerate() {
            let old = self.spans(list as u32);
            let at = old.partition_point(|s| s.slot < slot);
            let after = at + usize::from(old.get(at).is_some_and(|s| s.slot == slot));
            spans.extend_from_slice(&old[..at]);
            if bounds[0] < bounds[1] {
                spans.push(Span { slot, from: bounds[0], to: bounds[1] });
            }
            spans.extend_from_slice(&old[after..]);
            offsets.push(spans.len());
        }
        Self { offsets, spans }
    }

    pub(crate) fn spans(&self, list: u32) -> &[Span] {
        &self.spans[self.offsets[list as usize]..self.offsets[list as usize + 1]]
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const N_LISTS: usize = 5;

    /// Offsets of lists of these sizes.
    fn offsets(sizes: &[u32]) -> Vec<u32> {
        let mut out = vec![0];
        sizes.iter().for_each(|n| out.push(out[out.len() - 1] + n));
        out
    }

    proptest! {
        #[test]
        fn a_part_that_comes_or_changes_is_merged_as_all_anew(
            sizes in prop::collection::vec(prop::collection::vec(0u32..3, N_LISTS), 0..6),
            new in prop::collection::vec(0u32..3, N_LISTS), slot in 0usize..7,
        ) {
            let mut parts: Vec<Vec<u32>> = sizes.iter().map(|s| offsets(s)).collect();
            let all = |parts: &[Vec<u32>]| {
                MergedLists::new(N_LISTS, &parts.iter().map(Vec::as_slice).collect::<Vec<_>>())
            };
            let (slot, before) = (slot.min(parts.len()), all(&parts));
            let after = before.with(slot as u32, &offsets(&new));
            if slot < parts.len() { parts[slot] = offsets(&new) } else { parts.push(offsets(&new)) }
            prop_assert_eq!(after, all(&parts));
        }
    }
}
