//! Receipts: what was withdrawn, when, and all that proves it, in one signed text.

use std::collections::BTreeSet;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use silo_core::merkle::{Hash, ProofStep, Proven, ProvenTrie, empty_root, leaf_hash, source_key};
use silo_core::{Change, ChangeEntry, ContentHash, DocumentSet, Epoch, RootHash, SourceId, StoreState};

use crate::note::{self, SigningKey, VerifyingKey};
use crate::{Checkpoint, LogError, tree};

const TITLE: &str = "silo receipt v1\n";

/// A receipt of a withdrawal. As text: a title, this as JSON, and the signature ([`note`]) over both.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Receipt {
    /// Id of the store, which its backups share.
    pub store: String,
    /// When it was made, in milliseconds since 1970.
    pub issued_at_unix_ms: i64,
    /// The withdrawal.
    pub removal: Logged,
    /// Since when no crash undoes it, and no search finds what it took.
    pub in_force: Logged,
    /// The purge after which no file of the store held its bytes; `None` as long as some may.
    pub purged: Option<Logged>,
    /// What has left the store, and that it is not in it.
    pub absence: Vec<Absence>,
    /// Backups that may hold it.
    pub backups: Vec<String>,
    /// The models that the store serves, and whether they were trained on it.
    pub models: Vec<TrainedOn>,
    /// The log at a moment after all of these: a signed note of its own.
    pub checkpoint: String,
}

/// An entry of the log, and that it is in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Logged {
    /// Its place, from 0.
    pub position: u64,
    /// Its exact text.
    pub entry: String,
    /// RFC 9162 §2.1.3.1, for the size of the checkpoint; in hexadecimal.
    #[serde(with = "hashes")]
    pub proof: Vec<Hash>,
}

/// That documents of a source are not in the store of the checkpoint.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Absence {
    /// The source.
    pub source: SourceId,
    /// SHA-256 of the text of each, sorted.
    pub documents: Vec<ContentHash>,
    /// Whether the source is in the store; nothing, if the store is empty.
    pub in_store: Vec<ProofStep>,
    /// If it is: that none of the documents is among its own.
    pub in_source: Vec<ProofStep>,
}

/// Whether a model was trained on something that was withdrawn.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainedOn {
    /// Name of the model.
    pub model: String,
    /// Hash of its weights and configuration.
    pub hash: ContentHash,
    /// Sources of the receipt that its training text had; `None` if it is not known what it was trained on.
    pub sources: Option<Vec<SourceId>>,
}

/// What a receipt proves.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Verified {
    /// The key that signed it.
    pub signed_by: String,
    /// Number of the withdrawal.
    pub removal: u64,
    /// Who withdrew.
    pub actor: String,
    /// How it was asked for.
    pub selector: String,
    /// What has left the store.
    pub documents: Vec<DocumentSet>,
    /// The moments, in milliseconds since 1970.
    pub asked_at_unix_ms: i64,
    #[allow(missing_docs, reason = "see above")]
    pub durable_at_unix_ms: i64,
    #[allow(missing_docs, reason = "see above")]
    pub effective_at_unix_ms: i64,
    /// `None`, if files of the store may still hold bytes of it.
    pub purged_at_unix_ms: Option<i64>,
    /// Root of the store before it.
    pub root_before: RootHash,
    /// The store after it.
    pub after: StoreState,
    /// Backups that may hold it.
    pub backups: Vec<String>,
    /// Models, and whether they were trained on it.
    pub models: Vec<TrainedOn>,
    /// The checkpoint as of which it is absent.
    pub origin: String,
    #[allow(missing_docs, reason = "see above")]
    pub log_size: u64,
    #[allow(missing_docs, reason = "see above")]
    pub absent_as_of_epoch: Epoch,
    #[allow(missing_docs, reason = "see above")]
    pub absent_as_of_unix_ms: i64,
}

pub(crate) fn wrong(reason: impl Into<String>) -> LogError {
    LogError::Receipt(reason.into())
}

pub(crate) fn ensure(holds: bool, reason: &str) -> Result<(), LogError> {
    if holds { Ok(()) } else { Err(wrong(reason)) }
}

/// Reads what was written in the one way in which it is written: no other order, no field twice, no number as a text.
pub(crate) fn canonical<T: Serialize + DeserializeOwned>(
    text: &str,
    write: impl Fn(&T) -> serde_json::Result<String>,
) -> Result<T, LogError> {
    let value = serde_json::from_str(text).map_err(|e| wrong(e.to_string()))?;
    let same = write(&value).is_ok_and(|written| written == text);
    ensure(same, "its JSON is not written as it must be").map(|()| value)
}

impl Logged {
    /// The entry, if it is where the receipt says.
    pub(crate) fn open(&self, checkpoint: &Checkpoint) -> Result<ChangeEntry, LogError> {
        let leaf = leaf_hash(self.entry.as_bytes());
        if !tree::includes(&leaf, self.position, checkpoint.size, &self.proof, &checkpoint.tree) {
            return Err(LogError::Proof(format!("entry {} is not in the log of the checkpoint", self.position)));
        }
        canonical(&self.entry, serde_json::to_string)
    }
}

