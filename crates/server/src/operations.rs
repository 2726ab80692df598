//! Long-running operations (AIP-151): additions and rebuilds, one after the other; beside them purges and backups, likewise.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use prost::Name;
use prost_types::Any;
use silo_core::{Document, ShardId, SourceId};
use silo_govern::{AddedShard, Caller, Governor, Role};
use silo_proto::longrunning as lro;
use silo_proto::longrunning::operations_server::Operations;
use silo_proto::v1;
use tokio::sync::{AcquireError, Notify, Semaphore, SemaphorePermit};
use tonic::{Request, Response, Status};

use crate::access::caller;
use crate::{ServerConfig, page, status, to_proto};

/// After a purge that failed, on a full disk perhaps.
const PAUSE_AFTER_FAILURE: Duration = Duration::from_secs(60);

/// What an operation does.
enum Task {
    /// Adds checked documents as a shard.
    Add { by: Caller, source: SourceId, documents: Mutex<Vec<Document>> },
    /// Encodes shards of these sources again.
    Rebuild { by: Caller, ids: Vec<ShardId>, sources: BTreeSet<SourceId> },
    /// Gets withdrawn bytes out of all files.
    Purge,
    /// Copies the store.
    Backup { name: String },
}

/// An operation's state.
struct Work {
    task: Task,
    total: AtomicU64,
    done: AtomicU64,
    begun: AtomicBool,
    cancel: Arc<AtomicBool>,
    result: Mutex<Option<lro::operation::Result>>,
    finished: Notify,
}

impl Work {
    /// What is done for sources that do not exist for a caller is not there.
    fn is_seen_by(&self, caller: &Caller) -> bool {
        match &self.task {
            Task::Add { source, .. } => caller.sees(source),
            Task::Rebuild { sources, .. } => sources.iter().all(|source| caller.sees(source)),
            Task::Purge => true,
            Task::Backup { .. } => caller.sources.is_none(),
        }
    }

    /// Who may cancel or delete it: a curator must not keep what legal withdrew in the files.
    fn check_change(&self, caller: &Caller) -> Result<(), Status> {
        let may = match &self.task {
            Task::Add { .. } | Task::Rebuild { .. } => true, // whom the gate lets through
            Task::Purge | Task::Backup { .. } => caller.role == Role::Admin,
        };
        if may { Ok(()) } else { Err(status::forbidden(caller, "this for a purge or a backup")) }
    }

    fn result(&self) -> MutexGuard<'_, Option<lro::operation::Result>> {
        self.result.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The operations of this server.
pub(crate) struct Registry {
    governor: Arc<Governor>,
    config: Arc<ServerConfig>,
    /// By number; names end with it.
    all: Mutex<BTreeMap<u64, Arc<Work>>>,
    next: AtomicU64,
    /// Names must not be those of a server that ran before.
    instance: String,
    /// Of what encodes text.
    encoding: Semaphore,
    /// Of what moves files.
    files: Semaphore,
    /// When the next purge may begin.
    next_purge: Mutex<Instant>,
}

fn pack<M: Name>(message: &M) -> Any {
    Any { type_url: M::type_url(), value: message.encode_to_vec() }
}

impl Registry {
    pub(crate) fn new(governor: Arc<Governor>, config: Arc<ServerConfig>) -> Arc<Self> {
        let instance = uuid::Uuid::new_v4().simple().to_string()[..8].to_owned();
        let (all, next) = (Mutex::default(), AtomicU64::new(1));
        let (encoding, files) = (Semaphore::new(1), Semaphore::new(1));
        let next_purge = Mutex::new(Instant::now());
        Arc::new(Self { governor, config, all, next, instance, encoding, files, next_purge })
    }

