//! The Merkle log of a store's changes, its checkpoints, and receipts of withdrawals.
//!
//! The leaves are the entries that the store wrote in the transactions of its changes; the tree is made of them here, and can be made anew at
//! any time.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use silo_core::merkle::Hash;
use silo_core::{Epoch, SourceId, merkle};
use silo_log::{Absence, Checkpoint, HashFile, KeyFile, LogError, Logged, Receipt, TrainedOn, tree};
use silo_store::{Contents, Moments, Store, now_unix_ms};

use crate::{GovernError, Governor};

/// Entries that are read from the store at once.
const BATCH: u64 = 10_000;

/// Signs the log of a store.
pub struct Notary {
    keys: KeyFile,
    /// Which log it is.
    origin: String,
    /// Of the newest checkpoint.
    checkpoint: PathBuf,
    tree: Mutex<HashFile>,
}

/// An entry of the log, and that it is in it.
pub type ProvenEntry = Logged;

/// The log at a moment.
#[derive(Debug, Clone, PartialEq)]
pub struct LogProof {
    /// A signed note.
    pub checkpoint: String,
    /// That it goes on from an older one.
    pub consistency: Vec<Hash>,
    /// Entries.
    pub entries: Vec<ProvenEntry>,
}

/// A log that does not change while it is held.
struct Sealed<'a> {
    tree: MutexGuard<'a, HashFile>,
    contents: Contents,
    checkpoint: Checkpoint,
    note: String,
}

impl Notary {
    /// Reads the key and brings the tree up to the store's log, which must be the one that was signed before.
    pub(crate) fn open(store: &Store, key: &Path) -> Result<Self, GovernError> {
        let keys = KeyFile::read(key)?;
        let (folder, id) = (store.root().join("log"), store.log_id()?);
        fs::create_dir_all(&folder).map_err(io(&folder))?;
        let tree = Mutex::new(HashFile::open(&folder.join(format!("{id}.hashes")))?);
        let origin = format!("{}/{id}", keys.signing.verifying_key().name());
        let notary = Self { keys, origin, checkpoint: folder.join(format!("{id}.checkpoint")), tree };
        drop(notary.current(store)?);
        Ok(notary)
    }

    /// The tree of the store's log as it is now. Refused, if it does not go on from the newest checkpoint: nothing else is signed then.
    fn current(&self, store: &Store) -> Result<(MutexGuard<'_, HashFile>, Contents), GovernError> {
        let contents = store.contents()?;
        let n = contents.n_changes;
        let mut tree = self.tree(store, n)?;
        let Some(signed) = self.newest()? else { return Ok((tree, contents)) };
        if signed.size <= n && tree::root(&*tree, signed.size)? != signed.tree {
            // The file of hashes may be what is damaged.
            tree.clear()?;
            append(&mut tree, store, n)?;
        }
        if signed.size > n || tree::root(&*tree, signed.size)? != signed.tree {
            return Err(GovernError::LogAltered { size: signed.size });
        }
        Ok((tree, contents))
    }

    /// What was made with proofs that hold. If they do not, the file of hashes is made anew from the entries, once.
    fn checked<T>(&self, make: impl Fn() -> Result<T, GovernError>) -> Result<T, GovernError> {
        match make() {
            Err(GovernError::Log(LogError::Proof(_))) => {
                self.tree.lock().unwrap_or_else(PoisonError::into_inner).clear()?;
                make()
            }
            other => other,
        }
    }

    fn newest(&self) -> Result<Option<Checkpoint>, GovernError> {
        match fs::read_to_string(&self.checkpoint) {
            Ok(note) => Ok(Some(Checkpoint::open(&note, &self.keys.verifying)?)),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(io(&self.checkpoint)(e).into()),
        }
    }

    /// The tree with the first `n` entries at least.
    fn tree(&self, store: &Store, n: u64) -> Result<MutexGuard<'_, HashFile>, GovernError> {
        // What a panic left of an append is what a crash leaves of it.
        let mut tree = self.tree.lock().unwrap_or_else(PoisonError::into_inner);
        append(&mut tree, store, n)?;
        Ok(tree)
    }

    /// Signs the log as it is.
    fn seal(&self, store: &Store) -> Result<Sealed<'_>, GovernError> {
        let (tree, contents) = self.current(store)?;
        let size = contents.n_changes;
        let state = contents.state.as_ref().and_then(|(_, entry)| entry.change.state());
        let (epoch, root) = state.map_or_else(|| (Epoch(0), merkle::empty_root()), |state| (state.epoch, state.root));
        let (origin, tree_root) = (self.origin.clone(), tree::root(&*tree, size)?);
        let checkpoint = Checkpoint { origin, size, tree: tree_root, epoch, root, at_unix_ms: now_unix_ms() };
        let note = checkpoint.sign(&self.keys.signing);
        // The newest one stays: a call that took longer must not put an older one in its place.
        if self.newest()?.is_none_or(|newest| newest.size < size) {
            write(&self.checkpoint, &note)?;
        }
        Ok(Sealed { tree, contents, checkpoint, note })
    }
}

fn io(path: &Path) -> impl FnOnce(std::io::Error) -> LogError + '_ {
    |source| LogError::Io { path: path.to_owned(), source }
}

fn append(tree: &mut HashFile, store: &Store, n: u64) -> Result<(), GovernError> {
    if tree.n_leaves() > n && store.contents()?.n_changes < tree.n_leaves() {
        tree.clear()?; // it is not the tree of this log
    }
    while tree.n_leaves() < n {
        let entries = store.changes(tree.n_leaves(), BATCH.min(n - tree.n_leaves()))?;
        if entries.is_empty() {
            return Err(GovernError::LogAltered { size: n });
        }
        tree.append(entries.iter().map(String::as_bytes))?;
    }
    Ok(())
}

