//! Log-probabilities of a given text, under any mode: perplexity and evaluation run on it.
//!
//! The text is scored alone, from the beginning of text, in windows of which each token is scored once. In the context modes
//! passages are retrieved before every `stride_tokens`-th token from what stands before it, never from what is scored.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use silo_core::{NeighborSearch, Positions, SequenceStep, Snapshot, SourceId, StepOutput, TokenId, mixture};

use crate::context::Layout;
use crate::found::{Ask, Found, find};
use crate::pinned::Pinned;
use crate::{Engine, EngineError, InForce, LeftOut, ScoreRequest, TokenCredit, context, credit};

/// Positions whose logits are held at a time.
const CHUNK_TOKENS: usize = 64;

/// Log-probabilities of a text.
#[derive(Debug, Clone, PartialEq)]
pub struct Score {
    /// One per token that could be scored: all, or all but the first where the model has no beginning of text.
    pub tokens: Vec<ScoredToken>,
    /// The store that it was made from.
    pub snapshot: Arc<Snapshot>,
    /// The parameters in force.
    pub in_force: InForce,
}

/// The log-probability of one token.
#[derive(Debug, Clone, PartialEq)]
pub struct ScoredToken {
    /// Its position in the text.
    pub position: usize,
    /// log p of it.
    pub log_probability: f64,
    /// log p of it by the model alone (which reads the passages in the context modes).
    pub parametric_log_probability: f64,
    /// Weight of the neighbours in p of it: what the cap and the gate leave of `knn_weight`.
    pub knn_weight: f64,
    /// Shares in p of it, if asked for.
    pub credit: Option<TokenCredit>,
    /// Sources that the cap held here.
    pub capped: Vec<SourceId>,
    /// What it would be without each passage, if asked for.
    pub left_out: Vec<LeftOut>,
}

/// A position of the text, as the model and the store see it.
pub(crate) struct Seen<'a> {
    /// In the text.
    pub(crate) position: usize,
    /// What predicts its token.
    pub(crate) logits: &'a [f32],
    /// What neighbours are searched for with; empty in modes without them.
    pub(crate) key: &'a [f32],
    /// What was found in each view.
    pub(crate) found: &'a [&'a Found],
}

/// Takes one position after the other.
pub(crate) type Visit<'a> = dyn FnMut(&Seen<'_>) + 'a;

/// A run of tokens that are scored from one input.
pub(crate) struct Span {
    /// What the model reads before the first of them.
    start: usize,
    /// The tokens to score.
    scored: Range<usize>,
}

impl Span {
    /// Number of tokens to score.
    pub(crate) fn len(&self) -> usize {
        self.scored.len()
    }
}

/// A place among the texts that are scored at the same time.
pub(crate) struct Place<'a>(&'a Engine);

