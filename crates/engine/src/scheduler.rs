//! The loop: admission, steps, and the thread that they run on.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use silo_core::{
    Calibration, Datastore, KnnParameters, LanguageModel, Neighbor, NeighborQuery, Positions, SequenceStep, Snapshot,
    StepOutput, Tokenizer,
};
use tokio::sync::mpsc;

use crate::sequence::{Liveness, Pinned, Progress, Sequence, Shared};
use crate::{ContextParameters, EngineConfig, EngineError, Event, GenerateRequest, Retrieval};

/// The engine. Dropping it ends its thread; requests under way fail.
pub struct Engine {
    pub(crate) shared: Arc<Shared>,
    pub(crate) config: EngineConfig,
    calibration: Option<Calibration>,
    jobs: Mutex<Option<SyncSender<Job>>>,
    interest: Arc<Interest>,
    pub(crate) scoring: AtomicUsize,
    thread: Option<JoinHandle<()>>,
}

struct Job {
    sequence: Box<Sequence>,
}

/// How many requests somebody waits for; a step for nobody is given up between layers.
#[derive(Default)]
struct Interest {
    wanted: AtomicUsize,
    interrupt: AtomicBool,
    active: AtomicUsize,
    queued: AtomicUsize,
}

/// How busy the engine is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the fields say what they count")]
pub struct EngineStatus {
    pub active: usize,
    pub queued: usize,
    pub scoring: usize,
}

/// A request under way. Dropping it cancels the request.
pub struct Generation {
    events: mpsc::Receiver<Event>,
    interest: Arc<Interest>,
}

impl Generation {
    /// The next message; `None` after the last one, or when the engine has gone.
    pub async fn next(&mut self) -> Option<Event> {
        self.events.recv().await
    }

    /// The same for callers without a runtime.
    pub fn blocking_next(&mut self) -> Option<Event> {
        self.events.blocking_recv()
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        self.events.close();
        if self.interest.wanted.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.interest.interrupt.store(true, Ordering::Release);
        }
    }
}

impl Engine {
    /// Starts an engine.
    pub fn start(
        config: EngineConfig,
        calibration: Option<Calibration>,
        model: Arc<dyn LanguageModel>,
        tokenizer: Arc<dyn Tokenizer>,
        store: Arc<dyn Datastore>,
    ) -> std::io::Result<Self> {
        let shared = Arc::new(Shared { model, tokenizer, store });
        let interest = Arc::new(Interest::default());
        let (jobs, receiver) = sync_channel(config.max_queued);
        let worker = Worker {
            shared: shared.clone(),
            interest: interest.clone(),
            config: config.clone(),
            calibration: calibration.clone(),
            receiver,
            active: Vec::new(),
        };
        let thread = std::thread::Builder::new().name("engine".into()).spawn(move || worker.run())?;
        let jobs = Mutex::new(Some(jobs));
        Ok(Self { shared, config, calibration, jobs, interest, scoring: AtomicUsize::new(0), thread: Some(thread) })
    }

    /// How busy it is.
    pub fn status(&self) -> EngineStatus {
        EngineStatus {
            active: self.interest.active.load(Ordering::Relaxed),
            queued: self.interest.queued.load(Ordering::Relaxed),
            scoring: self.scoring.load(Ordering::Relaxed),
        }
    }

