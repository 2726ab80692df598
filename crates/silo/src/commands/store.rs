//! `silo store`.

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use serde_json::{Value, json};
use silo_govern::verify_log;
use silo_proto::v1;
use silo_store::{Fault, Later, RemovalLog, Repair};

use super::operation;
use crate::client::{Target, refused};
use crate::config::ServeConfig;
use crate::{output, wiring};

/// The store as a whole: state, backup, restore, checks.
#[derive(Debug, Subcommand)]
pub enum StoreCommand {
    /// Epoch, root, counts, backups.
    Show(Show),
    /// Copy the store while the server runs, to a folder below its `govern.backups`.
    Backup(Backup),
    /// Strike a backup out of the list, after it was deleted everywhere.
    ForgetBackup(Backup),
    /// Write the log of removals to a file, to be kept away from the store; also of a store in use.
    Log(Log),
    /// Make the store what a backup holds, without what was withdrawn since. No server may have it open.
    Restore(Restore),
    /// Check every checksum, and the catalog against the files. No server may have the store open.
    Verify(Config),
    /// Mend shards that cannot be retrieved from. No server may have the store open.
    Repair(RepairArguments),
}

/// Shows the store.
#[derive(Debug, Args)]
pub struct Show {
    #[command(flatten)]
    target: Target,
}

/// Names a backup.
#[derive(Debug, Args)]
pub struct Backup {
    #[command(flatten)]
    target: Target,
    /// Its name, which is that of its folder.
    name: String,
}

/// Names a store.
#[derive(Debug, Args)]
pub struct Config {
    /// The server's configuration, which names the store.
    #[arg(long, value_name = "PATH")]
    config: PathBuf,
}

/// Writes the log.
#[derive(Debug, Args)]
pub struct Log {
    #[command(flatten)]
    store: Config,
    /// The file to write; standard output without it.
    #[arg(long, value_name = "PATH")]
    output: Option<PathBuf>,
}

/// Restores.
#[derive(Debug, Args)]
pub struct Restore {
    #[command(flatten)]
    store: Config,
    /// The backup's folder.
    #[arg(long, value_name = "PATH")]
    backup: PathBuf,
    /// The log of removals up to the end: the directory of the lost store, its catalog, or a file that `silo store log` wrote. Without it that
    /// of the store which is there is taken.
    #[arg(long, value_name = "PATH", conflicts_with = "no_later_removals")]
    log: Option<PathBuf>,
    /// Nothing was withdrawn since the backup, or what was is lost and may come back.
    #[arg(long)]
    no_later_removals: bool,
}

/// Repairs.
#[derive(Debug, Args)]
pub struct RepairArguments {
    #[command(flatten)]
    store: Config,
    /// A backup that may have the files.
    #[arg(long, value_name = "PATH")]
    backup: Option<PathBuf>,
}

impl StoreCommand {
    /// Runs the command.
    pub async fn run(self, as_json: bool) -> Result<()> {
        match self {
            Self::Show(c) => c.run(as_json).await,
            Self::Backup(c) => c.run(as_json).await,
            Self::ForgetBackup(c) => c.forget().await,
            Self::Log(c) => tokio::task::spawn_blocking(move || c.run()).await?,
            Self::Restore(c) => tokio::task::spawn_blocking(move || c.run(as_json)).await?,
            Self::Verify(c) => tokio::task::spawn_blocking(move || c.verify(as_json)).await?,
            Self::Repair(c) => tokio::task::spawn_blocking(move || c.run(as_json)).await?,
        }
    }
}

impl Show {
    async fn run(self, as_json: bool) -> Result<()> {
        let connection = self.target.connect().await?;
        let s = connection.datastore().get_store(v1::GetStoreRequest {}).await.map_err(refused)?.into_inner();
        let backup = |b: &v1::Backup| json!({"name": b.name, "epoch": b.epoch, "at_unix_ms": b.at_unix_ms});
        if as_json {
            output::json(&json!({
                "epoch": s.epoch, "root": s.root, "n_sources": s.n_sources, "n_shards": s.n_shards,
                "n_documents": s.n_documents, "n_entries": s.n_entries, "n_passages": s.n_passages,
                "model_hash": s.model_hash, "recipe": s.recipe, "recipe_hash": s.recipe_hash,
                "n_unpurged": s.n_unpurged, "backups": s.backups.iter().map(backup).collect::<Value>(),
            }))?;
        } else {
            println!("epoch {}, root {}", s.epoch, s.root);
            println!(
                "{} sources, {} shards, {} documents, {} entries, {} passages; recipe {}",
                s.n_sources, s.n_shards, s.n_documents, s.n_entries, s.n_passages, s.recipe
            );
            println!("{} removals of which bytes are still in files", s.n_unpurged);
            for b in &s.backups {
                println!("backup {} of epoch {}", b.name, b.epoch);
            }
        }
        connection.close().await
    }
}

