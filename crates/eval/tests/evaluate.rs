//! The table against scoring every text by itself.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use silo_core::{
    Calibration, ContentHash, Datastore, Filter, KeySite, KnnParameters, LanguageModel, Permissions, SnapshotProvider,
    Source, Tier, Tokenizer,
};
use silo_corpus::{BuildReport, CorpusDocument, Exclusion, Role, SourceReport, Split, documents_hash, write_documents};
use silo_engine::{Engine, EngineConfig, Mode, Retrieval, ScoreRequest};
use silo_eval::{
    AttributionConfig, Domain, DomainResult, EvidenceCache, Gatherer, Grid, Loss, Measurement, Scope, Setting, Sizes,
    Together, View, evaluate, held_out_of, plant,
};
use silo_store::{Bm25, KeyType, NewShard, Recipe, Store, StoreOptions};
use silo_testkit::{ByteTokenizer, ScriptedModel};

const SIZES: Sizes = Sizes {
    store_bytes: 900,
    validation_tokens: 60,
    test_tokens: 100,
    document_tokens: 0,
    passed_over_bytes: 0,
    passed_over_tokens: 0,
    window_tokens: 0,
    neutral: false,
};

fn document(source: &str, i: usize, split: Split) -> CorpusDocument {
    let text = format!("{source} tells tale number {i}, of {} ships and {} storms.", i % 4, i % 3);
    CorpusDocument {
        source: source.parse().unwrap(),
        uri: format!("test:{source}/{i}"),
        title: String::new(),
        licence: "LicenseRef-test".into(),
        tier: Tier::Restricted,
        evidence: String::new(),
        train: false,
        hash: ContentHash::of(text.as_bytes()),
        split,
        excluded: None,
        overlap: None,
        text,
    }
}

fn corpus(root: &std::path::Path, names: &[&str]) {
    for name in names {
        let split = |i: usize| [Split::Train, Split::Train, Split::Validation, Split::Test][i % 4];
        let documents: Vec<CorpusDocument> = (0..40).map(|i| document(name, i, split(i))).collect();
        write_documents(&root.join(format!("{name}.jsonl.zst")), &documents).unwrap();
    }
    let report = names.iter().map(|name| report(root, name, Role::Domain)).collect();
    BuildReport { sources: report }.write(root).unwrap();
}

/// What a build says of the documents of a source that are there.
fn report(root: &std::path::Path, name: &str, role: Role) -> SourceReport {
    let documents = silo_corpus::read_documents(&root.join(format!("{name}.jsonl.zst"))).unwrap();
    let (name, domain, packages) = (name.parse().unwrap(), String::new(), Vec::new());
    let (tiers, splits, excluded) = Default::default();
    let (n_documents, sha256) = (documents.len() as u64, documents_hash(&documents));
    SourceReport { name, role, domain, packages, n_documents, n_bytes: 1, tiers, splits, excluded, sha256 }
}

fn store(root: &std::path::Path, model: &ScriptedModel, domains: &[Domain]) -> Store {
    let recipe = Recipe {
        name: "test".into(),
        key_site: KeySite::default(),
        key_type: KeyType::F32,
        window_tokens: 32,
        stride_tokens: 16,
        passage_tokens: 12,
        passage_stride_tokens: 6,
        bm25: Bm25::default(),
        ivf: None,
    };
    let options = StoreOptions { n_threads: 1, ..StoreOptions::default() };
    let store = Store::open(root, model.card(), recipe, Arc::new(ByteTokenizer::default()), options).unwrap();
    for domain in domains {
        let source = Source {
            id: domain.source.clone(),
            owner: "the teller".into(),
            licence: "LicenseRef-test".into(),
            licence_stated_at: "here".into(),
            notice: String::new(),
            tier: Tier::Restricted,
            permissions: Permissions::of_tier(Tier::Restricted),
        };
        store.by("test").create_source(&source).unwrap();
        let new = NewShard { source: &domain.source, documents: &domain.stored };
        store.by("test").add_shard(&new, model, &AtomicBool::new(false), &|_, _| {}).unwrap();
    }
    store
}

