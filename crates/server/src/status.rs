//! Errors → statuses: the one place where it is decided, exhaustively.

use std::collections::HashMap;
use std::time::Duration;

use silo_core::{ModelError, SearchError};
use silo_engine::EngineError;
use silo_govern::{Caller, Denied, GovernError};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

/// The domain of every reason.
const DOMAIN: &str = "silo.v1";

/// How long a refused caller should wait.
const RETRY_AFTER: Duration = Duration::from_millis(500);

/// A request that was wrong before anything was done.
#[derive(Debug, thiserror::Error)]
#[error("{field}: {problem}")]
pub(crate) struct BadField {
    pub(crate) field: &'static str,
    pub(crate) problem: String,
}

impl BadField {
    pub(crate) fn new(field: &'static str, problem: impl Into<String>) -> Self {
        Self { field, problem: problem.into() }
    }
}

/// A status with its reason.
struct Shape<'a> {
    code: Code,
    reason: &'static str,
    /// The field that was wrong.
    field: Option<&'a str>,
    /// The resource that is meant, as (type, name).
    resource: Option<(&'a str, String)>,
    retry: bool,
}

impl Shape<'_> {
    fn new(code: Code, reason: &'static str) -> Self {
        Self { code, reason, field: None, resource: None, retry: false }
    }

    fn status(self, message: String) -> Status {
        let mut details = ErrorDetails::with_error_info(self.reason, DOMAIN, HashMap::new());
        if let Some(field) = self.field {
            details.add_bad_request_violation(field, message.clone());
        }
        if let Some((kind, name)) = self.resource {
            details.set_resource_info(kind, name, "", message.clone());
        }
        if self.code == Code::FailedPrecondition {
            details.add_precondition_failure_violation(self.reason, "store", message.clone());
        }
        if self.retry {
            details.set_retry_info(Some(RETRY_AFTER));
        }
        Status::with_error_details(self.code, message, details)
    }
}

pub(crate) fn bad_field(error: &BadField) -> Status {
    let field = Some(error.field);
    Shape { field, ..Shape::new(Code::InvalidArgument, "INVALID_FIELD") }.status(error.to_string())
}

pub(crate) fn not_found(kind: &'static str, name: &str) -> Status {
    let resource = Some((kind, name.to_owned()));
    Shape { resource, ..Shape::new(Code::NotFound, "NOT_FOUND") }.status(format!("there is no {kind} '{name}'"))
}

pub(crate) fn overloaded(what: &str, limit: usize) -> Status {
    let message = format!("{what}: {limit} wait already; try again in a moment");
    Shape { retry: true, ..Shape::new(Code::ResourceExhausted, "OVERLOADED") }.status(message)
}

pub(crate) fn cancelled(message: &str) -> Status {
    Shape::new(Code::Cancelled, "CANCELLED").status(message.to_owned())
}

pub(crate) fn draining() -> Status {
    Shape { retry: true, ..Shape::new(Code::Unavailable, "DRAINING") }.status("the server is shutting down".into())
}

pub(crate) fn internal(what: impl ToString) -> Status {
    Shape::new(Code::Internal, "INTERNAL").status(what.to_string())
}

pub(crate) fn unauthenticated(error: &Denied) -> Status {
    let shape = match error {
        Denied::NoToken => Shape::new(Code::Unauthenticated, "NO_TOKEN"),
        Denied::Unknown => Shape::new(Code::Unauthenticated, "UNKNOWN_TOKEN"),
        Denied::Expired(_) => Shape::new(Code::Unauthenticated, "TOKEN_EXPIRED"),
        Denied::Unreadable(_) => Shape { retry: true, ..Shape::new(Code::Unavailable, "TOKENS_UNREADABLE") },
    };
    if let Denied::Unreadable(reason) = error {
        // Where the file lies is not for whoever calls.
        tracing::error!("nobody is let in: {reason}");
    }
    shape.status(error.to_string())
}

pub(crate) fn forbidden(caller: &Caller, method: &str) -> Status {
    let message = format!("'{}' has the role {}, which may not call {method}", caller.name, caller.role);
    Shape::new(Code::PermissionDenied, "ROLE").status(message)
}

