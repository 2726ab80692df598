//! One request on its way through the loop.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use silo_core::mixture;
use silo_core::sampling::sample;
use silo_core::{
    Datastore, Detokenizer, Filter, LanguageModel, NeighborSearch, Passage, Positions, SearchError, SequenceStep,
    Snapshot, SourceId, StepOutput, TokenId, Tokenizer,
};
use tokio::sync::mpsc;

use crate::found::{Ask, Found};
use crate::guard::{Guard, Watched};
use crate::pinned::{Defaults, Pinned};
use crate::reader::Reader;
use crate::stop::StopMatcher;
use crate::{
    ContextParameters, Credit, EngineError, Event, FinishReason, Finished, GenerateRequest, LeftOut, OnRemoval,
    PassageId, TokenCredit, TokenEvent, Usage, context, credit,
};

/// What all requests share.
pub(crate) struct Shared {
    pub(crate) model: Arc<dyn LanguageModel>,
    pub(crate) tokenizer: Arc<dyn Tokenizer>,
    pub(crate) store: Arc<dyn Datastore>,
    pub(crate) guard: Guard,
}

/// A request on its way.
pub(crate) struct Sequence {
    pub(crate) request: GenerateRequest,
    pub(crate) pinned: Pinned,
    pub(crate) context: ContextParameters,
    reader: Reader,
    /// The same with a passage left out, if asked for: one for each.
    left_out: Vec<(PassageId, Reader)>,
    /// Prompt and new tokens.
    text: Vec<TokenId>,
    usage: Usage,
    random: ChaCha8Rng,
    detokenizer: Detokenizer,
    stop: StopMatcher,
    credit: Credit,
    repinned: bool,
    context_sources: BTreeSet<SourceId>,
    watched: Watched,
    /// Since when its reader has had no room.
    stalled: Option<Instant>,
    sender: mpsc::Sender<Event>,
}

/// Whether a sequence goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Progress {
    /// It wants another step.
    GoesOn,
    /// It is done, and its last message was sent.
    Done,
}

impl Sequence {
    pub(crate) fn new(
        shared: &Shared,
        request: GenerateRequest,
        pinned: Pinned,
        context: ContextParameters,
        sender: mpsc::Sender<Event>,
    ) -> Self {
        let usage = Usage { prompt_tokens: request.prompt.len() as u64, ..Usage::default() };
        Self {
            reader: Reader::new(&*shared.model),
            left_out: Vec::new(),
            text: request.prompt.clone(),
            usage,
            random: ChaCha8Rng::seed_from_u64(request.seed),
            detokenizer: Detokenizer::default(),
            stop: StopMatcher::new(&request.stop),
            credit: Credit::default(),
            repinned: false,
            context_sources: BTreeSet::new(),
            watched: Watched::default(),
            stalled: None,
            request,
            pinned,
            context,
            sender,
        }
    }

    /// Retrieves passages, if asked for, and lays out what the model reads. The cache keeps what stays the same.
    pub(crate) fn lay_out(&mut self, shared: &Shared) -> Result<(), EngineError> {
        let mut passages = Vec::new();
        if self.request.retrieval.mode.context() {
            let (snapshot, mask) = (&self.pinned.snapshot, &self.pinned.context_mask);
            passages =
                context::retrieve(&*shared.store, &*shared.tokenizer, snapshot, mask, &self.text, &self.context)?;
            self.usage.passage_searches += 1;
            let source = |p: &Passage| self.pinned.snapshot.source_of(p.shard).clone();
            self.context_sources.extend(passages.iter().map(source));
        }
        let window = shared.model.card().context_tokens;
        // Room for the tokens until the next search.
        let room = self.context.stride_tokens.min(window / 4).max(1);
        let room = if self.request.retrieval.mode.context() { room } else { 0 };
        let seen = (&*shared.tokenizer, &*self.pinned.snapshot);
        let layout = context::lay_out(seen, &passages, &self.text, &self.context, window, room);
        if self.request.leave_one_passage_out {
            let mut known = std::mem::take(&mut self.left_out).into_iter().map(|(_, reader)| reader);
            for (i, (passage, _)) in layout.passages.iter().enumerate() {
                let mut reader = known.next().unwrap_or_else(|| Reader::new(&*shared.model));
                reader.turn_to(layout.without(i));
                self.left_out.push((passage.clone(), reader));
            }
        }
        self.reader.turn_to(layout.tokens);
        Ok(())
    }

