//! The table: every domain, every mode, with its own shard and with the whole store.

use std::collections::BTreeSet;
use std::sync::atomic::AtomicBool;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use silo_core::{Filter, KnnParameters, SourceId};
use silo_engine::{ContextParameters, Engine, Evidence, KnnOverrides, Mode, Retrieval, ScoreRequest, Sums};

use crate::weight::choose_rule;
use crate::{Chosen, Domain, EvalError, EvidenceCache, Grid, Loss, RuleKind, Text, Tuned, tune};

/// What of the store is seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scope {
    /// The domain's own source.
    Matched,
    /// All sources.
    Mixed,
}

impl Scope {
    const ALL: [Self; 2] = [Self::Matched, Self::Mixed];
}

/// How a text was scored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Setting {
    /// The model alone.
    Parametric,
    /// The model alone at the temperature that suits the domain's validation text: what is gained without a store.
    Tempered,
    /// Neighbours, as a server has them that was calibrated on the domain.
    Knn,
    /// Neighbours, with one weight at every token, the same for all domains.
    KnnShared,
    /// Neighbours as a server has them that was calibrated on all domains together.
    KnnCalibrated,
    /// Passages in front.
    Context,
    /// Both, calibrated on the domain.
    KnnAndContext,
}

/// One cell of the table.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Measurement {
    /// How.
    pub setting: Setting,
    /// What of the store.
    pub scope: Scope,
    /// With which parameters, where there are any.
    pub parameters: Option<KnnParameters>,
    /// At which temperature of the model, where one was chosen.
    pub model_temperature: Option<f64>,
    /// On validation text.
    pub validation: Loss,
    /// On test text.
    pub test: Loss,
}

/// All cells of a domain.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DomainResult {
    /// The domain.
    pub domain: String,
    /// Its cells.
    pub measurements: Vec<Measurement>,
    /// What of the best parameters of some cell lay at an end of the grid.
    pub edges: BTreeSet<&'static str>,
}

/// Told what is being done.
pub type Progress<'a> = dyn Fn(&str) + 'a;

/// What of the store is seen, and how.
#[derive(Debug, Clone, Default)]
pub struct View {
    /// What is seen.
    pub filter: Filter,
    /// How.
    pub mode: Mode,
    /// Parameters of the passages; the engine's, if there are none.
    pub context: Option<ContextParameters>,
}

/// What evidence is gathered with.
#[derive(Clone, Copy)]
pub struct Gatherer<'a> {
    /// An engine whose store holds the domains.
    pub engine: &'a Engine,
    /// What is tried.
    pub grid: &'a Grid,
    /// Where evidence is kept, if it is.
    pub cache: Option<&'a EvidenceCache>,
    /// Told what is being done.
    pub progress: &'a Progress<'a>,
}

/// What suits the validation text of all domains together, with the whole store.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Together {
    /// The best parameters with one weight at every token.
    pub shared: Tuned,
    /// What a server is calibrated with.
    pub calibrated: Chosen,
}

impl Together {
    /// Chooses; also gives what it was chosen from.
    pub fn choose(with: &Gatherer<'_>, domains: &[Domain]) -> Result<(Vec<Gathered>, Self), EvalError> {
        with.grid.check()?;
        let gather = |domain: &Domain| with.gather(domain, &domain.validation, Scope::Mixed, Mode::Knn);
        let mixed: Vec<Gathered> = domains.iter().map(gather).collect::<Result<_, _>>()?;
        let choose = || {
            (with.progress)("choosing what suits all domains together");
            let all: Vec<&Evidence> = mixed.iter().flat_map(|g| &g.evidence).collect();
            Ok(Self { shared: tune(with.grid, &all)?, calibrated: choose_rule(with.grid, &mixed)? })
        };
        let texts: Vec<(&SourceId, Vec<&[u32]>)> =
            domains.iter().map(|d| (&d.source, d.validation.iter().map(|text| &text.tokens[..]).collect())).collect();
        let windows: Vec<usize> = domains.iter().map(|d| d.window_tokens).collect();
        let question = json!({"texts": texts, "window_tokens": windows, "grid": with.grid, "kinds": RuleKind::SERVED});
        let together = with.choice(&question, choose)?;
        Ok((mixed, together))
    }
}