/// A change of what is not within the sources that a token is limited to.
pub(crate) fn out_of_scope(caller: &Caller, what: &str) -> Status {
    let message = format!("'{}' is limited to certain sources; {what}", caller.name);
    Shape::new(Code::PermissionDenied, "OUT_OF_SCOPE").status(message)
}

pub(crate) fn engine(error: &EngineError) -> Status {
    use EngineError as E;
    let shape = match error {
        E::Invalid { field, .. } => Shape { field: Some(field), ..Shape::new(Code::InvalidArgument, "INVALID_FIELD") },
        E::PromptTooLong { .. } => {
            Shape { field: Some("prompt"), ..Shape::new(Code::InvalidArgument, "PROMPT_TOO_LONG") }
        }
        E::Overloaded { .. } => Shape { retry: true, ..Shape::new(Code::ResourceExhausted, "OVERLOADED") },
        E::UnknownName(e) => {
            Shape { resource: Some((e.kind, e.name.clone())), ..Shape::new(Code::NotFound, "UNKNOWN_NAME") }
        }
        E::DeadlineExceeded => Shape::new(Code::DeadlineExceeded, "DEADLINE_EXCEEDED"),
        E::Cancelled => Shape::new(Code::Cancelled, "CANCELLED"),
        E::StalledReader { .. } => Shape::new(Code::DeadlineExceeded, "STALLED_READER"),
        E::Panicked(_) => Shape::new(Code::Internal, "ENGINE_FAILED"),
        E::SourceRemoved => Shape { retry: true, ..Shape::new(Code::Aborted, "SOURCE_REMOVED") },
        E::Model(e) => model(e),
        E::Search(e) => search(e),
        E::Tokenizer(_) => Shape { field: Some("text"), ..Shape::new(Code::InvalidArgument, "NOT_TOKENIZABLE") },
        E::ShuttingDown => Shape { retry: true, ..Shape::new(Code::Unavailable, "DRAINING") },
    };
    shape.status(error.to_string())
}

fn model(error: &ModelError) -> Shape<'static> {
    match error {
        ModelError::ContextOverflow { .. } => {
            Shape { field: Some("prompt"), ..Shape::new(Code::InvalidArgument, "PROMPT_TOO_LONG") }
        }
        ModelError::UnknownToken { .. } => {
            Shape { field: Some("tokens"), ..Shape::new(Code::InvalidArgument, "UNKNOWN_TOKEN") }
        }
        ModelError::Misuse(_) => Shape::new(Code::Internal, "MODEL_MISUSE"),
        ModelError::Interrupted => Shape::new(Code::Cancelled, "CANCELLED"),
        ModelError::Device(_) | ModelError::NotFinite => Shape::new(Code::Internal, "MODEL_FAILED"),
    }
}

fn search(error: &SearchError) -> Shape<'static> {
    match error {
        SearchError::Dimension { .. } => Shape::new(Code::Internal, "KEY_DIMENSION"),
        SearchError::Passages { .. } => Shape::new(Code::Internal, "SEARCH_FAILED"),
    }
}

