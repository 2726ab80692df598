//! Who may call what: tokens, roles, scopes, certificates.

use std::path::Path;

use prost::Message;
use silo_core::SourceId;
use silo_govern::{NewToken, Role, TokenFile};
use silo_proto::longrunning::operations_client::OperationsClient;
use silo_proto::v1::datastore_service_client::DatastoreServiceClient;
use silo_proto::v1::generation_service_client::GenerationServiceClient;
use silo_proto::{longrunning as lro, v1};
use silo_server::{Server, ServerConfig, TlsConfig};
use silo_store::Recipe;
use tempfile::TempDir;
use tokio::sync::oneshot;
use tonic::client::Grpc;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Identity};
use tonic::{Code, Request, Status};
use tonic_prost::ProstCodec;
use tonic_types::StatusExt;

use super::service::{Limits, parts, project};

/// A server that knows callers by their tokens.
struct Guarded {
    channel: Channel,
    tokens: TokenFile,
    _stop: oneshot::Sender<()>,
    _root: TempDir,
}

type Wire = InterceptedService<Channel, Bearer>;

#[derive(Clone)]
struct Bearer(MetadataValue<Ascii>);

impl Bearer {
    fn of(token: &str) -> Self {
        Self(format!("Bearer {token}").parse().unwrap())
    }
}

impl tonic::service::Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.metadata_mut().insert("authorization", self.0.clone());
        Ok(request)
    }
}

fn config(root: &Path) -> ServerConfig {
    let tokens = Some(root.join("tokens.json"));
    ServerConfig { listen: ([127, 0, 0, 1], 0).into(), tokens, drain_seconds: 1, ..ServerConfig::default() }
}

async fn serve(root: TempDir, config: ServerConfig, tls: Option<ClientTlsConfig>) -> Guarded {
    let recipe = Recipe::read(&project().join("indexes/tiny.toml")).unwrap();
    let (engine, governor) = parts(root.path(), recipe, Limits::default());
    let tokens = TokenFile::new(config.tokens.as_deref().unwrap());
    let server = Server::bind(config, engine, governor).await.unwrap();
    let address = server.address().unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    tokio::spawn(server.serve(async { drop(stopped.await) }));
    let channel = match tls {
        Some(tls) => {
            Channel::from_shared(format!("https://localhost:{}", address.port())).unwrap().tls_config(tls).unwrap()
        }
        None => Channel::from_shared(format!("http://{address}")).unwrap(),
    };
    Guarded { channel: channel.connect_lazy(), tokens, _stop: stop, _root: root }
}

async fn guarded() -> Guarded {
    let root = tempfile::tempdir().unwrap();
    let config = config(root.path());
    serve(root, config, None).await
}

impl Guarded {
    fn token(&self, name: &str, role: Role, sources: &[&str]) -> String {
        let sources = (!sources.is_empty()).then(|| sources.iter().map(|s| s.parse::<SourceId>().unwrap()).collect());
        self.tokens.create(NewToken { name: name.into(), role, sources, expires_unix_ms: None }).unwrap()
    }

    /// Calls a method with an empty message.
    async fn call(&self, method: &str, token: Option<&str>) -> Result<(), Status> {
        let mut grpc = Grpc::new(self.channel.clone());
        grpc.ready().await.map_err(|e| Status::from_error(e.into()))?;
        let mut request = Request::new(tokio_stream::iter([()]));
        if let Some(token) = token {
            request.metadata_mut().insert("authorization", Bearer::of(token).0);
        }
        let path = format!("/{method}").parse().unwrap();
        let mut answer = grpc.streaming(request, path, ProstCodec::<(), ()>::default()).await?.into_inner();
        answer.message().await.map(drop)
    }

    fn datastore(&self, token: &str) -> DatastoreServiceClient<Wire> {
        DatastoreServiceClient::with_interceptor(self.channel.clone(), Bearer::of(token))
    }

    fn operations(&self, token: &str) -> OperationsClient<Wire> {
        OperationsClient::with_interceptor(self.channel.clone(), Bearer::of(token))
    }

    fn generation(&self, token: &str) -> GenerationServiceClient<Wire> {
        GenerationServiceClient::with_interceptor(self.channel.clone(), Bearer::of(token))
    }
}

/// All methods of all services that the server has, by what it says of itself.
pub(crate) fn methods() -> Vec<String> {
    let set = prost_types::FileDescriptorSet::decode(silo_proto::DESCRIPTORS).unwrap();
    let mut out: Vec<String> = Vec::new();
    for file in set.file {
        for service in file.service {
            let name = format!("{}.{}", file.package.clone().unwrap(), service.name.unwrap());
            out.extend(service.method.iter().map(|m| format!("{name}/{}", m.name())));
        }
    }
    out.extend(["v1", "v1alpha"].map(|v| format!("grpc.reflection.{v}.ServerReflection/ServerReflectionInfo")));
    out
}

