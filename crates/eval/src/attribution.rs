//! What credit names, put to the test: the source with the greatest share of a token, and the same token on a store without that source; and
//! runs of words that are known to stand in the store.

use std::collections::{BTreeMap, BTreeSet};
use std::slice::from_ref;
use std::sync::atomic::AtomicBool;

use serde::{Deserialize, Serialize};
use serde_json::json;
use silo_core::{Filter, SnapshotProvider, SourceId, TokenId, Tokenizer, units};
use silo_engine::{Depth, Engine, Mode, Retrieval, ScoreRequest, TokenCredit};
use silo_store::{ShardState, SpanQuery, Store};

use crate::{Domain, EvalError, Gatherer};

/// How attribution is looked at.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AttributionConfig {
    /// Tokens of each domain's test text that are credited: so many from the middle of each of its texts that they make this up together.
    pub tokens: usize,
    /// Ends of the buckets of tokens, by the greatest share of a source; what is above the last one is a bucket as well.
    pub shares: Vec<f64>,
    /// Runs of words of each domain's text in the store that are put into its test text, for each length.
    pub runs: usize,
    /// Lengths of them, in words.
    pub run_words: Vec<usize>,
}

impl Default for AttributionConfig {
    fn default() -> Self {
        Self { tokens: 1000, shares: vec![0.1, 0.25, 0.5, 0.75], runs: 20, run_words: vec![4, 6, 8, 12, 16] }
    }
}

impl AttributionConfig {
    /// Refuses what means nothing.
    pub fn check(&self) -> Result<(), EvalError> {
        let refuse = |what: &str| Err(EvalError::SenselessAttribution(what.to_owned()));
        if self.tokens == 0 || self.runs == 0 {
            return refuse("tokens and runs must be 1 or more");
        }
        let is_share = |s: &f64| *s > 0.0 && *s < 1.0;
        if !(self.shares.is_sorted_by(|a, b| a < b) && self.shares.iter().all(is_share)) {
            return refuse("shares must rise, from above 0 to below 1");
        }
        if self.run_words.is_empty() || self.run_words[0] == 0 || !self.run_words.is_sorted_by(|a, b| a < b) {
            return refuse("run_words must rise, from 1 or more");
        }
        Ok(())
    }

    /// Pieces from the middle of a domain's test texts, where no headers stand, which are everywhere alike; all that a shorter text has.
    pub fn pieces<'a>(&self, domain: &'a Domain) -> impl Iterator<Item = &'a [TokenId]> {
        let of_each = self.tokens.div_ceil(domain.test.len().max(1));
        domain.test.iter().map(move |text| {
            let n = of_each.min(text.tokens.len());
            &text.tokens[(text.tokens.len() - n) / 2..][..n]
        })
    }

    /// The bucket of a share.
    pub fn bucket(&self, share: f64) -> usize {
        self.shares.partition_point(|end| *end <= share)
    }

    /// How many buckets there are.
    pub fn n_buckets(&self) -> usize {
        self.shares.len() + 1
    }
}

/// A token, and the source with the greatest share of its probability.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NamedToken {
    /// The source.
    pub source: SourceId,
    /// Its share, above 0.
    pub share: f64,
    /// log p of the token, less what it is without the source.
    pub loss: f64,
}

/// What credit names in a text.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NamedText {
    /// Tokens that are scored.
    pub n_scored: usize,
    /// Those of them in which a source has a share.
    pub named: Vec<NamedToken>,
    /// log p of each token that is scored as CompareWithout computes it, without each source that is named.
    pub without: BTreeMap<SourceId, Vec<f64>>,
}

/// Log-probabilities that were compared.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Compared {
    /// All.
    pub tokens: u64,
    /// Those that are equal to the last bit.
    pub equal: u64,
}

impl Compared {
    fn of(computed: &[f64], found: &[f64]) -> Self {
        let equal = computed.iter().zip(found).filter(|(a, b)| a.to_bits() == b.to_bits()).count();
        Self { tokens: computed.len().max(found.len()) as u64, equal: equal as u64 }
    }

