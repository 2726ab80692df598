//! Nearest neighbours among keys.
//!
//! What it is: exact search over rows of keys ([`exact_search`]), which is also the oracle of the approximate one; search through
//! inverted lists under a shared quantiser ([`ivf_search`]), which Faiss makes ([`train_quantizer`]); and the selection of the k best under a total order ([`TopK`]): by squared L2 distance, then by an order of rows that the
//! caller gives, so that the k-th place is as strict as the first.
//!
//! What it is not: it knows no documents, sources or snapshots; what may be seen was decided before it is called.
//!
//! ```
//! use silo_vector::{exact_search, Keys, Part, Query};
//!
//! let keys = Keys::F32(&[0.0, 0.0, 3.0, 4.0, 1.0, 0.0]); // three keys of two dimensions
//! let parts = [Part { id: 7, keys, queries: vec![0], hidden: None }];
//! let queries = [Query { key: &[0.0, 0.0], k: 2 }];
//! let found = exact_search(2, &parts, &queries, &|a, b| a.cmp(&b));
//! let rows: Vec<_> = found[0].iter().map(|c| (c.row, c.distance)).collect();
//! assert_eq!(rows, [(0, 0.0), (2, 1.0)]);
//! ```

mod exact;
mod ivf;
mod prefetch;
mod top_k;

pub use exact::{Keys, Part, Query, exact_search, squared_l2};
pub use ivf::{
    Collection, Found, ListPart, Lists, MergedLists, Probe, Quantizer, QuantizerError, Training, ivf_search,
    n_compared, train_quantizer,
};
pub use top_k::{Candidate, RowOrder, TopK};
