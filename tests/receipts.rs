//! Receipts: that true ones hold and forged ones do not, what they prove, and what becomes of the log when its files are damaged or it is restored.

use std::fs;

use silo_core::Selection;
use silo_govern::{Caller, GovernError};
use silo_log::{Checkpoint, KeyFile, Receipt, Statement, tree};
use silo_store::{Later, restore};

use crate::forgery::{World, forge, governor, ledger, receipts, statements, swaps, texts};

#[test]
fn true_receipts_hold_and_say_what_happened() {
    let (world, made) = receipts();
    let verified: Vec<_> = made.iter().map(|text| Receipt::verify(text, &world.keys).unwrap()).collect();
    let [early, some, whole] = &verified[..] else { panic!("three receipts") };
    assert_eq!((early.purged_at_unix_ms, early.removal), (None, some.removal));
    assert_eq!((some.documents[0].source.as_str(), some.documents[0].n_documents), ("one", 3));
    assert_eq!((whole.documents[0].source.as_str(), whole.documents[0].n_documents), ("two", 5));
    for v in [some, whole] {
        assert_eq!((&v.actor[..], v.origin.starts_with("example.org/silo/")), ("legal", true));
        assert!(v.asked_at_unix_ms <= v.durable_at_unix_ms && v.durable_at_unix_ms <= v.effective_at_unix_ms);
        assert!(v.purged_at_unix_ms.unwrap() >= v.effective_at_unix_ms);
        assert!(v.absent_as_of_epoch > v.after.epoch, "the store has changed since");
        assert_ne!(v.root_before, v.after.root);
        assert_eq!(v.models[0].sources, None, "nobody says what the model was trained on");
    }
    let text = made.concat();
    assert!(!text.contains("fish") && !text.contains("pkg:"), "neither text nor places of it");
    assert!(matches!(world.governor.receipt(99), Err(GovernError::NoReceipt { .. })));
}

#[test]
fn forged_receipts_do_not_hold() {
    let (world, made) = receipts();
    let key = world.signing();
    let mut tried = std::collections::BTreeSet::new();
    for seed in 0..1000 {
        let (what, forged) = forge(&made[seed as usize % made.len()], &key, seed);
        assert!(Receipt::verify(&forged, &world.keys).is_err(), "seed {seed}, {what}");
        tried.extend(what.strip_prefix('/').and_then(|path| path.split('/').next()).map(str::to_owned));
    }
    assert_eq!(tried.into_iter().collect::<Vec<_>>(), ["absence", "checkpoint", "in_force", "purged", "removal"]);
    // The first receipt is of a shorter log.
    for (what, forged) in made[1..].iter().flat_map(|text| swaps(&world, text)) {
        assert!(Receipt::verify(&forged, &world.keys).is_err(), "{what}");
    }
}

/// What is withdrawn by its shard and held by another one of the source has not left the store, and no receipt says so.
#[test]
fn a_receipt_is_of_what_left_the_store() {
    let world = World::new();
    let first = world.add("one", &texts("birds", 4));
    let second = world.add("one", &texts("birds", 6));
    let n = |removal| Receipt::verify(&world.governor.receipt(removal).unwrap(), &world.keys).unwrap().documents;
    let (before, after) = (world.withdraw(&Selection::Shard(first)), world.withdraw(&Selection::Shard(second)));
    world.purge();
    assert_eq!(n(before), []);
    assert_eq!(n(after)[0].n_documents, 6);
    let again = world.add("one", &texts("birds", 1));
    let refused = world.governor.receipt(after).unwrap_err().to_string();
    assert!(refused.contains("in the store again"), "{refused}");
    world.withdraw(&Selection::Shard(again));
    assert_eq!(n(after)[0].n_documents, 6);
}

/// A copy in a shard that is suspended has not left the store: its files hold it, and it may come back.
#[test]
fn what_a_suspended_shard_holds_has_not_left() {
    let world = World::new();
    let first = world.add("one", &texts("birds", 4));
    let second = world.add("one", &texts("birds", 6));
    world.governor.suspend_shard(&Caller::local(), second).unwrap();
    let removal = world.withdraw(&Selection::Shard(first));
    world.purge();
    let n = |removal| Receipt::verify(&world.governor.receipt(removal).unwrap(), &world.keys).unwrap().documents;
    assert_eq!(n(removal), []);
    world.governor.resume_shard(&Caller::local(), second).unwrap();
    assert_eq!(n(removal), [], "and the receipt stays true");
    assert_eq!(n(world.withdraw(&Selection::Shard(second)))[0].n_documents, 6);
}

