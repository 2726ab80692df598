//! Writing the inverted lists of a shard.

use std::path::Path;

use crate::StoreError;
use crate::format::{self, FileEntry};
use crate::write::HashedFile;

/// Takes entries in their order, writes them in the order of the lists. Lists and codes of a shard are held in memory while it is built.
pub(crate) struct ListWriter {
    n_lists: usize,
    lists: Vec<u32>,
    codes: Vec<u8>,
}

impl ListWriter {
    pub(crate) fn new(n_lists: usize) -> Self {
        Self { n_lists, lists: Vec::new(), codes: Vec::new() }
    }

    /// Adds the next entries: their lists, and their codes one after the other.
    pub(crate) fn add(&mut self, lists: &[u32], codes: &[u8]) {
        self.lists.extend_from_slice(lists);
        self.codes.extend_from_slice(codes);
    }

    /// Writes the files; within a list, entries stand in their own order.
    pub(crate) fn write(self, directory: &Path) -> Result<[(String, FileEntry); 3], StoreError> {
        let mut offsets = vec![0u32; self.n_lists + 1];
        self.lists.iter().for_each(|l| offsets[*l as usize + 1] += 1);
        (0..self.n_lists).for_each(|l| offsets[l + 1] += offsets[l]);
        let mut rows = vec![0u32; self.lists.len()];
        let mut next = offsets.clone();
        for (row, list) in self.lists.iter().enumerate() {
            let place = &mut next[*list as usize];
            rows[*place as usize] = row as u32;
            *place += 1;
        }
        let width = self.codes.len() / self.lists.len().max(1);
        let mut codes = HashedFile::create(directory, format::CODES)?;
        for row in &rows {
            codes.write(&self.codes[*row as usize * width..][..width])?;
        }
        let numbers = |name: &str, numbers: &[u32]| {
            let mut file = HashedFile::create(directory, name)?;
            file.write(bytemuck::cast_slice(numbers))?;
            Ok::<_, StoreError>((name.to_owned(), file.finish()?))
        };
        let codes = (format::CODES.to_owned(), codes.finish()?);
        Ok([numbers(format::LISTS, &offsets)?, numbers(format::ROWS, &rows)?, codes])
    }
}
