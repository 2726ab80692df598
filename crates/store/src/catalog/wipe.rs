//! Overwriting what SQLite leaves behind of what was deleted.
//!
//! With `secure_delete` it overwrites rows that are deleted and pages that are given up. But where it has moved rows from one page to
//! another, their old bytes stay between the row pointers and the rows that were left (file format: "unallocated space" of a b-tree page).

use std::ops::Range;

use rusqlite::{Connection, OptionalExtension, Transaction, params};

use super::{Catalog, in_transaction};
use crate::StoreError;
use crate::boundary::Boundary;

/// Rows that are about as much work as a page.
const ROWS_PER_PAGE: usize = 8;
/// How often it is tried to get through the pages without a change coming between.
const TRIES: usize = 4;
/// Pages that are no b-tree begin with the number of another, whose first byte is no kind of b-tree below this (128 GiB of pages).
const MOST_PAGES: u32 = 0x0200_0000;

impl Catalog {
    /// Whether an addition was struck out, or what a request held, and the pages were not wiped since.
    pub(crate) fn is_stale(&self) -> Result<bool, StoreError> {
        self.run(|c| Ok(!struck_out(c)?.is_empty() || !stale_requests(c)?.is_empty()))
    }

    /// Empties the write-ahead log, in which a crash may have left what never came to be. While another process reads it is left to the next
    /// purge.
    pub(crate) fn empty_log(&self) -> Result<(), StoreError> {
        self.run(|c| c.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())))
    }

    /// Overwrites what was deleted before the call, and empties the write-ahead log. Removals go on meanwhile. Fails while another process
    /// reads.
    pub(crate) fn wipe(&self) -> Result<(), StoreError> {
        let _alone = self.bulk.lock();
        let (struck_out, stale) = (self.run(struck_out)?, self.run(stale_requests)?);
        if !self.run(can_wipe)? {
            self.run(|c| c.execute_batch("VACUUM"))?; // writes the file anew, while removals wait
        } else if !(0..TRIES).try_fold(false, |done, _| if done { Ok(true) } else { self.wipe_in_batches() })? {
            self.transaction(|t| wipe_pages(t, 1, u32::MAX).map(drop))?;
        }
        let busy: bool = self.run(|c| c.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |r| r.get(0)))?;
        if busy {
            return Err(StoreError::CatalogRead { path: self.path.clone() });
        }
        let sql = "DELETE FROM shards WHERE id = ?1";
        struck_out.iter().try_for_each(|id| self.run(|c| c.execute(sql, [id]).map(drop)))?;
        let sql = "UPDATE optouts SET stale = 0 WHERE id = ?1 AND stale = ?2";
        stale.iter().try_for_each(|(id, step)| self.run(|c| c.execute(sql, [id, step]).map(drop)))
    }

    /// Wipes all pages, some at a time. False if something was changed between: SQLite may have moved a page that was not wiped yet to
    /// where others had been.
    fn wipe_in_batches(&self) -> Result<bool, StoreError> {
        let n = u32::try_from(self.batch.div_ceil(ROWS_PER_PAGE)).unwrap_or(u32::MAX);
        let (mut first, mut changes, mut undisturbed) = (1, None, true);
        loop {
            let mut connection = self.lock();
            undisturbed &= changes.is_none_or(|n| n == connection.total_changes());
            let wiped = in_transaction(&mut connection, |t| wipe_pages(t, first, n));
            if !wiped.map_err(|e| Self::error(&self.path, e))? {
                return Ok(undisturbed);
            }
            changes = Some(connection.total_changes());
            drop(connection);
            self.at(Boundary::BatchCommitted);
            first = first.saturating_add(n);
        }
    }
}

/// Shards that were prepared, of which all documents were struck out again. One that is being prepared has documents, or the lock of bulk work.
fn struck_out(c: &Connection) -> rusqlite::Result<Vec<i64>> {
    let sql = "SELECT id FROM shards WHERE state = 'entering'
               AND NOT EXISTS (SELECT 1 FROM documents WHERE shard_id = shards.id)";
    c.prepare(sql)?.query_map([], |r| r.get(0))?.collect()
}

/// Requests of which something was struck out, and by which step: a later one, after a wipe has begun, needs another wipe.
fn stale_requests(c: &Connection) -> rusqlite::Result<Vec<(i64, i64)>> {
    c.prepare("SELECT id, stale FROM optouts WHERE stale > 0")?.query_map([], |r| Ok((r.get(0)?, r.get(1)?)))?.collect()
}

/// Whether pages can be overwritten one by one: this SQLite must be built for it (`.cargo/config.toml`).
fn can_wipe(c: &Connection) -> rusqlite::Result<bool> {
    let built = c.query_row("SELECT sqlite_compileoption_used('ENABLE_DBPAGE_VTAB')", [], |r| r.get::<_, bool>(0))?;
    Ok(built && n_pages(c)? < MOST_PAGES)
}

fn n_pages(c: &Connection) -> rusqlite::Result<u32> {
    c.query_row("PRAGMA page_count", [], |r| r.get(0))
}

