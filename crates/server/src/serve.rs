//! The server: its services, its health, its end.

use std::future::Future;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use silo_engine::Engine;
use silo_govern::{Access, Governor};
use silo_proto::longrunning::operations_server::OperationsServer;
use silo_proto::v1::attribution_service_server::AttributionServiceServer;
use silo_proto::v1::datastore_service_server::DatastoreServiceServer;
use silo_proto::v1::generation_service_server::GenerationServiceServer;
use silo_proto::v1::opt_out_service_server::OptOutServiceServer;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tonic::Status;
use tonic::codec::CompressionEncoding;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Certificate, Identity, ServerTlsConfig};
use tonic_health::ServingStatus;

use crate::access::Gate;
use crate::attribution::Attributions;
use crate::config::{InvalidSetting, TlsConfig};
use crate::datastore::Datastore;
use crate::generation::Generations;
use crate::operations::{OperationsService, Registry};
use crate::optout::OptOuts;
use crate::{ServerConfig, status};

/// Why the server could not run.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages document the variants and their fields")]
pub enum ServeError {
    #[error(transparent)]
    Setting(#[from] InvalidSetting),
    #[error("cannot listen at {address}: {source}")]
    Listen { address: SocketAddr, source: std::io::Error },
    #[error("{}: {source}", path.display())]
    Certificate { path: PathBuf, source: std::io::Error },
    #[error("reflection cannot be set up: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
    #[error("the transport failed: {0}")]
    Transport(#[from] tonic::transport::Error),
}

/// How far shutting down has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    Serving,
    /// No new work; what runs goes on.
    Draining,
    /// What still runs is cut off.
    Cut,
}

/// What services know of shutting down.
#[derive(Clone)]
pub(crate) struct Draining(watch::Receiver<Phase>);

impl Draining {
    /// Refuses new work once the server drains.
    pub(crate) fn check(&self) -> Result<(), Status> {
        if *self.0.borrow() == Phase::Serving { Ok(()) } else { Err(status::draining()) }
    }

    /// Waits until running work is cut off.
    pub(crate) async fn cut(&self) {
        let mut phase = self.0.clone();
        if phase.wait_for(|p| *p == Phase::Cut).await.is_err() {
            std::future::pending::<()>().await; // the server has gone without cutting anything off
        }
    }
}

/// A server that listens already.
pub struct Server {
    listener: TcpListener,
    config: Arc<ServerConfig>,
    tls: Option<ServerTlsConfig>,
    engine: Arc<Engine>,
    governor: Arc<Governor>,
}

fn certificates(config: &TlsConfig) -> Result<ServerTlsConfig, ServeError> {
    let read =
        |path: &Path| std::fs::read(path).map_err(|source| ServeError::Certificate { path: path.to_owned(), source });
    let identity = Identity::from_pem(read(&config.certificate)?, read(&config.key)?);
    let tls = ServerTlsConfig::new().identity(identity);
    Ok(match &config.client_authority {
        Some(path) => tls.client_ca_root(Certificate::from_pem(read(path)?)),
        None => tls,
    })
}

fn transport(tls: Option<ServerTlsConfig>) -> Result<tonic::transport::Server, tonic::transport::Error> {
    let builder = tonic::transport::Server::builder();
    tls.map_or(Ok(builder.clone()), |tls| builder.tls_config(tls))
}

fn reflection() -> tonic_reflection::server::Builder<'static> {
    tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(silo_proto::DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
}

/// Connections that send small messages at once. The system would hold them back for 40 ms, and tonic's own setting is not for a listener that it
/// is given.
fn connections(listener: TcpListener) -> TcpIncoming {
    TcpIncoming::from(listener).with_nodelay(Some(true))
}

impl Server {
    /// Listens at the configured address.
    pub async fn bind(config: ServerConfig, engine: Arc<Engine>, governor: Arc<Governor>) -> Result<Self, ServeError> {
        config.check()?;
        let tls = config.tls.as_ref().map(certificates).transpose()?;
        let address = config.listen;
        let listener = TcpListener::bind(address).await.map_err(|source| ServeError::Listen { address, source })?;
        Ok(Self { listener, config: Arc::new(config), tls, engine, governor })
    }

