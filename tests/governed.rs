//! Withdrawals inside shards, suspension, backup and restore, over gRPC.

use silo_proto::v1;
use silo_store::{Later, Recipe, restore};
use tonic::Code;
use v1::remove_documents_request::Selection;

use super::service::{Limits, MODES, Service, TEXT, check, generate, project, start, start_at};

const KEPT: [&str; 2] = ["the other thing and the thing", "something else in the house"];
const GONE: [&str; 2] = ["the thing is nothing without the other thing", "the thing about the thing"];

async fn scores(s: &mut Service) -> Vec<Vec<u64>> {
    let mut out = Vec::new();
    for mode in MODES {
        out.push(s.score(TEXT, mode).await);
    }
    out
}

async fn remove(s: &mut Service, selection: Selection, validate_only: bool) -> v1::RemoveDocumentsResponse {
    let request = v1::RemoveDocumentsRequest { selection: Some(selection), validate_only };
    s.datastore.remove_documents(request).await.unwrap().into_inner()
}

fn prefix(prefix: &str, source: &str) -> Selection {
    Selection::UriPrefix(v1::UriPrefix { prefix: prefix.into(), source: source.into() })
}

async fn shard(s: &mut Service, id: u64) -> v1::Shard {
    s.datastore.get_shard(v1::GetShardRequest { id }).await.unwrap().into_inner()
}

/// Documents of a shard are withdrawn while streams run: scores are those of a store that never had them, before and after the files are
/// written anew.
#[tokio::test]
async fn documents_are_withdrawn_while_streams_run() {
    let (mut never, mut s) = (start().await, start().await);
    never.add("one", &KEPT).await;
    let (expected, root) = (scores(&mut never).await, never.root().await);

    // URIs are test:0 to test:3, in this order.
    let added = s.add("one", &[KEPT[0], KEPT[1], GONE[0], GONE[1]]).await;
    assert_ne!(scores(&mut s).await, expected);
    let mut streams = Vec::new();
    for mode in MODES {
        let mut stream = s.generation.generate_stream(generate("the", 40, mode)).await.unwrap().into_inner();
        stream.message().await.unwrap();
        streams.push(stream);
    }
    let plan = remove(&mut s, prefix("test:2", ""), true).await;
    assert_eq!((plan.parts[0].n_documents, plan.removal), (1, None));
    assert_ne!(s.root().await, root, "a plan changes nothing");
    remove(&mut s, prefix("test:2", ""), false).await;
    let hash = silo_core::ContentHash::of(GONE[1].as_bytes()).to_string();
    let list = v1::DocumentList { source: "one".into(), documents: vec![hash] };
    let removal = remove(&mut s, Selection::Documents(list), false).await.removal.unwrap();
    assert!(removal.durable_ms > 0.0 && removal.effective_ms >= removal.durable_ms);
    assert_eq!((&removal.root_after, &s.root().await), (&root, &root));
    assert_eq!(scores(&mut s).await, expected);
    let purged: v1::PurgeResponse = s.finish(removal.purge_operation.clone()).await.unwrap();
    // The purge of the withdrawal before it may have taken it along.
    assert!(purged.failures.is_empty() && s.n_unpurged().await == 0, "{purged:?}");
    let left = shard(&mut s, added.id).await;
    assert_eq!((left.n_documents, left.files.unwrap().n_documents), (2, 2), "logical and physical state agree again");
    assert!(left.n_bytes < added.n_bytes);
    assert_eq!(scores(&mut s).await, expected);
    for (mode, mut stream) in MODES.into_iter().zip(streams) {
        let mut last = None;
        while let Some(message) = stream.message().await.unwrap() {
            if let Some(v1::generate_chunk::Message::Finished(finished)) = message.message {
                last = Some(finished);
            }
        }
        // The model alone saw nothing of it. The others may have ended before the removal.
        let reason = last.unwrap().reason();
        let expected = [v1::FinishReason::SourceRemoved, v1::FinishReason::Length, v1::FinishReason::EndOfText];
        assert!(expected.contains(&reason), "{reason:?}");
        assert!(mode != v1::RetrievalMode::Parametric || reason != v1::FinishReason::SourceRemoved);
    }
    // All that is left of a source, which takes the shard with it.
    let all = remove(&mut s, Selection::Source("one".into()), false).await.removal.unwrap();
    assert_eq!((all.parts[0].whole_shard, all.parts[0].n_documents), (true, 2));
    assert_eq!(shard(&mut s, added.id).await.state(), v1::ShardState::Removed);
}

