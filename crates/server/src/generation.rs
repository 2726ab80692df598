//! GenerationService.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use silo_engine::{Engine, Event, Generation};
use silo_govern::Caller;
use silo_proto::v1;
use silo_proto::v1::generation_service_server::GenerationService;
use tokio_stream::Stream;
use tonic::{Request, Response, Status};

use crate::access::caller;
use crate::serve::Draining;
use crate::{ServerConfig, from_proto, status, to_proto};

#[derive(Clone)]
pub(crate) struct Generations {
    pub(crate) engine: Arc<Engine>,
    pub(crate) config: Arc<ServerConfig>,
    pub(crate) draining: Draining,
}

/// When a call's deadline passes. The transport itself watches it only until the first byte of the answer.
fn deadline<T>(request: &Request<T>) -> Option<Instant> {
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

    async fn start(&self, request: Request<v1::GenerateRequest>) -> Result<(Generation, u64), Status> {
        self.draining.check()?;
        self.engine.has_place().map_err(|e| status::engine(&e))?;
        let (deadline, caller) = (deadline(&request), caller(&request)?);
        let message = request.into_inner();
        let seed = message.sampling.as_ref().and_then(|s| s.seed).unwrap_or_else(rand::random);
        let service = self.clone();
        let admit = move || {
            let request = from_proto::generate(message, &service.surroundings(deadline, &caller), seed);
            service.engine.generate(request.map_err(|e| status::bad_field(&e))?).map_err(|e| status::engine(&e))
        };
        let generation = tokio::task::spawn_blocking(admit).await.map_err(status::internal)??;
        Ok((generation, seed))
    }

    /// The next message. The last one is `Finished`.
    async fn next(&self, generation: &mut Generation, seed: u64) -> Result<v1::generate_chunk::Message, Status> {
        let event = tokio::select! {
            event = generation.next() => event,
            () = self.draining.cut() => return Err(status::draining()),
        };
        match event {
            Some(Event::Token(token, _)) => {
                let token = to_proto::token(token, self.engine.tokenizer().as_ref());
                Ok(v1::generate_chunk::Message::Token(token))
            }
            Some(Event::Finished(finished)) => {
                let finished = to_proto::finished(*finished, self.engine.model().card(), seed);
                Ok(v1::generate_chunk::Message::Finished(finished))
            }
            Some(Event::Failed(error)) => Err(status::engine(&error)),
            None => Err(status::internal("the text ended without a reason")),
        }
    }
}

#[tonic::async_trait]
impl GenerationService for Generations {
    async fn generate(&self, request: Request<v1::GenerateRequest>) -> Result<Response<v1::GenerateResponse>, Status> {
        let (mut generation, seed) = self.start(request).await?;
        let mut response = v1::GenerateResponse::default();
        loop {
            match self.next(&mut generation, seed).await? {
                v1::generate_chunk::Message::Token(token) => {
                    response.text += &token.text;
                    response.tokens.push(token);
                }
                v1::generate_chunk::Message::Finished(finished) => {
                    response.text += &finished.text;
                    response.finished = Some(finished);
                    return Ok(Response::new(response));
                }
            }
        }
    }

    type GenerateStreamStream = Pin<Box<dyn Stream<Item = Result<v1::GenerateChunk, Status>> + Send>>;

    async fn generate_stream(
        &self,
        request: Request<v1::GenerateRequest>,
    ) -> Result<Response<Self::GenerateStreamStream>, Status> {
        let (generation, seed) = self.start(request).await?;
        // Messages are made when the transport asks for them, so that nothing waits between the check of liveness and it.
        let state = Some((self.clone(), generation));
        let stream = futures_util::stream::unfold(state, move |state| async move {
            let (service, mut generation) = state?;
            let next = service.next(&mut generation, seed).await;
            let last = !matches!(next, Ok(v1::generate_chunk::Message::Token(_)));
            let chunk = next.map(|message| v1::GenerateChunk { message: Some(message) });
            Some((chunk, (!last).then_some((service, generation))))
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
            let request = from_proto::score(message, &service.surroundings(deadline, &caller))
                .map_err(|e| status::bad_field(&e))?;
            let score = engine.score(&request, &flag).map_err(|e| status::engine(&e))?;
            Ok(to_proto::score(score, &request.tokens, engine.tokenizer().as_ref(), engine.model().card()))
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
struct CancelOnDrop(Arc<AtomicBool>);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
