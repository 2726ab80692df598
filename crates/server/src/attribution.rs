//! AttributionService.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use silo_core::SourceId;
use silo_engine::Comparison;
use silo_govern::{
    Answer, AttributionConfig, Caller, CreditedToken, FoundSpan, GovernError, HOUR_MS, Look, SourceReport, SpanLimits,
    StoreError, TRIES, now_unix_ms,
};
use silo_proto::v1;
use silo_proto::v1::attribution_service_server::AttributionService;
use silo_proto::v1::compare_without_request::Compared as Ask;
use silo_proto::v1::compare_without_response::Compared;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::{Code, Request, Response, Status};

use crate::access::caller;
use crate::datastore::blocking;
use crate::generation::{CancelOnDrop, Generations, deadline};
use crate::status::BadField;
use crate::{from_proto, status, to_proto};

/// How often a comparison is begun anew if the store changes meanwhile.
const COMPARISONS: usize = 3;

pub(crate) struct Attributions {
    generations: Generations,
    /// Places for texts that are asked about.
    places: Arc<Semaphore>,
    /// Places for receipts and proofs, which statements are like.
    receipts: Arc<Semaphore>,
}

fn bad(field: &'static str, problem: impl Into<String>) -> Status {
    status::bad_field(&BadField::new(field, problem))
}

fn unknown_source(id: &SourceId) -> Status {
    status::govern(&StoreError::UnknownSource(id.clone()).into())
}

/// What a request says, up to what the configuration allows.
fn limits(m: &v1::AttributeTextRequest, config: &AttributionConfig) -> Result<SpanLimits, Status> {
    let most = config.spans;
    let at_most = |said: Option<u32>, limit: usize, field: &'static str| match said.map(|n| n as usize) {
        Some(n) if n > limit => Err(bad(field, format!("it is {n}; it must be at most {limit}"))),
        said => Ok(said.unwrap_or(limit)),
    };
    let min_words = m.min_words.map_or(most.min_words, |n| n as usize);
    if min_words < most.min_words {
        return Err(bad("min_words", format!("it is {min_words}; it must be at least {}", most.min_words)));
    }
    Ok(SpanLimits {
        min_words,
        max_spans: at_most(m.max_spans, most.max_spans, "max_spans")?,
        max_documents: at_most(m.max_documents, most.max_documents, "max_documents")?,
        context_words: at_most(m.context_words, most.context_words, "context_words")?,
    })
}

fn span(span: FoundSpan) -> v1::TextSpan {
    let document = |d: silo_govern::SpanDocument| {
        let [before, run, after] = d.context;
        v1::SpanDocument {
            source: d.source.into(),
            shard: d.shard.0,
            document: d.document.to_string(),
            licence: d.licence,
            start: d.at.start as u64,
            end: d.at.end as u64,
            exact: d.exact,
            uri: d.uri,
            title: d.title,
            before,
            run,
            after,
        }
    };
    v1::TextSpan {
        start: span.at.start as u32,
        end: span.at.end as u32,
        n_words: span.n_words as u32,
        n_places: span.n_places,
        rarity: span.rarity,
        documents: span.documents.into_iter().map(document).collect(),
    }
}

fn answer(answer: Answer) -> v1::AttributeResponseResponse {
    let token = |t: CreditedToken| v1::KeptToken {
        id: t.kept.token,
        parametric: t.kept.parametric,
        sources: to_proto::shares(t.kept.sources),
        documents: (t.kept.documents.into_iter())
            .map(|(source, shard, document, share)| v1::DocumentShare {
                source: source.into(),
                shard: shard.0,
                document: document.to_string(),
                share,
            })
            .collect(),
        withdrawn: t.withdrawn,
        capped_sources: to_proto::names(t.kept.capped),
    };
    let mut documents: Vec<v1::CreditedDocument> = (answer.documents.into_iter())
        .map(|((shard, document), d)| v1::CreditedDocument {
            shard: shard.0,
            document: document.to_string(),
            licence: d.licence,
            uri: d.uri,
            title: d.title,
        })
        .collect();
    documents.sort_by(|a, b| (a.shard, &a.document).cmp(&(b.shard, &b.document)));
    v1::AttributeResponseResponse {
        response_id: answer.kept.id.clone(),
        at_unix_ms: answer.kept.at_unix_ms,
        epoch: answer.kept.snapshot.epoch.0,
        root: answer.kept.snapshot.root.to_string(),
        tokens: answer.tokens.into_iter().map(token).collect(),
        documents,
        context_sources: answer.kept.context_sources.iter().map(ToString::to_string).collect(),
        text: answer.kept.text.clone().unwrap_or_default(),
    }
}

