//! The service as its users see it: a server with the smallest real model, and gRPC.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use prost::Message;
use silo_core::LanguageModel;
use silo_engine::{Engine, EngineConfig};
use silo_govern::{AttributionConfig, GovernConfig, Governor};
use silo_model::{CpuLlama, LoadedModel};
use silo_proto::longrunning::operations_client::OperationsClient;
use silo_proto::v1::attribution_service_client::AttributionServiceClient;
use silo_proto::v1::datastore_service_client::DatastoreServiceClient;
use silo_proto::v1::generation_service_client::GenerationServiceClient;
use silo_proto::v1::opt_out_service_client::OptOutServiceClient;
use silo_proto::{longrunning as lro, v1};
use silo_server::{Server, ServerConfig};
use silo_store::{Recipe, Store, StoreOptions};
use tempfile::TempDir;
use tokio::sync::oneshot;
use tonic::transport::Channel;
use tonic::{Code, Status};
use tonic_types::StatusExt;

pub(crate) struct Service {
    pub(crate) generation: GenerationServiceClient<Channel>,
    pub(crate) datastore: DatastoreServiceClient<Channel>,
    operations: OperationsClient<Channel>,
    pub(crate) attribution: AttributionServiceClient<Channel>,
    pub(crate) channel: Channel,
    /// The engine behind the server, for what the transport would hide.
    pub(crate) engine: Arc<Engine>,
    pub(crate) stop: Option<oneshot::Sender<()>>,
    pub(crate) served: Option<tokio::task::JoinHandle<Result<(), silo_server::ServeError>>>,
    root: TempDir,
}

/// Limits of the engine that tests change.
pub(crate) struct Limits {
    pub(crate) max_active: usize,
    pub(crate) max_queued: usize,
    pub(crate) stream_buffer_tokens: usize,
}

impl Default for Limits {
    fn default() -> Self {
        let EngineConfig { max_active, max_queued, stream_buffer_tokens, .. } = EngineConfig::default();
        Self { max_active, max_queued, stream_buffer_tokens }
    }
}

pub(crate) fn project() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// Starts a service over an empty store.
pub(crate) async fn start() -> Service {
    start_with(Limits::default()).await
}

pub(crate) async fn start_with(limits: Limits) -> Service {
    let recipe = Recipe::read(&project().join("indexes/tiny.toml")).unwrap();
    start_at(tempfile::tempdir().unwrap(), recipe, limits).await
}

/// What a server stands on, over the store at `root`.
pub(crate) fn parts(root: &Path, recipe: Recipe, limits: Limits) -> (Arc<Engine>, Arc<Governor>) {
    parts_with(root, recipe, limits, None)
}

fn parts_with(root: &Path, recipe: Recipe, limits: Limits, key: Option<PathBuf>) -> (Arc<Engine>, Arc<Governor>) {
    let loaded = LoadedModel::open(&project().join("crates/model/tests/golden/gqa")).unwrap();
    let model: Arc<dyn LanguageModel> = Arc::new(CpuLlama::new(&loaded, recipe.key_site, 2).unwrap());
    let tokenizer: Arc<dyn silo_core::Tokenizer> = Arc::new(loaded.tokenizer);
    let options = StoreOptions { n_threads: 2, ..StoreOptions::default() };
    let store = Arc::new(Store::open(root, model.card(), recipe, tokenizer.clone(), options).unwrap());
    // Texts of answers are kept, so that tests see them go.
    let attribution = AttributionConfig { keep_text: true, ..AttributionConfig::default() };
    let govern =
        GovernConfig { backups: Some(root.join("backups")), signing_key: key, attribution, ..Default::default() };
    let governor = Governor::new(govern, store.clone(), model.clone(), tokenizer.clone()).unwrap();
    let Limits { max_active, max_queued, stream_buffer_tokens } = limits;
    let engine = EngineConfig { max_active, max_queued, stream_buffer_tokens, ..EngineConfig::default() };
    let engine = Arc::new(Engine::start(engine, None, model, tokenizer, store).unwrap());
    (engine, Arc::new(governor))
}

/// Starts a service over the store at `root`.
pub(crate) async fn start_at(root: TempDir, recipe: Recipe, limits: Limits) -> Service {
    let made = parts(root.path(), recipe, limits);
    serve(root, made).await
}

