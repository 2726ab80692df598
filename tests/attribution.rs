//! Whose text made what, over gRPC.

use std::collections::HashMap;

use silo_proto::v1;
use silo_proto::v1::compare_without_request::Compared as Ask;
use silo_proto::v1::compare_without_response::Compared;
use silo_store::Recipe;
use tonic::Code;

use super::service::{Limits, Service, generate, project, start, start_at, start_with};

pub(crate) const TEXTS: [&[&str]; 2] = [
    &["the other thing and the thing", "the thing is nothing without the other thing"],
    &["another thing in the other room is the thing", "the room and the thing about the room"],
];

pub(crate) const KNN: v1::RetrievalMode = v1::RetrievalMode::Knn;

pub(crate) async fn two_sources() -> Service {
    let mut s = start().await;
    s.add("one", TEXTS[0]).await;
    s.add("two", TEXTS[1]).await;
    s
}

pub(crate) async fn shard_of_one(s: &mut Service) -> u64 {
    let shards = s.datastore.list_shards(v1::ListShardsRequest::default()).await.unwrap().into_inner().shards;
    shards.into_iter().find(|shard| shard.source == "one").unwrap().id
}

pub(crate) fn credited(prompt: &str, mode: v1::RetrievalMode, depth: v1::AttributionDepth) -> v1::GenerateRequest {
    let attribution = v1::AttributionDetail::PerToken.into();
    v1::GenerateRequest { attribution, attribution_depth: depth.into(), ..generate(prompt, 16, mode) }
}

pub(crate) fn score(text: &str, mode: v1::RetrievalMode) -> v1::ScoreRequest {
    let retrieval = Some(v1::Retrieval { mode: mode.into(), ..Default::default() });
    let input = Some(v1::score_request::Input::Text(text.into()));
    v1::ScoreRequest { input, retrieval, ..Default::default() }
}

pub(crate) fn close(a: f64, b: f64) -> bool {
    (a - b).abs() < 1e-9
}

#[tokio::test]
async fn shares_of_every_level_add_up() {
    let mut s = two_sources().await;
    let request = credited("the thing", KNN, v1::AttributionDepth::Neighbors);
    let whole = s.generation.generate(request).await.unwrap().into_inner();
    let (mut of_text, mut n_shared) = (HashMap::<String, f64>::new(), 0);
    for token in &whole.tokens {
        let (mut documents, mut neighbors) = (HashMap::<&str, f64>::new(), HashMap::<(&str, &str), f64>::new());
        for d in &token.documents {
            *documents.entry(&d.source).or_default() += d.share;
            *of_text.entry(d.document.clone()).or_default() += d.share;
        }
        token.neighbors.iter().for_each(|n| *neighbors.entry((&n.source, &n.document)).or_default() += n.share);
        for share in &token.shares {
            assert!(close(documents[&share.source[..]], share.share), "{token:?}");
            n_shared += 1;
        }
        for d in &token.documents {
            assert!(close(neighbors[&(&d.source[..], &d.document[..])], d.share), "{token:?}");
        }
        let all: f64 = token.shares.iter().map(|share| share.share).sum();
        assert!((0.0..=1.0 + 1e-9).contains(&all));
    }
    assert!(n_shared > 4, "sources had shares");
    let f = whole.finished.unwrap();
    let total = f.parametric_total + f.sources.iter().map(|source| source.total).sum::<f64>();
    assert!(close(total, whole.tokens.len() as f64));
    assert!(f.documents.iter().all(|d| close(of_text[&d.document], d.share)) && !f.documents.is_empty());
}

#[tokio::test]
async fn notices_come_with_every_answer_and_nothing_else_that_was_not_asked_for() {
    let mut s = two_sources().await;
    let mut request = generate("the thing", 16, KNN);
    request.attribution = v1::AttributionDetail::Unspecified.into();
    let f = s.generation.generate(request).await.unwrap().into_inner().finished.unwrap();
    assert!(f.sources.is_empty() && f.documents.is_empty() && f.response_id.is_empty(), "{f:?}");
    let mut notices: Vec<(&str, &str)> = f.notices.iter().map(|n| (&n.source[..], &n.text[..])).collect();
    notices.sort_unstable();
    let line = |name: &str| format!("{name}: somebody, LicenseRef-test");
    assert_eq!(notices, [("one", &line("one")[..]), ("two", &line("two"))]);
    let context = s.generation.generate(generate("the thing", 4, v1::RetrievalMode::Context)).await.unwrap();
    assert!(!context.into_inner().finished.unwrap().notices.is_empty(), "passages stood before it");
    let alone = s.generation.generate(generate("the thing", 4, v1::RetrievalMode::Parametric)).await.unwrap();
    assert!(alone.into_inner().finished.unwrap().notices.is_empty());
}