#[test]
fn the_log_goes_on_after_a_restart_and_shows_that_it_does() {
    let (world, made) = receipts();
    let before = world.governor.log_proof(0, 0..3).unwrap();
    let World { governor: old, keys, folder } = world;
    drop(old);
    let governor = governor(folder.path());
    let selection = Selection::Source("kept".parse().unwrap());
    let removal = governor.withdraw(&Caller::local(), &selection).unwrap().record.id;
    let open = |note: &str| Checkpoint::open(note, &keys).unwrap();
    let (first, size) = (open(&before.checkpoint), open(&before.checkpoint).size);
    let after = governor.log_proof(size, 0..size).unwrap();
    let second = open(&after.checkpoint);
    assert!(second.size > size && second.origin == first.origin);
    assert!(tree::is_consistent(size, &first.tree, second.size, &second.tree, &after.consistency));
    for entry in &after.entries {
        let leaf = silo_core::merkle::leaf_hash(entry.entry.as_bytes());
        assert!(tree::includes(&leaf, entry.position, second.size, &entry.proof, &second.tree));
    }
    assert_eq!(after.entries.len() as u64, size);
    assert!(matches!(governor.log_proof(second.size + 9, 0..0), Err(GovernError::LogEnd { .. })));
    assert!(Receipt::verify(&governor.receipt(removal).unwrap(), &keys).is_ok());
    made.iter().for_each(|old| assert!(Receipt::verify(old, &keys).is_ok()));
    drop(governor);
    // Receipts of before a rotation hold with the old key, and those of after with the new one.
    KeyFile::read(&folder.path().join("silo.key")).unwrap().rotate(7).unwrap();
    let later = crate::forgery::governor(folder.path()).receipt(removal).unwrap();
    assert!(Receipt::verify(&later, &keys).is_err());
    let all = silo_log::with_rotations(keys, &folder.path().join("silo.key.rotations")).unwrap();
    assert!(Receipt::verify(&later, &all).is_ok() && Receipt::verify(&made[0], &all).is_ok());
    // A key that is lost does not shut the store.
    for name in ["silo.key", "silo.key.pub", "silo.key.rotations"] {
        fs::remove_file(folder.path().join(name)).unwrap();
    }
    let new = KeyFile::create(&folder.path().join("silo.key"), "example.org/new").unwrap().verifying;
    let anew = crate::forgery::governor(folder.path()).receipt(removal).unwrap();
    assert!(Receipt::verify(&anew, &new).is_ok() && Receipt::verify(&anew, &all).is_err());
}

#[test]
fn hashes_that_are_lost_are_made_anew_and_a_log_that_was_changed_is_not_signed() {
    let (world, made) = receipts();
    let World { governor: old, keys, folder } = world;
    drop(old);
    let log = folder.path().join("store/log");
    let hashes = fs::read_dir(&log)
        .unwrap()
        .map(|e| e.unwrap().path())
        .find(|p| p.extension().is_some_and(|e| e == "hashes"))
        .unwrap();
    let whole = fs::read(&hashes).unwrap();
    let mut damaged = whole.clone();
    damaged[40] ^= 1;
    for bytes in [&[][..], &whole[..70], &damaged[..], &[&whole[..], &[7; 640]].concat()] {
        fs::write(&hashes, bytes).unwrap();
        let governor = governor(folder.path());
        assert!(Receipt::verify(&governor.receipt(1).unwrap(), &keys).is_ok());
        governor.log_proof(3, 0..9).unwrap(); // the damage shows where a proof needs the hash
        drop(governor);
        assert_eq!(fs::read(&hashes).unwrap(), whole);
    }
    // Damage of what was never signed is not signed either.
    let checkpoint = hashes.with_extension("checkpoint");
    fs::remove_file(&checkpoint).unwrap();
    fs::write(&hashes, &damaged).unwrap();
    drop(governor(folder.path()));
    assert_eq!(fs::read(&hashes).unwrap(), whole);
    assert_eq!(silo_govern::verify_log(&folder.path().join("store")).unwrap(), None);
    // An entry that says something else, in the catalog itself.
    let catalog = folder.path().join("store/catalog.sqlite");
    let sql = "UPDATE changes SET entry = replace(entry, '\"actor\":\"legal\"', '\"actor\":\"lega1\"')";
    rusqlite::Connection::open(&catalog).unwrap().execute(sql, []).unwrap();
    let altered = governor(folder.path());
    let refused = || altered.receipt(1).unwrap_err();
    assert!(matches!(refused(), GovernError::LogAltered { .. }), "{}", refused());
    assert!(matches!(altered.log_proof(0, 0..0), Err(GovernError::LogAltered { .. })), "nothing is signed any more");
    drop(altered);
    assert!(
        silo_govern::verify_log(&folder.path().join("store")).unwrap().unwrap().contains("not the one that was signed")
    );
    assert!(Receipt::verify(&made[1], &keys).is_ok(), "what was issued holds");
}

