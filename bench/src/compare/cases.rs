//! The works, their cases, and what is derived from the lines that the loads print.

use std::collections::BTreeMap;
use std::fmt;

use anyhow::{Context, ensure};
use clap::ValueEnum;

/// A kind of load.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Work {
    /// Bulk streams: 1, 16 and 256, up and down
    Tcp,
    /// New connections: 1 and 64 at once
    Setup,
    /// Small messages on an open connection: at a rate, and back to back
    Pingpong,
    /// Datagrams and their echoes, by size, flows and rate
    Udp,
}

impl Work {
    /// All of them, in the order in which they are driven.
    pub const ALL: [Self; 4] = [Self::Tcp, Self::Setup, Self::Pingpong, Self::Udp];

    /// Its name, which is also the load's subcommand.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Setup => "setup",
            Self::Pingpong => "pingpong",
            Self::Udp => "udp",
        }
    }
}

impl fmt::Display for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One variant of a work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Case {
    /// The work.
    pub work: Work,
    /// What makes it another one than its neighbours.
    pub name: String,
    /// The load's arguments, without address, time and watched processes.
    pub args: Vec<String>,
}

impl Case {
    fn new(work: Work, name: String, args: &str) -> Self {
        Self { work, name, args: args.split(' ').filter(|word| !word.is_empty()).map(str::to_owned).collect() }
    }

    /// Flows of datagrams at once; 0 if it has none.
    pub fn flows(&self) -> usize {
        let mut args = self.args.iter().skip_while(|arg| *arg != "--flows");
        args.nth(1).and_then(|number| number.parse().ok()).unwrap_or(0)
    }

    /// Work and name.
    pub fn full_name(&self) -> String {
        format!("{} {}", self.work, self.name)
    }
}

/// The name of a case of `tcp`.
pub(super) fn streams(count: u32, way: &str) -> String {
    format!("{count} stream{} {way}", if count == 1 { "" } else { "s" })
}

/// The name of a case of `setup`.
pub(super) fn at_once(count: u32) -> String {
    format!("{count} at once")
}

/// The case of `pingpong` with messages at fixed times, whatever happened to those before.
pub(super) const OPEN_LOOP: &str = "64 B, 2000 a second";

/// The name of a case of `udp`.
pub(super) fn datagrams(size: u32, flows: u32, rate: &str) -> String {
    format!("{size} B, {flows} flow{}, {rate}", if flows == 1 { "" } else { "s" })
}

/// The cases of a work. Those of `udp` are the ones that bars are about, and with `full` every size with every number of
/// flows at every rate.
pub fn cases(work: Work, full: bool) -> Vec<Case> {
    let mut cases = Vec::new();
    match work {
        Work::Tcp => {
            for count in [1, 16, 256] {
                for way in ["up", "down"] {
                    // Until the buffers of so many sockets are full, what is written says nothing of what is carried.
                    let warm_up_ms = if count > 16 { 6000 } else { 1000 };
                    let args = format!("--streams {count} --direction {way} --warm-up-ms {warm_up_ms}");
                    cases.push(Case::new(work, streams(count, way), &args));
                }
            }
        }
        Work::Setup => {
            cases.extend([1, 64].map(|count| Case::new(work, at_once(count), &format!("--at-once {count}"))));
        }
        Work::Pingpong => {
            cases.push(Case::new(work, OPEN_LOOP.to_owned(), "--size 64 --rate 2000"));
            cases.push(Case::new(work, "64 B, back to back".to_owned(), "--size 64 --closed"));
        }
        Work::Udp => {
            for size in [64, 200, 1200] {
                for flows in [1, 100, 10_000] {
                    for rate in ["max", "20000", "60000"] {
                        // With few flows at the highest rate the flows' own cost would hide behind larger batches: 100
                        // and 10,000 are compared at one rate, too.
                        let asked = match (size, flows, rate) {
                            (_, 1, "max") | (200, _, "max" | "20000") | (200, 1, "60000") => true,
                            _ => full,
                        };
                        if asked {
                            // A relay has room for the flows of one such load, not for those of all rounds.
                            let from = if flows > 100 { " --from-port 12000" } else { "" };
                            let args = format!("--size {size} --flows {flows} --rate {rate}{from}");
                            cases.push(Case::new(work, datagrams(size, flows, rate), &args));
                        }
                    }
                }
            }
        }
    }
    cases
}

