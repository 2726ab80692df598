//! From what is asked for to shards and document numbers.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};

use rusqlite::{Connection, OptionalExtension, params};
use silo_core::{ContentHash, Selection, ShardId, SourceId};

use super::shards::{COLUMNS, read_shard, shard_in};
use super::{Catalog, RemovalPart, ShardRecord, ShardState};
use crate::{Numbers, StoreError};

/// Up to so many batches of documents are read one by one.
const FEW_BATCHES: u64 = 2;

/// Where a text lies.
const NUMBERS: &str = "SELECT number FROM documents WHERE hash = ?1 AND shard_id = ?2";
const PLACES: &str = "SELECT shard_id, number FROM documents WHERE hash = ?1 AND uri IS NOT NULL";

/// Documents, shard by shard.
type Found = BTreeMap<ShardId, Numbers>;

impl Catalog {
    /// The numbers that documents with a hash have, or had, in a shard.
    pub(crate) fn numbers_of(&self, shard: ShardId, hash: ContentHash) -> Result<Vec<u32>, StoreError> {
        let key = params![hash.0.as_slice(), shard.0 as i64];
        self.run(|c| c.prepare_cached(NUMBERS)?.query_map(key, |r| r.get(0))?.collect())
    }

    /// What a selection means now: the documents that are in the store and not withdrawn, shard by shard. Costs what is selected, not what
    /// the store holds. Read as one: a purge may be forgetting documents meanwhile.
    pub(crate) fn resolve(&self, selection: &Selection) -> Result<Vec<RemovalPart>, StoreError> {
        let few = FEW_BATCHES * self.batch as u64;
        self.run(|c| Resolver { c, few, source: selection_source(selection), read: HashMap::new() }.resolve(selection))
    }
}

fn selection_source(selection: &Selection) -> Option<&SourceId> {
    match selection {
        Selection::Shard(_) => None,
        Selection::Source(source) | Selection::Documents { source, .. } => Some(source),
        Selection::UriPrefix { source, .. } => source.as_ref(),
    }
}

struct Resolver<'a> {
    c: &'a Connection,
    /// So many documents are read one by one, whichever shards they lie in.
    few: u64,
    source: Option<&'a SourceId>,
    /// Rows of shards that are there, read once.
    read: HashMap<ShardId, Option<ShardRecord>>,
}

