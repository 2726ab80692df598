//! The contract of [`LanguageModel`].

use std::sync::atomic::AtomicBool;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use silo_core::{LanguageModel, Matrix, ModelError, Positions, SequenceCache, SequenceStep, StepOutput, TokenId};

static GO_ON: AtomicBool = AtomicBool::new(false);

/// Checks the contract. `tolerance` is 0 for implementations that promise the same bits in any batch, else the greatest
/// difference of a logit that they state.
pub fn language_model(model: &dyn LanguageModel, tolerance: f32) {
    let suite = Suite { model, tolerance };
    suite.a_batch_gives_each_what_it_gets_alone();
    suite.cutting_a_sequence_into_steps_changes_nothing();
    suite.positions_are_those_asked_for();
    suite.a_truncated_cache_forgets();
    suite.errors_leave_caches_alone();
}

struct Suite<'a> {
    model: &'a dyn LanguageModel,
    tolerance: f32,
}

impl Suite<'_> {
    fn random_tokens(&self, n: usize, seed: u64) -> Vec<TokenId> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        (0..n).map(|_| rng.random_range(0..self.model.card().vocab_size as TokenId)).collect()
    }

    fn run(&self, cache: &mut dyn SequenceCache, tokens: &[TokenId]) -> StepOutput {
        let all = Positions::From(0);
        let mut batch = [SequenceStep { cache, tokens, logits: all, keys: all }];
        self.model.step(&mut batch, &GO_ON).expect("a step").remove(0)
    }

    fn alone(&self, tokens: &[TokenId]) -> StepOutput {
        self.run(self.model.new_cache().as_mut(), tokens)
    }

    #[track_caller]
    fn same(&self, a: &[f32], b: &[f32]) {
        assert_eq!(a.len(), b.len());
        let worst = a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(worst <= self.tolerance, "values differ by {worst}");
    }

    #[track_caller]
    fn same_rows(&self, matrix: &Matrix, expected: &Matrix, first: usize) {
        self.same(&matrix.data, &expected.data[first * expected.n_cols..][..matrix.data.len()]);
    }

    fn a_batch_gives_each_what_it_gets_alone(&self) {
        let longest = self.model.card().context_tokens.min(33);
        let lengths = [1, 2, longest, 5, 17.min(longest), 3, 8, 1];
        let sequences: Vec<_> = lengths.iter().enumerate().map(|(i, &n)| self.random_tokens(n, i as u64)).collect();
        let mut caches: Vec<_> = sequences.iter().map(|_| self.model.new_cache()).collect();
        let all = Positions::From(0);
        let mut batch: Vec<_> = (caches.iter_mut().zip(&sequences))
            .map(|(cache, tokens)| SequenceStep { cache: cache.as_mut(), tokens, logits: all, keys: all })
            .collect();
        let together = self.model.step(&mut batch, &GO_ON).expect("a step");
        for (tokens, output) in sequences.iter().zip(&together) {
            let alone = self.alone(tokens);
            assert_eq!(output.logits.n_rows(), tokens.len());
            self.same(&output.logits.data, &alone.logits.data);
            self.same(&output.keys.data, &alone.keys.data);
        }
    }

    fn cutting_a_sequence_into_steps_changes_nothing(&self) {
        let tokens = self.random_tokens(self.model.card().context_tokens.min(24), 7);
        let whole = self.alone(&tokens);
        for cut in [1, 3, tokens.len() - 1] {
            let mut cache = self.model.new_cache();
            let mut done = 0;
            for part in tokens.chunks(cut) {
                let output = self.run(cache.as_mut(), part);
                self.same_rows(&output.logits, &whole.logits, done);
                self.same_rows(&output.keys, &whole.keys, done);
                done += part.len();
                assert_eq!(cache.len(), done);
            }
        }
    }

    fn positions_are_those_asked_for(&self) {
        let tokens = self.random_tokens(6, 9);
        let whole = self.alone(&tokens);
        let cases = [
            (Positions::Last, Positions::None, 5, 6),
            (Positions::From(4), Positions::From(2), 4, 2),
            (Positions::None, Positions::Last, 6, 5),
        ];
        for (logits, keys, first_logits, first_keys) in cases {
            let mut cache = self.model.new_cache();
            let mut batch = [SequenceStep { cache: cache.as_mut(), tokens: &tokens, logits, keys }];
            let output = self.model.step(&mut batch, &GO_ON).expect("a step").remove(0);
            assert_eq!((output.logits.n_rows(), output.keys.n_rows()), (6 - first_logits, 6 - first_keys));
            self.same_rows(&output.logits, &whole.logits, first_logits);
            self.same_rows(&output.keys, &whole.keys, first_keys);
        }
    }

    fn a_truncated_cache_forgets(&self) {
        let tokens = self.random_tokens(9, 11);
        let whole = self.alone(&tokens);
        let mut cache = self.model.new_cache();
        self.run(cache.as_mut(), &tokens[..4]);
        self.run(cache.as_mut(), &self.random_tokens(5, 12));
        cache.truncate(4);
        assert_eq!(cache.len(), 4);
        let output = self.run(cache.as_mut(), &tokens[4..]);
        self.same_rows(&output.logits, &whole.logits, 4);
        cache.truncate(0);
        let again = self.run(cache.as_mut(), &tokens);
        self.same(&again.logits.data, &whole.logits.data);
    }

    fn errors_leave_caches_alone(&self) {
        let card = self.model.card();
        let tokens = self.random_tokens(4, 13);
        let mut cache = self.model.new_cache();
        self.run(cache.as_mut(), &tokens);
        let too_long = vec![0; card.context_tokens - 3];
        let unknown = [card.vocab_size as TokenId];
        let stop = AtomicBool::new(true);
        let mut fails = |tokens: &[TokenId], interrupt: &AtomicBool| {
            let all = Positions::From(0);
            let mut batch = [SequenceStep { cache: cache.as_mut(), tokens, logits: all, keys: all }];
            let error = self.model.step(&mut batch, interrupt).expect_err("an error");
            assert_eq!(cache.len(), 4);
            error
        };
        assert!(matches!(fails(&too_long, &GO_ON), ModelError::ContextOverflow { .. }));
        assert!(matches!(fails(&unknown, &GO_ON), ModelError::UnknownToken { .. }));
        assert!(matches!(fails(&[], &GO_ON), ModelError::Misuse(_)));
        assert!(matches!(fails(&tokens, &stop), ModelError::Interrupted));
        let mut fresh = self.model.new_cache();
        self.run(fresh.as_mut(), &tokens);
        let next = self.random_tokens(3, 14);
        let (after, clean) = (self.run(cache.as_mut(), &next), self.run(fresh.as_mut(), &next));
        self.same(&after.logits.data, &clean.logits.data);
    }
}
