//! Declarations, additions, removals.

use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};
use silo_core::{Document, LanguageModel, LicencePolicy, Selection, ShardId, Source, SourceId, Tokenizer};
use silo_store::{AddedShard, BackupManifest, Removal, RemovalPart, Store};

use crate::attribution::{Ledger, Responses};
use crate::{AttributionConfig, Caller, Declaration, GovernError, Notary, OptOutConfig, declare};

/// Limits and policies.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct GovernConfig {
    /// How licences become tiers.
    pub licences: LicencePolicy,
    /// The key that receipts and checkpoints of the log are signed with (`silo key create`); there are none, if there is none.
    pub signing_key: Option<PathBuf>,
    /// Folder below which backups are made; none are, if there is none.
    pub backups: Option<PathBuf>,
    /// Timers and limits of opt-outs.
    pub optout: OptOutConfig,
    /// What is kept of answers, and what may be asked about texts.
    pub attribution: AttributionConfig,
    /// Longest file of a signal, in bytes.
    pub max_signal_bytes: usize,
    /// Longest document, in bytes.
    pub max_document_bytes: usize,
    /// Most documents of one shard.
    pub max_shard_documents: usize,
    /// Most text of one shard, in bytes.
    pub max_shard_bytes: usize,
}

impl Default for GovernConfig {
    fn default() -> Self {
        Self {
            licences: LicencePolicy::default(),
            signing_key: None,
            backups: None,
            optout: OptOutConfig::default(),
            attribution: AttributionConfig::default(),
            max_signal_bytes: 512 << 10,
            max_document_bytes: 16 << 20,
            max_shard_documents: 1_000_000,
            max_shard_bytes: 1 << 30,
        }
    }
}

/// Stands before the store.
pub struct Governor {
    config: GovernConfig,
    store: Arc<Store>,
    pub(crate) model: Arc<dyn LanguageModel>,
    pub(crate) tokenizer: Arc<dyn Tokenizer>,
    pub(crate) notary: Option<Notary>,
    /// Steps of opt-outs are taken one after the other.
    pub(crate) optout_lock: Mutex<()>,
    pub(crate) responses: Responses,
    pub(crate) ledger: Ledger,
    /// Looks for runs of words.
    pub(crate) attribution_threads: rayon::ThreadPool,
}

impl Governor {
    /// A governor of `store`, whose keys `model` makes. Refused, if the signing key cannot be read, or the store's log of changes is not the
    /// one that was signed.
    pub fn new(
        config: GovernConfig,
        store: Arc<Store>,
        model: Arc<dyn LanguageModel>,
        tokenizer: Arc<dyn Tokenizer>,
    ) -> Result<Self, GovernError> {
        let notary = config.signing_key.as_deref().map(|key| Notary::open(&store, key)).transpose()?;
        let threads = rayon::ThreadPoolBuilder::new().num_threads(config.attribution.threads.max(1));
        // A fault in one look must not end the service.
        let threads = threads.panic_handler(|_| tracing::error!("a look for runs of words failed"));
        let attribution_threads = threads.thread_name(|i| format!("attribution-{i}")).build()?;
        let ledger = Ledger::since(store.contents()?.last_change_at_unix_ms);
        let responses = Responses::default();
        let optout_lock = Mutex::new(());
        let governor =
            Self { config, store, model, tokenizer, notary, optout_lock, responses, ledger, attribution_threads };
        // A crash may have come between a purge and its note.
        governor.note_purged()?;
        governor.keep_out_anew()?;
        Ok(governor)
    }

    /// The store, for reading its state.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// The model that makes the store's keys.
    pub fn model(&self) -> &Arc<dyn LanguageModel> {
        &self.model
    }

    /// The limits and policies in force.
    pub fn config(&self) -> &GovernConfig {
        &self.config
    }

    /// Declares a source; with `validate_only` nothing is changed.
    pub fn create_source(
        &self,
        caller: &Caller,
        declaration: &Declaration,
        validate_only: bool,
    ) -> Result<Source, GovernError> {
        let source = declare(declaration, &self.config.licences)?;
        if validate_only {
            if self.store.source(&source.id).is_ok() {
                return Err(silo_store::StoreError::SourceExists(source.id).into());
            }
        } else {
            self.store.by(&caller.name).create_source(&source)?;
        }
        Ok(source)
    }

