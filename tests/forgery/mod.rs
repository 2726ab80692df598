//! Receipts of a real store, and forgeries of them: for tests, and for whoever tries another verifier (examples/forge.rs).

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use rand::seq::IndexedRandom;
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::Value;
use silo_core::{ContentHash, Document, LanguageModel, Selection, SnapshotProvider, Source};
use silo_govern::{Caller, GovernConfig, Governor};
use silo_log::{KeyFile, SigningKey, VerifyingKey, note};
use silo_model::{CpuLlama, LoadedModel};
use silo_store::{Recipe, Store, StoreOptions};
use tempfile::TempDir;

/// A governed store with a key, in a folder of its own.
pub struct World {
    pub governor: Governor,
    pub keys: Vec<VerifyingKey>,
    pub folder: TempDir,
}

/// Opens what governs the store in a folder.
pub fn governor(folder: &Path) -> Governor {
    let project = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("it is a member of the workspace");
    let recipe = Recipe::read(&project.join("indexes/tiny.toml")).expect("a recipe");
    let loaded = LoadedModel::open(&project.join("crates/model/tests/golden/gqa")).expect("a model");
    let model: Arc<dyn LanguageModel> = Arc::new(CpuLlama::new(&loaded, recipe.key_site, 1).expect("a model"));
    let tokenizer: Arc<dyn silo_core::Tokenizer> = Arc::new(loaded.tokenizer);
    let options = StoreOptions { n_threads: 1, ..StoreOptions::default() };
    let store = Store::open(&folder.join("store"), model.card(), recipe, tokenizer.clone(), options).expect("a store");
    let signing_key = Some(folder.join("silo.key"));
    let config = GovernConfig { signing_key, backups: Some(folder.join("backups")), ..GovernConfig::default() };
    Governor::new(config, Arc::new(store), model, tokenizer).expect("a key and a log")
}

impl World {
    /// With a key and no source.
    pub fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let keys = KeyFile::create(&folder.path().join("silo.key"), "example.org/silo").expect("a key").verifying;
        Self { governor: governor(folder.path()), keys, folder }
    }

    pub fn add(&self, source: &str, texts: &[String]) -> silo_core::ShardId {
        let declared = Source {
            id: source.parse().expect("a plain name"),
            owner: "somebody".into(),
            licence: "LicenseRef-test".into(),
            licence_stated_at: "here".into(),
            notice: String::new(),
            tier: silo_core::Tier::Restricted,
            permissions: silo_core::Permissions::of_tier(silo_core::Tier::Restricted),
        };
        let _ = self.governor.store().by("curator").create_source(&declared); // it may be there already
        let document = |text: &String| Document {
            source: declared.id.clone(),
            uri: format!("pkg:{source}/{}", ContentHash::of(text.as_bytes())),
            title: String::new(),
            licence: declared.licence.clone(),
            tier: declared.tier,
            text: text.clone(),
        };
        let documents: Vec<Document> = texts.iter().map(document).collect();
        let (caller, never) = (Caller { name: "curator".into(), ..Caller::local() }, AtomicBool::new(false));
        self.governor.add_shard(&caller, &declared.id, &documents, &never, &|_, _| {}).expect("a shard").id
    }

    /// Withdraws; the number of the withdrawal.
    pub fn withdraw(&self, selection: &Selection) -> u64 {
        let caller = Caller { name: "legal".into(), ..Caller::local() };
        self.governor.withdraw(&caller, selection).expect("something to withdraw").record.id
    }

    pub fn purge(&self) {
        self.governor.purge(&AtomicBool::new(false), &|_, _| {}).expect("a purge");
    }

    /// The secret key.
    pub fn signing(&self) -> SigningKey {
        KeyFile::read(&self.folder.path().join("silo.key")).expect("a key").signing
    }
}

pub fn texts(what: &str, n: usize) -> Vec<String> {
    (0..n).map(|i| format!("This is text {i} about {what}, and nothing else.")).collect()
}

