//! Which caller may call what: the one place where it is decided, before a call reaches its service.

use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::future::{Either, Ready, ready};
use http::{Request, Response, header};
use silo_govern::{Access, Caller, Role};
use tonic::Status;
use tonic::body::Body;
use tower::{Layer, Service};

use crate::status;

use Role::{Admin, Auditor, Curator, Generator, Legal, Owner, Reader};

/// Who may call it; calls that are not in a table are denied.
type Rule = (&'static str, &'static [Role]);

const EVERYONE: &[Role] = &Role::ALL;

/// By their full names.
const RULES: &[Rule] = &[
    ("silo.v1.GenerationService/Generate", &[Generator, Admin]),
    ("silo.v1.GenerationService/GenerateStream", &[Generator, Admin]),
    ("silo.v1.GenerationService/Score", &[Generator, Admin]),
    ("silo.v1.GenerationService/Tokenize", EVERYONE),
    ("silo.v1.GenerationService/GetModel", EVERYONE),
    ("silo.v1.DatastoreService/CreateSource", &[Curator, Admin]),
    ("silo.v1.DatastoreService/UpdateSource", &[Curator, Legal, Admin]),
    ("silo.v1.DatastoreService/GetSource", EVERYONE),
    ("silo.v1.DatastoreService/ListSources", EVERYONE),
    ("silo.v1.DatastoreService/AddShard", &[Curator, Admin]),
    ("silo.v1.DatastoreService/RebuildShards", &[Curator, Admin]),
    ("silo.v1.DatastoreService/GetShard", EVERYONE),
    ("silo.v1.DatastoreService/ListShards", EVERYONE),
    ("silo.v1.DatastoreService/SuspendShard", &[Curator, Legal, Admin]),
    // Who suspended it is not known: it may have been legal.
    ("silo.v1.DatastoreService/ResumeShard", &[Legal, Admin]),
    ("silo.v1.DatastoreService/RemoveShard", &[Legal, Admin]),
    ("silo.v1.DatastoreService/RemoveDocuments", &[Legal, Admin]),
    ("silo.v1.DatastoreService/BackupStore", &[Admin]),
    ("silo.v1.DatastoreService/ForgetBackup", &[Admin]),
    ("silo.v1.DatastoreService/GetStore", &[Reader, Generator, Curator, Legal, Auditor, Admin]),
    ("silo.v1.DatastoreService/Search", &[Reader, Curator, Legal, Auditor, Admin]),
    ("silo.v1.OptOutService/SubmitOptOut", &[Owner, Legal, Admin]),
    ("silo.v1.OptOutService/GetOptOut", &[Owner, Curator, Legal, Auditor, Admin]),
    ("silo.v1.OptOutService/ListOptOuts", &[Owner, Curator, Legal, Auditor, Admin]),
    ("silo.v1.OptOutService/DecideOptOut", &[Legal, Admin]),
    ("silo.v1.OptOutService/HoldOptOut", &[Legal, Admin]),
    // Who put the text there, or whose it is: the side that did not make the request.
    ("silo.v1.OptOutService/CounterNotice", &[Owner, Curator, Legal, Admin]),
    ("silo.v1.OptOutService/AppealOptOut", &[Owner, Curator, Legal, Admin]),
    ("silo.v1.OptOutService/RestoreOptOut", &[Legal, Admin]),
    ("silo.v1.OptOutService/ListSuppressions", &[Legal, Auditor, Admin]),
    ("silo.v1.OptOutService/GetReceipt", &[Owner, Legal, Auditor, Admin]),
    ("silo.v1.OptOutService/GetLogProof", &[Legal, Auditor, Admin]),
    // An answer's credit is there for who got it; the last three see those of others.
    ("silo.v1.AttributionService/AttributeResponse", &[Generator, Legal, Auditor, Admin]),
    ("silo.v1.AttributionService/AttributeText", &[Reader, Curator, Legal, Auditor, Admin]),
    ("silo.v1.AttributionService/CompareWithout", &[Generator, Legal, Auditor, Admin]),
    ("silo.v1.AttributionService/GetSourceReport", &[Owner, Curator, Legal, Auditor, Admin]),
    ("silo.v1.AttributionService/SignSourceReport", &[Owner, Legal, Admin]),
    ("google.longrunning.Operations/ListOperations", &[Curator, Legal, Auditor, Admin]),
    ("google.longrunning.Operations/GetOperation", &[Curator, Legal, Auditor, Admin]),
    ("google.longrunning.Operations/WaitOperation", &[Curator, Legal, Auditor, Admin]),
    ("google.longrunning.Operations/CancelOperation", &[Curator, Admin]),
    ("google.longrunning.Operations/DeleteOperation", &[Curator, Admin]),
    ("grpc.reflection.v1.ServerReflection/ServerReflectionInfo", EVERYONE),
    ("grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", EVERYONE),
];

/// What those who watch over servers may ask without a token.
const OPEN: [&str; 3] = ["grpc.health.v1.Health/Check", "grpc.health.v1.Health/Watch", "grpc.health.v1.Health/List"];

/// Stands before all services.
#[derive(Clone)]
pub(crate) struct Gate(pub(crate) Arc<Access>);

impl<S> Layer<S> for Gate {
    type Service = Guarded<S>;

    fn layer(&self, service: S) -> Guarded<S> {
        Guarded { service, gate: self.clone() }
    }
}

/// Services behind the gate.
#[derive(Clone)]
pub(crate) struct Guarded<S> {
    service: S,
    gate: Gate,
}

impl<S> Service<Request<Body>> for Guarded<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Either<S::Future, Ready<Result<Response<Body>, S::Error>>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.service.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        match self.gate.check(&request) {
            Ok(caller) => {
                if let Some(caller) = caller {
                    request.extensions_mut().insert(caller);
                }
                Either::Left(self.service.call(request))
            }
            Err(status) => Either::Right(ready(Ok(status.into_http()))),
        }
    }
}

impl Gate {
    /// Who calls; nobody in particular where no token is asked for.
    fn check<B>(&self, request: &Request<B>) -> Result<Option<Caller>, Status> {
        let method = request.uri().path().trim_start_matches('/');
        if OPEN.contains(&method) {
            return Ok(None);
        }
        let header = request.headers().get(header::AUTHORIZATION).and_then(|h| h.to_str().ok());
        let bearer = header.and_then(|h| h.split_once(' ')).filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
        let token = bearer.map(|(_, token)| token.trim());
        let caller = self.0.caller(token).map_err(|e| status::unauthenticated(&e))?;
        let allowed = RULES.iter().find(|(name, _)| *name == method).map_or(&[][..], |(_, roles)| *roles);
        if allowed.contains(&caller.role) { Ok(Some(caller)) } else { Err(status::forbidden(&caller, method)) }
    }
}

/// Who makes a call that came through the gate.
pub(crate) fn caller<T>(request: &tonic::Request<T>) -> Result<Caller, Status> {
    request.extensions().get().cloned().ok_or_else(|| status::internal("the call did not come through the gate"))
}