/// Loss of a domain's test text, scored by an engine that has a measurement's parameters.
fn scored(engine: &Engine, domain: &Domain, m: &Measurement) -> Loss {
    let mode = match m.setting {
        Setting::Parametric | Setting::Tempered => Mode::Parametric,
        Setting::Knn | Setting::KnnShared | Setting::KnnCalibrated | Setting::KnnNeutral => Mode::Knn,
        Setting::Context => Mode::Context,
        Setting::KnnAndContext | Setting::KnnAndContextNeutral => Mode::KnnAndContext,
    };
    let allow_sources = if m.scope == Scope::Matched { vec![domain.source.clone()] } else { Vec::new() };
    let filter = Filter { allow_sources, ..Filter::default() };
    let mut loss = Loss::default();
    for text in &domain.test {
        let request =
            ScoreRequest::new(text.tokens.clone(), Retrieval { mode, filter: filter.clone(), ..Retrieval::default() });
        let score = engine.score(&request, &AtomicBool::new(false)).unwrap();
        loss.nats -= score.tokens.iter().map(|t| t.log_probability).sum::<f64>();
        loss.n_tokens += score.tokens.len() as u64;
        loss.n_bytes += text.n_bytes;
    }
    loss
}

/// What neutral parameters are tuned on is openly licensed and new to every model, each document of it, and repeats nothing.
#[test]
fn only_neutral_text_is_neutral() {
    let root = tempfile::tempdir().unwrap();
    corpus(root.path(), &["alpha"]);
    let path = root.path().join("alpha.jsonl.zst");
    let read = |sizes| Domain::read(root.path(), "alpha", sizes, &ByteTokenizer::default());
    let neutral = Sizes { neutral: true, store_bytes: 1 << 20, ..SIZES };
    let mut documents = silo_corpus::read_documents(&path).unwrap();
    for document in &mut documents {
        (document.tier, document.train) = (Tier::Permissive, false);
    }
    write_documents(&path, &documents).unwrap();
    let says = |role| {
        let sources = vec![report(root.path(), "alpha", role)];
        BuildReport { sources }.write(root.path()).unwrap();
    };
    for role in [Role::Train, Role::Domain] {
        says(role);
        let error = read(neutral).unwrap_err().to_string();
        assert!(error.contains("role of 'alpha'"), "{error}");
    }
    says(Role::Neutral);
    let all = read(neutral).unwrap();
    assert_eq!(all, read(Sizes { neutral: false, ..neutral }).unwrap());
    for i in 0..documents.len() {
        let governed = CorpusDocument { tier: Tier::Restricted, ..documents[i].clone() };
        let learnt = CorpusDocument { train: true, ..documents[i].clone() };
        for other in [governed, learnt] {
            let mut all_but_one = documents.clone();
            all_but_one[i] = other;
            write_documents(&path, &all_but_one).unwrap();
            let error = read(neutral).unwrap_err().to_string();
            assert!(error.contains("'alpha'") && error.contains(&documents[i].uri), "{error}");
            assert!(read(SIZES).is_ok());
        }
    }
    let repeated = documents.iter_mut().find(|d| d.split == Split::Train).unwrap();
    repeated.excluded = Some(Exclusion::NearDuplicate);
    write_documents(&path, &documents).unwrap();
    assert_eq!(read(neutral).unwrap().stored.len() + 1, all.stored.len());
}

/// A build that was stopped leaves documents that the report does not know.
#[test]
fn documents_are_those_of_the_report() {
    let root = tempfile::tempdir().unwrap();
    corpus(root.path(), &["alpha", "beta"]);
    let read = |name| Domain::read(root.path(), name, SIZES, &ByteTokenizer::default());
    let (alpha, beta) = (root.path().join("alpha.jsonl.zst"), root.path().join("beta.jsonl.zst"));
    std::fs::copy(&beta, &alpha).unwrap();
    let message = read("alpha").unwrap_err().to_string();
    assert!(message.contains("alpha.jsonl.zst") && message.contains("build the corpus again"), "{message}");
    assert!(read("beta").is_ok());
    assert!(read("gamma").unwrap_err().to_string().contains("source 'gamma'"));
}

