//! The loop: admission, steps, and the thread that they run on.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use silo_core::{
    Calibration, Datastore, Epoch, Filter, LanguageModel, ModelError, SearchError, SequenceStep, Snapshot, TokenId,
    Tokenizer,
};
use tokio::sync::mpsc;

use crate::check::check_generate;
use crate::found::{Found, find};
use crate::guard::Guard;
use crate::pinned::{Defaults, Pinned};
use crate::queue::Queue;
use crate::reader::Outputs;
use crate::sequence::{Liveness, Progress, Sequence, Shared};
use crate::{ContextParameters, EngineConfig, EngineError, Event, FinishReason, GenerateRequest, Retrieval};

/// How long the thread waits before it looks again at readers who have no room.
const SLOW_READERS: Duration = Duration::from_millis(2);

/// The engine. Dropping it ends its thread; requests under way fail.
pub struct Engine {
    pub(crate) shared: Arc<Shared>,
    pub(crate) config: EngineConfig,
    calibrations: Arc<[Calibration]>,
    queue: Arc<Queue>,
    active: Arc<AtomicUsize>,
    pub(crate) scoring: AtomicUsize,
    thread: Option<JoinHandle<()>>,
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
    shared: Arc<Shared>,
    queue: Arc<Queue>,
    /// Whether tokens were held back because of a removal.
    cut: bool,
    ended: bool,
}

impl Generation {
    /// The next message; `None` after the last one, or when the engine has gone. Tokens that were made from something that has
    /// been removed since are not handed out: the text ends before them, with [`FinishReason::SourceRemoved`].
    pub async fn next(&mut self) -> Option<Event> {
        while !self.ended {
            let event = self.events.recv().await;
            if let Some(event) = self.check(event) {
                return Some(event);
            }
        }
        None
    }

    /// The same for callers without a runtime.
    pub fn blocking_next(&mut self) -> Option<Event> {
        while !self.ended {
            let event = self.events.blocking_recv();
            if let Some(event) = self.check(event) {
                return Some(event);
            }
        }
        None
    }

    /// What may be handed out of an event.
    fn check(&mut self, event: Option<Event>) -> Option<Event> {
        let store = &*self.shared.store;
        let event = match event {
            Some(Event::Token(_, view)) if !view.is_live(store) => {
                self.cut = true;
                return None;
            }
            // The text goes on with the store as it is now, but a piece of it is missing: it cannot be made whole.
            Some(Event::Token(..)) if self.cut => Some(Event::Failed(EngineError::SourceRemoved)),
            Some(Event::Finished(mut finished)) if self.cut || !finished.view.is_live(store) => {
                finished.reason = FinishReason::SourceRemoved;
                finished.text.clear();
                Some(Event::Finished(finished))
            }
            event => event,
        };
        self.ended = !matches!(event, Some(Event::Token(..)));
        event
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        self.events.close();
        self.queue.caller_gone();
    }
}

impl Engine {
    /// Starts an engine. Of several calibrations, each request has the one that suits what it sees ([`Calibration::in_force`]).
    pub fn start(
        config: EngineConfig,
        calibrations: impl IntoIterator<Item = Calibration>,
        model: Arc<dyn LanguageModel>,
        tokenizer: Arc<dyn Tokenizer>,
        store: Arc<dyn Datastore>,
    ) -> std::io::Result<Self> {
        let calibrations: Arc<[Calibration]> = calibrations.into_iter().collect();
        if let Some(fault) = calibrations.iter().find_map(Calibration::fault) {
            return Err(std::io::Error::new(std::io::ErrorKind::InvalidInput, format!("the calibration: {fault}")));
        }
        let guard = Guard::new(&config.guard);
        let shared = Arc::new(Shared { model, tokenizer, store, guard });
        let queue = Arc::new(Queue::new(config.max_queued));
        let n_active = Arc::new(AtomicUsize::new(0));
        let worker = Worker {
            shared: shared.clone(),
            queue: queue.clone(),
            config: config.clone(),
            calibrations: calibrations.clone(),
            active: Vec::new(),
            n_active: n_active.clone(),
        };
        let thread = std::thread::Builder::new().name("engine".into()).spawn(move || worker.run())?;
        let (active, scoring) = (n_active, AtomicUsize::new(0));
        Ok(Self { shared, config, calibrations, queue, active, scoring, thread: Some(thread) })
    }

