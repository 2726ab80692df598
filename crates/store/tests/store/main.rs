//! The store through its public interface: additions, removals, restarts, damage.

mod across;
mod contract;
#[path = "../crash/mod.rs"]
mod crash;
mod damage;
mod flips;
mod kill;
mod migrate;
mod random;
mod rebuild;
#[path = "../recipes/mod.rs"]
mod recipes;
#[path = "../reference/mod.rs"]
mod reference;
mod removal;
#[path = "../simulation/mod.rs"]
mod simulation;
mod spans;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use recipes::{inverted, recipe, recipe_of, source};
use silo_core::{
    Document, Filter, KeySite, LanguageModel, Neighbor, NeighborQuery, NeighborSearch, Passage, PassageQuery,
    PassageSearch, Purpose, Selection, ShardId, SnapshotProvider, SourceId, Tier, Tokenizer,
};
use silo_store::{AddedShard, KeyType, NewShard, Purged, Recipe, Removal, Store, StoreError, StoreOptions};
use silo_testkit::{ByteTokenizer, ScriptedModel};
use silo_vector::{Training, train_quantizer};

fn model() -> ScriptedModel {
    ScriptedModel::new(64)
}

fn open_with(root: &Path, recipe: Recipe) -> Result<Store, StoreError> {
    let options = StoreOptions { n_threads: 2, ..StoreOptions::default() };
    Store::open(root, model().card(), recipe, Arc::new(ByteTokenizer::default()), options)
}

fn open(root: &Path) -> Store {
    open_with(root, recipe()).unwrap()
}

fn document(source: &str, text: &str) -> Document {
    Document {
        source: source.parse().unwrap(),
        uri: format!("test:{source}/{}", text.len()),
        title: "A title".into(),
        licence: "LicenseRef-test".into(),
        tier: Tier::Restricted,
        text: text.into(),
    }
}

fn add(store: &Store, name: &str, texts: &[&str]) -> Result<AddedShard, StoreError> {
    let id: SourceId = name.parse().unwrap();
    if store.source(&id).is_err() {
        store.by("test").create_source(&source(name))?;
    }
    let documents: Vec<Document> = texts.iter().map(|t| document(name, t)).collect();
    store.by("test").add_shard(
        &NewShard { source: &id, documents: &documents },
        &model(),
        &AtomicBool::new(false),
        &|_, _| {},
    )
}

/// Withdraws a shard and gets its bytes out of all files.
fn remove(store: &Store, id: ShardId) -> Removal {
    let removal = store.by("test").withdraw(&Selection::Shard(id)).unwrap();
    purge(store);
    removal
}

fn purge(store: &Store) -> Purged {
    store.purge(&Default::default(), &|_, _| {}).unwrap()
}

fn search(store: &Store, filter: &Filter, key: &[f32], k: usize) -> Vec<Neighbor> {
    let snapshot = store.snapshot();
    let mask = snapshot.mask(filter, Purpose::Knn);
    store.neighbors(&[NeighborQuery { snapshot: &snapshot, mask: &mask, key, k, text: &[] }]).unwrap().remove(0)
}

/// A neighbour without row numbers: what may be compared between stores.
fn logical(store: &Store, neighbors: &[Neighbor]) -> Vec<(u32, u32, SourceId, String, u32)> {
    let snapshot = store.snapshot();
    let describe = |n: &Neighbor| {
        let e = store.entry(&snapshot, n, 4).unwrap();
        (n.distance.to_bits(), n.value, e.source, e.document.to_string(), e.position)
    };
    neighbors.iter().map(describe).collect()
}

/// Passages without row numbers: what may be compared between stores.
fn passages(store: &Store, filter: &Filter, text: &str, k: usize) -> Vec<(u64, SourceId, String, u32, Vec<u32>)> {
    let snapshot = store.snapshot();
    let mask = snapshot.mask(filter, Purpose::Context);
    let found = store.passages(&PassageQuery { snapshot: &snapshot, mask: &mask, text, k }).unwrap();
    let source = |p: &Passage| snapshot.source_of(p.shard).clone();
    found.iter().map(|p| (p.score.to_bits(), source(p), p.document.to_string(), p.start, p.tokens.clone())).collect()
}

fn key_after(a: u8, b: u8) -> Vec<f32> {
    ScriptedModel::key(u32::from(a) + 1, u32::from(b) + 1)
}

#[test]
fn an_entry_is_found_with_its_value_and_described() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path());
    add(&store, "one", &["the cat sat on the mat", "x"]).unwrap();
    let found = search(&store, &Filter::default(), &key_after(b'c', b'a'), 1);
    assert_eq!((found[0].distance, found[0].value), (0.0, u32::from(b't') + 1));
    let entry = store.entry(&store.snapshot(), &found[0], 6).unwrap();
    assert_eq!((entry.context.as_str(), entry.continuation.as_str(), entry.position), ("the ca", "t", 6));
    assert_eq!((entry.title.as_str(), entry.uri.as_str()), ("A title", "test:one/22"));
}

