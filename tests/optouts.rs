//! The opt-out workflow: what requests do to the store, what they keep out, and what outlives crashes and restores.

use std::collections::BTreeSet;
use std::sync::atomic::AtomicBool;

use silo_core::{
    ContentHash, Document, OptOut, OptOutSelection, OptOutState, ReasonCode, Selection, SnapshotProvider, SourceId,
    Tier,
};
use silo_govern::{Caller, Decision, GovernError, NewOptOut, Refusal, Role, StoreError, Verdict, Why};
use silo_log::Receipt;
use silo_store::{Later, Store, restore};

use crate::forgery::{World, governor, texts};

const PASSAGE: &str = "On the third day the lighthouse keeper wrote that the sea had begun to speak to him in long and patient sentences.";

fn why() -> Why {
    Why { reason: ReasonCode::Copyright, note: "because".into() }
}

fn legal() -> Caller {
    Caller { name: "legal".into(), ..Caller::local() }
}

fn owner(sources: &[&str]) -> Caller {
    let sources = sources.iter().map(|s| id(s)).collect::<BTreeSet<_>>();
    Caller { name: "owner".into(), role: Role::Owner, sources: Some(sources) }
}

fn id(name: &str) -> SourceId {
    name.parse().unwrap()
}

fn hash(text: &str) -> ContentHash {
    ContentHash::of(text.as_bytes())
}

fn new(selection: OptOutSelection) -> NewOptOut {
    NewOptOut { selection, claimant: "A. Author".into(), contact: "author@example.org".into(), why: why() }
}

fn passage(text: &str) -> NewOptOut {
    new(OptOutSelection::Passage { text: Some(text.into()), sha256: hash(text) })
}

fn decision(verdict: Verdict) -> Decision {
    Decision { verdict, spare: Vec::new(), why: why() }
}

fn document(source: &str, text: &str) -> Document {
    Document {
        source: id(source),
        uri: format!("pkg:{source}/again"),
        title: String::new(),
        licence: "LicenseRef-test".into(),
        tier: Tier::Restricted,
        text: text.into(),
    }
}

fn add_again(world: &World, source: &str, text: &str) -> Result<(), GovernError> {
    let documents = [document(source, text)];
    world.governor.add_shard(&legal(), &id(source), &documents, &AtomicBool::new(false), &|_, _| {}).map(drop)
}

/// Texts with the passage in them, whole and in part, and others.
fn library(world: &World) -> [String; 3] {
    let whole = format!("A chapter of its own. {} And then it was night.", PASSAGE.to_uppercase());
    let copy = format!("Somebody else's page\nquotes this:\n{PASSAGE}\n");
    let part = PASSAGE.replace("to him in long and patient sentences", "and nobody believed a word of it");
    world.add("novels", &[vec![whole.clone(), part.clone()], texts("the sea", 6)].concat());
    world.add("pages", &[vec![copy.clone()], texts("gardens", 3)].concat());
    [whole, copy, part]
}

fn root(store: &Store) -> String {
    store.snapshot().root.to_string()
}

