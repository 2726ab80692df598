//! How much a source may weigh, and what a passage does: against searches and readings made apart.

use std::collections::HashMap;

use silo_proto::v1;
use silo_proto::v1::compare_without_request::Compared as Ask;
use silo_proto::v1::compare_without_response::Compared;
use tonic::Code;

use super::attribution::{KNN, TEXTS, close, credited, score, shard_of_one, two_sources};
use super::service::{Service, generate, start};

const NAMES: [&str; 3] = ["one", "two", "three"];
const TEXT: &str = "the thing is nothing without the other thing and the other room is the thing about the room";

async fn three_sources() -> Service {
    let mut s = two_sources().await;
    s.add("three", &["the thing and the traveller", "the other traveller"]).await;
    s
}

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|n| (*n).to_owned()).collect()
}

/// log p of each token of a text, with some of the sources only.
async fn scored(s: &mut Service, text: &str, mode: v1::RetrievalMode, filter: v1::Filter) -> Vec<f64> {
    let mut request = score(text, mode);
    let retrieval = request.retrieval.as_mut().unwrap();
    (retrieval.filter, retrieval.knn_weight) = (Some(filter), Some(WEIGHT));
    s.generation.score(request).await.unwrap().into_inner().tokens.iter().map(|t| t.log_probability).collect()
}

const WEIGHT: f64 = 0.8;

/// Part of the neighbour softmax that each source has at each token, without a cap.
async fn masses(s: &mut Service, text: &str) -> HashMap<&'static str, Vec<f64>> {
    let mut masses = HashMap::new();
    for name in NAMES {
        let mut ask = score(text, KNN);
        ask.retrieval.as_mut().unwrap().knn_weight = Some(WEIGHT);
        let request = v1::CompareWithoutRequest { sources: vec![name.to_owned()], compared: Some(Ask::Score(ask)) };
        let Some(Compared::Score(found)) = s.attribution.compare_without(request).await.unwrap().into_inner().compared
        else {
            panic!("a text was asked for")
        };
        masses.insert(name, found.tokens.iter().map(|t| t.mass).collect::<Vec<_>>());
    }
    masses
}

/// A source above the cap is searched for alone and weighs just the cap; the others are searched for without it.
#[tokio::test]
async fn a_cap_holds_sources_as_searches_apart_say() {
    let (mut s, text) = (three_sources().await, TEXT);
    let mut alone = HashMap::new();
    for name in NAMES {
        let filter = v1::Filter { allow_sources: names(&[name]), ..Default::default() };
        alone.insert(name, scored(&mut s, text, KNN, filter).await);
    }
    let masses = masses(&mut s, text).await;
    for cap in [0.2, 0.4, 0.6, 1.0] {
        let mut request = score(text, KNN);
        let retrieval = request.retrieval.as_mut().unwrap();
        (retrieval.knn_weight, retrieval.influence_cap) = (Some(WEIGHT), Some(cap));
        request.attribution = v1::AttributionDetail::PerToken.into();
        let found = s.generation.score(request).await.unwrap().into_inner();
        assert!(close(found.in_force.unwrap().influence_cap, cap));
        let (mut n_capped, mut n_left_to_the_model) = (0, 0);
        for (i, token) in found.tokens.iter().enumerate() {
            let held: Vec<&str> = token.capped_sources.iter().map(String::as_str).collect();
            for name in NAMES.iter().filter(|name| masses[*name][i] > cap) {
                assert!(held.contains(name), "{name} has {} at {token:?}", masses[name][i]);
            }
            let rest = 1.0 - cap * held.len() as f64;
            let filter = v1::Filter { deny_sources: names(&held), ..Default::default() };
            let mode = if held.len() == NAMES.len() { v1::RetrievalMode::Parametric } else { KNN };
            let without = scored(&mut s, text, mode, filter).await[i];
            let expected = held.iter().map(|name| cap * alone[name][i].exp()).sum::<f64>() + rest * without.exp();
            assert!((token.log_probability - expected.ln()).abs() < 1e-9, "{token:?}, {expected}");
            let shares: f64 = token.shares.iter().map(|share| share.share).sum();
            assert!((0.0..=1.0 + 1e-9).contains(&shares));
            n_capped += held.len();
            n_left_to_the_model += usize::from(held.len() == NAMES.len());
        }
        assert_eq!(n_capped > 0, cap < 1.0, "{cap}");
        assert_eq!(n_left_to_the_model > 0, cap < 0.3, "{cap}");
        if cap > 0.5 {
            assert!(found.tokens.iter().all(|t| NAMES.iter().all(|name| {
                t.capped_sources.iter().any(|held| held == name) == (masses[name][t.position as usize] > cap)
            })));
        }
    }
    for wrong in [0.0, 0.001, 1.5, f64::NAN] {
        let mut request = score(text, KNN);
        request.retrieval.as_mut().unwrap().influence_cap = Some(wrong);
        assert_eq!(s.generation.score(request).await.unwrap_err().code(), Code::InvalidArgument);
    }
}