/// Measures all domains; also gives what suits all of them together.
pub fn evaluate(with: &Gatherer<'_>, domains: &[Domain]) -> Result<(Vec<DomainResult>, Together), EvalError> {
    let (mixed, together) = Together::choose(with, domains)?;
    let mut out = Vec::new();
    for (domain, mixed) in domains.iter().zip(mixed) {
        let mut result =
            DomainResult { domain: domain.source.to_string(), measurements: Vec::new(), edges: BTreeSet::new() };
        let mut known = Some(mixed);
        for scope in Scope::ALL.into_iter().rev() {
            for mode in [Mode::Knn, Mode::KnnAndContext] {
                let known = if mode == Mode::Knn { known.take() } else { None };
                let gather = |texts| with.gather(domain, texts, scope, mode);
                let validation = known.map_or_else(|| gather(&domain.validation), Ok)?;
                let test = gather(&domain.test)?;
                let own = with.own(domain, (scope, mode), &validation)?;
                measure(&mut result, &Pair { scope, mode, validation, test, own }, with.grid, &together);
            }
        }
        out.push(result);
    }
    Ok((out, together))
}

/// Loss of the model alone on each of a domain's test texts.
pub fn parametric_losses(engine: &Engine, domain: &Domain) -> Result<Vec<Loss>, EvalError> {
    let loss = |text: &Text| {
        let mut request = ScoreRequest::new(text.tokens.clone(), Retrieval::default());
        request.window_tokens = domain.window_tokens;
        let score = engine.score(&request, &AtomicBool::new(false))?;
        let nats = -score.tokens.iter().map(|t| t.log_probability).sum::<f64>();
        Ok(Loss { nats, n_tokens: score.tokens.len() as u64, n_bytes: text.n_bytes })
    };
    domain.test.iter().map(loss).collect()
}

/// Evidence of some texts.
pub struct Gathered {
    /// Of each token that could be scored.
    pub evidence: Vec<Evidence>,
    /// Bytes of the texts.
    pub n_bytes: u64,
}

struct Pair {
    scope: Scope,
    mode: Mode,
    validation: Gathered,
    test: Gathered,
    /// What suits the validation text.
    own: KnnParameters,
}

impl Gatherer<'_> {
    /// What was chosen before for this question, or is now.
    fn choice<T: Serialize + DeserializeOwned>(
        &self,
        question: &Value,
        choose: impl FnOnce() -> Result<T, EvalError>,
    ) -> Result<T, EvalError> {
        match self.cache {
            Some(cache) => cache.choice(question, choose),
            None => choose(),
        }
    }

    /// What suits the validation text of one domain alone.
    fn own(
        &self,
        domain: &Domain,
        (scope, mode): (Scope, Mode),
        validation: &Gathered,
    ) -> Result<KnnParameters, EvalError> {
        let texts: Vec<&[u32]> = domain.validation.iter().map(|text| &text.tokens[..]).collect();
        let context = mode.context().then_some(self.engine.config().context);
        let question = json!({
            "domain": domain.source, "texts": texts, "window_tokens": domain.window_tokens, "scope": scope, "mode": format!("{mode:?}"), "context": context,
            "grid": self.grid, "kinds": RuleKind::SERVED,
        });
        let chosen: Chosen = self.choice(&question, || choose_rule(self.grid, std::slice::from_ref(validation)))?;
        Ok(chosen.parameters)
    }

    /// Evidence of texts of a domain.
    pub fn gather(&self, domain: &Domain, texts: &[Text], scope: Scope, mode: Mode) -> Result<Gathered, EvalError> {
        let allow_sources = match scope {
            Scope::Matched => vec![domain.source.clone()],
            Scope::Mixed => Vec::new(),
        };
        let filter = Filter { allow_sources, ..Filter::default() };
        self.gather_from(domain, texts, &View { filter, mode, context: None })
    }

    /// The same of what a view shows.
    pub fn gather_from(&self, domain: &Domain, texts: &[Text], view: &View) -> Result<Gathered, EvalError> {
        let View { filter, mode, context } = view;
        let n_bytes = texts.iter().map(|text| text.n_bytes).sum();
        let tokens: Vec<&[u32]> = texts.iter().map(|text| &text.tokens[..]).collect();
        let context = mode.context().then_some(context.unwrap_or(self.engine.config().context));
        let question = json!({
            "texts": tokens, "filter": format!("{filter:?}"), "mode": format!("{mode:?}"), "window_tokens": domain.window_tokens,
            "k": self.grid.max_k(), "match_tokens": self.grid.match_tokens, "model_temperature": self.grid.model_temperature, "context": context,
        });
        let retrieval = Retrieval {
            mode: *mode,
            filter: filter.clone(),
            knn: KnnOverrides {
                k: Some(self.grid.max_k()),
                match_tokens: Some(self.grid.match_tokens),
                ..KnnOverrides::default()
            },
            context,
            ..Retrieval::default()
        };
        let gather = || {
            (self.progress)(&format!("{}: {mode:?}, {} texts", domain.source, texts.len()));
            let mut evidence = Vec::new();
            for text in texts {
                let mut request = ScoreRequest::new(text.tokens.clone(), retrieval.clone());
                request.window_tokens = domain.window_tokens;
                let temperatures = &self.grid.model_temperature;
                evidence.extend(self.engine.evidence(&request, temperatures, &AtomicBool::new(false))?);
            }
            Ok(evidence)
        };
        let evidence = match self.cache {
            Some(cache) => cache.get(&question, gather)?,
            None => gather()?,
        };
        Ok(Gathered { evidence, n_bytes })
    }
}