/// Starts a service with a key, which `create` makes.
pub(crate) async fn start_signed(create: impl FnOnce(&Path)) -> Service {
    let root = tempfile::tempdir().unwrap();
    let key = root.path().join("silo.key");
    create(&key);
    let recipe = Recipe::read(&project().join("indexes/tiny.toml")).unwrap();
    let made = parts_with(root.path(), recipe, Limits::default(), Some(key));
    serve(root, made).await
}

async fn serve(root: TempDir, (engine, governor): (Arc<Engine>, Arc<Governor>)) -> Service {
    let config = ServerConfig { listen: ([127, 0, 0, 1], 0).into(), drain_seconds: 1, ..ServerConfig::default() };
    let server = Server::bind(config, engine.clone(), governor).await.unwrap();
    let address = format!("http://{}", server.address().unwrap());
    let (stop, stopped) = oneshot::channel::<()>();
    let served = tokio::spawn(server.serve(async { drop(stopped.await) }));
    // The transport takes a few messages of a stream: what is not read stays with the server.
    let channel = Channel::from_shared(address).unwrap().initial_stream_window_size(4096).connect().await.unwrap();
    Service {
        generation: GenerationServiceClient::new(channel.clone()),
        datastore: DatastoreServiceClient::new(channel.clone()),
        operations: OperationsClient::new(channel.clone()),
        attribution: AttributionServiceClient::new(channel.clone()),
        channel,
        engine,
        stop: Some(stop),
        served: Some(served),
        root,
    }
}

fn source(name: &str, licence: &str) -> v1::CreateSourceRequest {
    let source =
        v1::Source { name: name.into(), owner: "somebody".into(), licence: licence.into(), ..Default::default() };
    v1::CreateSourceRequest { source: Some(source), validate_only: false }
}

fn addition(source: &str, texts: &[&str]) -> Vec<v1::AddShardRequest> {
    use v1::add_shard_request::Message;
    let document = |(i, text): (usize, &&str)| v1::Document {
        uri: format!("test:{i}"),
        text: (*text).into(),
        ..Default::default()
    };
    let documents = texts.iter().enumerate().map(document).collect();
    [Message::Header(v1::AddShardHeader { source: source.into() }), Message::Documents(v1::DocumentChunk { documents })]
        .map(|m| v1::AddShardRequest { message: Some(m) })
        .to_vec()
}

impl Service {
    pub(crate) async fn add(&mut self, name: &str, texts: &[&str]) -> v1::Shard {
        let _ = self.datastore.create_source(source(name, "LicenseRef-test")).await; // it may be there already
        let stream = tokio_stream::iter(addition(name, texts));
        let operation = self.datastore.add_shard(stream).await.unwrap().into_inner();
        self.finish(operation.name).await.unwrap()
    }

    /// Adds documents that say more than their texts.
    pub(crate) async fn add_documents(&mut self, name: &str, documents: Vec<v1::Document>) -> v1::Shard {
        use v1::add_shard_request::Message;
        let _ = self.datastore.create_source(source(name, "LicenseRef-test")).await; // it may be there already
        let header = Message::Header(v1::AddShardHeader { source: name.into() });
        let messages = [header, Message::Documents(v1::DocumentChunk { documents })];
        let stream = tokio_stream::iter(messages.map(|m| v1::AddShardRequest { message: Some(m) }));
        let operation = self.datastore.add_shard(stream).await.unwrap().into_inner();
        self.finish(operation.name).await.unwrap()
    }

    /// Client of OptOutService.
    pub(crate) fn optouts(&self) -> OptOutServiceClient<Channel> {
        OptOutServiceClient::new(self.channel.clone())
    }

    /// What an operation ends with: its response, or the message of its error.
    pub(crate) async fn finish<T: prost::Message + Default>(&mut self, name: String) -> Result<T, String> {
        let wait = lro::WaitOperationRequest { name, timeout: None };
        let operation = self.operations.wait_operation(wait).await.unwrap().into_inner();
        match operation.result.unwrap() {
            lro::operation::Result::Response(any) => Ok(T::decode(&any.value[..]).unwrap()),
            lro::operation::Result::Error(status) => Err(status.message),
        }
    }