    /// The model.
    pub fn model(&self) -> &Arc<dyn LanguageModel> {
        &self.shared.model
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Arc<dyn Tokenizer> {
        &self.shared.tokenizer
    }

    /// The limits and defaults in force.
    pub fn config(&self) -> &EngineConfig {
        &self.config
    }

    /// The neighbours' parameters for a snapshot: as calibrated, else as configured.
    pub fn knn_parameters(&self, snapshot: &Snapshot) -> KnnParameters {
        knn_parameters(self.calibration.as_ref(), &self.config, snapshot)
    }

    pub(crate) fn pin(&self, retrieval: &Retrieval) -> Result<Pinned, EngineError> {
        Pinned::new(&*self.shared.store, retrieval, |s| self.knn_parameters(s))
    }

    /// Admits a request, or refuses it at once.
    pub fn generate(&self, request: GenerateRequest) -> Result<Generation, EngineError> {
        self.check_retrieval(&request.retrieval)?;
        check_generate(&request)?;
        let limit = self.shared.model.card().context_tokens;
        let got = request.prompt.len() + usize::from(self.shared.tokenizer.beginning_of_text().is_some());
        if got >= limit {
            return Err(EngineError::PromptTooLong { got, limit });
        }
        if got == 0 {
            let rule = "the model has no beginning-of-text token, so a prompt needs at least one token".into();
            return Err(EngineError::Invalid { field: "prompt", value: "empty".into(), rule });
        }
        let pinned = self.pin(&request.retrieval)?;
        let context = self.context_parameters(&request.retrieval);
        let (sender, events) = mpsc::channel(self.config.stream_buffer_tokens.max(2));
        let sequence = Box::new(Sequence::new(&self.shared, request, pinned, context, sender)?);
        let jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        let jobs = jobs.as_ref().ok_or(EngineError::ShuttingDown)?;
        self.interest.queued.fetch_add(1, Ordering::Relaxed);
        match jobs.try_send(Job { sequence }) {
            Ok(()) => {}
            Err(refused) => {
                self.interest.queued.fetch_sub(1, Ordering::Relaxed);
                return Err(match refused {
                    TrySendError::Full(_) => EngineError::Overloaded { limit: self.config.max_active },
                    TrySendError::Disconnected(_) => EngineError::ShuttingDown,
                });
            }
        }
        self.interest.wanted.fetch_add(1, Ordering::AcqRel);
        self.interest.interrupt.store(false, Ordering::Release);
        Ok(Generation { events, interest: self.interest.clone() })
    }

    pub(crate) fn context_parameters(&self, retrieval: &Retrieval) -> ContextParameters {
        retrieval.context.unwrap_or(self.config.context)
    }

    /// Checks what depends on the configuration.
    pub(crate) fn check_retrieval(&self, retrieval: &Retrieval) -> Result<(), EngineError> {
        let invalid = |field, value: String, rule: String| Err(EngineError::Invalid { field, value, rule });
        if let Some(k) = retrieval.knn.k.filter(|&k| k == 0 || k > self.config.max_k) {
            return invalid("retrieval.k", k.to_string(), format!("it must be from 1 to {}", self.config.max_k));
        }
        if let Some(w) = retrieval.knn.knn_weight.filter(|w| !(0.0..=1.0).contains(w)) {
            return invalid("retrieval.knn_weight", w.to_string(), "it must be from 0 to 1".into());
        }
        if let Some(t) = retrieval.knn.knn_temperature.filter(|t| !(*t > 0.0 && t.is_finite())) {
            return invalid("retrieval.knn_temperature", t.to_string(), "it must be above 0".into());
        }
        if let Some(c) = retrieval.context {
            let most = self.config.max_context_passages;
            if c.passages == 0 || c.passages > most {
                return invalid(
                    "retrieval.context.passages",
                    c.passages.to_string(),
                    format!("it must be from 1 to {most}"),
                );
            }
            if c.stride_tokens == 0 || c.query_tokens == 0 || c.max_passage_tokens == 0 {
                return invalid(
                    "retrieval.context",
                    "0 tokens".into(),
                    "stride, query and passage lengths must be above 0".into(),
                );
            }
        }
        Ok(())
    }
}

fn check_generate(request: &GenerateRequest) -> Result<(), EngineError> {
    let invalid = |field, value: f64, rule: &str| {
        Err(EngineError::Invalid { field, value: value.to_string(), rule: rule.into() })
    };
    let s = &request.sampling;
    if !(s.temperature >= 0.0 && s.temperature.is_finite()) {
        return invalid("sampling.temperature", s.temperature, "it must be 0 (greedy) or more");
    }
    if !(s.top_p > 0.0 && s.top_p <= 1.0) {
        return invalid("sampling.top_p", s.top_p, "it must be above 0 and at most 1");
    }
    if !(0.0..1.0).contains(&s.min_p) {
        return invalid("sampling.min_p", s.min_p, "it must be from 0 to under 1");
    }
    if !(s.repetition_penalty > 0.0 && s.repetition_penalty.is_finite()) {
        return invalid("sampling.repetition_penalty", s.repetition_penalty, "it must be above 0; 1 changes nothing");
    }
    if request.max_new_tokens == 0 {
        return invalid("max_new_tokens", 0.0, "it must be 1 or more");
    }
    Ok(())
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner).take();
        self.interest.interrupt.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // a panic there was reported when it happened
        }
    }
}

