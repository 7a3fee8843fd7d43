//! What bulk does to others: a ping-pong and datagrams on one tunnel, quiet, beside bulk on another stream of the same tunnel,
//! and beside bulk on other tunnels.
//!
//! Here all machines share some processors. So that it is the relay's and the mediators' part that is measured, and not how
//! long a visitor or a host waits for a processor among dozens of busy threads, the measuring ends are scheduled first. What
//! they see nevertheless is measured at the same time, twice: without any relay, by a ping-pong between the visitor and a sink
//! on the relay's machine; and apart, through a relay and a mediator that carry nothing else. What is beyond the latter is what
//! the relay and its tunnels do; the rest is what happens to anybody's packets on processors and paths that are this busy.
//!
//! Last, bulk on the same tunnel where the path between relay and gateway is slow. There each byte before a message is a delay.

use super::lab::{Lab, Urgency, words};
use super::{Common, SYSTEM, Values, at_most, ratio, record};
use crate::results::Report;
use crate::world::{Process, Role, SOON};

/// What to do.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Rounds.
    pub rounds: u32,
    /// Seconds of each measurement.
    pub seconds: u64,
}

const WORK: &str = "mixed";

/// Tunnels; the ping-pong is on the first.
const TUNNELS: u16 = 16;

/// Published for bulk: this and the tunnel's number.
const PUBLISHED: u16 = 7100;

/// Published for what is measured, TCP and UDP, on the first tunnel.
const MEASURED: u16 = 7001;

/// Published by the relay apart.
const APART: u16 = 7003;

/// Ports of the sinks behind both.
const SINK: u16 = 7000;
const MEASURED_SINK: u16 = 7002;

/// Of the sink on the relay's machine, which no relay is in the way to.
const NEAR_SINK: u16 = 7004;

/// Messages and datagrams a second: far below what any of the ways carries, so that what is seen is how long each waits.
const MESSAGES: &str = "--rate 200";
const DATAGRAMS: &str = "--rate 200 --size 64";

/// Seconds that bulk lasts longer than what is measured.
const BEYOND: u64 = 1;

const QUIET: &str = "quiet";

/// The slow path, and what it keeps while more comes: 26 ms. Bulk takes its time there to come to its speed.
const SLOW: &str = "tbf rate 20mbit burst 16kb limit 64kb";
const SLOW_LEAD: u64 = 5;

/// Where it is shaped: the relay's way to the gateway, and the gateway's to the relay.
const SHAPED: [(Role, &str); 2] = [(Role::Relay, "to-gw"), (Role::Gateway, "eth0")];

/// Most of the p50 there, by that of the relay apart, whose packets wait in the same queue.
const SLOW_MAX: f64 = 2.0;

/// Most of the p99, by the quiet one: beside bulk on the same tunnel, and on others.
const SAME_MAX: f64 = 3.0;
const OTHERS_MAX: f64 = 2.0;

/// Which bulk runs meanwhile.
#[derive(Clone, Copy, Debug)]
struct Bulk {
    case: &'static str,
    tunnels: (u16, u16),
    direction: &'static str,
    /// Seconds that it has to come to its speed.
    lead: u64,
}

const BULK: [Bulk; 4] = [
    Bulk { case: "bulk up on the same tunnel", tunnels: (0, 1), direction: "up", lead: 1 },
    Bulk { case: "bulk down on the same tunnel", tunnels: (0, 1), direction: "down", lead: 1 },
    Bulk { case: "bulk up on 15 other tunnels", tunnels: (1, TUNNELS), direction: "up", lead: 1 },
    Bulk { case: "bulk down on 15 other tunnels", tunnels: (1, TUNNELS), direction: "down", lead: 1 },
];

const SLOW_BULK: [Bulk; 2] = [
    Bulk { case: "bulk up on the same tunnel, 20 Mbit/s", tunnels: (0, 1), direction: "up", lead: SLOW_LEAD },
    Bulk { case: "bulk down on the same tunnel, 20 Mbit/s", tunnels: (0, 1), direction: "down", lead: SLOW_LEAD },
];

/// Measures.
///
/// # Errors
/// No world, or a mediator or load fails.
pub fn run(settings: &Settings, common: &Common) -> anyhow::Result<Report> {
    let mut report = Report::begin(&common.congestion);
    let host = Role::Host.address();
    let bulk = (0..TUNNELS).map(|at| format!("tcp:{}=m{at}/{host}:{SINK}", published(PUBLISHED + at)));
    let measured = ["tcp", "udp"].map(|proto| format!("{proto}:{}=m0/{host}:{MEASURED_SINK}", published(MEASURED)));
    let lab = Lab::up(common, &bulk.chain(measured).collect::<Vec<_>>())?;
    let _apart = lab.survivor(APART, MEASURED_SINK)?;
    let bulk_sink = [lab.sink(Role::Host, SINK, Urgency::Usual)?];
    let sinks =
        [lab.sink(Role::Host, MEASURED_SINK, Urgency::First)?, lab.sink(Role::Relay, NEAR_SINK, Urgency::First)?];
    let _agents = (0..TUNNELS).map(|at| lab.agent(&format!("m{at}"))).collect::<anyhow::Result<Vec<_>>>()?;
    for round in 1..=settings.rounds {
        lab.look()?;
        record(&mut report, WORK, QUIET, round, measure(&lab, &sinks, settings.seconds)?);
        let beside = |bulk: Bulk| -> anyhow::Result<Values> {
            let lasts = bulk.lead + settings.seconds + BEYOND;
            let load = start(&lab, &bulk_sink, bulk, lasts)?;
            // Bulk does not tell when it is at its speed, and is measured itself for as long as it lasts.
            std::thread::sleep(std::time::Duration::from_secs(bulk.lead));
            let mut values = measure(&lab, &sinks, settings.seconds)?;
            let moved = Lab::ended(&load, lasts)?;
            for (from, to) in [("gbit_s", "bulk_gbit_s"), ("load_bound", "bulk_load_bound")] {
                values.extend(moved.get(from).map(|&value| (to.to_owned(), value)));
            }
            Ok(values)
        };
        for bulk in BULK {
            record(&mut report, WORK, bulk.case, round, beside(bulk)?);
        }
        shape(&lab, "replace", SLOW)?;
        for bulk in SLOW_BULK {
            record(&mut report, WORK, bulk.case, round, beside(bulk)?);
        }
        shape(&lab, "del", "")?;
    }
    report.background = lab.background();
    judge(&mut report);
    Ok(report)
}

