//! The Merkle log of a store's changes, its checkpoints, and receipts of withdrawals.
//!
//! The leaves are the entries that the store wrote in the transactions of its changes; the tree is made of them here, and can be made anew at
//! any time.

use std::collections::BTreeSet;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use silo_core::merkle::{self, Hash};
use silo_core::{Change, ChangeEntry, SourceId};
use silo_log::{
    Absence, Checkpoint, HashFile, KeyFile, LedgerReport, LogError, Logged, Receipt, Statement, TrainedOn, tree,
    write_whole,
};
use silo_store::{ChangeLog, Contents, Moments, Store, now_unix_ms};

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

/// The files of a log: its hashes and its newest checkpoint.
fn files(root: &Path, id: &str) -> (PathBuf, PathBuf) {
    let folder = root.join("log");
    (folder.join(format!("{id}.hashes")), folder.join(format!("{id}.checkpoint")))
}

/// A checkpoint that this program wrote. It is not asked who signed it: a key that was lost must not shut the store.
fn newest(path: &Path) -> Result<Option<Checkpoint>, LogError> {
    match fs::read_to_string(path) {
        Ok(note) => Checkpoint::open_unsigned(&note).map(Some),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(LogError::io(path)(e)),
    }
}

impl Notary {
    /// Reads the key and brings the tree up to the store's log, which must be the one that was signed before.
    pub(crate) fn open(store: &Store, key: &Path) -> Result<Self, GovernError> {
        let (keys, id) = (KeyFile::read(key)?, store.log_id()?);
        let (hashes, checkpoint) = files(store.root(), &id);
        let folder = store.root().join("log");
        fs::create_dir_all(&folder).map_err(LogError::io(&folder))?;
        let signed = newest(&checkpoint)?.map(|signed| (signed.size, signed.tree));
        let tree = Mutex::new(HashFile::open(&hashes, signed)?);
        let origin = format!("{}/{id}", keys.signing.verifying_key().name());
        let notary = Self { keys, origin, checkpoint, tree };
        // What is signed now need not be read again at the next start.
        notary.seal(store)?;
        Ok(notary)
    }

    /// Brings the tree up to the log as it is now, and signs it. Refused, if it does not go on from the newest checkpoint.
    fn seal(&self, store: &Store) -> Result<Sealed<'_>, GovernError> {
        // What a panic left of an append is what a crash leaves of it. The lock comes first: nobody may sign a longer log meanwhile.
        let mut tree = self.tree.lock().unwrap_or_else(PoisonError::into_inner);
        let contents = store.contents()?;
        let size = contents.n_changes;
        if tree.n_leaves() > size {
            return Err(GovernError::LogAltered { size: tree.n_leaves() });
        }
        append(&mut tree, store, size)?;
        let signed = newest(&self.checkpoint)?;
        if let Some(signed) = &signed {
            self.check(&mut tree, store, signed, size)?;
        }
        let at_unix_ms = now_unix_ms().max(contents.last_change_at_unix_ms);
        let (origin, epoch, root) = (self.origin.clone(), contents.epoch(), contents.root());
        let checkpoint = Checkpoint { origin, size, tree: tree.root(), epoch, root, at_unix_ms };
        let note = checkpoint.sign(&self.keys.signing);
        if signed.is_none_or(|signed| signed.size < size) {
            write_whole(&self.checkpoint, &note, false).map_err(LogError::io(&self.checkpoint))?;
        }
        Ok(Sealed { tree, contents, checkpoint, note })
    }

    /// Whether the tree, which has `size` leaves, goes on from what was signed.
    fn check(&self, tree: &mut HashFile, store: &Store, signed: &Checkpoint, size: u64) -> Result<(), GovernError> {
        let holds = |tree: &HashFile| match tree::root(tree, signed.size) {
            Err(LogError::Proof(_)) => Ok(false),
            other => other.map(|root| root == signed.tree),
        };
        if signed.size <= size && !holds(tree)? {
            // The file of hashes may be what is damaged.
            tree.clear()?;
            append(tree, store, size)?;
        }
        if signed.size > size || !holds(tree)? {
            return Err(GovernError::LogAltered { size: signed.size });
        }
        Ok(())
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
}

/// Appends the entries that a tree lacks, up to `n` leaves.
fn append(tree: &mut HashFile, store: &Store, n: u64) -> Result<(), GovernError> {
    while tree.n_leaves() < n {
        let entries = store.changes(tree.n_leaves(), BATCH.min(n - tree.n_leaves()))?;
        if entries.is_empty() {
            return Err(GovernError::LogAltered { size: n });
        }
        tree.append(entries.iter().map(String::as_bytes))?;
    }
    Ok(())
}