#[tokio::test]
async fn what_is_compared_is_what_a_withdrawal_brings() {
    const MODES: [v1::RetrievalMode; 3] = [KNN, v1::RetrievalMode::Context, v1::RetrievalMode::KnnAndContext];
    let mut s = two_sources().await;
    let text = "the thing is nothing without the other thing and the other thing and the thing is nothing";
    let seeded = |mode| {
        let sampling = Some(v1::Sampling { seed: Some(7), ..Default::default() });
        v1::GenerateRequest { sampling, ..generate("the thing", 12, mode) }
    };
    let (mut texts, mut generations) = (Vec::new(), Vec::new());
    for mode in MODES {
        for ask in [Ask::Score(score(text, mode)), Ask::Generate(seeded(mode))] {
            let request = v1::CompareWithoutRequest { sources: vec!["one".into()], compared: Some(ask) };
            match s.attribution.compare_without(request).await.unwrap().into_inner().compared.unwrap() {
                Compared::Score(found) => texts.push(*found),
                Compared::Generate(found) => generations.push(*found),
            }
        }
    }
    for (mode, found) in MODES.into_iter().zip(&texts) {
        let with = s.generation.score(score(text, mode)).await.unwrap().into_inner();
        let of = |t: &v1::ComparedToken| (t.position, t.log_probability.to_bits());
        let expected = with.tokens.iter().map(|t| (t.position, t.log_probability.to_bits()));
        assert!(found.tokens.iter().map(of).eq(expected), "{mode:?}");
        for t in &found.tokens {
            assert!(t.bound.is_none_or(|bound| t.total_variation <= bound + 1e-12), "{t:?}");
            assert_eq!(t.bound.is_some(), mode == KNN, "unless passages are read, weights alone bound it");
        }
        let most = found.tokens.iter().map(|t| t.total_variation).fold(0.0, f64::max);
        assert!(most > 1e-6, "{mode:?}: the source was felt, {most}");
    }
    let shard = shard_of_one(&mut s).await;
    s.remove(shard).await;
    for ((mode, text_found), generation) in MODES.into_iter().zip(&texts).zip(&generations) {
        let without = s.generation.score(score(text, mode)).await.unwrap().into_inner();
        let of = |t: &v1::ComparedToken| (t.position, t.log_probability_without.to_bits());
        let expected = without.tokens.iter().map(|t| (t.position, t.log_probability.to_bits()));
        assert!(text_found.tokens.iter().map(of).eq(expected), "{mode:?}");
        let now = s.generation.generate(seeded(mode)).await.unwrap().into_inner();
        let (with, without) = (generation.with_sources.as_ref().unwrap(), generation.without_sources.as_ref().unwrap());
        assert_eq!((&now.text, &now.tokens), (&without.text, &without.tokens), "{mode:?}");
        let same = with.tokens.iter().zip(&without.tokens).take_while(|(a, b)| a.id == b.id).count();
        let differs = same < with.tokens.len().max(without.tokens.len());
        assert_eq!(generation.first_difference, differs.then_some(same as u32));
        let scored = generation.score.as_ref().unwrap();
        assert!(scored.tokens.len() > with.tokens.len(), "the prompt and what was made of it");
    }
}

