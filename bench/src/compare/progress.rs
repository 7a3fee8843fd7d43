//! What a person sees while waiting, on standard error: one line that is written over on a terminal, else one for each step.

use std::io::{IsTerminal, Write, stderr};
use std::time::{Duration, Instant};

use crate::console::note;
use crate::world;

/// The steps of a run.
pub(super) struct Progress {
    steps: usize,
    done: usize,
    started: Instant,
    terminal: bool,
}

impl Progress {
    pub(super) fn new(steps: usize) -> Self {
        Self { steps, done: 0, started: Instant::now(), terminal: stderr().is_terminal() }
    }

    /// A step begins.
    pub(super) fn begin(&self, what: &str) {
        if self.terminal {
            // Nobody is harmed where standard error is closed.
            let _ = write!(
                stderr(),
                "\r\x1b[K{} {what}{}",
                self.place(),
                left(self.done, self.steps, self.started.elapsed())
            );
            let _ = stderr().flush();
        }
    }

    /// It has ended, with this result.
    pub(super) fn end(&mut self, what: &str, result: &str) {
        if !self.terminal {
            note(format_args!("{} {what}: {result}", self.place()));
        }
        self.done += 1;
    }

    /// It has failed; that stays on the screen.
    pub(super) fn fail(&mut self, what: &str, why: &str) {
        world::wait_if_ending();
        self.clear();
        note(format_args!("{} {what}: {why}", self.place()));
        self.done += 1;
    }

    /// A step is left out.
    pub(super) fn pass(&mut self) {
        self.done += 1;
    }

    /// The line goes.
    pub(super) fn clear(&self) {
        if self.terminal {
            let _ = write!(stderr(), "\r\x1b[K");
        }
    }

    fn place(&self) -> String {
        format!("[{}/{}]", self.done + 1, self.steps)
    }
}

fn left(done: usize, steps: usize, elapsed: Duration) -> String {
    if done == 0 {
        return String::new();
    }
    let left = elapsed.as_secs_f64() / done as f64 * steps.saturating_sub(done) as f64;
    if left < 90.0 { format!("; {left:.0} s left") } else { format!("; {:.0} min left", left / 60.0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_left_is_told_from_the_pace_so_far() {
        let minute = Duration::from_secs(60);
        assert_eq!(left(0, 10, minute), "");
        assert_eq!(left(9, 10, minute), "; 7 s left");
        assert_eq!(left(2, 10, minute), "; 4 min left");
    }
}