/// By both ways to search: what a neighbour goes on from is compared with the query's text, within its document.
#[test]
fn what_stands_before_a_neighbour_is_compared_with_the_text() {
    for recipe in [recipe(), inverted()] {
        let root = tempfile::tempdir().unwrap();
        let store = open_with(root.path(), recipe).unwrap();
        let texts = ["a cat sat", "the cat sat", "cat sat on the cat"];
        add(&store, "one", &texts).unwrap();
        let snapshot = store.snapshot();
        let mask = snapshot.mask(&Filter::default(), Purpose::Knn);
        let tokens = |text: &str| text.bytes().map(|b| u32::from(b) + 1).collect::<Vec<_>>();
        for text in ["", "t", "cat", "the cat", "o the cat", "in the cat sat"] {
            let (key, text) = (key_after(b'c', b'a'), tokens(text));
            let query = NeighborQuery { snapshot: &snapshot, mask: &mask, key: &key, k: 40, text: &text };
            let found = store.neighbors(&[query]).unwrap().remove(0);
            assert!(found.len() > 20, "{}", found.len());
            for neighbor in &found {
                let (document, position) = store.place(&snapshot, neighbor).unwrap();
                let own = texts.iter().find(|t| self::document("one", t).hash() == document).unwrap();
                let before = &tokens(own)[..position as usize];
                let alike = before.iter().rev().zip(text.iter().rev()).take_while(|(a, b)| a == b).count();
                assert_eq!(usize::from(neighbor.matched), alike, "{own} {position}");
            }
        }
    }
}

#[test]
fn shards_survive_a_restart() {
    survives_a_restart(recipe());
    survives_a_restart(inverted());
}

fn survives_a_restart(recipe: Recipe) {
    let root = tempfile::tempdir().unwrap();
    let first = {
        let store = open_with(root.path(), recipe.clone()).unwrap();
        add(&store, "one", &["alpha beta"]).unwrap();
        add(&store, "two", &["gamma delta"]).unwrap();
        let found = search(&store, &Filter::default(), &key_after(b'a', b'l'), 20);
        (store.snapshot(), logical(&store, &found))
    };
    let store = open_with(root.path(), recipe.clone()).unwrap();
    assert_eq!(store.snapshot(), first.0);
    let found = search(&store, &Filter::default(), &key_after(b'a', b'l'), 20);
    assert_eq!(logical(&store, &found), first.1);
}

#[test]
fn the_layout_in_shards_does_not_show() {
    the_layout_does_not_show(recipe());
    the_layout_does_not_show(inverted());
}

fn the_layout_does_not_show(recipe: Recipe) {
    let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let texts = ["one fish two fish", "red fish", "blue fish fish fish", "fish"];
    let together = open_with(a.path(), recipe.clone()).unwrap();
    add(&together, "s", &texts).unwrap();
    let apart = open_with(b.path(), recipe).unwrap();
    for text in texts.iter().rev() {
        add(&apart, "s", &[text]).unwrap();
    }
    assert_eq!(together.snapshot().root, apart.snapshot().root);
    for k in [1, 3, 7, 100] {
        let query = key_after(b's', b'h'); // many entries at equal distance
        let one = logical(&together, &search(&together, &Filter::default(), &query, k));
        assert_eq!(one, logical(&apart, &search(&apart, &Filter::default(), &query, k)), "k = {k}");
        let words = passages(&together, &Filter::default(), "red fish", k);
        assert_eq!(words, passages(&apart, &Filter::default(), "red fish", k), "k = {k}");
    }
}

#[test]
fn passages_are_found_with_their_document() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path());
    add(&store, "one", &["the cat sat on the mat and the dog barked", "nothing here"]).unwrap();
    let found = passages(&store, &Filter::default(), "dog?", 5);
    assert!(!found.is_empty());
    let text = |tokens: &[u32]| ByteTokenizer::default().decode(tokens);
    assert!(found.iter().all(|p| text(&p.4).contains("dog")), "{found:?}");
    assert!(passages(&store, &Filter::default(), "absent", 5).is_empty());
    let denied = Filter { deny_sources: vec!["one".parse().unwrap()], ..Filter::default() };
    assert!(passages(&store, &denied, "dog", 5).is_empty());
}

#[test]
fn equal_texts_of_a_source_are_one_document_and_those_of_two_sources_two() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path());
    add(&store, "one", &["same text", "same text"]).unwrap();
    let again = add(&store, "one", &["same text", "another"]).unwrap();
    assert_eq!((again.n_duplicates, again.manifest.n_documents), (1, 2));
    assert!(matches!(add(&store, "one", &[]), Err(StoreError::Empty)));
    add(&store, "two", &["same text"]).unwrap();
    let found = search(&store, &Filter::default(), &key_after(b's', b'a'), 10);
    assert_eq!(found.iter().filter(|n| n.distance == 0.0).count(), 2);
}

