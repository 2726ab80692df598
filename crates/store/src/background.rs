//! Work that must not slow down those who wait for an answer.

/// Runs `work` on a thread of its own that gets processor time when no other thread of the machine wants it.
pub fn in_background<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            lower_priority();
            work()
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

#[cfg(target_os = "linux")]
fn lower_priority() {
    // On Linux a priority is a thread's, and 0 is the calling one. What it cannot be lowered to costs speed, not correctness.
    // SAFETY: the call takes numbers and touches no memory of this process.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, 19) };
}

#[cfg(not(target_os = "linux"))]
fn lower_priority() {}