    fn all(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<Work>>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts an addition of checked documents.
    pub(crate) fn add_shard(
        self: &Arc<Self>,
        by: Caller,
        source: SourceId,
        documents: Vec<Document>,
    ) -> Result<lro::Operation, Status> {
        let total = documents.len() as u64;
        self.start(Task::Add { by, source, documents: Mutex::new(documents) }, total)
    }

    /// Starts a rebuild of shards that are there.
    pub(crate) fn rebuild_shards(
        self: &Arc<Self>,
        by: Caller,
        ids: Vec<ShardId>,
        sources: BTreeSet<SourceId>,
        total: u64,
    ) -> Result<lro::Operation, Status> {
        self.start(Task::Rebuild { by, ids, sources }, total)
    }

    /// Starts a copy of the store.
    pub(crate) fn backup(self: &Arc<Self>, name: String) -> Result<lro::Operation, Status> {
        self.start(Task::Backup { name }, 0)
    }

    /// The purge that will get out what is withdrawn by now: one that has not begun yet, or a new one.
    pub(crate) fn purge(self: &Arc<Self>) -> String {
        let unbegun = |w: &Work| !w.begun.load(Ordering::SeqCst) && !w.cancel.load(Ordering::SeqCst);
        let waits = |w: &&Arc<Work>| matches!(w.task, Task::Purge) && unbegun(w);
        let waiting = self.all().iter().find(|(_, w)| waits(w)).map(|(number, _)| *number);
        let number = waiting.unwrap_or_else(|| self.enter(&mut self.all(), Task::Purge, 0));
        self.name(number)
    }

    fn start(self: &Arc<Self>, task: Task, total: u64) -> Result<lro::Operation, Status> {
        let number = {
            let mut all = self.all();
            let waiting = all.values().filter(|w| w.result().is_none() && !matches!(w.task, Task::Purge)).count();
            if waiting >= self.config.max_queued_additions {
                return Err(status::overloaded("operations", waiting));
            }
            self.enter(&mut all, task, total)
        };
        let work = self.all().get(&number).cloned();
        let work = work.ok_or_else(|| status::not_found("operation", &self.name(number)))?;
        Ok(self.describe(number, &work, &Caller::local()))
    }

    /// Enters work that begins when its turn comes.
    fn enter(self: &Arc<Self>, all: &mut BTreeMap<u64, Arc<Work>>, task: Task, total: u64) -> u64 {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let work = Arc::new(Work {
            task,
            total: AtomicU64::new(total),
            done: AtomicU64::new(0),
            begun: AtomicBool::new(false),
            cancel: Arc::default(),
            result: Mutex::new(None),
            finished: Notify::new(),
        });
        self.forget_old(all);
        all.insert(number, work.clone());
        let registry = self.clone();
        let task = work;
        tokio::spawn(async move {
            let turn = match task.task {
                Task::Add { .. } | Task::Rebuild { .. } => registry.encoding.acquire().await,
                Task::Backup { .. } => registry.files.acquire().await,
                Task::Purge => registry.turn_of_purge(&task).await,
            };
            let start = Instant::now();
            task.begun.store(true, Ordering::SeqCst);
            let (worker, governor) = (task.clone(), registry.governor.clone());
            let run = tokio::task::spawn_blocking(move || perform(&governor, &worker));
            let outcome = run.await.unwrap_or_else(|e| Err(status::internal(e)));
            if matches!(task.task, Task::Purge) {
                let took = start.elapsed();
                let pause = match outcome {
                    Ok(_) => took.div_f64(registry.config.purge_share).saturating_sub(took),
                    Err(_) => PAUSE_AFTER_FAILURE,
                };
                *registry.next_purge.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now() + pause;
            }
            drop(turn);
            // A purge that failed, or left out what was being rebuilt, is done again.
            let again = match task.task {
                Task::Purge => outcome.is_err() && !task.cancel.load(Ordering::Relaxed),
                Task::Rebuild { .. } => true,
                // The catalog's pages may hold what it had entered.
                Task::Add { .. } => outcome.is_err(),
                Task::Backup { .. } => false,
            };
            if again && registry.governor.store().has_unpurged() {
                registry.purge();
            }
            *task.result() = Some(match outcome {
                Ok(answer) => lro::operation::Result::Response(answer),
                Err(status) => lro::operation::Result::Error(status::as_message(&status)),
            });
            task.finished.notify_waiters();
        });
        number
    }

    /// Purges get a bounded share of the time: those who generate share processors and disk with them. Backups do not wait meanwhile.
    async fn turn_of_purge(&self, work: &Work) -> Result<SemaphorePermit<'_>, AcquireError> {
        loop {
            let turn = self.files.acquire().await;
            let next = *self.next_purge.lock().unwrap_or_else(PoisonError::into_inner);
            if next <= Instant::now() || work.cancel.load(Ordering::Relaxed) {
                return turn;
            }
            drop(turn);
            // In steps, so that a cancelled one ends soon.
            tokio::time::sleep(next.saturating_duration_since(Instant::now()).min(Duration::from_secs(1))).await;
        }
    }

    fn name(&self, number: u64) -> String {
        format!("operations/{}-{number}", self.instance)
    }

