//! Documents in: from declared sources to clean text with a licence and a tier each.
//!
//! What it is: declarations ([`SourceDeclaration`], `datastore/*.toml`), importers for packages, JSON Lines and directories, clean
//! paragraphs out of HTML, man pages, DocBook, reStructuredText, Markdown and source code, a licence decision per file with its
//! evidence, splits by document, removal of repeated text for training, decontamination, and the licence gate.
//!
//! What it is not: it deduplicates nothing in what goes to the store, where every source keeps its own copy.

mod build;
mod copyright;
mod declaration;
mod dedup;
mod error;
mod files;
mod format;
mod gate;
mod known;
mod neutral;
mod package;
mod repeats;
mod report;
mod resolve;
mod shape;
mod split;

pub use build::CorpusBuilder;
pub use declaration::{Importer, Override, Role, SourceDeclaration, read_declarations};
pub use dedup::{NearDuplicates, Overlap};
pub use error::CorpusError;
pub use files::{CorpusDocument, Exclusion, about_bytes, read_documents, write_documents};
pub use format::Format;
pub use gate::{LicenceGate, Violation};
pub use neutral::{Governed, GovernedShare, MAX_GOVERNED, MAX_GOVERNED_OF_DOCUMENT};
pub use report::{BuildReport, SourceReport, documents_hash};
pub use resolve::{Evidence, Resolver};
pub use split::Split;