/// What was looked at is passed over as whole documents, the same for every tokenizer, and no document has more than its part.
#[test]
fn test_text_can_be_new_and_of_many_documents() {
    let root = tempfile::tempdir().unwrap();
    corpus(root.path(), &["alpha"]);
    let tokenizer = ByteTokenizer::default();
    let read = |sizes| Domain::read(root.path(), "alpha", sizes, &tokenizer);
    let all = read(Sizes { test_tokens: 1 << 20, ..SIZES }).unwrap().test;
    assert_eq!(all.len(), 10);
    let first: usize = all[..2].iter().map(|text| text.tokens.len()).sum();
    let passed_over_bytes = first - all[1].tokens.len() + 1; // the second one begins within
    let sizes = Sizes { passed_over_bytes, document_tokens: 11, ..SIZES };
    let new = read(sizes).unwrap();
    let expected: Vec<&[u32]> = all[2..].iter().map(|text| &text.tokens[..11]).collect();
    assert_eq!(new.test.iter().map(|text| &text.tokens[..]).collect::<Vec<_>>(), expected, "8 of 11 are all there are");
    assert!(new.validation.iter().all(|text| text.tokens.len() <= 11) && new.validation.len() == 6);
    let later = read(Sizes { passed_over_tokens: 11, ..sizes }).unwrap();
    let expected: Vec<&[u32]> = all[2..].iter().map(|text| &text.tokens[11..22]).collect();
    assert_eq!(later.test.iter().map(|text| &text.tokens[..]).collect::<Vec<_>>(), expected);
    assert_eq!(later.validation, new.validation);
    let error = read(Sizes { passed_over_tokens: 1 << 20, ..SIZES }).unwrap_err().to_string();
    assert!(error.contains("passed_over_tokens"), "{error}");
    let error = read(Sizes { passed_over_bytes: 1 << 20, ..SIZES }).unwrap_err().to_string();
    assert!(error.contains("passed_over_bytes"), "{error}");
}

/// What engines are made of.
struct Parts {
    model: Arc<dyn LanguageModel>,
    tokenizer: Arc<dyn Tokenizer>,
    store: Arc<dyn Datastore>,
}

impl Parts {
    fn engine(&self, config: EngineConfig, calibration: Option<Calibration>) -> Engine {
        let (model, tokenizer, store) = (self.model.clone(), self.tokenizer.clone(), self.store.clone());
        Engine::start(config, calibration, model, tokenizer, store).unwrap()
    }

    fn calibration(&self, domains: &[Domain], together: &Together) -> Calibration {
        let tuned_on = domains.iter().map(|d| d.source.clone()).collect();
        let (tuned, neutral) = (together.calibrated.parameters, EngineConfig::default().knn);
        let card = self.model.card();
        Calibration { model: card.hash, key_site: card.key_site, tuned_on, tuned, neutral }
    }
}

fn grid() -> Grid {
    Grid {
        k: vec![2, 16],
        knn_temperature: vec![0.1, 1.0, 10.0],
        knn_weight: vec![0.2, 0.9],
        match_bonus: vec![0.0, 0.3],
        match_tokens: 3,
        model_temperature: vec![0.5, 1.0, 2.0],
    }
}

