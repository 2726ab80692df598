//! A request of each method that would answer with something of the text, if anything would.

use std::collections::BTreeMap;

use prost::Message;
use silo_core::ContentHash;
use silo_proto::{longrunning as lro, v1};

use super::super::service::generate;
use super::{Asked, text};

/// The messages of each method.
pub type Requests = BTreeMap<String, Vec<Vec<u8>>>;

const PROMPT: &str = "The tale of";

/// By their full names.
pub fn requests(asked: &Asked) -> Requests {
    let mut out = Requests::new();
    let services = [
        ("silo.v1.GenerationService", generation()),
        ("silo.v1.DatastoreService", datastore(asked.shard)),
        ("silo.v1.OptOutService", optouts(asked)),
        ("silo.v1.AttributionService", attribution(&asked.response)),
        ("google.longrunning.Operations", operations(&asked.operation)),
        ("grpc.health.v1.Health", vec![("Check", Vec::new()), ("Watch", Vec::new())]),
        ("grpc.reflection.v1.ServerReflection", vec![("ServerReflectionInfo", Vec::new())]),
        ("grpc.reflection.v1alpha.ServerReflection", vec![("ServerReflectionInfo", Vec::new())]),
    ];
    for (service, methods) in services {
        out.extend(methods.into_iter().map(|(name, message)| (format!("{service}/{name}"), vec![message])));
    }
    out.insert("silo.v1.DatastoreService/AddShard".into(), addition());
    out
}

/// What follows the beginning of the text is copied from it, if it is there.
pub(super) fn copying() -> v1::GenerateRequest {
    let mut copying = generate(PROMPT, 48, v1::RetrievalMode::Knn);
    let retrieval = copying.retrieval.as_mut().unwrap();
    (retrieval.knn_weight, retrieval.k, retrieval.knn_temperature) = (Some(1.0), Some(1), Some(0.01));
    copying.sampling = Some(v1::Sampling { temperature: Some(0.0), ..Default::default() });
    copying
}

fn attribution(response_id: &str) -> Vec<(&'static str, Vec<u8>)> {
    use v1::compare_without_request::Compared;
    let response = v1::AttributeResponseRequest { response_id: response_id.into() };
    let of = v1::AttributeTextRequest { text: text(), k: Some(50), passages: Some(50), ..Default::default() };
    let (sources, compared) = (vec!["other".into()], Some(Compared::Generate(copying())));
    let report = v1::GetSourceReportRequest { source: "gone".into(), ..Default::default() };
    vec![
        ("AttributeResponse", response.encode_to_vec()),
        ("AttributeText", of.encode_to_vec()),
        ("CompareWithout", v1::CompareWithoutRequest { sources, compared }.encode_to_vec()),
        ("GetSourceReport", report.encode_to_vec()),
        ("SignSourceReport", report.encode_to_vec()),
    ]
}

fn generation() -> Vec<(&'static str, Vec<u8>)> {
    let copying = copying();
    let input = Some(v1::score_request::Input::Text(PROMPT.into()));
    vec![
        ("Generate", copying.encode_to_vec()),
        ("GenerateStream", copying.encode_to_vec()),
        ("Score", v1::ScoreRequest { input, ..Default::default() }.encode_to_vec()),
        ("Tokenize", v1::TokenizeRequest { text: PROMPT.into() }.encode_to_vec()),
        ("GetModel", Vec::new()),
    ]
}