/// Writes a file whole or not at all.
fn write(path: &Path, text: &str) -> Result<(), LogError> {
    let new = path.with_extension("new");
    let write = || {
        let mut file = fs::File::create(&new)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&new, path)
    };
    write().map_err(io(path))
}

impl Sealed<'_> {
    fn logged(&self, store: &Store, position: u64) -> Result<Logged, GovernError> {
        let missing = GovernError::LogAltered { size: self.checkpoint.size };
        let entry = store.changes(position, 1)?.pop().ok_or(missing)?;
        Ok(Logged { position, entry, proof: tree::inclusion_proof(&*self.tree, position, self.checkpoint.size)? })
    }
}

impl Governor {
    fn notary(&self) -> Result<&Notary, GovernError> {
        self.notary.as_ref().ok_or(GovernError::NoKey)
    }

    /// The sources that lost something by a withdrawal.
    pub fn sources_of(&self, removal: u64) -> Result<BTreeSet<SourceId>, GovernError> {
        Ok(self.store().left_by(removal)?.into_keys().collect())
    }

    /// The receipt of a withdrawal ([`Receipt`]), as of now. It is verified before it is given away.
    pub fn receipt(&self, removal: u64) -> Result<String, GovernError> {
        let notary = self.notary()?;
        notary.checked(|| {
            let text = self.make_receipt(notary, removal)?;
            Receipt::verify(&text, &notary.keys.verifying)?;
            Ok(text)
        })
    }

    fn make_receipt(&self, notary: &Notary, removal: u64) -> Result<String, GovernError> {
        let store = self.store();
        let known = store.removals(removal.saturating_sub(1))?.into_iter().next().filter(|r| r.id == removal);
        let none = |reason| GovernError::NoReceipt { removal, reason };
        let record = known.ok_or_else(|| none("nothing was withdrawn or suspended under this number"))?;
        let sealed = notary.seal(store)?;
        let moments = store.moments(removal)?;
        let other = "it is no withdrawal, or is not in this log, which began later";
        let Moments { logged, in_force, purged } = moments.ok_or_else(|| none(other))?;
        // What came after the look at the log waits for the next receipt.
        let seen = |position: &u64| *position < sealed.checkpoint.size;
        let in_force = in_force.filter(seen).ok_or_else(|| none("it is not in force yet"))?;
        let left = store.left_by(removal)?;
        if left.iter().any(|(source, documents)| documents.iter().any(|d| sealed.contents.holds(source, d))) {
            return Err(none("documents of it are in the store again, since they were added once more"));
        }
        let absence = left.into_iter().map(|(source, documents)| {
            let [in_store, in_source] = sealed.contents.prove(&source, &documents);
            Absence { source, documents, in_store, in_source }
        });
        let absence: Vec<Absence> = absence.collect();
        let state = sealed.contents.state.as_ref().ok_or_else(|| none(other))?.0;
        let receipt = Receipt {
            store: store.id()?,
            issued_at_unix_ms: now_unix_ms().max(sealed.checkpoint.at_unix_ms),
            removal: sealed.logged(store, logged)?,
            in_force: sealed.logged(store, in_force)?,
            purged: purged.filter(seen).map(|position| sealed.logged(store, position)).transpose()?,
            models: vec![self.trained_on(&absence)],
            absence,
            backups: store.backups_with(record.epoch)?,
            state: sealed.logged(store, state)?,
            checkpoint: sealed.note.clone(),
        };
        Ok(receipt.sign(&notary.keys.signing)?)
    }

    /// Whether the served model was trained on sources of a receipt.
    fn trained_on(&self, absence: &[Absence]) -> TrainedOn {
        let card = self.model.card();
        let named = |sources: &Vec<SourceId>| {
            absence.iter().map(|a| &a.source).filter(|source| sources.contains(source)).cloned().collect()
        };
        TrainedOn { model: card.name.clone(), hash: card.hash, sources: card.training_sources.as_ref().map(named) }
    }

    /// The log as it is, that it goes on from its first `old_size` entries, and some entries. Proofs are verified before they are given away.
    pub fn log_proof(&self, old_size: u64, entries: Range<u64>) -> Result<LogProof, GovernError> {
        let notary = self.notary()?;
        notary.checked(|| self.make_log_proof(notary, old_size, entries.clone()))
    }

    fn make_log_proof(&self, notary: &Notary, old_size: u64, entries: Range<u64>) -> Result<LogProof, GovernError> {
        let store = self.store();
        let sealed = notary.seal(store)?;
        let (size, root) = (sealed.checkpoint.size, sealed.checkpoint.tree);
        if old_size > size || entries.end > size {
            return Err(GovernError::LogEnd { got: old_size.max(entries.end), size });
        }
        let fails = |what: &str| LogError::Proof(format!("{what} is not what the file of hashes says"));
        let mut consistency = Vec::new();
        if old_size > 0 {
            consistency = tree::consistency_proof(&*sealed.tree, old_size, size)?;
            if !tree::is_consistent(old_size, &tree::root(&*sealed.tree, old_size)?, size, &root, &consistency) {
                return Err(fails("an older log").into());
            }
        }
        let entries: Vec<ProvenEntry> =
            entries.map(|position| sealed.logged(store, position)).collect::<Result<_, _>>()?;
        let included =
            |e: &Logged| tree::includes(&merkle::leaf_hash(e.entry.as_bytes()), e.position, size, &e.proof, &root);
        if !entries.iter().all(included) {
            return Err(fails("an entry").into());
        }
        Ok(LogProof { checkpoint: sealed.note, consistency, entries })
    }
}
