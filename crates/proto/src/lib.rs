//! Code generated from `proto/`, and nothing else. Modules are nested as the packages are, because generated code refers to
//! other packages by relative paths.

/// Packages of this project.
pub mod silo {
    /// `silo.v1`: the public contract.
    pub mod v1 {
        tonic::include_proto!("silo.v1");
    }
}

/// Packages of the public interfaces that the contract builds on.
pub mod google {
    /// `google.longrunning`.
    pub mod longrunning {
        tonic::include_proto!("google.longrunning");
    }
    /// `google.rpc`.
    pub mod rpc {
        tonic::include_proto!("google.rpc");
    }
}

pub use google::{longrunning, rpc};
pub use silo::v1;

/// All descriptors, for reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
