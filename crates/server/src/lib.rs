//! The gRPC face of the engine and the store.
//!
//! What it is: adapters. Requests are parsed into the engine's and the governor's types (`from_proto`), answers are put into
//! messages (`to_proto`), and errors become statuses in one exhaustive map (`status`). Before all
//! messages stands one gate (`access`): which role may call what.
//!
//! What it is not: it decides nothing else; whatever a call may do was decided in `silo-govern` and `silo-engine`.

mod access;
mod attribution;
mod config;
mod datastore;
mod from_proto;
mod generation;
mod operations;
mod optout;
mod page;
mod running;
mod serve;
mod status;
mod to_proto;

pub use config::{InvalidSetting, ServerConfig, TlsConfig};
pub use serve::{ServeError, Server};
