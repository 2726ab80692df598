//! Removed equals never added, through the engine and with the default model: p(y) in all modes, texts, shares and root, for any documents,
//! layout of the shards, way and order of removing, and mask, while other searches run, and after a restart.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use rand::seq::{IndexedRandom, SliceRandom};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use silo_core::{
    ContentHash, Document, Entry, Epoch, Filter, Gate, GateTerms, KeySite, KnnParameters, LanguageModel, Neighbor,
    NeighborQuery, NeighborSearch, Passage, PassageQuery, PassageSearch, Permissions, Run, SearchError, Selection,
    ShardId, ShardMask, Snapshot, SnapshotProvider, Source, SourceId, SpanSearch, Tier, Tokenizer,
};
use silo_engine::{
    ContextParameters, Depth, Engine, EngineConfig, EngineError, Event, GenerateRequest, Generation, KnnOverrides,
    Mode, OnRemoval, Retrieval, ScoreRequest, ScoredToken, TokenEvent,
};
use silo_model::{CpuLlama, LoadedModel};
use silo_store::{NewShard, Recipe, Store, StoreError, StoreOptions};
use tempfile::TempDir;

use super::service::project;

const SOURCES: [(&str, Tier); 3] = [("ant", Tier::Restricted), ("bee", Tier::Attribution), ("cow", Tier::PublicDomain)];
const WORDS: [&str; 12] =
    ["the", "north", "wind", "and", "sun", "were", "disputing", "which", "was", "stronger", ".", "traveller"];
const MODES: [Mode; 4] = [Mode::Parametric, Mode::Knn, Mode::Context, Mode::KnnAndContext];

/// The default model, read once.
struct Language {
    model: Arc<dyn LanguageModel>,
    tokenizer: Arc<dyn Tokenizer>,
}

impl Language {
    fn open() -> Self {
        let loaded = LoadedModel::open(&project().join("models/silo-open-6m")).unwrap();
        let model: Arc<dyn LanguageModel> = Arc::new(CpuLlama::new(&loaded, KeySite::default(), 2).unwrap());
        Self { model, tokenizer: Arc::new(loaded.tokenizer) }
    }
}

/// An engine over a store of its own.
struct World<'a> {
    language: &'a Language,
    store: Arc<Store>,
    engine: Engine,
    recipe: &'a Recipe,
    root: TempDir,
}

fn source(name: &str, tier: Tier) -> Source {
    Source {
        id: name.parse().unwrap(),
        owner: "somebody".into(),
        licence: "LicenseRef-test".into(),
        licence_stated_at: "here".into(),
        notice: String::new(),
        tier,
        permissions: Permissions::of_tier(tier),
    }
}

/// Where a request does not set the weight, a gate does.
fn gated() -> EngineConfig {
    let terms =
        GateTerms { bias: 3.0, nearest: -0.2, model_entropy: 0.1, neighbor_entropy: -1.0, ..GateTerms::default() };
    let gate = Gate { sharp: terms, broad: GateTerms { bias: 1.0, spread: 0.1, log_distinct: -0.2, ..terms } };
    let knn = KnnParameters { gate: Some(gate), match_bonus: 0.4, ..KnnParameters::new(64, 0.95, 10.0) };
    EngineConfig { knn, ..EngineConfig::default() }
}

impl<'a> World<'a> {
    fn new(language: &'a Language, recipe: &'a Recipe) -> Self {
        let world = Self::open(language, recipe, tempfile::tempdir().unwrap());
        for (name, tier) in SOURCES {
            world.store.by("test").create_source(&source(name, tier)).unwrap();
        }
        world
    }

    fn open(language: &'a Language, recipe: &'a Recipe, root: TempDir) -> Self {
        let options = StoreOptions { n_threads: 2, ..StoreOptions::default() };
        let (model, tokenizer) = (language.model.clone(), language.tokenizer.clone());
        let store = Store::open(root.path(), model.card(), recipe.clone(), tokenizer.clone(), options).unwrap();
        let store = Arc::new(store);
        let engine = Engine::start(gated(), None, model, tokenizer, store.clone()).unwrap();
        Self { language, store, engine, recipe, root }
    }

    fn restarted(self) -> Self {
        let Self { language, store, engine, recipe, root } = self;
        drop((engine, store));
        Self::open(language, recipe, root)
    }

