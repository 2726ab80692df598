//! DatastoreService.

use std::collections::BTreeSet;
use std::sync::Arc;

use prost::Message as _;
use silo_core::{Selection, ShardId, SnapshotProvider, SourceId};
use silo_govern::{Caller, GovernConfig, GovernError, Governor, Look, Removal, ShardState, StoreError};
use silo_proto::v1::datastore_service_server::DatastoreService;
use silo_proto::{longrunning as lro, v1};
use tokio::sync::Semaphore;
use tonic::{Request, Response, Status, Streaming};

use crate::access::caller;
use crate::operations::Registry;
use crate::serve::Draining;
use crate::status::BadField;
use crate::{ServerConfig, from_proto, page, status, to_proto};

pub(crate) struct Datastore {
    pub(crate) governor: Arc<Governor>,
    pub(crate) registry: Arc<Registry>,
    pub(crate) config: Arc<ServerConfig>,
    pub(crate) draining: Draining,
    pub(crate) card: silo_core::ModelCard,
    /// Places for searches.
    pub(crate) searches: Arc<Semaphore>,
    /// Places for uploads.
    pub(crate) uploads: Arc<Semaphore>,
}

fn bad(field: &'static str, problem: impl Into<String>) -> Status {
    status::bad_field(&BadField::new(field, problem))
}

fn govern(error: impl Into<GovernError>) -> Status {
    status::govern(&error.into())
}

/// Runs store work off the threads that move messages.
pub(crate) async fn blocking<T: Send + 'static>(
    governor: Arc<Governor>,
    work: impl FnOnce(&Governor) -> Result<T, Status> + Send + 'static,
) -> Result<Response<T>, Status> {
    tokio::task::spawn_blocking(move || work(&governor)).await.map_err(status::internal)?.map(Response::new)
}

impl Datastore {
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Governor) -> Result<T, Status> + Send + 'static,
    ) -> Result<Response<T>, Status> {
        blocking(self.governor.clone(), work).await
    }

    /// Withdraws, or says what would be withdrawn.
    async fn withdraw(
        &self,
        caller: Caller,
        selection: Selection,
        validate_only: bool,
    ) -> Result<(Vec<v1::RemovedPart>, Option<v1::Removal>), Status> {
        let registry = self.registry.clone();
        let done = self.blocking(move |g| {
            if let Selection::Shard(id) = selection {
                check_sees(g, &caller, id)?;
            }
            if validate_only {
                return Ok((to_proto::parts(&g.plan(&selection).map_err(govern)?), None));
            }
            let removal = g.withdraw(&caller, &selection).map_err(govern)?;
            note(&caller, format_args!("withdrew by {}: change {}", removal.record.selector, removal.record.id));
            let removal = change(g, &removal, registry.purge());
            Ok((removal.parts.clone(), Some(removal)))
        });
        Ok(done.await?.into_inner())
    }
}

/// A change of what is retrieved, with the operation that deletes what it withdrew.
pub(crate) fn change(governor: &Governor, removal: &Removal, purge: String) -> v1::Removal {
    // It is done: what cannot be said of it must not make it look undone.
    let unknown = |e| vec![format!("(the list of backups cannot be read: {e})")];
    let backups = governor.backups_with(removal).unwrap_or_else(unknown);
    to_proto::removal(removal, purge, backups)
}

/// A shard of a source that does not exist for the caller is not there.
fn check_sees(governor: &Governor, caller: &Caller, id: ShardId) -> Result<(), Status> {
    let record = governor.store().shard(id).map_err(govern)?;
    if caller.sees(&record.source) { Ok(()) } else { Err(govern(StoreError::UnknownShard(id))) }
}

pub(crate) fn check_scope(caller: &Caller, source: &SourceId) -> Result<(), Status> {
    if caller.sees(source) { Ok(()) } else { Err(status::out_of_scope(caller, &format!("'{source}' is none of them"))) }
}

fn check_selection(caller: &Caller, selection: &Selection) -> Result<(), Status> {
    match selection {
        Selection::Source(source)
        | Selection::Documents { source, .. }
        | Selection::UriPrefix { source: Some(source), .. } => check_scope(caller, source),
        Selection::UriPrefix { source: None, .. } if caller.sources.is_some() => {
            Err(status::out_of_scope(caller, "name one of them as uri_prefix.source"))
        }
        Selection::UriPrefix { source: None, .. } | Selection::Shard(_) => Ok(()),
    }
}

/// Notes who changed what.
pub(crate) fn note(caller: &Caller, what: impl std::fmt::Display) {
    tracing::info!(actor = caller.name, role = caller.role.name(), "{what}");
}

