//! The verbatim guard: no long run of a source that may not be reproduced leaves the service.
//!
//! A run is counted in tokens of the text that leaves, prompt and output joined, and found by its words: letter case, spaces, line ends and
//! punctuation do not count. A word that begins before a run is not looked at, and runs with fewer letters than one for every two tokens, or fewer than
//! three complete words, are let pass. What was put before the prompt as passages is not part of the text.

use serde::{Deserialize, Serialize};
use silo_core::{Datastore, Epoch, Run, SearchError, Tier, TokenId, Tokenizer, units};

/// What happens to a token that would complete too long a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnRun {
    /// Another token is drawn in its place.
    #[default]
    Redraw,
    /// The text ends.
    End,
}

/// How much of a source without the `verbatim` permission may leave in one piece.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct GuardConfig {
    /// Most tokens in one run of a source of this tier; 0 for no limit.
    pub public_domain: usize,
    /// See above.
    pub permissive: usize,
    /// See above.
    pub attribution: usize,
    /// See above.
    pub restricted: usize,
    /// What happens then.
    pub on_run: OnRun,
    /// The text ends if so many tokens in a row would not do.
    pub max_redraws: usize,
    /// Whether a run may leave that also stands in a source whose text may leave at length.
    pub free_elsewhere: bool,
}

impl Default for GuardConfig {
    fn default() -> Self {
        Self {
            public_domain: 32,
            permissive: 32,
            attribution: 32,
            restricted: 32,
            on_run: OnRun::Redraw,
            max_redraws: 64,
            free_elsewhere: false,
        }
    }
}

/// Tokens before a run that are looked at to find where its first word begins.
const BEFORE: usize = 32;

/// Runs with fewer complete words than this are not looked for, but longer ones that end with them: too much holds so few words.
const LEAST_WORDS: usize = 3;

/// Words that are looked for to see that nothing holds them.
const PROBE_WORDS: usize = 5;

/// The limits in force.
#[derive(Debug, Clone)]
pub(crate) struct Guard {
    /// Each limit in tokens with the tiers that it is that of, the least first.
    limits: Vec<(usize, Vec<Tier>)>,
    /// All of these tiers.
    tiers: Vec<Tier>,
    free_elsewhere: bool,
    /// So many tokens in a row may be refused.
    max_refused: usize,
}

/// What is known of a text.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Watched {
    /// Until the text has so many tokens, in this epoch, no run in it can be too long.
    clear_until: Option<(usize, Epoch)>,
}

impl Guard {
    pub(crate) fn new(config: &GuardConfig) -> Self {
        let all = [
            (config.public_domain, Tier::PublicDomain),
            (config.permissive, Tier::Permissive),
            (config.attribution, Tier::Attribution),
            (config.restricted, Tier::Restricted),
        ];
        let mut limits: Vec<(usize, Vec<Tier>)> = Vec::new();
        for (limit, tier) in all.into_iter().filter(|(limit, _)| *limit > 0) {
            match limits.iter_mut().find(|(l, _)| *l == limit) {
                Some((_, tiers)) => tiers.push(tier),
                None => limits.push((limit, vec![tier])),
            }
        }
        limits.sort_by_key(|(limit, _)| *limit);
        let max_refused = if config.on_run == OnRun::End { 0 } else { config.max_redraws };
        let tiers = limits.iter().flat_map(|(_, tiers)| tiers.clone()).collect();
        Self { limits, tiers, free_elsewhere: config.free_elsewhere, max_refused }
    }

    /// Whether a text ends because so many tokens in a row would not do.
    pub(crate) fn ends(&self, n_refused: usize) -> bool {
        n_refused > self.max_refused
    }

    /// Whether a text that ends with `token` ends with a run that is too long.
    pub(crate) fn refuses(
        &self,
        (store, tokenizer): (&dyn Datastore, &dyn Tokenizer),
        watched: &mut Watched,
        text: &[TokenId],
        token: TokenId,
    ) -> Result<bool, SearchError> {
        let Some((least, _)) = self.limits.first() else { return Ok(false) };
        let n = text.len() + 1;
        let epoch = store.snapshot().epoch;
        if n <= *least || watched.clear_until.is_some_and(|(until, at)| at == epoch && n < until) {
            return Ok(false);
        }
        for (limit, tiers) in self.limits.iter().filter(|(limit, _)| n > *limit) {
            let found = least_run(tokenizer, text, token, limit + 1);
            let guarded = found.has_words(*limit) && store.is_guarded(&found.run(), tiers)?;
            if guarded && !(self.free_elsewhere && store.is_free(&found.run())?) {
                return Ok(true);
            }
        }
        self.look_ahead((store, tokenizer), watched, (text, token), epoch)?;
        Ok(false)
    }

