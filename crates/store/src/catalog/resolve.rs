//! From what is asked for to shards and document numbers.

use std::collections::HashMap;

use rusqlite::{OptionalExtension, params};
use silo_core::{ContentHash, Selection, ShardId, SourceId};

use super::shards::{COLUMNS, read_shard};
use super::{Catalog, RemovalPart, ShardRecord, ShardState};
use crate::{Numbers, StoreError};

/// So many documents are read one by one, whichever shards they lie in.
const FEW_DOCUMENTS: u64 = 4000;

impl Catalog {
    /// What a selection means now: the documents that are in the store and not withdrawn, shard by shard.
    pub(crate) fn resolve(&self, selection: &Selection) -> Result<Vec<RemovalPart>, StoreError> {
        let shards: Vec<ShardRecord> = match selection {
            Selection::Shard(id) => self.shard(*id)?.into_iter().filter(|s| s.state != ShardState::Removed).collect(),
            Selection::Source(source) | Selection::Documents { source, .. } => self.shards_of(Some(source))?,
            Selection::UriPrefix { source, .. } => self.shards_of(source.as_ref())?,
        };
        let mut found = match selection {
            Selection::Shard(_) | Selection::Source(_) => None,
            Selection::Documents { documents, .. } => Some(self.with_hashes(documents)?),
            Selection::UriPrefix { prefix, .. } => Some(self.with_copies(&shards, self.with_prefix(&shards, prefix)?)?),
        };
        let mut parts = Vec::new();
        for shard in &shards {
            let n_live: u64 = shard.n_documents - shard.withdrawn.len();
            let Some(found) = &mut found else {
                parts.push(RemovalPart { shard: shard.id, numbers: None, n_documents: n_live });
                continue;
            };
            let Some(numbers) = found.remove(&shard.id) else { continue };
            let numbers = numbers.without(&shard.withdrawn).without(&shard.gone);
            let n_documents = numbers.len();
            if n_documents > 0 {
                // All that is left of a shard is the shard.
                let numbers = (n_documents < n_live).then_some(numbers);
                parts.push(RemovalPart { shard: shard.id, numbers, n_documents });
            }
        }
        Ok(parts)
    }

    fn shards_of(&self, source: Option<&SourceId>) -> Result<Vec<ShardRecord>, StoreError> {
        let sql = format!("{COLUMNS} AND state != 'removed' AND (?1 IS NULL OR name = ?1) ORDER BY shards.id");
        let name = source.map(SourceId::as_str);
        self.run(|c| c.prepare(&sql)?.query_map([name], read_shard)?.collect())
    }

    fn with_hashes(&self, hashes: &[ContentHash]) -> Result<HashMap<ShardId, Numbers>, StoreError> {
        let sql = "SELECT shard_id, number FROM documents WHERE hash = ?1 AND uri IS NOT NULL";
        self.run(|c| {
            let (mut find, mut found) = (c.prepare(sql)?, HashMap::new());
            for hash in hashes {
                collect(&mut found, find.query([hash.0])?, u64::MAX)?;
            }
            Ok(found)
        })
    }

    /// Documents of which a URI begins so. Few are read one by one; of many it is asked, shard by shard, where they begin and end.
    fn with_prefix(&self, shards: &[ShardRecord], prefix: &str) -> Result<HashMap<ShardId, Numbers>, StoreError> {
        let end = after_prefix(prefix);
        let few = self.run(|c| {
            let (mut found, mut n) = (HashMap::new(), 0);
            for table in ["documents", "other_uris"] {
                let sql = format!("SELECT shard_id, number FROM {table} WHERE uri >= ?1 AND (?2 IS NULL OR uri < ?2)");
                n += collect(&mut found, c.prepare(&sql)?.query(params![prefix, end])?, FEW_DOCUMENTS)?;
            }
            Ok((n < FEW_DOCUMENTS).then_some(found))
        })?;
        if let Some(found) = few {
            return Ok(found);
        }
        let of_shard = |s: &ShardRecord| Ok((s.id, self.of_shard_with_prefix(s.id, prefix, end.as_deref())?));
        shards.iter().map(of_shard).collect()
    }

