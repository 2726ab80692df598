//! OptOutService.

mod wire;

use std::sync::Arc;

use silo_core::{ContentHash, OptOut, OptOutSelection, SnapshotProvider, SourceId};
use silo_govern::{Caller, GovernError, Governor, NewOptOut, Removal};
use silo_proto::v1;
use silo_proto::v1::opt_out_service_server::OptOutService;
use tokio::sync::Semaphore;
use tonic::{Request, Response, Status};

use crate::access::caller;
use crate::datastore::{blocking, change, check_scope, note};
use crate::operations::Registry;
use crate::{page, status};

/// Entries of the log that one answer holds.
const MAX_ENTRIES: u32 = 1000;

pub(crate) struct OptOuts {
    governor: Arc<Governor>,
    /// Receipts and proofs wait for each other: those that wait must not take the threads of other calls.
    places: Arc<Semaphore>,
    limit: usize,
    registry: Arc<Registry>,
}

fn govern(error: impl Into<GovernError>) -> Status {
    status::govern(&error.into())
}

fn bad(error: status::BadField) -> Status {
    status::bad_field(&error)
}

/// A request as it is now.
fn shown(governor: &Governor, optout: &OptOut) -> Result<v1::OptOut, Status> {
    Ok(wire::optout(optout, &governor.store().held(optout).map_err(govern)?))
}

/// Which sources' titles and URIs may be shown.
fn may_display(governor: &Governor) -> impl Fn(&SourceId) -> bool + use<> {
    let snapshot = governor.store().snapshot();
    move |id| snapshot.sources.iter().any(|s| s.id == *id && s.permissions.display)
}

impl OptOuts {
    pub(crate) fn new(
        governor: Arc<Governor>,
        (places, limit): (Arc<Semaphore>, usize),
        registry: Arc<Registry>,
    ) -> Self {
        Self { governor, places, limit, registry }
    }

    /// Takes a step, and begins to delete what it withdrew.
    async fn step(
        &self,
        caller: Caller,
        id: u64,
        step: impl FnOnce(&Governor, &Caller) -> Result<(OptOut, Option<Removal>), GovernError> + Send + 'static,
    ) -> Result<Response<v1::OptOutStep>, Status> {
        let registry = self.registry.clone();
        blocking(self.governor.clone(), move |g| {
            let (optout, removal) = step(g, &caller).map_err(govern)?;
            note(&caller, format_args!("opt-out {id} is {}", optout.state));
            let purge = if g.store().has_unpurged() { registry.purge() } else { String::new() };
            let change = removal.map(|removal| change(g, &removal, purge));
            Ok(v1::OptOutStep { opt_out: Some(shown(g, &optout)?), change })
        })
        .await
    }

    /// A step that says something and does nothing.
    async fn objection(
        &self,
        caller: Caller,
        id: u64,
        step: impl FnOnce(&Governor, &Caller) -> Result<OptOut, GovernError> + Send + 'static,
    ) -> Result<Response<v1::OptOut>, Status> {
        blocking(self.governor.clone(), move |g| {
            let optout = step(g, &caller).map_err(govern)?;
            note(&caller, format_args!("opt-out {id} is {}", optout.state));
            shown(g, &optout)
        })
        .await
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Governor) -> Result<T, Status> + Send + 'static,
    ) -> Result<Response<T>, Status> {
        let place = self.places.clone().try_acquire_owned().map_err(|_| status::overloaded("receipts", self.limit))?;
        let work = move |governor: &Governor| {
            let _place = place;
            work(governor)
        };
        blocking(self.governor.clone(), work).await
    }
}

fn check_selection(caller: &Caller, selection: &OptOutSelection) -> Result<(), Status> {
    match selection {
        OptOutSelection::Source { source }
        | OptOutSelection::Documents { source, .. }
        | OptOutSelection::UriPrefix { source: Some(source), .. } => check_scope(caller, source),
        OptOutSelection::UriPrefix { source: None, .. } if caller.sources.is_some() => {
            Err(status::out_of_scope(caller, "name one of them as uri_prefix.source"))
        }
        OptOutSelection::UriPrefix { source: None, .. } | OptOutSelection::Passage { .. } => Ok(()),
    }
}