    /// Stops the service, and gives its store's place.
    pub(crate) async fn stop(self) -> TempDir {
        let Self { generation, datastore, operations, attribution, channel, engine, stop, served, root } = self;
        drop((generation, datastore, operations, attribution, channel));
        stop.unwrap().send(()).unwrap();
        served.unwrap().await.unwrap().unwrap();
        drop(engine);
        root
    }

    pub(crate) async fn score(&mut self, text: &str, mode: v1::RetrievalMode) -> Vec<u64> {
        let response = self.generation.score(score(text, mode)).await.unwrap().into_inner();
        response.tokens.iter().map(|t| t.log_probability.to_bits()).collect()
    }

    pub(crate) async fn remove(&mut self, id: u64) -> v1::RemoveShardResponse {
        let request = v1::RemoveShardRequest { id, validate_only: false };
        self.datastore.remove_shard(request).await.unwrap().into_inner()
    }

    /// A request as the server would make it, for the engine itself.
    pub(crate) fn admit(&self, request: &v1::GenerateRequest) -> silo_engine::GenerateRequest {
        let Some(v1::generate_request::Prompt::Text(text)) = &request.prompt else { panic!("tests prompt with text") };
        let prompt = self.engine.tokenizer().encode(text).unwrap();
        let mut out = silo_engine::GenerateRequest::new(prompt, request.max_new_tokens.unwrap() as usize);
        if request.retrieval.as_ref().unwrap().mode() == v1::RetrievalMode::Knn {
            out.retrieval.mode = silo_engine::Mode::Knn;
            let (k, knn_weight, knn_temperature) = (Some(16), Some(0.5), Some(1.0));
            out.retrieval.knn = silo_engine::KnnOverrides { k, knn_weight, knn_temperature, ..Default::default() };
        }
        if request.on_removal() == v1::OnRemoval::Repin {
            out.on_removal = silo_engine::OnRemoval::Repin;
        }
        out.seed = 7;
        out
    }

    /// Withdrawals of which bytes may be in a file.
    pub(crate) async fn n_unpurged(&mut self) -> u64 {
        self.datastore.get_store(v1::GetStoreRequest {}).await.unwrap().into_inner().n_unpurged
    }

    pub(crate) async fn root(&mut self) -> String {
        self.datastore.get_store(v1::GetStoreRequest {}).await.unwrap().into_inner().root
    }
}

fn retrieval(mode: v1::RetrievalMode) -> v1::Retrieval {
    v1::Retrieval {
        mode: mode.into(),
        k: Some(16),
        knn_weight: Some(0.5),
        knn_temperature: Some(1.0),
        ..Default::default()
    }
}

fn score(text: &str, mode: v1::RetrievalMode) -> v1::ScoreRequest {
    v1::ScoreRequest {
        input: Some(v1::score_request::Input::Text(text.into())),
        retrieval: Some(retrieval(mode)),
        ..Default::default()
    }
}

pub(crate) fn generate(prompt: &str, n: u32, mode: v1::RetrievalMode) -> v1::GenerateRequest {
    v1::GenerateRequest {
        prompt: Some(v1::generate_request::Prompt::Text(prompt.into())),
        max_new_tokens: Some(n),
        sampling: Some(v1::Sampling { seed: Some(7), ..Default::default() }),
        retrieval: Some(retrieval(mode)),
        attribution: v1::AttributionDetail::PerToken.into(),
        ..Default::default()
    }
}

pub(crate) const MODES: [v1::RetrievalMode; 4] = [
    v1::RetrievalMode::Parametric,
    v1::RetrievalMode::Knn,
    v1::RetrievalMode::Context,
    v1::RetrievalMode::KnnAndContext,
];

pub(crate) const TEXT: &str = "the thing about the other thing is that the thing is nothing without the other thing";

