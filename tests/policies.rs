//! What sources may be used for, after they were declared: it holds at once, by itself when a term ends, and after restarts and restores.

use std::sync::atomic::AtomicBool;

use silo_core::{Permissions, SnapshotProvider, SourceId, Term};
use silo_govern::{Caller, GovernError, SignalFile, SignalKind, SourceUpdate, now_unix_ms};
use silo_proto::v1;
use silo_store::{Later, restore};
use tonic::Code;

use crate::forgery::{World, governor, texts};
use crate::service::{generate, start};

fn id(name: &str) -> SourceId {
    name.parse().unwrap()
}

fn deny(permissions: Permissions) -> SourceUpdate {
    SourceUpdate { permissions: Some(permissions), ..SourceUpdate::default() }
}

fn in_force(world: &World, name: &str) -> Permissions {
    world.governor.store().source(&id(name)).unwrap().permissions
}

const DECLARED: Permissions = Permissions { train: false, verbatim: false, ..Permissions::ALL };

#[tokio::test(flavor = "multi_thread")]
async fn a_permission_that_is_taken_back_holds_for_requests_and_running_streams() {
    let mut service = start().await;
    service.add("one", &["the tide book of the harbour master of the bay"]).await;
    let text = "the tide book of the harbour";
    let [alone, with] =
        [service.score(text, v1::RetrievalMode::Parametric).await, service.score(text, v1::RetrievalMode::Knn).await];
    assert_ne!(alone, with);
    let update = |permissions| v1::UpdateSourceRequest { name: "one".into(), permissions, ..Default::default() };
    let no_knn = v1::Permissions { train: true, knn: false, context: true, verbatim: true, display: true };

    let mut running =
        service.engine.generate(service.admit(&generate("the tide", 40, v1::RetrievalMode::Knn))).unwrap();
    let first = running.next().await.unwrap();
    assert!(matches!(first, silo_engine::Event::Token(..)));
    let changed = service.datastore.update_source(update(Some(no_knn))).await.unwrap().into_inner();
    let permissions = changed.permissions.unwrap();
    assert!(!permissions.knn && !permissions.train && permissions.context, "never more than was declared: {changed:?}");
    let silo_engine::Event::Finished(finished) = running.next().await.unwrap() else {
        panic!("a token that neighbours of it weighed in")
    };
    assert_eq!(finished.reason, silo_engine::FinishReason::SourceRemoved);
    assert_eq!(service.score(text, v1::RetrievalMode::Knn).await, alone);
    let all = v1::Permissions { knn: true, ..no_knn };
    service.datastore.update_source(update(Some(all))).await.unwrap();
    assert_eq!(service.score(text, v1::RetrievalMode::Knn).await, with);

    let file = |kind: &str, text: &str| {
        let signals = vec![v1::SignalFile { kind: kind.into(), text: text.into(), ..Default::default() }];
        v1::UpdateSourceRequest { signals, ..update(None) }
    };
    let robots = file("robots", "User-agent: *\nContent-Signal: ai-input=no\n");
    let dry = v1::UpdateSourceRequest { validate_only: true, ..robots.clone() };
    assert!(!service.datastore.update_source(dry).await.unwrap().into_inner().permissions.unwrap().knn);
    assert_eq!(service.score(text, v1::RetrievalMode::Knn).await, with, "nothing was changed");
    let stated = service.datastore.update_source(robots).await.unwrap().into_inner();
    assert_eq!(stated.signals[0].statements, ["Content-Signal: ai-input=no"]);
    assert_eq!(service.score(text, v1::RetrievalMode::KnnAndContext).await, alone);
    for (wrong, code) in [
        (file("smoke", "x"), Code::InvalidArgument),
        (file("tdmrep", "x"), Code::InvalidArgument),
        (v1::UpdateSourceRequest { name: "nobody".into(), ..Default::default() }, Code::NotFound),
        (
            v1::UpdateSourceRequest {
                term: Some(v1::Term { starts_unix_ms: Some(5), ends_unix_ms: Some(5) }),
                ..update(None)
            },
            Code::InvalidArgument,
        ),
    ] {
        assert_eq!(service.datastore.update_source(wrong).await.unwrap_err().code(), code);
    }
}

#[test]
fn a_term_ends_by_itself_and_stays_ended() {
    let world = World::new();
    world.add("one", &texts("birds", 3));
    let legal = Caller { name: "legal".into(), ..Caller::local() };
    let until = |ends| SourceUpdate {
        term: Some(Term { starts_unix_ms: None, ends_unix_ms: Some(ends) }),
        ..SourceUpdate::default()
    };
    let (soon, before) = (now_unix_ms() + 60, world.governor.store().snapshot().epoch);
    world.governor.update_source(&legal, &id("one"), &until(soon), false).unwrap();
    assert_eq!(in_force(&world, "one"), DECLARED);
    while world.governor.apply_terms().unwrap().is_empty() {
        std::thread::yield_now();
    }
    assert!(now_unix_ms() >= soon);
    assert_eq!(in_force(&world, "one"), Permissions::NONE);
    assert_eq!(world.governor.store().snapshot().epoch.0, before.0 + 2, "each has its epoch");
    assert_eq!(world.governor.apply_terms().unwrap(), []);

    // One that ends while nobody serves has ended before the first request.
    let soon = now_unix_ms() + 60;
    world.governor.update_source(&legal, &id("one"), &until(soon), false).unwrap();
    let World { governor: old, folder, keys } = world;
    drop(old);
    while now_unix_ms() < soon {
        std::thread::yield_now();
    }
    let world = World { governor: governor(folder.path()), folder, keys };
    assert_eq!(in_force(&world, "one"), Permissions::NONE);
    let wrong = SourceUpdate { term: Some(Term { starts_unix_ms: Some(9), ends_unix_ms: Some(3) }), ..until(1) };
    assert!(matches!(world.governor.update_source(&legal, &id("one"), &wrong, true), Err(GovernError::Term { .. })));
}

#[test]
fn what_was_said_outlives_a_restore_of_a_backup_of_before() {
    let world = World::new();
    world.add("one", &texts("birds", 3));
    world.governor.backup("early", &AtomicBool::new(false), &|_, _| {}).unwrap();
    let legal = Caller { name: "legal".into(), ..Caller::local() };
    let no_knn = Permissions { knn: false, ..Permissions::ALL };
    world.governor.update_source(&legal, &id("one"), &deny(no_knn), false).unwrap();
    let signal = SignalFile {
        kind: SignalKind::Headers,
        text: "Content-Usage: search=n".into(),
        path: "/".into(),
        found_at: "https://example.org/".into(),
    };
    let signals = SourceUpdate { signals: vec![signal], ..SourceUpdate::default() };
    world.governor.update_source(&legal, &id("one"), &signals, false).unwrap();
    let expected = Permissions { knn: false, display: false, ..DECLARED };
    assert_eq!(in_force(&world, "one"), expected);
    let World { governor: old, folder, keys } = world;
    drop(old);
    restore(&folder.path().join("backups/early"), &folder.path().join("store"), Later::None, None).unwrap();
    let world = World { governor: governor(folder.path()), folder, keys };
    assert_eq!(in_force(&world, "one"), expected);
    let state = world.governor.source_state(&id("one")).unwrap();
    assert_eq!((state.policy.revision, &state.policy.signals[0].found_at[..]), (2, "https://example.org/"));
}