fn knn_parameters(calibration: Option<&Calibration>, config: &EngineConfig, snapshot: &Snapshot) -> KnnParameters {
    calibration.map_or(config.knn, |c| c.parameters(snapshot))
}

struct Worker {
    shared: Arc<Shared>,
    interest: Arc<Interest>,
    config: EngineConfig,
    calibration: Option<Calibration>,
    receiver: Receiver<Job>,
    active: Vec<Sequence>,
}

impl Worker {
    fn run(mut self) {
        while self.admit() {
            self.clean_up();
            self.step();
            self.interest.active.store(self.active.len(), Ordering::Relaxed);
        }
        for sequence in &mut self.active {
            sequence.fail(EngineError::ShuttingDown);
        }
    }

    /// Takes waiting requests; waits for one if there is nothing to do. False when the engine has gone.
    fn admit(&mut self) -> bool {
        while self.active.len() < self.config.max_active {
            let idle = !self.active.iter().any(|s| s.has_room());
            let job = if self.active.is_empty() {
                self.receiver.recv().map_err(|_| RecvTimeoutError::Disconnected)
            } else if idle {
                // All readers are slow: look again soon.
                self.receiver.recv_timeout(Duration::from_millis(2))
            } else {
                self.receiver.try_recv().map_err(|e| match e {
                    TryRecvError::Empty => RecvTimeoutError::Timeout,
                    TryRecvError::Disconnected => RecvTimeoutError::Disconnected,
                })
            };
            match job {
                Ok(job) => {
                    self.interest.queued.fetch_sub(1, Ordering::Relaxed);
                    self.active.push(*job.sequence);
                }
                Err(RecvTimeoutError::Timeout) => break,
                Err(RecvTimeoutError::Disconnected) => return false,
            }
        }
        true
    }

    /// Lets go of what nobody waits for and of what is out of time.
    fn clean_up(&mut self) {
        let now = Instant::now();
        self.active.retain_mut(|s| !s.abandoned() && s.check_time(now) == Progress::GoesOn);
    }

    /// One step of the model over all requests whose readers keep up.
    fn step(&mut self) {
        // Decided once: a reader may catch up at any moment.
        let running: Vec<usize> = (0..self.active.len()).filter(|&i| self.active[i].has_room()).collect();
        if running.is_empty() {
            return;
        }
        let chunk = self.config.prefill_chunk_tokens.max(1);
        let mut sequences: Vec<&mut Sequence> = self
            .active
            .iter_mut()
            .enumerate()
            .filter(|(i, _)| running.binary_search(i).is_ok())
            .map(|(_, s)| s)
            .collect();
        match outputs(&self.shared, &mut sequences, chunk, &self.interest.interrupt) {
            Ok(outputs) => self.advance(&running, outputs),
            Err(silo_core::ModelError::Interrupted) => {} // whoever has gone is let go of before the next step
            Err(error) => {
                // The model does not say which request it failed for; none of them can be trusted to go on.
                let message = error.to_string();
                for &i in &running {
                    self.active[i].fail(EngineError::Model(silo_core::ModelError::Device(message.clone())));
                }
                self.keep(|i| running.binary_search(&i).is_err());
            }
        }
    }

    fn keep(&mut self, wanted: impl Fn(usize) -> bool) {
        let mut i = 0..;
        self.active.retain(|_| i.next().is_none_or(&wanted));
    }