pub(crate) fn govern(error: &GovernError) -> Status {
    use GovernError as E;
    let field = |field| Shape { field: Some(field), ..Shape::new(Code::InvalidArgument, "INVALID_FIELD") };
    let shape = match error {
        E::Id(_) => field("name"),
        E::Licence(_) => {
            Shape { field: Some("licence"), ..Shape::new(Code::InvalidArgument, "NOT_AN_SPDX_EXPRESSION") }
        }
        E::TierTooOpen { .. } => Shape { field: Some("tier"), ..Shape::new(Code::InvalidArgument, "TIER_TOO_OPEN") },
        E::UnknownAnswer(id) => {
            Shape { resource: Some(("response", id.clone())), ..Shape::new(Code::NotFound, "UNKNOWN_RESPONSE") }
        }
        E::Threads(_) => Shape::new(Code::Internal, "INTERNAL"),
        E::Missing { field: name, .. } | E::Long { field: name, .. } => field(name),
        E::Document { .. } => {
            Shape { field: Some("documents"), ..Shape::new(Code::InvalidArgument, "DOCUMENT_REFUSED") }
        }
        E::Limit { setting, .. } => {
            Shape { field: Some(setting), ..Shape::new(Code::InvalidArgument, "LIMIT_EXCEEDED") }
        }
        E::KeptOut { .. } => Shape { field: Some("documents"), ..Shape::new(Code::FailedPrecondition, "KEPT_OUT") },
        E::Closed { source_id, .. } => Shape {
            resource: Some(("source", source_id.to_string())),
            ..Shape::new(Code::FailedPrecondition, "SOURCE_OPTED_OUT")
        },
        E::OptOutStep { id, .. } => {
            Shape { resource: Some(("opt-out", id.to_string())), ..Shape::new(Code::FailedPrecondition, "STEP") }
        }
        E::BeyondScope { .. } => Shape::new(Code::PermissionDenied, "OUT_OF_SCOPE"),
        E::NotOfOptOut { .. } | E::SpareWithoutUphold => {
            Shape { field: Some("spare"), ..Shape::new(Code::InvalidArgument, "INVALID_FIELD") }
        }
        E::ShortPassage { .. } => {
            Shape { field: Some("passage"), ..Shape::new(Code::InvalidArgument, "SHORT_PASSAGE") }
        }
        E::Signal { .. } => field("signals"),
        E::Term { .. } => field("term"),
        E::Changing { .. } => Shape { retry: true, ..Shape::new(Code::Aborted, "STORE_CHANGED") },
        E::NoBackups => Shape::new(Code::FailedPrecondition, "NO_BACKUPS"),
        E::NoKey => Shape::new(Code::FailedPrecondition, "NO_KEY"),
        E::TooManyStatements { .. } => Shape::new(Code::ResourceExhausted, "TOO_MANY_STATEMENTS"),
        E::AnswersWait => Shape { retry: true, ..Shape::new(Code::Unavailable, "ANSWERS_WAIT") },
        E::HourNotOver => field("to_unix_ms"),
        E::NoReceipt { removal, .. } => {
            Shape { resource: Some(("change", removal.to_string())), ..Shape::new(Code::NotFound, "NO_RECEIPT") }
        }
        E::LogEnd { .. } => Shape { field: Some("old_size"), ..Shape::new(Code::OutOfRange, "END_OF_LOG") },
        E::LogAltered { .. } => Shape::new(Code::DataLoss, "LOG_ALTERED"),
        E::Log(reason) => {
            // Where its files lie is not for whoever calls.
            tracing::error!("the log of changes cannot be proven: {reason}");
            return Shape::new(Code::Internal, "LOG_FAILED")
                .status("the log of changes cannot be read or proven".into());
        }
        E::Store(e) => return Shape::status(store(e), e.to_string()),
        E::UnknownName(e) => {
            Shape { resource: Some((e.kind, e.name.clone())), ..Shape::new(Code::NotFound, "UNKNOWN_NAME") }
        }
        E::Model(e) => model(e),
        E::Tokenizer(_) => field("text"),
        E::Search(e) => search(e),
    };
    shape.status(error.to_string())
}

