//! The totals over time: once a second for ten minutes, once a minute for a day.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Serialize;

use crate::admin::counters::{Counter, ShardCounters};

/// Seconds that are kept one by one, and minutes.
const SECONDS: usize = 600;
const MINUTES: usize = 24 * 60;

/// Between two looks.
pub(super) const STEP: Duration = Duration::from_secs(1);

/// One look at all shards.
#[derive(Clone, Debug, Default, PartialEq)]
struct Sample {
    /// Seconds since 1970.
    at: u64,
    tunnels: u64,
    terminals: u64,
    streams: u64,
    flows: u64,
    /// Sums since the start.
    bytes_in: u64,
    bytes_out: u64,
    datagrams_in: u64,
    datagrams_out: u64,
    drops: u64,
    attached: u64,
    /// Nanoseconds of CPU time by shard.
    cpu: Vec<u64>,
}

/// Columns of figures, oldest first. Rates are a second's, means of the step. "In" is from mediators.
#[derive(Debug, Default, PartialEq, Serialize)]
pub(super) struct Columns {
    /// Seconds from one row to the next.
    step_s: u64,
    /// Seconds since 1970.
    at: Vec<u64>,
    tunnels: Vec<u64>,
    terminals: Vec<u64>,
    streams: Vec<u64>,
    flows: Vec<u64>,
    bits_in: Vec<u64>,
    bits_out: Vec<u64>,
    packets_in: Vec<u64>,
    packets_out: Vec<u64>,
    drops: Vec<f64>,
    attached: Vec<f64>,
    /// Percent of a core, by shard.
    load: Vec<Vec<f64>>,
}

/// All of it.
#[derive(Debug, Default)]
pub(super) struct History {
    seconds: RefCell<VecDeque<Sample>>,
    minutes: RefCell<VecDeque<Sample>>,
}

/// How far back, and how fine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Span {
    Minutes,
    Day,
}

impl History {
    /// Looks at the shards; once a second.
    pub(super) fn look(&self, shards: &[&ShardCounters], cpu: Vec<u64>) {
        let sum = |counter: Counter| shards.iter().map(|shard| shard.get(counter)).sum::<u64>();
        let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        self.keep(Sample {
            at,
            tunnels: sum(Counter::TunnelsLive),
            terminals: sum(Counter::TerminalsLive),
            streams: sum(Counter::VisitorsLive) + sum(Counter::SocksLive) + sum(Counter::ExposedLive),
            flows: sum(Counter::FlowsLive) + sum(Counter::ExposedFlowsLive),
            bytes_in: sum(Counter::BytesFromMediators),
            bytes_out: sum(Counter::BytesToMediators),
            datagrams_in: sum(Counter::DatagramsFromMediators),
            datagrams_out: sum(Counter::DatagramsToMediators),
            drops: Counter::ALL.iter().filter(|counter| is_drop(**counter)).map(|&counter| sum(counter)).sum(),
            attached: sum(Counter::TunnelsTotal),
            cpu,
        });
    }

    fn keep(&self, sample: Sample) {
        let mut minutes = self.minutes.borrow_mut();
        if minutes.back().is_none_or(|last| sample.at >= last.at + 60) {
            push(&mut minutes, sample.clone(), MINUTES);
        }
        push(&mut self.seconds.borrow_mut(), sample, SECONDS);
    }

    /// What is known; the first look gives no row, since it has no rate.
    pub(super) fn columns(&self, span: Span) -> Columns {
        let (samples, step_s) = match span {
            Span::Minutes => (self.seconds.borrow(), 1),
            Span::Day => (self.minutes.borrow(), 60),
        };
        let mut columns = Columns { step_s, ..Columns::default() };
        for (before, now) in samples.iter().zip(samples.iter().skip(1)) {
            columns.add(before, now);
        }
        columns
    }
}