    /// Draws a token for every request that has read all of its text.
    fn advance(&mut self, running: &[usize], outputs: Vec<Output>) {
        let (shared, config, calibration) = (&self.shared, &self.config, self.calibration.as_ref());
        let mut done = vec![false; self.active.len()];
        let mut drawing: Vec<(usize, StepOutput)> = Vec::new();
        for (&i, output) in running.iter().zip(outputs) {
            let sequence = &mut self.active[i];
            let retrieval = sequence.request.retrieval.clone();
            let pin = || Pinned::new(&*shared.store, &retrieval, |s| knn_parameters(calibration, config, s));
            let context = retrieval.mode.context();
            match sequence.check_liveness(shared, pin) {
                Liveness::Ended => done[i] = true,
                // Its passages have changed: the model has to read again.
                Liveness::Repinned if context => {}
                _ if output.draws => drawing.push((i, output.output)),
                _ => {}
            }
        }
        let neighbors = search(shared, &self.active, &drawing);
        for (n, (i, output)) in drawing.into_iter().enumerate() {
            let sequence = &mut self.active[i];
            let progress = match &neighbors {
                // Looked at again: the search may have run across a removal.
                Ok(found) if sequence_is_live(shared, sequence) => {
                    sequence.advance(shared, output.logits.row(0), &found[n])
                }
                Ok(_) => {
                    // The last token is read again in the next step, whose check ends or re-pins the request.
                    let len = sequence.cache.len();
                    sequence.cache.truncate(len - 1);
                    Progress::GoesOn
                }
                Err(reason) => {
                    sequence.fail(EngineError::Search(silo_core::SearchError::Passages { reason: reason.clone() }))
                }
            };
            done[i] = progress == Progress::Done;
        }
        self.keep(|i| !done[i]);
    }
}

fn sequence_is_live(shared: &Shared, sequence: &Sequence) -> bool {
    let mode = sequence.request.retrieval.mode;
    !(mode.knn() || mode.context()) || shared.store.is_live(&sequence.pinned.snapshot)
}

/// What a step gave one request.
struct Output {
    output: StepOutput,
    /// Whether it has now read all of its text.
    draws: bool,
}

fn outputs(
    shared: &Shared,
    running: &mut [&mut Sequence],
    chunk: usize,
    interrupt: &AtomicBool,
) -> Result<Vec<Output>, silo_core::ModelError> {
    let tokens: Vec<Vec<u32>> = running.iter().map(|s| s.pending(chunk).to_vec()).collect();
    let draws: Vec<bool> = running.iter().zip(&tokens).map(|(s, t)| s.will_draw(t.len())).collect();
    let mut steps: Vec<SequenceStep<'_>> = (running.iter_mut().zip(&tokens).zip(&draws))
        .map(|((sequence, tokens), &draws)| SequenceStep {
            logits: if draws { Positions::Last } else { Positions::None },
            keys: if draws && sequence.request.retrieval.mode.knn() { Positions::Last } else { Positions::None },
            cache: sequence.cache.as_mut(),
            tokens,
        })
        .collect();
    let outputs = shared.model.step(&mut steps, interrupt)?;
    Ok(outputs.into_iter().zip(draws).map(|(output, draws)| Output { output, draws }).collect())
}

/// Searches the neighbours of all requests that draw and ask for them, in one call. A list per request that draws.
fn search(shared: &Shared, active: &[Sequence], drawing: &[(usize, StepOutput)]) -> Result<Vec<Vec<Neighbor>>, String> {
    let asks: Vec<bool> = drawing.iter().map(|(i, _)| active[*i].request.retrieval.mode.knn()).collect();
    let queries: Vec<NeighborQuery<'_>> = (drawing.iter().zip(&asks).filter(|(_, asks)| **asks))
        .map(|((i, output), _)| {
            let pinned = &active[*i].pinned;
            NeighborQuery {
                snapshot: &pinned.snapshot,
                mask: &pinned.knn_mask,
                key: output.keys.row(0),
                k: pinned.knn.k,
            }
        })
        .collect();
    let mut found = match queries.is_empty() {
        true => Vec::new(),
        false => shared.store.neighbors(&queries).map_err(|e| e.to_string())?,
    }
    .into_iter();
    Ok(asks.into_iter().map(|asks| if asks { found.next().unwrap_or_default() } else { Vec::new() }).collect())
}
