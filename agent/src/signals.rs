//! Signals as something to be read, so that the event loop takes them between two turns.

use std::os::fd::{AsFd, BorrowedFd};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wish {
    /// SIGTERM, SIGINT: go, in order.
    Leave,
    /// SIGHUP: read again what may have changed.
    Reload,
}

/// The signals' descriptor.
pub(crate) struct Signals(SignalFd);

impl Signals {
    /// Takes the signals from now on. Threads that are started later do not get them either.
    ///
    /// # Errors
    /// The system's.
    pub(crate) fn take() -> nix::Result<Self> {
        let mut mask = SigSet::empty();
        for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
            mask.add(signal);
        }
        mask.thread_block()?;
        Ok(Self(SignalFd::with_flags(&mask, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?))
    }

    /// What came since.
    pub(crate) fn wishes(&self) -> Vec<Wish> {
        let mut wishes = Vec::new();
        while let Ok(Some(signal)) = self.0.read_signal() {
            wishes.push(if signal.ssi_signo == Signal::SIGHUP as u32 { Wish::Reload } else { Wish::Leave });
        }
        wishes
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