/// What the cells of a domain have to do with each other.
fn check_cells(
    with: &Gatherer<'_>,
    (domain, result): (&Domain, &DomainResult),
    (together, neutral): (&Together, KnnParameters),
) {
    let cell = |setting, scope| result.measurements.iter().find(|m| (m.setting, m.scope) == (setting, scope)).unwrap();
    let (alone, control) = (cell(Setting::Parametric, Scope::Mixed), cell(Setting::Tempered, Scope::Mixed));
    assert!(control.validation.nats <= alone.validation.nats, "temperature 1 is among those that are tried");
    let view = View { mode: Mode::Parametric, ..View::default() };
    let losses = with.gather_from(domain, &domain.test, &view).unwrap().losses_by(|e| e.parametric_log_probability);
    assert!(losses.iter().zip(&domain.test).all(|(loss, text)| loss.n_tokens == text.n_scored as u64));
    let nats = losses.iter().map(|loss| loss.nats).sum::<f64>();
    assert!((nats - alone.test.nats).abs() < 1e-9 * nats, "{nats} {alone:?}");
    assert_eq!(cell(Setting::KnnNeutral, Scope::Mixed).parameters, Some(neutral));
    let own = cell(Setting::Knn, Scope::Mixed);
    let all = cell(Setting::KnnShared, Scope::Mixed);
    assert_eq!(all.parameters, Some(together.shared.parameters));
    assert!(own.validation.nats <= all.validation.nats, "what is tuned per domain is best on its validation text");
    assert!(own.test.nats < cell(Setting::Parametric, Scope::Mixed).test.nats);
}

#[test]
fn every_cell_is_what_the_engine_scores() {
    let root = tempfile::tempdir().unwrap();
    let names = ["alpha", "beta"];
    corpus(root.path(), &names);
    let model = ScriptedModel::new(64);
    let tokenizer = ByteTokenizer::default();
    let domains: Vec<Domain> = names.iter().map(|n| Domain::read(root.path(), n, SIZES, &tokenizer).unwrap()).collect();
    for domain in &domains {
        let n = |texts: &[silo_eval::Text]| texts.iter().map(|t| t.tokens.len()).sum::<usize>();
        assert_eq!((n(&domain.validation), n(&domain.test)), (SIZES.validation_tokens, SIZES.test_tokens));
        let bytes: usize = domain.stored.iter().map(|d| d.text.len()).sum();
        assert!((SIZES.store_bytes..SIZES.store_bytes + 100).contains(&bytes), "{bytes}");
    }
    let store = store(&root.path().join("store"), &model, &domains);
    let parts = Parts { model: Arc::new(model), tokenizer: Arc::new(tokenizer), store: Arc::new(store) };
    let neutral = KnnParameters { match_tokens: 3, match_bonus: 0.1, ..KnnParameters::new(9, 0.4, 2.0) };
    let engine = parts.engine(EngineConfig { knn: neutral, ..EngineConfig::default() }, None);
    let grid = grid();
    let cache =
        EvidenceCache::new(&root.path().join("evidence"), serde_json::json!("all that it was made from")).unwrap();
    let gathered = std::cell::Cell::new(0);
    let progress = |_: &str| gathered.set(gathered.get() + 1);
    let also_tuned_on = [Scope::Others, Scope::Another];
    let with = Gatherer {
        engine: &engine,
        domains: &domains,
        grid: &grid,
        cache: Some(&cache),
        also_tuned_on: &also_tuned_on,
        progress: &progress,
    };
    let (results, together) = evaluate(&with).unwrap();
    // The second time nothing is searched for.
    let before = gathered.replace(0);
    assert_eq!((evaluate(&with).unwrap(), before, gathered.get()), ((results.clone(), together.clone()), 21, 0));
    let calibrated = parts.engine(EngineConfig::default(), Some(parts.calibration(&domains, &together)));
    let gated = |m: &Measurement| m.parameters.is_some_and(|p| p.gate.is_some());
    assert!(results.iter().flat_map(|r| &r.measurements).any(gated), "some cell has a gate");
    for (domain, result) in domains.iter().zip(&results) {
        assert_eq!(result.measurements.len(), 12);
        for m in result.measurements.iter().filter(|m| m.setting != Setting::Tempered) {
            let knn = m.parameters.unwrap_or(EngineConfig::default().knn);
            let configured = parts.engine(EngineConfig { knn, ..EngineConfig::default() }, None);
            let engine = if m.setting == Setting::KnnCalibrated { &calibrated } else { &configured };
            let expected = scored(engine, domain, m);
            assert_eq!((m.test.n_tokens, m.test.n_bytes), (expected.n_tokens, expected.n_bytes));
            assert!((m.test.nats - expected.nats).abs() < 1e-9 * expected.nats, "{m:?} {expected:?}");
            assert_eq!(m.texts.len(), domain.test.len());
            assert_eq!(m.texts.iter().copied().fold(Loss::default(), Loss::and), m.test);
        }
        check_cells(&with, (domain, result), (&together, neutral));
    }
    assert!(Domain::read(root.path(), "gamma", SIZES, &ByteTokenizer::default()).is_err());
    let beyond = KnnParameters { k: 17, ..neutral };
    let engine = parts.engine(EngineConfig { knn: beyond, ..EngineConfig::default() }, None);
    let error = evaluate(&Gatherer { engine: &engine, ..with }).unwrap_err().to_string();
    assert!(error.contains("17") && error.contains("eval.grid"), "{error}");
}