    /// Both.
    pub fn and(self, other: Self) -> Self {
        Self { tokens: self.tokens + other.tokens, equal: self.equal + other.equal }
    }
}

impl Gatherer<'_> {
    /// What credit to sources names in a text, with neighbours from the whole store, as the engine is configured.
    pub fn named(&self, domain: &Domain, tokens: &[TokenId]) -> Result<NamedText, EvalError> {
        let knn = self.engine.config().knn;
        let question = json!({"named": tokens, "window_tokens": domain.window_tokens, "knn": knn});
        self.choice(&question, || named(self.engine, &request(domain, tokens)))
    }

    /// The texts again while the shards of a source are suspended in the engine's store, beside what was computed without it. Then all of its
    /// shards are in use again: for a store that is made for this.
    pub fn taken_out<'a>(
        &self,
        store: &Store,
        source: &SourceId,
        texts: impl Iterator<Item = (&'a Domain, &'a [TokenId], &'a NamedText)>,
    ) -> Result<Compared, EvalError> {
        take_out(store, source)?;
        let mut compared = Compared::default();
        for (domain, tokens, named) in texts {
            let Some(computed) = named.without.get(source) else { continue };
            let score = self.engine.score(&request(domain, tokens), &AtomicBool::new(false))?;
            let found: Vec<f64> = score.tokens.iter().map(|t| t.log_probability).collect();
            compared = compared.and(Compared::of(computed, &found));
        }
        put_back(store)?;
        Ok(compared)
    }
}

fn request(domain: &Domain, tokens: &[TokenId]) -> ScoreRequest {
    let retrieval = Retrieval { mode: Mode::Knn, ..Retrieval::default() };
    let mut request = ScoreRequest::new(tokens.to_vec(), retrieval);
    request.window_tokens = domain.window_tokens;
    request
}

fn named(engine: &Engine, request: &ScoreRequest) -> Result<NamedText, EvalError> {
    let cancel = AtomicBool::new(false);
    let credited = ScoreRequest { depth: Some(Depth::Sources), ..request.clone() };
    let scored = engine.score(&credited, &cancel)?.tokens;
    let first = |credit: &TokenCredit| {
        let shares = credit.sources.iter().filter(|(_, share)| *share > 0.0);
        shares.max_by(|a, b| a.1.total_cmp(&b.1)).cloned()
    };
    let firsts: Vec<_> = scored.iter().map(|token| token.credit.as_ref().and_then(first)).collect();
    let mut without = BTreeMap::new();
    for source in firsts.iter().flatten().map(|(source, _)| source).collect::<BTreeSet<_>>() {
        let compared = engine.compare_without(request, from_ref(source), &cancel)?.tokens;
        without.insert(source.clone(), compared.iter().map(|token| token.without).collect::<Vec<f64>>());
    }
    let of = |(place, first): (usize, Option<(SourceId, f64)>)| {
        let (source, share) = first?;
        let loss = scored[place].log_probability - without[&source][place];
        Some(NamedToken { source, share, loss })
    };
    let named = firsts.into_iter().enumerate().filter_map(of).collect();
    Ok(NamedText { n_scored: scored.len(), named, without })
}

const ACTOR: &str = "eval";

fn take_out(store: &Store, source: &SourceId) -> Result<(), EvalError> {
    for view in store.snapshot().shards.iter().filter(|view| view.source.id == *source) {
        store.by(ACTOR).suspend_shard(view.id)?;
    }
    Ok(())
}

fn put_back(store: &Store) -> Result<(), EvalError> {
    for record in store.shards()?.iter().filter(|record| record.state == ShardState::Suspended) {
        store.by(ACTOR).resume_shard(record.id)?;
    }
    Ok(())
}

/// A run of words of the store, in a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct PlantedRun {
    /// Words.
    pub n_words: usize,
    /// Whether it is found, with its source.
    pub found: bool,
    /// Sources that hold it.
    pub n_sources: usize,
}

