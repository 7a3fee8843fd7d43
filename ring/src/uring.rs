//! The raw ring: the crate's queues, kept split for the ring's whole life.

use std::collections::VecDeque;
use std::io;
use std::mem::ManuallyDrop;
use std::ptr::NonNull;
use std::time::Duration;

use io_uring::types::{SubmitArgs, Timespec};
use io_uring::{CompletionQueue, IoUring, SubmissionQueue, Submitter, cqueue, squeue};

use crate::error::RingError;

/// An `IoUring` with its three parts borrowed for good: only one `Submitter` knows the registered ring descriptor.
pub(crate) struct Uring {
    submitter: ManuallyDrop<Submitter<'static>>,
    sq: ManuallyDrop<SubmissionQueue<'static>>,
    cq: ManuallyDrop<CompletionQueue<'static>>,
    /// Owned; what the parts borrow from.
    ring: NonNull<IoUring>,
    /// Entries that found the queue full and the kernel unwilling; pushed first at the next occasion.
    backlog: VecDeque<squeue::Entry>,
}

impl Uring {
    pub(crate) fn new(sq_entries: u32, cq_entries: u32) -> Result<Self, RingError> {
        let ring: IoUring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_coop_taskrun()
            .setup_submit_all()
            .setup_no_sqarray()
            .setup_taskrun_flag()
            .setup_cqsize(cq_entries)
            .build(sq_entries)
            .map_err(|e| RingError::new("set up io_uring", e))?;
        let params = ring.params();
        if !(params.is_feature_nodrop() && params.is_feature_ext_arg() && params.is_feature_submit_stable()) {
            return Err(RingError::too_old("NODROP, EXT_ARG or SUBMIT_STABLE"));
        }
        if !params.is_feature_recvsend_bundle() {
            return Err(RingError::too_old("receive bundles"));
        }
        let ring = NonNull::from(Box::leak(Box::new(ring)));
        // SAFETY: the box stays at its place until `drop`, which ends the parts first, and is not used in between.
        let (submitter, sq, cq) = unsafe { &mut *ring.as_ptr() }.split();
        let mut this = Self {
            submitter: ManuallyDrop::new(submitter),
            sq: ManuallyDrop::new(sq),
            cq: ManuallyDrop::new(cq),
            ring,
            backlog: VecDeque::new(),
        };
        this.submitter.register_ring_fd().map_err(|e| RingError::new("register the ring's descriptor", e))?;
        Ok(this)
    }

    pub(crate) fn submitter(&self) -> &Submitter<'static> {
        &self.submitter
    }

    /// Queues an operation; when the queue is full, submits it first.
    ///
    /// # Safety
    /// What `entry` points to must live, and not be accessed, until its final completion was taken.
    pub(crate) unsafe fn push(&mut self, entry: squeue::Entry) {
        // SAFETY: the caller's promise; a full queue refuses.
        if self.backlog.is_empty() && unsafe { self.sq.push(&entry) }.is_ok() {
            return;
        }
        self.backlog.push_back(entry);
        // An error shows again at the next `enter`, which has a way to report it.
        let _ = self.enter(0, None);
    }

    /// Queues an operation and the one that is linked to it, in one submission as far as the queue allows.
    ///
    /// # Safety
    /// As of [`Uring::push`], for both.
    pub(crate) unsafe fn push_linked(&mut self, first: squeue::Entry, then: squeue::Entry) {
        if self.sq.capacity() - self.sq.len() < 2 {
            // As in `push`.
            let _ = self.enter(0, None);
        }
        // SAFETY: the caller's promise.
        unsafe {
            self.push(first);
            self.push(then);
        }
    }

    /// Submits, and waits for `want` completions or `timeout`. Running out of time, a signal, and the kernel's asking
    /// to take completions first, are no errors.
    pub(crate) fn enter(&mut self, want: usize, timeout: Option<Duration>) -> io::Result<()> {
        loop {
            self.move_backlog();
            // The last part of a backlog is what may wait; before it there is something to submit without waiting.
            let want_now = if self.backlog.is_empty() { want } else { 0 };
            let (before, backlog) = (self.sq.len(), self.backlog.len());
            self.enter_once(want_now, timeout)?;
            let stuck = self.sq.len() == before;
            if backlog == 0 || stuck {
                return Ok(());
            }
        }
    }

    fn enter_once(&mut self, want: usize, timeout: Option<Duration>) -> io::Result<()> {
        self.sq.sync();
        let result = match timeout.filter(|_| want > 0) {
            Some(timeout) => {
                let time = Timespec::from(timeout);
                self.submitter.submit_with_args(want, &SubmitArgs::new().timespec(&time))
            }
            None => self.submitter.submit_and_wait(want),
        };
        self.sq.sync();
        self.cq.sync();
        match result {
            Ok(_) => Ok(()),
            Err(e) => match e.raw_os_error() {
                Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN) => Ok(()),
                _ => Err(e),
            },
        }
    }

    fn move_backlog(&mut self) {
        while let Some(entry) = self.backlog.front() {
            // SAFETY: as promised to `push`.
            if unsafe { self.sq.push(entry) }.is_err() {
                break;
            }
            self.backlog.pop_front();
        }
    }

    /// Whether an `enter` without waiting would do anything.
    pub(crate) fn needs_enter(&self) -> bool {
        !self.sq.is_empty() || !self.backlog.is_empty() || self.sq.taskrun() || self.sq.cq_overflow()
    }

    /// Whether everything that was pushed has been submitted.
    pub(crate) fn is_submitted(&self) -> bool {
        self.sq.is_empty() && self.backlog.is_empty()
    }

    /// Whether the kernel keeps completions back that found no room in the queue.
    pub(crate) fn has_overflowed(&self) -> bool {
        self.sq.cq_overflow()
    }

    /// Whether completions are there to be taken.
    pub(crate) fn has_completions(&mut self) -> bool {
        self.cq.sync();
        !self.cq.is_empty()
    }

    pub(crate) fn next(&mut self) -> Option<cqueue::Entry> {
        let entry = self.cq.next();
        if entry.is_none() {
            // Gives the taken entries back to the kernel, and looks for what an `enter` in a push may have brought.
            self.cq.sync();
            return self.cq.next();
        }
        entry
    }
}

impl Drop for Uring {
    fn drop(&mut self) {
        // A thread has 16 places for registered rings, and closing a ring does not free its place.
        let _ = self.submitter.unregister_ring_fd();
        // SAFETY: each is dropped once, the parts before what they borrow from.
        unsafe {
            ManuallyDrop::drop(&mut self.cq);
            ManuallyDrop::drop(&mut self.sq);
            ManuallyDrop::drop(&mut self.submitter);
            drop(Box::from_raw(self.ring.as_ptr()));
        }
    }
}
