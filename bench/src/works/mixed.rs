//! What bulk does to others: a ping-pong and datagrams on one tunnel, quiet, beside bulk on another stream of the same tunnel,
//! and beside bulk on other tunnels.

use super::lab::{Lab, SINK, words};
use super::{Common, Values, at_most, ratio, record};
use crate::results::Report;
use crate::world::{Process, Role};

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

/// Published for each: its TCP port is this and its number, and the first one's UDP port likewise.
const PUBLISHED: u16 = 7100;

/// Datagrams a second, of this size.
const DATAGRAMS: &str = "--rate 1000 --size 64";

/// Seconds that bulk has to come to its speed, and lasts longer than what is measured.
const LEAD: u64 = 2;

const QUIET: &str = "quiet";

/// Most of the p99, by the quiet one: beside bulk on the same tunnel, and on others.
const SAME_MAX: f64 = 3.0;
const OTHERS_MAX: f64 = 2.0;

/// Which bulk runs meanwhile.
#[derive(Clone, Copy, Debug)]
struct Bulk {
    case: &'static str,
    tunnels: (u16, u16),
    direction: &'static str,
}

const BULK: [Bulk; 4] = [
    Bulk { case: "bulk up on the same tunnel", tunnels: (0, 1), direction: "up" },
    Bulk { case: "bulk down on the same tunnel", tunnels: (0, 1), direction: "down" },
    Bulk { case: "bulk up on 15 other tunnels", tunnels: (1, TUNNELS), direction: "up" },
    Bulk { case: "bulk down on 15 other tunnels", tunnels: (1, TUNNELS), direction: "down" },
];

/// Measures.
///
/// # Errors
/// No world, or a mediator or load fails.
pub fn run(settings: &Settings, common: &Common) -> anyhow::Result<Report> {
    let mut report = Report::begin(&common.congestion);
    let host = Role::Host.address();
    let publish = |proto: &str, at: u16| format!("{proto}:{}=m{at}/{host}:{SINK}", published(at));
    let mut ports: Vec<String> = (0..TUNNELS).map(|at| publish("tcp", at)).collect();
    ports.push(publish("udp", 0));
    let lab = Lab::up(common, &ports)?;
    let _sink = lab.sink()?;
    let _agents = (0..TUNNELS).map(|at| lab.agent(&format!("m{at}"))).collect::<anyhow::Result<Vec<_>>>()?;
    for round in 1..=settings.rounds {
        record(&mut report, WORK, QUIET, round, measure(&lab, settings.seconds)?);
        for bulk in BULK {
            let lasts = settings.seconds + LEAD;
            let load = start(&lab, bulk, lasts)?;
            // Bulk does not tell when it is at its speed, and is measured itself for as long as it lasts.
            std::thread::sleep(std::time::Duration::from_secs(1));
            let mut values = measure(&lab, settings.seconds)?;
            let moved = Lab::ended(&load, lasts)?;
            values.extend(moved.get("gbit_s").map(|&gbit_s| ("bulk_gbit_s".to_owned(), gbit_s)));
            record(&mut report, WORK, bulk.case, round, values);
        }
    }
    judge(&mut report);
    Ok(report)
}

fn published(at: u16) -> String {
    format!("{}:{}", Role::Relay.address(), PUBLISHED + at)
}

fn start(lab: &Lab, bulk: Bulk, seconds: u64) -> anyhow::Result<Process> {
    let (first, end) = bulk.tunnels;
    let to: Vec<String> = (first..end).map(|at| format!("--to {}", published(at))).collect();
    let line = format!("tcp --streams {} --direction {} --warm-up-ms 0 {}", end - first, bulk.direction, to.join(" "));
    lab.begin(Role::Public, &words(&line), seconds)
}

/// Ping-pong and datagrams at the same time, on the first tunnel.
fn measure(lab: &Lab, seconds: u64) -> anyhow::Result<Values> {
    let datagrams = lab.begin(Role::Public, &words(&format!("udp --to {} {DATAGRAMS}", published(0))), seconds)?;
    let mut values = lab.load(Role::Public, &words(&format!("pingpong --to {}", published(0))), seconds)?;
    let datagrams = Lab::ended(&datagrams, seconds)?;
    for (from, to) in [("rtt_p50_us", "udp_p50_us"), ("rtt_p99_us", "udp_p99_us"), ("loss_percent", "udp_loss_percent")]
    {
        values.extend(datagrams.get(from).map(|&value| (to.to_owned(), value)));
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
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::works::SYSTEM;

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
        let verdicts: Vec<_> = report.bars.iter().map(|bar| (bar.measured, bar.met)).collect();
        assert_eq!(verdicts, [(Some(3.1), Some(false)), (Some(1.99), Some(true)), (None, None), (None, None)]);
        assert_eq!(report.median(WORK, QUIET, SYSTEM, "p99_us"), Some(100.0));
    }
}