#[test]
fn a_passage_is_found_withheld_withdrawn_proven_and_kept_out() {
    let world = World::new();
    let [whole, copy, part] = library(&world);
    let (g, before) = (&world.governor, world.governor.store().snapshot());

    let plan = g.plan_optout(&legal(), &passage(PASSAGE)).unwrap();
    assert_eq!(*g.store().snapshot(), *before, "a plan changes nothing");
    let found: Vec<_> = plan.matches.iter().map(|(m, own)| (m.document, m.exact, *own)).collect();
    let (in_novels, in_pages) = ((hash(&whole), true, true), (hash(&copy), true, true));
    assert!(found.contains(&in_novels) && found.contains(&in_pages) && found.contains(&(hash(&part), false, true)));
    assert_eq!((found.len(), plan.documents.len()), (3, 3));
    assert_eq!(plan.model.sources, None, "nobody says what this model was trained on");

    let (optout, quarantine, _) = g.submit_optout(&legal(), &passage(PASSAGE)).unwrap();
    assert_eq!(optout.state, OptOutState::Quarantined);
    let others = World::new();
    others.add("novels", &texts("the sea", 6));
    others.add("pages", &texts("gardens", 3));
    assert_eq!(root(g.store()), root(others.governor.store()), "withheld equals never added");
    assert_eq!(quarantine.unwrap().root_after, g.store().snapshot().root);

    let refused = add_again(&world, "pages", &whole).unwrap_err();
    assert!(
        matches!(refused, GovernError::KeptOut { .. }),
        "what is in quarantine does not come in elsewhere: {refused}"
    );
    g.decide_optout(&legal(), optout.id, &decision(Verdict::Review)).unwrap();
    let uphold = Decision { spare: vec![(id("novels"), hash(&part))], ..decision(Verdict::Uphold) };
    let (upheld, removal) = g.decide_optout(&legal(), optout.id, &uphold).unwrap();
    assert_eq!((upheld.state, upheld.removal), (OptOutState::Upheld, removal.as_ref().map(|r| r.record.id)));
    assert!(matches!(upheld.request.selection, OptOutSelection::Passage { text: None, .. }));
    others.add("novels", &[part]);
    assert_eq!(root(g.store()), root(others.governor.store()), "what was spared is there again");

    world.purge();
    assert_eq!(g.optout(&legal(), optout.id).unwrap().state, OptOutState::Purged);
    let receipt = g.receipt(upheld.removal.unwrap()).unwrap();
    let verified = Receipt::verify(&receipt, &world.keys).unwrap();
    assert!(verified.purged_at_unix_ms.is_some() && verified.documents.len() == 2);
    assert_eq!(g.optout(&legal(), optout.id).unwrap().state, OptOutState::Proven);

    for text in [&whole, &copy, &format!("Wholly new. {PASSAGE} Really."), &PASSAGE.to_lowercase()] {
        let refused = add_again(&world, "novels", text).unwrap_err();
        assert!(
            matches!(&refused, GovernError::KeptOut { found, .. } if found[0].hit.optout == optout.id),
            "{refused}"
        );
    }
    add_again(&world, "novels", "The sea is only a sea, said the keeper, and went to bed for the night.").unwrap();

    let statement = g.statement_of_reasons(&legal(), optout.id).unwrap();
    assert!(
        statement.contains("A. Author")
            && statement.contains("copyright")
            && statement.contains("1 documents were let")
    );
    for shown in [statement, receipt, format!("{:?}", g.store().suppressions().unwrap())] {
        assert!(!shown.to_lowercase().contains("lighthouse"), "{shown}");
    }
}

#[test]
fn what_is_rejected_comes_back_as_it_was() {
    let world = World::new();
    library(&world);
    let (g, before) = (&world.governor, root(world.governor.store()));
    let (optout, ..) = g.submit_optout(&legal(), &new(OptOutSelection::Source { source: id("novels") })).unwrap();
    assert_ne!(root(g.store()), before);
    let closed = add_again(&world, "novels", "Something that was never here before.").unwrap_err();
    assert!(matches!(closed, GovernError::Closed { optout: 1, .. }), "{closed}");
    let too_soon = g.restore_optout(&legal(), optout.id, &why()).unwrap_err();
    assert!(matches!(too_soon, GovernError::OptOutStep { refusal: Refusal::State { .. }, .. }), "{too_soon}");
    g.counter_optout(&legal(), optout.id, &why()).unwrap();
    let early = g.restore_optout(&legal(), optout.id, &why()).unwrap_err();
    assert!(matches!(early, GovernError::OptOutStep { refusal: Refusal::TooEarly { .. }, .. }), "{early}");
    g.decide_optout(&legal(), optout.id, &decision(Verdict::Reject)).unwrap();
    assert_ne!(root(g.store()), before, "it is in quarantine until it is put back");
    let (restored, _) = g.restore_optout(&legal(), optout.id, &why()).unwrap();
    assert_eq!((restored.state, root(g.store())), (OptOutState::Restored, before));
    add_again(&world, "novels", "Something that was never here before.").unwrap();

    // An appeal may still be granted: all of the source that is there then goes.
    g.appeal_optout(&legal(), optout.id, &why()).unwrap();
    assert!(g.appeal_optout(&legal(), optout.id, &why()).is_err());
    let (upheld, removal) = g.decide_optout(&legal(), optout.id, &decision(Verdict::Uphold)).unwrap();
    assert_eq!((upheld.state, removal.unwrap().record.parts.len()), (OptOutState::Upheld, 2));
}

