//! Who calls: roles, and the tokens by which callers are known.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use silo_core::{ContentHash, SourceId};
use silo_log::write_whole;
use silo_store::now_unix_ms;

/// What a caller is there for. What each may call is decided by the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Sees the store's state, and searches it.
    Reader,
    /// Generates and scores.
    Generator,
    /// A rights holder, who sees the state of own sources.
    Owner,
    /// Declares sources; adds, rebuilds, suspends and resumes shards.
    Curator,
    /// Withdraws.
    Legal,
    /// Sees everything, and changes nothing.
    Auditor,
    /// May do everything.
    Admin,
}

impl Role {
    /// All of them.
    pub const ALL: [Self; 7] =
        [Self::Reader, Self::Generator, Self::Owner, Self::Curator, Self::Legal, Self::Auditor, Self::Admin];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Reader => "reader",
            Self::Generator => "generator",
            Self::Owner => "owner",
            Self::Curator => "curator",
            Self::Legal => "legal",
            Self::Auditor => "auditor",
            Self::Admin => "admin",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Who calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// The name of the token.
    pub name: String,
    /// What for.
    pub role: Role,
    /// The sources that are all there is for this caller; `None` for no such limit.
    pub sources: Option<BTreeSet<SourceId>>,
}

impl Caller {
    /// Whoever reaches a server that knows no tokens.
    pub fn local() -> Self {
        Self { name: "local".into(), role: Role::Admin, sources: None }
    }

    /// Whether text of the store may be shown to this caller, as far as sources permit it.
    pub fn may_search(&self) -> bool {
        matches!(self.role, Role::Reader | Role::Curator | Role::Legal | Role::Auditor | Role::Admin)
    }

    /// Whether a source exists for this caller.
    pub fn sees(&self, source: &SourceId) -> bool {
        self.sources.as_ref().is_none_or(|sources| sources.contains(source))
    }
}

/// A token as it is kept: its hash. The token itself is shown once, when it is made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenRecord {
    /// Stands in the log for what is done with it.
    pub name: String,
    /// What for.
    pub role: Role,
    /// The sources that are all there is for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sources: Option<BTreeSet<SourceId>>,
    /// SHA-256 of the token, which is 32 random bytes: nothing is won by guessing.
    pub sha256: ContentHash,
    /// When it was made, in milliseconds since 1970.
    pub created_unix_ms: i64,
    /// From when on it is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_unix_ms: Option<i64>,
}

/// Why tokens could not be read or changed.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages document the variants and their fields")]
pub enum AccessError {
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: std::io::Error },
    #[error(
        "{path} is no file of tokens ({reason}); restore it, or delete it and make new tokens with `silo token create`"
    )]
    Damaged { path: PathBuf, reason: String },
    #[error("there is a token '{0}' already; revoke it first, or choose another name")]
    Exists(String),
    #[error("there is no token '{0}'; `silo token ls` lists them")]
    Unknown(String),
    #[error("'{0}' is no name of a token: 1 to 63 of a-z, 0-9, '-', '_', '.', starting with a letter or digit")]
    Name(String),
    #[error("a token for an owner must name the owner's sources")]
    OwnerWithoutSources,
    #[error("a token that is limited to sources must name one")]
    NoSources,
}

/// A file of tokens.
#[derive(Debug, Clone)]
pub struct TokenFile {
    path: PathBuf,
}

/// What is asked of a new token.
#[derive(Debug, Clone)]
pub struct NewToken {
    /// Its name.
    pub name: String,
    /// What for.
    pub role: Role,
    /// The sources that it is limited to.
    pub sources: Option<BTreeSet<SourceId>>,
    /// From when on it is refused, in milliseconds since 1970.
    pub expires_unix_ms: Option<i64>,
}

fn check(role: Role, sources: Option<&BTreeSet<SourceId>>) -> Result<(), AccessError> {
    match sources {
        None if role == Role::Owner => Err(AccessError::OwnerWithoutSources),
        Some(sources) if sources.is_empty() => Err(AccessError::NoSources),
        _ => Ok(()),
    }
}