    fn forget_old(&self, all: &mut BTreeMap<u64, Arc<Work>>) {
        let finished: Vec<u64> = all.iter().filter(|(_, w)| w.result().is_some()).map(|(n, _)| *n).collect();
        let surplus = finished.len().saturating_sub(self.config.max_finished_operations);
        for number in &finished[..surplus] {
            all.remove(number);
        }
    }

    fn describe(&self, number: u64, work: &Work, caller: &Caller) -> lro::Operation {
        let (done, total) = (work.done.load(Ordering::Relaxed), work.total.load(Ordering::Relaxed));
        let progress = match &work.task {
            Task::Add { source, .. } => {
                pack(&v1::AddShardProgress { source: source.to_string(), documents_done: done, documents_total: total })
            }
            Task::Rebuild { .. } => pack(&v1::RebuildShardsProgress { documents_done: done, documents_total: total }),
            Task::Purge => pack(&v1::PurgeProgress { entries_done: done, entries_total: total }),
            Task::Backup { .. } => pack(&v1::BackupStoreProgress { entries_done: done, entries_total: total }),
        };
        let mut result = work.result().clone();
        if let (Task::Purge, Some(_), Some(lro::operation::Result::Response(answer))) =
            (&work.task, &caller.sources, &mut result)
        {
            *answer = pack(&v1::PurgeResponse::default()); // it speaks of all sources
        }
        let name = self.name(number);
        lro::Operation { name, metadata: Some(progress), done: result.is_some(), result }
    }

    fn find(&self, name: &str, caller: &Caller) -> Result<(u64, Arc<Work>), Status> {
        let number = name.strip_prefix(&format!("operations/{}-", self.instance)).and_then(|n| n.parse().ok());
        let found = number.and_then(|n| Some((n, self.all().get(&n)?.clone()))).filter(|(_, w)| w.is_seen_by(caller));
        found.ok_or_else(|| status::not_found("operation", name))
    }

    /// Cancels what runs or waits.
    pub(crate) fn cancel_all(&self) {
        self.all().values().for_each(|w| w.cancel.store(true, Ordering::Relaxed));
    }
}

fn perform(governor: &Governor, work: &Work) -> Result<Any, Status> {
    if work.cancel.load(Ordering::Relaxed) {
        return Err(status::cancelled("the operation was cancelled before it began"));
    }
    match &work.task {
        Task::Add { by, source, documents } => {
            // An operation runs once, so its documents need not be kept.
            let documents = std::mem::take(&mut *documents.lock().unwrap_or_else(PoisonError::into_inner));
            add(governor, work, by, source, &documents).map(|shard| pack(&shard))
        }
        Task::Rebuild { by, ids, .. } => rebuild(governor, work, by, ids).map(|answer| pack(&answer)),
        Task::Purge => purge(governor, work).map(|answer| pack(&answer)),
        Task::Backup { name } => backup(governor, work, name).map(|answer| pack(&answer)),
    }
}

impl Work {
    fn progress(&self) -> impl Fn(u64, u64) + '_ {
        move |done, total| {
            self.done.store(done, Ordering::Relaxed);
            self.total.store(total, Ordering::Relaxed);
        }
    }
}

fn purge(governor: &Governor, work: &Work) -> Result<v1::PurgeResponse, Status> {
    let purged = governor.purge(&work.cancel, &work.progress()).map_err(|e| status::govern(&e))?;
    let failure = |(shard, reason): (ShardId, String)| {
        tracing::warn!("shard {shard} still holds withdrawn text, which is not retrieved: {reason}");
        v1::PurgeFailure { shard: shard.0, reason }
    };
    Ok(v1::PurgeResponse {
        removals: purged.removals,
        n_entries: purged.n_entries,
        failures: purged.failures.into_iter().map(failure).collect(),
    })
}

fn backup(governor: &Governor, work: &Work, name: &str) -> Result<v1::BackupStoreResponse, Status> {
    let made = governor.backup(name, &work.cancel, &work.progress()).map_err(|e| status::govern(&e))?;
    Ok(v1::BackupStoreResponse {
        backup: Some(v1::Backup { name: made.name, epoch: made.epoch.0, at_unix_ms: made.at_unix_ms }),
        root: made.root.to_string(),
        n_shards: made.n_shards,
        n_bytes: made.n_bytes,
        damaged: made.damaged.iter().map(|id| id.0).collect(),
    })
}