#[tokio::test]
async fn a_removed_shard_is_as_if_it_had_never_been_there_while_streams_run() {
    let mut s = start().await;
    s.add("one", &["the other thing and the thing", "something else in the house"]).await;
    let (mut before, root) = (Vec::new(), s.root().await);
    for mode in MODES {
        before.push(s.score(TEXT, mode).await);
    }
    let added = s.add("two", &["the thing is nothing without the other thing", "the thing about the thing"]).await;
    assert_ne!(s.score(TEXT, v1::RetrievalMode::Knn).await, before[1], "the shard weighs in");
    assert_ne!(s.score(TEXT, v1::RetrievalMode::Context).await, before[2], "its passages are put before the text");

    let mut streams = Vec::new();
    for mode in MODES {
        let mut stream = s.generation.generate_stream(generate("the", 40, mode)).await.unwrap().into_inner();
        stream.message().await.unwrap();
        streams.push(stream);
    }
    let removal = s.remove(added.id).await;
    let removal = removal.removal.unwrap();
    assert_eq!((&removal.root_after, &s.root().await), (&root, &root));
    for (mode, before) in MODES.into_iter().zip(&before) {
        assert_eq!(&s.score(TEXT, mode).await, before, "{mode:?}");
    }
    for mut stream in streams {
        while stream.message().await.unwrap().is_some() {}
    }
}

#[tokio::test]
async fn without_its_only_shard_the_store_is_the_model_alone() {
    let mut s = start().await;
    let parametric = s.score(TEXT, v1::RetrievalMode::Parametric).await;
    let added = s.add("one", &["the other thing and the thing"]).await;
    assert_ne!(s.score(TEXT, v1::RetrievalMode::Knn).await, parametric);
    s.remove(added.id).await;
    for mode in MODES {
        assert_eq!(s.score(TEXT, mode).await, parametric, "{mode:?}");
    }
}

#[tokio::test]
async fn streaming_and_unary_give_the_same_and_shares_sum_to_one() {
    let mut s = start().await;
    s.add("one", &["the other thing and the thing", "the thing is nothing without the other thing"]).await;
    for mode in MODES {
        let mut whole = s.generation.generate(generate("the thing", 24, mode)).await.unwrap().into_inner();
        let mut stream = s.generation.generate_stream(generate("the thing", 24, mode)).await.unwrap().into_inner();
        let (mut tokens, mut finished) = (Vec::new(), None);
        while let Some(chunk) = stream.message().await.unwrap() {
            match chunk.message.unwrap() {
                v1::generate_chunk::Message::Token(t) => tokens.push(t),
                v1::generate_chunk::Message::Finished(f) => finished = Some(f),
            }
        }
        assert_eq!(whole.tokens, tokens, "{mode:?}");
        let mut f = *finished.unwrap();
        assert_ne!(
            std::mem::take(&mut whole.finished.as_mut().unwrap().response_id),
            std::mem::take(&mut f.response_id)
        );
        assert_eq!(whole.finished.as_ref(), Some(&f));
        let usage = f.usage.unwrap();
        let total = f.parametric_total + f.sources.iter().map(|s| s.total).sum::<f64>();
        assert!((total - usage.new_tokens as f64).abs() < 1e-9, "{total}");
        let knn = matches!(mode, v1::RetrievalMode::Knn | v1::RetrievalMode::KnnAndContext);
        assert_eq!(knn, !f.sources.is_empty(), "{mode:?}");
        assert_eq!(f.provenance.unwrap().root, s.root().await);
    }
}

#[tokio::test]
async fn requests_of_one_batch_do_not_touch_each_other() {
    let mut s = start().await;
    s.add("one", &["the other thing and the thing", "the thing is nothing without the other thing"]).await;
    let prompts =
        ["the", "another thing in the", "o", "the thing about", "i", "a the a the", "nothing", "the other the"];
    let mut alone = Vec::new();
    for prompt in prompts {
        alone.push(s.generation.generate(generate(prompt, 20, v1::RetrievalMode::Knn)).await.unwrap().into_inner());
    }
    let mut tasks = Vec::new();
    for prompt in prompts {
        let mut client = s.generation.clone();
        tasks.push(tokio::spawn(async move {
            client.generate(generate(prompt, 20, v1::RetrievalMode::Knn)).await.unwrap().into_inner()
        }));
    }
    for (task, alone) in tasks.into_iter().zip(alone) {
        assert_eq!(task.await.unwrap().tokens, alone.tokens);
    }
}

#[track_caller]
pub(crate) fn check(status: &Status, code: Code, reason: &str, says: &str) {
    assert_eq!(status.code(), code, "{status:?}");
    assert!(status.message().contains(says), "{:?} should say {says:?}", status.message());
    let info = status.get_error_details();
    assert_eq!(info.error_info().map(|i| i.reason.as_str()), Some(reason), "{status:?}");
}