fn shard(governor: &Governor, id: ShardId) -> Result<v1::Shard, Status> {
    governor.store().detail(id).map(|d| to_proto::shard(&d)).map_err(govern)
}

/// Reads the header and all documents of an addition.
async fn read_documents(
    mut stream: Streaming<v1::AddShardRequest>,
    limits: &GovernConfig,
    caller: &Caller,
) -> Result<(SourceId, Vec<silo_core::Document>), Status> {
    use v1::add_shard_request::Message;
    let first = stream.message().await?.and_then(|m| m.message);
    let Some(Message::Header(header)) = first else {
        return Err(bad("header", "the first message must be the header, with the name of the source"));
    };
    let source = from_proto::source_id(&header.source, "header.source").map_err(|e| status::bad_field(&e))?;
    check_scope(caller, &source)?;
    let (mut documents, mut bytes) = (Vec::new(), 0);
    while let Some(message) = stream.message().await? {
        let Some(Message::Documents(chunk)) = message.message else {
            return Err(bad("documents", "after the header every message must hold documents"));
        };
        for document in chunk.documents {
            bytes += document.encoded_len();
            if documents.len() >= limits.max_shard_documents {
                let limit = limits.max_shard_documents;
                return Err(bad(
                    "documents",
                    format!("there are more than {limit} (max_shard_documents); add several shards"),
                ));
            }
            if bytes > limits.max_shard_bytes {
                let limit = limits.max_shard_bytes;
                return Err(bad(
                    "documents",
                    format!("the texts have more than {limit} bytes (max_shard_bytes); add several shards"),
                ));
            }
            documents.push(from_proto::document(document, &source));
        }
    }
    Ok((source, documents))
}

#[tonic::async_trait]
impl DatastoreService for Datastore {
    async fn create_source(&self, request: Request<v1::CreateSourceRequest>) -> Result<Response<v1::Source>, Status> {
        let caller = caller(&request)?;
        let m = request.into_inner();
        let source = m.source.ok_or_else(|| bad("source", "it is missing"))?;
        let declaration = from_proto::declaration(source).map_err(|e| status::bad_field(&e))?;
        check_scope(&caller, &from_proto::source_id(&declaration.name, "name").map_err(|e| status::bad_field(&e))?)?;
        self.blocking(move |g| {
            let source = g.create_source(&caller, &declaration, m.validate_only).map_err(govern)?;
            if !m.validate_only {
                note(&caller, format_args!("declared the source {}", source.id));
            }
            Ok(to_proto::source(&source))
        })
        .await
    }

    async fn update_source(&self, request: Request<v1::UpdateSourceRequest>) -> Result<Response<v1::Source>, Status> {
        let caller = caller(&request)?;
        let m = request.into_inner();
        let id = from_proto::source_id(&m.name, "name").map_err(|e| status::bad_field(&e))?;
        check_scope(&caller, &id)?;
        let validate_only = m.validate_only;
        let update = from_proto::update(m).map_err(|e| status::bad_field(&e))?;
        self.blocking(move |g| {
            let state = g.update_source(&caller, &id, &update, validate_only).map_err(govern)?;
            if !validate_only {
                note(&caller, format_args!("changed what the source {id} may be used for"));
            }
            Ok(to_proto::source_state(&state))
        })
        .await
    }

    async fn get_source(&self, request: Request<v1::GetSourceRequest>) -> Result<Response<v1::Source>, Status> {
        let caller = caller(&request)?;
        let id = from_proto::source_id(&request.into_inner().name, "name").map_err(|e| status::bad_field(&e))?;
        if !caller.sees(&id) {
            return Err(govern(StoreError::UnknownSource(id)));
        }
        self.blocking(move |g| g.source_state(&id).map(|s| to_proto::source_state(&s)).map_err(govern)).await
    }

    async fn list_sources(
        &self,
        request: Request<v1::ListSourcesRequest>,
    ) -> Result<Response<v1::ListSourcesResponse>, Status> {
        let caller = caller(&request)?;
        let m = request.into_inner();
        let snapshot = self.governor.store().snapshot();
        let all = snapshot.sources.iter().filter(|s| caller.sees(&s.id)).map(|s| to_proto::source(s)).collect();
        let (sources, next_page_token) = page::page(all, m.page_size, &m.page_token)?;
        Ok(Response::new(v1::ListSourcesResponse { sources, next_page_token }))
    }

