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

    pub(crate) fn spans(&self, list: u32) -> &[Span] {
        &self.spans[self.offsets[list as usize]..self.offsets[list as usize + 1]]
    }
}
