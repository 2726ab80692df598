//! The table: every domain, every mode, with its own shard and with the whole store.

use std::collections::BTreeSet;
use std::sync::atomic::AtomicBool;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use silo_core::{Filter, KnnParameters, SourceId};
use silo_engine::{ContextParameters, Engine, Evidence, KnnOverrides, Mode, Retrieval, ScoreRequest, Sums};

use crate::weight::choose_rule;
use crate::{Chosen, Domain, EvalError, EvidenceCache, Grid, Loss, RuleKind, Scope, Text, Tuned, tune};

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
    /// Neighbours as a server has them without a calibration: as the engine is configured.
    KnnNeutral,
    /// Passages in front.
    Context,
    /// Both, calibrated on the domain.
    KnnAndContext,
    /// Both, as the engine is configured.
    KnnAndContextNeutral,
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
    /// On each test text.
    pub texts: Vec<Loss>,
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
    /// These domains.
    pub domains: &'a [Domain],
    /// What is tried.
    pub grid: &'a Grid,
    /// Where evidence is kept, if it is.
    pub cache: Option<&'a EvidenceCache>,
    /// What is tuned together for all domains is tuned where all of the store is seen, and where so much of it is.
    pub also_tuned_on: &'a [Scope],
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
    pub fn choose(with: &Gatherer<'_>) -> Result<(TunedOn, Self), EvalError> {
        with.grid.check()?;
        let gather = |scope: Scope| {
            let gather = |domain: &Domain| with.gather(domain, &domain.validation, scope, Mode::Knn);
            with.domains.iter().map(gather).collect::<Result<Vec<Gathered>, _>>()
        };
        let mixed = gather(Scope::Mixed)?;
        let others = with
            .also_tuned_on
            .iter()
            .map(|scope| gather(*scope))
            .collect::<Result<Vec<_>, _>>()?
            .into_iter()
            .flatten()
            .collect();
        let from = TunedOn { mixed, others };
        let choose = || {
            (with.progress)("choosing what suits all domains together");
            let gathered: Vec<&Gathered> = from.all().collect();
            Ok(Self { shared: tune(with.grid, &from.evidence())?, calibrated: choose_rule(with.grid, &gathered)? })
        };
        let question = with.question(("also_tuned_on", json!(with.also_tuned_on)));
        let together = with.choice(&question, choose)?;
        Ok((from, together))
    }
}

/// The validation text of all domains, as it was seen.
pub struct TunedOn {
    /// With all of the store, in the order of the domains.
    pub mixed: Vec<Gathered>,
    /// With the other parts of it that were asked for.
    pub others: Vec<Gathered>,
}

impl TunedOn {
    fn all(&self) -> impl Iterator<Item = &Gathered> {
        self.mixed.iter().chain(&self.others)
    }

    /// Of every token, as often as it was seen.
    pub fn evidence(&self) -> Vec<&Evidence> {
        self.all().flat_map(|g| &g.evidence).collect()
    }

    /// Bytes of the texts, as often as they were seen.
    pub fn n_bytes(&self) -> u64 {
        self.all().map(Gathered::n_bytes).sum()
    }
}

/// Measures all domains; also gives what suits all of them together.
pub fn evaluate(with: &Gatherer<'_>) -> Result<(Vec<DomainResult>, Together), EvalError> {
    let neutral = with.neutral()?;
    let (TunedOn { mixed, .. }, together) = Together::choose(with)?;
    let mut out = Vec::new();
    for (domain, mixed) in with.domains.iter().zip(mixed) {
        let mut result =
            DomainResult { domain: domain.source.to_string(), measurements: Vec::new(), edges: BTreeSet::new() };
        let mut known = Some(mixed);
        for scope in Scope::MEASURED.into_iter().rev() {
            for mode in [Mode::Knn, Mode::KnnAndContext] {
                let known = if mode == Mode::Knn { known.take() } else { None };
                let gather = |texts| with.gather(domain, texts, scope, mode);
                let validation = known.map_or_else(|| gather(&domain.validation), Ok)?;
                let test = gather(&domain.test)?;
                let own = with.own(domain, (scope, mode), &validation)?;
                let pair = Pair { scope, mode, validation, test, own };
                measure(&mut result, &pair, with.grid, (&together, neutral));
            }
        }
        out.push(result);
    }
    Ok((out, together))
}