/// Whether all entries of a store that is not in use are those that its newest checkpoint was signed over; what is wrong, if they are not.
pub fn verify_log(root: &Path) -> Result<Option<String>, GovernError> {
    let log = ChangeLog::open(root)?;
    let Some(signed) = newest(&files(root, &log.id()?).1)? else { return Ok(None) };
    let mut tree = tree::Frontier::default();
    while tree.n_leaves() < signed.size {
        let entries = log.entries(tree.n_leaves(), BATCH.min(signed.size - tree.n_leaves()))?;
        if entries.is_empty() {
            let (has, size) = (tree.n_leaves(), signed.size);
            return Ok(Some(format!("the log of changes has {has} entries, {size} were signed")));
        }
        entries.iter().for_each(|entry| drop(tree.append(entry.as_bytes())));
    }
    let altered =
        format!("an entry of the log of changes is not the one that was signed, among the first {}", signed.size);
    Ok((tree.root() != signed.tree).then_some(altered))
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

    /// The sources that lost something by a withdrawal, as the log says it; none, if it is no withdrawal.
    pub fn sources_of(&self, removal: u64) -> Result<BTreeSet<SourceId>, GovernError> {
        let Some(moments) = self.store().moments(removal)? else { return Ok(BTreeSet::new()) };
        let entry = self.store().changes(moments.logged, 1)?.pop();
        let entry: Option<ChangeEntry> = entry.and_then(|text| serde_json::from_str(&text).ok());
        Ok(match entry.map(|entry| entry.change) {
            Some(Change::Remove { documents, .. }) => documents.into_iter().map(|set| set.source).collect(),
            _ => BTreeSet::new(),
        })
    }

    /// The receipt of a withdrawal ([`Receipt`]), as of now. It is verified before it is given away.
    pub fn receipt(&self, removal: u64) -> Result<String, GovernError> {
        let notary = self.notary()?;
        let (text, purged) = notary.checked(|| {
            let text = self.make_receipt(notary, removal)?;
            let purged = Receipt::verify(&text, &notary.keys.verifying)?.purged_at_unix_ms.is_some();
            Ok((text, purged))
        })?;
        if purged {
            self.note_proven(removal)?;
        }
        Ok(text)
    }

    fn make_receipt(&self, notary: &Notary, removal: u64) -> Result<String, GovernError> {
        let store = self.store();
        let none = |reason| GovernError::NoReceipt { removal, reason };
        let record = store.removal(removal)?;
        let record = record.ok_or_else(|| none("nothing was withdrawn or suspended under this number"))?;
        let left = store.left_by(&record)?;
        let sealed = notary.seal(store)?;
        let moments = store.moments(removal)?;
        let other = "it is no withdrawal, or is not in this log, which began later";
        let Moments { logged, in_force, purged } = moments.ok_or_else(|| none(other))?;
        // What came after the look at the log waits for the next receipt.
        let seen = |position: &u64| *position < sealed.checkpoint.size;
        let in_force = in_force.filter(seen).ok_or_else(|| none("it is not in force yet"))?;
        if left.iter().any(|(source, documents)| documents.iter().any(|d| sealed.contents.holds(source, d))) {
            return Err(none("documents of it are in the store again, since they were added once more"));
        }
        let absence = left.into_iter().map(|(source, documents)| {
            let [in_store, in_source] = sealed.contents.prove(&source, &documents);
            Absence { source, documents, in_store, in_source }
        });
        let absence: Vec<Absence> = absence.collect();
        let receipt = Receipt {
            store: store.id()?,
            issued_at_unix_ms: now_unix_ms().max(sealed.checkpoint.at_unix_ms),
            removal: sealed.logged(store, logged)?,
            in_force: sealed.logged(store, in_force)?,
            purged: purged.filter(seen).map(|position| sealed.logged(store, position)).transpose()?,
            models: vec![self.model_trained_on(&absence.iter().map(|a| a.source.clone()).collect())],
            absence,
            backups: store.backups_with(record.epoch)?,
            checkpoint: sealed.note.clone(),
        };
        Ok(receipt.sign(&notary.keys.signing)?)
    }

    /// Whether there is a key to sign with.
    pub(crate) fn check_notary(&self) -> Result<(), GovernError> {
        self.notary().map(drop)
    }

    /// Enters a report in the log, and signs it. It is verified before it is given away.
    pub(crate) fn state(&self, actor: &str, report: LedgerReport) -> Result<String, GovernError> {
        let (notary, store) = (self.notary()?, self.store());
        let position = store.log_statement(actor, &report.entry())?;
        notary.checked(|| {
            let sealed = notary.seal(store)?;
            let statement = Statement {
                store: store.id()?,
                issued_at_unix_ms: now_unix_ms().max(sealed.checkpoint.at_unix_ms),
                report: report.clone(),
                logged: sealed.logged(store, position)?,
                checkpoint: sealed.note.clone(),
            };
            let text = statement.sign(&notary.keys.signing)?;
            Statement::verify(&text, &notary.keys.verifying)?;
            Ok(text)
        })
    }

    /// Whether the served model was trained on some sources.
    pub(crate) fn model_trained_on(&self, of: &BTreeSet<SourceId>) -> TrainedOn {
        let card = self.model.card();
        let named = |sources: &Vec<SourceId>| of.iter().filter(|source| sources.contains(source)).cloned().collect();
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
        let entries: Result<Vec<ProvenEntry>, GovernError> =
            entries.map(|position| sealed.logged(store, position)).collect();
        let entries = entries?;
        let included =
            |e: &Logged| tree::includes(&merkle::leaf_hash(e.entry.as_bytes()), e.position, size, &e.proof, &root);
        if !entries.iter().all(included) {
            return Err(fails("an entry").into());
        }
        Ok(LogProof { checkpoint: sealed.note, consistency, entries })
    }
}
