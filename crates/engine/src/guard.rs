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
        Self { limits, free_elsewhere: config.free_elsewhere, max_refused }
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
        let epoch = store.spans_epoch();
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
        self.look_ahead(store, tokenizer, watched, (text, token), epoch)?;
        Ok(false)
    }

    /// The same for a token that is only shown, beside the text.
    pub(crate) fn refuses_to_show(
        &self,
        (store, tokenizer): (&dyn Datastore, &dyn Tokenizer),
        mut watched: Watched,
        text: &[TokenId],
        token: TokenId,
    ) -> Result<bool, SearchError> {
        self.refuses((store, tokenizer), &mut watched, text, token)
    }

    /// If not even the last few words stand anywhere, a run that is too long must begin after the first of them.
    fn look_ahead(
        &self,
        store: &dyn Datastore,
        tokenizer: &dyn Tokenizer,
        watched: &mut Watched,
        (text, token): (&[TokenId], TokenId),
        epoch: Epoch,
    ) -> Result<(), SearchError> {
        let (least, tiers) = (self.limits[0].0, self.limits.iter().flat_map(|(_, tiers)| tiers.clone()));
        let tiers: Vec<Tier> = tiers.collect();
        for span in 1..=least {
            let found = found(tokenizer, text, token, span);
            if found.words.len() < PROBE_WORDS {
                continue;
            }
            if !store.is_guarded(&Run { begun: "", ..found.run() }, &tiers)? {
                // The run begins at the second token of the span at the earliest, and has more than `least` tokens.
                watched.clear_until = Some((text.len() + 1 - (span - 1) + least + 1, epoch));
            }
            return Ok(());
        }
        Ok(())
    }
}

/// The words of the end of a text.
struct Found {
    words: Vec<u32>,
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
    let bytes_of = |tokens: &[TokenId]| tokens.iter().flat_map(|&t| tokenizer.bytes(t)).copied().collect::<Vec<u8>>();
    let mut bytes = bytes_of(&text[before..first.min(text.len())]);
    let start = bytes.len();
    bytes.extend(bytes_of(&text[first.min(text.len())..]));
    bytes.extend_from_slice(tokenizer.bytes(token));
    let (mut out, mut at) = (Found { words: Vec::new(), begun: String::new(), n_letters: 0 }, 0);
    for chunk in bytes.utf8_chunks() {
        let valid = chunk.valid();
        for word in units::words(valid).filter(|word| at + word.at.start >= start) {
            out.n_letters += word.text.chars().count();
            if at + word.at.end == bytes.len() - chunk.invalid().len()
                && at + valid.len() + chunk.invalid().len() == bytes.len()
            {
                out.begun = word.text;
            } else {
                out.words.push(word.unit());
            }
        }
        at += valid.len() + chunk.invalid().len();
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
