//! What idle neighbours cost those that are active: the machine's CPU per GB with A active tunnels alone, and among N.

use std::thread;
use std::time::Duration;

use anyhow::ensure;

use super::lab::{Lab, words};
use super::{Common, at_most, ratio, record};
use crate::compare::cases::{Work, derive};
use crate::compare::settled;
use crate::results::Report;
use crate::world::Role;

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

/// Where they lead: simulated mediators have a sink behind every destination.
const ANYWHERE: &str = "10.0.0.1:7";

const RATIO_MAX: f64 = 1.15;

/// Percent of a core: rests of bulk use more, and the keep-alives of all tunnels less.
const RESTS_PERCENT: f64 = 60.0;

/// Measures: all rounds alone, then all among the others, since tunnels do not go and come at will.
///
/// # Errors
/// No world, or a mediator or load fails.
pub fn run(settings: &Settings, common: &Common) -> anyhow::Result<Report> {
    let Settings { count, active, .. } = *settings;
    ensure!((1..=ACTIVE_MAX).contains(&active), "--active is from 1 to {ACTIVE_MAX}");
    ensure!(count > active, "--count is more than --active: it is all tunnels");
    let mut report = Report::begin(&common.congestion);
    let relay = Role::Relay.address();
    let to: Vec<String> = (0..active).map(|at| format!("{relay}:{}", PUBLISHED + at)).collect();
    let publish: Vec<String> = to.iter().enumerate().map(|(at, port)| format!("tcp:{port}=m{at}/{ANYWHERE}")).collect();
    let lab = Lab::up(common, &publish)?;
    let more: &[&str] = if settings.learned { &["--learned"] } else { &[] };
    let mut mediators = lab.mediators_with(0, active, "sink", more)?;
    let active_processes = mediators.len();
    let to: Vec<String> = to.into_iter().map(|port| format!("--to {port}")).collect();
    for total in [active, count] {
        mediators.extend(lab.mediators_with(active, total - active, "sink", more)?);
        thread::sleep(settings.settle);
        for round in 1..=settings.rounds {
            lab.look()?;
            for direction in ["up", "down"] {
                settled(RESTS_PERCENT)?;
                let line = format!("tcp --streams {active} --direction {direction} {}", to.join(" "));
                let mut values = lab.load(&mediators[..active_processes], &words(&line), settings.seconds)?;
                derive(Work::Tcp, &mut values)?;
                record(&mut report, WORK, &case(active, total, direction), round, values);
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

fn case(active: usize, total: usize, direction: &str) -> String {
    format!("{active} of {total} tunnels, {direction}")
}

#[cfg(test)]
mod tests {
    use super::*;

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