    /// If not even the last few words stand anywhere, a run that is too long must begin after the first of them.
    fn look_ahead(
        &self,
        (store, tokenizer): (&dyn Datastore, &dyn Tokenizer),
        watched: &mut Watched,
        (text, token): (&[TokenId], TokenId),
        epoch: Epoch,
    ) -> Result<(), SearchError> {
        let least = self.limits[0].0;
        let found = found(tokenizer, text, token, least);
        let Some(first) = found.words.len().checked_sub(PROBE_WORDS) else { return Ok(()) };
        if !store.is_guarded(&Run { words: &found.words[first..], begun: "" }, &self.tiers)? {
            // The run begins after the token that the first of them begins in, and has more than `least` tokens.
            watched.clear_until = Some((found.begins_in[first] + 2 + least, epoch));
        }
        Ok(())
    }
}

/// The words of the end of a text.
struct Found {
    words: Vec<u32>,
    /// The place in the text of the token that each begins in.
    begins_in: Vec<usize>,
    begun: String,
    n_letters: usize,
}

impl Found {
    fn run(&self) -> Run<'_> {
        Run { words: &self.words, begun: &self.begun }
    }

    /// Whether there is more than punctuation and spaces: a letter for every two tokens, on average.
    fn has_words(&self, n_tokens: usize) -> bool {
        self.words.len() >= LEAST_WORDS && 2 * self.n_letters >= n_tokens
    }
}

/// The words of the shortest end of a text that has so many tokens or more, and words enough to be looked for.
fn least_run(tokenizer: &dyn Tokenizer, text: &[TokenId], token: TokenId, n_tokens: usize) -> Found {
    let longest = (text.len() + 1).min(n_tokens + BEFORE);
    let spans = (n_tokens..longest).map(|span| found(tokenizer, text, token, span));
    let enough = { spans }.find(|found| found.words.len() >= LEAST_WORDS);
    enough.unwrap_or_else(|| found(tokenizer, text, token, longest))
}

/// The words that begin in the last `n_tokens` tokens of a text that ends with `token`; the last word may go on after it.
fn found(tokenizer: &dyn Tokenizer, text: &[TokenId], token: TokenId, n_tokens: usize) -> Found {
    let first = (text.len() + 1).saturating_sub(n_tokens);
    let before = first.saturating_sub(BEFORE);
    // The bytes from some tokens before on, and where those of each token end.
    let (mut bytes, mut ends) = (Vec::new(), Vec::new());
    for &token in text[before..].iter().chain([&token]) {
        bytes.extend_from_slice(tokenizer.bytes(token));
        ends.push(bytes.len());
    }
    let start = if first == before { 0 } else { ends[first - before - 1] };
    let mut out = Found { words: Vec::new(), begins_in: Vec::new(), begun: String::new(), n_letters: 0 };
    let mut at = 0;
    for chunk in bytes.utf8_chunks() {
        let (valid_end, end) = (at + chunk.valid().len(), at + chunk.valid().len() + chunk.invalid().len());
        for word in units::words(chunk.valid()) {
            let (begins, ends_at) = (at + word.at.start, at + word.at.end);
            if begins < start {
                continue;
            }
            out.n_letters += word.text.chars().count();
            // Nothing stands behind it, but perhaps the beginning of a character.
            if ends_at == valid_end && end == bytes.len() {
                out.begun = word.text;
            } else {
                out.words.push(word.unit());
                out.begins_in.push(before + ends.partition_point(|end| *end <= begins));
            }
        }
        at = end;
    }
    out
}

#[cfg(test)]
mod tests {
    use silo_testkit::ByteTokenizer;

    use super::*;

    /// Tokens are bytes: a text is as long as it looks.
    fn check(text: &str, n: usize, words: &[&str], begun: &str) {
        let tokenizer = ByteTokenizer::default();
        let tokens = tokenizer.encode(text).unwrap();
        let (last, rest) = tokens.split_last().unwrap();
        let found = found(&tokenizer, rest, *last, n);
        let expected: Vec<u32> = words.iter().map(|w| units::unit(w)).collect();
        assert_eq!((found.words, &found.begun[..]), (expected, begun), "the last {n} of {text:?}");
    }

    #[test]
    fn the_words_of_a_run_begin_and_may_go_on_in_it() {
        check("The quick, brown fox", 11, &["brown"], "fox");
        check("The quick, brown fox", 9, &["brown"], "fox");
        check("The quick, brown fox", 8, &[], "fox");
        check("The quick, brown fox ", 12, &["brown", "fox"], "");
        check("The QUICK", 50, &["the"], "quick");
        check("caf\u{e9} \u{e9}t\u{e9}", 7, &[], "\u{e9}t\u{e9}");
    }
}
