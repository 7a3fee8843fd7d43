//! Datagrams of very many: thousands of visitors' flows on one published port, and thousands of mediators with a flow each,
//! against a hundred flows. The same rate for all, which should be well below what saturates the machine: every datagram of
//! the many comes by itself, so that nothing but the rate decides how many share a turn.

use anyhow::ensure;

use super::lab::{Lab, words};
use super::{Common, SYSTEM, at_most, ratio, record};
use crate::compare::cases::{Work, derive};
use crate::results::Report;
use crate::world::{Process, Role};

/// What to do.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Flows of the crowd on one port.
    pub flows: usize,
    /// Mediators of the other crowd.
    pub mediators: usize,
    /// Datagrams a second.
    pub rate: u32,
    /// Measurements of each case.
    pub rounds: u32,
    /// Seconds of each.
    pub seconds: u64,
}

/// Most mediators: each has a published port.
pub const MEDIATORS_MAX: usize = 10_000;

const WORK: &str = "flows";

/// Of the many mediators' published ports.
const PUBLISHED: usize = 20_000;

/// Where they lead: simulated mediators have an echo behind every destination.
const ANYWHERE: &str = "10.0.0.1:7";

const FEW: usize = 100;
const RATIO_MAX: f64 = 1.5;

/// Loss with which a case still counts.
const LOSS_PERCENT_MAX: f64 = 0.5;

/// Measures.
///
/// # Errors
/// No world, or a mediator or load fails.
pub fn run(settings: &Settings, common: &Common) -> anyhow::Result<Report> {
    let Settings { flows, mediators, rate, .. } = *settings;
    ensure!(flows > FEW, "--flows is more than {FEW}, to which it is compared");
    ensure!((1..=MEDIATORS_MAX).contains(&mediators), "--mediators is from 1 to {MEDIATORS_MAX}");
    ensure!(common.channels > 0, "--udp-channels is at least 1: this is about redirected datagrams");
    let mut report = Report::begin(&common.congestion);
    let relay = Role::Relay.address();
    let ports: Vec<String> = (0..mediators).map(|at| format!("{relay}:{}", PUBLISHED + at)).collect();
    let publish: Vec<String> =
        ports.iter().enumerate().map(|(at, port)| format!("udp:{port}=m{at}/{ANYWHERE}")).collect();
    let lab = Lab::up(common, &publish)?;
    let _mediators: Vec<Process> = lab.mediators(0, mediators, "sink")?;
    let one = format!("--to {}", ports[0]);
    let each: Vec<String> = ports.iter().map(|port| format!("--to {port}")).collect();
    let [few, crowd, many] = cases(settings);
    let loads = [(&few, FEW, &one), (&crowd, flows, &one), (&many, mediators, &each.join(" "))];
    for round in 1..=settings.rounds {
        lab.look()?;
        for (case, flows, to) in loads {
            let line = format!("udp --flows {flows} --rate {rate} --size 200 {to}");
            let mut values = lab.load(Role::Public, &words(&line), settings.seconds)?;
            derive(Work::Udp, &mut values)?;
            record(&mut report, WORK, case, round, values);
        }
    }
    report.background = lab.background();
    judge(&mut report, settings);
    Ok(report)
}

fn judge(report: &mut Report, settings: &Settings) {
    let [few, crowd, many] = cases(settings);
    for case in [&crowd, &many] {
        let name = format!("relay's CPU per datagram, {case}, by that of {FEW} flows");
        // What was lost cost something and counts for none; what is overloaded is another question.
        let lost =
            [case, &few].iter().any(|case| report.median(WORK, case, SYSTEM, "loss_percent") > Some(LOSS_PERCENT_MAX));
        if lost {
            eprintln!("{case}: more than {LOSS_PERCENT_MAX} % are lost, which is no verdict; give a lower --rate");
        }
        let measured = ratio(report, WORK, "relay_us_per_datagram", case, &few).filter(|_| !lost);
        report.bars.push(at_most(&name, "<= 1.5", RATIO_MAX, measured));
    }
}

fn cases(settings: &Settings) -> [String; 3] {
    [
        format!("{FEW} flows on one port"),
        format!("{} flows on one port", settings.flows),
        format!("{} mediators, a flow each", settings.mediators),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::works::Values;

    #[test]
    fn case_that_lost_datagrams_has_no_verdict() {
        let settings = Settings { flows: 1000, mediators: 10, rate: 1000, rounds: 1, seconds: 1 };
        let mut report = Report::begin("cubic");
        for (case, cost, lost) in
            cases(&settings).iter().zip([2.0, 2.8, 2.8]).zip([0.0, 0.5, 0.6]).map(|((c, x), l)| (c, x, l))
        {
            let values = [("relay_us_per_datagram", cost), ("loss_percent", lost)];
            record(&mut report, WORK, case, 1, Values::from(values.map(|(key, value)| (key.to_owned(), value))));
        }
        judge(&mut report, &settings);
        assert_eq!(report.bars.iter().map(|bar| bar.met).collect::<Vec<_>>(), [Some(true), None]);
    }

    #[test]
    fn counts_are_checked_before_anything_is_started() {
        let common = Common { shards: 1, congestion: "cubic".into(), channels: 2 };
        let good = Settings { flows: 1000, mediators: 10, rate: 1000, rounds: 1, seconds: 1 };
        for (bad, common) in [
            (Settings { flows: FEW, ..good.clone() }, &common),
            (Settings { mediators: 0, ..good.clone() }, &common),
            (Settings { mediators: MEDIATORS_MAX + 1, ..good.clone() }, &common),
            (good, &Common { channels: 0, ..common.clone() }),
        ] {
            let error = run(&bad, common).unwrap_err().to_string();
            assert!(error.starts_with("--"), "{error}");
        }
    }
}