/// Puts into the ledger what a source gave in hours that are over, and in the one that is, which it returns.
pub fn ledger(world: &World, source: &str) -> i64 {
    let hour = silo_store::now_unix_ms().div_euclid(silo_govern::HOUR_MS);
    let row = |ago: i64, share| silo_govern::LedgerRow {
        hour: hour - ago,
        source: source.parse().expect("a name"),
        n_responses: 2,
        n_tokens: 17,
        share,
        n_passage_responses: 1,
        n_verbatim_tokens: 3,
    };
    let rows = [row(5, 1.25), row(3, 0.000_000_4), row(0, 99.0)];
    world.governor.store().add_to_ledger(&rows).expect("a ledger");
    hour
}

/// A statement about the source `kept`, or `one`, and forgeries of it by the true key: in each, something else is stated.
pub fn statements(world: &World) -> (String, Vec<String>) {
    let sources = world.governor.store().snapshot().sources.clone();
    let source = sources.iter().map(|s| &s.id).find(|id| ["kept", "one"].contains(&id.as_str())).expect("a source");
    let hour = ledger(world, source.as_str());
    let text = world.governor.source_statement(&Caller::local(), source, 0..hour).expect("a statement");
    let signed = text_of(&text);
    let swaps = [
        ("\"n_tokens\": 17".to_owned(), "\"n_tokens\": 18"),
        ("\"n_tokens\": 17".to_owned(), "\"n_tokens\": 17.0"),
        ("\"n_verbatim_tokens\": 3".to_owned(), "\"n_verbatim_tokens\": 0"),
        ("\"share_millionths\": 1250000".to_owned(), "\"share_millionths\": 1250001"),
        (format!("\"source\": \"{source}\""), "\"source\": \"other\""),
        ("\"from_unix_ms\": 0".to_owned(), "\"from_unix_ms\": 1"),
        ("\"position\": ".to_owned(), "\"position\": 1"),
        ("silo statement v1".to_owned(), "silo receipt v1"),
    ];
    let forged = swaps.into_iter().map(|(from, to)| {
        assert!(signed.contains(&from), "{from}");
        note::sign(&signed.replacen(&from, to, 1), &[&world.signing()])
    });
    (text, forged.collect())
}

/// Receipts of a source that is gone, of documents of one that is not, purged and not, and the keys.
pub fn receipts() -> (World, Vec<String>) {
    let world = World::new();
    world.add("kept", &texts("what stays", 9));
    world.add("one", &texts("birds", 20));
    world.add("two", &texts("fish", 5));
    let documents = texts("birds", 3).iter().map(|t| ContentHash::of(t.as_bytes())).collect();
    let some = world.withdraw(&Selection::Documents { source: "one".parse().expect("a name"), documents });
    let whole = world.withdraw(&Selection::Source("two".parse().expect("a name")));
    let early = world.governor.receipt(some).expect("a receipt");
    world.purge();
    world.add("late", &texts("insects", 4));
    let made = [some, whole].map(|removal| world.governor.receipt(removal).expect("a receipt"));
    (world, [vec![early], made.to_vec()].concat())
}

/// What only the one who signs says: nothing in the log binds it.
const STATEMENTS: [&str; 4] = ["store", "issued_at_unix_ms", "backups", "models"];