    /// How busy it is.
    pub fn status(&self) -> EngineStatus {
        EngineStatus {
            active: self.active.load(Ordering::Relaxed),
            queued: self.queue.len(),
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

    pub(crate) fn defaults(&self, snapshot: &Snapshot, filter: &Filter) -> Defaults {
        defaults(&self.calibrations, &self.config, snapshot, filter)
    }

    /// Pins the store for a request, and refuses names that the store never knew.
    pub(crate) fn pin(&self, retrieval: &Retrieval) -> Result<Pinned, EngineError> {
        let pinned = Pinned::new(&*self.shared.store, retrieval, |s, filter| self.defaults(s, filter));
        pinned.snapshot.check_names(&retrieval.filter)?;
        pinned.snapshot.check_names(&Filter { deny_sources: retrieval.without.clone(), ..Filter::default() })?;
        Ok(pinned)
    }

    /// Whether another request would be taken now: worth asking before work is put into one.
    pub fn has_place(&self) -> Result<(), EngineError> {
        self.queue.has_place()
    }

    /// Admits a request, or refuses it at once.
    pub fn generate(&self, request: GenerateRequest) -> Result<Generation, EngineError> {
        self.check_retrieval(&request.retrieval)?;
        self.check_left_out(request.leave_one_passage_out, &request.retrieval)?;
        check_generate(&request)?;
        self.check_tokens(&request.prompt)?;
        let biased: Vec<TokenId> = request.sampling.bias.iter().map(|(t, _)| *t).collect();
        self.check_tokens(&biased).map_err(|error| match error {
            EngineError::Model(ModelError::UnknownToken { token, vocab_size }) => EngineError::Invalid {
                field: "sampling.bias",
                value: token.to_string(),
                rule: format!("it must name tokens of the vocabulary, from 0 to {}", vocab_size - 1),
            },
            other => other,
        })?;
        let limit = self.shared.model.card().context_tokens;
        let got = request.prompt.len() + usize::from(self.shared.tokenizer.beginning_of_text().is_some());
        if got >= limit {
            return Err(EngineError::PromptTooLong { got, limit });
        }
        if got == 0 {
            let rule = "the model has no beginning-of-text token, so a prompt needs at least one token".into();
            return Err(EngineError::Invalid { field: "prompt", value: "empty".into(), rule });
        }
        self.queue.has_place()?;
        let pinned = self.pin(&request.retrieval)?;
        let context = self.context_parameters(&request.retrieval);
        let (sender, events) = mpsc::channel(self.config.stream_buffer_tokens.max(2));
        self.queue.push(Sequence::new(&self.shared, request, pinned, context, sender))?;
        Ok(Generation { events, shared: self.shared.clone(), queue: self.queue.clone(), cut: false, ended: false })
    }

    pub(crate) fn context_parameters(&self, retrieval: &Retrieval) -> ContextParameters {
        retrieval.context.unwrap_or(self.config.context)
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.queue.close();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // a panic there was reported when it happened
        }
    }
}

fn defaults(calibrations: &[Calibration], config: &EngineConfig, snapshot: &Snapshot, filter: &Filter) -> Defaults {
    let knn = Calibration::in_force(calibrations, snapshot, filter).unwrap_or(config.knn);
    Defaults { knn, influence_cap: config.influence_cap }
}

/// How often neighbours are searched for in one step, if removals come between.
const SEARCHES: usize = 2;

struct Worker {
    shared: Arc<Shared>,
    queue: Arc<Queue>,
    config: EngineConfig,
    calibrations: Arc<[Calibration]>,
    active: Vec<Sequence>,
    n_active: Arc<AtomicUsize>,
}

impl Worker {
    fn run(mut self) {
        while self.wait() {
            // A fault in one step must not end the service: the requests of that step fail, and the next ones go on.
            let step = std::panic::catch_unwind(AssertUnwindSafe(|| {
                self.clean_up();
                self.admit();
                self.step();
            }));
            if let Err(panic) = step {
                let what = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
                let what = what.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
                for mut sequence in std::mem::take(&mut self.active) {
                    sequence.fail(EngineError::Panicked(what.clone()));
                }
            }
            self.n_active.store(self.active.len(), Ordering::Relaxed);
        }
        let mut shut_down = |sequence: &mut Sequence| {
            sequence.fail(EngineError::ShuttingDown);
            false
        };
        self.queue.retain(&mut shut_down);
        self.active.retain_mut(shut_down);
    }

    /// Waits for work. False when the engine has gone.
    fn wait(&self) -> bool {
        if self.active.is_empty() {
            self.queue.wait(None)
        } else if self.active.iter().any(Sequence::has_room) {
            !self.queue.is_closed()
        } else {
            self.queue.wait(Some(SLOW_READERS))
        }
    }

    /// Lets go of what nobody waits for and of what is out of time, waiting or active.
    fn clean_up(&mut self) {
        let now = Instant::now();
        let stalled = Duration::from_secs(self.config.stalled_reader_seconds);
        let keep = |s: &mut Sequence| !s.abandoned() && s.check_time(now, stalled) == Progress::GoesOn;
        self.queue.retain(keep);
        self.active.retain_mut(keep);
    }

    /// Takes waiting requests while there are places.
    fn admit(&mut self) {
        while self.active.len() < self.config.max_active {
            let Some(mut sequence) = self.queue.pop() else { break };
            match sequence.lay_out(&self.shared) {
                Ok(()) => self.active.push(sequence),
                Err(error) => drop(sequence.fail(error)),
            }
        }
    }