fn compared(c: &Comparison, tokens: &[u32], card: &silo_core::ModelCard) -> v1::ComparedText {
    let token = |t: &silo_engine::ComparedToken| v1::ComparedToken {
        id: tokens[t.position],
        position: t.position as u32,
        log_probability: t.log_probability,
        log_probability_without: t.without,
        total_variation: t.total_variation,
        mass: t.mass,
        bound: t.bound,
    };
    v1::ComparedText {
        log_probability: c.tokens.iter().map(|t| t.log_probability).sum(),
        log_probability_without: c.tokens.iter().map(|t| t.without).sum(),
        tokens: c.tokens.iter().map(token).collect(),
        provenance: Some(to_proto::provenance(&c.snapshot, card)),
        in_force: Some(to_proto::in_force(&c.with)),
        in_force_without: Some(to_proto::in_force(&c.without)),
    }
}

fn report(report: SourceReport) -> v1::SourceReport {
    let hour = |row: silo_govern::LedgerRow| v1::SourceHour {
        start_unix_ms: row.hour * HOUR_MS,
        n_responses: row.n_responses,
        n_tokens: row.n_tokens,
        share: row.share,
        n_passage_responses: row.n_passage_responses,
        n_verbatim_tokens: row.n_verbatim_tokens,
    };
    v1::SourceReport {
        source: report.source.into(),
        from_unix_ms: report.hours.start * HOUR_MS,
        to_unix_ms: report.hours.end * HOUR_MS,
        hours: report.rows.into_iter().map(hour).collect(),
    }
}

impl Attributions {
    /// Statements take places of receipts and proofs.
    pub(crate) fn new(generations: Generations, receipts: Arc<Semaphore>) -> Self {
        let places = Arc::new(Semaphore::new(generations.config.max_concurrent_searches));
        Self { generations, places, receipts }
    }

    fn place(&self) -> Result<OwnedSemaphorePermit, Status> {
        let limit = self.generations.config.max_concurrent_searches;
        self.places.clone().try_acquire_owned().map_err(|_| status::overloaded("searches", limit))
    }

    async fn compare_score(
        &self,
        message: v1::ScoreRequest,
        (deadline, caller): (Option<std::time::Instant>, Caller),
        without: Vec<SourceId>,
    ) -> Result<v1::ComparedText, Status> {
        let generations = self.generations.clone();
        let cancel = CancelOnDrop(Arc::new(AtomicBool::new(false)));
        let (flag, engine) = (cancel.0.clone(), generations.engine.clone());
        let work = tokio::task::spawn_blocking(move || {
            let request = generations.score_request(message, deadline, &caller)?;
            let found = engine.compare_without(&request, &without, &flag).map_err(|e| status::engine(&e))?;
            Ok(compared(&found, &request.tokens, engine.model().card()))
        });
        let response = tokio::select! {
            response = work => response.map_err(status::internal)?,
            () = self.generations.draining.cut() => Err(status::draining()),
        };
        drop(cancel);
        response
    }