/// A forgery of a receipt: in one character; by another key; or, by the true key, in one of the fields that the log binds, or in the form
/// of any.
pub fn forge(receipt: &str, key: &SigningKey, seed: u64) -> (String, String) {
    let rng = &mut ChaCha8Rng::seed_from_u64(seed);
    match seed % 5 {
        0 => {
            let chars: Vec<char> = receipt.chars().collect();
            let at = rng.random_range(0..chars.len());
            let other = *['0', 'a', 'f', 'Z', ' ', '\n', '"', '+'].choose(rng).expect("there are some");
            let other = if other == chars[at] { '~' } else { other };
            let changed = chars.iter().enumerate().map(|(i, c)| if i == at { other } else { *c }).collect();
            (format!("character {at}"), changed)
        }
        1 => {
            let stranger = SigningKey::generate(key.verifying_key().name()).expect("a name of a key");
            ("another key of the same name".into(), note::sign(&text_of(receipt), &[&stranger]))
        }
        2 => {
            let (title, mut value) = parsed(receipt);
            let what = deform(&mut value, rng);
            let json = written(&value);
            let twice = r#"{
  "store": "another","#;
            let json = if what == "twice" { json.replacen('{', twice, 1) } else { json };
            (what, note::sign(&format!("{title}\n{json}\n"), &[key]))
        }
        _ => {
            let (title, mut value) = parsed(receipt);
            let mut paths = Vec::new();
            collect(&value, String::new(), &mut paths);
            paths.retain(|p| !STATEMENTS.iter().any(|s| p.starts_with(&format!("/{s}"))));
            let path = paths.choose(rng).expect("there are some").clone();
            let changed = value.pointer_mut(&path).expect("a path that was found");
            if path == "/checkpoint" {
                *changed = Value::String(forged_checkpoint(changed.as_str().expect("a text"), key, rng));
            } else {
                change(changed, rng);
            }
            let json = written(&value);
            (path, note::sign(&format!("{title}\n{json}\n"), &[key]))
        }
    }
}

/// Receipts in which, by the true key, another entry of the log stands in the place of one: with a proof that holds.
pub fn swaps(world: &World, receipt: &str) -> Vec<(String, String)> {
    let (title, value) = parsed(receipt);
    let key = world.signing();
    let size = world.governor.log_proof(0, 0..0).expect("a log").checkpoint;
    let size = size.lines().nth(1).and_then(|line| line.parse().ok()).expect("a size");
    let entries = world.governor.log_proof(0, 0..size).expect("a log").entries;
    let mut out = Vec::new();
    for field in ["removal", "in_force", "purged"].into_iter().filter(|field| !value[field].is_null()) {
        for entry in &entries {
            let mut swapped = value.clone();
            swapped[field] = serde_json::to_value(entry).expect("JSON");
            if swapped != value {
                let json = written(&swapped);
                let what = format!("entry {} as {field}", entry.position);
                out.push((what, note::sign(&format!("{title}\n{json}\n"), &[&key])));
            }
        }
    }
    out
}

/// Title and JSON of a receipt.
fn parsed(receipt: &str) -> (String, Value) {
    let text = text_of(receipt);
    let (title, json) = text.split_once('\n').expect("a title");
    let value = serde_json::from_str(json).expect("a receipt is JSON");
    // Otherwise a forgery would be refused for how it is written.
    assert_eq!(format!("{}\n", written(&value)), json);
    (title.to_owned(), value)
}

/// The fields of a receipt in the order in which they are written, and one that it does not have.
const ORDER: [&str; 20] = [
    "store",
    "issued_at_unix_ms",
    "removal",
    "in_force",
    "purged",
    "absence",
    "backups",
    "models",
    "checkpoint",
    "position",
    "entry",
    "proof",
    "source",
    "documents",
    "in_store",
    "in_source",
    "model",
    "hash",
    "sources",
    "more",
];

/// JSON as receipts are written.
fn written(value: &Value) -> String {
    fn write(value: &Value, indent: usize, out: &mut String) {
        let (open, close, items): (_, _, Vec<(Option<&String>, &Value)>) = match value {
            Value::Object(map) => {
                let mut items: Vec<_> = map.iter().map(|(key, value)| (Some(key), value)).collect();
                items.sort_by_key(|(key, _)| ORDER.iter().position(|known| key.is_some_and(|key| key == known)));
                ('{', '}', items)
            }
            Value::Array(list) => ('[', ']', list.iter().map(|value| (None, value)).collect()),
            other => return out.push_str(&other.to_string()),
        };
        out.push(open);
        for (i, (key, value)) in items.iter().enumerate() {
            out.push_str(if i == 0 { "\n" } else { ",\n" });
            out.push_str(&" ".repeat(indent + 2));
            key.iter().for_each(|key| out.push_str(&format!("\"{key}\": ")));
            write(value, indent + 2, out);
        }
        if !items.is_empty() {
            out.push_str(&format!("\n{}", " ".repeat(indent)));
        }
        out.push(close);
    }
    let mut out = String::new();
    write(value, 0, &mut out);
    out
}