impl TokenFile {
    /// The file at `path`, which need not be there yet.
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_owned() }
    }

    fn io(&self) -> impl Fn(std::io::Error) -> AccessError + '_ {
        |source| AccessError::Io { path: self.path.clone(), source }
    }

    /// All tokens, by their names.
    pub fn list(&self) -> Result<Vec<TokenRecord>, AccessError> {
        let text = match fs::read_to_string(&self.path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            text => text.map_err(self.io())?,
        };
        let damaged = |reason: String| AccessError::Damaged { path: self.path.clone(), reason };
        let records: Vec<TokenRecord> = serde_json::from_str(&text).map_err(|e| damaged(e.to_string()))?;
        let mut names = BTreeSet::new();
        for record in &records {
            check(record.role, record.sources.as_ref()).map_err(|e| damaged(format!("'{}': {e}", record.name)))?;
            if !names.insert(&record.name) {
                return Err(damaged(format!("'{}' is there twice", record.name)));
            }
        }
        Ok(records)
    }

    /// Makes a token and returns it. It is kept nowhere: only its hash is.
    pub fn create(&self, new: NewToken) -> Result<String, AccessError> {
        // The rule for names of sources is the one for names.
        if new.name.parse::<SourceId>().is_err() {
            return Err(AccessError::Name(new.name));
        }
        check(new.role, new.sources.as_ref())?;
        let token = format!("silo_{}", hex::encode(rand::random::<[u8; 32]>()));
        let NewToken { name, role, sources, expires_unix_ms } = new;
        self.change(|records| {
            if records.iter().any(|r| r.name == name) {
                return Err(AccessError::Exists(name));
            }
            let (sha256, created_unix_ms) = (ContentHash::of(token.as_bytes()), now_unix_ms());
            records.push(TokenRecord { name, role, sources, sha256, created_unix_ms, expires_unix_ms });
            Ok(())
        })?;
        Ok(token)
    }

    /// Takes a token away: a server refuses it from the next call on.
    pub fn revoke(&self, name: &str) -> Result<(), AccessError> {
        self.change(|records| {
            let before = records.len();
            records.retain(|r| r.name != name);
            if records.len() < before { Ok(()) } else { Err(AccessError::Unknown(name.to_owned())) }
        })
    }

    /// Writes the file anew, and puts it in the place of the old one.
    fn change(&self, change: impl FnOnce(&mut Vec<TokenRecord>) -> Result<(), AccessError>) -> Result<(), AccessError> {
        let folder = self.path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        fs::create_dir_all(folder).map_err(self.io())?;
        let lock = format!("{}.lock", self.path.display());
        let one_at_a_time = OpenOptions::new().write(true).mode(0o600).create(true).truncate(false).open(lock);
        let one_at_a_time = one_at_a_time.map_err(self.io())?;
        one_at_a_time.lock().map_err(self.io())?;
        let mut records = self.list()?;
        change(&mut records)?;
        records.sort_by(|a, b| a.name.cmp(&b.name));
        let text = serde_json::to_string_pretty(&records).map_err(|e| (self.io())(e.into()))? + "\n";
        // What was revoked stays so when the power fails.
        write_whole(&self.path, &text, true).map_err(self.io())
    }

    /// What differs as soon as the file does.
    fn stamp(&self) -> Option<Stamp> {
        let m = fs::metadata(&self.path).ok()?;
        Some(Stamp { inode: m.ino(), bytes: m.len(), seconds: m.ctime(), nanoseconds: m.ctime_nsec() })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    bytes: u64,
    seconds: i64,
    nanoseconds: i64,
}

/// Why a caller was not let in.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages document the variants and their fields")]
pub enum Denied {
    #[error("the call has no token; send it as `authorization: Bearer …`")]
    NoToken,
    #[error("the token is not known; it may have been revoked")]
    Unknown,
    #[error("the token '{0}' has expired; ask for a new one")]
    Expired(String),
    #[error("the tokens cannot be read; the server's log says why")]
    Unreadable(#[from] AccessError),
}

/// Knows callers by their tokens.
#[derive(Debug)]
pub struct Access {
    /// None where whoever reaches the server may do everything.
    file: Option<TokenFile>,
    known: Mutex<Known>,
    /// A clock that is put back does not revive a token.
    latest_unix_ms: AtomicI64,
}

#[derive(Debug, Default)]
struct Known {
    stamp: Option<Stamp>,
    tokens: HashMap<ContentHash, TokenRecord>,
}

impl Access {
    /// Callers are known by the tokens in a file, or all are [`Caller::local`].
    pub fn new(tokens: Option<&Path>) -> Self {
        let file = tokens.map(TokenFile::new);
        Self { file, known: Mutex::default(), latest_unix_ms: AtomicI64::new(0) }
    }