    async fn add_shard(
        &self,
        request: Request<Streaming<v1::AddShardRequest>>,
    ) -> Result<Response<lro::Operation>, Status> {
        self.draining.check()?;
        let caller = caller(&request)?;
        let limit = self.config.max_queued_additions;
        let _place = self.uploads.try_acquire().map_err(|_| status::overloaded("uploads", limit))?;
        let (source, mut documents) = tokio::select! {
            read = read_documents(request.into_inner(), self.governor.config(), &caller) => read?,
            () = self.draining.cut() => return Err(status::draining()),
        };
        if documents.is_empty() {
            return Err(bad("documents", "there is none"));
        }
        let (registry, by) = (self.registry.clone(), caller.clone());
        let check = self.blocking(move |g| {
            g.check_documents(&source, &mut documents).map_err(govern)?;
            g.refuse_kept_out(&by, &source, &documents).map_err(govern)?;
            Ok((source, documents))
        });
        let (source, documents) = check.await?.into_inner();
        let what = format!("adds {} documents to the source {source}", documents.len());
        let operation = registry.add_shard(caller.clone(), source, documents)?;
        note(&caller, format_args!("{what}: {}", operation.name));
        Ok(Response::new(operation))
    }

    async fn rebuild_shards(
        &self,
        request: Request<v1::RebuildShardsRequest>,
    ) -> Result<Response<lro::Operation>, Status> {
        self.draining.check()?;
        let caller = caller(&request)?;
        let asked = request.into_inner().ids;
        let find = self.blocking(move |g| {
            let seen = |id: &ShardId| check_sees(g, &caller, *id).is_ok();
            let unavailable = || g.store().unavailable().into_keys().filter(seen).collect();
            let mut ids: Vec<ShardId> =
                if asked.is_empty() { unavailable() } else { asked.into_iter().map(ShardId).collect() };
            ids.sort_unstable();
            ids.dedup();
            let (mut total, mut sources) = (0, BTreeSet::new());
            for id in &ids {
                check_sees(g, &caller, *id)?;
                let record = g.store().shard(*id).map_err(govern)?;
                if record.state == ShardState::Removed {
                    return Err(govern(StoreError::ShardRemoved(*id)));
                }
                total += record.n_documents;
                sources.insert(record.source);
            }
            Ok((caller, ids, sources, total))
        });
        let (caller, ids, sources, total) = find.await?.into_inner();
        let operation = self.registry.rebuild_shards(caller.clone(), ids, sources, total)?;
        note(&caller, format_args!("rebuilds shards: {}", operation.name));
        Ok(Response::new(operation))
    }

    async fn get_shard(&self, request: Request<v1::GetShardRequest>) -> Result<Response<v1::Shard>, Status> {
        let caller = caller(&request)?;
        let id = ShardId(request.into_inner().id);
        self.blocking(move |g| {
            check_sees(g, &caller, id)?;
            shard(g, id)
        })
        .await
    }

    async fn list_shards(
        &self,
        request: Request<v1::ListShardsRequest>,
    ) -> Result<Response<v1::ListShardsResponse>, Status> {
        let caller = caller(&request)?;
        let m = request.into_inner();
        self.blocking(move |g| {
            let mut details = g.store().details().map_err(govern)?;
            details.retain(|d| caller.sees(&d.record.source));
            details.retain(|d| m.show_removed || d.record.state != ShardState::Removed);
            if !m.source.is_empty() {
                let id = from_proto::source_id(&m.source, "source").map_err(|e| status::bad_field(&e))?;
                let known = caller.sees(&id) && g.store().source(&id).is_ok();
                known.then_some(()).ok_or_else(|| govern(StoreError::UnknownSource(id.clone())))?;
                details.retain(|d| d.record.source == id);
            }
            let (details, next_page_token) = page::page(details, m.page_size, &m.page_token)?;
            let shards = details.iter().map(to_proto::shard).collect();
            Ok(v1::ListShardsResponse { shards, next_page_token })
        })
        .await
    }

    async fn suspend_shard(
        &self,
        request: Request<v1::SuspendShardRequest>,
    ) -> Result<Response<v1::SuspendShardResponse>, Status> {
        let caller = caller(&request)?;
        let id = ShardId(request.into_inner().id);
        self.blocking(move |g| {
            check_sees(g, &caller, id)?;
            let removal = g.suspend_shard(&caller, id).map_err(govern)?;
            note(&caller, format_args!("suspended shard {id}: change {}", removal.record.id));
            let removal = Some(to_proto::removal(&removal, String::new(), Vec::new()));
            Ok(v1::SuspendShardResponse { shard: Some(shard(g, id)?), removal })
        })
        .await
    }

    async fn resume_shard(
        &self,
        request: Request<v1::ResumeShardRequest>,
    ) -> Result<Response<v1::ResumeShardResponse>, Status> {
        let caller = caller(&request)?;
        let id = ShardId(request.into_inner().id);
        self.blocking(move |g| {
            check_sees(g, &caller, id)?;
            let removal = g.resume_shard(&caller, id).map_err(govern)?;
            note(&caller, format_args!("resumed shard {id}: change {}", removal.record.id));
            let removal = Some(to_proto::removal(&removal, String::new(), Vec::new()));
            Ok(v1::ResumeShardResponse { shard: Some(shard(g, id)?), removal })
        })
        .await
    }

