//! The bars: medians of the rounds' ratios inside one run, each at the worst of its cases.

use crate::compare::cases::{OPEN_LOOP, at_once, datagrams, streams};
use crate::load::search::LOSS_MAX;
use crate::results::{Bar, Report};

/// Whether less or more is wanted.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Limit {
    AtMost(f64),
    AtLeast(f64),
}
use Limit::{AtLeast, AtMost};

/// What stands below the line of a ratio.
#[derive(Clone, Debug)]
enum Against {
    /// Another system at the same case.
    System(&'static str),
    /// The same system at another case.
    Case(String),
    /// Nothing: the figure itself counts.
    Figure(&'static str),
}
use Against::{Case, Figure, System};

struct Rule {
    name: &'static str,
    work: &'static str,
    cases: Vec<String>,
    system: &'static str,
    key: &'static str,
    limit: Limit,
    against: Against,
}

const ENCRYPTED: &str = "isthmus";
const PLAINTEXT: &str = "isthmus-plaintext";
const W: &str = "machine_s_per_gb";
const RATE: &str = "echo_rate";

/// Why datagrams' figures are none.
struct Lost {
    /// The system that is judged lost them.
    ours: bool,
    why: String,
}

/// Loss with which the CPU time of a datagram still says something, in percent.
pub const LOSS_PERCENT_MAX: f64 = LOSS_MAX * 100.0;

/// Computes every bar that this run's congestion control has one for; what was not measured leaves it open.
pub fn judge(report: &Report) -> Vec<Bar> {
    rules(&report.machine.congestion).iter().map(|rule| rule.judge(report)).collect()
}

impl Rule {
    fn judge(&self, report: &Report) -> Bar {
        let measured = self.measure(report);
        let (sign, limit) = match self.limit {
            AtMost(limit) => ("<=", limit),
            AtLeast(limit) => (">=", limit),
        };
        let bar = match &self.against {
            System(other) => format!("{sign} {limit} x {other}"),
            Case(other) => format!("{sign} {limit} x '{other}'"),
            Figure(unit) => format!("{sign} {limit} {unit}"),
        };
        let lost = self.lost(report);
        let measured = measured.filter(|_| lost.is_none());
        let met = match &lost {
            // It carries no rate, which is what is asked for.
            Some(lost) if lost.ours && self.key == RATE => Some(false),
            _ => measured.map(|measured| match self.limit {
                AtMost(limit) => measured <= limit,
                AtLeast(limit) => measured >= limit,
            }),
        };
        let why = lost.map(|lost| lost.why).or_else(|| measured.is_none().then(|| self.missing(report)).flatten());
        Bar { name: self.name.to_owned(), bar, limit, measured, met, why }
    }

    /// What was lost cost CPU time and counts for no datagram, or cost none where it was lost before it came: either way the
    /// cost of the others is no figure. Nor is a rate one's highest where too much of it is lost, or where no search found one.
    fn lost(&self, report: &Report) -> Option<Lost> {
        if self.work != "udp" || !(self.key.ends_with("_us_per_datagram") || self.key == RATE) {
            return None;
        }
        let sides = self.cases.iter().flat_map(|case| match &self.against {
            System(other) => vec![(case, self.system), (case, *other)],
            Case(other) => vec![(case, self.system), (other, self.system)],
            Figure(_) => vec![(case, self.system)],
        });
        let lost = |(case, system): (&String, &str)| {
            let lost = report.median(self.work, case, system, "loss_percent")?;
            let why = if lost > LOSS_PERCENT_MAX {
                format!("{system} lost {lost:.1} % of '{case}'")
            } else if report.median(self.work, case, system, "searched") == Some(0.0) {
                format!("no rate of '{case}' was found that {system} carries")
            } else {
                return None;
            };
            Some(Lost { ours: system == self.system, why })
        };
        let (mut ours, mut others) = (None, None);
        for lost in sides.into_iter().filter_map(lost) {
            let first = if lost.ours { &mut ours } else { &mut others };
            first.get_or_insert(lost);
        }
        // What the judged one does not carry counts, whatever others lost.
        ours.or(others)
    }

    /// What is missing although it was to be measured: the case was, and both systems took part.
    fn missing(&self, report: &Report) -> Option<String> {
        let took_part = |system: &str| {
            report.results.iter().any(|m| m.system == system)
                || report.skipped.iter().any(|s| s.system == system && s.work != "all")
        };
        let systems: Vec<&str> = match &self.against {
            System(other) => vec![self.system, other],
            Case(_) | Figure(_) => vec![self.system],
        };
        if !systems.iter().all(|system| took_part(system)) {
            return None;
        }
        let run = report.cases(self.work);
        let cases = self.cases.iter().filter(|case| run.contains(&case.as_str()));
        let mut pairs = cases.flat_map(|case| systems.iter().map(move |system| (case, *system)));
        let (case, system) = pairs.find(|(case, system)| report.median(self.work, case, system, self.key).is_none())?;
        Some(format!("{system} has no figure of '{case}'"))
    }

    /// The worst case's; `None` where one is missing, since that might be the worst.
    fn measure(&self, report: &Report) -> Option<f64> {
        let mut worst = None;
        for case in &self.cases {
            let ratio = |by| report.ratio(self.work, self.key, (case, self.system), by);
            let ratio = match &self.against {
                System(other) => ratio((case, other))?,
                Case(other) => ratio((other, self.system))?,
                Figure(_) => report.median(self.work, case, self.system, self.key)?,
            };
            worst = Some(match (worst, self.limit) {
                (None, _) => ratio,
                (Some(worst), AtMost(_)) => ratio.max(worst),
                (Some(worst), AtLeast(_)) => ratio.min(worst),
            });
        }
        worst
    }
}

fn rules(congestion: &str) -> Vec<Rule> {
    let bulk = || [1, 16].iter().flat_map(|&count| ["up", "down"].map(|way| streams(count, way))).collect::<Vec<_>>();
    let tcp = |name, system, key, limit, other| Rule {
        name,
        work: "tcp",
        cases: bulk(),
        system,
        key,
        limit,
        against: System(other),
    };
    // The others are about cubic.
    if congestion == "bbr" {
        return vec![tcp("bulk TCP under bbr: W", ENCRYPTED, W, AtMost(0.55), "rathole-tls")];
    }
    let mut rules = vec![
        tcp("bulk TCP: W", ENCRYPTED, W, AtMost(0.36), "rathole-tls"),
        tcp("bulk TCP: W", ENCRYPTED, W, AtMost(0.95), "haproxy"),
        tcp("bulk TCP: W", ENCRYPTED, W, AtMost(0.95), "haproxy-128k"),
        tcp("bulk TCP: relay's CPU per GB", ENCRYPTED, "relay_s_per_gb", AtMost(0.38), "rathole-tls"),
        tcp("bulk TCP: relay's CPU per GB", ENCRYPTED, "relay_s_per_gb", AtMost(0.5), "haproxy"),
        tcp("bulk TCP: throughput", ENCRYPTED, "gbit_s", AtLeast(2.8), "rathole-tls"),
        tcp("bulk TCP in plaintext: W", PLAINTEXT, W, AtMost(0.8), "haproxy"),
    ];
    let rule = |name, work, cases: &[String], key, limit, against| Rule {
        name,
        work,
        cases: cases.to_vec(),
        system: ENCRYPTED,
        key,
        limit,
        against,
    };
    let (one, many) = ([at_once(1)], [at_once(64)]);
    let connection = "relay_us_per_connection";
    rules.extend([
        rule("new connections, 64 at once", "setup", &many, "rate", AtLeast(1.6), System("rathole")),
        rule("new connections, 64 at once: relay's CPU", "setup", &many, connection, AtMost(0.4), System("rathole")),
        rule("new connections, one at a time: p50", "setup", &one, "p50_us", AtMost(0.75), System("rathole")),
    ]);
    let ping = [OPEN_LOOP.to_owned()];
    rules.extend([
        rule("ping-pong: p50", "pingpong", &ping, "p50_us", AtMost(1.05), System("rathole")),
        rule("ping-pong: p99", "pingpong", &ping, "p99_us", AtMost(1.1), System("rathole")),
    ]);
    let max = [64, 200, 1200].map(|size| datagrams(size, 1, "max"));
    let flows = |count, rate| [datagrams(200, count, rate)];
    let relay = "relay_us_per_datagram";
    let coturn = || System("coturn");
    rules.extend([
        rule("UDP, one flow: echoes a second", "udp", &max, RATE, AtLeast(2.8), coturn()),
        rule("UDP, one flow: echoes a second", "udp", &max, RATE, AtLeast(1.1), System("direct")),
        rule("UDP, one flow: relay's CPU per datagram", "udp", &max, relay, AtMost(0.3), coturn()),
        rule("UDP, 100 flows: relay's CPU per datagram", "udp", &flows(100, "max"), relay, AtMost(0.45), coturn()),
        rule("UDP at 20,000 a second: p50", "udp", &flows(1, "20000"), "rtt_p50_us", AtMost(1.6), coturn()),
        rule("UDP at 20,000 a second: relay's CPU", "udp", &flows(1, "20000"), relay, AtMost(0.85), coturn()),
        rule("UDP at 60,000 a second: loss", "udp", &flows(1, "60000"), "loss_percent", AtMost(0.0), Figure("%")),
        rule("UDP at 60,000 a second: p99", "udp", &flows(1, "60000"), "rtt_p99_us", AtMost(2500.0), Figure("us")),
    ]);
    for rate in ["max", "20000"] {
        let name = "UDP, 10,000 flows: relay's CPU per datagram";
        let against = Case(datagrams(200, 100, rate));
        rules.push(rule(name, "udp", &flows(10_000, rate), relay, AtMost(1.5), against));
    }
    rules
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::cases::{Work, cases};
    use crate::results::Measurement;

    /// A report in which every case of every system has this value at every key, but for `exceptions`.
    fn report(congestion: &str, systems: &[(&str, f64)], exceptions: &[(&str, &str, f64)]) -> Report {
        let mut report = Report::begin(congestion);
        let keys = rules("cubic").into_iter().chain(rules("bbr")).map(|rule| rule.key.to_owned()).collect::<Vec<_>>();
        for case in Work::ALL.into_iter().flat_map(|work| cases(work, false)) {
            for &(system, value) in systems {
                let except = exceptions.iter().find(|(s, c, _)| *s == system && *c == case.name);
                let value = except.map_or(value, |(_, _, value)| *value);
                for round in 1..=3 {
                    report.results.push(Measurement {
                        work: case.work.name().into(),
                        case: case.name.clone(),
                        system: system.into(),
                        round,
                        values: keys
                            .iter()
                            .map(|key| (key.clone(), if key == "loss_percent" { 0.0 } else { value }))
                            .collect(),
                    });
                }
            }
        }
        report
    }

    const EVERYBODY: [(&str, f64); 7] = [
        ("isthmus", 2.0),
        ("isthmus-plaintext", 1.0),
        ("rathole", 4.0),
        ("rathole-tls", 8.0),
        ("haproxy", 4.0),
        ("haproxy-128k", 2.0),
        ("coturn", 10.0),
    ];

    fn find<'a>(bars: &'a [Bar], name: &str, text: &str) -> &'a Bar {
        bars.iter().find(|bar| bar.name == name && bar.bar == text).unwrap()
    }

