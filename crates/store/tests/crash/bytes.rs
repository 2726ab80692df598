//! What the files of a store must not hold.

use std::fs;
use std::path::Path;

use silo_store::Store;

use super::super::reference::State;
use super::{MARK, Witness};

impl Witness {
    /// After a purge no file of the store holds a word of a document that is not there.
    pub(super) fn check_bytes(&self, store: &Store, root: &Path) {
        store.purge(&Default::default(), &|_, _| {}).unwrap();
        let kept = self.reference.shards.values().filter(|s| s.state != State::Removed);
        let kept = kept.flat_map(|s| s.docs.iter().filter(|d| !d.withdrawn).map(|d| d.text.as_str()));
        let kept: Vec<&str> = kept.chain(self.texts.values().map(String::as_str)).collect();
        // As text, and as the tokens of the byte tokenizer: four bytes each, of which the first is one more.
        let as_tokens: Vec<u8> = MARK.bytes().flat_map(|b| [b + 1, 0, 0, 0]).collect();
        let mut pending = vec![root.to_owned()];
        while let Some(path) = pending.pop() {
            if path.is_dir() {
                pending.extend(fs::read_dir(&path).unwrap().map(|e| e.unwrap().path()));
                continue;
            }
            let bytes = fs::read(&path).unwrap();
            for at in 0..bytes.len() {
                let word: Vec<u8> = if bytes[at..].starts_with(MARK.as_bytes()) {
                    bytes[at..].to_vec()
                } else if bytes[at..].starts_with(&as_tokens) {
                    bytes[at..].chunks(4).map(|token| token[0].wrapping_sub(1)).take(60).collect()
                } else {
                    continue;
                };
                let word: String =
                    word.iter().map(|&b| char::from(b)).take_while(char::is_ascii_alphanumeric).collect();
                // It ends with a z; what stands after it in a file is something else.
                let end = word[MARK.len()..].find('z').map_or(word.len(), |i| MARK.len() + i + 1);
                let word = &word[..end];
                // A word may be cut by the end of a passage: then it is the beginning of one that is kept.
                let known = kept.iter().any(|text| text.starts_with(word));
                assert!(known, "{word} of a withdrawn document is in {}", path.display());
            }
        }
    }
}