    /// Numbers follow the first URIs, so that those with a common beginning are a range, which is read as one where nothing of the shard was
    /// purged.
    fn of_shard_with_prefix(&self, shard: ShardId, prefix: &str, end: Option<&str>) -> Result<Numbers, StoreError> {
        let within = "shard_id = ?1 AND uri >= ?2 AND (?3 IS NULL OR uri < ?3)";
        self.run(|c| {
            let bounds = params![shard.0 as i64, prefix, end];
            let mut numbers = Numbers::default();
            let sql = format!("SELECT number FROM other_uris WHERE {within}");
            for number in c.prepare(&sql)?.query_map(bounds, |r| r.get(0))? {
                numbers.insert(number?);
            }
            let edge = |order: &str| {
                let sql = format!(
                    "SELECT number FROM documents INDEXED BY documents_of_shard_by_uri WHERE {within}
                     ORDER BY uri {order}, number {order} LIMIT 1"
                );
                c.query_row(&sql, bounds, |r| r.get::<_, u32>(0)).optional()
            };
            let (Some(first), Some(last)) = (edge("ASC")?, edge("DESC")?) else { return Ok(numbers) };
            let purged = "SELECT EXISTS (SELECT 1 FROM documents WHERE shard_id = ?1 AND uri IS NULL)";
            if c.query_row(purged, [shard.0 as i64], |r| r.get(0))? {
                let sql = format!("SELECT number FROM documents INDEXED BY documents_of_shard_by_uri WHERE {within}");
                for number in c.prepare(&sql)?.query_map(bounds, |r| r.get(0))? {
                    numbers.insert(number?);
                }
            } else {
                numbers.insert_range(first..last + 1);
            }
            Ok(numbers)
        })
    }

    /// Adds to documents what other shards of their sources hold of the same texts: a text goes with any URI that it came under.
    fn with_copies(
        &self,
        shards: &[ShardRecord],
        mut found: HashMap<ShardId, Numbers>,
    ) -> Result<HashMap<ShardId, Numbers>, StoreError> {
        let by_id: HashMap<ShardId, &ShardRecord> = shards.iter().map(|s| (s.id, s)).collect();
        self.run(|c| {
            let sql = "SELECT shard_id, number FROM documents WHERE hash = ?1 AND uri IS NOT NULL";
            let mut places_of = c.prepare(sql)?;
            for hash in c.prepare("SELECT hash FROM duplicates")?.query_map([], |r| r.get::<_, [u8; 32]>(0))? {
                let mut places: HashMap<ShardId, Numbers> = HashMap::new();
                collect(&mut places, places_of.query([hash?])?, u64::MAX)?;
                let there =
                    |shard: &ShardRecord, number| !shard.withdrawn.contains(number) && !shard.gone.contains(number);
                let places: Vec<(&ShardRecord, u32)> = places
                    .iter()
                    .filter_map(|(id, numbers)| Some((*by_id.get(id)?, numbers)))
                    .flat_map(|(shard, numbers)| numbers.iter().map(move |n| (shard, n)))
                    .filter(|(shard, number)| there(shard, *number))
                    .collect();
                let hit = |(shard, number): &&(&ShardRecord, u32)| {
                    found.get(&shard.id).is_some_and(|numbers| numbers.contains(*number))
                };
                let sources: Vec<SourceId> = places.iter().filter(hit).map(|(s, _)| s.source.clone()).collect();
                for (shard, number) in places.iter().filter(|(s, _)| sources.contains(&s.source)) {
                    found.entry(shard.id).or_default().insert(*number);
                }
            }
            Ok(found)
        })
    }
}

/// Adds documents to those of their shards, until there are `most`; gives how many were read.
fn collect(found: &mut HashMap<ShardId, Numbers>, mut rows: rusqlite::Rows<'_>, most: u64) -> rusqlite::Result<u64> {
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
    use super::after_prefix;

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
