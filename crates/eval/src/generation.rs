//! What is generated: how a judge finds it, how it repeats itself, and what of it stands in the store.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::AtomicBool;

use serde::{Deserialize, Serialize};
use silo_core::{Document, TokenId, Tokenizer, units};
use silo_engine::{Engine, Event, GenerateRequest, Retrieval, ScoreRequest};
use silo_spans::{SpanFiles, Spans};

use crate::{Domain, EvalError, Loss};

/// What is generated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GenerationSizes {
    /// Prompts of each domain, from its test text.
    pub prompts: usize,
    /// Tokens of each.
    pub prompt_tokens: usize,
    /// Tokens that are generated for each.
    pub new_tokens: usize,
}

impl Default for GenerationSizes {
    fn default() -> Self {
        Self { prompts: 8, prompt_tokens: 64, new_tokens: 128 }
    }
}

/// A piece of held-out text: its beginning, and how it goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prompt {
    /// The beginning.
    pub tokens: Vec<TokenId>,
    /// What stands there.
    pub continuation: Vec<TokenId>,
}

impl Prompt {
    /// Pieces of a domain's test text: the first of each text, then the second of each, and so on. Fewer, if there are not so many.
    pub fn of(domain: &Domain, sizes: GenerationSizes) -> Vec<Self> {
        let length = (sizes.prompt_tokens + sizes.new_tokens).max(1);
        let numbered = domain.test.iter().flat_map(|text| text.tokens.chunks_exact(length).enumerate());
        let mut numbered: Vec<(usize, &[TokenId])> = numbered.collect();
        numbered.sort_by_key(|(place, _)| *place);
        let pieces = numbered.into_iter().map(|(_, piece)| piece);
        let prompt = |piece: &[TokenId]| {
            let (tokens, continuation) = piece.split_at(sizes.prompt_tokens);
            Self { tokens: tokens.to_vec(), continuation: continuation.to_vec() }
        };
        pieces.take(sizes.prompts).map(prompt).collect()
    }
}

/// What was generated for some prompts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Generated {
    /// For each, in their order.
    pub tokens: Vec<Vec<TokenId>>,
    /// Draws that the guard refused.
    pub refused: u64,
}

/// Goes on from each prompt, as many at a time as the engine takes; drawn at temperature 1 with seeds 0, 1, …. Streams are read one after the
/// other: the engine's `stream_buffer_tokens` must be more than `new_tokens`.
pub fn generate(
    engine: &Engine,
    prompts: &[Prompt],
    retrieval: &Retrieval,
    new_tokens: usize,
) -> Result<Generated, EvalError> {
    let mut out = Generated::default();
    let at_once = engine.config().max_active;
    for (batch, prompts) in prompts.chunks(at_once).enumerate() {
        let request = |(i, prompt): (usize, &Prompt)| {
            let mut request = GenerateRequest::new(prompt.tokens.clone(), new_tokens);
            request.retrieval = retrieval.clone();
            request.seed = (batch * at_once + i) as u64;
            engine.generate(request)
        };
        let running = prompts.iter().enumerate().map(request).collect::<Result<Vec<_>, _>>()?;
        for mut generation in running {
            let mut tokens = Vec::new();
            while let Some(event) = generation.blocking_next() {
                match event {
                    Event::Token(token, _) => tokens.push(token.token),
                    Event::Finished(finished) => out.refused += finished.usage.refused_tokens,
                    Event::Failed(error) => return Err(error.into()),
                }
            }
            out.tokens.push(tokens);
        }
    }
    Ok(out)
}

/// What a model says of continuations, each behind its prompt; both are texts, in the judge's own tokens.
pub fn judged(judge: &Engine, tokenizer: &dyn Tokenizer, texts: &[(String, String)]) -> Result<Loss, EvalError> {
    let mut loss = Loss::default();
    for (prompt, made) in texts {
        let (before, behind) = (tokenizer.encode(prompt)?, tokenizer.encode(made)?);
        let request = ScoreRequest::new([&before[..], &behind[..]].concat(), Retrieval::default());
        let scored = judge.score(&request, &AtomicBool::new(false))?.tokens;
        // The last ones: without a beginning of text the first token of a prompt is not scored.
        let made_tokens = &scored[scored.len() - behind.len().min(scored.len())..];
        loss.nats -= made_tokens.iter().map(|t| t.log_probability).sum::<f64>();
        loss.n_tokens += made_tokens.len() as u64;
        loss.n_bytes += made.len() as u64;
    }
    Ok(loss)
}

/// How much of some texts is said for the first time: different runs of `n` tokens among all of them, from 0 to 1.
pub fn distinct(texts: &[Vec<TokenId>], n: usize) -> f64 {
    let runs = || texts.iter().flat_map(|text| text.windows(n));
    runs().collect::<BTreeSet<_>>().len() as f64 / runs().count().max(1) as f64
}

