//! A calibration whose weight goes by distance: against the rule worked out by hand, and after its sources are gone.

use std::sync::atomic::AtomicBool;

use silo_core::{Calibration, Filter, KnnParameters, Selection, TokenId, TrustByDistance, mixture};
use silo_engine::{
    Depth, Engine, EngineConfig, Event, Evidence, FinishReason, GenerateRequest, InForce, KnnOverrides, Mode,
    Retrieval, ScoreRequest,
};

use super::world::{World, source};

const TEXT: &str = "the thing is nothing without the other thing and the other room is the thing about the room";
const TUNED: KnnParameters = KnnParameters { k: 12, knn_weight: 0.8, knn_temperature: 3.0 };
const NEUTRAL: KnnParameters = KnnParameters { k: 7, knn_weight: 0.3, knn_temperature: 5.0 };

/// Two sources that have most words in common.
fn two_sources() -> World {
    let world = World::new();
    world.add(&source("one", true), "the other thing is the room without the traveller and nothing about it");
    world.add(&source("two", true), "nothing is about the room; the thing and the other traveller are the thing");
    world
}

impl World {
    fn tokens(&self) -> Vec<TokenId> {
        self.tokenizer.encode(TEXT).unwrap()
    }

    fn request(&self, knn: KnnOverrides, filter: Filter) -> ScoreRequest {
        let retrieval = Retrieval { mode: Mode::Knn, knn, filter, ..Retrieval::default() };
        ScoreRequest { depth: Some(Depth::Sources), ..ScoreRequest::new(self.tokens(), retrieval) }
    }

    fn evidence(&self) -> Vec<Evidence> {
        let knn = KnnOverrides { k: Some(TUNED.k), ..KnnOverrides::default() };
        let request = self.request(knn, Filter::default());
        self.engine(neutral(), None).evidence(&request, &[], &AtomicBool::new(false)).unwrap()
    }

    /// Three steps with about equally many tokens of the text in each.
    fn trust(&self) -> TrustByDistance {
        let mut nearest: Vec<f32> = self.evidence().iter().map(|e| e.neighbors[0].0).collect();
        nearest.sort_by(f32::total_cmp);
        let n = nearest.len();
        TrustByDistance { ends: vec![nearest[n / 3], nearest[2 * n / 3]], parts: vec![1.0, 0.4, 0.0] }
    }

    fn calibrated(&self, tuned_on: &[&str]) -> Engine {
        let trust = self.trust();
        let calibration = Calibration {
            model: self.model.card().hash,
            tuned_on: tuned_on.iter().map(|name| name.parse().unwrap()).collect(),
            tuned: TUNED,
            trust_by_distance: Some(trust),
            neutral: NEUTRAL,
        };
        self.engine(neutral(), Some(calibration))
    }
}

fn neutral() -> EngineConfig {
    EngineConfig { knn: NEUTRAL, ..EngineConfig::default() }
}

fn steps(in_force: &InForce) -> usize {
    in_force.trust.as_ref().map_or(0, |trust| trust.parts.len())
}

fn never() -> AtomicBool {
    AtomicBool::new(false)
}

#[test]
fn the_weight_at_a_token_is_what_its_nearest_neighbour_is_trusted_with() {
    let world = two_sources();
    let (trust, evidence, engine) = (world.trust(), world.evidence(), world.calibrated(&["one", "two"]));
    let scored = engine.score(&world.request(KnnOverrides::default(), Filter::default()), &never()).unwrap();
    assert_eq!((scored.in_force.knn, steps(&scored.in_force)), (TUNED, 3));
    let mut seen = [0; 3];
    for (token, e) in scored.tokens.iter().zip(&evidence) {
        let part = trust.at(e.neighbors[0].0);
        let p_knn = e.neighbor_probability(TUNED.k, TUNED.knn_temperature).unwrap();
        let expected = mixture::mix_one(e.parametric_log_probability, p_knn, part * TUNED.knn_weight);
        assert!((token.log_probability - expected).abs() < 1e-12, "{token:?}, {expected}");
        assert!((token.knn_weight - part * TUNED.knn_weight).abs() < 1e-12);
        if part == 0.0 {
            assert_eq!(token.log_probability.to_bits(), e.parametric_log_probability.to_bits(), "the model's own");
        }
        let credit = token.credit.as_ref().unwrap();
        let shares = credit.parametric + credit.sources.iter().map(|(_, share)| share).sum::<f64>();
        assert!((shares - 1.0).abs() < 1e-12, "{credit:?}");
        seen[trust.parts.iter().position(|p| *p == part).unwrap()] += 1;
    }
    assert!(seen.iter().all(|n| *n > 0), "{seen:?}");
}