    /// Whether nobody waits for it any more.
    pub(crate) fn abandoned(&self) -> bool {
        self.sender.is_closed()
    }

    /// Whether its reader has room for another token and for the end.
    pub(crate) fn has_room(&self) -> bool {
        self.sender.capacity() >= 2
    }

    /// Ends it if its time is over, or its reader's.
    pub(crate) fn check_time(&mut self, now: Instant, stalled_reader: Duration) -> Progress {
        match (self.has_room(), self.stalled) {
            (true, _) => self.stalled = None,
            (false, None) => self.stalled = Some(now),
            (false, Some(since)) if now.duration_since(since) >= stalled_reader => {
                return self.fail(EngineError::StalledReader { seconds: stalled_reader.as_secs() });
            }
            (false, Some(_)) => {}
        }
        if self.request.deadline.is_some_and(|d| now >= d) {
            return self.fail(EngineError::DeadlineExceeded);
        }
        if self.request.time_limit.is_some_and(|d| now >= d) {
            return self.finish(FinishReason::TimeLimit);
        }
        Progress::GoesOn
    }

    fn readers(&self) -> impl Iterator<Item = &Reader> {
        std::iter::once(&self.reader).chain(self.left_out.iter().map(|(_, reader)| reader))
    }

    /// Of the tokens of a step, so many for each reader.
    fn part_of(&self, chunk: usize) -> usize {
        (chunk / (1 + self.left_out.len())).max(1)
    }

    /// Whether a step over at most `chunk` more tokens ends with the text's last one, so that a token can be drawn.
    pub(crate) fn will_draw(&self, chunk: usize) -> bool {
        self.readers().all(|reader| reader.unread() <= self.part_of(chunk))
    }