impl Resolver<'_> {
    fn resolve(&mut self, selection: &Selection) -> rusqlite::Result<Vec<RemovalPart>> {
        let whole = |s: &ShardRecord| {
            let n_documents = s.n_documents - s.withdrawn.len();
            RemovalPart { shard: s.id, numbers: None, n_documents }
        };
        let found = match selection {
            Selection::Shard(id) => return Ok(self.shard(*id)?.map(whole).into_iter().collect()),
            Selection::Source(_) => return Ok(self.shards()?.iter().map(whole).collect()),
            Selection::Documents { documents, .. } => self.with_hashes(documents)?,
            Selection::UriPrefix { prefix, .. } => {
                let mut found = self.with_prefix(prefix)?;
                self.add_copies(&mut found)?;
                found
            }
        };
        let mut parts = Vec::new();
        for (id, numbers) in found {
            let Some(shard) = self.shard(id)? else { continue };
            let numbers = numbers.without(&shard.withdrawn).without(&shard.gone);
            let n_documents = numbers.len();
            if n_documents > 0 {
                // All that is left of a shard is the shard.
                let numbers = (n_documents < shard.n_documents - shard.withdrawn.len()).then_some(numbers);
                parts.push(RemovalPart { shard: id, numbers, n_documents });
            }
        }
        Ok(parts)
    }

    /// The row of a shard that is live or suspended, and of the source that is asked for.
    fn shard(&mut self, id: ShardId) -> rusqlite::Result<Option<&ShardRecord>> {
        if let Entry::Vacant(place) = self.read.entry(id) {
            let there = |s: &ShardRecord| s.state != ShardState::Removed && self.source.is_none_or(|x| s.source == *x);
            place.insert(shard_in(self.c, id)?.filter(there));
        }
        Ok(self.read[&id].as_ref())
    }

    fn shards(&self) -> rusqlite::Result<Vec<ShardRecord>> {
        let sql = format!("{COLUMNS} AND state != 'removed' AND (?1 IS NULL OR name = ?1) ORDER BY shards.id");
        self.c.prepare(&sql)?.query_map([self.source.map(SourceId::as_str)], read_shard)?.collect()
    }

    fn with_hashes(&self, hashes: &[ContentHash]) -> rusqlite::Result<Found> {
        let (mut find, mut found) = (self.c.prepare(PLACES)?, Found::new());
        for hash in hashes {
            collect(&mut found, find.query([hash.0])?, u64::MAX)?;
        }
        Ok(found)
    }

    /// Documents of which a URI begins so. Few are read one by one; of many it is asked, shard by shard, where they begin and end.
    fn with_prefix(&self, prefix: &str) -> rusqlite::Result<Found> {
        let end = after_prefix(prefix);
        let (mut found, mut n) = (Found::new(), 0);
        for table in ["documents", "other_uris"] {
            let sql = format!("SELECT shard_id, number FROM {table} WHERE {}", between(1, end.is_some()));
            n += collect(&mut found, self.c.prepare(&sql)?.query(params![prefix, end])?, self.few)?;
        }
        if n < self.few {
            return Ok(found);
        }
        let of_shard = |s: &ShardRecord| Ok((s.id, self.of_shard_with_prefix(s.id, prefix, end.as_deref())?));
        self.shards()?.iter().map(of_shard).collect()
    }

    /// Numbers follow the first URIs, so that those with a common beginning are a range, which is read as one where nothing of the shard was
    /// purged.
    fn of_shard_with_prefix(&self, shard: ShardId, prefix: &str, end: Option<&str>) -> rusqlite::Result<Numbers> {
        let (c, within) = (self.c, format!("shard_id = ?1 AND {}", between(2, end.is_some())));
        let bounds = params![shard.0 as i64, prefix, end];
        let mut numbers = Numbers::default();
        let sql = format!("SELECT number FROM other_uris WHERE {within}");
        for number in c.prepare(&sql)?.query_map(bounds, |r| r.get(0))? {
            numbers.insert(number?);
        }
        let by_uri = "documents INDEXED BY documents_of_shard_by_uri";
        let edge = |order: &str| {
            let sql =
                format!("SELECT number FROM {by_uri} WHERE {within} ORDER BY uri {order}, number {order} LIMIT 1");
            c.query_row(&sql, bounds, |r| r.get::<_, u32>(0)).optional()
        };
        let (Some(first), Some(last)) = (edge("ASC")?, edge("DESC")?) else { return Ok(numbers) };
        let purged = "SELECT EXISTS (SELECT 1 FROM documents WHERE shard_id = ?1 AND uri IS NULL)";
        if c.query_row(purged, [shard.0 as i64], |r| r.get(0))? {
            for number in
                c.prepare(&format!("SELECT number FROM {by_uri} WHERE {within}"))?.query_map(bounds, |r| r.get(0))?
            {
                numbers.insert(number?);
            }
        } else {
            numbers.insert_range(first..last + 1);
        }
        Ok(numbers)
    }

    /// Adds to documents what other shards of their sources hold of the same texts: a text goes with any URI that it came under.
    fn add_copies(&mut self, found: &mut Found) -> rusqlite::Result<()> {
        for hash in self.duplicates_among(found)? {
            let mut places = Found::new();
            collect(&mut places, self.c.prepare_cached(PLACES)?.query([hash])?, u64::MAX)?;
            let (mut there, mut hit) = (Vec::new(), BTreeSet::new());
            for (id, number) in places.iter().flat_map(|(id, numbers)| numbers.iter().map(|n| (*id, n))) {
                let Some(shard) = self.shard(id)? else { continue };
                if shard.withdrawn.contains(number) || shard.gone.contains(number) {
                    continue;
                }
                if found.get(&id).is_some_and(|numbers| numbers.contains(number)) {
                    hit.insert(shard.source.clone());
                }
                there.push((id, number, shard.source.clone()));
            }
            for (id, number, _) in there.into_iter().filter(|(_, _, source)| hit.contains(source)) {
                found.entry(id).or_default().insert(number);
            }
        }
        Ok(())
    }

    /// The texts that several shards hold, or held: of these documents, or all if that are fewer.
    fn duplicates_among(&self, found: &Found) -> rusqlite::Result<BTreeSet<[u8; 32]>> {
        let n: u64 = found.values().map(Numbers::len).sum();
        let most = n.saturating_add(1).min(i64::MAX as u64) as i64;
        let some: BTreeSet<[u8; 32]> = self
            .c
            .prepare("SELECT hash FROM duplicates LIMIT ?1")?
            .query_map([most], |r| r.get(0))?
            .collect::<rusqlite::Result<_>>()?;
        if some.len() as u64 <= n {
            return Ok(some);
        }
        let sql = "SELECT hash FROM documents JOIN duplicates USING (hash) WHERE shard_id = ?1 AND number = ?2";
        let (mut is_duplicate, mut out) = (self.c.prepare(sql)?, BTreeSet::new());
        for (id, number) in found.iter().flat_map(|(id, numbers)| numbers.iter().map(|n| (id.0 as i64, n))) {
            out.extend(is_duplicate.query_row(params![id, number], |r| r.get::<_, [u8; 32]>(0)).optional()?);
        }
        Ok(out)
    }
}

