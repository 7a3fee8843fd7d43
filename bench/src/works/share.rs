//! What idle neighbours cost those that are active: the machine's CPU per GB with A active tunnels alone, and among N.

use std::thread;
use std::time::Duration;

use anyhow::ensure;

use super::lab::{Lab, RESTS_PERCENT, words};
use super::{COUNT_MAX, Common, at_most, open, ratio, record};
use crate::compare::cases::{Work, derive};
use crate::compare::settled;
use crate::results::Report;
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

/// Where they lead: simulated mediators have a sink behind every destination.
const ANYWHERE: &str = "10.0.0.1:7";

const RATIO_MAX: f64 = 1.15;

/// With fewer tunnels than so many times the active ones there is no verdict: a few neighbours cost nothing that can be seen.
const CROWD: usize = 10;

/// Measures: the others come and go, so that whatever changes the machine's speed meanwhile changes both sides; of two rounds
/// the one begins alone, the other among all, which saves a coming.
///
/// # Errors
/// No world, or a mediator or load fails.
pub fn run(settings: &Settings, common: &Common) -> anyhow::Result<Report> {
    let Settings { count, active, .. } = *settings;
    ensure!((1..=ACTIVE_MAX).contains(&active), "--active is from 1 to {ACTIVE_MAX}");
    ensure!(
        (active + 1..=COUNT_MAX).contains(&count),
        "--count is more than --active: it is all tunnels; at most {COUNT_MAX}"
    );
    let mut report = Report::begin(&common.congestion);
    let relay = Role::Relay.address();
    let to: Vec<String> = (0..active).map(|at| format!("{relay}:{}", PUBLISHED + at)).collect();
    let publish: Vec<String> = to.iter().enumerate().map(|(at, port)| format!("tcp:{port}=m{at}/{ANYWHERE}")).collect();
    let lab = Lab::up(common, &publish)?;
    let more: &[&str] = if settings.learned { &["--learned"] } else { &[] };
    let mediators = lab.mediators_with(0, active, "sink", more)?;
    let to: Vec<String> = to.into_iter().map(|port| format!("--to {port}")).collect();
    let measure = |direction: &str| {
        settled(RESTS_PERCENT)?;
        let line = format!("tcp --streams {active} --direction {direction} {}", to.join(" "));
        let mut values = lab.load(&mediators, &words(&line), settings.seconds)?;
        derive(Work::Tcp, &mut values)?;
        anyhow::Ok(values)
    };
    thread::sleep(settings.settle);
    let mut others: Vec<Process> = Vec::new();
    for round in 1..=settings.rounds {
        lab.look()?;
        for total in totals(settings, round) {
            if total == active && !others.is_empty() {
                others.clear();
                thread::sleep(settings.settle);
            } else if total == count && others.is_empty() {
                others = lab.mediators_with(active, count - active, "sink", more)?;
                thread::sleep(settings.settle);
            }
            for direction in ["up", "down"] {
                record(&mut report, WORK, &case(active, total, direction), round, measure(direction)?);
            }
        }
    }
    report.background = lab.background();
    judge(&mut report, settings);
    Ok(report)
}

fn totals(settings: &Settings, round: u32) -> [usize; 2] {
    let [few, all] = [settings.active, settings.count];
    if round % 2 == 1 { [few, all] } else { [all, few] }
}

fn judge(report: &mut Report, settings: &Settings) {
    let Settings { count, active, .. } = *settings;
    let worst = ["up", "down"].iter().filter_map(|direction| {
        let cases = [count, active].map(|total| case(active, total, direction));
        ratio(report, WORK, "machine_s_per_gb", &cases[0], &cases[1])
    });
    let name = format!("W with {active} active of {count} tunnels, by that with {active} in all");
    let bar = at_most(&name, "<= 1.15", RATIO_MAX, worst.reduce(f64::max));
    let few = count < active * CROWD;
    report.bars.push(if few { open(bar, &format!("few are idle; {CROWD} times --active tell")) } else { bar });
}

fn case(active: usize, total: usize, direction: &str) -> String {
    format!("{active} of {total} tunnels, {direction}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(count: usize, active: usize) -> Settings {
        Settings { count, active, learned: false, settle: Duration::ZERO, rounds: 1, seconds: 1 }
    }

    #[test]
    fn others_come_every_other_round_and_few_of_them_tell_nothing() {
        let settings = settings(1000, 100);
        let order: Vec<usize> = (1..=4).flat_map(|round| totals(&settings, round)).collect();
        assert_eq!(order, [100, 1000, 1000, 100, 100, 1000, 1000, 100]);
        for (count, met) in [(1000, Some(false)), (999, None)] {
            let mut report = Report::begin("cubic");
            for (total, w) in [(100, 1.0), (count, 1.2)] {
                let values = [("machine_s_per_gb".to_owned(), w)].into();
                record(&mut report, WORK, &case(100, total, "up"), 1, values);
            }
            judge(&mut report, &Settings { count, ..settings.clone() });
            assert_eq!((report.bars[0].measured, report.bars[0].met), (Some(1.2), met));
        }
    }

    #[test]
    fn counts_are_checked_before_anything_is_started() {
        let common = Common { shards: 1, congestion: "cubic".into(), channels: 0 };
        for (count, active) in [(10, 0), (10, 10), (2000, ACTIVE_MAX + 1), (COUNT_MAX + 1, 1)] {
            let error = run(&settings(count, active), &common).unwrap_err().to_string();
            assert!(error.starts_with("--"), "{error}");
        }
    }
}
