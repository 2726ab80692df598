//! Requests that wait for a place, and how many somebody still waits for.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::EngineError;
use crate::sequence::Sequence;

/// Shared by the callers and the engine's thread.
pub(crate) struct Queue {
    limit: usize,
    state: Mutex<State>,
    changed: Condvar,
    /// True while nobody waits for anything: a step is then given up between layers. Written under the lock only.
    pub(crate) interrupt: AtomicBool,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Sequence>,
    /// Requests, waiting or active, whose callers are there.
    wanted: usize,
    closed: bool,
}

impl Queue {
    pub(crate) fn new(limit: usize) -> Self {
        Self { limit, state: Mutex::default(), changed: Condvar::new(), interrupt: AtomicBool::new(false) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // The state is whole after each statement: a panic elsewhere leaves nothing half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Refuses at once when it is full. Places of callers who have gone are free.
    fn check(&self, state: &mut State) -> Result<(), EngineError> {
        if state.closed {
            return Err(EngineError::ShuttingDown);
        }
        if state.waiting.len() >= self.limit {
            state.waiting.retain(|s| !s.abandoned());
        }
        if state.waiting.len() >= self.limit { Err(EngineError::Overloaded { limit: self.limit }) } else { Ok(()) }
    }

    /// Whether another request would be taken.
    pub(crate) fn has_place(&self) -> Result<(), EngineError> {
        self.check(&mut self.lock())
    }

    /// Takes a request, whose caller promises to call [`Self::caller_gone`] once.
    pub(crate) fn push(&self, sequence: Sequence) -> Result<(), EngineError> {
        let mut state = self.lock();
        self.check(&mut state)?;
        state.waiting.push_back(sequence);
        state.wanted += 1;
        self.interrupt.store(false, Ordering::Release);
        self.changed.notify_one();
        Ok(())
    }

    /// A caller takes no more.
    pub(crate) fn caller_gone(&self) {
        let mut state = self.lock();
        state.wanted -= 1;
        self.interrupt.store(state.wanted == 0, Ordering::Release);
        self.changed.notify_one();
    }

    /// No more requests; ends the waiting of the engine's thread.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.interrupt.store(true, Ordering::Release);
        self.changed.notify_one();
    }

    pub(crate) fn len(&self) -> usize {
        self.lock().waiting.len()
    }

    /// Lets `keep` decide of each waiting request whether it stays.
    pub(crate) fn retain(&self, keep: impl FnMut(&mut Sequence) -> bool) {
        self.lock().waiting.retain_mut(keep);
    }

    /// The next request, if there is one now.
    pub(crate) fn pop(&self) -> Option<Sequence> {
        self.lock().waiting.pop_front()
    }

    /// Waits until there is a request, or the queue is closed, or `timeout` has passed. False when it is closed.
    pub(crate) fn wait(&self, timeout: Option<Duration>) -> bool {
        let state = self.lock();
        let idle = |s: &mut State| s.waiting.is_empty() && !s.closed;
        let state = match timeout {
            Some(timeout) => self.changed.wait_timeout(state, timeout).unwrap_or_else(PoisonError::into_inner).0,
            None => self.changed.wait_while(state, idle).unwrap_or_else(PoisonError::into_inner),
        };
        !state.closed
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.lock().closed
    }
}