    /// The address that it listens at.
    pub fn address(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until `stop` is done; then readiness turns, running streams get `drain_seconds`, and the rest is cut off with
    /// UNAVAILABLE.
    pub async fn serve(self, stop: impl Future<Output = ()> + Send + 'static) -> Result<(), ServeError> {
        let Self { listener, config, tls, engine, governor } = self;
        let (phase, watched) = watch::channel(Phase::Serving);
        let draining = Draining(watched);
        let registry = Registry::new(governor.clone(), config.clone());
        if governor.store().has_unpurged() {
            registry.purge(); // what was left when the last server stopped
        }
        let (operations, cut_off, limit) = (registry.clone(), draining.clone(), config.max_message_bytes);
        let (chores, last) = (chores(governor.clone(), config.terms_check_ms), governor.clone());
        let card = engine.model().card().clone();
        let generations =
            Generations { engine, governor: governor.clone(), config: config.clone(), draining: draining.clone() };
        let places = |n: usize| Arc::new(Semaphore::new(n));
        let receipts = places(config.max_concurrent_receipts);
        let attributions = Attributions::new(generations.clone(), receipts.clone());
        let optouts = OptOuts::new(governor.clone(), (receipts, config.max_concurrent_receipts), registry.clone());
        let datastore = Datastore {
            governor,
            registry: registry.clone(),
            searches: places(config.max_concurrent_searches),
            uploads: places(config.max_queued_additions),
            config: config.clone(),
            draining,
            card,
        };

        let (health, health_service) = tonic_health::server::health_reporter();
        tell(&health, ServingStatus::Serving).await;
        let drain = Duration::from_secs(config.drain_seconds);
        let shutdown = async move {
            stop.await;
            tell(&health, ServingStatus::NotServing).await;
            drain_for(phase, drain);
            registry.cancel_all();
        };
        let generation = GenerationServiceServer::new(generations)
            .max_decoding_message_size(limit)
            .accept_compressed(CompressionEncoding::Gzip)
            .send_compressed(CompressionEncoding::Gzip);
        let datastore = DatastoreServiceServer::new(datastore)
            .max_decoding_message_size(limit)
            .accept_compressed(CompressionEncoding::Gzip)
            .send_compressed(CompressionEncoding::Gzip);
        let served = transport(tls)?
            .layer(Gate(Arc::new(Access::new(config.tokens.as_deref()))))
            .add_service(health_service)
            .add_service(reflection().build_v1()?)
            .add_service(reflection().build_v1alpha()?)
            .add_service(generation)
            .add_service(datastore)
            .add_service(AttributionServiceServer::new(attributions).max_decoding_message_size(limit))
            .add_service(OptOutServiceServer::new(optouts).max_decoding_message_size(limit))
            .add_service(OperationsServer::new(OperationsService(operations)))
            .serve_with_incoming_shutdown(connections(listener), shutdown);
        let after_the_cut = async move {
            cut_off.cut().await;
            tokio::time::sleep(LAST_WORDS).await;
        };
        // Calls that others keep open (a watch, an upload, a stream that nobody reads) must not keep the process.
        let result = tokio::select! {
            result = served => Ok(result?),
            () = after_the_cut => Ok(()),
            () = chores => Ok(()),
        };
        write_once(last).await;
        result
    }
}

/// Says of all services how they are.
async fn tell(health: &tonic_health::server::HealthReporter, status: ServingStatus) {
    for service in SERVICES {
        health.set_service_status(service, status).await;
    }
}

/// Takes no new work from now on, and cuts off what still runs after a time.
fn drain_for(phase: watch::Sender<Phase>, drain: Duration) {
    phase.send_replace(Phase::Draining);
    tokio::spawn(async move {
        tokio::time::sleep(drain).await;
        phase.send_replace(Phase::Cut);
    });
}

/// What is done again and again while the server runs, for ever.
async fn chores(governor: Arc<Governor>, terms_check_ms: u64) {
    tokio::join!(apply_terms(governor.clone(), terms_check_ms), write_ledger(governor));
}

/// Lets terms of sources begin and end when their time has come, for ever.
async fn apply_terms(governor: Arc<Governor>, every_ms: u64) {
    let mut ticks = tokio::time::interval(Duration::from_millis(every_ms));
    loop {
        ticks.tick().await;
        let governor = governor.clone();
        match tokio::task::spawn_blocking(move || governor.apply_terms()).await {
            Ok(Ok(sources)) => {
                sources.iter().for_each(|id| tracing::info!("the term of the source {id} began or ended"))
            }
            Ok(Err(error)) => tracing::error!("terms cannot be looked at: {error}"),
            Err(error) => tracing::error!("the look at terms failed: {error}"),
        }
    }
}

/// Writes what sources gave to answers, and forgets texts of answers that something was withdrawn from, for ever.
async fn write_ledger(governor: Arc<Governor>) {
    let seconds = governor.config().attribution.ledger_seconds;
    let mut ticks = tokio::time::interval(Duration::from_secs(seconds.max(1)));
    loop {
        ticks.tick().await;
        write_once(governor.clone()).await;
    }
}

async fn write_once(governor: Arc<Governor>) {
    let write = move || {
        governor.forget_withdrawn();
        governor.write_ledger()
    };
    match tokio::task::spawn_blocking(write).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::error!("the ledger cannot be written: {error}"),
        Err(error) => tracing::error!("the writing of the ledger failed: {error}"),
    }
}

/// How long statuses of calls that were cut off have to reach their callers.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// The whole server ("") and its services, as health knows them.
const SERVICES: [&str; 6] = [
    "",
    "silo.v1.GenerationService",
    "silo.v1.DatastoreService",
    "silo.v1.OptOutService",
    "silo.v1.AttributionService",
    "google.longrunning.Operations",
];
