//! A calibration with a gate: against the formula worked out by hand, and after its sources are gone.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;

use silo_core::{
    Calibration, Filter, Gate, GateTerms, KnnParameters, NeighborQuery, NeighborSearch, Purpose, Selection,
    SnapshotProvider, TokenId, mixture,
};
use silo_engine::{
    Depth, Engine, EngineConfig, Event, Evidence, FinishReason, GenerateRequest, KnnOverrides, Mode, Retrieval,
    Retrieved, ScoreRequest, Sums,
};

use super::world::{World, source};

const TEXT: &str = "the thing is nothing without the other thing and the other room is the thing about the room";
const SHARP: GateTerms =
    GateTerms { bias: 1.0, nearest: -0.9, spread: 0.1, model_entropy: 0.2, neighbor_entropy: -1.0, log_distinct: 0.3 };
const BROAD: GateTerms =
    GateTerms { bias: 1.5, nearest: -0.5, spread: -0.3, model_entropy: 0.1, neighbor_entropy: 0.5, log_distinct: -0.4 };
const GATE: Gate = Gate { sharp: SHARP, broad: BROAD };

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
        let KnnParameters { k, match_tokens, .. } = tuned();
        let knn = KnnOverrides { k: Some(k), match_tokens: Some(match_tokens), ..KnnOverrides::default() };
        let request = self.request(knn, Filter::default());
        self.engine(neutral(), None).evidence(&request, &[], &AtomicBool::new(false)).unwrap()
    }

    fn calibration(&self, tuned_on: &[&str]) -> Calibration {
        Calibration {
            model: self.model.card().hash,
            key_site: self.model.card().key_site,
            tuned_on: tuned_on.iter().map(|name| name.parse().unwrap()).collect(),
            tuned: tuned(),
            neutral: neutral().knn,
        }
    }

    fn calibrated(&self, tuned_on: &[&str]) -> Engine {
        self.engine(neutral(), Some(self.calibration(tuned_on)))
    }
}

fn tuned() -> KnnParameters {
    KnnParameters { match_tokens: 3, match_bonus: 0.8, gate: Some(GATE), ..KnnParameters::new(12, 0.8, 3.0) }
}

fn neutral() -> EngineConfig {
    EngineConfig { knn: KnnParameters::new(7, 0.3, 5.0), ..EngineConfig::default() }
}

fn never() -> AtomicBool {
    AtomicBool::new(false)
}

/// p_knn at a temperature, worked out by hand.
fn p_knn(neighbors: &[Retrieved], temperature: f64) -> BTreeMap<TokenId, f64> {
    let mut p: BTreeMap<TokenId, f64> = BTreeMap::new();
    for n in neighbors {
        let weight = (tuned().match_bonus * f64::from(n.matched) - f64::from(n.distance) / temperature).exp();
        *p.entry(n.value).or_default() += weight;
    }
    let all: f64 = p.values().sum();
    p.values_mut().for_each(|weight| *weight /= all);
    p
}

/// What a token's neighbours say of it with the tuned parameters, and how much they weigh, worked out by hand.
fn by_hand(e: &Evidence) -> (f64, f64) {
    let KnnParameters { k, knn_weight, knn_temperature, .. } = tuned();
    let neighbors = &e.neighbors[..k.min(e.neighbors.len())];
    let at_once = p_knn(neighbors, knn_temperature);
    let entropy: f64 = at_once.values().map(|p| -p * p.ln()).sum();
    let x = |t: GateTerms| {
        let distance = |n: &Retrieved| f64::from(n.distance).sqrt();
        let [nearest, farthest] = [0, neighbors.len() - 1].map(|i| distance(&neighbors[i]));
        let near = t.nearest * nearest + t.spread * (farthest - nearest);
        let n = neighbors.len() as f64;
        let sure = t.model_entropy * e.model_entropy + t.neighbor_entropy * entropy / n.ln();
        (t.bias + near + sure + t.log_distinct * (at_once.len() as f64 / n).ln()).exp()
    };
    let (sharp, broad) = (x(SHARP), x(BROAD));
    let all = 1.0 + sharp + broad;
    let p = |temperature| p_knn(neighbors, temperature).get(&e.token).copied().unwrap_or(0.0);
    let theirs = (sharp * p(knn_temperature / 2.0) + broad * p(knn_temperature * 2.0)) / (sharp + broad);
    (theirs, knn_weight * (sharp + broad) / all)
}