#[tokio::test]
async fn an_answer_is_kept_without_what_was_withdrawn_since() {
    let mut s = two_sources().await;
    let request = credited("the thing", KNN, v1::AttributionDepth::Sources);
    let whole = s.generation.generate(request).await.unwrap().into_inner();
    let id = whole.finished.unwrap().response_id;
    let ask = || v1::AttributeResponseRequest { response_id: id.clone() };
    let kept = s.attribution.attribute_response(ask()).await.unwrap().into_inner();
    assert_eq!(kept.text, whole.text);
    assert_eq!(kept.tokens.len(), whole.tokens.len());
    for (kept, said) in kept.tokens.iter().zip(&whole.tokens) {
        assert_eq!((kept.id, &kept.sources), (Some(said.id), &said.shares));
        assert!(close(kept.parametric + kept.sources.iter().map(|x| x.share).sum::<f64>(), 1.0));
    }
    assert!(kept.documents.iter().all(|d| d.uri.starts_with("test:")));
    let shard = shard_of_one(&mut s).await;
    s.remove(shard).await;
    let after = s.attribution.attribute_response(ask()).await.unwrap().into_inner();
    assert_eq!(after.text, "", "something of it was withdrawn");
    for (after, before) in after.tokens.iter().zip(&kept.tokens) {
        assert_eq!((after.id, &after.sources), (None, &before.sources), "shares stay, under the names of sources");
        let documents = before.documents.iter().filter(|d| d.source == "two");
        assert!(after.documents.iter().eq(documents));
        assert_eq!(after.withdrawn, before.documents.len() > after.documents.len());
    }
    assert!(after.documents.iter().all(|d| d.shard != shard) && !after.documents.is_empty());
    let unknown = v1::AttributeResponseRequest { response_id: "none".into() };
    assert_eq!(s.attribution.attribute_response(unknown).await.unwrap_err().code(), Code::NotFound);
}

/// What a stream says at its end, across a withdrawal after its first token.
async fn across_a_withdrawal(on_removal: v1::OnRemoval) -> (Service, u64, Option<Box<v1::Finished>>) {
    // The text is longer than the engine's buffer, and its messages are more than the transport takes: it cannot be finished before it is read.
    let mut s = start_with(Limits { stream_buffer_tokens: 4, ..Limits::default() }).await;
    s.add("one", TEXTS[0]).await;
    s.add("two", TEXTS[1]).await;
    let shard = shard_of_one(&mut s).await;
    let request = credited("the thing", KNN, v1::AttributionDepth::Neighbors);
    let (on_removal, max_new_tokens) = (on_removal.into(), Some(50));
    let mut request = v1::GenerateRequest { on_removal, max_new_tokens, alternatives: Some(20), ..request };
    request.retrieval.as_mut().unwrap().k = Some(200);
    let mut stream = s.generation.generate_stream(request).await.unwrap().into_inner();
    let mut last = stream.message().await.unwrap();
    let epoch = s.remove(shard).await.removal.unwrap().epoch;
    while let Ok(Some(chunk)) = stream.message().await {
        last = Some(chunk);
    }
    let finished = match last.unwrap().message.unwrap() {
        v1::generate_chunk::Message::Finished(finished) => {
            let repinned = finished.provenance.as_ref().unwrap().epoch == epoch;
            assert!(repinned || finished.reason() == v1::FinishReason::SourceRemoved, "it had not ended before");
            Some(finished)
        }
        v1::generate_chunk::Message::Token(_) => None, // it could not be made whole
    };
    (s, shard, finished)
}

#[tokio::test]
async fn the_end_of_a_stream_says_nothing_of_what_was_withdrawn_in_its_midst() {
    for on_removal in [v1::OnRemoval::End, v1::OnRemoval::Repin] {
        let (mut s, shard, finished) = across_a_withdrawal(on_removal).await;
        let Some(finished) = finished else { continue };
        assert!(finished.documents.iter().all(|d| d.shard != shard), "{finished:?}");
        assert!(finished.notices.iter().all(|n| n.source != "one"), "{finished:?}");
        let of_one = finished.sources.iter().find(|source| source.source == "one");
        assert!(of_one.is_none_or(|source| source.owner.is_empty()), "{finished:?}");
        let ask = v1::AttributeResponseRequest { response_id: finished.response_id };
        let kept = s.attribution.attribute_response(ask).await.unwrap().into_inner();
        assert_eq!(kept.text, "", "{on_removal:?}: part of it was made from what was withdrawn");
        assert!(kept.documents.iter().all(|d| d.shard != shard) && kept.tokens.iter().all(|t| t.id.is_none()));
    }
}

