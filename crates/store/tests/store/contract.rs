//! The store by the contract of its seams, whichever way it searches.

use silo_core::Selection;
use silo_testkit::contract::{Stocked, datastore};

use super::{add, key_after, open_with, recipe_of};

#[test]
fn stores_hold_to_their_contract() {
    for lists in [false, true] {
        let root = tempfile::tempdir().unwrap();
        let store = open_with(root.path(), recipe_of(lists)).unwrap();
        let one = ["one fish two fish red fish blue fish", "a fish out of water"];
        add(&store, "one", &one[..1]).unwrap();
        add(&store, "two", &["the fish swims in the sea of fishes", "one fish two fish"]).unwrap();
        add(&store, "one", &one[1..]).unwrap();
        add(&store, "three", &["no such animal", "red fish"]).unwrap();
        let keys: Vec<Vec<f32>> = [(b's', b'h'), (b'f', b'i'), (b'q', b'z'), (b' ', b'f')]
            .map(|(a, b)| key_after(a, b))
            .into_iter()
            .collect();
        let withdraw = || {
            store.by("test").withdraw(&Selection::Source("two".parse().unwrap())).unwrap();
        };
        datastore(&Stocked {
            store: &store,
            keys: &keys,
            texts: &["red fish", "the sea", "absent"],
            gone: "two".parse().unwrap(),
            words_of_gone: "swims in the sea",
            withdraw: &withdraw,
            exact: !lists,
        });
    }
}