    /// Who calls with a token.
    pub fn caller(&self, token: Option<&str>) -> Result<Caller, Denied> {
        let Some(file) = &self.file else { return Ok(Caller::local()) };
        let token = token.ok_or(Denied::NoToken)?;
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let stamp = file.stamp();
        if known.stamp != stamp || stamp.is_none() {
            // What cannot be read lets nobody in.
            *known = Known::default();
            let tokens = file.list()?.into_iter().map(|r| (r.sha256, r)).collect();
            *known = Known { stamp, tokens };
        }
        let record = known.tokens.get(&ContentHash::of(token.as_bytes())).ok_or(Denied::Unknown)?;
        let now = now_unix_ms();
        let now = self.latest_unix_ms.fetch_max(now, Ordering::Relaxed).max(now);
        if record.expires_unix_ms.is_some_and(|expires| now >= expires) {
            return Err(Denied::Expired(record.name.clone()));
        }
        Ok(Caller { name: record.name.clone(), role: record.role, sources: record.sources.clone() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn new(name: &str, role: Role) -> NewToken {
        NewToken { name: name.into(), role, sources: None, expires_unix_ms: None }
    }

    #[test]
    fn a_token_lets_in_until_it_is_revoked_or_expires() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("deep/tokens.json");
        let (file, access) = (TokenFile::new(&path), Access::new(Some(&path)));
        assert!(matches!(access.caller(None), Err(Denied::NoToken)));
        assert!(matches!(access.caller(Some("silo_")), Err(Denied::Unknown)));
        let ann = file.create(new("ann", Role::Legal)).unwrap();
        let sources = Some(BTreeSet::from(["one".parse().unwrap()]));
        let bob = file.create(NewToken { sources: sources.clone(), ..new("bob", Role::Owner) }).unwrap();
        let old =
            file.create(NewToken { expires_unix_ms: Some(now_unix_ms() - 1), ..new("old", Role::Admin) }).unwrap();
        assert_eq!(access.caller(Some(&ann)).unwrap(), Caller { name: "ann".into(), role: Role::Legal, sources: None });
        let caller = access.caller(Some(&bob)).unwrap();
        assert!(caller.sees(&"one".parse().unwrap()) && !caller.sees(&"two".parse().unwrap()));
        assert!(matches!(access.caller(Some(&old)), Err(Denied::Expired(name)) if name == "old"));
        let text = fs::read_to_string(&path).unwrap();
        assert!([&ann, &bob, &old].iter().all(|token| !text.contains(token.trim_start_matches("silo_"))));
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        file.revoke("ann").unwrap();
        assert!(matches!(access.caller(Some(&ann)), Err(Denied::Unknown)));
        assert!(access.caller(Some(&bob)).is_ok());
        fs::write(&path, "[{]").unwrap();
        assert!(matches!(access.caller(Some(&bob)), Err(Denied::Unreadable(AccessError::Damaged { .. }))));
        fs::remove_file(&path).unwrap();
        assert!(matches!(access.caller(Some(&bob)), Err(Denied::Unknown)));
    }

    #[test]
    fn a_clock_that_is_put_back_revives_nothing() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("tokens.json");
        let token = TokenFile::new(&path)
            .create(NewToken { expires_unix_ms: Some(now_unix_ms() + 3_600_000), ..new("ann", Role::Reader) })
            .unwrap();
        let access = Access::new(Some(&path));
        assert!(access.caller(Some(&token)).is_ok());
        access.latest_unix_ms.store(now_unix_ms() + 3_600_000, Ordering::Relaxed);
        assert!(matches!(access.caller(Some(&token)), Err(Denied::Expired(_))));
    }

    #[test]
    fn senseless_tokens_are_refused() {
        let root = tempfile::tempdir().unwrap();
        let file = TokenFile::new(&root.path().join("tokens.json"));
        assert!(matches!(file.create(new("A b", Role::Reader)), Err(AccessError::Name(_))));
        assert!(matches!(file.create(new("own", Role::Owner)), Err(AccessError::OwnerWithoutSources)));
        let nothing = NewToken { sources: Some(BTreeSet::new()), ..new("x", Role::Reader) };
        assert!(matches!(file.create(nothing), Err(AccessError::NoSources)));
        file.create(new("ann", Role::Reader)).unwrap();
        assert!(matches!(file.create(new("ann", Role::Admin)), Err(AccessError::Exists(_))));
        assert!(matches!(file.revoke("bob"), Err(AccessError::Unknown(_))));
        assert_eq!(file.list().unwrap().len(), 1);
        assert_eq!(Access::new(None).caller(None).unwrap(), Caller::local());
    }
}