/// A whole answer is given once: what it was made from is still there then, or it is not given.
#[tokio::test]
async fn no_whole_answer_is_given_that_rests_on_what_was_withdrawn() {
    for on_removal in [v1::OnRemoval::End, v1::OnRemoval::Repin] {
        let mut s = two_sources().await;
        let shard = shard_of_one(&mut s).await;
        let request = credited("the thing", KNN, v1::AttributionDepth::Neighbors);
        let request = v1::GenerateRequest { on_removal: on_removal.into(), max_new_tokens: Some(50), ..request };
        let mut caller = s.generation.clone();
        let answer = tokio::spawn(async move { caller.generate(request).await });
        // It may have been over before, or not have begun.
        let epoch = s.remove(shard).await.removal.unwrap().epoch;
        match answer.await.unwrap() {
            Err(status) => assert_eq!(status.code(), Code::Aborted),
            Ok(answer) => {
                let answer = answer.into_inner();
                let f = answer.finished.unwrap();
                let names_it = answer.tokens.iter().flat_map(|t| &t.documents).any(|d| d.shard == shard);
                assert!(f.provenance.unwrap().epoch < epoch || !names_it, "{on_removal:?}");
                assert_ne!(f.reason, i32::from(v1::FinishReason::SourceRemoved));
            }
        }
    }
}

#[tokio::test]
async fn where_entries_stand_is_not_said_of_a_source_that_may_not_be_displayed() {
    let mut s = two_sources().await;
    let permissions = Some(v1::Permissions { knn: true, context: true, ..Default::default() });
    let update = v1::UpdateSourceRequest { name: "one".into(), permissions, ..Default::default() };
    s.datastore.update_source(update).await.unwrap();
    let request = credited("the thing", KNN, v1::AttributionDepth::Neighbors);
    let whole = s.generation.generate(request).await.unwrap().into_inner();
    let all: Vec<&v1::NeighborShare> = whole.tokens.iter().flat_map(|token| &token.neighbors).collect();
    assert!(all.iter().any(|n| n.source == "one") && all.iter().any(|n| n.source == "two"));
    assert!(all.iter().all(|n| n.position.is_some() == (n.source == "two")));
    let search = v1::SearchRequest { text: "the thing".into(), k: Some(50), ..Default::default() };
    let hits = s.datastore.search(search).await.unwrap().into_inner().neighbors;
    assert!(hits.iter().any(|hit| hit.source == "one"));
    assert!(hits.iter().all(|hit| hit.position.is_some() == (hit.source == "two") && hit.token.is_some() == hit.position.is_some()));
}

#[tokio::test]
async fn what_was_handed_out_counts_and_comparisons_do_not() {
    let mut s = start_with(Limits { stream_buffer_tokens: 4, ..Limits::default() }).await;
    s.add("one", TEXTS[0]).await;
    let report = || v1::GetSourceReportRequest { source: "one".into(), ..Default::default() };
    let score = Ask::Score(score("the thing", KNN));
    for ask in [score, Ask::Generate(generate("the thing", 12, KNN))] {
        let request = v1::CompareWithoutRequest { sources: vec!["one".into()], compared: Some(ask) };
        s.attribution.compare_without(request).await.unwrap();
    }
    assert!(s.attribution.get_source_report(report()).await.unwrap().into_inner().hours.is_empty());
    let mut stream = s.generation.generate_stream(generate("the thing", 50, KNN)).await.unwrap().into_inner();
    for _ in 0..8 {
        stream.message().await.unwrap().unwrap();
    }
    drop(stream);
    let hours = loop {
        let hours = s.attribution.get_source_report(report()).await.unwrap().into_inner().hours;
        if !hours.is_empty() {
            break hours;
        }
    };
    assert!(hours[0].n_responses == 1 && hours[0].n_tokens >= 1 && hours[0].share > 0.0, "{hours:?}");
}

