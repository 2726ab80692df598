//! GenerationService.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use silo_core::{SnapshotProvider, SourceId};
use silo_engine::{Depth, Engine, EngineError, Event, ScoreRequest};
use silo_govern::{Caller, Governor};
use silo_proto::v1;
use silo_proto::v1::generation_service_server::GenerationService;
use tokio_stream::Stream;
use tonic::{Request, Response, Status};

use crate::access::caller;
use crate::running::{self, Running};
use crate::serve::Draining;
use crate::to_proto::{Asked, Attribution};
use crate::{ServerConfig, from_proto, status, to_proto};

#[derive(Clone)]
pub(crate) struct Generations {
    pub(crate) engine: Arc<Engine>,
    pub(crate) governor: Arc<Governor>,
    pub(crate) config: Arc<ServerConfig>,
    pub(crate) draining: Draining,
}

/// When a call's deadline passes. The transport itself watches it only until the first byte of the answer.
pub(crate) fn deadline<T>(request: &Request<T>) -> Option<Instant> {
    let text = request.metadata().get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let n: u64 = digits.parse().ok()?;
    let duration = match unit {
        "H" => Duration::from_secs(n.checked_mul(3600)?),
        "M" => Duration::from_secs(n.checked_mul(60)?),
        "S" => Duration::from_secs(n),
        "m" => Duration::from_millis(n),
        "u" => Duration::from_micros(n),
        "n" => Duration::from_nanos(n),
        _ => return None,
    };
    Instant::now().checked_add(duration)
}

impl Generations {
    fn surroundings<'a>(&'a self, deadline: Option<Instant>, caller: &'a Caller) -> from_proto::Surroundings<'a> {
        let (tokenizer, context) = (self.engine.tokenizer().as_ref(), self.engine.config().context);
        from_proto::Surroundings { config: &self.config, tokenizer, context, deadline, caller }
    }

    async fn start(&self, request: Request<v1::GenerateRequest>) -> Result<Running, Status> {
        let (deadline, caller) = (deadline(&request), caller(&request)?);
        self.admit(request.into_inner(), deadline, caller, None).await
    }

    /// Begins a generation; a comparison, if sources are taken never to have been there, be they none.
    pub(crate) async fn admit(
        &self,
        message: v1::GenerateRequest,
        deadline: Option<Instant>,
        caller: Caller,
        compared: Option<Vec<SourceId>>,
    ) -> Result<Running, Status> {
        self.draining.check()?;
        self.engine.has_place().map_err(|e| status::engine(&e))?;
        let service = self.clone();
        let admit = move || service.begin(message, deadline, caller, compared);
        tokio::task::spawn_blocking(admit).await.map_err(status::internal)?
    }

    fn begin(
        &self,
        message: v1::GenerateRequest,
        deadline: Option<Instant>,
        caller: Caller,
        compared: Option<Vec<SourceId>>,
    ) -> Result<Running, Status> {
        let seed = message.sampling.as_ref().and_then(|s| s.seed).unwrap_or_else(rand::random);
        let attribution = from_proto::attribution(message.attribution).map_err(|e| status::bad_field(&e))?;
        let depth = from_proto::depth(message.attribution_depth).map_err(|e| status::bad_field(&e))?;
        let depth = if attribution == Attribution::None { Depth::Sources } else { depth };
        let request = from_proto::generate(message, &self.surroundings(deadline, &caller), seed);
        let mut request = request.map_err(|e| status::bad_field(&e))?;
        let kept = attribution != Attribution::None && compared.is_none();
        let kept = kept && self.governor.config().attribution.kept_answers > 0;
        let id = if kept { format!("{:032x}", rand::random::<u128>()) } else { String::new() };
        let (asked, counts) = (Asked { seed, attribution, depth, caller, id }, compared.is_none());
        (request.depth, request.retrieval.without) = (running::depth(&asked), compared.unwrap_or_default());
        let filter = request.retrieval.filter.clone();
        let generation = self.engine.generate(request).map_err(|e| status::engine(&e))?;
        Ok(Running::new(generation, (asked, counts), self.governor.clone(), filter))
    }

    /// The next message. The last one is `Finished`.
    async fn next(&self, running: &mut Running) -> Result<v1::generate_chunk::Message, Status> {
        let event = tokio::select! {
            event = running.next() => event,
            () = self.draining.cut() => return Err(status::draining()),
        };
        match event {
            Some(Event::Token(token, _)) => {
                let token = to_proto::token(token, self.engine.tokenizer().as_ref(), &running.asked);
                Ok(v1::generate_chunk::Message::Token(token))
            }
            Some(Event::Finished(finished)) => {
                let (card, now) = (self.engine.model().card(), self.governor.store().snapshot());
                let finished = to_proto::finished(*finished, card, &running.asked, &now);
                Ok(v1::generate_chunk::Message::Finished(Box::new(finished)))
            }
            Some(Event::Failed(error)) => Err(status::engine(&error)),
            None => Err(status::internal("the text ended without a reason")),
        }
    }