/// The bound holds with a cap as well, and what is compared is still what a withdrawal brings.
#[tokio::test]
async fn what_is_compared_under_a_cap_is_what_a_withdrawal_brings() {
    let (mut s, text) = (three_sources().await, TEXT);
    let capped = |cap| {
        let mut ask = score(text, KNN);
        ask.retrieval.as_mut().unwrap().influence_cap = Some(cap);
        ask
    };
    let mut compared = Vec::new();
    for cap in [0.3, 0.5, 0.7, 0.9] {
        let request = v1::CompareWithoutRequest { sources: names(&["one"]), compared: Some(Ask::Score(capped(cap))) };
        let found = s.attribution.compare_without(request).await.unwrap().into_inner().compared;
        let Some(Compared::Score(found)) = found else { panic!("a text was asked for") };
        assert!(found.tokens.iter().all(|t| t.total_variation <= t.bound() + 1e-12 && t.bound.is_some()), "{found:?}");
        compared.push((cap, found));
    }
    let shard = shard_of_one(&mut s).await;
    s.remove(shard).await;
    for (cap, found) in compared {
        let after = s.generation.score(capped(cap)).await.unwrap().into_inner();
        let without = found.tokens.iter().map(|t| t.log_probability_without.to_bits());
        assert!(after.tokens.iter().map(|t| t.log_probability.to_bits()).eq(without), "{cap}");
    }
}

#[tokio::test]
async fn a_response_says_how_often_the_cap_held_a_source() {
    let mut s = two_sources().await;
    let mut request = credited("the thing", KNN, v1::AttributionDepth::Sources);
    request.retrieval.as_mut().unwrap().influence_cap = Some(0.3);
    let whole = s.generation.generate(request).await.unwrap().into_inner();
    let f = whole.finished.unwrap();
    assert!(!f.capped.is_empty());
    for source in &f.capped {
        let n = whole.tokens.iter().filter(|t| t.capped_sources.contains(&source.source)).count();
        assert_eq!(source.n_tokens, n as u64);
    }
    // Each that is held is searched for alone, and the rest again in each round.
    let usage = f.usage.unwrap();
    let held: u64 = f.capped.iter().map(|source| source.n_tokens).sum();
    assert!(usage.neighbor_searches > usage.new_tokens + held, "{usage:?}");
    // It is said without being asked for; and kept with the answer.
    let ask = v1::AttributeResponseRequest { response_id: f.response_id };
    let kept = s.attribution.attribute_response(ask).await.unwrap().into_inner();
    assert!(kept.tokens.iter().map(|t| &t.capped_sources).eq(whole.tokens.iter().map(|t| &t.capped_sources)));
    let mut plain = generate("the thing", 16, KNN);
    plain.attribution = v1::AttributionDetail::Unspecified.into();
    plain.retrieval.as_mut().unwrap().influence_cap = Some(0.3);
    let f = s.generation.generate(plain).await.unwrap().into_inner().finished.unwrap();
    assert!(f.sources.is_empty() && !f.capped.is_empty());
}