#[tokio::test]
async fn wrong_generation_requests_are_answered_with_what_and_why() {
    let mut s = start().await;
    let base = || generate("the", 5, v1::RetrievalMode::Knn);
    let with = |change: fn(&mut v1::Retrieval)| {
        let mut request = base();
        change(request.retrieval.as_mut().unwrap());
        request
    };
    let filter = |deny: &str| Some(v1::Filter { deny_sources: vec![deny.into()], ..Default::default() });
    let cases = [
        (with(|r| r.k = Some(0)), Code::InvalidArgument, "INVALID_FIELD", "retrieval.k is 0"),
        (with(|r| r.knn_weight = Some(2.0)), Code::InvalidArgument, "INVALID_FIELD", "from 0 to 1"),
        (with(|r| r.knn_weight = Some(f64::NAN)), Code::InvalidArgument, "INVALID_FIELD", "from 0 to 1"),
        (with(|r| r.knn_temperature = Some(0.0)), Code::InvalidArgument, "INVALID_FIELD", "above 0"),
        (with(|r| r.mode = 77), Code::InvalidArgument, "INVALID_FIELD", "77 is no value"),
        (v1::GenerateRequest { prompt: None, ..base() }, Code::InvalidArgument, "INVALID_FIELD", "prompt"),
        (
            v1::GenerateRequest { max_new_tokens: Some(0), ..base() },
            Code::InvalidArgument,
            "INVALID_FIELD",
            "from 1 to",
        ),
        (
            generate(&"the ".repeat(200), 5, v1::RetrievalMode::Knn),
            Code::InvalidArgument,
            "PROMPT_TOO_LONG",
            "window holds 64",
        ),
        (v1::GenerateRequest { stop: vec![String::new()], ..base() }, Code::InvalidArgument, "INVALID_FIELD", "stop"),
    ];
    for (request, code, reason, says) in cases {
        check(&s.generation.generate(request.clone()).await.unwrap_err(), code, reason, says);
        check(&s.generation.generate_stream(request).await.unwrap_err(), code, reason, says);
    }
    let mut unknown = base();
    unknown.retrieval.as_mut().unwrap().filter = filter("ghost");
    check(&s.generation.generate(unknown).await.unwrap_err(), Code::NotFound, "UNKNOWN_NAME", "no source 'ghost'");
    let tokens = v1::GenerateRequest {
        prompt: Some(v1::generate_request::Prompt::Tokens(v1::TokenIds { ids: vec![9999] })),
        ..base()
    };
    check(&s.generation.generate(tokens).await.unwrap_err(), Code::InvalidArgument, "INVALID_FIELD", "9999");
}

#[tokio::test]
async fn wrong_datastore_requests_are_answered_with_what_and_why() {
    let mut s = start().await;
    let d = &mut s.datastore;
    let status = d.create_source(source("free", "free as in beer")).await.unwrap_err();
    check(&status, Code::InvalidArgument, "NOT_AN_SPDX_EXPRESSION", "no SPDX licence expression");
    check(
        &d.create_source(source("Bad Name", "MIT")).await.unwrap_err(),
        Code::InvalidArgument,
        "INVALID_FIELD",
        "no source id",
    );
    d.create_source(source("one", "MIT")).await.unwrap();
    check(
        &d.create_source(source("one", "MIT")).await.unwrap_err(),
        Code::AlreadyExists,
        "SOURCE_EXISTS",
        "exists already",
    );
    let show = d.get_shard(v1::GetShardRequest { id: 5 }).await.unwrap_err();
    check(&show, Code::NotFound, "UNKNOWN_SHARD", "no shard 5");
    let remove = d.remove_shard(v1::RemoveShardRequest { id: 5, validate_only: true }).await.unwrap_err();
    check(&remove, Code::NotFound, "UNKNOWN_SHARD", "no shard 5");
    let mut add =
        async |messages: Vec<v1::AddShardRequest>| d.add_shard(tokio_stream::iter(messages)).await.unwrap_err();
    check(&add(vec![]).await, Code::InvalidArgument, "INVALID_FIELD", "header");
    check(&add(addition("ghost", &["text"])).await, Code::NotFound, "UNKNOWN_SOURCE", "no source 'ghost'");
    check(&add(addition("one", &["  "])).await, Code::InvalidArgument, "DOCUMENT_REFUSED", "no text");
    let mut stricter = addition("one", &["text"]);
    if let Some(v1::add_shard_request::Message::Documents(chunk)) = &mut stricter[1].message {
        chunk.documents[0].licence = "GPL-3.0-only".into();
    }
    check(&add(stricter).await, Code::InvalidArgument, "DOCUMENT_REFUSED", "source of its own");
}