/// A restored store goes on in a log of its own: nobody can take it for the one that was lost.
#[test]
fn a_restored_store_begins_another_log() {
    let (world, made) = receipts();
    let backup = world.governor.backup("first", &Default::default(), &|_, _| {}).unwrap();
    let removal = world.withdraw(&Selection::Source("kept".parse().unwrap()));
    let receipt = Receipt::verify(&world.governor.receipt(removal).unwrap(), &world.keys).unwrap();
    assert_eq!(receipt.backups, ["first"]);
    let World { governor: old, keys, folder } = world;
    drop(old);
    restore(&folder.path().join("backups").join(&backup.name), &folder.path().join("store"), Later::None, None)
        .unwrap();
    let governor = governor(folder.path());
    let selection = Selection::Source("late".parse().unwrap());
    let next = governor.withdraw(&Caller::local(), &selection).unwrap().record.id;
    let restored = Receipt::verify(&governor.receipt(next).unwrap(), &keys).unwrap();
    assert_ne!(restored.origin, receipt.origin);
    assert!(Receipt::verify(&governor.receipt(1).unwrap(), &keys).is_ok(), "the entries of the backup are in it");
    assert!(matches!(governor.receipt(removal), Err(GovernError::NoReceipt { .. })), "done again, and not by this log");
    assert!(made.iter().all(|old| Receipt::verify(old, &keys).is_ok()));
}

#[test]
fn statements_are_of_hours_that_are_over_and_stand_in_the_log() {
    let world = World::new();
    world.add("one", &texts("birds", 4));
    let (hour, one) = (ledger(&world, "one"), "one".parse().unwrap());
    let caller = Caller { name: "owner".into(), ..Caller::local() };
    let text = world.governor.source_statement(&caller, &one, 0..hour + 1).unwrap();
    let verified = Statement::verify(&text, &world.keys).unwrap();
    let hours: Vec<_> =
        verified.report.hours.iter().map(|h| (h.start_unix_ms, h.share_millionths, h.n_tokens)).collect();
    let at = |ago: i64| (hour - ago) * silo_govern::HOUR_MS;
    assert_eq!(hours, [(at(5), 1_250_000, 17), (at(3), 0, 17)], "the hour that is, is not over");
    assert_eq!((&verified.actor[..], verified.report.to_unix_ms), ("owner", at(0)));
    let proof = world.governor.log_proof(0, verified.position..verified.position + 1).unwrap();
    assert!(proof.entries[0].entry.contains(&verified.report.hash().to_string()));
    // Other hours, other hash; the same ones, the same.
    let again = world.governor.source_statement(&caller, &one, 0..hour).unwrap();
    assert_eq!(Statement::verify(&again, &world.keys).unwrap().report, verified.report);
    assert!(matches!(world.governor.source_statement(&caller, &one, hour..hour + 1), Err(GovernError::HourNotOver)));
    let other = Caller { sources: Some(std::collections::BTreeSet::new()), ..caller };
    assert!(world.governor.source_statement(&other, &one, 0..hour).is_err());
}

#[test]
fn forged_statements_do_not_hold() {
    let world = World::new();
    world.add("one", &texts("birds", 4));
    let (text, forged) = statements(&world);
    assert!(Statement::verify(&text, &world.keys).is_ok() && Receipt::verify(&text, &world.keys).is_err());
    assert!(forged.len() > 5);
    assert!(forged.iter().all(|text| Statement::verify(text, &world.keys).is_err()), "signed by the true key");
    let other = text.replacen("\"n_tokens\": 17", "\"n_tokens\": 18", 1);
    assert!(Statement::verify(&other, &world.keys).is_err() && other != text);
}

#[test]
fn so_many_statements_are_signed_in_an_hour() {
    let world = World::new();
    world.add("one", &texts("birds", 4));
    let hour = ledger(&world, "one");
    let state = || world.governor.source_statement(&Caller::local(), &"one".parse().unwrap(), 0..hour);
    let most = world.governor.config().attribution.statements_per_hour;
    let made = (0..=2 * most).take_while(|_| state().is_ok()).count() as u32;
    assert!((most..2 * most).contains(&made), "an hour may begin in their midst: {made}");
    assert!(matches!(state(), Err(GovernError::TooManyStatements { .. })));
}