/// Without its only passage a text is read as without a store; with one of two left out, as if the other stood there alone.
#[tokio::test]
async fn a_passage_left_out_is_a_passage_that_was_not_there() {
    let mut s = start().await;
    s.add("one", &TEXTS[0][..1]).await;
    s.add("two", &TEXTS[1][..1]).await;
    let text = "the thing is nothing without the other thing and the other room is the thing";
    for (mode, plain) in
        [(v1::RetrievalMode::Context, v1::RetrievalMode::Parametric), (v1::RetrievalMode::KnnAndContext, KNN)]
    {
        let mut one_passage: Vec<v1::ScoredToken> = Vec::new();
        for passages in [1, 2] {
            let max_passage_tokens = Some(6);
            let context =
                Some(v1::ContextParameters { passages: Some(passages), max_passage_tokens, ..Default::default() });
            let ask = |mode, filter: v1::Filter| {
                let mut request = score(text, mode);
                let retrieval = request.retrieval.as_mut().unwrap();
                (retrieval.context, retrieval.filter) = (context, Some(filter));
                v1::ScoreRequest { leave_one_passage_out: retrieval.mode() == mode && mode != plain, ..request }
            };
            let found = s.generation.score(ask(mode, v1::Filter::default())).await.unwrap().into_inner();
            let alone = s.generation.score(ask(plain, v1::Filter::default())).await.unwrap().into_inner();
            let mut n = 0;
            for (token, alone) in found.tokens.iter().zip(&alone.tokens).filter(|(t, _)| !t.left_out.is_empty()) {
                n += 1;
                assert!(token.left_out.len() <= passages as usize);
                if token.left_out.len() == 1 {
                    assert_eq!(token.left_out[0].log_probability.to_bits(), alone.log_probability.to_bits());
                    assert_ne!(token.left_out[0].log_probability, token.log_probability);
                }
            }
            assert!(n > 5, "{mode:?}");
            // Of two, the better one stands nearer to the text: without the other, it is all that is asked for if one is.
            let both: Vec<_> = found.tokens.iter().filter(|t| t.left_out.len() == 2).collect();
            assert_eq!(both.len() > 5, passages == 2, "{mode:?}");
            for token in both {
                let best_alone = &one_passage[token.position as usize];
                assert_eq!(token.left_out[0].log_probability.to_bits(), best_alone.log_probability.to_bits());
            }
            one_passage = found.tokens;
        }
    }
    let refused = v1::ScoreRequest { leave_one_passage_out: true, ..score(text, KNN) };
    assert_eq!(s.generation.score(refused).await.unwrap_err().code(), Code::InvalidArgument);
    let mut many = v1::ScoreRequest { leave_one_passage_out: true, ..score(text, v1::RetrievalMode::Context) };
    let compared = Some(Ask::Score(many.clone()));
    let refused = v1::CompareWithoutRequest { sources: vec!["one".into()], compared };
    assert_eq!(s.attribution.compare_without(refused).await.unwrap_err().code(), Code::InvalidArgument);
    many.retrieval.as_mut().unwrap().context = Some(v1::ContextParameters { passages: Some(5), ..Default::default() });
    assert_eq!(s.generation.score(many).await.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test]
async fn a_text_is_made_with_and_without_each_of_its_passages_at_once() {
    let mut s = two_sources().await;
    let mut request = generate("the thing is nothing without", 12, v1::RetrievalMode::Context);
    request.leave_one_passage_out = true;
    let context = v1::ContextParameters {
        passages: Some(2),
        stride_tokens: Some(4),
        max_passage_tokens: Some(6),
        ..Default::default()
    };
    request.retrieval.as_mut().unwrap().context = Some(context);
    let plain = v1::GenerateRequest { leave_one_passage_out: false, ..request.clone() };
    let whole = s.generation.generate(request).await.unwrap().into_inner();
    let as_ever = s.generation.generate(plain).await.unwrap().into_inner();
    assert_eq!(whole.text, as_ever.text, "it is only looked at");
    assert!(as_ever.tokens.iter().all(|t| t.left_out.is_empty()) && as_ever.finished.unwrap().passages.is_empty());
    let mut gains = HashMap::<(String, u32), (f64, u64)>::new();
    for token in &whole.tokens {
        assert_eq!(token.left_out.len(), 2);
        for one in &token.left_out {
            let (gain, n) = gains.entry((one.document.clone(), one.start)).or_default();
            (*gain, *n) = (*gain + token.log_probability - one.log_probability, *n + 1);
        }
    }
    let totals = whole.finished.unwrap().passages;
    assert_eq!(totals.len(), gains.len());
    assert!(totals.is_sorted_by(|a, b| a.log_probability_gain >= b.log_probability_gain));
    for p in totals {
        let (gain, n) = gains[&(p.document.clone(), p.start)];
        assert!(close(p.log_probability_gain, gain) && p.n_tokens == n && gain != 0.0, "{p:?}");
    }
}
