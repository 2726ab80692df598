//! Documents → keys.

use std::ops::Range;
use std::sync::atomic::AtomicBool;

use silo_core::{LanguageModel, Matrix, ModelError, Positions, SequenceStep, TokenId};

use crate::Recipe;

/// Tokens that one step of the model works on.
const STEP_TOKENS: usize = 1024;

/// The keys of one document.
#[derive(Debug, Clone, PartialEq)]
pub struct Encoded {
    /// A row per entry; entry e's value is token `first_value + e` of the document.
    pub keys: Matrix,
    /// 0 for a model whose texts begin with a special token, which predicts the first one; else 1.
    pub first_value: usize,
}

/// One run of the model over part of a document.
struct Window {
    document: usize,
    inputs: Range<usize>,
    /// Where in the window the keys begin that no window before it has given.
    first_key: usize,
}

/// Windows over `n` inputs. Each position's key comes from the first window that holds it, and sees the window up to itself.
fn windows(document: usize, n: usize, recipe: &Recipe) -> impl Iterator<Item = Window> {
    let (window, stride) = (recipe.window_tokens, recipe.stride_tokens);
    let mut covered = 0;
    (0..).map(move |i| i * stride).map_while(move |start| {
        let end = n.min(start + window);
        if covered >= n {
            return None;
        }
        let first_key = covered - start;
        covered = end;
        Some(Window { document, inputs: start..end, first_key })
    })
}

/// Encodes documents, each alone: a key depends on its document, the model and the recipe, and on nothing else.
pub fn encode(
    model: &dyn LanguageModel,
    beginning_of_text: Option<TokenId>,
    documents: &[&[TokenId]],
    recipe: &Recipe,
    interrupt: &AtomicBool,
) -> Result<Vec<Encoded>, ModelError> {
    let first_value = usize::from(beginning_of_text.is_none());
    let inputs: Vec<Vec<TokenId>> = documents.iter().map(|tokens| inputs(beginning_of_text, tokens)).collect();
    let key_dim = model.card().key_dim;
    let mut out: Vec<Encoded> =
        documents.iter().map(|_| Encoded { keys: Matrix { n_cols: key_dim, data: Vec::new() }, first_value }).collect();
    let all: Vec<Window> = inputs.iter().enumerate().flat_map(|(d, i)| windows(d, i.len(), recipe)).collect();
    for batch in batches(&all) {
        let mut caches: Vec<_> = batch.iter().map(|_| model.new_cache()).collect();
        let mut steps: Vec<SequenceStep<'_>> = (caches.iter_mut().zip(batch))
            .map(|(cache, w)| SequenceStep {
                cache: cache.as_mut(),
                tokens: &inputs[w.document][w.inputs.clone()],
                logits: Positions::None,
                keys: Positions::From(w.first_key),
            })
            .collect();
        for (window, output) in batch.iter().zip(model.step(&mut steps, interrupt)?) {
            out[window.document].keys.data.extend_from_slice(&output.keys.data);
        }
    }
    Ok(out)
}

/// What the model reads: the beginning of text, if there is one, and all tokens but the last, which has no next one.
fn inputs(beginning_of_text: Option<TokenId>, tokens: &[TokenId]) -> Vec<TokenId> {
    match tokens.split_last() {
        Some((_, before)) => beginning_of_text.into_iter().chain(before.iter().copied()).collect(),
        None => Vec::new(),
    }
}

/// Cuts the windows into steps of about [`STEP_TOKENS`].
fn batches(windows: &[Window]) -> impl Iterator<Item = &[Window]> {
    let mut rest = windows;
    std::iter::from_fn(move || {
        let mut tokens = 0;
        let fits = rest.iter().take_while(|w| {
            tokens += w.inputs.len();
            tokens <= STEP_TOKENS
        });
        let n = fits.count().max(1).min(rest.len());
        let (batch, after) = rest.split_at(n);
        rest = after;
        (!batch.is_empty()).then_some(batch)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use silo_core::KeySite;
    use silo_testkit::ScriptedModel;

    use super::*;
    use crate::KeyType;

    fn recipe(window_tokens: usize, stride_tokens: usize) -> Recipe {
        let (key_site, key_type) = (KeySite::default(), KeyType::F32);
        let bm25 = silo_lexical::Bm25::default();
        let (passage_tokens, passage_stride_tokens) = (4, 2);
        Recipe {
            name: "test".into(),
            key_site,
            key_type,
            window_tokens,
            stride_tokens,
            passage_tokens,
            passage_stride_tokens,
            bm25,
            ivf: None,
        }
    }

    proptest! {
        #[test]
        fn every_position_has_one_key(n in 0usize..200, window in 2usize..40, stride in 1usize..40) {
            prop_assume!(stride <= window);
            let mut next = 0;
            for w in windows(0, n, &recipe(window, stride)) {
                prop_assert!(w.inputs.len() <= window);
                prop_assert_eq!(w.inputs.start + w.first_key, next);
                prop_assert!(next == 0 || w.first_key >= window - stride);
                next = w.inputs.end;
            }
            prop_assert_eq!(next, n);
        }

        #[test]
        fn keys_are_those_of_each_document_alone(
            documents in prop::collection::vec(prop::collection::vec(1u32..257, 0..70), 0..6), bos in any::<bool>(),
        ) {
            let model = ScriptedModel::new(64);
            let bos = bos.then_some(0);
            let slices: Vec<&[TokenId]> = documents.iter().map(Vec::as_slice).collect();
            let encoded = encode(&model, bos, &slices, &recipe(16, 8), &AtomicBool::new(false)).unwrap();
            for (tokens, encoded) in documents.iter().zip(&encoded) {
                prop_assert_eq!(encoded.keys.n_rows(), tokens.len().saturating_sub(encoded.first_value));
                for (e, key) in encoded.keys.rows().enumerate() {
                    let value = encoded.first_value + e;
                    let before = |back: usize| match value.checked_sub(back) {
                        Some(i) => tokens[i],
                        None => 0, // the beginning of text, or the scripted model's idea of nothing
                    };
                    prop_assert_eq!(key, &ScriptedModel::key(before(2), before(1))[..]);
                }
            }
        }
    }
}
