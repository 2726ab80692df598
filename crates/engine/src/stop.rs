//! Stop strings in streamed text.

/// Holds back what may become a stop string.
#[derive(Debug, Clone, Default)]
pub(crate) struct StopMatcher {
    stops: Vec<String>,
    held: String,
}

impl StopMatcher {
    pub(crate) fn new(stops: &[String]) -> Self {
        Self { stops: stops.iter().filter(|s| !s.is_empty()).cloned().collect(), held: String::new() }
    }

    /// Adds text; returns what may be sent, and whether a stop string ended it.
    pub(crate) fn push(&mut self, text: &str) -> (String, bool) {
        self.held.push_str(text);
        if let Some(at) = self.stops.iter().filter_map(|s| self.held.find(s.as_str())).min() {
            self.held.truncate(at);
            return (std::mem::take(&mut self.held), true);
        }
        let keep = self.longest_start_of_a_stop();
        let rest = self.held.split_off(self.held.len() - keep);
        (std::mem::replace(&mut self.held, rest), false)
    }

    /// Whether text is held back.
    pub(crate) fn holds(&self) -> bool {
        !self.held.is_empty()
    }

    /// The end: nothing more can complete a stop string.
    pub(crate) fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// Length of the longest end of the held text with which a stop string begins.
    fn longest_start_of_a_stop(&self) -> usize {
        let longest = self.stops.iter().map(String::len).max().unwrap_or(0);
        let from = self.held.len().saturating_sub(longest);
        let starts = (from..self.held.len()).filter(|&i| self.held.is_char_boundary(i));
        let may_become = |end: &str| self.stops.iter().any(|s| s.starts_with(end));
        starts.map(|i| &self.held[i..]).find(|end| may_become(end)).map_or(0, str::len)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn streamed_text_ends_where_the_whole_text_would(
            pieces in prop::collection::vec("[abé]{0,3}", 0..20), stops in prop::collection::vec("[abé]{1,4}", 0..3),
        ) {
            let whole: String = pieces.concat();
            let end = stops.iter().filter_map(|s| whole.find(s.as_str())).min();
            let mut matcher = StopMatcher::new(&stops);
            let mut out = String::new();
            let mut stopped = false;
            for piece in &pieces {
                let (text, stop) = matcher.push(piece);
                out += &text;
                if stop {
                    stopped = true;
                    break;
                }
            }
            if !stopped {
                out += &matcher.finish();
            }
            prop_assert_eq!(stopped, end.is_some());
            // With overlapping stop strings the first one that is complete ends the text, perhaps later than the first start.
            if stops.len() < 2 {
                prop_assert_eq!(out, &whole[..end.unwrap_or(whole.len())]);
            } else {
                prop_assert!(whole.starts_with(&out));
                prop_assert!(stops.iter().all(|s| !out.contains(s.as_str())));
            }
        }
    }
}
