//! Waking a sleeping ring from another thread.
//!
//! The sleeper stores "asleep", then looks at its queues; the waker fills a queue, then looks at "asleep". With a full
//! fence between the two steps on each side, at least one of them sees the other, so that no message waits for a
//! sleeper (Dekker's argument).

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};

/// Wakes one ring. Cheap while the ring is busy: one fence and one load.
#[derive(Clone)]
pub struct Waker(Arc<Shared>);

struct Shared {
    asleep: AtomicBool,
    event: File,
}

impl Waker {
    pub(crate) fn new() -> io::Result<Self> {
        // Blocking, since a read on a non-blocking descriptor would fail at once instead of waiting in the ring.
        // SAFETY: no pointers.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: a fresh descriptor that nobody else owns.
        let event = unsafe { File::from_raw_fd(fd) };
        Ok(Self(Arc::new(Shared { asleep: AtomicBool::new(false), event })))
    }

    /// Makes the ring's `enter` return soon, if it waits or is about to. Call it after the message is in the queue.
    pub fn wake(&self) {
        fence(Ordering::SeqCst);
        // The swap lets one of several wakers alone pay for the system call.
        if self.0.asleep.load(Ordering::Relaxed) && self.0.asleep.swap(false, Ordering::AcqRel) {
            // It cannot fail but by overflow of the 64-bit counter, and then the ring is being woken anyway.
            let _ = (&self.0.event).write(&1u64.to_ne_bytes());
        }
    }

    /// Announces sleep; what `wake` was called for before is visible to the caller's next look at its queues.
    pub(crate) fn fall_asleep(&self) {
        self.0.asleep.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    pub(crate) fn stay_awake(&self) {
        self.0.asleep.store(false, Ordering::Relaxed);
    }
}

impl AsRawFd for Waker {
    fn as_raw_fd(&self) -> RawFd {
        self.0.event.as_raw_fd()
    }
}