fn rebuild(
    governor: &Governor,
    work: &Work,
    by: &Caller,
    ids: &[ShardId],
) -> Result<v1::RebuildShardsResponse, Status> {
    let mut answer = v1::RebuildShardsResponse::default();
    for &id in ids {
        let before = work.done.load(Ordering::Relaxed);
        let progress = |done, _| work.done.store(before + done, Ordering::Relaxed);
        match governor.rebuild_shard(by, id, &work.cancel, &progress) {
            Ok(rebuilt) => answer.shards.push(shard(governor, &rebuilt)?),
            Err(error) if work.cancel.load(Ordering::Relaxed) => return Err(status::govern(&error)),
            // One shard that cannot be rebuilt must not keep the others from it.
            Err(error) => answer.failures.push(v1::RebuildFailure { id: id.0, reason: error.to_string() }),
        }
    }
    Ok(answer)
}

/// An added or rebuilt shard.
fn shard(governor: &Governor, added: &AddedShard) -> Result<v1::Shard, Status> {
    let detail = governor.store().detail(added.id).map_err(|e| status::govern(&e.into()))?;
    Ok(v1::Shard { n_duplicates: added.n_duplicates, ..to_proto::shard(&detail) })
}

fn add(
    governor: &Governor,
    work: &Work,
    by: &Caller,
    source: &SourceId,
    documents: &[Document],
) -> Result<v1::Shard, Status> {
    let progress = |done, _| work.done.store(done, Ordering::Relaxed);
    let added = governor.add_shard(by, source, documents, &work.cancel, &progress).map_err(|e| status::govern(&e))?;
    shard(governor, &added)
}

pub(crate) struct OperationsService(pub(crate) Arc<Registry>);

#[tonic::async_trait]
impl Operations for OperationsService {
    async fn list_operations(
        &self,
        request: Request<lro::ListOperationsRequest>,
    ) -> Result<Response<lro::ListOperationsResponse>, Status> {
        let caller = caller(&request)?;
        let m = request.into_inner();
        let seen = |(_, w): &(&u64, &Arc<Work>)| w.is_seen_by(&caller);
        let all: Vec<_> = self.0.all().iter().filter(seen).map(|(n, w)| self.0.describe(*n, w, &caller)).collect();
        let (operations, next_page_token) = page::page(all, m.page_size, &m.page_token)?;
        Ok(Response::new(lro::ListOperationsResponse { operations, next_page_token }))
    }

    async fn get_operation(
        &self,
        request: Request<lro::GetOperationRequest>,
    ) -> Result<Response<lro::Operation>, Status> {
        let caller = caller(&request)?;
        let (number, work) = self.0.find(&request.get_ref().name, &caller)?;
        Ok(Response::new(self.0.describe(number, &work, &caller)))
    }

    async fn delete_operation(&self, request: Request<lro::DeleteOperationRequest>) -> Result<Response<()>, Status> {
        let caller = caller(&request)?;
        let name = request.into_inner().name;
        let (number, work) = self.0.find(&name, &caller)?;
        work.check_change(&caller)?;
        if work.result().is_none() {
            let problem = format!("'{name}' still runs; cancel it first");
            return Err(status::bad_field(&status::BadField::new("name", problem)));
        }
        tracing::info!(actor = caller.name, role = caller.role.name(), "deletes {name}");
        self.0.all().remove(&number);
        Ok(Response::new(()))
    }

    async fn cancel_operation(&self, request: Request<lro::CancelOperationRequest>) -> Result<Response<()>, Status> {
        let caller = caller(&request)?;
        let (number, work) = self.0.find(&request.get_ref().name, &caller)?;
        work.check_change(&caller)?;
        tracing::info!(actor = caller.name, role = caller.role.name(), "cancels {}", self.0.name(number));
        work.cancel.store(true, Ordering::Relaxed);
        Ok(Response::new(()))
    }

    async fn wait_operation(
        &self,
        request: Request<lro::WaitOperationRequest>,
    ) -> Result<Response<lro::Operation>, Status> {
        let caller = caller(&request)?;
        let m = request.into_inner();
        let (number, work) = self.0.find(&m.name, &caller)?;
        let timeout = m.timeout.and_then(|d| Duration::try_from(d).ok()).unwrap_or(Duration::from_secs(3600));
        let finished = work.finished.notified();
        if work.result().is_none() {
            let _ = tokio::time::timeout(timeout, finished).await; // at the timeout the answer says that it still runs
        }
        Ok(Response::new(self.0.describe(number, &work, &caller)))
    }
}