    /// Adds the documents of each source, cut at random into shards, which come in any order.
    fn fill(&self, documents: &[&Document], rng: &mut ChaCha8Rng) {
        let mut shards: Vec<(SourceId, Vec<Document>)> = Vec::new();
        for (name, _) in SOURCES {
            let mut of_source: Vec<Document> =
                documents.iter().filter(|d| d.source.as_str() == name).map(|d| (*d).clone()).collect();
            of_source.shuffle(rng);
            while !of_source.is_empty() {
                let rest = of_source.split_off(rng.random_range(1..=of_source.len()));
                shards.push((name.parse().unwrap(), std::mem::replace(&mut of_source, rest)));
            }
        }
        shards.shuffle(rng);
        for (source, documents) in shards {
            let new = NewShard { source: &source, documents: &documents };
            self.store.by("test").add_shard(&new, &*self.language.model, &AtomicBool::new(false), &|_, _| {}).unwrap();
        }
    }

    /// Takes documents away one after the other, each in one of the ways in which it can be done.
    fn remove(&self, gone: &[&Document], kept: &[&Document], rng: &mut ChaCha8Rng) {
        let mut gone = gone.to_vec();
        gone.shuffle(rng);
        for document in gone {
            let of_same = |d: &&&Document| d.source == document.source;
            let selection = match rng.random_range(0..4) {
                0 if !kept.iter().any(|d| of_same(&d)) => Selection::Source(document.source.clone()),
                1 => match self.whole_shard(document) {
                    // As far as answers go, for a time is for ever.
                    Some(id) if rng.random_bool(0.5) => {
                        self.store.by("test").suspend_shard(id).unwrap();
                        continue;
                    }
                    Some(id) => Selection::Shard(id),
                    None => Selection::UriPrefix { source: None, prefix: document.uri.clone() },
                },
                2 => Selection::UriPrefix { source: Some(document.source.clone()), prefix: document.uri.clone() },
                _ => Selection::Documents { source: document.source.clone(), documents: vec![document.hash()] },
            };
            match self.store.by("test").withdraw(&selection) {
                Ok(_) | Err(StoreError::NothingSelected) => (), // it went with another
                Err(e) => panic!("{selection:?}: {e}"),
            }
            if let Some(shard) = self.store.snapshot().shards.choose(rng).filter(|_| rng.random_bool(0.2)) {
                self.store.by("test").suspend_shard(shard.id).unwrap();
                self.store.by("test").resume_shard(shard.id).unwrap();
            }
            if rng.random_bool(0.2) {
                self.store.purge(&AtomicBool::new(false), &|_, _| {}).unwrap();
            }
        }
    }

    /// The shard that holds a document and nothing else.
    fn whole_shard(&self, document: &Document) -> Option<ShardId> {
        let snapshot = self.store.snapshot();
        let only = |id: &ShardId| {
            let held = self.store.documents(*id).unwrap();
            held.len() == 1 && held[0].document == *document
        };
        snapshot.shards.iter().map(|s| s.id).find(only)
    }

    fn score(&self, question: &Question) -> Vec<ScoredToken> {
        let tokens = self.language.tokenizer.encode(&question.text).unwrap();
        let mut request = ScoreRequest::new(tokens, question.retrieval.clone());
        request.depth = Some(Depth::Sources);
        self.engine.score(&request, &AtomicBool::new(false)).unwrap().tokens
    }

    fn generate(&self, question: &Question) -> Generation {
        let prompt = self.language.tokenizer.encode(&question.text).unwrap();
        let mut request = GenerateRequest::new(prompt, 12);
        (request.retrieval, request.seed) = (question.retrieval.clone(), question.seed);
        request.leave_one_passage_out = question.retrieval.mode.context();
        self.engine.generate(request).unwrap()
    }
}

/// What is asked of both stores.
struct Question {
    text: String,
    retrieval: Retrieval,
    seed: u64,
}

fn words(rng: &mut ChaCha8Rng, n: usize) -> String {
    (0..n).map(|_| *WORDS.choose(rng).unwrap()).collect::<Vec<_>>().join(" ")
}