    #[test]
    fn bars_are_ratios_with_a_verdict() {
        let bars = judge(&report("cubic", &EVERYBODY, &[]));
        let bar = find(&bars, "bulk TCP: W", "<= 0.36 x rathole-tls");
        assert_eq!((bar.limit, bar.measured, bar.met), (0.36, Some(0.25), Some(true)));
        let bar = find(&bars, "bulk TCP: W", "<= 0.95 x haproxy-128k");
        assert_eq!((bar.measured, bar.met), (Some(1.0), Some(false)));
        let bar = find(&bars, "bulk TCP: throughput", ">= 2.8 x rathole-tls");
        assert_eq!((bar.measured, bar.met), (Some(0.25), Some(false)));
        let bar = find(&bars, "UDP, 10,000 flows: relay's CPU per datagram", "<= 1.5 x '200 B, 100 flows, max'");
        assert_eq!((bar.measured, bar.met), (Some(1.0), Some(true)));
        let bar = find(&bars, "UDP at 60,000 a second: p99", "<= 2500 us");
        assert_eq!((bar.measured, bar.met), (Some(2.0), Some(true)));
    }

    #[test]
    fn worst_case_decides_in_either_direction() {
        let exceptions = [("isthmus", "16 streams down", 4.0), ("isthmus", "1 stream up", 1.0)];
        let bars = judge(&report("cubic", &EVERYBODY, &exceptions));
        assert_eq!(find(&bars, "bulk TCP: W", "<= 0.36 x rathole-tls").measured, Some(0.5));
        assert_eq!(find(&bars, "bulk TCP: throughput", ">= 2.8 x rathole-tls").measured, Some(0.125));
        // 256 streams have no bar.
        let bars = judge(&report("cubic", &EVERYBODY, &[("isthmus", "256 streams up", 9.0)]));
        assert_eq!(find(&bars, "bulk TCP: W", "<= 0.36 x rathole-tls").measured, Some(0.25));
    }