fn store(error: &silo_govern::StoreError) -> Shape<'static> {
    use silo_govern::StoreError as E;
    match error {
        E::UnknownSource(id) => {
            Shape { resource: Some(("source", id.to_string())), ..Shape::new(Code::NotFound, "UNKNOWN_SOURCE") }
        }
        E::UnknownShard(id) => {
            Shape { resource: Some(("shard", id.to_string())), ..Shape::new(Code::NotFound, "UNKNOWN_SHARD") }
        }
        E::ShardRemoved(id) => {
            Shape { resource: Some(("shard", id.to_string())), ..Shape::new(Code::NotFound, "SHARD_REMOVED") }
        }
        E::SourceExists(id) => {
            Shape { resource: Some(("source", id.to_string())), ..Shape::new(Code::AlreadyExists, "SOURCE_EXISTS") }
        }
        E::Changed(id) | E::Rewriting(id) => {
            Shape { resource: Some(("shard", id.to_string())), ..Shape::new(Code::Aborted, "SHARD_CHANGED") }
        }
        E::ShardState { id, .. } => {
            Shape { resource: Some(("shard", id.to_string())), ..Shape::new(Code::FailedPrecondition, "SHARD_STATE") }
        }
        E::UnknownOptOut(id) => {
            Shape { resource: Some(("opt-out", id.to_string())), ..Shape::new(Code::NotFound, "UNKNOWN_OPT_OUT") }
        }
        E::OptOutChanged(id) => {
            Shape { resource: Some(("opt-out", id.to_string())), ..Shape::new(Code::Aborted, "OPT_OUT_CHANGED") }
        }
        E::LegalHold(id) => {
            Shape { resource: Some(("opt-out", id.to_string())), ..Shape::new(Code::FailedPrecondition, "LEGAL_HOLD") }
        }
        E::NothingSelected => Shape::new(Code::NotFound, "NOTHING_SELECTED"),
        E::EmptyPrefix => {
            Shape { field: Some("uri_prefix.prefix"), ..Shape::new(Code::InvalidArgument, "EMPTY_PREFIX") }
        }
        E::BackupName { .. } => Shape { field: Some("name"), ..Shape::new(Code::InvalidArgument, "INVALID_NAME") },
        E::BackupExists { .. } => Shape { field: Some("name"), ..Shape::new(Code::AlreadyExists, "BACKUP_EXISTS") },
        E::UnknownBackup(name) => {
            Shape { resource: Some(("backup", name.clone())), ..Shape::new(Code::NotFound, "UNKNOWN_BACKUP") }
        }
        E::RemovalLog { .. } | E::NoStore { .. } | E::NoCatalog { .. } => {
            Shape::new(Code::FailedPrecondition, "NOT_A_STORE")
        }
        E::Empty => Shape { field: Some("documents"), ..Shape::new(Code::InvalidArgument, "NO_DOCUMENT") },
        E::Incompatible { .. } => Shape::new(Code::FailedPrecondition, "INCOMPATIBLE_SHARD"),
        E::Locked { .. } => Shape::new(Code::FailedPrecondition, "STORE_LOCKED"),
        E::CatalogRead { .. } => Shape { retry: true, ..Shape::new(Code::Unavailable, "CATALOG_READ") },
        E::Version { .. } => Shape::new(Code::FailedPrecondition, "FORMAT_VERSION"),
        E::Recipe { .. } | E::RecipeForModel { .. } => Shape::new(Code::FailedPrecondition, "RECIPE"),
        _ if error.is_disk_full() => Shape::new(Code::ResourceExhausted, "DISK_FULL"),
        E::Damaged { .. } | E::Lexical(_) | E::BackupDamaged { .. } | E::Head { .. } | E::Tables { .. } => {
            Shape::new(Code::DataLoss, "DAMAGED")
        }
        E::Io { .. } | E::Catalog { .. } => Shape::new(Code::Internal, "STORE_FAILED"),
        E::Tokenizer { .. } | E::Model { .. } => Shape::new(Code::Internal, "ENCODING_FAILED"),
        E::Cancelled => Shape::new(Code::Cancelled, "CANCELLED"),
    }
}

/// The same as a message, for the error of an operation.
pub(crate) fn as_message(status: &Status) -> silo_proto::rpc::Status {
    use prost::Message;
    let details = tonic_types::pb::Status::decode(status.details()).map(|s| s.details).unwrap_or_default();
    let details = details.into_iter().map(|a| prost_types::Any { type_url: a.type_url, value: a.value }).collect();
    silo_proto::rpc::Status { code: status.code() as i32, message: status.message().to_owned(), details }
}

/// What a page request may ask for, as a status.
pub(crate) fn page(problem: String) -> Status {
    bad_field(&BadField::new("page_token", problem))
}

/// An enum value that this version does not know.
pub(crate) fn unknown_enum(field: &'static str, value: i32) -> BadField {
    BadField::new(field, format!("{value} is no value of this enumeration"))
}