#[test]
fn a_small_allowed_source_still_gives_k() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path());
    let many: Vec<String> = (0..40).map(|i| format!("the cat number {i} sat on the mat")).collect();
    add(&store, "big", &many.iter().map(String::as_str).collect::<Vec<_>>()).unwrap();
    add(&store, "small", &["zzzzzzzzzz"]).unwrap();
    let only = Filter { allow_sources: vec!["small".parse().unwrap()], ..Filter::default() };
    assert_eq!(search(&store, &only, &key_after(b'c', b'a'), 10).len(), 10);
}

#[test]
fn a_batch_gives_each_query_what_it_gets_alone() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path());
    add(&store, "one", &["to be or not to be", "that is the question"]).unwrap();
    add(&store, "two", &["to be or not to be"]).unwrap();
    let snapshot = store.snapshot();
    let all = snapshot.mask(&Filter::default(), Purpose::Knn);
    let one = Filter { deny_sources: vec!["two".parse().unwrap()], ..Filter::default() };
    let one = snapshot.mask(&one, Purpose::Knn);
    let keys: Vec<Vec<f32>> =
        [(b't', b'o'), (b' ', b'b'), (b'q', b'u')].iter().map(|&(a, b)| key_after(a, b)).collect();
    let queries: Vec<NeighborQuery<'_>> = (keys.iter().zip([&all, &one, &all]).zip([3, 5, 0]))
        .map(|((key, mask), k)| NeighborQuery { snapshot: &snapshot, mask, key, k, text: &[] })
        .collect();
    let together = store.neighbors(&queries).unwrap();
    for (query, expected) in queries.iter().zip(together) {
        assert_eq!(store.neighbors(&[*query]).unwrap()[0], expected);
    }
    let short = NeighborQuery { key: &[1.0], ..queries[0] };
    assert!(store.neighbors(&[short]).unwrap_err().to_string().contains("1 dimensions"));
}

#[test]
fn only_one_process_opens_a_store_and_the_other_learns_which() {
    let root = tempfile::tempdir().unwrap();
    let _first = open(root.path());
    let message = open_with(root.path(), recipe()).err().unwrap().to_string();
    assert!(message.contains(&format!("process {}", std::process::id())), "{message}");
}

#[test]
fn a_shard_of_another_recipe_is_kept_but_not_retrieved_from() {
    let root = tempfile::tempdir().unwrap();
    add(&open(root.path()), "one", &["some text"]).unwrap();
    let other = open_with(root.path(), Recipe { key_type: KeyType::F16, ..recipe() }).unwrap();
    assert!(other.snapshot().shards.is_empty());
    let unavailable = other.unavailable();
    let reason = &unavailable[&ShardId(1)];
    assert!(reason.contains("recipe") && reason.contains("silo shard rebuild"), "{reason}");
    drop(other);
    assert_eq!(open(root.path()).snapshot().shards.len(), 1);
}

#[test]
fn senseless_recipes_are_refused() {
    let root = tempfile::tempdir().unwrap();
    let too_wide = Recipe { window_tokens: 65, ..recipe() };
    assert!(open_with(root.path(), too_wide).err().unwrap().to_string().contains("model's window has 64"));
    let other_site = Recipe { key_site: KeySite::FinalNorm, ..recipe() };
    assert!(open_with(root.path(), other_site).err().unwrap().to_string().contains("key site"));
}

/// Approximate search finds entries whose key is the query's: their list is the first one looked into.
#[test]
fn inverted_lists_find_what_is_there_and_fit_their_model_only() {
    let root = tempfile::tempdir().unwrap();
    let store = open_with(root.path(), inverted()).unwrap();
    add(&store, "one", &["the cat sat on the mat", "x"]).unwrap();
    let found = search(&store, &Filter::default(), &key_after(b'c', b'a'), 20);
    assert_eq!((found[0].distance, found[0].value, found.len()), (0.0, u32::from(b't') + 1, 20));
    drop(store);
    let mut other = inverted();
    let about = [("model".to_owned(), "another".to_owned())].into();
    let keys: Vec<f32> = (0..40).flat_map(|i| ScriptedModel::key(i, i + 1)).collect();
    let quantizer =
        train_quantizer(&keys, ScriptedModel::KEY_DIM, Training { projected: 2, n_lists: 2, seed: 1, about });
    other.ivf.as_mut().unwrap().quantizer = Some(Arc::new(quantizer.unwrap()));
    let message = open_with(root.path(), other).err().unwrap().to_string();
    assert!(message.contains("made for model another"), "{message}");
    // A store of another recipe keeps the shard and does not retrieve from it.
    let exact = open(root.path());
    assert!(exact.unavailable().values().next().unwrap().contains("'inverted'"));
}