    /// Checks documents that are to be added to a source, and completes them: an empty licence is the source's. A document may be
    /// under other terms than its source, but not under stricter ones: those belong in a source of their own.
    pub fn check_documents(&self, source: &SourceId, documents: &mut [Document]) -> Result<Arc<Source>, GovernError> {
        let source = self.store.source(source)?;
        let limit = |what, got, limit, setting| {
            if got > limit { Err(GovernError::Limit { what, got, limit, setting }) } else { Ok(()) }
        };
        limit("the number of documents", documents.len(), self.config.max_shard_documents, "max_shard_documents")?;
        let bytes = documents.iter().map(|d| d.text.len()).sum();
        limit("the text in bytes", bytes, self.config.max_shard_bytes, "max_shard_bytes")?;
        for document in documents {
            let refuse = |reason: String| GovernError::Document { uri: document.uri.clone(), reason };
            if document.text.len() > self.config.max_document_bytes {
                let most = self.config.max_document_bytes;
                return Err(refuse(format!(
                    "it has {} bytes, the limit is {most} (max_document_bytes)",
                    document.text.len()
                )));
            }
            if document.text.trim().is_empty() {
                return Err(refuse("it has no text".into()));
            }
            if document.licence.is_empty() {
                (document.licence, document.tier) = (source.licence.clone(), source.tier);
                continue;
            }
            let tier = self.config.licences.tier(&document.licence).map_err(|e| refuse(e.to_string()))?;
            if tier > source.tier {
                let reason = format!(
                    "its licence '{}' is {tier}, its source is {}; declare a source of its own for it",
                    document.licence, source.tier
                );
                return Err(refuse(reason));
            }
            document.tier = tier.max(source.tier);
        }
        Ok(source)
    }

    /// Encodes the stored documents of a shard again, with the served model and recipe.
    pub fn rebuild_shard(
        &self,
        caller: &Caller,
        id: ShardId,
        cancel: &AtomicBool,
        progress: &dyn Fn(u64, u64),
    ) -> Result<AddedShard, GovernError> {
        Ok(self.store.by(&caller.name).rebuild_shard(id, &*self.model, cancel, progress)?)
    }

    /// What a withdrawal would take away now.
    pub fn plan(&self, selection: &Selection) -> Result<Vec<RemovalPart>, GovernError> {
        Ok(self.store.plan(selection)?)
    }

    /// Withdraws what is selected.
    pub fn withdraw(&self, caller: &Caller, selection: &Selection) -> Result<Removal, GovernError> {
        Ok(self.store.by(&caller.name).withdraw(selection)?)
    }

    /// Takes a shard out of what is retrieved.
    pub fn suspend_shard(&self, caller: &Caller, id: ShardId) -> Result<Removal, GovernError> {
        Ok(self.store.by(&caller.name).suspend_shard(id)?)
    }

    /// Puts a suspended shard back.
    pub fn resume_shard(&self, caller: &Caller, id: ShardId) -> Result<Removal, GovernError> {
        Ok(self.store.by(&caller.name).resume_shard(id)?)
    }

    /// The backups that hold something of a withdrawal.
    pub fn backups_with(&self, removal: &Removal) -> Result<Vec<String>, GovernError> {
        Ok(self.store.backups_with(removal.epoch())?)
    }

    /// Copies the store to a new folder of that name below the configured one.
    pub fn backup(
        &self,
        name: &str,
        cancel: &AtomicBool,
        progress: &dyn Fn(u64, u64),
    ) -> Result<BackupManifest, GovernError> {
        let folder = self.config.backups.as_ref().ok_or(GovernError::NoBackups)?;
        Ok(self.store.backup(folder, name, cancel, progress)?)
    }

    /// Strikes a backup out of the list of those that may hold what is withdrawn.
    pub fn forget_backup(&self, name: &str) -> Result<(), GovernError> {
        Ok(self.store.forget_backup(name)?)
    }
}