    /// The whole answer. Nothing is given of one that was made from something that was withdrawn before its end.
    pub(crate) async fn whole(&self, mut running: Running) -> Result<v1::GenerateResponse, Status> {
        let mut response = v1::GenerateResponse::default();
        // Nobody has anything of it before its end.
        let counts = running.counts_not();
        loop {
            match self.next(&mut running).await? {
                v1::generate_chunk::Message::Token(token) => {
                    response.text += &token.text;
                    response.tokens.push(token);
                }
                v1::generate_chunk::Message::Finished(finished) => {
                    if running.rests_on_what_went() {
                        return Err(status::engine(&EngineError::SourceRemoved));
                    }
                    running.counts(counts);
                    response.text += &finished.text;
                    response.finished = Some(*finished);
                    return Ok(response);
                }
            }
        }
    }

    /// A text to score.
    pub(crate) fn score_request(
        &self,
        message: v1::ScoreRequest,
        deadline: Option<Instant>,
        caller: &Caller,
    ) -> Result<ScoreRequest, Status> {
        from_proto::score(message, &self.surroundings(deadline, caller)).map_err(|e| status::bad_field(&e))
    }
}

#[tonic::async_trait]
impl GenerationService for Generations {
    async fn generate(&self, request: Request<v1::GenerateRequest>) -> Result<Response<v1::GenerateResponse>, Status> {
        let running = self.start(request).await?;
        self.whole(running).await.map(Response::new)
    }

    type GenerateStreamStream = Pin<Box<dyn Stream<Item = Result<v1::GenerateChunk, Status>> + Send>>;

    async fn generate_stream(
        &self,
        request: Request<v1::GenerateRequest>,
    ) -> Result<Response<Self::GenerateStreamStream>, Status> {
        let running = self.start(request).await?;
        // Messages are made when the transport asks for them, so that nothing waits between the check of liveness and it.
        let state = Some((self.clone(), running));
        let stream = futures_util::stream::unfold(state, move |state| async move {
            let (service, mut running) = state?;
            let next = service.next(&mut running).await;
            let last = !matches!(next, Ok(v1::generate_chunk::Message::Token(_)));
            let chunk = next.map(|message| v1::GenerateChunk { message: Some(message) });
            Some((chunk, (!last).then_some((service, running))))
        });
        Ok(Response::new(Box::pin(stream)))
    }

    async fn score(&self, request: Request<v1::ScoreRequest>) -> Result<Response<v1::ScoreResponse>, Status> {
        self.draining.check()?;
        let (deadline, caller) = (deadline(&request), caller(&request)?);
        let (message, service) = (request.into_inner(), self.clone());
        let cancel = CancelOnDrop(Arc::new(AtomicBool::new(false)));
        let (flag, engine) = (cancel.0.clone(), self.engine.clone());
        let work = tokio::task::spawn_blocking(move || {
            let request = service.score_request(message, deadline, &caller)?;
            let score = engine.score(&request, &flag).map_err(|e| status::engine(&e))?;
            let tokenizer = engine.tokenizer().as_ref();
            Ok(to_proto::score(score, &request.tokens, (tokenizer, &caller), engine.model().card()))
        });
        let response = tokio::select! {
            response = work => response.map_err(status::internal)?,
            () = self.draining.cut() => Err(status::draining()),
        };
        drop(cancel);
        response.map(Response::new)
    }

    async fn tokenize(&self, request: Request<v1::TokenizeRequest>) -> Result<Response<v1::TokenizeResponse>, Status> {
        let (tokenizer, text) = (self.engine.tokenizer().clone(), request.into_inner().text);
        let encode = move || tokenizer.encode(&text).map_err(|e| status::engine(&e.into()));
        let ids = tokio::task::spawn_blocking(encode).await.map_err(status::internal)??;
        Ok(Response::new(v1::TokenizeResponse { ids }))
    }

    async fn get_model(&self, _: Request<v1::GetModelRequest>) -> Result<Response<v1::Model>, Status> {
        Ok(Response::new(to_proto::model(self.engine.model().card())))
    }
}

/// Cancels work on another thread when the call that waits for it is dropped.
pub(crate) struct CancelOnDrop(pub(crate) Arc<AtomicBool>);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