fn reason(status: &Status) -> String {
    status.get_details_error_info().map(|info| info.reason).unwrap_or_default()
}

/// Who may do what matters most, in so many words.
const MAY: [(&str, &[Role]); 19] = [
    ("/Generate", &[Role::Generator, Role::Admin]),
    ("/GenerateStream", &[Role::Generator, Role::Admin]),
    ("/Score", &[Role::Generator, Role::Admin]),
    ("/Search", &[Role::Reader, Role::Curator, Role::Legal, Role::Auditor, Role::Admin]),
    ("/AttributeResponse", &[Role::Generator, Role::Legal, Role::Auditor, Role::Admin]),
    ("/AttributeText", &[Role::Reader, Role::Curator, Role::Legal, Role::Auditor, Role::Admin]),
    ("/CompareWithout", &[Role::Generator, Role::Legal, Role::Auditor, Role::Admin]),
    ("/GetSourceReport", &[Role::Owner, Role::Curator, Role::Legal, Role::Auditor, Role::Admin]),
    ("/SignSourceReport", &[Role::Owner, Role::Legal, Role::Admin]),
    ("/RemoveShard", &[Role::Legal, Role::Admin]),
    ("/RemoveDocuments", &[Role::Legal, Role::Admin]),
    ("/ResumeShard", &[Role::Legal, Role::Admin]),
    ("/UpdateSource", &[Role::Curator, Role::Legal, Role::Admin]),
    ("/SubmitOptOut", &[Role::Owner, Role::Legal, Role::Admin]),
    ("/DecideOptOut", &[Role::Legal, Role::Admin]),
    ("/HoldOptOut", &[Role::Legal, Role::Admin]),
    ("/RestoreOptOut", &[Role::Legal, Role::Admin]),
    ("/BackupStore", &[Role::Admin]),
    ("/ListOperations", &[Role::Curator, Role::Legal, Role::Auditor, Role::Admin]),
];

/// Whether the name says that something is changed.
fn changes(method: &str) -> bool {
    let name = method.split('/').next_back().unwrap();
    // Owners make requests and object: they change own requests only.
    let verbs = [
        "Create", "Update", "Add", "Rebuild", "Suspend", "Resume", "Remove", "Backup", "Forget", "Cancel", "Delete",
        "Decide", "Hold", "Restore",
    ];
    verbs.iter().any(|verb| name.starts_with(verb))
}