impl Columns {
    fn add(&mut self, before: &Sample, now: &Sample) {
        // The clock may be set back.
        let seconds = now.at.saturating_sub(before.at).max(1);
        let rate = |of: fn(&Sample) -> u64| of(now).saturating_sub(of(before)) as f64 / seconds as f64;
        self.at.push(now.at);
        self.tunnels.push(now.tunnels);
        self.terminals.push(now.terminals);
        self.streams.push(now.streams);
        self.flows.push(now.flows);
        self.bits_in.push((8.0 * rate(|s| s.bytes_in)) as u64);
        self.bits_out.push((8.0 * rate(|s| s.bytes_out)) as u64);
        self.packets_in.push(rate(|s| s.datagrams_in) as u64);
        self.packets_out.push(rate(|s| s.datagrams_out) as u64);
        self.drops.push(tenths(rate(|s| s.drops)));
        self.attached.push(tenths(rate(|s| s.attached)));
        let load = std::iter::zip(&now.cpu, &before.cpu)
            .map(|(now, before)| tenths(now.saturating_sub(*before) as f64 / 1e7 / seconds as f64))
            .collect();
        self.load.push(load);
    }
}

fn tenths(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

fn push(samples: &mut VecDeque<Sample>, sample: Sample, max: usize) {
    // One more than the rows, for the first one's rates.
    if samples.len() > max {
        samples.pop_front();
    }
    samples.push_back(sample);
}

/// Whether it counts datagrams that were lost here.
pub(super) fn is_drop(counter: Counter) -> bool {
    counter.word().contains("_dropped")
}

/// Nanoseconds of CPU time that each shard's thread has taken, from the kernel; zero where it cannot be known.
pub(super) fn cpu_of_shards(shards: usize) -> Vec<u64> {
    let mut times = vec![0; shards];
    for task in std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten() {
        let read = |name| std::fs::read_to_string(task.path().join(name)).unwrap_or_default();
        let number = read("comm").trim_end().strip_prefix("shard-").and_then(|number| number.parse::<usize>().ok());
        if let Some(time) = number.and_then(|number| times.get_mut(number)) {
            *time = read("schedstat").split(' ').next().and_then(|word| word.parse().ok()).unwrap_or(0);
        }
    }
    times
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(at: u64, bytes_in: u64) -> Sample {
        Sample { at, tunnels: at, bytes_in, cpu: vec![at * 500_000_000], ..Sample::default() }
    }

    #[test]
    fn rates_are_between_two_looks_and_gauges_of_the_later_one() {
        let history = History::default();
        for (at, bytes) in [(100, 0), (101, 1000), (103, 5000), (102, 6000)] {
            history.keep(sample(at, bytes));
        }
        let columns = history.columns(Span::Minutes);
        assert_eq!((&*columns.at, &*columns.tunnels), (&[101, 103, 102][..], &[101, 103, 102][..]));
        assert_eq!(columns.bits_in, [8000, 16_000, 8000]);
        assert_eq!(columns.load, [[50.0], [50.0], [0.0]]);
        assert_eq!(columns.drops, [0.0; 3]);
    }

    #[test]
    fn seconds_and_minutes_are_bounded() {
        let history = History::default();
        let days = 2 * 24 * 3600;
        (0..days).for_each(|at| history.keep(sample(at, 0)));
        let minutes = history.columns(Span::Minutes).at;
        assert_eq!((minutes.len(), minutes[0], minutes[SECONDS - 1]), (SECONDS, days - 600, days - 1));
        let day = history.columns(Span::Day).at;
        assert_eq!((day.len(), day[1] - day[0]), (MINUTES, 60));
    }

    #[test]
    fn threads_of_shards_are_known_by_their_names() {
        let busy = std::thread::Builder::new().name("shard-1".into()).spawn(|| {
            let mut times = cpu_of_shards(2);
            while times[1] == 0 {
                times = cpu_of_shards(2);
            }
            times
        });
        assert_eq!(busy.unwrap().join().unwrap()[0], 0);
    }
}