    async fn remove_shard(
        &self,
        request: Request<v1::RemoveShardRequest>,
    ) -> Result<Response<v1::RemoveShardResponse>, Status> {
        let caller = caller(&request)?;
        let m = request.into_inner();
        let id = ShardId(m.id);
        let (_, removal) = self.withdraw(caller, Selection::Shard(id), m.validate_only).await?;
        self.blocking(move |g| Ok(v1::RemoveShardResponse { shard: Some(shard(g, id)?), removal })).await
    }

    async fn remove_documents(
        &self,
        request: Request<v1::RemoveDocumentsRequest>,
    ) -> Result<Response<v1::RemoveDocumentsResponse>, Status> {
        let caller = caller(&request)?;
        let m = request.into_inner();
        let selection =
            m.selection.ok_or_else(|| bad("selection", "it is missing: name a source, documents or a URI prefix"))?;
        let selection = from_proto::selection(selection).map_err(|e| status::bad_field(&e))?;
        check_selection(&caller, &selection)?;
        let (parts, removal) = self.withdraw(caller, selection, m.validate_only).await?;
        Ok(Response::new(v1::RemoveDocumentsResponse { parts, removal }))
    }

    async fn backup_store(&self, request: Request<v1::BackupStoreRequest>) -> Result<Response<lro::Operation>, Status> {
        self.draining.check()?;
        let caller = caller(&request)?;
        let operation = self.registry.backup(request.into_inner().name)?;
        note(&caller, format_args!("backs the store up: {}", operation.name));
        Ok(Response::new(operation))
    }

    async fn forget_backup(
        &self,
        request: Request<v1::ForgetBackupRequest>,
    ) -> Result<Response<v1::ForgetBackupResponse>, Status> {
        let caller = caller(&request)?;
        let name = request.into_inner().name;
        self.blocking(move |g| {
            g.forget_backup(&name).map_err(govern)?;
            note(&caller, format_args!("forgot the backup {name:?}"));
            Ok(v1::ForgetBackupResponse {})
        })
        .await
    }

    async fn get_store(&self, request: Request<v1::GetStoreRequest>) -> Result<Response<v1::StoreStatus>, Status> {
        let caller = caller(&request)?;
        self.blocking(move |g| {
            let status = g.store().status().map_err(govern)?;
            let shards = || status.snapshot.shards.iter().filter(|s| caller.sees(&s.source.id));
            let sum = |f: fn(&silo_core::ShardView) -> u64| shards().map(f).sum();
            let backups = status.backups.iter().filter(|_| caller.sources.is_none());
            Ok(v1::StoreStatus {
                epoch: status.snapshot.epoch.0,
                root: status.snapshot.root.to_string(),
                n_sources: status.snapshot.sources.iter().filter(|s| caller.sees(&s.id)).count() as u64,
                n_shards: shards().count() as u64,
                n_documents: sum(|s| s.n_documents),
                n_entries: sum(|s| s.n_entries),
                n_passages: sum(|s| s.n_passages),
                model_hash: status.model.to_string(),
                recipe: status.recipe.name.clone(),
                recipe_hash: status.recipe.hash().to_string(),
                n_unpurged: status.n_unpurged,
                backups: backups.map(to_proto::backup).collect(),
            })
        })
        .await
    }

    async fn search(&self, request: Request<v1::SearchRequest>) -> Result<Response<v1::SearchResponse>, Status> {
        let caller = caller(&request)?;
        let m = request.into_inner();
        let filter = from_proto::filter(m.filter, &caller).map_err(|e| status::bad_field(&e))?;
        if m.text.is_empty() {
            return Err(bad("text", "it is empty"));
        }
        self.draining.check()?;
        let limit = self.config.max_concurrent_searches;
        let place = self.searches.clone().try_acquire_owned().map_err(|_| status::overloaded("searches", limit))?;
        let k = m.k.map_or(self.config.default_search_neighbors, |k| k as usize);
        let passages = m.passages.map_or(self.config.default_search_passages, |k| k as usize);
        if k > 1000 || passages > 1000 {
            return Err(bad("k", "at most 1000 neighbours and 1000 passages are shown"));
        }
        let card = self.card.clone();
        self.blocking(move |g| {
            let _place = place;
            let look = Look { text: &m.text, filter: &filter, k, passages };
            g.look(&look).map(|found| to_proto::found(found, &card)).map_err(|e| status::govern(&e))
        })
        .await
    }
}