    #[test]
    fn case_that_lost_datagrams_has_no_verdict() {
        const RELAY: &str = "UDP, 100 flows: relay's CPU per datagram";
        const ECHOES: &str = "UDP, one flow: echoes a second";
        for (lost, met) in [(LOSS_PERCENT_MAX, Some(true)), (LOSS_PERCENT_MAX + 0.1, None)] {
            for loser in ["isthmus", "coturn"] {
                let mut report = report("cubic", &EVERYBODY, &[]);
                for measurement in &mut report.results {
                    let loss = if measurement.system == loser { lost } else { 0.0 };
                    measurement.values.insert("loss_percent".into(), loss);
                }
                let bars = judge(&report);
                let bar = find(&bars, RELAY, "<= 0.45 x coturn");
                assert_eq!((bar.met, bar.why.is_some()), (met, met.is_none()), "{lost} {loser}: {bar:?}");
                // Who loses too much carries no rate: what is judged misses its bar by that.
                let bar = find(&bars, ECHOES, ">= 2.8 x coturn");
                let wanted = if loser == "isthmus" { Some(false) } else { None };
                let wanted = if met.is_some() { Some(false) } else { wanted };
                assert_eq!((bar.met, bar.why.is_some()), (wanted, met.is_none()), "{lost} {loser}: {bar:?}");
            }
        }
        // Coturn's loss in the first case excuses nothing that Isthmus loses in the last one.
        let mut report = report("cubic", &EVERYBODY, &[]);
        for (system, size) in [("coturn", 64), ("isthmus", 1200)] {
            for m in report.results.iter_mut().filter(|m| m.system == system && m.case == datagrams(size, 1, "max")) {
                m.values.insert("loss_percent".into(), 2.0);
            }
        }
        let bar = judge(&report).into_iter().find(|bar| bar.name == ECHOES && bar.bar == ">= 2.8 x coturn").unwrap();
        assert_eq!((bar.met, bar.why.as_deref()), (Some(false), Some("isthmus lost 2.0 % of '1200 B, 1 flow, max'")));
    }