impl Absence {
    fn check(&self, expected: &DocumentSet, root: &RootHash) -> Result<(), LogError> {
        let source = &self.source;
        let sorted = self.documents.is_sorted_by(|a, b| a < b);
        ensure(
            sorted && DocumentSet::of(source.clone(), &self.documents) == *expected,
            "its documents are not those of the log",
        )?;
        if *root == empty_root() {
            return ensure(
                self.in_store.is_empty() && self.in_source.is_empty(),
                "it proves something of an empty store",
            );
        }
        let no_proof = |reason: String| LogError::Proof(format!("absence from {source}: {reason}"));
        let store = ProvenTrie::read(&self.in_store).map_err(no_proof)?;
        ensure(RootHash(store.root()) == *root, "the proof about a source is one of another store")?;
        match store.find(&source_key(source)) {
            Some(Proven::Absent) => {
                ensure(self.in_source.is_empty(), "it proves something of a source that is not there")
            }
            Some(Proven::Present(Some(documents))) => {
                let trie = ProvenTrie::read(&self.in_source).map_err(no_proof)?;
                ensure(trie.root() == documents, "the proof about documents is one of another source")?;
                let absent = self.documents.iter().all(|d| trie.find(d) == Some(Proven::Absent));
                ensure(
                    absent,
                    "a document that was withdrawn is in the store of the checkpoint, or it is hidden whether it is",
                )
            }
            _ => Err(wrong("it is hidden whether a source is in the store")),
        }
    }
}

impl Receipt {
    /// Its text, signed.
    pub fn sign(&self, key: &SigningKey) -> Result<String, LogError> {
        let json = serde_json::to_string_pretty(self).map_err(|e| wrong(e.to_string()))?;
        Ok(note::sign(&format!("{TITLE}{json}\n"), &[key]))
    }

    /// Reads a receipt that one of the keys has signed. It is not checked further.
    pub fn open(text: &str, keys: &[VerifyingKey]) -> Result<(Self, String), LogError> {
        let (signed, by) = note::open(text, keys)?;
        let json = signed.strip_prefix(TITLE).ok_or_else(|| wrong("its title is not 'silo receipt v1'"))?;
        let json = json.strip_suffix('\n').unwrap_or(json);
        Ok((canonical(json, serde_json::to_string_pretty)?, by[0].name().to_owned()))
    }

    /// Checks a receipt against the keys of the one who issued it, and says what it proves.
    pub fn verify(text: &str, keys: &[VerifyingKey]) -> Result<Verified, LogError> {
        let (receipt, signed_by) = Self::open(text, keys)?;
        receipt.check(signed_by, keys)
    }

    fn check(self, signed_by: String, keys: &[VerifyingKey]) -> Result<Verified, LogError> {
        let checkpoint = Checkpoint::open(&self.checkpoint, keys)?;
        let removal = self.removal.open(&checkpoint)?;
        let Change::Remove { removal: id, selector, documents, root_before, state } = removal.change else {
            return Err(wrong("its entry of the log is no withdrawal"));
        };
        let in_force = self.in_force.open(&checkpoint)?.change;
        let Change::InForce { removal: of, durable_at_unix_ms, effective_at_unix_ms } = in_force else {
            return Err(wrong("its second entry does not say since when it is in force"));
        };
        ensure(
            of == id && self.in_force.position > self.removal.position,
            "its second entry is of another withdrawal",
        )?;
        let purged = self.purged.as_ref().map(|p| Ok((p.position, p.open(&checkpoint)?))).transpose()?;
        let purged_at_unix_ms = purged.as_ref().map(|(_, entry)| entry.at_unix_ms);
        if let Some((position, entry)) = purged {
            let of = |removals: &[u64]| removals.contains(&id);
            let is_purge = matches!(&entry.change, Change::Purge { removals } if of(removals));
            ensure(is_purge && position > self.removal.position, "its third entry is not the purge of it")?;
        }
        let (same, later) = (checkpoint.epoch == state.epoch, checkpoint.epoch > state.epoch);
        ensure(later || same && checkpoint.root == state.root, "the checkpoint is of before the withdrawal")?;
        let ordered = removal.at_unix_ms <= checkpoint.at_unix_ms && checkpoint.at_unix_ms <= self.issued_at_unix_ms;
        ensure(ordered && durable_at_unix_ms <= effective_at_unix_ms, "its moments are not in their order")?;
        ensure(self.absence.len() == documents.len(), "its sources are not those of the log")?;
        for (absence, expected) in self.absence.iter().zip(&documents) {
            absence.check(expected, &checkpoint.root)?;
        }
        let named: BTreeSet<&SourceId> = documents.iter().map(|set| &set.source).collect();
        let trained_on = self.models.iter().filter_map(|m| m.sources.as_ref()).flatten();
        ensure(trained_on.into_iter().all(|s| named.contains(s)), "it names a source that it is not about")?;
        Ok(Verified {
            signed_by,
            removal: id,
            actor: removal.actor,
            selector,
            documents,
            asked_at_unix_ms: removal.at_unix_ms,
            durable_at_unix_ms,
            effective_at_unix_ms,
            purged_at_unix_ms,
            root_before,
            after: state,
            backups: self.backups,
            models: self.models,
            origin: checkpoint.origin,
            log_size: checkpoint.size,
            absent_as_of_epoch: checkpoint.epoch,
            absent_as_of_unix_ms: checkpoint.at_unix_ms,
        })
    }
}

/// Lists of hashes in hexadecimal.
mod hashes {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};
    use silo_core::ContentHash;
    use silo_core::merkle::Hash;

    pub(super) fn serialize<S: Serializer>(hashes: &[Hash], to: S) -> Result<S::Ok, S::Error> {
        hashes.iter().map(|hash| ContentHash(*hash)).collect::<Vec<_>>().serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<Hash>, D::Error> {
        let hashes = Vec::<ContentHash>::deserialize(from)?;
        Ok(hashes.into_iter().map(|hash| hash.0).collect())
    }
}