#[test]
fn the_weight_at_a_token_is_what_the_gate_says() {
    let world = two_sources();
    let (evidence, engine) = (world.evidence(), world.calibrated(&["one", "two"]));
    let scored = engine.score(&world.request(KnnOverrides::default(), Filter::default()), &never()).unwrap();
    assert_eq!(scored.in_force.knn, tuned());
    let (mut least, mut greatest) = (1.0f64, 0.0f64);
    for (token, e) in scored.tokens.iter().zip(&evidence) {
        let (p_knn, weight) = by_hand(e);
        let expected = mixture::mix_one(e.parametric_log_probability, p_knn, weight);
        assert!((token.log_probability - expected).abs() < 1e-12, "{token:?}, {expected}");
        assert!((token.log_probability - e.log_probability(&tuned(), &mut Sums::default())).abs() < 1e-12);
        assert!((token.knn_weight - weight).abs() < 1e-12);
        let credit = token.credit.as_ref().unwrap();
        let shares = credit.parametric + credit.sources.iter().map(|(_, share)| share).sum::<f64>();
        assert!((shares - 1.0).abs() < 1e-12, "{credit:?}");
        (least, greatest) = (least.min(weight), greatest.max(weight));
    }
    assert!(least < 0.3 && greatest > 0.5, "the gate tells tokens apart: {least} to {greatest}");
    let matched = evidence.iter().flat_map(|e| &e.neighbors).map(|n| n.matched);
    assert_eq!(matched.max(), Some(3), "some neighbours go on from the same words");
}

/// What is exported for other ways to search: the very keys that are searched with, and what the model says in the same pass.
#[test]
fn what_is_observed_is_what_evidence_is_gathered_with() {
    let world = two_sources();
    let request = world.request(KnnOverrides::default(), Filter::default());
    let observed = world.engine(neutral(), None).observe(&request, &never()).unwrap();
    let evidence = world.evidence();
    assert_eq!(observed.len(), evidence.len());
    let snapshot = world.store.snapshot();
    let mask = snapshot.mask(&Filter::default(), Purpose::Knn);
    for (o, e) in observed.iter().zip(&evidence) {
        assert_eq!(
            (o.token, o.parametric_log_probability, o.model_entropy),
            (e.token, e.parametric_log_probability, e.model_entropy)
        );
        let query = NeighborQuery { snapshot: &snapshot, mask: &mask, key: &o.key, k: tuned().k, text: &[] };
        let found = world.store.neighbors(&[query]).unwrap().remove(0);
        let found: Vec<(f32, TokenId)> = found.iter().map(|n| (n.distance, n.value)).collect();
        assert_eq!(found, e.neighbors.iter().map(|n| (n.distance, n.value)).collect::<Vec<_>>());
    }
    let alone = Retrieval { mode: Mode::Parametric, ..Retrieval::default() };
    let without = ScoreRequest::new(world.tokens(), alone);
    let observed = world.engine(neutral(), None).observe(&without, &never()).unwrap();
    assert!(observed.iter().all(|o| o.key.is_empty()), "a mode without neighbours has no keys");
    let reads = Retrieval { mode: Mode::KnnAndContext, ..Retrieval::default() };
    let refused = world.engine(neutral(), None).observe(&ScoreRequest::new(world.tokens(), reads), &never());
    assert!(refused.unwrap_err().to_string().contains("retrieval.mode"));
}