fn questions(rng: &mut ChaCha8Rng) -> Vec<Question> {
    let mut one = |mode| {
        let mut filter = Filter::default();
        let source = |rng: &mut ChaCha8Rng| SOURCES.choose(rng).unwrap().0.parse().unwrap();
        match rng.random_range(0..5) {
            0 => filter.deny_sources.push(source(rng)),
            1 => filter.allow_sources.extend([source(rng), source(rng)]),
            2 => filter.deny_tiers.push(SOURCES.choose(rng).unwrap().1),
            _ => (),
        }
        let knn = KnnOverrides {
            k: Some([1, 7, 64, 1024][rng.random_range(0..4)]),
            knn_weight: rng.random_bool(0.5).then(|| rng.random_range(0.1..0.9)),
            knn_temperature: Some(rng.random_range(1.0..50.0)),
            match_tokens: Some(rng.random_range(0..6)),
            match_bonus: Some(rng.random_range(-0.5..1.0)),
        };
        let context = ContextParameters { passages: rng.random_range(1..4), stride_tokens: 8, ..Default::default() };
        let influence_cap = rng.random_bool(0.5).then(|| rng.random_range(0.1..0.9));
        let retrieval = Retrieval { mode, filter, knn, influence_cap, context: Some(context), ..Default::default() };
        let n = rng.random_range(3..20);
        Question { text: words(rng, n), retrieval, seed: rng.random() }
    };
    MODES.into_iter().flat_map(|mode| [mode; 3]).map(&mut one).collect()
}

/// All that a stream says of its tokens.
fn read(mut generation: Generation) -> Vec<TokenEvent> {
    let mut out = Vec::new();
    loop {
        match generation.blocking_next().expect("a stream has an end") {
            Event::Token(mut token, _) => {
                // Shards have other numbers in another store.
                token.left_out.iter_mut().for_each(|one| one.passage.document.shard = ShardId(0));
                out.push(token);
            }
            Event::Finished(_) => return out,
            Event::Failed(e) => panic!("{e}"),
        }
    }
}

/// Documents of few words, so that some are the same; and whether they are to go. A text that goes does so under each of its URIs.
fn documents(rng: &mut ChaCha8Rng) -> Vec<(Document, bool)> {
    let mut out: Vec<(Document, bool)> = Vec::new();
    for i in 0..rng.random_range(3..12) {
        let (name, tier) = SOURCES.choose(rng).unwrap();
        let text = match out.choose(rng).filter(|_| rng.random_bool(0.3)) {
            Some((other, _)) => other.text.clone(),
            None => {
                let n = [2, 15, 200][rng.random_range(0..3)];
                words(rng, n)
            }
        };
        let source: SourceId = name.parse().unwrap();
        let same = out.iter().find(|(d, _)| d.source == source && d.text == text);
        let goes = same.map_or_else(|| rng.random_bool(0.5), |(_, goes)| *goes);
        let (uri, licence) = (format!("pkg:{name}/{i:02}"), "LicenseRef-test".to_owned());
        out.push((Document { source, uri, title: String::new(), licence, tier: *tier, text }, goes));
    }
    out
}

/// Stops what runs beside a test, also when the test fails.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// One case: everything about it follows from the seed.
fn removed_equals_never_added(language: &Language, recipe: &Recipe, seed: u64) {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let all = documents(&mut rng);
    let every: Vec<&Document> = all.iter().map(|(d, _)| d).collect();
    let (gone, kept): (Vec<_>, Vec<_>) = all.iter().partition(|(_, goes)| *goes);
    let (gone, kept): (Vec<&Document>, Vec<&Document>) =
        (gone.iter().map(|(d, _)| d).collect(), kept.iter().map(|(d, _)| d).collect());
    let (never, with) = (World::new(language, recipe), World::new(language, recipe));
    never.fill(&kept, &mut rng);
    with.fill(&every, &mut rng);
    let questions = questions(&mut rng);
    let expected: Vec<Vec<ScoredToken>> = questions.iter().map(|q| never.score(q)).collect();
    let texts: Vec<Vec<TokenEvent>> = questions.iter().map(|q| read(never.generate(q))).collect();

    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        // Searches that run while it happens, of which some end because of it.
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                for question in &questions {
                    let tokens = language.tokenizer.encode(&question.text).unwrap();
                    let request = ScoreRequest::new(tokens, question.retrieval.clone());
                    match with.engine.score(&request, &stop) {
                        Ok(_) | Err(EngineError::SourceRemoved | EngineError::Cancelled) => (),
                        Err(e) => panic!("{e}"),
                    }
                }
            }
        });
        let _stopped = Stop(&stop);
        with.remove(&gone, &kept, &mut rng);
        assert_eq!(with.store.snapshot().root, never.store.snapshot().root, "seed {seed}");
        // One by one there; here beside the searches above, and all texts in one batch.
        for (question, expected) in questions.iter().zip(&expected) {
            assert_eq!(&with.score(question), expected, "seed {seed}: {:?} of {:?}", question.retrieval, question.text);
        }
        let running: Vec<Generation> = questions.iter().map(|q| with.generate(q)).collect();
        for ((question, running), expected) in questions.iter().zip(running).zip(&texts) {
            assert_eq!(&read(running), expected, "seed {seed}: {:?} of {:?}", question.retrieval, question.text);
        }
    });
    let with = with.restarted();
    assert_eq!(with.store.snapshot().root, never.store.snapshot().root, "seed {seed}, restarted");
    for (question, expected) in questions.iter().zip(&expected) {
        assert_eq!(&with.score(question), expected, "seed {seed}, restarted: {:?}", question.retrieval);
    }
}

