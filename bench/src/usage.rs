//! CPU time of watched processes and of the whole machine, from `/proc`.
//!
//! A process's time includes the softirq work that its own system calls trigger, and not that of the
//! kernel's threads: the machine's busy time must stand beside it.

use std::fs;
use std::io;
use std::str::FromStr;

use anyhow::Context;

use crate::report::Line;

/// A process whose CPU time is reported: `NAME=PID`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Watched {
    /// How the report calls it.
    pub name: String,
    /// Its process identifier.
    pub pid: u32,
}

impl FromStr for Watched {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let (name, pid) = text.split_once('=').ok_or("write NAME=PID, as in relay=4711")?;
        let pid = pid.parse().map_err(|_| format!("'{pid}' is no process identifier"))?;
        Ok(Self { name: name.to_owned(), pid })
    }
}

/// CPU time used up to some moment, in ticks of the kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    processes: Vec<u64>,
    machine: u64,
}

impl Usage {
    /// Reads the clocks.
    ///
    /// # Errors
    /// A watched process is gone, or there is no `/proc`.
    pub fn now(watched: &[Watched]) -> anyhow::Result<Self> {
        let machine = machine_now()?;
        let process = |watched: &Watched| {
            let gone = || format!("the watched process {} ({}) is gone", watched.name, watched.pid);
            process_now(watched.pid).with_context(gone)
        };
        Ok(Self { processes: watched.iter().map(process).collect::<anyhow::Result<_>>()?, machine })
    }

    /// Adds to `line`, from `earlier` to `self`: `cpu_NAME_s` of each process, `cpu_machine_s`, all in CPU seconds.
    pub fn report(&self, earlier: &Self, watched: &[Watched], line: &mut Line) {
        let seconds = |now: u64, then: u64| now.saturating_sub(then) as f64 / ticks_per_second();
        for ((watched, now), then) in watched.iter().zip(&self.processes).zip(&earlier.processes) {
            line.add(&format!("cpu_{}_s", watched.name), format_args!("{:.2}", seconds(*now, *then)));
        }
        line.add("cpu_machine_s", format_args!("{:.2}", seconds(self.machine, earlier.machine)));
    }
}

/// CPU time of a process so far, in seconds.
pub(crate) fn process_s(pid: u32) -> anyhow::Result<f64> {
    Ok(process_now(pid)? as f64 / ticks_per_second())
}

/// CPU time of the whole machine so far, in seconds.
pub(crate) fn machine_s() -> anyhow::Result<f64> {
    Ok(machine_now()? as f64 / ticks_per_second())
}

fn process_now(pid: u32) -> anyhow::Result<u64> {
    let path = format!("/proc/{pid}/stat");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    process_ticks(&text).with_context(|| format!("{path} is not understood"))
}

fn machine_now() -> anyhow::Result<u64> {
    machine_ticks(&fs::read_to_string("/proc/stat")?).context("/proc/stat is not understood")
}

/// The limit of open descriptors, raised as far as the system lets us.
///
/// # Errors
/// Fewer than `needed`, with the cure.
pub fn raise_descriptors(needed: u64) -> anyhow::Result<()> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let maximum = limit.maximum.unwrap_or(u64::MAX);
    anyhow::ensure!(
        needed <= maximum,
        "this needs {needed} descriptors and the limit (ulimit -Hn) is {maximum}; give a smaller --count or fewer \
         --udp-channels, and start several processes with different --first"
    );
    if limit.current.is_some_and(|current| current < maximum) {
        setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })
            .map_err(io::Error::from)
            .context("cannot raise the limit of descriptors")?;
    }
    Ok(())
}

fn ticks_per_second() -> f64 {
    rustix::param::clock_ticks_per_second() as f64
}

/// `user nice system idle iowait irq softirq steal guest guest_nice`: guest time is in user time already, and what
/// was stolen is not ours.
fn machine_ticks(text: &str) -> Option<u64> {
    let line = text.lines().find(|line| line.starts_with("cpu "))?;
    let ticks: Vec<u64> = line.split_whitespace().skip(1).map_while(|word| word.parse().ok()).collect();
    [0, 1, 2, 5, 6].iter().map(|&at| ticks.get(at).copied()).sum()
}

/// utime and stime of all threads: the 14th and 15th field; the second, in brackets, may have spaces and brackets in it.
fn process_ticks(text: &str) -> Option<u64> {
    let mut rest = text.rsplit_once(')')?.1.split_whitespace().skip(11);
    Some(rest.next()?.parse::<u64>().ok()? + rest.next()?.parse::<u64>().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machine_time_leaves_idle_wait_stolen_and_guest_time_out() {
        assert_eq!(machine_ticks("cpu  1 20 300 4000 5 600 7000 80 9 10\ncpu0 1 1 1\n"), Some(7921));
        assert_eq!(machine_ticks("cpu  1 20 300\n"), None);
    }

    #[test]
    fn process_time_is_found_behind_any_name() {
        let text = "77 (a) b (c) S 1 2 3 4 5 6 7 8 9 10 400 20 0 0 20 0 1 0";
        assert_eq!(process_ticks(text), Some(420));
        assert_eq!(process_ticks("77 (a) S 1 2"), None);
    }

    #[test]
    fn own_use_of_the_processor_shows() {
        let me = [Watched { name: "me".into(), pid: std::process::id() }];
        let before = Usage::now(&me).unwrap();
        let mut after = before.clone();
        let mut work = 1u64;
        // Ends when the kernel's clocks, of the process and of the machine, have ticked for us, which is what is tested.
        while after.processes == before.processes || after.machine <= before.machine {
            work = std::hint::black_box((0..1_000_000).fold(work, |sum, n| sum.wrapping_mul(31) ^ n));
            after = Usage::now(&me).unwrap();
        }
        let mut line = Line::default();
        after.report(&before, &me, &mut line);
        assert!(line.to_string().starts_with("cpu_me_s=0."), "{line}");
    }

    #[test]
    fn watched_process_is_a_name_and_a_number() {
        assert_eq!("relay=12".parse(), Ok(Watched { name: "relay".into(), pid: 12 }));
        assert!("relay".parse::<Watched>().is_err());
        assert!("relay=x".parse::<Watched>().is_err());
    }
}
