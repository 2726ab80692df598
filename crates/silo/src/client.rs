//! Where a command finds its server: at an address, or in this process.
//!
//! `--local` starts the same server that `silo serve` runs, at a free loopback port, for one command: so there is one code
//! path, and it is the one that users of the service have.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use anyhow::{Context, Result, anyhow};
use clap::Args;
use silo_govern::{NewToken, Role, TokenFile};
use silo_proto::longrunning::operations_client::OperationsClient;
use silo_proto::v1::attribution_service_client::AttributionServiceClient;
use silo_proto::v1::datastore_service_client::DatastoreServiceClient;
use silo_proto::v1::generation_service_client::GenerationServiceClient;
use silo_proto::v1::opt_out_service_client::OptOutServiceClient;
use silo_server::Server;
use tempfile::TempDir;
use tokio::sync::oneshot;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Code, Status};

use crate::wiring;

/// Largest answer that is read.
const MAX_ANSWER_BYTES: usize = 256 << 20;

/// Which server.
#[derive(Debug, Clone, Args)]
pub struct Target {
    /// Address of a running server.
    #[arg(long, env = "SILO_SERVER", default_value = "127.0.0.1:50061")]
    server: String,
    /// Run in this process, with the model and store of a configuration file, instead of asking a server.
    #[arg(long, value_name = "CONFIG")]
    local: Option<PathBuf>,
    /// The token by which the server knows the caller. Better in the environment: others see command lines.
    #[arg(long, env = "SILO_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// Speak TLS, and trust this authority (PEM).
    #[arg(long, value_name = "PATH", env = "SILO_CA")]
    ca: Option<PathBuf>,
    /// Send the token as plain text beyond this machine.
    #[arg(long)]
    plain_text: bool,
    /// The certificate to show a server that asks for one (PEM).
    #[arg(long, value_name = "PATH", requires_all = ["ca", "client_key"], env = "SILO_CLIENT_CERTIFICATE")]
    client_certificate: Option<PathBuf>,
    /// Its key.
    #[arg(long, value_name = "PATH", requires = "client_certificate", env = "SILO_CLIENT_KEY")]
    client_key: Option<PathBuf>,
}

/// A channel whose calls carry the caller's token.
pub type Wire = InterceptedService<Channel, Bearer>;

/// Puts the token into each call.
#[derive(Clone)]
pub struct Bearer(Option<MetadataValue<Ascii>>);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: tonic::Request<()>) -> Result<tonic::Request<()>, Status> {
        if let Some(token) = &self.0 {
            request.metadata_mut().insert("authorization", token.clone());
        }
        Ok(request)
    }
}

/// A connection, and the server behind it if it is ours.
pub struct Connection {
    channel: Wire,
    local: Option<(oneshot::Sender<()>, tokio::task::JoinHandle<Result<()>>, TempDir)>,
}

impl Target {
    /// Connects.
    pub async fn connect(&self) -> Result<Connection> {
        let Some(path) = &self.local else {
            anyhow::ensure!(
                !self.server.contains("://"),
                "{} is no address: write host:port alone; whether it is TLS follows from --ca",
                self.server
            );
            anyhow::ensure!(
                self.token.is_none() || self.ca.is_some() || self.plain_text || is_loopback(&self.server),
                "the token would go to {} as plain text: name the authority of its certificate with --ca, or say --plain-text",
                self.server
            );
            let channel = connect(&self.server, self.tls()?).await.map_err(|e| self.unreachable(e))?;
            let token = self.token.as_deref().map(bearer).transpose()?;
            return Ok(Connection { channel: Wire::new(channel, Bearer(token)), local: None });
        };
        let path = path.clone();
        let (config, parts) = tokio::task::spawn_blocking(move || wiring::start_from(&path)).await??;
        let mut server = config.server;
        server.listen = SocketAddr::from(([127, 0, 0, 1], 0));
        // A token for this command alone: others on this machine reach the address too.
        let folder = tempfile::tempdir().context("cannot make a folder for a token")?;
        let tokens = folder.path().join("tokens.json");
        let new = NewToken { name: "local".into(), role: Role::Admin, sources: None, expires_unix_ms: None };
        let token = TokenFile::new(&tokens).create(new)?;
        (server.tokens, server.tls) = (Some(tokens), None);
        let server = Server::bind(server, parts.engine, parts.governor).await?;
        let address = server.address()?;
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(async move {
            let stop = async { drop(stopped.await) };
            server.serve(stop).await.map_err(anyhow::Error::from)
        });
        let channel = Wire::new(connect(&address.to_string(), None).await?, Bearer(Some(bearer(&token)?)));
        Ok(Connection { channel, local: Some((stop, task, folder)) })
    }

