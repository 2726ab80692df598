//! OptOutService.

use std::sync::Arc;

use silo_core::ContentHash;
use silo_govern::{Caller, Governor};
use silo_proto::v1;
use silo_proto::v1::opt_out_service_server::OptOutService;
use tokio::sync::Semaphore;
use tonic::{Request, Response, Status};

use crate::access::caller;
use crate::datastore::blocking;
use crate::status;

/// Entries of the log that one answer holds.
const MAX_ENTRIES: u32 = 1000;

pub(crate) struct OptOuts {
    governor: Arc<Governor>,
    /// Receipts and proofs wait for each other: those that wait must not take the threads of other calls.
    places: Arc<Semaphore>,
    limit: usize,
}

impl OptOuts {
    pub(crate) fn new(governor: Arc<Governor>, limit: usize) -> Self {
        Self { governor, places: Arc::new(Semaphore::new(limit)), limit }
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