    /// Its parts of a step, its own reader's first. All come to their last token in the same step.
    pub(crate) fn steps(&mut self, chunk: usize) -> Vec<SequenceStep<'_>> {
        let (draws, chunk) = (self.will_draw(chunk), self.part_of(chunk));
        let at_end = if draws { Positions::Last } else { Positions::None };
        let keys = if self.request.retrieval.mode.knn() { at_end } else { Positions::None };
        let readers = std::iter::once(&mut self.reader).chain(self.left_out.iter_mut().map(|(_, reader)| reader));
        let parts =
            readers.map(|reader| (if draws { reader.unread() } else { chunk.min(reader.unread() - 1) }, reader));
        parts.filter(|(n, _)| *n > 0).map(|(n, reader)| reader.step(n, at_end, keys)).collect()
    }

    /// What a removal does to it: nothing, if everything that it may see is live.
    pub(crate) fn check_liveness(
        &mut self,
        shared: &Shared,
        defaults: impl Fn(&Snapshot, &Filter) -> Defaults,
    ) -> Liveness {
        let mode = self.request.retrieval.mode;
        if self.is_live(shared) {
            return match self.pinned.recalibrate(&*shared.store, defaults) {
                true => Liveness::Recalibrated,
                false => Liveness::Unchanged,
            };
        }
        if self.request.on_removal == OnRemoval::End {
            self.finish(FinishReason::SourceRemoved);
            return Liveness::Ended;
        }
        if self.detokenizer.holds() || self.stop.holds() {
            // Text that may have been made with what is gone must not come any more, and the rest would not be whole without it.
            self.fail(EngineError::SourceRemoved);
            return Liveness::Ended;
        }
        let pinned = Pinned::new(&*shared.store, &self.request.retrieval, defaults);
        let asks_the_same = pinned.asks_the_same(&self.pinned);
        // Before its first token it was made from nothing.
        self.repinned |= self.usage.new_tokens > 0;
        self.pinned = pinned;
        let renewed = if mode.context() { self.lay_out(shared) } else { Ok(()) };
        match renewed {
            Ok(()) => Liveness::Repinned { asks_the_same },
            Err(error) => {
                self.fail(error);
                Liveness::Ended
            }
        }
    }

    /// Makes the model read the last token again, for what it says there was not used.
    pub(crate) fn read_last_again(&mut self) {
        self.reader.read_last_again();
        self.left_out.iter_mut().for_each(|(_, reader)| reader.read_last_again());
    }

    /// Whether all that it may see is still in the store.
    pub(crate) fn is_live(&self, shared: &Shared) -> bool {
        self.pinned.view.is_live(&*shared.store)
    }

    /// What is asked for its next token, of one of its readers.
    pub(crate) fn ask<'a>(&'a self, output: &'a StepOutput) -> Ask<'a> {
        Ask { pinned: &self.pinned, key: output.keys.row(0), logits: output.logits.row(0), text: &self.text }
    }

    /// Draws the next token from what the model and the neighbours say to each of its readers, and sends it.
    pub(crate) fn advance(&mut self, shared: &Shared, outputs: &[StepOutput], each: &[Found]) -> Progress {
        let (log_p_lm, found) = (mixture::log_softmax(outputs[0].logits.row(0)), &each[0]);
        let mut log_p = mixture::interpolate(&log_p_lm, &found.knn, self.pinned.knn.knn_weight);
        let alternatives = match self.shown(shared, most_probable(&log_p, self.request.alternatives)) {
            Ok(alternatives) => alternatives,
            Err(error) => return self.fail(EngineError::Search(error)),
        };
        let mixed = self.request.sampling_changes().then(|| log_p.clone());
        let token = match self.draw(shared, &mut log_p, mixed.as_deref()) {
            Ok(Some(token)) => token,
            Ok(None) => return self.finish(FinishReason::VerbatimLimit),
            Err(error) => return self.fail(EngineError::Search(error)),
        };
        let log_probability = mixed.as_ref().unwrap_or(&log_p)[token as usize];
        let credit = self.credit(shared, log_p_lm[token as usize], found, token);
        let left_out = self.left_out(&outputs[1..], &each[1..], token);
        self.credit.add_passages(log_probability, &left_out);
        self.usage.new_tokens += 1;
        self.usage.neighbor_searches += each.iter().map(|found| found.searches).sum::<u64>();
        self.text.push(token);
        self.reader.push(token);
        self.left_out.iter_mut().for_each(|(_, reader)| reader.push(token));
        if shared.tokenizer.end_of_text().contains(&token) {
            return self.finish(FinishReason::EndOfText);
        }
        let piece = self.detokenizer.push(shared.tokenizer.bytes(token));
        let (text, stopped) = self.stop.push(&piece);
        let event = TokenEvent { token, text, log_probability, alternatives, credit, left_out };
        self.send(Event::Token(event, self.pinned.view.clone()));
        if stopped {
            return self.finish(FinishReason::Stop);
        }
        if self.usage.new_tokens as usize >= self.request.max_new_tokens {
            return self.finish(FinishReason::Length);
        }
        self.prepare_next(shared)
    }

    /// Those of the most probable tokens that may leave.
    fn shown(&self, shared: &Shared, all: Vec<(TokenId, f64)>) -> Result<Vec<(TokenId, f64)>, SearchError> {
        let mut out = Vec::with_capacity(all.len());
        for (token, log_p) in all {
            let (store, tokenizer) = (&*shared.store, &*shared.tokenizer);
            // What is learnt about a token that is only shown says nothing about the text.
            let mut watched = self.watched;
            if !shared.guard.refuses((store, tokenizer), &mut watched, &self.text, token)? {
                out.push((token, log_p));
            }
        }
        Ok(out)
    }

    /// Draws a token that may leave; `None` if there is none. `mixed` is `log_p` as it is on entry, where drawing changes it.
    fn draw(
        &mut self,
        shared: &Shared,
        log_p: &mut [f64],
        mixed: Option<&[f64]>,
    ) -> Result<Option<TokenId>, SearchError> {
        let mut refused = Vec::new();
        loop {
            let u = self.random.random::<f64>();
            let token = sample(log_p, &self.request.sampling, &self.text, u);
            let (store, tokenizer) = (&*shared.store, &*shared.tokenizer);
            let ends = tokenizer.end_of_text().contains(&token);
            if ends || !shared.guard.refuses((store, tokenizer), &mut self.watched, &self.text, token)? {
                return Ok(Some(token));
            }
            self.usage.refused_tokens += 1;
            refused.push(token);
            if shared.guard.ends(refused.len()) {
                return Ok(None);
            }
            mixed.iter().for_each(|mixed| log_p.copy_from_slice(mixed));
            refused.iter().for_each(|token| log_p[*token as usize] = f64::NEG_INFINITY);
        }
    }

    /// Retrieves anew at every stride, and ends when the window is full.
    fn prepare_next(&mut self, shared: &Shared) -> Progress {
        let window = shared.model.card().context_tokens;
        if self.request.retrieval.mode.context() {
            let due = (self.usage.new_tokens as usize).is_multiple_of(self.context.stride_tokens);
            if (due || self.reader.len() > window)
                && let Err(error) = self.lay_out(shared)
            {
                return self.fail(error);
            }
        } else if self.reader.len() > window {
            return self.finish(FinishReason::ContextFull);
        }
        Progress::GoesOn
    }

    /// The shares in a token, which are added to those of the text.
    fn credit(&mut self, shared: &Shared, log_p_lm: f64, found: &Found, token: TokenId) -> TokenCredit {
        let seen = (&*shared.store as &dyn NeighborSearch, &self.pinned, self.request.depth);
        let credit = credit::credit(seen, log_p_lm, found, token);
        self.credit.add(&credit);
        credit
    }

    /// The token with one passage fewer.
    fn left_out(&self, outputs: &[StepOutput], found: &[Found], token: TokenId) -> Vec<LeftOut> {
        let without = |((passage, _), (output, found)): (&(PassageId, Reader), (&StepOutput, &Found))| {
            let log_p_lm = mixture::log_softmax(output.logits.row(0))[token as usize];
            let log_probability = self.pinned.log_probability(log_p_lm, found, token);
            LeftOut { passage: passage.clone(), log_probability }
        };
        self.left_out.iter().zip(outputs.iter().zip(found)).map(without).collect()
    }

    /// Fails it.
    pub(crate) fn fail(&mut self, error: EngineError) -> Progress {
        self.send(Event::Failed(error));
        Progress::Done
    }

    /// Ends it.
    pub(crate) fn finish(&mut self, reason: FinishReason) -> Progress {
        let mut text = String::new();
        if reason != FinishReason::Stop {
            let (rest, _) = self.stop.push(&self.detokenizer.finish());
            text = rest + &self.stop.finish();
        }
        let finished = Finished {
            reason,
            text,
            usage: self.usage,
            view: self.pinned.view.clone(),
            in_force: self.pinned.in_force(&self.request.retrieval, self.context),
            credit: std::mem::take(&mut self.credit),
            repinned: self.repinned,
            context_sources: std::mem::take(&mut self.context_sources).into_iter().collect(),
        };
        self.send(Event::Finished(Box::new(finished)));
        Progress::Done
    }

    /// There is room, or the reader has gone: see [`Self::has_room`].
    fn send(&self, event: Event) {
        let _ = self.sender.try_send(event);
    }
}

/// What a look at the store's liveness led to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Liveness {
    /// All is live.
    Unchanged,
    /// All is live, but other parameters hold: what they were tuned on has gone.
    Recalibrated,
    /// The sequence goes on with another snapshot.
    Repinned {
        /// Of the same shards, and with the same parameters.
        asks_the_same: bool,
    },
    /// The sequence has ended.
    Ended,
}

/// The `n` most probable tokens, most probable first.
fn most_probable(log_p: &[f64], n: usize) -> Vec<(TokenId, f64)> {
    if n == 0 {
        return Vec::new();
    }
    let mut all: Vec<(TokenId, f64)> = log_p.iter().enumerate().map(|(i, &lp)| (i as TokenId, lp)).collect();
    let order = |a: &(TokenId, f64), b: &(TokenId, f64)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
    if all.len() > n {
        all.select_nth_unstable_by(n - 1, order);
        all.truncate(n);
    }
    all.sort_by(order);
    all
}

impl GenerateRequest {
    /// Whether sampling changes log p in place.
    fn sampling_changes(&self) -> bool {
        self.sampling.repetition_penalty != 1.0 || !self.sampling.bias.is_empty()
    }
}