/// What is computed without a source is what a store without it says; then the store is what it was.
#[test]
fn what_credit_names_is_put_to_the_test() {
    let root = tempfile::tempdir().unwrap();
    let names = ["alpha", "beta"];
    corpus(root.path(), &names);
    let (model, tokenizer) = (ScriptedModel::new(64), ByteTokenizer::default());
    let domains: Vec<Domain> = names.iter().map(|n| Domain::read(root.path(), n, SIZES, &tokenizer).unwrap()).collect();
    let store = Arc::new(store(&root.path().join("store"), &model, &domains));
    let before = (store.snapshot().root, store.shards().unwrap());
    let parts = Parts { model: Arc::new(model), tokenizer: Arc::new(ByteTokenizer::default()), store: store.clone() };
    let knn = KnnParameters::new(9, 0.4, 2.0);
    let engine = parts.engine(EngineConfig { knn, ..EngineConfig::default() }, None);
    let grid = grid();
    let with = Gatherer {
        engine: &engine,
        domains: &domains,
        grid: &grid,
        cache: None,
        also_tuned_on: &[],
        progress: &|_| {},
    };
    let config = AttributionConfig { tokens: 50, runs: 3, run_words: vec![3, 5], ..AttributionConfig::default() };
    for domain in &domains {
        let texts: Vec<_> = config.pieces(domain).map(|t| (t, with.named(domain, t).unwrap())).collect();
        let n: usize = texts.iter().map(|(tokens, _)| tokens.len()).sum();
        assert!((config.tokens..config.tokens + domain.test.len()).contains(&n), "{n}");
        for (tokens, named) in &texts {
            let mut altered = named.clone();
            for (source, computed) in &mut altered.without {
                assert_eq!(computed.len(), named.n_scored);
                let compared = with.taken_out(&store, source, std::iter::once((domain, *tokens, named))).unwrap();
                assert_eq!((compared.tokens, compared.equal), (named.n_scored as u64, named.n_scored as u64));
                computed[0] = f64::from_bits(computed[0].to_bits() + 1);
            }
            // One bit at one token of each source is seen.
            for source in named.without.keys() {
                let altered = std::iter::once((domain, *tokens, &altered));
                let compared = with.taken_out(&store, source, altered).unwrap();
                assert_eq!(compared.equal, named.n_scored as u64 - 1);
            }
            assert!(named.named.iter().all(|token| named.without.contains_key(&token.source) && token.share > 0.0));
        }
        assert!(texts.iter().any(|(_, named)| named.named.iter().any(|token| token.loss > 0.0)));
        let runs = plant(&store, &tokenizer, domain, &config).unwrap();
        assert_eq!((runs.len(), runs.iter().filter(|run| run.found).count()), (6, 6));
    }
    assert_eq!((store.snapshot().root, store.shards().unwrap()), before);
    let all = Sizes { test_tokens: 1 << 20, ..SIZES };
    let texts = |prefix: &str| {
        held_out_of(root.path(), &domains[0].source, prefix, all, &tokenizer).map(|texts| texts.len()).unwrap()
    };
    assert_eq!((texts("test:beta/"), texts("test:alpha/3"), texts("test:alpha/7")), (0, 4, 1));
}