    fn unreachable(&self, error: anyhow::Error) -> anyhow::Error {
        let server = &self.server;
        // The transport gives its reasons as text only.
        let text = if format!("{error:#}").contains("certificate") {
            format!(
                "the certificate of {server} is not trusted, or it wants one to be shown: see --ca and --client-certificate"
            )
        } else {
            format!(
                "no server answers at {server}; start one with `silo serve --config configs/serve.toml`, or use --local"
            )
        };
        error.context(text)
    }

    fn tls(&self) -> Result<Option<ClientTlsConfig>> {
        let read = |path: &PathBuf| std::fs::read(path).with_context(|| format!("cannot read {}", path.display()));
        let Some(ca) = &self.ca else { return Ok(None) };
        let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(read(ca)?));
        Ok(Some(match (&self.client_certificate, &self.client_key) {
            (Some(certificate), Some(key)) => tls.identity(Identity::from_pem(read(certificate)?, read(key)?)),
            _ => tls,
        }))
    }
}

fn bearer(token: &str) -> Result<MetadataValue<Ascii>> {
    let mut value: MetadataValue<Ascii> =
        format!("Bearer {token}").parse().context("the token is no text that a call can carry")?;
    value.set_sensitive(true);
    Ok(value)
}

fn is_loopback(address: &str) -> bool {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host).trim_matches(['[', ']']);
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

async fn connect(address: &str, tls: Option<ClientTlsConfig>) -> Result<Channel> {
    let scheme = if tls.is_some() { "https" } else { "http" };
    let mut endpoint = Endpoint::from_shared(format!("{scheme}://{address}"))
        .with_context(|| format!("'{address}' is no address; write host:port"))?;
    if let Some(tls) = tls {
        endpoint = endpoint.tls_config(tls).context("the certificates cannot be used")?;
    }
    Ok(endpoint.tcp_nodelay(true).connect().await?)
}

impl Connection {
    /// Client of GenerationService.
    pub fn generation(&self) -> GenerationServiceClient<Wire> {
        GenerationServiceClient::new(self.channel.clone()).max_decoding_message_size(MAX_ANSWER_BYTES)
    }

    /// Client of DatastoreService.
    pub fn datastore(&self) -> DatastoreServiceClient<Wire> {
        DatastoreServiceClient::new(self.channel.clone()).max_decoding_message_size(MAX_ANSWER_BYTES)
    }

    /// Client of OptOutService.
    pub fn opt_out(&self) -> OptOutServiceClient<Wire> {
        OptOutServiceClient::new(self.channel.clone()).max_decoding_message_size(MAX_ANSWER_BYTES)
    }

    /// Client of AttributionService.
    pub fn attribution(&self) -> AttributionServiceClient<Wire> {
        AttributionServiceClient::new(self.channel.clone()).max_decoding_message_size(MAX_ANSWER_BYTES)
    }

    /// Client of Operations.
    pub fn operations(&self) -> OperationsClient<Wire> {
        OperationsClient::new(self.channel.clone())
    }

    /// Ends a server of ours.
    pub async fn close(self) -> Result<()> {
        let Self { channel, local } = self;
        drop(channel);
        if let Some((stop, task, _tokens)) = local {
            let _ = stop.send(()); // it may have ended by itself; then the task says why
            task.await??;
        }
        Ok(())
    }
}

/// A refusal in the words of the server.
pub fn refused(status: Status) -> anyhow::Error {
    let hint = match (status.code(), status.message()) {
        (Code::Unknown, "transport error") => "; a server that speaks TLS is asked with --ca",
        _ => "",
    };
    anyhow!("{} ({:?}){hint}", status.message(), status.code())
}
