//! What a store should be, in memory: shards as lists of documents.

use std::collections::{BTreeMap, BTreeSet};

use silo_core::{ContentHash, RootHash, Selection, ShardId, SourceId, merkle};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    Live,
    Suspended,
    Removed,
}

#[derive(Debug, Clone)]
pub struct Doc {
    pub hash: ContentHash,
    pub text: String,
    /// Sorted.
    pub uris: Vec<String>,
    pub withdrawn: bool,
    /// The requests that withhold it.
    pub holds: BTreeSet<u64>,
}

impl Doc {
    /// Whether it is retrieved, where its shard is.
    pub fn is_live(&self) -> bool {
        !self.withdrawn && self.holds.is_empty()
    }
}

#[derive(Debug, Clone)]
pub struct RefShard {
    pub source: SourceId,
    pub state: State,
    /// In the order of their numbers.
    pub docs: Vec<Doc>,
}

/// Documents by their numbers, or all that is left of a shard.
pub type Parts = Vec<(ShardId, Option<BTreeSet<usize>>)>;

/// A change that a restore must do again.
#[derive(Debug, Clone)]
pub enum Change {
    Withdraw(Parts),
    /// What a request withholds.
    Hold(u64, Parts),
    /// What a request withholds is withdrawn, but for what is put back.
    Uphold(u64, Parts),
    Release(u64),
    Suspend(ShardId),
    Resume(ShardId),
}

#[derive(Debug, Clone, Default)]
pub struct Reference {
    pub shards: BTreeMap<ShardId, RefShard>,
    /// Every number that was ever given out, also by a store that was replaced since.
    pub seen: BTreeSet<ShardId>,
    /// All changes since the beginning.
    pub log: Vec<Change>,
}

/// What a document is to a search: a text that several shards of a source hold is one.
pub type Visible<'a> = BTreeMap<(SourceId, ContentHash), &'a str>;

pub fn numbered(texts: &[(String, String)]) -> Vec<Doc> {
    let mut by_text: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (uri, text) in texts {
        by_text.entry(text).or_default().insert(uri);
    }
    let doc = |(text, uris): (&str, BTreeSet<&str>)| Doc {
        hash: ContentHash::of(text.as_bytes()),
        text: text.to_owned(),
        uris: uris.into_iter().map(str::to_owned).collect(),
        withdrawn: false,
        holds: BTreeSet::new(),
    };
    let mut docs: Vec<Doc> = by_text.into_iter().map(doc).collect();
    docs.sort_by(|a, b| a.uris[0].cmp(&b.uris[0]).then_with(|| a.hash.cmp(&b.hash)));
    docs
}

impl Reference {
    pub fn in_state(&self, state: State) -> Vec<ShardId> {
        self.shards.iter().filter(|(_, s)| s.state == state).map(|(id, _)| *id).collect()
    }

    /// What a selection means now, shard by shard; numbers of documents, or none for all that is left of a shard.
    pub fn resolve(&self, selection: &Selection) -> Parts {
        let there = || self.shards.iter().filter(|(_, s)| s.state != State::Removed);
        let begins = |doc: &Doc, prefix: &str| doc.uris.iter().any(|uri| uri.starts_with(prefix));
        // A text goes from all shards of its source with any URI that it came under.
        let texts: BTreeSet<(&SourceId, ContentHash)> = match selection {
            Selection::UriPrefix { source, prefix } => there()
                .filter(|(_, s)| source.as_ref().is_none_or(|wanted| *wanted == s.source))
                .flat_map(|(_, s)| {
                    s.docs.iter().filter(|d| !d.withdrawn && begins(d, prefix)).map(|d| (&s.source, d.hash))
                })
                .collect(),
            _ => BTreeSet::new(),
        };
        let mut out = Vec::new();
        for (id, shard) in there() {
            let picked = |doc: &Doc| match selection {
                Selection::Shard(wanted) => wanted == id,
                Selection::Source(source) => *source == shard.source,
                Selection::Documents { source, documents } => *source == shard.source && documents.contains(&doc.hash),
                Selection::UriPrefix { .. } => texts.contains(&(&shard.source, doc.hash)),
            };
            let left: BTreeSet<usize> = (0..shard.docs.len()).filter(|&i| !shard.docs[i].withdrawn).collect();
            let hit: BTreeSet<usize> = left.iter().copied().filter(|&i| picked(&shard.docs[i])).collect();
            if hit.is_empty() {
                continue;
            }
            out.push((*id, (hit != left).then_some(hit)));
        }
        out
    }