/// A condition on `uri`: from parameter `?{first}` on, and before the next one, which is NULL if there is no end. Written so that SQLite reads
/// that part of an index only.
fn between(first: usize, has_end: bool) -> String {
    let end = first + 1;
    if has_end { format!("uri >= ?{first} AND uri < ?{end}") } else { format!("uri >= ?{first} AND ?{end} IS NULL") }
}

/// Adds documents to those of their shards, until there are `most`; gives how many were read.
fn collect(found: &mut Found, mut rows: rusqlite::Rows<'_>, most: u64) -> rusqlite::Result<u64> {
    let mut n = 0;
    while let Some(row) = rows.next()?.filter(|_| n < most) {
        found.entry(ShardId(row.get::<_, i64>(0)? as u64)).or_default().insert(row.get(1)?);
        n += 1;
    }
    Ok(n)
}

/// The least text that is greater than all that begin with `prefix`; `None` if there is none. UTF-8 is compared as its characters are.
fn after_prefix(prefix: &str) -> Option<String> {
    let mut characters: Vec<char> = prefix.chars().collect();
    while let Some(last) = characters.pop() {
        if let Some(next) = (u32::from(last) + 1..=u32::from(char::MAX)).find_map(char::from_u32) {
            characters.push(next);
            return Some(characters.into_iter().collect());
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::super::schema::SCHEMA;
    use super::*;

    #[test]
    fn of_an_index_only_what_is_asked_for_is_read() {
        let c = Connection::open_in_memory().unwrap();
        c.execute_batch(SCHEMA).unwrap();
        let within = |has_end| format!("shard_id = ?1 AND {}", between(2, has_end));
        for (table, condition, plan) in [
            ("documents", between(1, true), "uri>? AND uri<?"),
            ("documents", between(1, false), "uri>?"),
            ("other_uris", between(1, true), "uri>? AND uri<?"),
            ("other_uris", within(true), "shard_id=? AND uri>? AND uri<?"),
            ("documents INDEXED BY documents_of_shard_by_uri", within(true), "shard_id=? AND uri>? AND uri<?"),
        ] {
            let sql = format!("EXPLAIN QUERY PLAN SELECT number FROM {table} WHERE {condition}");
            let found: Vec<String> = {
                let mut statement = c.prepare(&sql).unwrap();
                statement.raw_bind_parameter(1, 1).unwrap();
                statement.raw_query().mapped(|r| r.get(3)).collect::<Result<_, _>>().unwrap()
            };
            assert!(found.len() == 1 && found[0].contains(&format!("({plan})")), "{sql}: {found:?}");
        }
    }

    #[test]
    fn what_begins_so_ends_there() {
        assert_eq!(after_prefix("pkg:a").unwrap(), "pkg:b");
        assert_eq!(after_prefix("x\u{d7ff}").unwrap(), "x\u{e000}");
        assert_eq!(after_prefix(&format!("a{}", char::MAX)).unwrap(), "b");
        assert_eq!(after_prefix(&char::MAX.to_string()), None);
        for text in ["pkg:a", "pkg:a/b", "pkg:a\u{10ffff}z"] {
            assert!(*text < *after_prefix("pkg:a").unwrap());
        }
    }
}