/// Reads a load's line of `key=value` words. CPU times that occur more than once, those of a system with several processes,
/// are added up; `yes` and `no` are 1 and 0; other words are left out.
///
/// # Errors
/// It holds no number at all.
pub fn parse(line: &str) -> anyhow::Result<BTreeMap<String, f64>> {
    let mut values = BTreeMap::new();
    for (key, value) in line.split_whitespace().filter_map(|word| word.split_once('=')) {
        let value = match value {
            "yes" => 1.0,
            "no" => 0.0,
            number => match number.parse::<f64>() {
                Ok(number) if number.is_finite() => number,
                _ => continue,
            },
        };
        *values.entry(key.to_owned()).or_insert(0.0) += value;
    }
    ensure!(!values.is_empty(), "the load printed no figures: '{}'", line.trim());
    Ok(values)
}

/// Adds CPU time per unit of what was moved: seconds per GB, microseconds per datagram, connection or message. An echo is
/// two datagrams; a message includes its answer. W, the machine's, is called `machine`.
///
/// # Errors
/// The line does not say how much was moved, or nothing was.
pub fn derive(work: Work, values: &mut BTreeMap<String, f64>) -> anyhow::Result<()> {
    let (key, scale, unit) = match work {
        Work::Tcp => ("bytes", 1e-9, "s_per_gb"),
        Work::Udp => ("echoed", 2e-6, "us_per_datagram"),
        Work::Setup => ("connects", 1e-6, "us_per_connection"),
        Work::Pingpong => ("echoed", 1e-6, "us_per_message"),
    };
    let moved = values.get(key).copied().with_context(|| format!("the load did not say {key}="))? * scale;
    ensure!(moved > 0.0, "the load moved nothing: {key}=0");
    for name in ["relay", "agent", "machine"] {
        if let Some(cpu) = values.get(&format!("cpu_{name}_s")).copied() {
            values.insert(format!("{name}_{unit}"), cpu / moved);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_become_values_and_cpu_times_of_one_name_are_added() {
        let values = parse("gbit_s=5.5 bytes=2000000000 cpu_relay_s=1.5 cpu_relay_s=0.5 searched=yes why=none x=NaN\n");
        let values = values.unwrap();
        assert_eq!((values["gbit_s"], values["cpu_relay_s"], values["searched"]), (5.5, 2.0, 1.0));
        assert!(!values.contains_key("why") && !values.contains_key("x"));
        assert!(parse("cannot connect").is_err());
    }

    #[test]
    fn cost_is_per_unit_of_each_work() {
        let derived = |work, line| {
            let mut values = parse(line).unwrap();
            derive(work, &mut values).unwrap();
            values
        };
        let tcp = derived(Work::Tcp, "bytes=2000000000 cpu_relay_s=1 cpu_machine_s=3");
        assert_eq!((tcp["relay_s_per_gb"], tcp["machine_s_per_gb"]), (0.5, 1.5));
        assert!(!tcp.contains_key("agent_s_per_gb"));
        assert_eq!(derived(Work::Udp, "echoed=500000 cpu_agent_s=2")["agent_us_per_datagram"], 2.0);
        assert_eq!(derived(Work::Setup, "connects=10000 cpu_relay_s=0.5")["relay_us_per_connection"], 50.0);
        assert_eq!(derived(Work::Pingpong, "echoed=1000 cpu_machine_s=0.1")["machine_us_per_message"], 100.0);
        let mut nothing = parse("bytes=0 cpu_machine_s=1").unwrap();
        assert!(derive(Work::Tcp, &mut nothing).is_err());
    }

    #[test]
    fn names_are_distinct_and_the_full_list_contains_the_short_one() {
        for work in Work::ALL {
            let (short, full) = (cases(work, false), cases(work, true));
            assert!(short.iter().all(|case| full.contains(case)));
            for (at, case) in full.iter().enumerate() {
                assert!(full[..at].iter().all(|other| other.name != case.name), "{}", case.name);
            }
        }
        assert_eq!(cases(Work::Udp, true).len(), 27);
        assert!(cases(Work::Tcp, false).iter().any(|case| case.name == streams(1, "up")));
    }
}