    #[test]
    fn what_was_not_measured_stays_open() {
        let bars = judge(&report("cubic", &EVERYBODY, &[]));
        let bar = find(&bars, "UDP, one flow: echoes a second", ">= 1.1 x direct");
        assert_eq!((bar.measured, bar.met), (None, None));
        let mut partly = report("cubic", &EVERYBODY, &[]);
        partly.results.retain(|m| m.case != "16 streams up");
        assert_eq!(find(&judge(&partly), "bulk TCP: W", "<= 0.36 x rathole-tls").met, None);
        let bars = judge(&report("cubic", &[("isthmus", 0.0), ("coturn", 0.0)], &[]));
        assert_eq!(find(&bars, "UDP, one flow: relay's CPU per datagram", "<= 0.3 x coturn").met, None);
    }

    #[test]
    fn case_that_failed_is_named_and_an_absent_system_is_not() {
        let mut report = report("cubic", &EVERYBODY, &[]);
        report.results.retain(|m| (m.system.as_str(), m.case.as_str()) != ("isthmus", "1 stream up"));
        let bar = |report: &Report| find(&judge(report), "bulk TCP: W", "<= 0.36 x rathole-tls").clone();
        let why = bar(&report).why;
        assert!(why.as_ref().is_some_and(|why| why.contains("isthmus has no figure of '1 stream up'")), "{why:?}");
        report.results.retain(|m| m.system != "isthmus");
        assert_eq!(bar(&report).why, None);
    }

    #[test]
    fn other_congestion_control_has_its_own_bar() {
        let bars = judge(&report("bbr", &EVERYBODY, &[]));
        assert_eq!(bars.len(), 1);
        assert_eq!((bars[0].bar.as_str(), bars[0].met), ("<= 0.55 x rathole-tls", Some(true)));
    }

    #[test]
    fn rules_speak_of_cases_and_systems_that_are_driven() {
        let systems: Vec<&str> = crate::systems::all().iter().map(|system| system.name()).collect();
        for rule in rules("cubic").into_iter().chain(rules("bbr")) {
            let work = Work::ALL.into_iter().find(|work| work.name() == rule.work).unwrap();
            let driven: Vec<String> = cases(work, false).into_iter().map(|case| case.name).collect();
            assert!(rule.cases.iter().all(|case| driven.contains(case)), "{}", rule.name);
            assert!(systems.contains(&rule.system));
            match &rule.against {
                System(other) => assert!(systems.contains(other), "{other}"),
                Case(other) => assert!(driven.contains(other), "{other}"),
                Figure(_) => {}
            }
        }
    }
}
