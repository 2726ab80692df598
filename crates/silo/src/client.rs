//! Where a command finds its server: at an address, or in this process.
//!
//! `--local` starts the same server that `silo serve` runs, at a free loopback port, for one command: so there is one code
//! path, and it is the one that users of the service have.

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Context, Result, anyhow};
use clap::Args;
use silo_proto::longrunning::operations_client::OperationsClient;
use silo_proto::v1::datastore_service_client::DatastoreServiceClient;
use silo_proto::v1::generation_service_client::GenerationServiceClient;
use silo_server::Server;
use tokio::sync::oneshot;
use tonic::Status;
use tonic::transport::Channel;

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
}

/// A connection, and the server behind it if it is ours.
pub struct Connection {
    channel: Channel,
    local: Option<(oneshot::Sender<()>, tokio::task::JoinHandle<Result<()>>)>,
}

impl Target {
    /// Connects.
    pub async fn connect(&self) -> Result<Connection> {
        let Some(path) = &self.local else {
            let channel = connect(&self.server).await.with_context(|| {
                format!(
                    "no server answers at {}; start one with `silo serve --config configs/serve.toml`, or use --local",
                    self.server
                )
            })?;
            return Ok(Connection { channel, local: None });
        };
        let path = path.clone();
        let (config, parts) = tokio::task::spawn_blocking(move || wiring::start_from(&path)).await??;
        let mut server = config.server;
        server.listen = SocketAddr::from(([127, 0, 0, 1], 0));
        let server = Server::bind(server, parts.engine, parts.governor).await?;
        let address = server.address()?;
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(async move {
            let stop = async { drop(stopped.await) };
            server.serve(stop).await.map_err(anyhow::Error::from)
        });
        let channel = connect(&address.to_string()).await?;
        Ok(Connection { channel, local: Some((stop, task)) })
    }
}

async fn connect(address: &str) -> Result<Channel> {
    let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{address}"))
        .with_context(|| format!("'{address}' is no address; write host:port"))?;
    Ok(endpoint.tcp_nodelay(true).connect().await?)
}

impl Connection {
    /// Client of GenerationService.
    pub fn generation(&self) -> GenerationServiceClient<Channel> {
        GenerationServiceClient::new(self.channel.clone()).max_decoding_message_size(MAX_ANSWER_BYTES)
    }

    /// Client of DatastoreService.
    pub fn datastore(&self) -> DatastoreServiceClient<Channel> {
        DatastoreServiceClient::new(self.channel.clone()).max_decoding_message_size(MAX_ANSWER_BYTES)
    }

    /// Client of Operations.
    pub fn operations(&self) -> OperationsClient<Channel> {
        OperationsClient::new(self.channel.clone())
    }

    /// Ends a server of ours.
    pub async fn close(self) -> Result<()> {
        let Self { channel, local } = self;
        drop(channel);
        if let Some((stop, task)) = local {
            let _ = stop.send(()); // it may have ended by itself; then the task says why
            task.await??;
        }
        Ok(())
    }
}

/// A refusal in the words of the server.
pub fn refused(status: Status) -> anyhow::Error {
    anyhow!("{} ({:?})", status.message(), status.code())
}
