//! Waiting for operations.

use anyhow::{Result, bail};
use prost::Name;
use silo_proto::{longrunning as lro, v1};

use crate::client::{Connection, refused};
use crate::output;

/// What is done and in all, of any operation of ours.
fn progress(metadata: &prost_types::Any) -> Option<(u64, u64)> {
    fn read<M: Name + Default>(any: &prost_types::Any, pair: fn(M) -> (u64, u64)) -> Option<(u64, u64)> {
        (any.type_url == M::type_url()).then(|| M::decode(&any.value[..]).ok().map(pair)).flatten()
    }
    read(metadata, |p: v1::AddShardProgress| (p.documents_done, p.documents_total))
        .or_else(|| read(metadata, |p: v1::RebuildShardsProgress| (p.documents_done, p.documents_total)))
        .or_else(|| read(metadata, |p: v1::PurgeProgress| (p.entries_done, p.entries_total)))
        .or_else(|| read(metadata, |p: v1::BackupStoreProgress| (p.entries_done, p.entries_total)))
}

/// Waits for an operation, with a progress bar on a terminal; gives its response. `unit` is what its progress counts.
pub async fn wait<T: prost::Message + Default>(
    connection: &Connection,
    mut operation: lro::Operation,
    unit: &str,
) -> Result<T> {
    let bar = output::progress_bar(unit)?;
    while !operation.done {
        if let Some((done, total)) = operation.metadata.as_ref().and_then(progress) {
            bar.set_length(total);
            bar.set_position(done);
        }
        operation = ask(connection, operation.name).await?;
    }
    bar.finish_and_clear();
    match operation.result {
        Some(lro::operation::Result::Response(any)) => Ok(T::decode(&any.value[..])?),
        Some(lro::operation::Result::Error(status)) => bail!("{}", status.message),
        None => bail!("the operation ended without a result"),
    }
}

/// The operation when it is done, or half a second later.
pub async fn ask(connection: &Connection, name: String) -> Result<lro::Operation> {
    let timeout = Some(prost_types::Duration { seconds: 0, nanos: 500_000_000 });
    let request = lro::WaitOperationRequest { name, timeout };
    Ok(connection.operations().wait_operation(request).await.map_err(refused)?.into_inner())
}