/// Runs of words of a domain's text in the store, each from the middle of a document, put between words of the domain's test text, and looked for there.
pub fn plant(
    store: &Store,
    tokenizer: &dyn Tokenizer,
    domain: &Domain,
    config: &AttributionConfig,
) -> Result<Vec<PlantedRun>, EvalError> {
    let hosts: Vec<String> = domain.test.iter().map(|text| tokenizer.decode(&text.tokens)).collect();
    let mut out = Vec::new();
    for n_words in &config.run_words {
        let runs = domain.stored.iter().filter_map(|document| middle(&document.text, *n_words)).take(config.runs);
        for (run, host) in runs.zip(hosts.iter().cycle()) {
            out.push(look(store, domain, run, host)?);
        }
    }
    Ok(out)
}

/// So many words from the middle of a text.
fn middle(text: &str, n_words: usize) -> Option<&str> {
    let words: Vec<units::Word> = units::words(text).collect();
    let from = words.len().checked_sub(n_words)? / 2;
    Some(&text[words[from].at.start..words[from + n_words - 1].at.end])
}

/// Words of test text before a run and behind it.
const HOST_WORDS: usize = 20;

fn look(store: &Store, domain: &Domain, run: &str, host: &str) -> Result<PlantedRun, EvalError> {
    let words: Vec<units::Word> = units::words(host).collect();
    let cut = words.get(HOST_WORDS).map_or(host.len(), |word| word.at.start);
    let end = words.get(2 * HOST_WORDS).map_or(host.len(), |word| word.at.start);
    let text = format!("{} {run} {}", &host[..cut], &host[cut..end]);
    let (at, n_words) = (cut + 1..cut + 1 + run.len(), units::words(run).count());
    let (filter, cancel) = (Filter::default(), AtomicBool::new(false));
    let query = SpanQuery {
        text: &text,
        filter: &filter,
        min_words: n_words,
        max_spans: usize::MAX,
        max_documents: 0,
        context_words: 0,
        cancel: &cancel,
    };
    let (_, spans) = store.find_spans(&query)?;
    let span = spans.iter().find(|span| span.at.start <= at.start && span.at.end >= at.end);
    Ok(PlantedRun {
        n_words,
        found: span.is_some_and(|span| span.sources.contains(&domain.source)),
        n_sources: span.map_or(0, |span| span.sources.len()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_share_has_a_bucket() {
        let config = AttributionConfig::default();
        let buckets = [0.01, 0.1, 0.3, 0.75, 1.0].map(|share| config.bucket(share));
        assert_eq!((buckets, config.n_buckets()), ([0, 1, 2, 4, 4], 5));
    }

    #[test]
    fn what_means_nothing_is_refused() {
        let default = AttributionConfig::default;
        default().check().unwrap();
        for (config, named) in [
            (AttributionConfig { tokens: 0, ..default() }, "tokens"),
            (AttributionConfig { runs: 0, ..default() }, "runs"),
            (AttributionConfig { shares: vec![0.5, 0.1], ..default() }, "shares"),
            (AttributionConfig { shares: vec![f64::NAN], ..default() }, "shares"),
            (AttributionConfig { run_words: vec![], ..default() }, "run_words"),
            (AttributionConfig { run_words: vec![0, 4], ..default() }, "run_words"),
        ] {
            let message = config.check().unwrap_err().to_string();
            assert!(message.contains(named), "{message}");
        }
    }

    #[test]
    fn runs_are_from_the_middle() {
        assert_eq!(middle("One, two. Three four five", 3), Some("two. Three four"));
        assert_eq!(middle("one two", 2), Some("one two"));
        assert_eq!(middle("one two", 3), None);
    }

    #[test]
    fn equal_is_equal_to_the_last_bit() {
        let compared = Compared::of(&[-1.0, 0.0, -2.0], &[-1.0, -0.0, -2.0]);
        assert_eq!(compared, Compared { tokens: 3, equal: 2 });
        assert_eq!(Compared::of(&[-1.0], &[]), Compared { tokens: 1, equal: 0 }, "what is missing is not equal");
    }
}
