//! The table: every domain, every mode, with its own shard and with the whole store.

use std::sync::atomic::AtomicBool;

use serde::Serialize;
use silo_core::{Filter, KnnParameters};
use silo_engine::{Engine, Evidence, KnnOverrides, Mode, Retrieval, ScoreRequest};

use crate::{Domain, EvalError, Grid, Loss, Text, Tuned, tune};

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
    /// Neighbours, with parameters tuned on the domain's validation text.
    Knn,
    /// Neighbours, with one set of parameters for all domains: what a server uses.
    KnnShared,
    /// Passages in front.
    Context,
    /// Both, tuned on the domain's validation text.
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
    /// Whether some best temperature lay at an end of the grid.
    pub at_the_edge: bool,
}

/// Told what is being done.
pub type Progress<'a> = dyn Fn(&str) + 'a;

/// The parameters that suit the validation text of all domains together, with the whole store; and what they were chosen from.
pub fn tune_shared(
    engine: &Engine,
    domains: &[Domain],
    grid: &Grid,
    progress: &Progress<'_>,
) -> Result<(Vec<Gathered>, Tuned), EvalError> {
    grid.check()?;
    let mut mixed = Vec::new();
    for domain in domains {
        progress(&format!("{}: validation text, whole store", domain.source));
        mixed.push(Gathered::new(engine, grid, domain, &domain.validation, Scope::Mixed, Mode::Knn)?);
    }
    let all: Vec<&Evidence> = mixed.iter().flat_map(|g| &g.evidence).collect();
    let shared = tune(grid, &all)?;
    Ok((mixed, shared))
}

/// Measures all domains; also gives the parameters that suit all of them together, with the whole store. `engine` has a store that
/// holds the domains.
pub fn evaluate(
    engine: &Engine,
    domains: &[Domain],
    grid: &Grid,
    progress: &Progress<'_>,
) -> Result<(Vec<DomainResult>, Tuned), EvalError> {
    let (mixed, shared) = tune_shared(engine, domains, grid, progress)?;
    let mut out = Vec::new();
    for (domain, mixed) in domains.iter().zip(mixed) {
        let mut result =
            DomainResult { domain: domain.source.to_string(), measurements: Vec::new(), at_the_edge: false };
        let mut known = Some(mixed);
        for scope in Scope::ALL.into_iter().rev() {
            for mode in [Mode::Knn, Mode::KnnAndContext] {
                progress(&format!("{}: {scope:?}, {mode:?}", domain.source));
                let known = if mode == Mode::Knn { known.take() } else { None };
                let gather = |texts| Gathered::new(engine, grid, domain, texts, scope, mode);
                let validation = known.map_or_else(|| gather(&domain.validation), Ok)?;
                let test = gather(&domain.test)?;
                measure(&mut result, &Pair { scope, mode, validation, test }, grid, &shared)?;
            }
        }
        out.push(result);
    }
    Ok((out, shared))
}

/// Evidence of some texts.
pub struct Gathered {
    evidence: Vec<Evidence>,
    n_bytes: u64,
}

struct Pair {
    scope: Scope,
    mode: Mode,
    validation: Gathered,
    test: Gathered,
}

impl Gathered {
    fn new(
        engine: &Engine,
        grid: &Grid,
        domain: &Domain,
        texts: &[Text],
        scope: Scope,
        mode: Mode,
    ) -> Result<Self, EvalError> {
        let allow_sources = match scope {
            Scope::Matched => vec![domain.source.clone()],
            Scope::Mixed => Vec::new(),
        };
        let retrieval = Retrieval {
            mode,
            filter: Filter { allow_sources, ..Filter::default() },
            knn: KnnOverrides { k: Some(grid.max_k()), ..KnnOverrides::default() },
            ..Retrieval::default()
        };
        let (mut evidence, mut n_bytes) = (Vec::new(), 0);
        for text in texts {
            let mut request = ScoreRequest::new(text.tokens.clone(), retrieval.clone());
            request.window_tokens = domain.window_tokens;
            evidence.extend(engine.evidence(&request, &AtomicBool::new(false))?);
            n_bytes += text.n_bytes;
        }
        Ok(Self { evidence, n_bytes })
    }

    fn loss(&self, parameters: Option<&KnnParameters>) -> Loss {
        let of_token = |e: &Evidence| match parameters {
            None => -e.parametric_log_probability,
            Some(p) => -e.log_probability(p),
        };
        let nats = self.evidence.iter().map(of_token).sum();
        Loss { nats, n_tokens: self.evidence.len() as u64, n_bytes: self.n_bytes }
    }
}

/// Adds the cells of one scope and mode: the model alone (which has read the passages in the context mode), and with neighbours.
fn measure(result: &mut DomainResult, pair: &Pair, grid: &Grid, shared: &Tuned) -> Result<(), EvalError> {
    let own = tune(grid, &pair.validation.evidence.iter().collect::<Vec<_>>())?;
    let mut settings = match pair.mode {
        Mode::KnnAndContext | Mode::Context => {
            vec![(Setting::Context, None), (Setting::KnnAndContext, Some(own.parameters))]
        }
        Mode::Parametric | Mode::Knn => vec![(Setting::Knn, Some(own.parameters))],
    };
    // The model alone sees no store: it is entered once.
    if (pair.mode, pair.scope) == (Mode::Knn, Scope::Mixed) {
        settings.insert(0, (Setting::Parametric, None));
        settings.push((Setting::KnnShared, Some(shared.parameters)));
    }
    result.at_the_edge |= own.at_the_edge;
    for (setting, parameters) in settings {
        let (validation, test) = (pair.validation.loss(parameters.as_ref()), pair.test.loss(parameters.as_ref()));
        result.measurements.push(Measurement { setting, scope: pair.scope, parameters, validation, test });
    }
    Ok(())
}