#[tokio::test(flavor = "multi_thread")]
async fn every_call_asks_who_calls_and_whether_they_may() {
    let server = guarded().await;
    let (methods, mut allowed) = (methods(), Vec::new());
    assert!(methods.len() > 25, "{methods:?}");
    let tokens = Role::ALL.map(|role| (role, server.token(role.name(), role, &["one"])));
    for method in &methods {
        let nobody = server.call(method, None).await.unwrap_err();
        assert_eq!((nobody.code(), &reason(&nobody)[..]), (Code::Unauthenticated, "NO_TOKEN"), "{method}");
        let stranger = server.call(method, Some("silo_00")).await.unwrap_err();
        assert_eq!((stranger.code(), &reason(&stranger)[..]), (Code::Unauthenticated, "UNKNOWN_TOKEN"), "{method}");
        for (role, token) in &tokens {
            // What comes of an empty message is the service's affair.
            let refused = server.call(method, Some(token)).await.err().filter(|s| reason(s) == "ROLE");
            match refused {
                Some(status) => assert_eq!(status.code(), Code::PermissionDenied),
                None => allowed.push((*role, &method[..])),
            }
        }
    }
    for (name, roles) in MAY {
        let found: Vec<Role> = allowed.iter().filter(|(_, m)| m.ends_with(name)).map(|(role, _)| *role).collect();
        assert_eq!(found, roles, "{name}");
    }
    for method in &methods {
        let may = |role: Role| allowed.contains(&(role, &method[..]));
        assert!(may(Role::Admin), "{method}");
        for role in [Role::Reader, Role::Generator, Role::Owner, Role::Auditor] {
            assert!(!(changes(method) && may(role)), "{role} may call {method}");
        }
    }
    assert!(
        server
            .call("silo.v1.DatastoreService/NoSuchCall", Some(&tokens[6].1))
            .await
            .is_err_and(|s| reason(&s) == "ROLE")
    );
    server.call("grpc.health.v1.Health/Check", None).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_token_is_refused_from_the_next_call_on() {
    let server = guarded().await;
    let token = server.token("ann", Role::Reader, &[]);
    let list = || server.call("silo.v1.DatastoreService/ListSources", Some(&token));
    list().await.unwrap();
    server.tokens.revoke("ann").unwrap();
    assert_eq!(list().await.unwrap_err().code(), Code::Unauthenticated);
}

fn addition(source: &str, text: &str) -> Vec<v1::AddShardRequest> {
    use v1::add_shard_request::Message;
    let document = v1::Document { uri: format!("{source}/1"), text: text.into(), ..Default::default() };
    let chunk = v1::DocumentChunk { documents: vec![document] };
    let messages = [Message::Header(v1::AddShardHeader { source: source.into() }), Message::Documents(chunk)];
    messages.map(|m| v1::AddShardRequest { message: Some(m) }).to_vec()
}

/// Two sources with a shard each; the number of the second's.
async fn two_sources(server: &Guarded) -> u64 {
    let admin = server.token("root", Role::Admin, &[]);
    let mut datastore = server.datastore(&admin);
    for name in ["one", "two"] {
        let licence = "LicenseRef-test".to_owned();
        let source = Some(v1::Source { name: name.into(), owner: "o".into(), licence, ..Default::default() });
        datastore.create_source(v1::CreateSourceRequest { source, validate_only: false }).await.unwrap();
        let text = format!("the fox of {name} jumps over the lazy dog of {name}");
        let operation = datastore.add_shard(tokio_stream::iter(addition(name, &text))).await.unwrap().into_inner();
        let mut operations = server.operations(&admin);
        let wait = lro::WaitOperationRequest { name: operation.name, timeout: None };
        assert!(operations.wait_operation(wait).await.unwrap().into_inner().done);
    }
    let shards = datastore.list_shards(v1::ListShardsRequest::default()).await.unwrap().into_inner().shards;
    shards.iter().find(|s| s.source == "two").unwrap().id
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_in_a_tokens_scope_is_not_there() {
    let server = guarded().await;
    let other = two_sources(&server).await;
    let mut curator = server.datastore(&server.token("cur", Role::Curator, &["one"]));
    let mut legal = server.datastore(&server.token("leg", Role::Legal, &["one"]));
    let sources = curator.list_sources(v1::ListSourcesRequest::default()).await.unwrap().into_inner().sources;
    assert!(sources.len() == 1 && sources[0].name == "one");
    let shards = curator.list_shards(v1::ListShardsRequest::default()).await.unwrap().into_inner().shards;
    assert!(shards.len() == 1 && shards[0].source == "one");
    let unknown = |status: Status| (status.code() == Code::NotFound).then(|| reason(&status));
    let got = curator.get_source(v1::GetSourceRequest { name: "two".into() }).await.unwrap_err();
    let never = curator.get_source(v1::GetSourceRequest { name: "three".into() }).await.unwrap_err();
    assert_eq!(got.message().replace("two", "three"), never.message());
    for status in [
        curator.get_shard(v1::GetShardRequest { id: other }).await.unwrap_err(),
        curator.suspend_shard(v1::SuspendShardRequest { id: other }).await.unwrap_err(),
        curator.rebuild_shards(v1::RebuildShardsRequest { ids: vec![other] }).await.unwrap_err(),
        legal.remove_shard(v1::RemoveShardRequest { id: other, validate_only: true }).await.unwrap_err(),
    ] {
        assert_eq!(unknown(status).as_deref(), Some("UNKNOWN_SHARD"));
    }
    let add = curator.add_shard(tokio_stream::iter(addition("two", "a text"))).await.unwrap_err();
    assert_eq!((add.code(), &reason(&add)[..]), (Code::PermissionDenied, "OUT_OF_SCOPE"));
    for source in ["two", ""] {
        use v1::remove_documents_request::Selection;
        let prefix = v1::UriPrefix { source: source.into(), prefix: "t".into() };
        let selection = Some(Selection::UriPrefix(prefix));
        let removal = v1::RemoveDocumentsRequest { selection, validate_only: true };
        let status = legal.remove_documents(removal).await.unwrap_err();
        assert_eq!((status.code(), &reason(&status)[..]), (Code::PermissionDenied, "OUT_OF_SCOPE"));
    }
    let store = curator.get_store(v1::GetStoreRequest {}).await.unwrap().into_inner();
    assert_eq!((store.n_sources, store.n_shards, store.backups.len()), (1, 1, 0));
    let mut operations = server.operations(&server.token("ops", Role::Curator, &["one"]));
    let seen = operations.list_operations(lro::ListOperationsRequest::default()).await.unwrap().into_inner().operations;
    assert_eq!(seen.len(), 1, "that of the other source is not there: {seen:?}");
    let text = "the fox of".to_owned();
    let found = legal.search(v1::SearchRequest { text, k: Some(50), ..Default::default() }).await.unwrap().into_inner();
    assert!(!found.neighbors.is_empty() && found.neighbors.iter().all(|n| n.source == "one"));
    assert!(!found.passages.is_empty() && found.passages.iter().all(|p| p.source == "one"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_curator_cannot_keep_what_legal_withdrew_in_the_files() {
    let server = guarded().await;
    let shard = two_sources(&server).await;
    let mut legal = server.datastore(&server.token("leg", Role::Legal, &[]));
    let removal = v1::RemoveShardRequest { id: shard, validate_only: false };
    let purge = legal.remove_shard(removal).await.unwrap().into_inner().removal.unwrap().purge_operation;
    let mut curator = server.operations(&server.token("cur", Role::Curator, &[]));
    let status = curator.cancel_operation(lro::CancelOperationRequest { name: purge.clone() }).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied);
    let wait = lro::WaitOperationRequest { name: purge, timeout: None };
    assert!(curator.wait_operation(wait).await.unwrap().into_inner().done);
}

#[tokio::test(flavor = "multi_thread")]
async fn generation_within_a_scope_is_that_of_a_filter() {
    let server = guarded().await;
    two_sources(&server).await;
    let mut scoped = server.generation(&server.token("s", Role::Generator, &["one"]));
    let mut free = server.generation(&server.token("f", Role::Generator, &[]));
    let score = |filter: Option<v1::Filter>| v1::ScoreRequest {
        input: Some(v1::score_request::Input::Text("the fox of two jumps".into())),
        retrieval: Some(v1::Retrieval { mode: v1::RetrievalMode::KnnAndContext as i32, filter, ..Default::default() }),
        ..Default::default()
    };
    let only = |names: &[&str]| {
        Some(v1::Filter { allow_sources: names.iter().map(|n| (*n).to_owned()).collect(), ..Default::default() })
    };
    let log_p = |response: v1::ScoreResponse| -> Vec<u64> {
        response.tokens.iter().map(|t| t.log_probability.to_bits()).collect()
    };
    let all = log_p(free.score(score(None)).await.unwrap().into_inner());
    let filtered = log_p(free.score(score(only(&["one"]))).await.unwrap().into_inner());
    assert_ne!(all, filtered);
    assert_eq!(log_p(scoped.score(score(None)).await.unwrap().into_inner()), filtered);
    let named = scoped.score(score(only(&["two"]))).await.unwrap_err();
    assert_eq!((named.code(), &reason(&named)[..]), (Code::NotFound, "UNKNOWN_NAME"));
}

/// A certificate for localhost that signs itself, and its key.
fn certificate(root: &Path, name: &str) -> (Vec<u8>, Vec<u8>) {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let (certificate, key) = (made.cert.pem().into_bytes(), made.signing_key.serialize_pem().into_bytes());
    std::fs::write(root.join(format!("{name}.pem")), &certificate).unwrap();
    std::fs::write(root.join(format!("{name}.key")), &key).unwrap();
    (certificate, key)
}

#[tokio::test(flavor = "multi_thread")]
async fn over_tls_callers_may_have_to_show_a_certificate_too() {
    let certificates = tempfile::tempdir().unwrap();
    let path = |name: &str| certificates.path().join(name);
    let (own, _) = certificate(certificates.path(), "server");
    let (client, key) = certificate(certificates.path(), "client");
    for (asked_for, shown) in [(false, false), (true, false), (true, true)] {
        let client_authority = asked_for.then(|| path("client.pem"));
        let tls = TlsConfig { certificate: path("server.pem"), key: path("server.key"), client_authority };
        let mut trusting = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(&own));
        if shown {
            trusting = trusting.identity(Identity::from_pem(&client, &key));
        }
        let root = tempfile::tempdir().unwrap();
        let config = ServerConfig { tls: Some(tls), ..config(root.path()) };
        let server = serve(root, config, Some(trusting)).await;
        let token = server.token("ann", Role::Reader, &[]);
        let called = server.call("silo.v1.DatastoreService/ListSources", Some(&token)).await;
        assert_eq!(called.is_ok(), asked_for == shown, "asked for: {asked_for}, shown: {shown}: {called:?}");
        if called.is_ok() {
            let nobody = server.call("silo.v1.DatastoreService/ListSources", None).await.unwrap_err();
            assert_eq!(nobody.code(), Code::Unauthenticated);
        }
    }
}

#[test]
fn an_address_that_others_reach_needs_tokens_and_tls() {
    let open = ServerConfig { listen: ([0, 0, 0, 0], 50061).into(), ..ServerConfig::default() };
    assert!(open.check().unwrap_err().to_string().contains("silo token create"));
    let plain = ServerConfig { tokens: Some("tokens.json".into()), ..open };
    assert!(plain.check().unwrap_err().to_string().contains("plain_text_beyond_loopback"));
    ServerConfig { plain_text_beyond_loopback: true, ..plain.clone() }.check().unwrap();
    let tls = TlsConfig { certificate: "a".into(), key: "b".into(), client_authority: None };
    ServerConfig { tls: Some(tls), ..plain }.check().unwrap();
}