fn datastore(id: u64) -> Vec<(&'static str, Vec<u8>)> {
    let hash = ContentHash::of(text().as_bytes()).to_string();
    let documents = v1::DocumentList { source: "gone".into(), documents: vec![hash] };
    let selection = Some(v1::remove_documents_request::Selection::Documents(documents));
    let (owner, licence) = ("o".into(), "MIT".into());
    let source = Some(v1::Source { name: "gone".into(), owner, licence, ..Default::default() });
    let search = v1::SearchRequest { text: PROMPT.into(), k: Some(50), passages: Some(50), ..Default::default() };
    vec![
        ("CreateSource", v1::CreateSourceRequest { source, validate_only: true }.encode_to_vec()),
        ("UpdateSource", v1::UpdateSourceRequest { name: "gone".into(), ..Default::default() }.encode_to_vec()),
        ("GetSource", v1::GetSourceRequest { name: "gone".into() }.encode_to_vec()),
        ("ListSources", Vec::new()),
        ("RebuildShards", v1::RebuildShardsRequest { ids: vec![id] }.encode_to_vec()),
        ("GetShard", v1::GetShardRequest { id }.encode_to_vec()),
        ("ListShards", v1::ListShardsRequest { show_removed: true, ..Default::default() }.encode_to_vec()),
        ("SuspendShard", v1::SuspendShardRequest { id }.encode_to_vec()),
        ("ResumeShard", v1::ResumeShardRequest { id }.encode_to_vec()),
        ("RemoveShard", v1::RemoveShardRequest { id, validate_only: true }.encode_to_vec()),
        ("RemoveDocuments", v1::RemoveDocumentsRequest { selection, validate_only: true }.encode_to_vec()),
        ("BackupStore", v1::BackupStoreRequest { name: "b".into() }.encode_to_vec()),
        ("ForgetBackup", v1::ForgetBackupRequest { name: "x".into() }.encode_to_vec()),
        ("GetStore", Vec::new()),
        ("Search", search.encode_to_vec()),
    ]
}

/// It is kept out: the error must not say what it is like.
fn addition() -> Vec<Vec<u8>> {
    use v1::add_shard_request::Message as M;
    let document = v1::Document { uri: "again".into(), text: text(), ..Default::default() };
    let header = M::Header(v1::AddShardHeader { source: "other".into() });
    let chunk = M::Documents(v1::DocumentChunk { documents: vec![document] });
    [header, chunk].map(|m| v1::AddShardRequest { message: Some(m) }.encode_to_vec()).to_vec()
}

fn optouts(asked: &Asked) -> Vec<(&'static str, Vec<u8>)> {
    let (id, removal) = (asked.optout, asked.removal);
    let why = || Some(v1::Why { reason: v1::ReasonCode::Other.into(), note: String::new() });
    let submission = v1::SubmitOptOutRequest {
        selection: Some(v1::submit_opt_out_request::Selection::Passage(text())),
        claimant: "c".into(),
        why: why(),
        validate_only: true,
        ..Default::default()
    };
    let verdict = v1::decide_opt_out_request::Verdict::Review.into();
    vec![
        ("SubmitOptOut", submission.encode_to_vec()),
        ("GetOptOut", v1::GetOptOutRequest { id, with_statement: true }.encode_to_vec()),
        ("ListOptOuts", Vec::new()),
        ("DecideOptOut", v1::DecideOptOutRequest { id, verdict, why: why(), spare: Vec::new() }.encode_to_vec()),
        ("HoldOptOut", v1::HoldOptOutRequest { id, end: false, why: why() }.encode_to_vec()),
        ("CounterNotice", v1::CounterNoticeRequest { id, why: why() }.encode_to_vec()),
        ("AppealOptOut", v1::AppealOptOutRequest { id, why: why() }.encode_to_vec()),
        ("RestoreOptOut", v1::RestoreOptOutRequest { id, why: why() }.encode_to_vec()),
        ("ListSuppressions", Vec::new()),
        ("GetReceipt", v1::GetReceiptRequest { removal }.encode_to_vec()),
        ("GetLogProof", v1::GetLogProofRequest { n_entries: 3, ..Default::default() }.encode_to_vec()),
    ]
}

fn operations(name: &str) -> Vec<(&'static str, Vec<u8>)> {
    let name = || name.to_owned();
    vec![
        ("ListOperations", Vec::new()),
        ("GetOperation", lro::GetOperationRequest { name: name() }.encode_to_vec()),
        ("WaitOperation", lro::WaitOperationRequest { name: name(), timeout: None }.encode_to_vec()),
        ("CancelOperation", lro::CancelOperationRequest { name: name() }.encode_to_vec()),
        ("DeleteOperation", lro::DeleteOperationRequest { name: name() }.encode_to_vec()),
    ]
}