#[test]
fn a_legal_hold_stops_a_withdrawal_and_never_a_quarantine() {
    let world = World::new();
    let [whole, ..] = library(&world);
    let g = &world.governor;
    let named = OptOutSelection::Documents { source: id("novels"), documents: vec![hash(&whole)] };
    let (optout, ..) = g.submit_optout(&legal(), &new(named)).unwrap();
    let (held, _) = g.hold_optout(&legal(), optout.id, true, &why()).unwrap();
    assert!(held.legal_hold);
    let quarantined = root(g.store());
    let (upheld, removal) = g.decide_optout(&legal(), optout.id, &decision(Verdict::Uphold)).unwrap();
    assert_eq!((upheld.state, removal), (OptOutState::Upheld, None));
    for selection in [Selection::Source(id("novels")), Selection::UriPrefix { source: None, prefix: "pkg:".into() }] {
        let refused = g.withdraw(&legal(), &selection).unwrap_err();
        assert!(matches!(refused, GovernError::Store(StoreError::LegalHold(1))), "{refused}");
    }
    world.purge();
    assert_eq!(root(g.store()), quarantined);
    assert_eq!(g.optout(&legal(), optout.id).unwrap().state, OptOutState::Upheld);
    let (ended, removal) = g.hold_optout(&legal(), optout.id, false, &why()).unwrap();
    assert_eq!((ended.legal_hold, ended.removal), (false, removal.map(|r| r.record.id)));
    assert_eq!(root(g.store()), quarantined);
    world.purge();
    assert_eq!(g.optout(&legal(), optout.id).unwrap().state, OptOutState::Purged);
    assert!(matches!(add_again(&world, "pages", &whole), Err(GovernError::KeptOut { .. })));
}

#[test]
fn requests_outlive_restarts_and_the_restore_of_a_backup_of_before() {
    let world = World::new();
    let [whole, copy, _] = library(&world);
    let never = AtomicBool::new(false);
    world.governor.backup("early", &never, &|_, _| {}).unwrap();
    let (first, ..) = world.governor.submit_optout(&legal(), &passage(PASSAGE)).unwrap();
    world.governor.decide_optout(&legal(), first.id, &decision(Verdict::Uphold)).unwrap();
    let named = OptOutSelection::UriPrefix { source: Some(id("pages")), prefix: Some("pkg:pages/".into()) };
    let (second, ..) = world.governor.submit_optout(&legal(), &new(named)).unwrap();
    let (after, all) = (root(world.governor.store()), world.governor.optouts(&legal()).unwrap());
    let World { governor: old, folder, keys } = world;
    drop(old);
    let again = governor(folder.path());
    assert_eq!((root(again.store()), again.optouts(&legal()).unwrap()), (after.clone(), all.clone()));
    drop(again);
    restore(&folder.path().join("backups/early"), &folder.path().join("store"), Later::None, None).unwrap();
    let world = World { governor: governor(folder.path()), folder, keys };
    assert_eq!((root(world.governor.store()), world.governor.optouts(&legal()).unwrap()), (after, all));
    for text in [&whole, &copy] {
        assert!(matches!(add_again(&world, "novels", text), Err(GovernError::KeptOut { .. })));
    }
    let decided = world.governor.decide_optout(&legal(), second.id, &decision(Verdict::Reject)).unwrap();
    assert_eq!(decided.0.state, OptOutState::Rejected);
}