/// A store from which something is withdrawn in the midst of the nth search, as soon as all tokens before it were read.
struct Withdrawing {
    store: Arc<Store>,
    nth: usize,
    /// Before the search has looked whether anything changed, or behind its back.
    within: bool,
    selection: Selection,
    searches: AtomicUsize,
    read: AtomicUsize,
}

impl NeighborSearch for Withdrawing {
    fn neighbors_as_of(&self, queries: &[NeighborQuery<'_>]) -> Result<(Vec<Vec<Neighbor>>, Epoch), SearchError> {
        if self.searches.fetch_add(1, Ordering::SeqCst) != self.nth {
            return self.store.neighbors_as_of(queries);
        }
        let withdraw = || {
            while self.read.load(Ordering::SeqCst) < self.nth {
                std::thread::yield_now();
            }
            self.store.by("test").withdraw(&self.selection).unwrap();
        };
        if self.within {
            return self.store.neighbors_across(queries, &withdraw);
        }
        let found = self.store.neighbors_as_of(queries);
        withdraw();
        found
    }

    fn place(&self, snapshot: &Snapshot, neighbor: &Neighbor) -> Option<(ContentHash, u32)> {
        self.store.place(snapshot, neighbor)
    }

    fn entry(&self, snapshot: &Snapshot, neighbor: &Neighbor, context_tokens: usize) -> Option<Entry> {
        self.store.entry(snapshot, neighbor, context_tokens)
    }
}

impl PassageSearch for Withdrawing {
    fn passages(&self, query: &PassageQuery<'_>) -> Result<Vec<Passage>, SearchError> {
        self.store.passages(query)
    }
}

impl SpanSearch for Withdrawing {
    fn is_guarded(&self, run: &Run<'_>, tiers: &[Tier]) -> Result<bool, SearchError> {
        self.store.is_guarded(run, tiers)
    }

    fn is_free(&self, run: &Run<'_>) -> Result<bool, SearchError> {
        self.store.is_free(run)
    }
}

impl SnapshotProvider for Withdrawing {
    fn snapshot(&self) -> Arc<Snapshot> {
        self.store.snapshot()
    }