#[tokio::test]
async fn a_deadline_holds_inside_a_stream() {
    let mut s = start().await;
    let mut request = tonic::Request::new(generate("the", 40, v1::RetrievalMode::Parametric));
    request.set_timeout(Duration::ZERO);
    let result = async { s.generation.generate_stream(request).await?.into_inner().message().await };
    // The transport or the engine notices first; both say the same.
    let code = result.await.unwrap_err().code();
    assert!(matches!(code, Code::DeadlineExceeded | Code::Cancelled), "{code:?}");
}

#[tokio::test]
async fn a_time_limit_gives_what_there_is() {
    let mut s = start().await;
    let request = v1::GenerateRequest { time_limit_ms: Some(0), ..generate("the", 40, v1::RetrievalMode::Parametric) };
    let finished = s.generation.generate(request).await.unwrap().into_inner().finished.unwrap();
    assert_eq!(finished.reason(), v1::FinishReason::TimeLimit);
}

#[tokio::test]
async fn a_draining_server_refuses_new_work() {
    let mut s = start().await;
    let mut health = s.generation.clone();
    drop(s.stop.take());
    // Shutting down is asynchronous; new work is refused from some moment on, by the service or by the closed listener.
    let refused = async { while health.generate(generate("the", 1, v1::RetrievalMode::Parametric)).await.is_ok() {} };
    tokio::time::timeout(Duration::from_secs(20), refused).await.expect("new work is refused after the stop");
}

#[tokio::test(flavor = "multi_thread")]
async fn shards_of_another_recipe_are_rebuilt_over_grpc() {
    let mut service = start().await;
    let shard = service.add("notes", &["the cat sat on the mat", "a dog ran in the park"]).await;
    let root = service.stop().await;
    let halves =
        Recipe { key_type: silo_store::KeyType::F16, ..Recipe::read(&project().join("indexes/tiny.toml")).unwrap() };
    let mut service = start_at(root, halves, Limits::default()).await;
    let text = "the cat sat on the park";
    let alone = service.score(text, v1::RetrievalMode::Parametric).await;
    assert_eq!(service.score(text, v1::RetrievalMode::Knn).await, alone, "nothing of it is retrieved");
    let found = service.datastore.get_shard(v1::GetShardRequest { id: shard.id }).await.unwrap().into_inner();
    assert_eq!(found.state(), v1::ShardState::Unavailable);
    assert!(found.reason.contains("silo shard rebuild"), "{}", found.reason);

    let unknown = service.datastore.rebuild_shards(v1::RebuildShardsRequest { ids: vec![99] }).await.unwrap_err();
    assert_eq!(unknown.code(), Code::NotFound);
    let operation = service.datastore.rebuild_shards(v1::RebuildShardsRequest { ids: vec![] }).await.unwrap();
    let wait = lro::WaitOperationRequest { name: operation.into_inner().name, timeout: None };
    let operation = service.operations.wait_operation(wait).await.unwrap().into_inner();
    let progress = v1::RebuildShardsProgress::decode(&operation.metadata.unwrap().value[..]).unwrap();
    assert_eq!((progress.documents_done, progress.documents_total), (2, 2));
    let Some(lro::operation::Result::Response(any)) = operation.result else { panic!("{:?}", operation.result) };
    let rebuilt = v1::RebuildShardsResponse::decode(&any.value[..]).unwrap().shards;
    assert_eq!((rebuilt.len(), rebuilt[0].id, rebuilt[0].state()), (1, shard.id, v1::ShardState::Live));
    assert_ne!(service.score(text, v1::RetrievalMode::Knn).await, alone);
}