    async fn compare_generation(
        &self,
        mut message: v1::GenerateRequest,
        (deadline, caller): (Option<std::time::Instant>, Caller),
        without: Vec<SourceId>,
    ) -> Result<v1::ComparedGeneration, Status> {
        if message.leave_one_passage_out {
            return Err(bad("leave_one_passage_out", "sources are compared here, not passages; ask Generate for that"));
        }
        message.sampling.get_or_insert_default().seed.get_or_insert_with(rand::random);
        for _ in 0..COMPARISONS {
            let one = |without| self.generations.admit(message.clone(), deadline, caller.clone(), Some(without));
            // What was withdrawn in their midst is a change like another.
            let Some(with) = uncut(self.generations.whole(one(Vec::new()).await?).await)? else { continue };
            let Some(other) = uncut(self.generations.whole(one(without.clone()).await?).await)? else { continue };
            let epoch = |of: &v1::GenerateResponse| {
                of.finished.as_ref().and_then(|f| f.provenance.as_ref()).map(|provenance| provenance.epoch)
            };
            let score = self.score_of(&message, &with)?;
            let score = self.compare_score(score, (deadline, caller.clone()), without.clone()).await;
            let Some(score) = uncut(score)? else { continue };
            let scored = score.provenance.as_ref().map(|provenance| provenance.epoch);
            // Of one state of the store, or what differs may be something else's doing.
            if epoch(&with) == epoch(&other) && epoch(&with) == scored {
                return Ok(differing(with, other, score));
            }
        }
        Err(status::govern(&GovernError::Changing { tries: COMPARISONS }))
    }

    /// A prompt and what was made of it, to be scored.
    fn score_of(&self, message: &v1::GenerateRequest, made: &v1::GenerateResponse) -> Result<v1::ScoreRequest, Status> {
        let mut ids = match &message.prompt {
            Some(v1::generate_request::Prompt::Tokens(tokens)) => tokens.ids.clone(),
            Some(v1::generate_request::Prompt::Text(text)) => {
                self.generations.engine.tokenizer().encode(text).map_err(|e| status::engine(&e.into()))?
            }
            None => Vec::new(),
        };
        ids.extend(made.tokens.iter().map(|token| token.id));
        let input = Some(v1::score_request::Input::Tokens(v1::TokenIds { ids }));
        Ok(v1::ScoreRequest { input, retrieval: message.retrieval.clone(), ..v1::ScoreRequest::default() })
    }
}

/// `None`, if something that an answer was made from was withdrawn meanwhile.
fn uncut<T>(answer: Result<T, Status>) -> Result<Option<T>, Status> {
    match answer {
        Err(status) if status.code() == Code::Aborted => Ok(None),
        other => other.map(Some),
    }
}

fn differing(
    with: v1::GenerateResponse,
    without: v1::GenerateResponse,
    score: v1::ComparedText,
) -> v1::ComparedGeneration {
    let ids = |response: &v1::GenerateResponse| response.tokens.iter().map(|t| t.id).collect::<Vec<_>>();
    let (a, b) = (ids(&with), ids(&without));
    let same = a.iter().zip(&b).take_while(|(a, b)| a == b).count();
    v1::ComparedGeneration {
        first_difference: (same < a.len().max(b.len())).then_some(same as u32),
        with_sources: Some(with),
        without_sources: Some(without),
        score: Some(score),
    }
}

#[tonic::async_trait]
impl AttributionService for Attributions {
    async fn attribute_response(
        &self,
        request: Request<v1::AttributeResponseRequest>,
    ) -> Result<Response<v1::AttributeResponseResponse>, Status> {
        let (caller, id) = (caller(&request)?, request.into_inner().response_id);
        let find = move |g: &silo_govern::Governor| g.answer(&caller, &id).map(answer).map_err(|e| status::govern(&e));
        blocking(self.generations.governor.clone(), find).await
    }

    async fn attribute_text(
        &self,
        request: Request<v1::AttributeTextRequest>,
    ) -> Result<Response<v1::AttributeTextResponse>, Status> {
        self.generations.draining.check()?;
        let caller = caller(&request)?;
        let m = request.into_inner();
        let filter = from_proto::filter(m.filter.clone(), &caller).map_err(|e| status::bad_field(&e))?;
        if m.text.is_empty() {
            return Err(bad("text", "it is empty"));
        }
        let limits = limits(&m, &self.generations.governor.config().attribution)?;
        let (k, passages) = (m.k.unwrap_or(0) as usize, m.passages.unwrap_or(0) as usize);
        if k > 1000 || passages > 1000 {
            return Err(bad("k", "at most 1000 neighbours and 1000 passages are shown"));
        }
        let place = self.place()?;
        let cancel = CancelOnDrop(Arc::new(AtomicBool::new(false)));
        let flag = cancel.0.clone();
        let card = self.generations.engine.model().card().clone();
        let response = blocking(self.generations.governor.clone(), move |g| {
            let _place = place;
            let look = Look { text: &m.text, filter: &filter, k, passages };
            for _ in 0..TRIES {
                let found = g.look(&look).map_err(|e| status::govern(&e))?;
                let spans = g.find_spans(&m.text, &filter, limits, &flag).map_err(|e| status::govern(&e))?;
                // Both of one store.
                if found.snapshot.epoch == spans.snapshot.epoch {
                    let (neighbors, passages) = to_proto::hits(found);
                    let provenance = Some(to_proto::provenance(&spans.snapshot, &card));
                    let spans = spans.spans.into_iter().map(span).collect();
                    return Ok(v1::AttributeTextResponse { spans, neighbors, passages, provenance });
                }
            }
            Err(status::govern(&GovernError::Changing { tries: TRIES }))
        })
        .await;
        drop(cancel);
        response
    }