    fn is_live(&self, snapshot: &Snapshot, mask: &ShardMask) -> bool {
        self.store.is_live(snapshot, mask)
    }
}

/// Greedy, with neighbours that weigh what the gate leaves.
fn request(prompt: Vec<u32>, n: usize) -> GenerateRequest {
    let mut request = GenerateRequest::new(prompt, n);
    request.sampling.temperature = 0.0;
    let knn = KnnOverrides { k: Some(64), knn_temperature: Some(4.0), ..KnnOverrides::default() };
    request.retrieval = Retrieval { mode: Mode::Knn, knn, ..Retrieval::default() };
    request
}

/// What is withdrawn, and when.
#[derive(Clone, Copy)]
struct Removed {
    /// A shard, or a document of one.
    shard: bool,
    /// See [`Withdrawing::within`].
    within: bool,
}

const WITHIN: Removed = Removed { shard: true, within: true };

/// What a stream says across a removal in its search for token `nth`, and how it ends; and what was said before and would be after it.
fn across_a_removal(
    nth: usize,
    removed: Removed,
    change: impl Fn(&mut GenerateRequest, &[TokenEvent]),
) -> [Vec<TokenEvent>; 2] {
    const N: usize = 12;
    let (language, recipe) = (Language::open(), recipe("ivf.toml"));
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    let of = |name: &str, text: &str| {
        let (uri, licence) = (format!("pkg:{name}/{}", text.len()), "LicenseRef-test".to_owned());
        let source: SourceId = name.parse().unwrap();
        Document { source, uri, title: String::new(), licence, tier: Tier::Restricted, text: text.into() }
    };
    let said = "The north wind blew as hard as he could, but the more he blew the more closely did the traveller fold his cloak.";
    let (gone, kept) = (of("ant", said), of(if removed.shard { "bee" } else { "ant" }, &words(&mut rng, 80)));
    let (never, with) = (World::new(&language, &recipe), World::new(&language, &recipe));
    never.fill(&[&kept], &mut rng);
    with.fill(&[&gone, &kept], &mut rng);
    let prompt = language.tokenizer.encode("The north wind blew as").unwrap();
    let before = read(with.engine.generate(request(prompt.clone(), N)).unwrap());

    let selection = Selection::UriPrefix { source: None, prefix: gone.uri.clone() };
    let (searches, read_tokens) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let store =
        Withdrawing { store: with.store.clone(), nth, within: removed.within, selection, searches, read: read_tokens };
    let (store, model, tokenizer) = (Arc::new(store), language.model.clone(), language.tokenizer.clone());
    let engine = Engine::start(gated(), None, model, tokenizer, store.clone()).unwrap();
    let mut asked = request(prompt.clone(), N);
    change(&mut asked, &before);
    let (mut stream, mut said) = (engine.generate(asked).unwrap(), Vec::new());
    while let Some(Event::Token(token, _)) = stream.blocking_next() {
        said.push(token);
        store.read.fetch_add(1, Ordering::SeqCst);
    }
    let ids = |tokens: &[TokenEvent]| tokens.iter().map(|t| t.token).collect::<Vec<_>>();
    assert_eq!(ids(&said[..nth]), ids(&before[..nth]), "what came before the removal");
    let text = prompt.into_iter().chain(before[..nth].iter().map(|t| t.token)).collect();
    let after = read(never.engine.generate(request(text, N - nth)).unwrap());
    assert_ne!(before[nth..], after, "what is withdrawn was felt");
    [said, after]
}

#[test]
fn a_stream_that_is_to_go_on_goes_on_as_if_it_had_never_been() {
    for (shard, within) in [(true, true), (true, false), (false, true), (false, false)] {
        let removed = Removed { shard, within };
        let [said, after] = across_a_removal(5, removed, |request, _| request.on_removal = OnRemoval::Repin);
        assert_eq!(said[5..], after, "shard {shard}, within {within}");
    }
}

#[test]
fn a_stream_that_is_to_end_ends_before_the_token() {
    let [said, _] = across_a_removal(5, WITHIN, |request, _| request.on_removal = OnRemoval::End);
    assert_eq!(said.len(), 5);
}

#[test]
fn text_that_waits_for_a_stop_string_does_not_come_after_a_removal() {
    let [said, _] = across_a_removal(5, WITHIN, |request, before| {
        request.on_removal = OnRemoval::Repin;
        request.stop = vec![format!("{}~~~", before[4].text)];
    });
    assert_eq!(said.len(), 5, "the text cannot be made whole");
    assert_eq!(said[4].text, "");
}

fn recipe(name: &str) -> Recipe {
    Recipe::read(&project().join("indexes").join(name)).unwrap()
}

#[test]
fn with_inverted_lists() {
    let language = Language::open();
    (0..12).for_each(|seed| removed_equals_never_added(&language, &recipe("ivf.toml"), seed));
}

#[test]
fn with_exact_search() {
    let language = Language::open();
    (100..112).for_each(|seed| removed_equals_never_added(&language, &recipe("exact.toml"), seed));
}

/// Not only in the root, which is looked at first.
#[test]
fn removals_that_were_skipped_show_in_the_answers() {
    let (language, recipe) = (Language::open(), recipe("ivf.toml"));
    let mut differ = [0; MODES.len()];
    for seed in 0..4 {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let all = documents(&mut rng);
        let every: Vec<&Document> = all.iter().map(|(d, _)| d).collect();
        let (never, with) = (World::new(&language, &recipe), World::new(&language, &recipe));
        never.fill(&every[every.len() / 2..], &mut rng);
        with.fill(&every, &mut rng);
        assert_ne!(never.store.snapshot().root, with.store.snapshot().root);
        for question in questions(&mut rng) {
            let mode = MODES.iter().position(|mode| *mode == question.retrieval.mode).unwrap();
            differ[mode] += usize::from(never.score(&question) != with.score(&question));
        }
    }
    assert!(differ[0] == 0 && differ[1..].iter().all(|n| *n > 0), "{differ:?} of {MODES:?}");
}