/// What the model says is read with the text before the token, and so are the tokens that neighbours are compared with: in streams as in scores.
#[test]
fn streams_weigh_as_scores_do() {
    let world = two_sources();
    let engine = world.calibrated(&["one", "two"]);
    let mut request = GenerateRequest::new(world.tokens(), 12);
    request.retrieval = Retrieval { mode: Mode::Knn, ..Retrieval::default() };
    let mut generation = engine.generate(request).unwrap();
    let (mut text, mut drawn) = (world.tokens(), Vec::new());
    while let Some(Event::Token(token, _)) = generation.blocking_next() {
        text.push(token.token);
        drawn.push(token.log_probability);
    }
    let retrieval = Retrieval { mode: Mode::Knn, ..Retrieval::default() };
    let scored = engine.score(&ScoreRequest::new(text, retrieval), &never()).unwrap();
    let of_drawn = &scored.tokens[scored.tokens.len() - drawn.len()..];
    assert_eq!(of_drawn.iter().map(|t| t.log_probability).collect::<Vec<_>>(), drawn);
}

#[test]
fn who_sets_the_weight_gets_it_at_every_token() {
    let world = two_sources();
    let knn = KnnOverrides { knn_weight: Some(0.6), match_bonus: Some(-0.1), ..KnnOverrides::default() };
    let request = world.request(knn, Filter::default());
    let scored = world.calibrated(&["one", "two"]).score(&request, &never()).unwrap();
    let parameters = KnnParameters { knn_weight: 0.6, match_bonus: -0.1, gate: None, ..tuned() };
    assert_eq!(scored.in_force.knn, parameters);
    for (token, e) in scored.tokens.iter().zip(world.evidence()) {
        assert!((token.log_probability - e.log_probability(&parameters, &mut Sums::default())).abs() < 1e-12);
    }
}

/// Without a source other neighbours come, and the gate says something else: the bound says by how much, with a cap and without.
#[test]
fn comparisons_are_bounded_and_equal_what_is_seen_without_the_source() {
    let world = two_sources();
    let engine = world.calibrated(&["one"]);
    let (mut by_gate, mut by_matches) = (0, 0);
    for (match_bonus, cap) in [(-0.5, None), (0.0, None), (2.0, None), (3.0, Some(0.3)), (0.5, Some(0.6))] {
        let asked = |filter| {
            let knn = KnnOverrides { k: Some(3), match_bonus: Some(match_bonus), ..KnnOverrides::default() };
            let mut request = world.request(knn, filter);
            request.retrieval.influence_cap = cap;
            request
        };
        let request = asked(Filter::default());
        let two = "two".parse().unwrap();
        let compared = engine.compare_without(&request, &[two], &never()).unwrap();
        let filter = Filter { deny_sources: vec!["two".parse().unwrap()], ..Filter::default() };
        let without = engine.score(&asked(filter), &never()).unwrap();
        assert!(compared.with.knn.gate.is_some() && compared.with.knn == compared.without.knn);
        for (token, other) in compared.tokens.iter().zip(&without.tokens) {
            assert_eq!(token.without.to_bits(), other.log_probability.to_bits());
            let bound = token.bound.unwrap();
            assert!(token.total_variation <= bound + 1e-12, "{token:?}");
            by_gate += usize::from(bound > tuned().knn_weight * token.mass + 1e-12);
            by_matches += usize::from(token.total_variation > tuned().knn_weight * token.mass + 1e-12);
        }
    }
    assert!(by_gate > 0 && by_matches > 0, "at some token more than the mass counts: {by_gate} {by_matches}");
}