#[test]
fn who_sets_the_weight_gets_it_at_every_token() {
    let world = two_sources();
    let knn = KnnOverrides { knn_weight: Some(0.6), ..KnnOverrides::default() };
    let request = world.request(knn, Filter::default());
    let scored = world.calibrated(&["one", "two"]).score(&request, &never()).unwrap();
    assert_eq!(steps(&scored.in_force), 0);
    let parameters = KnnParameters { knn_weight: 0.6, ..TUNED };
    for (token, e) in scored.tokens.iter().zip(world.evidence()) {
        assert!((token.log_probability - e.log_probability(&parameters)).abs() < 1e-12);
    }
}

/// Without a source the nearest neighbour is another one, and so is the weight: the bound says by how much.
#[test]
fn comparisons_are_bounded_and_equal_what_is_seen_without_the_source() {
    let world = two_sources();
    let engine = world.calibrated(&["one"]);
    let two = "two".parse().unwrap();
    let request = world.request(KnnOverrides::default(), Filter::default());
    let compared = engine.compare_without(&request, &[two], &never()).unwrap();
    let filter = Filter { deny_sources: vec!["two".parse().unwrap()], ..Filter::default() };
    let without = engine.score(&world.request(KnnOverrides::default(), filter), &never()).unwrap();
    assert_eq!((steps(&compared.with), steps(&compared.without)), (3, 3));
    let mut n_beyond = 0;
    for (token, other) in compared.tokens.iter().zip(&without.tokens) {
        assert_eq!(token.without.to_bits(), other.log_probability.to_bits());
        let bound = token.bound.expect("the same rule holds with and without");
        assert!(token.total_variation <= bound + 1e-12, "{token:?}");
        n_beyond += usize::from(token.total_variation > TUNED.knn_weight * token.mass + 1e-12);
    }
    assert!(n_beyond > 0, "at some token the change of the weight counts");
}

#[test]
fn what_was_tuned_on_a_source_goes_with_it() {
    let world = two_sources();
    let engine = world.calibrated(&["one", "two"]);
    let one = Selection::Source("one".parse().unwrap());
    world.store.by("test").withdraw(&one).unwrap();
    let scored = engine.score(&world.request(KnnOverrides::default(), Filter::default()), &never()).unwrap();
    assert_eq!((scored.in_force.knn, steps(&scored.in_force)), (NEUTRAL, 0));
}

/// A stream that cannot see a source goes on without what was tuned on it.
#[test]
fn streams_do_not_keep_what_was_tuned_on_what_they_cannot_see() {
    let world = two_sources();
    let config = EngineConfig { stream_buffer_tokens: 2, ..neutral() };
    let calibration = Calibration {
        model: world.model.card().hash,
        tuned_on: ["one", "two"].map(|name| name.parse().unwrap()).to_vec(),
        tuned: TUNED,
        trust_by_distance: Some(world.trust()),
        neutral: NEUTRAL,
    };
    let engine = world.engine(config, Some(calibration));
    let mut request = GenerateRequest::new(world.tokens(), 30);
    let filter = Filter { deny_sources: vec!["one".parse().unwrap()], ..Filter::default() };
    request.retrieval = Retrieval { mode: Mode::Knn, filter, ..Retrieval::default() };
    let mut generation = engine.generate(request).unwrap();
    assert!(matches!(generation.blocking_next(), Some(Event::Token(..))));
    // The stream is narrow: most of it is not made yet.
    world.store.by("test").withdraw(&Selection::Source("one".parse().unwrap())).unwrap();
    loop {
        match generation.blocking_next().unwrap() {
            Event::Token(..) => {}
            Event::Finished(finished) => {
                assert_eq!((finished.in_force.knn, steps(&finished.in_force)), (NEUTRAL, 0));
                assert_ne!(finished.reason, FinishReason::SourceRemoved, "what it sees is all there");
                break;
            }
            Event::Failed(error) => panic!("{error}"),
        }
    }
}