impl Gathered {
    /// The loss with neighbours, or of the model alone.
    pub fn loss(&self, parameters: Option<&KnnParameters>) -> Loss {
        let mut sums = Sums::default();
        self.loss_by(|e| match parameters {
            None => e.parametric_log_probability,
            Some(p) => e.log_probability(p, &mut sums),
        })
    }

    /// The loss, where each token has this log p.
    pub fn loss_by(&self, mut log_p: impl FnMut(&Evidence) -> f64) -> Loss {
        let nats = self.evidence.iter().map(|e| -log_p(e)).sum();
        Loss { nats, n_tokens: self.evidence.len() as u64, n_bytes: self.n_bytes }
    }
}

/// Adds the cells of one scope and mode: the model alone (which has read the passages in the context mode), and with neighbours.
fn measure(result: &mut DomainResult, pair: &Pair, grid: &Grid, together: &Together) {
    let own = pair.own;
    let mut settings = match pair.mode {
        Mode::KnnAndContext | Mode::Context => {
            vec![(Setting::Context, None), (Setting::KnnAndContext, Some(own))]
        }
        Mode::Parametric | Mode::Knn => vec![(Setting::Knn, Some(own))],
    };
    // The model alone sees no store: it is entered once.
    if (pair.mode, pair.scope) == (Mode::Knn, Scope::Mixed) {
        result.measurements.push(tempered(pair, grid));
        settings.insert(0, (Setting::Parametric, None));
        settings.push((Setting::KnnShared, Some(together.shared.parameters)));
        settings.push((Setting::KnnCalibrated, Some(together.calibrated.parameters)));
    }
    result.edges.extend(grid.edges(&own));
    for (setting, parameters) in settings {
        let (validation, test) = (pair.validation.loss(parameters.as_ref()), pair.test.loss(parameters.as_ref()));
        let scope = pair.scope;
        result.measurements.push(Measurement { setting, scope, parameters, model_temperature: None, validation, test });
    }
}

/// The model alone at the temperature that is best on validation text.
fn tempered(pair: &Pair, grid: &Grid) -> Measurement {
    let loss = |of: &Gathered, i: usize| of.loss_by(|e| e.tempered[i]);
    let on_validation = |i: &usize| loss(&pair.validation, *i).nats;
    let best = (0..grid.model_temperature.len()).min_by(|a, b| on_validation(a).total_cmp(&on_validation(b)));
    let i = best.unwrap_or_default();
    let (validation, test) = (loss(&pair.validation, i), loss(&pair.test, i));
    let model_temperature = grid.model_temperature.get(i).copied();
    Measurement { setting: Setting::Tempered, scope: pair.scope, parameters: None, model_temperature, validation, test }
}
