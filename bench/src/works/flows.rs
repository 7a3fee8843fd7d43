//! Datagrams of very many: thousands of visitors' flows on one published port, and thousands of mediators with a flow each,
//! against a hundred flows. First the highest rate of each with less than 0.5 % of loss, then all at one rate which is well
//! below: at their own highest rates, those with few flows share more datagrams a turn, which is another question.

use anyhow::ensure;

use super::lab::{Lab, words};
use super::{Common, SYSTEM, at_most, ratio, record};
use crate::compare::bars::LOSS_PERCENT_MAX;
use crate::compare::cases::{Work, derive};
use crate::load::udp::FLOWS_MAX;
use crate::results::Report;
use crate::world::{Process, Role};

/// What to do.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Flows of the crowd on one port.
    pub flows: usize,
    /// Mediators of the other crowd.
    pub mediators: usize,
    /// Datagrams a second at which all are compared; `None` for [`SHARE`] of the least that was found.
    pub rate: Option<u32>,
    /// Measurements of each case.
    pub rounds: u32,
    /// Seconds of each.
    pub seconds: u64,
}

/// Most mediators: each has a published port.
pub const MEDIATORS_MAX: usize = 10_000;

/// What all carry without being at their limits, by the least of the limits.
pub const SHARE: f64 = 0.7;

const WORK: &str = "flows";

/// Of the many mediators' published ports.
const PUBLISHED: usize = 20_000;

/// Where they lead: simulated mediators have an echo behind every destination.
const ANYWHERE: &str = "10.0.0.1:7";

/// The first visitor's port number. All loads have the same visitors: a relay has room for the flows of one, not of all.
const FROM_PORT: u16 = 12_000;

const FEW: usize = 100;
const RATIO_MAX: f64 = 1.5;

/// Measures.
///
/// # Errors
/// No world, or a mediator or load fails.
pub fn run(settings: &Settings, common: &Common) -> anyhow::Result<Report> {
    let Settings { flows, mediators, .. } = *settings;
    ensure!(flows > FEW, "--flows is more than {FEW}, to which it is compared");
    ensure!(flows <= FLOWS_MAX, "--flows is at most {FLOWS_MAX}");
    ensure!((1..=MEDIATORS_MAX).contains(&mediators), "--mediators is from 1 to {MEDIATORS_MAX}");
    ensure!(common.channels > 0, "--udp-channels is at least 1: this is about redirected datagrams");
    let mut report = Report::begin(&common.congestion);
    let relay = Role::Relay.address();
    let ports: Vec<String> = (0..mediators).map(|at| format!("{relay}:{}", PUBLISHED + at)).collect();
    let publish: Vec<String> =
        ports.iter().enumerate().map(|(at, port)| format!("udp:{port}=m{at}/{ANYWHERE}")).collect();
    let lab = Lab::up(common, &publish)?;
    let far: Vec<Process> = lab.mediators(0, mediators, "sink")?;
    let one = format!("--to {}", ports[0]);
    let each: Vec<String> = ports.iter().map(|port| format!("--to {port}")).collect();
    let [few, crowd, many] = cases(settings);
    let loads = [(&few, FEW, &one), (&crowd, flows, &one), (&many, mediators, &each.join(" "))];
    let load = |flows: usize, rate: &str, to: &str, seconds: u64| {
        let line = format!("udp --flows {flows} --from-port {FROM_PORT} --rate {rate} --size 200 {to}");
        let mut values = lab.load(&far, &words(&line), seconds)?;
        derive(Work::Udp, &mut values)?;
        anyhow::Ok(values)
    };
    let mut least = f64::INFINITY;
    if settings.rate.is_none() {
        for (case, flows, to) in loads {
            lab.look()?;
            let values = load(flows, "max", to, settings.seconds)?;
            least = least.min(*values.get("rate").unwrap_or(&0.0));
            record(&mut report, WORK, &highest(case), 1, values);
        }
    }
    let rate = settings.rate.unwrap_or((least * SHARE).max(1.0) as u32);
    for round in 1..=settings.rounds {
        lab.look()?;
        for (case, flows, to) in loads {
            record(&mut report, WORK, case, round, load(flows, &rate.to_string(), to, settings.seconds)?);
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
        let lost = [case, &few].into_iter().find_map(|case| {
            let lost = report.median(WORK, case, SYSTEM, "loss_percent")?;
            (lost > LOSS_PERCENT_MAX).then(|| format!("{lost:.1} % of '{case}' were lost; give a lower --rate"))
        });
        let measured = ratio(report, WORK, "relay_us_per_datagram", case, &few).filter(|_| lost.is_none());
        let mut bar = at_most(&name, "<= 1.5", RATIO_MAX, measured);
        bar.why = lost;
        report.bars.push(bar);
    }
}

fn highest(case: &str) -> String {
    format!("{case}, at the most")
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
        let settings = Settings { flows: 1000, mediators: 10, rate: Some(1000), rounds: 1, seconds: 1 };
        let mut report = Report::begin("cubic");
        for (case, cost, lost) in
            cases(&settings).iter().zip([2.0, 2.8, 2.8]).zip([0.0, 0.5, 0.6]).map(|((c, x), l)| (c, x, l))
        {
            let values = [("relay_us_per_datagram", cost), ("loss_percent", lost)];
            record(&mut report, WORK, case, 1, Values::from(values.map(|(key, value)| (key.to_owned(), value))));
        }
        judge(&mut report, &settings);
        assert_eq!(report.bars.iter().map(|bar| bar.met).collect::<Vec<_>>(), [Some(true), None]);
        assert!(report.bars[1].why.as_ref().is_some_and(|why| why.contains("0.6 %")), "{:?}", report.bars[1]);
    }

    #[test]
    fn counts_are_checked_before_anything_is_started() {
        let common = Common { shards: 1, congestion: "cubic".into(), channels: 2 };
        let good = Settings { flows: 1000, mediators: 10, rate: Some(1000), rounds: 1, seconds: 1 };
        for (bad, common) in [
            (Settings { flows: FEW, ..good.clone() }, &common),
            (Settings { flows: FLOWS_MAX + 1, ..good.clone() }, &common),
            (Settings { mediators: 0, ..good.clone() }, &common),
            (Settings { mediators: MEDIATORS_MAX + 1, ..good.clone() }, &common),
            (good, &Common { channels: 0, ..common.clone() }),
        ] {
            let error = run(&bad, common).unwrap_err().to_string();
            assert!(error.starts_with("--"), "{error}");
        }
    }
}