/// Evidence of some texts.
pub struct Gathered {
    /// Of each token that could be scored.
    pub evidence: Vec<Evidence>,
    /// Of each text, how many of those it has, and bytes.
    pub texts: Vec<(usize, u64)>,
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
    pub(crate) fn choice<T: Serialize + DeserializeOwned>(
        &self,
        question: &Value,
        choose: impl FnOnce() -> Result<T, EvalError>,
    ) -> Result<T, EvalError> {
        match self.cache {
            Some(cache) => cache.choice(question, choose),
            None => choose(),
        }
    }

    /// What is asked when something is chosen on the validation text of all domains together; and where.
    fn question(&self, (name, place): (&str, Value)) -> Value {
        let texts: Vec<(&SourceId, Vec<&[u32]>)> = self
            .domains
            .iter()
            .map(|d| (&d.source, d.validation.iter().map(|text| &text.tokens[..]).collect()))
            .collect();
        let windows: Vec<usize> = self.domains.iter().map(|d| d.window_tokens).collect();
        json!({"texts": texts, "window_tokens": windows, "grid": self.grid, "kinds": RuleKind::SERVED, name: place})
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
        let chosen: Chosen = self.choice(&question, || choose_rule(self.grid, &[validation]))?;
        Ok(chosen.parameters)
    }

    /// What suits the validation text of all domains together where a view is seen, and `validation` was gathered.
    pub fn suits(&self, view: &View, validation: &[Gathered]) -> Result<KnnParameters, EvalError> {
        let question = self.question(("view", json!(format!("{view:?}"))));
        let validation: Vec<&Gathered> = validation.iter().collect();
        let chosen: Chosen = self.choice(&question, || choose_rule(self.grid, &validation))?;
        Ok(chosen.parameters)
    }

    /// Evidence of texts of a domain.
    pub fn gather(&self, domain: &Domain, texts: &[Text], scope: Scope, mode: Mode) -> Result<Gathered, EvalError> {
        self.gather_from(
            domain,
            texts,
            &View { filter: scope.filter(&domain.source, self.domains), mode, context: None },
        )
    }

    /// The same of what a view shows.
    pub fn gather_from(&self, domain: &Domain, texts: &[Text], view: &View) -> Result<Gathered, EvalError> {
        let View { filter, mode, context } = view;
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
        Ok(Gathered { evidence, texts: texts.iter().map(|text| (text.n_scored, text.n_bytes)).collect() })
    }

    /// What a server has without a calibration, if evidence can show it.
    pub fn neutral(&self) -> Result<KnnParameters, EvalError> {
        let knn = self.engine.config().knn;
        let KnnParameters { k, match_tokens, .. } = knn;
        let (max_k, max_match_tokens) = (self.grid.max_k(), self.grid.match_tokens);
        if k > max_k || (knn.match_bonus != 0.0 && match_tokens > max_match_tokens) {
            return Err(EvalError::NeutralBeyondGrid { k, match_tokens, max_k, max_match_tokens });
        }
        Ok(knn)
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
        Loss { nats, n_tokens: self.evidence.len() as u64, n_bytes: self.n_bytes() }
    }

    /// The loss of each text, where each token has this log p.
    pub fn losses_by(&self, mut log_p: impl FnMut(&Evidence) -> f64) -> Vec<Loss> {
        let mut rest = &self.evidence[..];
        let mut of = |(n_scored, n_bytes): &(usize, u64)| {
            let (own, others) = rest.split_at(*n_scored);
            rest = others;
            Loss { nats: own.iter().map(|e| -log_p(e)).sum(), n_tokens: own.len() as u64, n_bytes: *n_bytes }
        };
        self.texts.iter().map(&mut of).collect()
    }

    /// Bytes of the texts.
    pub fn n_bytes(&self) -> u64 {
        self.texts.iter().map(|(_, n_bytes)| n_bytes).sum()
    }

    /// The first and the second half, cut between two texts; within the only one, if there are no two.
    pub(crate) fn halves(&self) -> (&[Evidence], &[Evidence]) {
        let n = self.evidence.len();
        let ends = self.texts.iter().scan(0, |end, (n_scored, _)| {
            *end += n_scored;
            Some(*end)
        });
        let cut = ends.filter(|end| (1..n).contains(end)).min_by_key(|end| (2 * end).abs_diff(n));
        self.evidence.split_at(cut.unwrap_or(n / 2))
    }

    /// Which of the model's temperatures suits these texts best, by its place.
    pub fn best_temperature(&self, grid: &Grid) -> usize {
        let nats = |i: &usize| self.loss_by(|e| e.tempered[*i]).nats;
        (0..grid.model_temperature.len()).min_by(|a, b| nats(a).total_cmp(&nats(b))).unwrap_or_default()
    }
}

