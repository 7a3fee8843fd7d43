//! Whether the load itself is what is at its end: the CPU time that this process uses.

use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

use crate::report::Line;
use crate::usage::{SATURATED, Usage};

/// Clock and CPU time of this process at some moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Own {
    at: Instant,
    cpu: Duration,
}

/// What this process used since then.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Share {
    /// CPU time.
    cpu_s: f64,
    /// Time.
    seconds: f64,
}

impl Own {
    pub(crate) fn now() -> Self {
        let cpu = clock_gettime(ClockId::ProcessCPUTime);
        let cpu = Duration::new(cpu.tv_sec.unsigned_abs(), cpu.tv_nsec as u32);
        Self { at: Instant::now(), cpu }
    }

    pub(crate) fn since(&self) -> Share {
        let now = Self::now();
        let cpu_s = now.cpu.saturating_sub(self.cpu).as_secs_f64();
        Share { cpu_s, seconds: (now.at - self.at).as_secs_f64() }
    }
}

impl Share {
    /// Whether `threads` of them had no more time to give, or all processors where those are fewer.
    pub(crate) fn saturated(&self, threads: usize) -> bool {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        self.cpu_s >= SATURATED * self.seconds * threads.min(cores) as f64
    }

    /// Adds `cpu_load_s`, `far_busy_percent` (of the busiest thread of the load's other end, where that is watched), and
    /// `load_bound=yes` where the figures are one's of these two.
    pub(crate) fn report(&self, bound: bool, (before, after): (&Usage, &Usage), line: &mut Line) {
        line.add("cpu_load_s", format_args!("{:.3}", self.cpu_s));
        let far = after.far_share(before);
        if let Some(share) = far {
            line.add("far_busy_percent", format_args!("{:.0}", share * 100.0));
        }
        if bound || far >= Some(SATURATED) {
            line.add("load_bound", "yes");
        }
    }
}

/// Share of messages that were sent late from which on the figures are the load's own.
pub(crate) const LATE_SHARE_MAX: f64 = 0.01;

/// This thread's waits end when they shall, and not up to 50 us later. Where that is refused, late messages tell.
pub(crate) fn prompt_waits() {
    let _ = rustix::thread::set_current_timer_slack(std::num::NonZeroU64::new(1));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn saturated_is_a_thread_without_time_to_spare() {
        let share = |cpu_s| Share { cpu_s, seconds: 1.0 };
        assert!(share(0.95).saturated(1) && !share(0.94).saturated(1));
        assert!(!share(0.95).saturated(2) || std::thread::available_parallelism().unwrap().get() == 1);
        let mut line = Line::default();
        let usage = Usage::now(&[]).unwrap();
        share(0.5).report(true, (&usage, &usage), &mut line);
        assert_eq!(line.to_string(), "cpu_load_s=0.500 load_bound=yes");
    }

    #[test]
    fn busy_process_uses_time() {
        let own = Own::now();
        while own.since().cpu_s == 0.0 {
            std::hint::spin_loop();
        }
        assert!(own.since().seconds > 0.0);
    }
}