    /// One step of the model over all requests whose readers keep up.
    fn step(&mut self) {
        // Decided once: a reader may catch up at any moment.
        let running: Vec<usize> = (0..self.active.len()).filter(|&i| self.active[i].has_room()).collect();
        if running.is_empty() {
            return;
        }
        let chunk = self.config.prefill_chunk_tokens.max(1);
        let chosen = self.active.iter_mut().enumerate().filter(|(i, _)| running.binary_search(i).is_ok());
        let mut sequences: Vec<&mut Sequence> = chosen.map(|(_, s)| s).collect();
        match outputs(&self.shared, &mut sequences, chunk, &self.queue.interrupt) {
            Ok(outputs) => self.advance(&running, outputs),
            Err(ModelError::Interrupted) => {} // whoever has gone is let go of before the next step
            Err(error) => {
                // Requests were checked at admission, so this is the device: none of them can go on.
                let message = error.to_string();
                for &i in &running {
                    self.active[i].fail(EngineError::Model(ModelError::Device(message.clone())));
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
        let (shared, config, calibrations) = (&self.shared, &self.config, &self.calibrations);
        let defaults = |s: &Snapshot, filter: &Filter| defaults(calibrations, config, s, filter);
        let mut done = vec![false; self.active.len()];
        let mut drawing: Vec<(usize, Outputs)> = Vec::new();
        for (&i, output) in running.iter().zip(outputs) {
            let sequence = &mut self.active[i];
            let context = sequence.request.retrieval.mode.context();
            match sequence.check_liveness(shared, defaults) {
                Liveness::Ended => done[i] = true,
                // Its passages have changed: the model has to read again.
                Liveness::Repinned { .. } if context => {}
                _ if output.draws => drawing.push((i, output.outputs)),
                _ => {}
            }
        }
        for attempt in 1..=SEARCHES {
            if drawing.is_empty() {
                break;
            }
            let neighbors = search(shared, &self.active, &drawing);
            let mut again = Vec::new();
            for (n, (i, outputs)) in drawing.into_iter().enumerate() {
                let sequence = &mut self.active[i];
                let (found, as_of) = match &neighbors {
                    Ok((found, as_of)) => (&found[n], *as_of),
                    Err(error) => {
                        done[i] = sequence.fail(EngineError::Search(error.clone())) == Progress::Done;
                        continue;
                    }
                };
                // Looked at again: the search may have run across a removal. What the model said holds nothing of what was removed, unless
                // passages stood before the text.
                let liveness = sequence.check_liveness(shared, defaults);
                let holds = match liveness {
                    Liveness::Unchanged => true,
                    Liveness::Repinned { asks_the_same } => {
                        asks_the_same && as_of == Some(sequence.pinned.snapshot.epoch)
                    }
                    // Neighbours were weighed with what no longer holds.
                    Liveness::Recalibrated | Liveness::Ended => false,
                };
                match liveness {
                    Liveness::Ended => done[i] = true,
                    Liveness::Repinned { .. } if sequence.request.retrieval.mode.context() => {}
                    _ if holds => {
                        done[i] = sequence.advance(shared, &outputs, found) == Progress::Done;
                    }
                    // In the next step: what else waits must have its turn.
                    _ if attempt == SEARCHES => sequence.read_last_again(),
                    _ => again.push((i, outputs)),
                }
            }
            drawing = again;
        }
        self.keep(|i| !done[i]);
    }
}

/// What a step gave one request.
struct Output {
    outputs: Outputs,
    /// Whether it has now read all of its text.
    draws: bool,
}

fn outputs(
    shared: &Shared,
    running: &mut [&mut Sequence],
    chunk: usize,
    interrupt: &AtomicBool,
) -> Result<Vec<Output>, ModelError> {
    let draws: Vec<bool> = running.iter().map(|s| s.will_draw(chunk)).collect();
    let mut steps: Vec<SequenceStep<'_>> = Vec::new();
    let mut n_parts = Vec::new();
    for sequence in running.iter_mut() {
        let parts = sequence.steps(chunk);
        n_parts.push(parts.len());
        steps.extend(parts);
    }
    let mut outputs = shared.model.step(&mut steps, interrupt)?.into_iter();
    let of_each = n_parts.into_iter().zip(draws);
    Ok(of_each.map(|(n, draws)| Output { outputs: outputs.by_ref().take(n).collect(), draws }).collect())
}

/// Searches the neighbours of all requests that draw and ask for them, in one call. An answer per reader of each request that draws.
fn search(
    shared: &Shared,
    active: &[Sequence],
    drawing: &[(usize, Outputs)],
) -> Result<(Vec<Vec<Found>>, Option<Epoch>), SearchError> {
    let mut asks = Vec::new();
    for (i, outputs) in drawing {
        let sequence = &active[*i];
        if sequence.request.retrieval.mode.knn() {
            asks.extend(outputs.iter().map(|output| sequence.ask(output)));
        }
    }
    let (found, as_of) = find(&*shared.store, &asks)?;
    let mut found = found.into_iter();
    let of_each = drawing.iter().map(|(i, outputs)| match active[*i].request.retrieval.mode.knn() {
        true => found.by_ref().take(outputs.len()).collect(),
        false => vec![Found::default(); outputs.len()],
    });
    Ok((of_each.collect(), as_of))
}
