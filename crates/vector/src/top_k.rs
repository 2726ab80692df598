//! The k best of many candidates under a total order.

use std::cmp::Ordering;

/// A row that may be among the k nearest.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Candidate {
    /// Squared L2 distance.
    pub distance: f32,
    /// Number of the part that the row lies in.
    pub part: u32,
    /// Row in the part.
    pub row: u32,
}

/// The order of rows at equal distance, given as (part, row). It must be total.
pub type RowOrder<'a> = dyn Fn((u32, u32), (u32, u32)) -> Ordering + Sync + 'a;

fn compare(order: &RowOrder<'_>, a: &Candidate, b: &Candidate) -> Ordering {
    a.distance.total_cmp(&b.distance).then_with(|| order((a.part, a.row), (b.part, b.row)))
}

/// Keeps the k best of what is pushed. Because the order is total, the result does not depend on the order of pushing, on how
/// candidates were spread over several selections, nor on the number of threads.
#[derive(Debug, Clone)]
pub struct TopK {
    k: usize,
    /// Up to 2k candidates, of which the k best are kept whenever it is full.
    kept: Vec<Candidate>,
    /// No candidate beyond this distance can be among the k best.
    threshold: f32,
}

impl TopK {
    /// An empty selection.
    pub fn new(k: usize) -> Self {
        Self { k, kept: Vec::new(), threshold: if k == 0 { f32::NEG_INFINITY } else { f32::INFINITY } }
    }

    /// Offers a candidate.
    #[inline]
    pub fn push(&mut self, candidate: Candidate, order: &RowOrder<'_>) {
        // Equal distances stay until the order of rows has decided.
        if candidate.distance <= self.threshold {
            self.kept.push(candidate);
            if self.kept.len() >= 2 * self.k {
                self.shrink(order);
            }
        }
    }

    fn shrink(&mut self, order: &RowOrder<'_>) {
        if self.kept.len() > self.k {
            let (_, last, _) = self.kept.select_nth_unstable_by(self.k - 1, |a, b| compare(order, a, b));
            self.threshold = last.distance;
            self.kept.truncate(self.k);
        }
    }

    /// Takes over what another selection kept.
    pub fn merge(mut self, other: Self, order: &RowOrder<'_>) -> Self {
        for candidate in other.kept {
            self.push(candidate, order);
        }
        self
    }

    /// The k best, in no order.
    pub fn into_kept(mut self, order: &RowOrder<'_>) -> Vec<Candidate> {
        self.shrink(order);
        self.kept
    }

    /// The k best, best first.
    pub fn into_sorted(mut self, order: &RowOrder<'_>) -> Vec<Candidate> {
        self.shrink(order);
        self.kept.sort_unstable_by(|a, b| compare(order, a, b));
        self.kept
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_k_best_are_those_of_a_full_sort(
            distances in prop::collection::vec(0u8..6, 0..200), k in 0usize..12, split in 0usize..200,
        ) {
            let order: &RowOrder<'_> = &|a, b| b.cmp(&a); // any total order will do
            let all: Vec<_> = distances.iter().enumerate()
                .map(|(i, &d)| Candidate { distance: f32::from(d), part: (i % 3) as u32, row: i as u32 }).collect();
            let mut expected = all.clone();
            expected.sort_by(|a, b| compare(order, a, b));
            expected.truncate(k);
            let (left, right) = all.split_at(split.min(all.len()));
            let select = |part: &[Candidate]| {
                let mut top = TopK::new(k);
                part.iter().for_each(|c| top.push(*c, order));
                top
            };
            let found = select(right).merge(select(left), order).into_sorted(order);
            prop_assert_eq!(found, expected);
        }
    }
}
