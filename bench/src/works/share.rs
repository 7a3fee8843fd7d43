//! What idle neighbours cost those that are active: the machine's CPU per GB with A active tunnels alone, and among N.

use std::thread;
use std::time::Duration;

use anyhow::ensure;

use super::lab::{Lab, Relay, words};
use super::{Common, Values, at_most, ratio, record};
use crate::compare::cases::{Work, derive};
use crate::compare::settled;
use crate::results::Report;
use crate::usage::FAR;
use crate::world::{Process, Role};

/// What to do.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Tunnels in all.
    pub count: usize,
    /// Of them, those that carry bulk.
    pub active: usize,
    /// Whether UDP channels are maintained as after everything was learned of the gateways, or as at first.
    pub learned: bool,
    /// Quiet time once tunnels have come: for their first maintain packets both ends take memory.
    pub settle: Duration,
    /// Measurements of each case.
    pub rounds: u32,
    /// Seconds of each.
    pub seconds: u64,
}

/// Most active tunnels: each has a published port, and a stream.
pub const ACTIVE_MAX: usize = 1024;

const WORK: &str = "share";

/// Of the active ones' published ports.
const PUBLISHED: usize = 8000;

/// Of the same at the relay with all tunnels.
const PUBLISHED_AMONG: usize = PUBLISHED + ACTIVE_MAX;

/// Where they lead: simulated mediators have a sink behind every destination.
const ANYWHERE: &str = "10.0.0.1:7";

const RATIO_MAX: f64 = 1.15;

/// Percent of a core: rests of bulk use more, and the keep-alives of all tunnels less.
const RESTS_PERCENT: f64 = 60.0;

/// What a load calls the processes that it does not go through.
const ELSEWHERE: &str = "elsewhere";

/// A relay with its tunnels, the active ones first.
struct Side {
    active: usize,
    total: usize,
    relay: u32,
    /// The active ones, and all others.
    mediators: [Vec<Process>; 2],
    to: String,
}

impl Side {
    fn new(lab: &Lab, relay: &Relay, settings: &Settings, total: usize, published: usize) -> anyhow::Result<Self> {
        let more: &[&str] = if settings.learned { &["--learned"] } else { &[] };
        let some = |first, count| lab.mediators_of(relay, first, count, "sink", more);
        let mediators = [some(0, settings.active)?, some(settings.active, total - settings.active)?];
        let to: Vec<String> = ports(published, settings.active).map(|port| format!("--to {port}")).collect();
        Ok(Self { active: settings.active, total, relay: relay.pid(), mediators, to: to.join(" ") })
    }

    fn processes(&self) -> impl Iterator<Item = u32> {
        self.mediators.iter().flatten().map(Process::pid).chain([self.relay])
    }

    /// Bulk through the active tunnels. What `other`, which is idle, uses meanwhile is no part of it.
    fn measure(&self, lab: &Lab, other: &Self, direction: &str, seconds: u64) -> anyhow::Result<Values> {
        settled(RESTS_PERCENT)?;
        let [active, _] = &self.mediators;
        let far = active.iter().map(|process| (FAR, process.pid()));
        let elsewhere = other.processes().map(|pid| (ELSEWHERE, pid));
        let watched: Vec<_> = far.chain([("relay", self.relay)]).chain(elsewhere).collect();
        let line = format!("tcp --streams {} --direction {direction} {}", self.active, self.to);
        let mut values = lab.load_watching(&watched, &words(&line), seconds)?;
        without_elsewhere(&mut values);
        derive(Work::Tcp, &mut values)?;
        Ok(values)
    }
}

/// Measures: both relays are there all the time, since tunnels do not go and come at will, and take turns, as the machine's
/// speed is not the same for long.
///
/// # Errors
/// No world, or a mediator or load fails.
pub fn run(settings: &Settings, common: &Common) -> anyhow::Result<Report> {
    let Settings { count, active, .. } = *settings;
    ensure!((1..=ACTIVE_MAX).contains(&active), "--active is from 1 to {ACTIVE_MAX}");
    ensure!(count > active, "--count is more than --active: it is all tunnels");
    let mut report = Report::begin(&common.congestion);
    let publish = |from| ports(from, active).enumerate().map(|(at, port)| format!("tcp:{port}=m{at}/{ANYWHERE}"));
    let lab = Lab::up(common, &publish(PUBLISHED_AMONG).collect::<Vec<_>>())?;
    let options = publish(PUBLISHED).flat_map(|port| ["--publish".to_owned(), port]);
    let relay = lab.relay_beside("alone", &options.collect::<Vec<_>>())?;
    let alone = Side::new(&lab, &relay, settings, active, PUBLISHED)?;
    let among = Side::new(&lab, lab.relay(), settings, count, PUBLISHED_AMONG)?;
    thread::sleep(settings.settle);
    for round in 1..=settings.rounds {
        lab.look()?;
        for direction in ["up", "down"] {
            let mut turns = [(&alone, &among), (&among, &alone)];
            if round % 2 == 0 {
                turns.reverse();
            }
            for (side, other) in turns {
                let values = side.measure(&lab, other, direction, settings.seconds)?;
                record(&mut report, WORK, &case(active, side.total, direction), round, values);
            }
        }
    }
    let worst = ["up", "down"].iter().filter_map(|direction| {
        let cases = [count, active].map(|total| case(active, total, direction));
        ratio(&report, WORK, "machine_s_per_gb", &cases[0], &cases[1])
    });
    let worst = worst.reduce(f64::max);
    let name = format!("W with {active} active of {count} tunnels, by that with {active} in all");
    report.bars.push(at_most(&name, "<= 1.15", RATIO_MAX, worst));
    report.background = lab.background();
    Ok(report)
}

fn ports(from: usize, count: usize) -> impl Iterator<Item = String> {
    (from..from + count).map(|port| format!("{}:{port}", Role::Relay.address()))
}

/// The machine's time without that of what the load does not go through.
fn without_elsewhere(values: &mut Values) {
    let elsewhere = values.get(&format!("cpu_{ELSEWHERE}_s")).copied().unwrap_or(0.0);
    if let Some(machine) = values.get_mut("cpu_machine_s") {
        *machine -= elsewhere;
    }
}

fn case(active: usize, total: usize, direction: &str) -> String {
    format!("{active} of {total} tunnels, {direction}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_other_relay_used_is_no_part_of_the_machine_s_time() {
        let mut values = Values::from([("cpu_machine_s".to_owned(), 6.0)]);
        without_elsewhere(&mut values);
        assert_eq!(values["cpu_machine_s"], 6.0);
        values.insert("cpu_elsewhere_s".to_owned(), 0.5);
        without_elsewhere(&mut values);
        assert_eq!(values["cpu_machine_s"], 5.5);
    }

    #[test]
    fn counts_are_checked_before_anything_is_started() {
        let common = Common { shards: 1, congestion: "cubic".into(), channels: 0 };
        for (count, active) in [(10, 0), (10, 10), (2000, ACTIVE_MAX + 1)] {
            let settings = Settings { count, active, learned: false, settle: Duration::ZERO, rounds: 1, seconds: 1 };
            let error = run(&settings, &common).unwrap_err().to_string();
            assert!(error.starts_with("--"), "{error}");
        }
    }
}