/// Makes of a receipt something that means the same, or less, and is written in another way.
fn deform(value: &mut Value, rng: &mut impl Rng) -> String {
    let mut objects = vec![String::new()];
    objects.extend(["/removal", "/in_force", "/absence/0", "/models/0"].map(str::to_owned));
    let path = objects.choose(rng).expect("there are some").clone();
    let object = value.pointer_mut(&path).and_then(Value::as_object_mut).expect("an object");
    let keys: Vec<String> = object.keys().cloned().collect();
    let of = keys.choose(rng).expect("there are some").clone();
    match rng.random_range(0..4) {
        0 => drop(object.remove(&of)),
        1 => drop(object.insert("more".into(), Value::from(1))),
        2 => match object[&of].as_u64() {
            Some(n) => drop(object.insert(of.clone(), Value::from(n as f64))),
            None => drop(object.insert(of.clone(), Value::Bool(true))),
        },
        _ => return "twice".into(),
    }
    format!("the form of {path}/{of}")
}

/// The text of a note, without its signatures.
fn text_of(note: &str) -> String {
    let end = note.rfind("\n\n").expect("a note");
    note[..=end].to_owned()
}

/// The paths of all values that are no objects.
fn collect(value: &Value, path: String, out: &mut Vec<String>) {
    match value {
        Value::Object(map) => map.iter().for_each(|(k, v)| collect(v, format!("{path}/{k}"), out)),
        Value::Array(list) => {
            out.push(path.clone());
            list.iter().enumerate().for_each(|(i, v)| collect(v, format!("{path}/{i}"), out));
        }
        Value::Null => {}
        _ => out.push(path),
    }
}

/// Another value in the place of one.
fn change(value: &mut Value, rng: &mut impl Rng) {
    match value {
        Value::String(text) => {
            let at = rng.random_range(0..text.len().max(1));
            let other = |c: char| if c == '1' { '2' } else { '1' };
            *text = text.chars().enumerate().map(|(i, c)| if i == at { other(c) } else { c }).collect();
        }
        Value::Number(number) => {
            let n = number.as_u64().expect("numbers are positive");
            *value = Value::from(if rng.random() || n == 0 { n + 1 } else { n - 1 });
        }
        Value::Array(list) if list.is_empty() => list.push(Value::String(format!("hash {}", "0".repeat(64)))),
        Value::Array(list) => {
            let at = rng.random_range(0..list.len());
            let twice = list[at].clone();
            if rng.random() { drop(list.remove(at)) } else { list.insert(at, twice) }
        }
        other => *other = Value::Bool(true),
    }
}

/// A checkpoint, signed by the true key, that cannot be: too short a log, another tree, an epoch of before the withdrawal, another root. (That size and
/// epoch are those of this tree and root is a statement of the signer, which those who read the log check.)
fn forged_checkpoint(note: &str, key: &SigningKey, rng: &mut impl Rng) -> String {
    let text = text_of(note);
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    match rng.random_range(0..4) {
        0 => lines[1] = "2".into(),
        1 => lines[2] = format!("{}A=", &lines[2][..42].chars().rev().collect::<String>()),
        2 => {
            let (_, root) = lines[3].split_once(" root ").expect("a root");
            lines[3] = format!("silo epoch 1 root {root}");
        }
        _ => {
            let (before, root) = lines[3].split_once(" root ").expect("a root");
            let first = if root.starts_with('0') { '1' } else { '0' };
            lines[3] = format!("{before} root {first}{}", &root[1..]);
        }
    }
    note::sign(&format!("{}\n", lines.join("\n")), &[key])
}