    async fn compare_without(
        &self,
        request: Request<v1::CompareWithoutRequest>,
    ) -> Result<Response<v1::CompareWithoutResponse>, Status> {
        self.generations.draining.check()?;
        let asks = (deadline(&request), caller(&request)?);
        let m = request.into_inner();
        let source = |name: &String| from_proto::source_id(name, "sources").map_err(|e| status::bad_field(&e));
        let without = m.sources.iter().map(source).collect::<Result<Vec<_>, _>>()?;
        if without.is_empty() {
            return Err(bad("sources", "name at least one source"));
        }
        let known = |id: &&SourceId| asks.1.sees(id) && self.generations.governor.store().source(id).is_ok();
        if let Some(id) = without.iter().find(|id| !known(id)) {
            return Err(unknown_source(id));
        }
        let compared = match m.compared {
            Some(Ask::Score(message)) => Compared::Score(Box::new(self.compare_score(message, asks, without).await?)),
            Some(Ask::Generate(message)) => {
                Compared::Generate(Box::new(self.compare_generation(message, asks, without).await?))
            }
            None => return Err(bad("compared", "say what to compare: `score` or `generate`")),
        };
        Ok(Response::new(v1::CompareWithoutResponse { compared: Some(compared) }))
    }

    async fn get_source_report(
        &self,
        request: Request<v1::GetSourceReportRequest>,
    ) -> Result<Response<v1::SourceReport>, Status> {
        let caller = caller(&request)?;
        let (source, hours) = reported(&request.into_inner())?;
        blocking(self.generations.governor.clone(), move |g| {
            g.source_report(&caller, &source, hours).map(report).map_err(|e| status::govern(&e))
        })
        .await
    }

    async fn sign_source_report(
        &self,
        request: Request<v1::GetSourceReportRequest>,
    ) -> Result<Response<v1::SourceStatement>, Status> {
        let caller = caller(&request)?;
        let (source, hours) = reported(&request.into_inner())?;
        let limit = self.generations.config.max_concurrent_receipts;
        let place = self.receipts.clone().try_acquire_owned().map_err(|_| status::overloaded("receipts", limit))?;
        blocking(self.generations.governor.clone(), move |g| {
            let _place = place;
            let text = g.source_statement(&caller, &source, hours).map_err(|e| status::govern(&e))?;
            Ok(v1::SourceStatement { source: source.into(), text })
        })
        .await
    }
}

/// The source and the hours since 1970 that a report is asked for.
fn reported(m: &v1::GetSourceReportRequest) -> Result<(SourceId, Range<i64>), Status> {
    let source = from_proto::source_id(&m.source, "source").map_err(|e| status::bad_field(&e))?;
    // The first and last hours that can be said in milliseconds, and no further.
    let hour = |unix_ms: i64| unix_ms.clamp(i64::MIN / 2, i64::MAX / 2).div_euclid(HOUR_MS);
    let hours = hour(m.from_unix_ms)..m.to_unix_ms.map_or(hour(now_unix_ms()) + 1, hour);
    if hours.start >= hours.end {
        return Err(bad("to_unix_ms", "it must be at least an hour after from_unix_ms, both cut down to whole hours"));
    }
    Ok((source, hours))
}
