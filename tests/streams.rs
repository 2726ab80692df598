//! What removals, slow readers and a full house do to running streams.

use std::time::Duration;

use silo_proto::v1;
use tonic::Code;
use tonic_types::StatusExt;

use crate::service::{Limits, Service, generate, start, start_with};

const PROMPT: &str = "the thing";
const TEXTS: &[&str] = &["the other thing and the thing", "the thing is nothing without the other thing"];

/// Reads the rest of a stream: its tokens, and its end.
async fn rest(stream: &mut tonic::Streaming<v1::GenerateChunk>) -> (Vec<v1::Token>, v1::Finished) {
    let mut tokens = Vec::new();
    loop {
        match stream.message().await.unwrap().expect("a stream ends with `finished`").message.unwrap() {
            v1::generate_chunk::Message::Token(t) => tokens.push(t),
            v1::generate_chunk::Message::Finished(f) => return (tokens, *f),
        }
    }
}

async fn begin(s: &mut Service, request: v1::GenerateRequest) -> tonic::Streaming<v1::GenerateChunk> {
    let mut stream = s.generation.generate_stream(request).await.unwrap().into_inner();
    assert!(stream.message().await.unwrap().is_some());
    stream
}

fn with_filter(mut request: v1::GenerateRequest, filter: v1::Filter) -> v1::GenerateRequest {
    request.retrieval.as_mut().unwrap().filter = Some(filter);
    request
}

#[tokio::test]
async fn a_removal_of_something_else_leaves_a_stream_alone() {
    let mut s = start().await;
    s.add("mine", TEXTS).await;
    let other = s.add("other", &["something else in the house"]).await;
    let only = v1::Filter { allow_sources: vec!["mine".into()], ..Default::default() };
    let request = with_filter(generate(PROMPT, 40, v1::RetrievalMode::Knn), only);
    let expected = s.generation.generate(request.clone()).await.unwrap().into_inner();
    let mut stream = begin(&mut s, request).await;
    s.remove(other.id).await;
    let (tokens, finished) = rest(&mut stream).await;
    assert_eq!(finished.reason(), v1::FinishReason::Length);
    assert_eq!(tokens, expected.tokens[1..]);
}

#[tokio::test]
async fn a_list_that_names_a_removed_shard_stays_good() {
    let mut s = start().await;
    s.add("mine", TEXTS).await;
    let gone = s.add("mine", &["something else in the house"]).await;
    s.remove(gone.id).await;
    let deny = v1::Filter { deny_shards: vec![gone.id], ..Default::default() };
    s.generation.generate(with_filter(generate(PROMPT, 3, v1::RetrievalMode::Knn), deny)).await.unwrap();
    let never = v1::Filter { deny_shards: vec![gone.id + 1], ..Default::default() };
    let status =
        s.generation.generate(with_filter(generate(PROMPT, 3, v1::RetrievalMode::Knn), never)).await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
}

#[tokio::test]
async fn nothing_of_a_removed_source_follows_its_removal() {
    // The model's window is 64 tokens, more than the engine's buffer: the text cannot be finished before it is read.
    let mut s = start_with(Limits { stream_buffer_tokens: 4, ..Limits::default() }).await;
    for on_removal in [v1::OnRemoval::End, v1::OnRemoval::Repin] {
        let added = s.add("mine", TEXTS).await;
        let request =
            v1::GenerateRequest { on_removal: on_removal.into(), ..generate(PROMPT, 50, v1::RetrievalMode::Knn) };
        let direct = s.engine.generate(s.admit(&request)).unwrap();
        let mut generation = direct;
        assert!(matches!(generation.next().await, Some(silo_engine::Event::Token(..))));
        s.remove(added.id).await;
        let mut last = None;
        while let Some(event) = generation.next().await {
            if let silo_engine::Event::Token(token, _) = &event {
                assert!(token.credit.sources.is_empty(), "a token of the removed source: {token:?}");
            }
            last = Some(event);
        }
        match last.unwrap() {
            silo_engine::Event::Finished(f) => assert!(
                f.reason == silo_engine::FinishReason::SourceRemoved || on_removal == v1::OnRemoval::Repin,
                "{:?}",
                f.reason
            ),
            silo_engine::Event::Failed(e) => assert!(matches!(e, silo_engine::EngineError::SourceRemoved), "{e}"),
            silo_engine::Event::Token(..) => panic!("the text ended without an end"),
        }
    }
}

#[tokio::test]
async fn a_full_house_refuses_at_once_and_says_when_to_come_back() {
    let mut s = start_with(Limits { max_active: 1, max_queued: 1, stream_buffer_tokens: 2 }).await;
    let request = || generate(PROMPT, 40, v1::RetrievalMode::Parametric);
    // One that nobody reads holds the place, the next one waits.
    let mut reader = s.engine.generate(s.admit(&request())).unwrap();
    assert!(reader.next().await.is_some());
    let waiting = s.engine.generate(s.admit(&request())).unwrap();
    let status = s.generation.generate(request()).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    let details = status.get_error_details();
    assert!(details.retry_info().is_some_and(|r| r.retry_delay.is_some()), "{status:?}");
    // Whoever goes makes room, also from the queue.
    drop(waiting);
    let mut taken = s.engine.generate(s.admit(&request())).unwrap();
    drop(reader);
    let first = tokio::time::timeout(Duration::from_secs(20), taken.next()).await.expect("its turn comes");
    assert!(matches!(first, Some(silo_engine::Event::Token(..))));
}

#[tokio::test]
async fn a_deadline_ends_a_text_that_runs_already() {
    let s = start_with(Limits { stream_buffer_tokens: 2, ..Limits::default() }).await;
    let mut request = s.admit(&generate(PROMPT, 50, v1::RetrievalMode::Parametric));
    let deadline = std::time::Instant::now() + Duration::from_millis(300);
    request.deadline = Some(deadline);
    let mut generation = s.engine.generate(request).unwrap();
    // Nobody reads, so the text cannot be finished before its deadline; its reader comes afterwards.
    while std::time::Instant::now() < deadline {
        tokio::task::yield_now().await;
    }
    let mut last = None;
    while let Some(event) = generation.next().await {
        last = Some(event);
    }
    let failed = matches!(last, Some(silo_engine::Event::Failed(silo_engine::EngineError::DeadlineExceeded)));
    assert!(failed, "{last:?}");
}

#[tokio::test]
async fn a_token_outside_the_vocabulary_harms_nobody_else() {
    let mut s = start().await;
    let mut bystander = begin(&mut s, generate(PROMPT, 40, v1::RetrievalMode::Parametric)).await;
    let mut wrong = s.admit(&generate(PROMPT, 4, v1::RetrievalMode::Parametric));
    wrong.prompt.push(1_000_000);
    assert!(s.engine.generate(wrong).err().unwrap().to_string().contains("1000000"));
    assert_eq!(rest(&mut bystander).await.1.reason(), v1::FinishReason::Length);
}

#[tokio::test]
async fn a_stream_that_nobody_reads_does_not_keep_a_stopping_server() {
    let mut s = start().await;
    let _unread = begin(&mut s, generate(PROMPT, 40, v1::RetrievalMode::Parametric)).await;
    drop(s.stop.take());
    let ended = tokio::time::timeout(Duration::from_secs(20), s.served.take().unwrap());
    ended.await.expect("the server ends after its drain").unwrap().unwrap();
}
