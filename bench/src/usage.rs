//! CPU time of watched processes and of the whole machine, from `/proc`.
//!
//! A process's time includes the softirq work that its own system calls trigger, and not that of the
//! kernel's threads: the machine's busy time must stand beside it.
//!
//! The machine's busy time is what is left of the time of all processors when the idle time is taken away. The kernel knows
//! the latter exactly; the busy kinds it only samples at its ticks, and misses most of a load that wakes up in step with them.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::str::FromStr;

use anyhow::Context;
use rustix::time::{ClockId, clock_gettime};

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

/// The name of watched processes that are the load's other end: sinks and simulated mediators.
pub const FAR: &str = "far";

/// Share of a thread's time from which on it is taken for saturated.
pub(crate) const SATURATED: f64 = 0.95;

/// CPU time used up to some moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Usage {
    /// In ticks of the kernel.
    processes: Vec<u64>,
    /// Of each thread of the processes that are called [`FAR`], in ticks.
    far: BTreeMap<u32, u64>,
    /// Seconds since some moment.
    at: f64,
    /// In seconds since some moment.
    machine: f64,
}

impl Usage {
    /// Reads the clocks.
    ///
    /// # Errors
    /// A watched process is gone, or there is no `/proc`.
    pub fn now(watched: &[Watched]) -> anyhow::Result<Self> {
        let machine = machine_s()?;
        let process = |watched: &Watched| {
            let gone = || format!("the watched process {} ({}) is gone", watched.name, watched.pid);
            process_now(watched.pid).with_context(gone)
        };
        let mut far = BTreeMap::new();
        for process in watched.iter().filter(|watched| watched.name == FAR) {
            far.extend(threads_now(process.pid)?);
        }
        let processes = watched.iter().map(process).collect::<anyhow::Result<_>>()?;
        Ok(Self { processes, far, at: now_s(), machine })
    }

    /// The share of its time that the busiest thread of the load's other end used since `earlier`; `None` without one. It
    /// is saturated from [`SATURATED`] on: then the figures are its own.
    pub(crate) fn far_share(&self, earlier: &Self) -> Option<f64> {
        let ticks = self.far.iter().map(|(id, now)| now.saturating_sub(*earlier.far.get(id).unwrap_or(&0))).max()?;
        let seconds = (self.at - earlier.at).max(f64::MIN_POSITIVE);
        Some(ticks as f64 / ticks_per_second() / seconds)
    }

    /// Adds to `line`, from `earlier` to `self`: `cpu_NAME_s` of each process, `cpu_machine_s`, all in CPU seconds.
    pub fn report(&self, earlier: &Self, watched: &[Watched], line: &mut Line) {
        let seconds = |now: u64, then: u64| now.saturating_sub(then) as f64 / ticks_per_second();
        for ((watched, now), then) in watched.iter().zip(&self.processes).zip(&earlier.processes) {
            line.add(&format!("cpu_{}_s", watched.name), format_args!("{:.2}", seconds(*now, *then)));
        }
        line.add("cpu_machine_s", format_args!("{:.2}", (self.machine - earlier.machine).max(0.0)));
    }
}

/// CPU time of a process so far, in seconds.
pub(crate) fn process_s(pid: u32) -> anyhow::Result<f64> {
    Ok(process_now(pid)? as f64 / ticks_per_second())
}

/// CPU time of the whole machine, in seconds since some moment: differences count.
pub(crate) fn machine_s() -> anyhow::Result<f64> {
    let text = fs::read_to_string("/proc/stat")?;
    let seconds = now_s();
    let (idle, processors) = idle_ticks(&text).context("/proc/stat is not understood")?;
    Ok(seconds * processors as f64 - idle as f64 / ticks_per_second())
}

fn now_s() -> f64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as f64 + now.tv_nsec as f64 / 1e9
}

/// CPU time of each thread of a process. One that ends meanwhile is left out.
fn threads_now(pid: u32) -> anyhow::Result<Vec<(u32, u64)>> {
    let path = format!("/proc/{pid}/task");
    let threads = fs::read_dir(&path).with_context(|| format!("cannot read {path}"))?;
    let thread = |entry: fs::DirEntry| {
        let id = entry.file_name().to_str()?.parse().ok()?;
        Some((id, process_ticks(&fs::read_to_string(entry.path().join("stat")).ok()?)?))
    };
    Ok(threads.flatten().filter_map(thread).collect())
}

fn process_now(pid: u32) -> anyhow::Result<u64> {
    let path = format!("/proc/{pid}/stat");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    process_ticks(&text).with_context(|| format!("{path} is not understood"))
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

/// `user nice system idle iowait irq softirq steal guest guest_nice`, all processors together: when they did nothing, or
/// something for another machine. And how many there are, a line for each.
fn idle_ticks(text: &str) -> Option<(u64, usize)> {
    let line = text.lines().find(|line| line.starts_with("cpu "))?;
    let ticks: Vec<u64> = line.split_whitespace().skip(1).map_while(|word| word.parse().ok()).collect();
    let idle = [3, 4, 7].iter().map(|&at| ticks.get(at).copied()).sum::<Option<u64>>()?;
    let processors = text.lines().filter(|line| line.starts_with("cpu") && !line.starts_with("cpu ")).count();
    (processors > 0).then_some((idle, processors))
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
    fn machine_is_busy_when_it_neither_idles_nor_waits_nor_is_stolen_from() {
        let text = "cpu  1 20 300 4000 5 600 7000 80 9 10\ncpu0 1 1 1\ncpu1 0 19 299\nintr 5\n";
        assert_eq!(idle_ticks(text), Some((4085, 2)));
        assert_eq!(idle_ticks("cpu  1 20 300\ncpu0 1 20 300\n"), None);
        assert_eq!(idle_ticks("cpu  1 20 300 4000 5 600 7000 80 9 10\n"), None);
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
    fn busiest_thread_of_the_far_end_counts() {
        let usage =
            |at, threads: &[(u32, u64)]| Usage { at, far: threads.iter().copied().collect(), ..Usage::default() };
        let (before, ticks) = (usage(1.0, &[(1, 7), (2, 5)]), ticks_per_second() as u64);
        let after = usage(3.0, &[(1, 7 + ticks), (2, 5 + 2 * ticks), (3, ticks)]);
        assert_eq!(after.far_share(&before), Some(1.0));
        assert_eq!(usage(3.0, &[]).far_share(&before), None);
        let me = [Watched { name: FAR.into(), pid: std::process::id() }];
        let now = Usage::now(&me).unwrap();
        assert!(!now.far.is_empty() && now.far_share(&now).is_some());
        let me = [Watched { name: "relay".into(), ..me[0].clone() }];
        assert!(Usage::now(&me).unwrap().far.is_empty());
    }

    #[test]
    fn watched_process_is_a_name_and_a_number() {
        assert_eq!("relay=12".parse(), Ok(Watched { name: "relay".into(), pid: 12 }));
        assert!("relay".parse::<Watched>().is_err());
        assert!("relay=x".parse::<Watched>().is_err());
    }
}