/// Wipes at most `n` pages; false if there are none from the first on.
fn wipe_pages(t: &Transaction<'_>, first: u32, n: u32) -> rusqlite::Result<bool> {
    let last = n_pages(t)?.min(first.saturating_add(n - 1));
    for number in first..=last {
        wipe_page(t, number)?;
    }
    Ok(last >= first)
}

fn wipe_page(c: &Connection, number: u32) -> rusqlite::Result<()> {
    let page = "SELECT data FROM sqlite_dbpage WHERE pgno = ?1";
    let page = c.prepare_cached(page)?.query_row([number], |r| r.get::<_, Vec<u8>>(0)).optional()?;
    let Some(mut page) = page else { return Ok(()) };
    let Some(unused) = unallocated(&page, number) else { return Ok(()) };
    if page[unused.clone()].iter().all(|byte| *byte == 0) {
        return Ok(());
    }
    page[unused].fill(0);
    c.prepare_cached("UPDATE sqlite_dbpage SET data = ?2 WHERE pgno = ?1")?.execute(params![number, page]).map(drop)
}

/// The unallocated space of a b-tree page; `None` of other pages.
fn unallocated(page: &[u8], number: u32) -> Option<Range<usize>> {
    let header = if number == 1 { 100 } else { 0 };
    let two_bytes = |at: usize| Some(usize::from(u16::from_be_bytes([*page.get(at)?, *page.get(at + 1)?])));
    let pointers = header
        + match page.get(header)? {
            2 | 5 => 12,
            10 | 13 => 8,
            _ => return None,
        };
    let start = pointers + 2 * two_bytes(header + 3)?;
    let end = match two_bytes(header + 5)? {
        0 => 1 << 16,
        end => end,
    };
    (start <= end && end <= page.len()).then_some(start..end)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;
    use std::path::Path;

    use rand::seq::SliceRandom;
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    fn uri(document: u32) -> String {
        format!("pkg:generic/{document:06}/{}", "x".repeat(document as usize % 90))
    }

    /// How many of the documents' URIs stand somewhere in the files.
    fn left(root: &Path, documents: &[u32]) -> usize {
        let mut bytes = fs::read(root.join("catalog.sqlite")).unwrap();
        bytes.extend(fs::read(root.join("catalog.sqlite-wal")).unwrap_or_default());
        let text = String::from_utf8_lossy(&bytes);
        let found: BTreeSet<u32> = text.split("pkg:generic/").filter_map(|t| t.get(..6)?.parse().ok()).collect();
        documents.iter().filter(|d| found.contains(d)).count()
    }

    #[test]
    fn nothing_that_was_deleted_stays_and_nothing_else_changes() {
        let root = tempfile::tempdir().unwrap();
        let catalog = Catalog::open(&root.path().join("catalog.sqlite")).unwrap();
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let mut documents: Vec<u32> = (0..20_000).collect();
        documents.shuffle(&mut rng);
        catalog
            .transaction(|t| {
                t.execute("INSERT INTO sources VALUES (1, 'one', '', '', '', '', '', '')", [])?;
                t.execute(
                    "INSERT INTO shards VALUES (1, 1, 'live', '', '', '', '', 0, 0, 0, NULL, NULL, NULL, NULL)",
                    [],
                )?;
                let mut add = t.prepare("INSERT INTO documents VALUES (1, ?1, randomblob(32), ?2)")?;
                documents.iter().try_for_each(|d| add.execute(params![d, uri(*d)]).map(drop))
            })
            .unwrap();
        let (gone, kept) = documents.split_at(6000);
        for chunk in gone.chunks(rng.random_range(20..200)) {
            catalog
                .transaction(|t| {
                    let mut forget = t.prepare("UPDATE documents SET uri = NULL WHERE shard_id = 1 AND number = ?1")?;
                    chunk.iter().try_for_each(|d| forget.execute([d]).map(drop))
                })
                .unwrap();
        }
        let rows = || -> Vec<(u32, Vec<u8>, Option<String>)> {
            let sql = "SELECT number, hash, uri FROM documents ORDER BY number";
            let read = |r: &rusqlite::Row<'_>| Ok((r.get(0)?, r.get(1)?, r.get(2)?));
            catalog.run(|c| c.prepare(sql)?.query_map([], read)?.collect()).unwrap()
        };
        let before = rows();
        catalog.run(|c| c.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)")).unwrap();
        let remains = left(root.path(), gone);
        assert!(remains > 0, "SQLite itself leaves some behind");
        assert!(catalog.run(can_wipe).unwrap());
        catalog.wipe().unwrap();
        assert_eq!(left(root.path(), gone), 0);
        assert_eq!(left(root.path(), kept), kept.len());
        assert_eq!((rows(), catalog.check().unwrap()), (before, Vec::new()));
    }

    #[test]
    fn what_is_no_b_tree_page_is_left_alone() {
        let mut page = vec![0; 512];
        assert_eq!(unallocated(&page, 2), None);
        page[..8].copy_from_slice(&[13, 0, 0, 0, 2, 1, 0x90, 0]);
        assert_eq!(unallocated(&page, 2), Some(12..400));
        assert_eq!(unallocated(&page, 1), None);
        page[5] = 3; // its rows would begin behind its end
        assert_eq!(unallocated(&page, 2), None);
    }
}