#[test]
fn an_owner_sees_own_sources_and_legal_decides_about_the_others() {
    let world = World::new();
    let [_, copy, _] = library(&world);
    let g = &world.governor;
    let (optout, _, plan) = g.submit_optout(&owner(&["novels"]), &passage(PASSAGE)).unwrap();
    assert!(plan.documents.iter().all(|d| d.source == id("novels")) && plan.documents.len() == 2);
    assert!(optout.request.matches.iter().all(|m| m.source == id("novels")));
    let held = |optout: &OptOut| g.store().held(optout).unwrap().iter().map(|p| p.n_documents).sum::<u64>();
    assert_eq!(held(&optout), 2, "the page is somebody else's");
    let stranger = Caller { name: "stranger".into(), ..owner(&["pages"]) };
    assert!(matches!(g.optout(&stranger, optout.id), Err(GovernError::Store(StoreError::UnknownOptOut(1)))));
    let refused = g.decide_optout(&owner(&["novels"]), optout.id, &decision(Verdict::Uphold)).unwrap_err();
    assert!(matches!(refused, GovernError::BeyondScope { id: 1 }), "{refused}");

    let seen = g.optout(&legal(), optout.id).unwrap();
    let page = seen.request.matches.iter().find(|m| m.document == hash(&copy)).unwrap();
    assert!(!page.quarantined);
    let (_, removal) = g.decide_optout(&legal(), optout.id, &decision(Verdict::Uphold)).unwrap();
    assert_eq!(removal.unwrap().record.parts.iter().map(|p| p.n_documents).sum::<u64>(), 3);
}

#[test]
fn what_is_no_request_is_refused() {
    let world = World::new();
    library(&world);
    let g = &world.governor;
    let short = g.plan_optout(&legal(), &passage("one two three")).unwrap_err();
    assert!(matches!(short, GovernError::ShortPassage { got: 3, .. }), "{short}");
    let nobody = NewOptOut { claimant: " ".into(), ..passage(PASSAGE) };
    assert!(matches!(g.submit_optout(&legal(), &nobody), Err(GovernError::Missing { field: "claimant", .. })));
    let nothing = OptOutSelection::UriPrefix { source: None, prefix: Some("nowhere:".into()) };
    let refused = g.submit_optout(&legal(), &new(nothing)).unwrap_err();
    assert!(matches!(refused, GovernError::Store(StoreError::NothingSelected)), "{refused}");
    assert_eq!(g.optouts(&legal()).unwrap(), []);

    // A passage may be kept out before it ever comes.
    let unknown = "Nobody has ever written these words in this order, as far as anybody knows.";
    let (optout, quarantine, _) = g.submit_optout(&legal(), &passage(unknown)).unwrap();
    assert_eq!((optout.state, quarantine), (OptOutState::Acknowledged, None));
    let held = g.hold_optout(&legal(), optout.id, true, &why()).unwrap_err();
    assert!(matches!(held, GovernError::OptOutStep { .. }), "{held}");
    let stranger = Decision { spare: vec![(id("pages"), hash("x"))], ..decision(Verdict::Uphold) };
    let refused = g.decide_optout(&legal(), optout.id, &stranger).unwrap_err();
    assert!(matches!(refused, GovernError::NotOfOptOut { .. }), "{refused}");
    g.decide_optout(&legal(), optout.id, &decision(Verdict::Uphold)).unwrap();
    assert!(matches!(add_again(&world, "pages", unknown), Err(GovernError::KeptOut { .. })));
    world.purge();
    assert_eq!(g.optout(&legal(), optout.id).unwrap().state, OptOutState::Purged, "there is nothing to delete");
}