/// Adds the cells of one scope and mode: the model alone (which has read the passages in the context mode), and with neighbours.
fn measure(result: &mut DomainResult, pair: &Pair, grid: &Grid, (together, neutral): (&Together, KnnParameters)) {
    let own = pair.own;
    let mut settings = match pair.mode {
        Mode::KnnAndContext | Mode::Context => {
            vec![(Setting::Context, None), (Setting::KnnAndContext, Some(own))]
        }
        Mode::Parametric | Mode::Knn => vec![(Setting::Knn, Some(own))],
    };
    // The model alone sees no store: it is entered once.
    if (pair.mode, pair.scope) == (Mode::Knn, Scope::Mixed) {
        result.measurements.push(pair.tempered(grid));
        settings.insert(0, (Setting::Parametric, None));
        settings.push((Setting::KnnShared, Some(together.shared.parameters)));
        settings.push((Setting::KnnCalibrated, Some(together.calibrated.parameters)));
        settings.push((Setting::KnnNeutral, Some(neutral)));
    }
    if (pair.mode, pair.scope) == (Mode::KnnAndContext, Scope::Mixed) {
        settings.push((Setting::KnnAndContextNeutral, Some(neutral)));
    }
    result.edges.extend(grid.edges(&own));
    for (setting, parameters) in settings {
        result.measurements.push(pair.measured(setting, parameters));
    }
}

impl Pair {
    fn measured(&self, setting: Setting, parameters: Option<KnnParameters>) -> Measurement {
        let mut sums = Sums::default();
        let (test, texts) = self.tested(|e| match &parameters {
            None => e.parametric_log_probability,
            Some(p) => e.log_probability(p, &mut sums),
        });
        let validation = self.validation.loss(parameters.as_ref());
        Measurement { setting, scope: self.scope, parameters, model_temperature: None, validation, test, texts }
    }

    /// The model alone at the temperature that is best on validation text.
    fn tempered(&self, grid: &Grid) -> Measurement {
        let i = self.validation.best_temperature(grid);
        let validation = self.validation.loss_by(|e| e.tempered[i]);
        let (test, texts) = self.tested(|e| e.tempered[i]);
        let model_temperature = grid.model_temperature.get(i).copied();
        let setting = Setting::Tempered;
        Measurement { setting, scope: self.scope, parameters: None, model_temperature, validation, test, texts }
    }

    /// The loss on test text, of all and of each.
    fn tested(&self, log_p: impl FnMut(&Evidence) -> f64) -> (Loss, Vec<Loss>) {
        let texts = self.test.losses_by(log_p);
        (texts.iter().copied().fold(Loss::default(), Loss::and), texts)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::tests::evidence;

    proptest! {
        #[test]
        fn texts_have_their_own_tokens(evidence in prop::collection::vec(evidence(), 0..20), cut in any::<prop::sample::Index>()) {
            let cut = cut.index(evidence.len() + 1);
            let n = evidence.len();
            let gathered = Gathered { evidence, texts: vec![(cut, 3), (0, 0), (n - cut, 4)] };
            let losses = gathered.losses_by(|e| e.parametric_log_probability);
            let whole = gathered.loss(None);
            let sum = losses.iter().copied().fold(Loss::default(), Loss::and);
            prop_assert_eq!((sum.n_tokens, sum.n_bytes, losses[1]), (whole.n_tokens, whole.n_bytes, Loss::default()));
            prop_assert!((sum.nats - whole.nats).abs() <= 1e-9 * whole.nats.abs());
            let first: f64 = gathered.evidence[..cut].iter().map(|e| -e.parametric_log_probability).sum();
            prop_assert_eq!(losses[0].nats, first);
            // Halves end where a text does, if one does within.
            let (first, second) = gathered.halves();
            prop_assert_eq!(first.len() + second.len(), n);
            prop_assert_eq!(first.len(), if cut % n.max(1) > 0 { cut } else { n / 2 });
        }
    }

    #[test]
    fn halves_end_between_the_texts_next_to_the_middle() {
        let one = Evidence {
            token: 0,
            parametric_log_probability: -1.0,
            model_entropy: 1.0,
            tempered: Vec::new(),
            neighbors: Vec::new(),
        };
        let first = |sizes: &[usize]| {
            let evidence = vec![one.clone(); sizes.iter().sum()];
            Gathered { evidence, texts: sizes.iter().map(|n| (*n, 1)).collect() }.halves().0.len()
        };
        assert_eq!([first(&[3, 3, 4]), first(&[9, 1]), first(&[1, 1, 8]), first(&[10])], [6, 9, 2, 5]);
    }
}
