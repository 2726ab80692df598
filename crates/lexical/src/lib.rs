//! BM25 over passages (Robertson and Zaragoza 2009).
//!
//! What it is: inverted lists kept by tantivy, one index per shard ([`PassageIndex`]), and exhaustive scoring over any set of
//! them ([`search`]): document frequency, count and average length are those of the set, and scores are sums in f64 in a fixed
//! order of terms. So a score depends on the passages that may be seen and on nothing else: neither on the cutting into
//! indexes nor on what was deleted.
//!
//! What it is not: tantivy's own ranking, which prunes, rounds lengths to a byte and counts per index.
//!
//! ```
//! use silo_lexical::{search, Bm25, Part, PassageIndex, PassageIndexBuilder};
//!
//! let directory = tempfile::tempdir()?;
//! let mut builder = PassageIndexBuilder::create(directory.path())?;
//! builder.add("the cat sat")?;
//! builder.add("a dog barked at the cat, and the cat ran")?;
//! builder.add("nothing else")?;
//! builder.finish()?;
//! let index = PassageIndex::open(directory.path())?;
//! let parts = [Part { index: &index, hidden: None }];
//! let hits = search(&parts, "Cat!", 10, Bm25::default(), &|a, b| a.cmp(&b))?;
//! assert_eq!(hits.iter().map(|h| h.passage).collect::<Vec<_>>(), [1, 0]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod index;
mod score;

pub use index::{LexicalError, PassageIndex, PassageIndexBuilder};
pub use score::{Bm25, Hit, Part, PassageOrder, search};