/// How far two texts are apart by how often each token comes: Jensen-Shannon divergence, in bits, from 0 (alike) to 1 (nothing in common).
pub fn divergence<'a>(a: impl Iterator<Item = &'a TokenId>, b: impl Iterator<Item = &'a TokenId>) -> f64 {
    let (a, b) = (frequencies(a), frequencies(b));
    let against = |p: &BTreeMap<TokenId, f64>, q: &BTreeMap<TokenId, f64>| -> f64 {
        let part = |(token, p): (&TokenId, &f64)| {
            let middle = (p + q.get(token).copied().unwrap_or(0.0)) / 2.0;
            p * (p / middle).log2()
        };
        p.iter().map(part).sum()
    };
    (against(&a, &b) + against(&b, &a)) / 2.0
}

fn frequencies<'a>(tokens: impl Iterator<Item = &'a TokenId>) -> BTreeMap<TokenId, f64> {
    let (mut out, mut n) = (BTreeMap::new(), 0.0);
    for token in tokens {
        *out.entry(*token).or_insert(0.0) += 1.0;
        n += 1.0;
    }
    out.values_mut().for_each(|count| *count /= n);
    out
}

/// All words of some documents, to look for runs in.
pub struct StoredWords(SpanFiles);

impl StoredWords {
    /// Sorts them.
    pub fn of<'a>(documents: impl IntoIterator<Item = &'a Document>) -> Self {
        Self(SpanFiles::build(documents.into_iter().map(|d| units::units(&d.text)).filter(|words| !words.is_empty())))
    }

    /// Words of the longest run of a text that stands in a document and has words of what was made in it.
    pub fn longest_run(&self, prompt: &str, made: &str) -> usize {
        let text = format!("{prompt}{made}");
        let words: Vec<units::Word> = units::words(&text).collect();
        let numbers = units::units(&text);
        let made_from = words.partition_point(|w| w.at.end <= prompt.len());
        let spans = Spans::checked(&self.0.units, &self.0.order, &self.0.starts);
        let run = |from: usize| spans.longest(&numbers[from..], |_| true);
        (0..numbers.len())
            .map(|from| (from, run(from)))
            .filter(|(from, n)| from + n > made_from)
            .map(|(_, n)| n)
            .max()
            .unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn document(text: &str) -> Document {
        Document {
            source: "s".parse().unwrap(),
            uri: text.to_owned(),
            title: String::new(),
            licence: String::new(),
            tier: silo_core::Tier::Restricted,
            text: text.to_owned(),
        }
    }

    #[test]
    fn runs_are_those_of_what_was_made() {
        let stored = [document("one two three four five six"), document("seven eight nine")];
        let words = StoredWords::of(&stored);
        assert_eq!(words.longest_run("zero one two three", " nothing"), 0, "the prompt's own run does not count");
        assert_eq!(words.longest_run("one two three", " four five nothing"), 5, "a run goes on from the prompt");
        assert_eq!(words.longest_run("", "six seven Eight nine"), 3, "no run goes over the end of a document");
    }

    #[test]
    fn what_repeats_itself_is_not_distinct() {
        assert_eq!(distinct(&[vec![1, 2, 3, 4, 5]], 4), 1.0);
        assert_eq!(distinct(&[vec![1, 1, 1, 1, 1]], 4), 0.5);
        assert_eq!(distinct(&[vec![1, 2]], 4), 0.0);
    }

    #[test]
    fn prompts_are_pieces_of_the_test_text() {
        let text = |tokens: std::ops::Range<u32>| crate::Text { tokens: tokens.collect(), n_bytes: 0, n_scored: 0 };
        let test = vec![text(0..7), text(10..12), text(20..26)];
        let source = "s".parse().unwrap();
        let domain = Domain { source, stored: vec![], validation: vec![], test, window_tokens: 0 };
        let prompts = Prompt::of(&domain, GenerationSizes { prompts: 3, prompt_tokens: 1, new_tokens: 2 });
        let piece = |tokens: &[u32], continuation: &[u32]| Prompt {
            tokens: tokens.to_vec(),
            continuation: continuation.to_vec(),
        };
        assert_eq!(prompts, [piece(&[0], &[1, 2]), piece(&[20], &[21, 22]), piece(&[3], &[4, 5])]);
    }

    proptest! {
        #[test]
        fn divergence_is_symmetric_and_between_0_and_1(a in prop::collection::vec(0u32..6, 1..40), b in prop::collection::vec(0u32..6, 1..40)) {
            let d = divergence(a.iter(), b.iter());
            prop_assert!((-1e-12..=1.0 + 1e-12).contains(&d));
            prop_assert!((d - divergence(b.iter(), a.iter())).abs() < 1e-12);
            prop_assert!(divergence(a.iter(), a.iter()).abs() < 1e-12);
            let apart: Vec<u32> = b.iter().map(|t| t + 6).collect();
            prop_assert!((divergence(a.iter(), apart.iter()) - 1.0).abs() < 1e-12);
        }
    }
}