fn published(port: u16) -> String {
    format!("{}:{port}", Role::Relay.address())
}

/// Changes what shapes the path between relay and gateway, in both directions.
fn shape(lab: &Lab, verb: &str, to: &str) -> anyhow::Result<()> {
    for (role, device) in SHAPED {
        lab.world.run(role, "tc", words(&format!("qdisc {verb} dev {device} root {to}")), SOON)?;
    }
    Ok(())
}

fn start(lab: &Lab, far: &[Process], bulk: Bulk, seconds: u64) -> anyhow::Result<Process> {
    let (first, end) = bulk.tunnels;
    let to: Vec<String> = (first..end).map(|at| format!("--to {}", published(PUBLISHED + at))).collect();
    let line = format!("tcp --streams {} --direction {} --warm-up-ms 0 {}", end - first, bulk.direction, to.join(" "));
    lab.begin(Urgency::Usual, far, &words(&line), seconds)
}

/// Ping-pong and datagrams at the same time, on the first tunnel; a ping-pong apart, and one without a relay.
fn measure(lab: &Lab, sinks: &[Process], seconds: u64) -> anyhow::Result<Values> {
    let to = published(MEASURED);
    let ping = |port| format!("pingpong --to {} {MESSAGES}", published(port));
    let begin = |line: String| lab.begin(Urgency::First, sinks, &words(&line), seconds);
    let begun = [format!("udp --to {to} {DATAGRAMS}"), ping(MEASURED), ping(APART), ping(NEAR_SINK)].map(begin);
    let [datagrams, values, alone, near] = begun.map(|load| Lab::ended(&load?, seconds));
    let mut values = values?;
    let udp = [("rtt_p50_us", "udp_p50_us"), ("rtt_p99_us", "udp_p99_us"), ("loss_percent", "udp_loss_percent")];
    let own = [("p50_us", "own_p50_us"), ("p99_us", "own_p99_us")];
    let beside = [("p50_us", "apart_p50_us"), ("p99_us", "apart_p99_us")];
    let taken = [(datagrams?, &udp[..]), (near?, &own[..]), (alone?, &beside[..])];
    for (of, keys) in &taken {
        values.extend(keys.iter().filter_map(|&(from, to)| Some((to.to_owned(), *of.get(from)?))));
    }
    Ok(values)
}

fn judge(report: &mut Report) {
    for (key, what) in [("p99_us", "ping-pong's p99"), ("udp_p99_us", "UDP round trip's p99")] {
        for (tunnel, limit, words) in
            [("the same tunnel", SAME_MAX, "<= 3 x quiet"), ("other tunnels", OTHERS_MAX, "<= 2 x quiet")]
        {
            let cases = BULK.iter().filter(|bulk| bulk.case.ends_with(tunnel));
            let worst = cases.filter_map(|bulk| ratio(report, WORK, key, bulk.case, QUIET)).reduce(f64::max);
            report.bars.push(at_most(&format!("{what} beside bulk on {tunnel}"), words, limit, worst));
        }
    }
    let by_apart = SLOW_BULK.iter().map(|bulk| {
        let of = |key| report.median(WORK, bulk.case, SYSTEM, key);
        Some(of("p50_us")? / of("apart_p50_us")?)
    });
    // Both directions or none.
    let worst = by_apart.collect::<Option<Vec<_>>>().and_then(|all| all.into_iter().reduce(f64::max));
    let name = "ping-pong's p50 beside bulk on the same tunnel, 20 Mbit/s";
    report.bars.push(at_most(name, "<= 2 x apart", SLOW_MAX, worst));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn worst_direction_is_judged_for_each_kind_of_neighbour() {
        let mut report = Report::begin("cubic");
        for (case, p99) in [QUIET, BULK[0].case, BULK[1].case, BULK[2].case, BULK[3].case]
            .into_iter()
            .zip([100.0, 250.0, 310.0, 150.0, 199.0])
        {
            record(&mut report, WORK, case, 1, Values::from([("p99_us".to_owned(), p99)]));
        }
        judge(&mut report);
        let verdicts = |report: &Report| report.bars.iter().map(|bar| (bar.measured, bar.met)).collect::<Vec<_>>();
        let none = (None, None);
        assert_eq!(verdicts(&report), [(Some(3.1), Some(false)), (Some(1.99), Some(true)), none, none, none]);
        for (bulk, p50) in SLOW_BULK.into_iter().zip([30.0, 42.0]) {
            assert_eq!(verdicts(&report).last(), Some(&none), "of one direction nothing is known");
            let values = [("p50_us", p50), ("apart_p50_us", 20.0)].map(|(key, value)| (key.to_owned(), value));
            record(&mut report, WORK, bulk.case, 1, Values::from(values));
            report.bars.clear();
            judge(&mut report);
        }
        assert_eq!(verdicts(&report).last(), Some(&(Some(2.1), Some(false))));
        assert_eq!(report.median(WORK, QUIET, SYSTEM, "p99_us"), Some(100.0));
    }
}