    pub fn apply(&mut self, change: Change) {
        match &change {
            Change::Withdraw(parts) => self.withdraw(parts),
            Change::Uphold(request, parts) => {
                self.withdraw(parts);
                self.release(*request);
            }
            Change::Release(request) => self.release(*request),
            Change::Hold(request, parts) => {
                for (id, numbers) in parts {
                    let Some(shard) = self.shards.get_mut(id) else { continue };
                    let all = || (0..shard.docs.len()).filter(|&i| !shard.docs[i].withdrawn).collect();
                    let numbers: BTreeSet<usize> = numbers.clone().unwrap_or_else(all);
                    for i in numbers {
                        shard.docs[i].holds.insert(*request);
                    }
                }
            }
            Change::Suspend(id) => self.set(*id, State::Live, State::Suspended),
            Change::Resume(id) => self.set(*id, State::Suspended, State::Live),
        }
        self.log.push(change);
    }

    fn withdraw(&mut self, parts: &Parts) {
        for (id, numbers) in parts {
            let Some(shard) = self.shards.get_mut(id) else { continue };
            match numbers {
                None => shard.state = State::Removed,
                Some(numbers) => numbers.iter().for_each(|&i| shard.docs[i].withdrawn = true),
            }
        }
    }

    fn release(&mut self, request: u64) {
        let docs = self.shards.values_mut().flat_map(|s| &mut s.docs);
        for doc in docs {
            doc.holds.remove(&request);
        }
    }

    fn set(&mut self, id: ShardId, from: State, to: State) {
        if let Some(shard) = self.shards.get_mut(&id).filter(|s| s.state == from) {
            shard.state = to;
        }
    }

    /// What is withdrawn if a request is granted, but for some documents.
    pub fn withheld_parts(&self, id: u64, spare: &[(SourceId, ContentHash)]) -> Parts {
        let mut out = Vec::new();
        for (shard_id, shard) in self.shards.iter().filter(|(_, s)| s.state != State::Removed) {
            let left: BTreeSet<usize> = (0..shard.docs.len()).filter(|&i| !shard.docs[i].withdrawn).collect();
            let goes = |i: &usize| {
                let doc = &shard.docs[*i];
                doc.holds.contains(&id) && !spare.iter().any(|(s, d)| *s == shard.source && *d == doc.hash)
            };
            let hit: BTreeSet<usize> = left.iter().copied().filter(goes).collect();
            if !hit.is_empty() {
                out.push((*shard_id, (hit != left).then_some(hit)));
            }
        }
        out
    }

    /// What this was at a backup, with every change since done again.
    pub fn restored(backup: &Self, now: &Self) -> Self {
        let mut out = Self { seen: now.seen.clone(), ..backup.clone() };
        for change in &now.log[backup.log.len()..] {
            out.apply(change.clone());
        }
        out
    }

    /// The documents that a request sees which may see some shards and sources.
    pub fn visible(&self, sees: &dyn Fn(ShardId, &SourceId) -> bool) -> Visible<'_> {
        let shown = self.shards.iter().filter(|(id, s)| s.state == State::Live && sees(**id, &s.source));
        let docs = shown.flat_map(|(_, s)| s.docs.iter().filter(|d| d.is_live()).map(|d| (s.source.clone(), d)));
        docs.map(|(source, d)| ((source, d.hash), d.text.as_str())).collect()
    }

    pub fn root(&self) -> RootHash {
        let mut sources: BTreeMap<SourceId, Vec<ContentHash>> = BTreeMap::new();
        for (source, hash) in self.visible(&|_, _| true).into_keys() {
            sources.entry(source).or_default().push(hash);
        }
        let tree = |hashes: &Vec<ContentHash>| merkle::DocumentTree::default().with(hashes).0.root().unwrap();
        merkle::SourceTree::new(sources.iter().map(|(source, hashes)| (source, tree(hashes)))).root()
    }
}