/// A withdrawal that touched sources which do not exist for the caller is not there.
fn check_sees(governor: &Governor, caller: &Caller, removal: u64) -> Result<(), Status> {
    if caller.sources.is_none() {
        return Ok(());
    }
    let sources = governor.sources_of(removal).map_err(|e| status::govern(&e))?;
    let sees_all = !sources.is_empty() && sources.iter().all(|source| caller.sees(source));
    if sees_all { Ok(()) } else { Err(status::not_found("change", &removal.to_string())) }
}

#[tonic::async_trait]
impl OptOutService for OptOuts {
    async fn submit_opt_out(
        &self,
        request: Request<v1::SubmitOptOutRequest>,
    ) -> Result<Response<v1::SubmitOptOutResponse>, Status> {
        let caller = caller(&request)?;
        let m = request.into_inner();
        let selection = wire::selection(m.selection).map_err(bad)?;
        check_selection(&caller, &selection)?;
        let why = wire::why(m.why).map_err(bad)?;
        let (claimant, contact, validate_only) = (m.claimant, m.contact, m.validate_only);
        let new = NewOptOut { selection, claimant, contact, why };
        blocking(self.governor.clone(), move |g| {
            let may_display = may_display(g);
            if validate_only {
                let plan = g.plan_optout(&caller, &new).map_err(govern)?;
                let plan = Some(wire::plan(&plan, &may_display));
                return Ok(v1::SubmitOptOutResponse { plan, opt_out: None, quarantine: None });
            }
            let (optout, removal, plan) = g.submit_optout(&caller, &new).map_err(govern)?;
            note(&caller, format_args!("submitted opt-out {} by {}", optout.id, new.selection.kind()));
            let quarantine = removal.map(|removal| change(g, &removal, String::new()));
            let (plan, opt_out) = (Some(wire::plan(&plan, &may_display)), Some(shown(g, &optout)?));
            Ok(v1::SubmitOptOutResponse { plan, opt_out, quarantine })
        })
        .await
    }

    async fn get_opt_out(
        &self,
        request: Request<v1::GetOptOutRequest>,
    ) -> Result<Response<v1::GetOptOutResponse>, Status> {
        let caller = caller(&request)?;
        let m = request.into_inner();
        blocking(self.governor.clone(), move |g| {
            let optout = g.optout(&caller, m.id).map_err(govern)?;
            let statement = m.with_statement.then(|| g.statement_of_reasons(&caller, m.id)).transpose();
            let statement_of_reasons = statement.map_err(govern)?.unwrap_or_default();
            Ok(v1::GetOptOutResponse { opt_out: Some(shown(g, &optout)?), statement_of_reasons })
        })
        .await
    }

    async fn list_opt_outs(
        &self,
        request: Request<v1::ListOptOutsRequest>,
    ) -> Result<Response<v1::ListOptOutsResponse>, Status> {
        let caller = caller(&request)?;
        let m = request.into_inner();
        blocking(self.governor.clone(), move |g| {
            let all = g.optouts(&caller).map_err(govern)?;
            let wanted = all.into_iter().filter(|optout| wire::is_in(optout, &m)).collect();
            let (some, next_page_token) = page::page(wanted, m.page_size, &m.page_token)?;
            let opt_outs = some.iter().map(|optout| shown(g, optout)).collect::<Result<_, _>>()?;
            Ok(v1::ListOptOutsResponse { opt_outs, next_page_token })
        })
        .await
    }

    async fn decide_opt_out(
        &self,
        request: Request<v1::DecideOptOutRequest>,
    ) -> Result<Response<v1::OptOutStep>, Status> {
        let caller = caller(&request)?;
        let m = request.into_inner();
        let id = m.id;
        let decision = wire::decision(m).map_err(bad)?;
        self.step(caller, id, move |g, caller| g.decide_optout(caller, id, &decision)).await
    }