impl Backup {
    async fn run(self, as_json: bool) -> Result<()> {
        let connection = self.target.connect().await?;
        let request = v1::BackupStoreRequest { name: self.name };
        let begun = connection.datastore().backup_store(request).await.map_err(refused)?.into_inner();
        let made: v1::BackupStoreResponse = operation::wait(&connection, begun, "entries").await?;
        let backup = made.backup.unwrap_or_default();
        if as_json {
            output::json(&json!({
                "name": backup.name, "epoch": backup.epoch, "root": made.root, "n_shards": made.n_shards,
                "n_bytes": made.n_bytes, "damaged": made.damaged,
            }))?;
        } else {
            println!(
                "backup {}: epoch {}, {} shards, {} bytes",
                backup.name, backup.epoch, made.n_shards, made.n_bytes
            );
            println!("root {}", made.root);
            if !made.damaged.is_empty() {
                println!("shards {:?} are damaged, here and in the store", made.damaged);
            }
        }
        connection.close().await
    }

    async fn forget(self) -> Result<()> {
        let connection = self.target.connect().await?;
        let request = v1::ForgetBackupRequest { name: self.name.clone() };
        connection.datastore().forget_backup(request).await.map_err(refused)?;
        println!("removals no longer name the backup {}", self.name);
        connection.close().await
    }
}

impl Log {
    fn run(self) -> Result<()> {
        let config = ServeConfig::read(&self.store.config)?;
        let log = RemovalLog::read(&config.store.root)?;
        let Some(path) = self.output else {
            return log.write(std::io::stdout().lock()).context("cannot write the log");
        };
        let failed = || format!("cannot write {}", path.display());
        let partial = path.with_extension("partial");
        let mut file = File::create(&partial).with_context(failed)?;
        log.write(&mut file).and_then(|()| file.flush()).and_then(|()| file.sync_all()).with_context(failed)?;
        std::fs::rename(&partial, &path).with_context(failed)?;
        println!("{} entries, up to epoch {}: {}", log.records.len(), log.last_epoch, path.display());
        Ok(())
    }
}

impl Restore {
    fn run(self, as_json: bool) -> Result<()> {
        let root = ServeConfig::read(&self.store.config)?.store.root;
        let later = self.log.as_deref().map_or(Later::None, Later::Log);
        if self.log.is_none() && !self.no_later_removals && !root.join("catalog.sqlite").exists() {
            bail!(
                "it is not known what was withdrawn since the backup was made; name the log of removals with --log, or say \
                 --no-later-removals"
            );
        }
        let restored = silo_store::restore(&self.backup, &root, later, None)?;
        if as_json {
            return output::json(&json!({
                "epoch": restored.epoch, "root": restored.root, "n_shards": restored.n_shards,
                "n_replayed": restored.n_replayed, "damaged": restored.damaged,
            }));
        }
        println!(
            "{} shards at epoch {}; {} changes since the backup were done again",
            restored.n_shards, restored.epoch, restored.n_replayed
        );
        println!("root {}", restored.root);
        if !restored.damaged.is_empty() {
            println!(
                "shards {:?} are damaged in the backup; `silo store repair` mends what can be mended",
                restored.damaged
            );
        }
        Ok(())
    }
}

impl Config {
    fn verify(self, as_json: bool) -> Result<()> {
        let root = ServeConfig::read(&self.config)?.store.root;
        let mut verified = silo_store::verify(&root)?;
        verified.faults.extend(verify_log(&root)?.map(|what| Fault { shard: None, what }));
        if as_json {
            let fault = |f: &Fault| json!({"shard": f.shard, "what": f.what});
            let faults: Value = verified.faults.iter().map(fault).collect();
            output::json(&json!({"n_shards": verified.n_shards, "faults": faults, "orphans": verified.orphans}))?;
        } else {
            println!("{} shards, {} faults", verified.n_shards, verified.faults.len());
            for orphan in &verified.orphans {
                println!("{orphan} belongs to no shard; it is deleted when the store is opened");
            }
            for f in &verified.faults {
                println!("{}{}", f.shard.map(|id| format!("shard {id}: ")).unwrap_or_default(), f.what);
            }
        }
        if verified.faults.is_empty() { Ok(()) } else { bail!("the store is not whole; see `silo store repair`") }
    }
}

impl RepairArguments {
    fn run(self, as_json: bool) -> Result<()> {
        let config = ServeConfig::read(&self.store.config)?;
        let (model, tokenizer) = wiring::load_model(&config.model)?;
        let store = wiring::open_store(&config.store, &*model, tokenizer)?;
        // Damage of keys shows only here.
        store.scrub();
        let progress = |id| eprintln!("shard {id}");
        let done = store.by("local").repair(self.backup.as_deref(), &*model, &progress)?;
        store.purge(&Default::default(), &|_, _| {})?;
        let text = |repair: &Repair| match repair {
            Repair::Copied => "copied from the backup".to_owned(),
            Repair::Rebuilt => "encoded again".to_owned(),
            Repair::Failed(reason) => reason.clone(),
        };
        if as_json {
            let one = |(id, repair): &(silo_core::ShardId, Repair)| json!({"shard": id, "repair": text(repair)});
            output::json(&done.iter().map(one).collect::<Vec<_>>())?;
        } else if done.is_empty() {
            println!("all shards can be retrieved from: there is nothing to repair");
        } else {
            done.iter().for_each(|(id, repair)| println!("shard {id}: {}", text(repair)));
        }
        let failed = done.iter().filter(|(_, r)| matches!(r, Repair::Failed(_))).count();
        if failed == 0 {
            Ok(())
        } else {
            bail!("{failed} shards could not be repaired; remove them and add them again")
        }
    }
}