/// Sharp and broad neighbours may be of different sources: together they have no more than the weight, and no source more than the cap of it.
#[test]
fn a_cap_holds_for_what_a_gate_mixes() {
    let world = two_sources();
    let engine = world.calibrated(&["one", "two"]);
    let mut n_capped = 0;
    for temperature in [0.05, 0.3, 1.0, 3.0, 10.0, 100.0] {
        for cap in [0.3, 0.5, 0.55, 0.7, 0.9] {
            let knn = KnnOverrides { knn_temperature: Some(temperature), ..KnnOverrides::default() };
            let mut request = world.request(knn, Filter::default());
            request.retrieval.influence_cap = Some(cap);
            let scored = engine.score(&request, &never()).unwrap();
            assert!(scored.in_force.knn.gate.is_some());
            for token in &scored.tokens {
                let p = token.log_probability.exp();
                assert!((0.0..=1.0).contains(&p) && token.knn_weight <= tuned().knn_weight, "{token:?}");
                let credit = token.credit.as_ref().unwrap();
                let shares = credit.parametric + credit.sources.iter().map(|(_, share)| share).sum::<f64>();
                assert!((shares - 1.0).abs() < 1e-12 && credit.parametric >= 0.0, "{credit:?}");
                let most = tuned().knn_weight * cap + 1e-12;
                assert!(credit.sources.iter().all(|(_, share)| share * p <= most), "{credit:?}");
                n_capped += token.capped.len();
            }
        }
    }
    assert!(n_capped > 0);
}

/// With a weight of 1 the gate may leave the model nothing, and never less.
#[test]
fn the_greatest_weight_leaves_numbers() {
    let world = two_sources();
    let terms = |bias| GateTerms { bias, ..GateTerms::default() };
    for bias in [0.0, 40.0, 40.7, 1e6] {
        let gate = Some(Gate { sharp: terms(40.0), broad: terms(bias) });
        let knn = KnnParameters { knn_weight: 1.0, gate, ..tuned() };
        let engine = world.engine(EngineConfig { knn, ..EngineConfig::default() }, None);
        let scored = engine.score(&world.request(KnnOverrides::default(), Filter::default()), &never()).unwrap();
        let fine = |p: f64| !p.is_nan() && p <= 0.0;
        assert!(scored.tokens.iter().all(|t| fine(t.log_probability) && t.knn_weight <= 1.0), "{bias}");
    }
}

#[test]
fn what_was_tuned_on_a_source_goes_with_it() {
    let world = two_sources();
    let engine = world.calibrated(&["one", "two"]);
    let one = Selection::Source("one".parse().unwrap());
    world.store.by("test").withdraw(&one).unwrap();
    let scored = engine.score(&world.request(KnnOverrides::default(), Filter::default()), &never()).unwrap();
    assert_eq!(scored.in_force.knn, neutral().knn);
}

/// That of one source for who sees that source, that of all for who sees all, and of those left when one is gone.
#[test]
fn each_request_has_the_calibration_that_suits_what_it_sees() {
    let world = two_sources();
    let one = Calibration { tuned: KnnParameters::new(5, 0.1, 1.0), ..world.calibration(&["one"]) };
    let engine = world.engine(neutral(), [world.calibration(&["one", "two"]), one.clone()]);
    let in_force =
        |filter| engine.score(&world.request(KnnOverrides::default(), filter), &never()).unwrap().in_force.knn;
    let allow = |name: &str| Filter { allow_sources: vec![name.parse().unwrap()], ..Filter::default() };
    assert_eq!([in_force(Filter::default()), in_force(allow("one"))], [tuned(), one.tuned]);
    assert_eq!(in_force(allow("two")), tuned(), "of those there are, it is tuned on more of what is seen");
    world.store.by("test").withdraw(&Selection::Source("two".parse().unwrap())).unwrap();
    assert_eq!(in_force(Filter::default()), one.tuned);
    world.store.by("test").withdraw(&Selection::Source("one".parse().unwrap())).unwrap();
    assert_eq!(in_force(Filter::default()), neutral().knn);
}

/// A stream that cannot see a source goes on without what was tuned on it.
#[test]
fn streams_do_not_keep_what_was_tuned_on_what_they_cannot_see() {
    let world = two_sources();
    let config = EngineConfig { stream_buffer_tokens: 2, ..neutral() };
    let engine = world.engine(config, Some(world.calibration(&["one", "two"])));
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
                assert_eq!(finished.in_force.knn, neutral().knn);
                assert_ne!(finished.reason, FinishReason::SourceRemoved, "what it sees is all there");
                break;
            }
            Event::Failed(error) => panic!("{error}"),
        }
    }
}