    async fn hold_opt_out(&self, request: Request<v1::HoldOptOutRequest>) -> Result<Response<v1::OptOutStep>, Status> {
        let caller = caller(&request)?;
        let m = request.into_inner();
        let why = wire::why(m.why).map_err(bad)?;
        self.step(caller, m.id, move |g, caller| g.hold_optout(caller, m.id, !m.end, &why)).await
    }

    async fn counter_notice(&self, request: Request<v1::CounterNoticeRequest>) -> Result<Response<v1::OptOut>, Status> {
        let caller = caller(&request)?;
        let m = request.into_inner();
        let why = wire::why(m.why).map_err(bad)?;
        self.objection(caller, m.id, move |g, caller| g.counter_optout(caller, m.id, &why)).await
    }

    async fn appeal_opt_out(&self, request: Request<v1::AppealOptOutRequest>) -> Result<Response<v1::OptOut>, Status> {
        let caller = caller(&request)?;
        let m = request.into_inner();
        let why = wire::why(m.why).map_err(bad)?;
        self.objection(caller, m.id, move |g, caller| g.appeal_optout(caller, m.id, &why)).await
    }

    async fn restore_opt_out(
        &self,
        request: Request<v1::RestoreOptOutRequest>,
    ) -> Result<Response<v1::OptOutStep>, Status> {
        let caller = caller(&request)?;
        let m = request.into_inner();
        let why = wire::why(m.why).map_err(bad)?;
        self.step(caller, m.id, move |g, caller| g.restore_optout(caller, m.id, &why)).await
    }

    async fn list_suppressions(
        &self,
        request: Request<v1::ListSuppressionsRequest>,
    ) -> Result<Response<v1::ListSuppressionsResponse>, Status> {
        let caller = caller(&request)?;
        if caller.sources.is_some() {
            return Err(status::out_of_scope(&caller, "what is kept out belongs to no source"));
        }
        let m = request.into_inner();
        blocking(self.governor.clone(), move |g| {
            let all = g.store().suppressions().map_err(govern)?;
            let (some, next_page_token) = page::page(all, m.page_size, &m.page_token)?;
            let suppressions = some.iter().map(wire::suppression).collect();
            Ok(v1::ListSuppressionsResponse { suppressions, next_page_token })
        })
        .await
    }

    async fn get_receipt(&self, request: Request<v1::GetReceiptRequest>) -> Result<Response<v1::Receipt>, Status> {
        let caller = caller(&request)?;
        let removal = request.into_inner().removal;
        self.blocking(move |g| {
            check_sees(g, &caller, removal)?;
            let text = g.receipt(removal).map_err(|e| status::govern(&e))?;
            Ok(v1::Receipt { removal, text })
        })
        .await
    }

    async fn get_log_proof(&self, request: Request<v1::GetLogProofRequest>) -> Result<Response<v1::LogProof>, Status> {
        let caller = caller(&request)?;
        if caller.sources.is_some() {
            return Err(status::out_of_scope(&caller, "the log names all of them"));
        }
        let m = request.into_inner();
        if m.n_entries > MAX_ENTRIES {
            let problem = format!("it is {}, at most {MAX_ENTRIES} are answered at once", m.n_entries);
            return Err(status::bad_field(&status::BadField::new("n_entries", problem)));
        }
        let entries = m.first_entry..m.first_entry.saturating_add(u64::from(m.n_entries));
        self.blocking(move |g| {
            let found = g.log_proof(m.old_size, entries).map_err(|e| status::govern(&e))?;
            let hexadecimal = |hashes: Vec<[u8; 32]>| hashes.into_iter().map(|h| ContentHash(h).to_string()).collect();
            let entry = |e: silo_govern::ProvenEntry| v1::LogEntry {
                position: e.position,
                entry: e.entry,
                inclusion: hexadecimal(e.proof),
            };
            Ok(v1::LogProof {
                checkpoint: found.checkpoint,
                consistency: hexadecimal(found.consistency),
                entries: found.entries.into_iter().map(entry).collect(),
            })
        })
        .await
    }
}
