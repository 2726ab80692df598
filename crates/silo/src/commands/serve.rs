//! `silo serve`.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use silo_govern::Governor;
use silo_server::Server;
use tracing_subscriber::EnvFilter;

use super::asked_to_stop;
use crate::wiring;

/// Serve a model and a store over gRPC. SIGTERM or Ctrl-C drains and ends it; a second one ends it at once.
#[derive(Debug, Args)]
pub struct Serve {
    /// The configuration file.
    #[arg(long, value_name = "PATH")]
    config: PathBuf,
    /// What is logged: error, warn, info, debug, or a filter such as silo_server=debug.
    #[arg(long, default_value = "info")]
    log: String,
}

impl Serve {
    /// Runs until told to stop.
    pub async fn run(self) -> Result<()> {
        let filter =
            EnvFilter::try_new(&self.log).with_context(|| format!("'{}' is no filter of log messages", self.log))?;
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
        let started = std::time::Instant::now();
        let (config, parts) = tokio::task::spawn_blocking(move || wiring::start_from(&self.config)).await??;
        let card = parts.engine.model().card().clone();
        use silo_core::SnapshotProvider;
        let snapshot = parts.governor.store().snapshot();
        tokio::spawn(scrub(parts.governor.clone(), config.server.scrub_hours));
        let server = Server::bind(config.server, parts.engine, parts.governor).await?;
        tracing::info!(
            "ready at {} after {} ms: model {} ({}), epoch {}, {} shards",
            server.address()?,
            started.elapsed().as_millis(),
            card.name,
            &card.hash.to_string()[..12],
            snapshot.epoch,
            snapshot.shards.len()
        );
        let stop = async {
            asked_to_stop().await.unwrap_or_else(|e| tracing::error!("{e:#}"));
            tracing::info!("draining");
            tokio::spawn(async {
                if asked_to_stop().await.is_ok() {
                    std::process::exit(1);
                }
            });
        };
        server.serve(stop).await?;
        tracing::info!("stopped");
        Ok(())
    }
}

/// Checks all files in the background, at the start and then every so many hours.
async fn scrub(governor: Arc<Governor>, hours: u64) {
    loop {
        let governor = governor.clone();
        let found = tokio::task::spawn_blocking(move || governor.store().scrub()).await;
        match found {
            Ok(damaged) => damaged.iter().for_each(|(id, reason)| {
                tracing::error!("shard {id} is damaged and no longer retrieved from: {reason}");
            }),
            Err(error) => tracing::error!("the check of the files failed: {error}"),
        }
        if hours == 0 {
            return;
        }
        tokio::time::sleep(Duration::from_secs(hours.saturating_mul(3600))).await;
    }
}