impl<'a> Place<'a> {
    pub(crate) fn take(engine: &'a Engine) -> Result<Self, EngineError> {
        let limit = engine.config.max_scoring;
        let take = |n| (n < limit).then_some(n + 1);
        match engine.scoring.fetch_update(Ordering::AcqRel, Ordering::Acquire, take) {
            Ok(_) => Ok(Self(engine)),
            Err(_) => Err(EngineError::Overloaded { limit }),
        }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.scoring.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Engine {
    /// Scores a text on the calling thread. It is given up once `cancel` is true, when the deadline passes, and when something
    /// that the request may see is removed.
    pub fn score(&self, request: &ScoreRequest, cancel: &AtomicBool) -> Result<Score, EngineError> {
        self.check_left_out(request.leave_one_passage_out, &request.retrieval)?;
        let pinned = self.pin_for_score(request)?;
        let _place = Place::take(self)?;
        let mut tokens = Vec::with_capacity(request.tokens.len());
        for span in self.spans(request)? {
            let layout = self.layout(request, &pinned, &span)?;
            let first = tokens.len();
            self.visit_input(request, &[&pinned], (&span, &layout.tokens), cancel, &mut |seen| {
                tokens.push(self.scored(request, &pinned, seen));
            })?;
            let n_left_out = if request.leave_one_passage_out { layout.passages.len() } else { 0 };
            for i in 0..n_left_out {
                let (passage, mut next) = (&layout.passages[i].0, first);
                let input = layout.without(i);
                self.visit_input(request, &[&pinned], (&span, &input), cancel, &mut |seen| {
                    let token = request.tokens[seen.position];
                    let log_p_lm = mixture::log_softmax(seen.logits)[token as usize];
                    let log_probability = pinned.log_probability(log_p_lm, seen.found[0], token);
                    tokens[next].left_out.push(LeftOut { passage: passage.clone(), log_probability });
                    next += 1;
                })?;
            }
        }
        let context = self.context_parameters(&request.retrieval);
        let in_force = pinned.in_force(&request.retrieval, context);
        Ok(Score { tokens, snapshot: pinned.snapshot, in_force })
    }

    pub(crate) fn pin_for_score(&self, request: &ScoreRequest) -> Result<Pinned, EngineError> {
        self.check_retrieval(&request.retrieval)?;
        self.check_tokens(&request.tokens)?;
        self.pin(&request.retrieval)
    }

    /// Cuts the text into spans.
    pub(crate) fn spans(&self, request: &ScoreRequest) -> Result<Vec<Span>, EngineError> {
        let invalid =
            |field, value: usize, rule: String| Err(EngineError::Invalid { field, value: value.to_string(), rule });
        let bos = usize::from(self.shared.tokenizer.beginning_of_text().is_some());
        let limit = self.shared.model.card().context_tokens;
        let window = if request.window_tokens == 0 { limit } else { request.window_tokens };
        if window > limit || window < 2 {
            return invalid("window_tokens", window, format!("it must be from 2 to {limit}, the model's window"));
        }
        let stride = if request.stride_tokens == 0 { window / 2 } else { request.stride_tokens };
        if stride > window {
            return invalid("stride_tokens", stride, format!("it must be at most the window of {window}"));
        }
        let n = request.tokens.len();
        let context = self.context_parameters(&request.retrieval);
        let mut spans = Vec::new();
        let mut next = 1 - bos; // without a beginning of text, nothing predicts the first token
        while next < n {
            // A window reads the beginning of text and up to `window − 1` tokens before the last that it scores.
            let (start, end) = if request.retrieval.mode.context() {
                (0, n.min(next + context.stride_tokens.min(window / 4).max(1)))
            } else if next < stride {
                (0, n.min(window - bos + 1).min(n))
            } else {
                let end = n.min(next + stride);
                ((end + bos).saturating_sub(window + 1).min(next), end)
            };
            spans.push(Span { start, scored: next..end });
            next = end;
        }
        Ok(spans)
    }

    /// What the model reads for a span; its last tokens are those of the span but the last.
    pub(crate) fn layout(&self, request: &ScoreRequest, pinned: &Pinned, span: &Span) -> Result<Layout, EngineError> {
        let tokenizer = &*self.shared.tokenizer;
        if !request.retrieval.mode.context() {
            let bos = tokenizer.beginning_of_text().into_iter();
            let tokens = bos.chain(request.tokens[span.start..span.scored.end - 1].iter().copied()).collect();
            return Ok(Layout { tokens, passages: Vec::new() });
        }
        let parameters = self.context_parameters(&request.retrieval);
        let before = &request.tokens[..span.scored.start];
        let store = &*self.shared.store;
        let passages =
            context::retrieve(store, tokenizer, &pinned.snapshot, &pinned.context_mask, before, &parameters)?;
        let window =
            if request.window_tokens == 0 { self.shared.model.card().context_tokens } else { request.window_tokens };
        let n_read = span.scored.len() - 1;
        let seen = (tokenizer, &*pinned.snapshot);
        let mut layout = context::lay_out(seen, &passages, before, &parameters, window, n_read);
        layout.tokens.extend_from_slice(&request.tokens[span.scored.start..span.scored.end - 1]);
        Ok(layout)
    }

    /// Goes through the tokens of a span. In the context modes there is one view, for what the model reads depends on it.
    pub(crate) fn visit_span(
        &self,
        request: &ScoreRequest,
        views: &[&Pinned],
        span: &Span,
        cancel: &AtomicBool,
        each: &mut Visit<'_>,
    ) -> Result<(), EngineError> {
        let layout = self.layout(request, views[0], span)?;
        self.visit_input(request, views, (span, &layout.tokens), cancel, each)
    }

    /// The same with an input that ends as the span's does; without a view, nothing is searched for.
    pub(crate) fn visit_input(
        &self,
        request: &ScoreRequest,
        views: &[&Pinned],
        (span, input): (&Span, &[TokenId]),
        cancel: &AtomicBool,
        each: &mut Visit<'_>,
    ) -> Result<(), EngineError> {
        let first_scored = input.len() - span.scored.len();
        let knn = request.retrieval.mode.knn();
        let mut cache = self.shared.model.new_cache();
        let (mut read, nothing) = (0, Found::default());
        let mut position = span.scored.start;
        while read < input.len() {
            self.check_goes_on(request, views, cancel)?;
            let chunk = &input[read..input.len().min(read + CHUNK_TOKENS)];
            let from = Positions::From(first_scored.saturating_sub(read));
            let keys = if knn { from } else { Positions::None };
            let mut steps = [SequenceStep { cache: cache.as_mut(), tokens: chunk, logits: from, keys }];
            let output = self.shared.model.step(&mut steps, cancel)?.remove(0);
            let found: Vec<Vec<Found>> = views
                .iter()
                .map(|pinned| self.search_all(pinned, &output, (&request.tokens, position)))
                .collect::<Result<_, _>>()?;
            for (i, logits) in output.logits.rows().enumerate() {
                let of_each: Vec<&Found> = found.iter().map(|found| found.get(i).unwrap_or(&nothing)).collect();
                let key = if knn { output.keys.row(i) } else { &[] };
                each(&Seen { position, logits, key, found: &of_each });
                position += 1;
            }
            read += chunk.len();
        }
        // What was just computed counts only if nothing of it was removed meanwhile.
        self.check_goes_on(request, views, cancel)
    }

    /// Searches for the neighbours of tokens of the text from that position on.
    fn search_all(
        &self,
        pinned: &Pinned,
        output: &StepOutput,
        (text, first): (&[TokenId], usize),
    ) -> Result<Vec<Found>, EngineError> {
        let rows = output.keys.rows().zip(output.logits.rows()).zip(first..);
        let asks: Vec<Ask<'_>> =
            rows.map(|((key, logits), position)| Ask { pinned, key, logits, text: &text[..position] }).collect();
        Ok(find(&*self.shared.store, &asks)?.0)
    }

    fn check_goes_on(&self, request: &ScoreRequest, views: &[&Pinned], cancel: &AtomicBool) -> Result<(), EngineError> {
        if cancel.load(Ordering::Relaxed) {
            return Err(EngineError::Cancelled);
        }
        if request.deadline.is_some_and(|d| Instant::now() >= d) {
            return Err(EngineError::DeadlineExceeded);
        }
        let store = &*self.shared.store;
        let live = |pinned: &&Pinned| {
            pinned.view.is_live(store) && pinned.other_parameters(store, |s, filter| self.defaults(s, filter)).is_none()
        };
        if views.iter().all(live) { Ok(()) } else { Err(EngineError::SourceRemoved) }
    }

    fn scored(&self, request: &ScoreRequest, pinned: &Pinned, seen: &Seen<'_>) -> ScoredToken {
        let (token, found) = (request.tokens[seen.position], seen.found[0]);
        let log_p_lm = mixture::log_softmax(seen.logits)[token as usize];
        let store: &dyn NeighborSearch = &*self.shared.store;
        let credit = request.depth.map(|d| credit::credit((store, pinned, d), log_p_lm, found, token));
        ScoredToken {
            position: seen.position,
            log_probability: pinned.log_probability(log_p_lm, found, token),
            parametric_log_probability: log_p_lm,
            knn_weight: mixture::effective_weight(&found.knn, pinned.knn.knn_weight),
            credit,
            capped: found.capped.clone(),
            left_out: Vec::new(),
        }
    }
}