#[tokio::test]
async fn the_ledger_adds_up_what_sources_gave_and_outlives_the_server() {
    let mut s = two_sources().await;
    let (mut shares, mut tokens, mut n) = (0.0, 0, 0);
    for prompt in ["the thing", "the room", "another"] {
        let request = credited(prompt, KNN, v1::AttributionDepth::Sources);
        let whole = s.generation.generate(request).await.unwrap().into_inner();
        let of = |t: &v1::Token| t.shares.iter().find(|x| x.source == "one").map(|x| x.share);
        let each: Vec<f64> = whole.tokens.iter().filter_map(of).collect();
        (shares, tokens, n) =
            (shares + each.iter().sum::<f64>(), tokens + each.len() as u64, n + u64::from(!each.is_empty()));
    }
    s.generation.generate(generate("the thing", 4, v1::RetrievalMode::Context)).await.unwrap();
    let report = || v1::GetSourceReportRequest { source: "one".into(), ..Default::default() };
    let sum = |r: v1::SourceReport| {
        let add = |of: &dyn Fn(&v1::SourceHour) -> u64| r.hours.iter().map(of).sum::<u64>();
        let share: f64 = r.hours.iter().map(|h| h.share).sum();
        (share, add(&|h| h.n_tokens), add(&|h| h.n_responses), add(&|h| h.n_passage_responses))
    };
    let before = sum(s.attribution.get_source_report(report()).await.unwrap().into_inner());
    assert!(close(before.0, shares) && n > 0, "{before:?}, {shares}");
    assert_eq!((before.1, before.2), (tokens, n));
    let recipe = Recipe::read(&project().join("indexes/tiny.toml")).unwrap();
    let mut s = start_at(s.stop().await, recipe, Limits::default()).await;
    assert_eq!(sum(s.attribution.get_source_report(report()).await.unwrap().into_inner()), before);
    let nobody = v1::GetSourceReportRequest { source: "nobody".into(), ..Default::default() };
    assert_eq!(s.attribution.get_source_report(nobody).await.unwrap_err().code(), Code::NotFound);
    let never = v1::GetSourceReportRequest { source: "one".into(), from_unix_ms: 9, to_unix_ms: Some(10) };
    assert_eq!(s.attribution.get_source_report(never).await.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test]
async fn runs_of_a_text_are_found_with_their_documents() {
    let mut s = two_sources().await;
    let text = "He said: The thing is NOTHING, without the other room is the thing.";
    let request = v1::AttributeTextRequest { text: text.into(), min_words: Some(6), ..Default::default() };
    let found = s.attribution.attribute_text(request.clone()).await.unwrap().into_inner();
    let run = |span: &v1::TextSpan| &text[span.start as usize..span.end as usize];
    let mut runs: Vec<(&str, &str, bool)> =
        found.spans.iter().map(|span| (run(span), &span.documents[0].source[..], span.documents[0].exact)).collect();
    runs.sort_unstable();
    let expected =
        [("The thing is NOTHING, without the other", "one", false), ("the other room is the thing", "two", true)];
    assert_eq!(runs, expected);
    assert!(found.spans.iter().all(|span| span.n_places == 1 && span.rarity > 0.0));
    let shown = &found.spans.iter().find(|span| span.documents[0].source == "two").unwrap().documents[0];
    assert_eq!([&shown.before[..], &shown.run, &shown.after], ["another thing in ", "the other room is the thing", ""]);
    let wrong = [
        v1::AttributeTextRequest { text: String::new(), ..request.clone() },
        v1::AttributeTextRequest { min_words: Some(2), ..request.clone() },
        v1::AttributeTextRequest { max_spans: Some(1_000_000), ..request.clone() },
        v1::AttributeTextRequest { text: "x ".repeat(100_000), ..request.clone() },
    ];
    for request in wrong {
        assert_eq!(s.attribution.attribute_text(request).await.unwrap_err().code(), Code::InvalidArgument);
    }
    let nothing = v1::CompareWithoutRequest { sources: Vec::new(), compared: None };
    assert_eq!(s.attribution.compare_without(nothing).await.unwrap_err().code(), Code::InvalidArgument);
    let compared = Some(Ask::Score(score("the thing", KNN)));
    let unknown = v1::CompareWithoutRequest { sources: vec!["nobody".into()], compared };
    assert_eq!(s.attribution.compare_without(unknown).await.unwrap_err().code(), Code::NotFound);
}
