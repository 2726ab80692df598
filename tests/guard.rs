//! The verbatim guard: what leaves is looked at by other means than those that the guard has.

use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use silo_core::{Selection, TokenId, units};
use silo_engine::{
    EngineConfig, Event, FinishReason, Finished, GenerateRequest, GuardConfig, KnnOverrides, Mode, OnRun, Retrieval,
};

use super::world::{World, source};

const WORDS: [&str; 7] = ["tide", "Book", "harbour", "keeper", "of", "the", "lamp"];

/// A generation.
struct Made {
    n_prompt: usize,
    /// Those of the prompt too.
    tokens: Vec<TokenId>,
    /// The alternatives that were shown at each new token.
    shown: Vec<Vec<TokenId>>,
    finished: Finished,
}

impl World {
    /// Continues a prompt, copying from the store wherever it can.
    fn generate(&self, guard: GuardConfig, prompt: &str, seed: u64) -> Made {
        let config = EngineConfig { guard, ..EngineConfig::default() };
        let engine = self.engine(config, None);
        let prompt = self.tokenizer.encode(prompt).unwrap();
        let mut request = GenerateRequest::new(prompt.clone(), 60);
        let (k, knn_weight, knn_temperature) = (Some(1), Some(0.97), Some(0.01));
        let knn = KnnOverrides { k, knn_weight, knn_temperature, ..Default::default() };
        request.retrieval = Retrieval { mode: Mode::Knn, knn, ..Retrieval::default() };
        request.seed = seed;
        request.alternatives = 5;
        let (n_prompt, mut generation, mut tokens) = (prompt.len(), engine.generate(request).unwrap(), prompt);
        let mut shown = Vec::new();
        loop {
            match generation.blocking_next().unwrap() {
                Event::Token(token, _) => {
                    tokens.push(token.token);
                    shown.push(token.alternatives.iter().map(|(token, _)| *token).collect());
                }
                Event::Finished(finished) => {
                    return Made { n_prompt, tokens, shown, finished: *finished };
                }
                Event::Failed(error) => panic!("{error}"),
            }
        }
    }

    /// The longest run of a text, in tokens, that ends after its prompt and whose words stand in another text: every window is looked at, word by
    /// word.
    fn longest_run(&self, prompt: usize, tokens: &[TokenId], of: &str) -> usize {
        let of: String = units::words(of).map(|w| format!(" {}", w.text)).chain([" ".to_owned()]).collect();
        let stands = |from: usize, to: usize| {
            let before = self.tokenizer.decode(&tokens[..from]);
            // A character that is not complete may become part of the word before it.
            let text = self.tokenizer.decode(&tokens[..to]).trim_end_matches('\u{fffd}').to_owned();
            let words: Vec<_> = units::words(&text).filter(|w| w.at.start >= before.len()).collect();
            // The last word may go on, unless something stands behind it.
            let complete = words.last().is_some_and(|w| w.at.end < text.len());
            let end = if complete { " " } else { "" };
            let run: String = words.iter().map(|w| format!(" {}", w.text)).chain([end.to_owned()]).collect();
            // What is mostly punctuation is let pass: here, where two tokens without a letter follow each other.
            let has_letter = |token: &TokenId| self.tokenizer.decode(&[*token]).chars().any(char::is_alphanumeric);
            let dense = tokens[from..to].windows(2).all(|two| two.iter().any(has_letter));
            let cuts = |w: units::Word| w.at.start < before.len() && before.len() < w.at.end;
            let n_complete = words.len() - usize::from(!complete && !words.is_empty());
            dense && n_complete > 2 && !units::words(&text).any(cuts) && of.contains(&run)
        };
        let windows = (prompt + 1..=tokens.len()).flat_map(|to| (0..to).map(move |from| (from, to)));
        windows.filter(|(from, to)| stands(*from, *to)).map(|(from, to)| to - from).max().unwrap_or(0)
    }
}

fn limit(n: usize) -> GuardConfig {
    GuardConfig { restricted: n, ..GuardConfig::default() }
}

fn text(rng: &mut ChaCha8Rng, n: usize) -> String {
    let words: Vec<&str> = (0..n).map(|_| *WORDS.choose(rng).unwrap()).collect();
    words.join(if rng.random_bool(0.5) { " " } else { ", " })
}

#[test]
fn no_run_is_longer_than_the_limit() {
    let (mut without, mut redrawn, mut n_shown) = (0, 0, 0);
    for seed in 0..12 {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let world = World::new();
        let held = text(&mut rng, 60);
        world.add(&source("held", false), &held);
        let n = rng.random_range(8..24);
        let prompt: String = held.split_inclusive(' ').take(rng.random_range(1..6)).collect();
        let Made { n_prompt, tokens, .. } = world.generate(limit(0), &prompt, seed);
        without = without.max(world.longest_run(n_prompt, &tokens, &held));
        let Made { n_prompt, tokens, shown, finished } = world.generate(limit(n), &prompt, seed);
        let longest = world.longest_run(n_prompt, &tokens, &held);
        assert!(longest <= n, "seed {seed}: a run of {longest} tokens, the limit is {n}");
        assert!(matches!(finished.reason, FinishReason::Length | FinishReason::ContextFull), "seed {seed}");
        redrawn += finished.usage.refused_tokens;
        // What is shown beside a token must not give the run away either.
        for (i, alternatives) in shown.iter().enumerate() {
            n_shown += alternatives.len();
            for alternative in alternatives {
                let text = [&tokens[..n_prompt + i], &[*alternative]].concat();
                assert!(world.longest_run(n_prompt + i, &text, &held) <= n, "seed {seed}: an alternative at {i}");
            }
        }
    }
    assert!(without > 40 && redrawn > 9 && n_shown > 500, "the guard had something to do: {without}, {redrawn}");
}

#[test]
fn what_guards_is_what_is_in_the_store_and_may_not_leave() {
    let held = "the keeper of the lamp and the harbour wrote the tide book of the third day of the long winter by the light of the lamp";
    let prompt = "the keeper of the lamp and";
    let world = World::new();
    world.add(&source("held", false), held);
    let copied = |guard: GuardConfig| {
        let Made { n_prompt, tokens, .. } = world.generate(guard, prompt, 1);
        world.longest_run(n_prompt, &tokens, held)
    };
    assert_eq!(
        (copied(limit(0)) > 30, copied(limit(16)) <= 16),
        (true, true),
        "{} {}",
        copied(limit(0)),
        copied(limit(16))
    );
    // Each tier has its own limit.
    assert!(copied(GuardConfig { permissive: 4, ..limit(0) }) > 30);

    let end = GuardConfig { on_run: OnRun::End, ..limit(16) };
    let Made { n_prompt, tokens, finished, .. } = world.generate(end, prompt, 1);
    assert_eq!((finished.reason, finished.usage.refused_tokens), (FinishReason::VerbatimLimit, 1));
    assert!(world.longest_run(n_prompt, &tokens, held) <= 16);
    let Made { finished, .. } = world.generate(GuardConfig { max_redraws: 0, ..limit(16) }, prompt, 1);
    assert_eq!(finished.reason, FinishReason::VerbatimLimit);

    // A source that may be reproduced holds it too.
    world.add(&source("free", true), held);
    assert!(copied(limit(16)) <= 16, "the most restrictive statement wins");
    assert!(copied(GuardConfig { free_elsewhere: true, ..limit(16) }) > 30);
    world.store.by("test").withdraw(&Selection::Source("held".parse().unwrap())).unwrap();
    assert!(copied(limit(16)) > 30, "what was withdrawn guards nothing");
}
