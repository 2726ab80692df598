//! The store as a request sees it, and the parameters that hold for it.

use std::sync::Arc;

use silo_core::{Datastore, Epoch, Filter, KnnParameters, Purpose, ShardMask, Snapshot, SourceId, TokenId, mixture};

use crate::found::Found;
use crate::{ContextParameters, InForce, KnnOverrides, View};

/// The store as a request sees it.
pub(crate) struct Pinned {
    pub(crate) snapshot: Arc<Snapshot>,
    pub(crate) view: Arc<View>,
    pub(crate) knn_mask: ShardMask,
    pub(crate) context_mask: ShardMask,
    pub(crate) knn: KnnParameters,
    pub(crate) influence_cap: f64,
    /// What the request itself says of parameters.
    asked: Asked,
    /// The newest state of the store for which they are known to hold.
    calibrated_at: Epoch,
}

/// What a request says of parameters, what it sees, and without which sources it asks for them.
#[derive(Clone)]
struct Asked {
    filter: Filter,
    knn: KnnOverrides,
    influence_cap: Option<f64>,
    without: Vec<SourceId>,
}

/// What holds where a request does not say otherwise.
#[derive(Clone, Copy, PartialEq)]
pub(crate) struct Defaults {
    pub(crate) knn: KnnParameters,
    pub(crate) influence_cap: f64,
}

impl Asked {
    /// The request's own parameters, and those that hold for a state of the store.
    fn of(&self, snapshot: &Snapshot, defaults: impl Fn(&Snapshot, &Filter) -> Defaults) -> Defaults {
        let calibrated = match &self.without[..] {
            [] => defaults(snapshot, &self.filter),
            without => defaults(&snapshot.without(without), &self.filter),
        };
        let knn = KnnParameters {
            k: self.knn.k.unwrap_or(calibrated.knn.k),
            knn_weight: self.knn.knn_weight.unwrap_or(calibrated.knn.knn_weight),
            knn_temperature: self.knn.knn_temperature.unwrap_or(calibrated.knn.knn_temperature),
            match_tokens: self.knn.match_tokens.unwrap_or(calibrated.knn.match_tokens),
            match_bonus: self.knn.match_bonus.unwrap_or(calibrated.knn.match_bonus),
            // Who asks for a weight gets it at every token.
            gate: calibrated.knn.gate.filter(|_| self.knn.knn_weight.is_none()),
        };
        Defaults { knn, influence_cap: self.influence_cap.unwrap_or(calibrated.influence_cap) }
    }
}

impl Pinned {
    /// Pins the store as it is now for a request.
    pub(crate) fn new(
        store: &dyn Datastore,
        retrieval: &crate::Retrieval,
        defaults: impl Fn(&Snapshot, &Filter) -> Defaults,
    ) -> Self {
        Self::at(store.snapshot(), retrieval, defaults)
    }

    /// The same of a snapshot.
    pub(crate) fn at(
        snapshot: Arc<Snapshot>,
        retrieval: &crate::Retrieval,
        defaults: impl Fn(&Snapshot, &Filter) -> Defaults,
    ) -> Self {
        let mut filter = retrieval.filter.clone();
        filter.deny_sources.extend_from_slice(&retrieval.without);
        let mask = |wanted: bool, purpose| match wanted {
            true => snapshot.mask(&filter, purpose),
            false => ShardMask::default(),
        };
        let knn_mask = mask(retrieval.mode.knn(), Purpose::Knn);
        let context_mask = mask(retrieval.mode.context(), Purpose::Context);
        let view = Arc::new(View { snapshot: snapshot.clone(), mask: knn_mask.or(&context_mask) });
        let (knn, influence_cap, without) = (retrieval.knn, retrieval.influence_cap, retrieval.without.clone());
        let (asked, calibrated_at) = (Asked { filter, knn, influence_cap, without }, snapshot.epoch);
        let Defaults { knn, influence_cap } = asked.of(&snapshot, defaults);
        Self { snapshot, view, knn_mask, context_mask, knn, influence_cap, asked, calibrated_at }
    }

    /// The parameters as they would be now, if the store has changed and they are others. What was tuned on a source goes with it, also for who
    /// cannot see that source.
    pub(crate) fn other_parameters(
        &self,
        store: &dyn Datastore,
        defaults: impl Fn(&Snapshot, &Filter) -> Defaults,
    ) -> Option<Defaults> {
        let now = store.snapshot();
        if now.epoch == self.calibrated_at {
            return None;
        }
        let before = Defaults { knn: self.knn, influence_cap: self.influence_cap };
        Some(self.asked.of(&now, defaults)).filter(|parameters| *parameters != before)
    }

    /// Takes the parameters as they are now. Whether they are others.
    pub(crate) fn recalibrate(
        &mut self,
        store: &dyn Datastore,
        defaults: impl Fn(&Snapshot, &Filter) -> Defaults,
    ) -> bool {
        // Asked before what holds is: a change that comes between is looked at the next time.
        let epoch = store.snapshot().epoch;
        let others = self.other_parameters(store, defaults);
        self.calibrated_at = epoch;
        if let Some(Defaults { knn, influence_cap }) = others {
            (self.knn, self.influence_cap) = (knn, influence_cap);
        }
        others.is_some()
    }

    /// log p of a token in the mixture, from what the model alone says of it.
    pub(crate) fn log_probability(&self, log_p_lm: f64, found: &Found, token: TokenId) -> f64 {
        let weight = mixture::effective_weight(&found.knn, self.knn.knn_weight);
        mixture::mix_one(log_p_lm, found.knn.probability(token), weight)
    }

    /// The parameters in force.
    pub(crate) fn in_force(&self, retrieval: &crate::Retrieval, context: ContextParameters) -> InForce {
        InForce { mode: retrieval.mode, knn: self.knn, context, influence_cap: self.influence_cap }
    }

    pub(crate) fn asks_the_same(&self, before: &Self) -> bool {
        let shards = |pinned: &Self| pinned.snapshot.shards.iter().map(|view| view.id).collect::<Vec<_>>();
        let weighs = |pinned: &Self| (pinned.knn, pinned.influence_cap);
        self.knn_mask == before.knn_mask && weighs(self) == weighs(before) && shards(self) == shards(before)
    }
}