#[test]
fn what_came_since_a_request_goes_with_it() {
    let world = World::new();
    library(&world);
    let g = &world.governor;
    let scoped = owner(&["novels"]);
    let (optout, ..) = g.submit_optout(&scoped, &passage(PASSAGE)).unwrap();
    // An owner's passage keeps nothing out of others' sources until it is granted.
    let late = format!("Late to the party. {PASSAGE}");
    add_again(&world, "pages", &late).unwrap();
    let (_, removal) = g.decide_optout(&legal(), optout.id, &decision(Verdict::Uphold)).unwrap();
    let removal = removal.unwrap();
    assert_eq!(removal.record.parts.iter().map(|p| p.n_documents).sum::<u64>(), 4);
    assert_eq!(g.store().find_text(PASSAGE, 0.5).unwrap(), []);
    assert_eq!(g.optout(&scoped, optout.id).unwrap().removal, None, "others had it: its number would tell");
}

#[test]
fn what_a_request_names_is_kept_out_from_its_submission_on() {
    let world = World::new();
    let [whole, ..] = library(&world);
    let g = &world.governor;
    let named = OptOutSelection::Documents { source: id("novels"), documents: vec![hash(&whole)] };
    let (optout, ..) = g.submit_optout(&legal(), &new(named.clone())).unwrap();
    let alike = format!("{whole} ");
    assert!(matches!(add_again(&world, "pages", &alike), Err(GovernError::KeptOut { .. })));
    // Somebody else withdraws it first: it stays out all the same.
    g.withdraw(&legal(), &Selection::Documents { source: id("novels"), documents: vec![hash(&whole)] }).unwrap();
    g.decide_optout(&legal(), optout.id, &decision(Verdict::Uphold)).unwrap();
    assert!(matches!(add_again(&world, "pages", &alike), Err(GovernError::KeptOut { .. })));

    // Whoever sees own sources only is not told by which request.
    let curator = Caller { name: "cur".into(), role: Role::Curator, ..owner(&["pages"]) };
    let never = AtomicBool::new(false);
    let documents = [document("pages", &alike)];
    let refused = g.add_shard(&curator, &id("pages"), &documents, &never, &|_, _| {}).unwrap_err().to_string();
    assert!(
        refused.contains("pkg:pages/again") && !refused.contains('%') && !refused.contains("opt-out 1"),
        "{refused}"
    );
}

#[test]
fn what_was_granted_and_lost_again_keeps_nothing_out() {
    let world = World::new();
    library(&world);
    let g = &world.governor;
    let (optout, ..) = g.submit_optout(&legal(), &new(OptOutSelection::Source { source: id("pages") })).unwrap();
    g.decide_optout(&legal(), optout.id, &decision(Verdict::Uphold)).unwrap();
    world.purge();
    g.appeal_optout(&legal(), optout.id, &why()).unwrap();
    let statement = g.statement_of_reasons(&legal(), optout.id).unwrap();
    assert!(statement.contains("is withdrawn, and stays so") && !statement.contains("is in quarantine"), "{statement}");
    g.decide_optout(&legal(), optout.id, &decision(Verdict::Reject)).unwrap();
    let restored = g.restore_optout(&legal(), optout.id, &why()).unwrap_err();
    assert!(matches!(restored, GovernError::OptOutStep { refusal: Refusal::Withdrawn, .. }), "{restored}");
    add_again(&world, "pages", &texts("gardens", 1)[0]).unwrap();
    let own = Caller { name: "owner".into(), ..owner(&["novels"]) };
    let (mine, ..) = g.submit_optout(&own, &new(OptOutSelection::Source { source: id("novels") })).unwrap();
    let refused = g.counter_optout(&own, mine.id, &why()).unwrap_err();
    assert!(matches!(refused, GovernError::OptOutStep { refusal: Refusal::OwnRequest, .. }), "{refused}");
}