#[tokio::test]
async fn a_suspended_shard_is_as_if_it_were_not_there() {
    let mut s = start().await;
    let parametric = scores(&mut s).await;
    let (id, root) = (s.add("one", &KEPT).await.id, s.root().await);
    let with = scores(&mut s).await;
    let suspended = s.datastore.suspend_shard(v1::SuspendShardRequest { id }).await.unwrap().into_inner();
    assert_eq!(suspended.shard.unwrap().state(), v1::ShardState::Suspended);
    assert_eq!(scores(&mut s).await, parametric);
    let again = s.datastore.suspend_shard(v1::SuspendShardRequest { id }).await.unwrap_err();
    check(&again, Code::FailedPrecondition, "SHARD_STATE", "suspended already");
    s.datastore.resume_shard(v1::ResumeShardRequest { id }).await.unwrap();
    assert_eq!((scores(&mut s).await, s.root().await), (with, root));
    let again = s.datastore.resume_shard(v1::ResumeShardRequest { id }).await.unwrap_err();
    check(&again, Code::FailedPrecondition, "SHARD_STATE", "is live");
}

/// What was withdrawn after a backup is not in the store that is made of it.
#[tokio::test]
async fn a_restored_store_holds_nothing_that_was_withdrawn_since() {
    let (mut never, mut s) = (start().await, start().await);
    never.add("one", &KEPT).await;
    let (expected, root) = (scores(&mut never).await, never.root().await);
    s.add("one", &KEPT).await;
    s.add("two", &GONE).await;
    let request = v1::BackupStoreRequest { name: "monday".into() };
    let operation = s.datastore.backup_store(request.clone()).await.unwrap().into_inner();
    let made: v1::BackupStoreResponse = s.finish(operation.name).await.unwrap();
    assert_eq!((made.n_shards, &made.root), (2, &s.root().await));
    let again = s.datastore.backup_store(request).await.unwrap().into_inner();
    let refused = s.finish::<v1::BackupStoreResponse>(again.name).await.unwrap_err();
    assert!(refused.contains("exists already"), "{refused}");
    let removal = remove(&mut s, Selection::Source("two".into()), false).await.removal.unwrap();
    assert_eq!(removal.backups, ["monday"]);
    let old = s.stop().await;

    let new = tempfile::tempdir().unwrap();
    let backup = old.path().join("backups/monday");
    let restored = restore(&backup, new.path(), Later::Log(old.path()), None).unwrap();
    assert_eq!((restored.n_replayed, restored.n_shards), (1, 1));
    let recipe = Recipe::read(&project().join("indexes/tiny.toml")).unwrap();
    let mut s = start_at(new, recipe, Limits::default()).await;
    assert_eq!((scores(&mut s).await, s.root().await), (expected, root));
    let status = s.datastore.get_store(v1::GetStoreRequest {}).await.unwrap().into_inner();
    assert!(status.epoch > removal.epoch);
}

#[tokio::test]
async fn wrong_withdrawals_are_answered_with_what_and_why() {
    let mut s = start().await;
    s.add("one", &KEPT).await;
    let cases = [
        (None, Code::InvalidArgument, "INVALID_FIELD", "name a source"),
        (Some(prefix("", "")), Code::InvalidArgument, "EMPTY_PREFIX", "name the source"),
        (Some(prefix("nowhere:", "")), Code::NotFound, "NOTHING_SELECTED", "nothing of this"),
        (Some(prefix("test:", "ghost")), Code::NotFound, "UNKNOWN_SOURCE", "no source 'ghost'"),
        (Some(Selection::Source("ghost".into())), Code::NotFound, "UNKNOWN_SOURCE", "no source 'ghost'"),
        (
            Some(Selection::Documents(v1::DocumentList { source: "one".into(), documents: vec!["12".into()] })),
            Code::InvalidArgument,
            "INVALID_FIELD",
            "64 hexadecimal digits",
        ),
    ];
    for (selection, code, reason, says) in cases {
        let request = v1::RemoveDocumentsRequest { selection, validate_only: false };
        check(&s.datastore.remove_documents(request).await.unwrap_err(), code, reason, says);
    }
    let request = v1::BackupStoreRequest { name: "../elsewhere".into() };
    let operation = s.datastore.backup_store(request).await.unwrap().into_inner();
    let refused = s.finish::<v1::BackupStoreResponse>(operation.name).await.unwrap_err();
    assert!(refused.contains("no name for a backup"), "{refused}");
    let forget = s.datastore.forget_backup(v1::ForgetBackupRequest { name: "ghost".into() }).await.unwrap_err();
    check(&forget, Code::NotFound, "UNKNOWN_BACKUP", "no backup 'ghost'");
    assert_eq!(shard(&mut s, 1).await.n_documents, 2, "nothing was changed");
}
