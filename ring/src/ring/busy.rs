//! Busy polling: looking for completions for a while before the ring sleeps.

use std::hint::spin_loop;
use std::io;
use std::time::{Duration, Instant};

use super::Ring;

/// Longest spell of busy polling. Beyond it a wake-up, of tens of microseconds, is no cost worth a processor.
pub const BUSY_POLL_MAX: Duration = Duration::from_millis(1);

impl Ring {
    /// Before [`Ring::enter`] sleeps, it shall poll for `spell` (zero: not at all), at most [`BUSY_POLL_MAX`]: it keeps
    /// the thread's processor busy and spares what it waits for the wake-up. It polls at each `enter` that would sleep,
    /// so it is up to the caller to set zero where nothing is to be expected.
    pub fn set_busy_poll(&mut self, spell: Duration) {
        self.busy_poll = spell.min(BUSY_POLL_MAX);
    }

    /// Polls until a completion is there or the caller has work: then, `None`. After the spell, or after `timeout`: what
    /// is left of `timeout`, to sleep.
    ///
    /// The ring does not announce sleep meanwhile, so wakers make no system call: the caller's queues are looked at here.
    pub(super) fn poll_busily(
        &mut self,
        timeout: Option<Duration>,
        has_work: &mut impl FnMut() -> bool,
    ) -> io::Result<Option<Option<Duration>>> {
        let start = Instant::now();
        let spell = timeout.map_or(self.busy_poll, |timeout| timeout.min(self.busy_poll));
        loop {
            // A system call only where there is something to submit, or the kernel says that it has deferred work to be
            // run here: else, this reads two words of memory that the kernel shares.
            self.enter_without_wait()?;
            if self.uring.has_completions() || has_work() {
                return Ok(None);
            }
            let spent = start.elapsed();
            if spent >= spell {
                return Ok(Some(timeout.map(|timeout| timeout.saturating_sub(spent))));
            }
            spin_loop();
        }
    }
}
