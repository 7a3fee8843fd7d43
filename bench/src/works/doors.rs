//! What the front doors cost: bulk and new connections through a SOCKS5 port and by a TLS server name, against a plain
//! published port; and by one of ten thousand names, against a sole one.
//!
//! Two relays run on one machine with a mediator each. The first has the plain port, the SOCKS5 port and a port of names with
//! one name; the second has the many names, from a configuration file. They take turns, load by load, and the order of the
//! doors is turned by one with each round. The plain port is measured twice: how far a port is from itself is what the
//! machine adds to every ratio.

use anyhow::ensure;

use super::lab::{Beside, Lab, Urgency, words};
use super::{Common, Values, at_most, ratio, record};
use crate::compare::cases::{Work, derive};
use crate::results::{Bar, Report};
use crate::usage::FAR;
use crate::world::{Role, meter};

/// What to do.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Names that are compared to one.
    pub names: usize,
    /// Parts of the names of loads; without any, all loads.
    pub loads: Vec<String>,
    /// Measurements of each load through each door.
    pub rounds: u32,
    /// Seconds of each.
    pub seconds: u64,
}

/// Most names: new connections ask for each in turn, and all are arguments of one command.
pub const NAMES_MAX: usize = 20_000;

const WORK: &str = "doors";

/// The private host's sink.
const SINK: u16 = 7000;

/// Ports of the relay's machine.
const PLAIN_PORT: u16 = 7001;
const SOCKS_PORT: u16 = 1080;
const SOLE_PORT: u16 = 8443;
const MANY_PORT: u16 = 9443;

/// The two relays' mediators.
const FIRST: &str = "m";
const SECOND: &str = "n";

/// Most of the CPU time per GB, by that of the door that it is compared to.
const BULK_MAX: f64 = 1.02;

/// Most of the relay's CPU time for a new connection among many names, by that with one.
const CONNECTION_MAX: f64 = 1.05;

const W: &str = "machine_s_per_gb";
const RELAY: &str = "relay_s_per_gb";
const RELAY_CONNECTION: &str = "relay_us_per_connection";

/// What is carried.
#[derive(Clone, Copy, Debug)]
struct Load {
    name: &'static str,
    work: Work,
    args: &'static str,
}

/// New connections come first: what bulk has left in sockets is gone by then.
const LOADS: [Load; 6] = [
    Load { name: "new connections, 1 at once", work: Work::Setup, args: "--at-once 1" },
    Load { name: "new connections, 64 at once", work: Work::Setup, args: "--at-once 64" },
    Load { name: "1 stream up", work: Work::Tcp, args: "--streams 1 --direction up" },
    Load { name: "1 stream down", work: Work::Tcp, args: "--streams 1 --direction down" },
    Load { name: "16 streams up", work: Work::Tcp, args: "--streams 16 --direction up" },
    Load { name: "16 streams down", work: Work::Tcp, args: "--streams 16 --direction down" },
];

/// A way in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Door {
    Plain,
    PlainAgain,
    Socks5,
    /// By the only name that there is.
    Sole,
    /// By one of so many names.
    Many(usize),
}

impl Door {
    fn name(self) -> String {
        match self {
            Self::Plain => "plain port".to_owned(),
            Self::PlainAgain => "plain port again".to_owned(),
            Self::Socks5 => "SOCKS5".to_owned(),
            Self::Sole => "TLS name".to_owned(),
            Self::Many(count) => format!("one of {count} TLS names"),
        }
    }

    /// The load's targets. One stream, and 16, have one name; new connections ask for all in turn.
    fn targets(self, work: Work) -> Vec<String> {
        let (relay, host) = (Role::Relay.address(), Role::Host.address());
        match self {
            Self::Plain | Self::PlainAgain => vec![format!("{relay}:{PLAIN_PORT}")],
            Self::Socks5 => vec![format!("{relay}:{SOCKS_PORT},socks5={host}:{SINK}")],
            Self::Sole => vec![format!("{relay}:{SOLE_PORT},tls={}", name(0))],
            Self::Many(count) => {
                let target = |number| format!("{relay}:{MANY_PORT},tls={}", name(number));
                if work == Work::Setup { (0..count).map(target).collect() } else { vec![target(count / 2)] }
            }
        }
    }

    fn case(self, load: &Load) -> String {
        format!("{}, {}", load.name, self.name())
    }
}

/// Measures.
///
/// # Errors
/// No world, or a relay, mediator or load fails.
pub fn run(settings: &Settings, common: &Common) -> anyhow::Result<Report> {
    ensure!((2..=NAMES_MAX).contains(&settings.names), "--names is from 2 to {NAMES_MAX}");
    let loads: Vec<Load> = LOADS.into_iter().filter(|load| settings.wants(load)).collect();
    ensure!(!loads.is_empty(), "--loads: none has this in its name; there are {}", LOADS.map(|l| l.name).join("; "));
    let mut report = Report::begin(&common.congestion);
    let lab = Lab::up_with(common, &first_relay(), &[])?;
    let agent = lab.agent(FIRST)?;
    let routes = lab.world.write("names.toml", configuration(settings.names))?.display().to_string();
    let many = lab.beside("many", SECOND, &["--config".to_owned(), routes])?;
    let sink = lab.sink(Role::Host, SINK, Urgency::Usual)?;
    memory(&mut report, settings.names, [lab.relay_pid(), many.relay_pid()])?;
    let watch = Watch { sink: sink.pid(), first: [lab.relay_pid(), agent.pid()], many };
    for round in 1..=settings.rounds {
        lab.look()?;
        for load in &loads {
            for door in in_turn(doors(settings.names), round) {
                let values = watch.measure(&lab, load, door, settings.seconds)?;
                record(&mut report, WORK, &door.case(load), round, values);
            }
        }
    }
    report.background = lab.background();
    judge(&mut report, settings.names, &loads);
    Ok(report)
}

impl Settings {
    fn wants(&self, load: &Load) -> bool {
        self.loads.is_empty() || self.loads.iter().any(|text| load.name.contains(text.as_str()))
    }
}

fn doors(names: usize) -> [Door; 5] {
    [Door::Plain, Door::Socks5, Door::Sole, Door::PlainAgain, Door::Many(names)]
}

/// Turned by one with each round, so that none is always behind the same other.
fn in_turn(mut doors: [Door; 5], round: u32) -> [Door; 5] {
    let places = round as usize % doors.len();
    doors.rotate_left(places);
    doors
}

fn name(number: usize) -> String {
    format!("n{number}.names.example")
}

fn first_relay() -> Vec<String> {
    let (relay, host) = (Role::Relay.address(), Role::Host.address());
    let ports =
        format!("--publish tcp:{relay}:{PLAIN_PORT}={FIRST}/{host}:{SINK} --socks {relay}:{SOCKS_PORT}={FIRST}");
    let names = format!("--names {relay}:{SOLE_PORT} --name {}={FIRST}/{host}:{SINK}", name(0));
    words(&format!("{ports} --socks-open {names}"))
}

/// The second relay's, as an operator would write it.
fn configuration(names: usize) -> String {
    let (relay, host) = (Role::Relay.address(), Role::Host.address());
    let routes = (0..names).map(|number| format!("    \"{}={SECOND}/{host}:{SINK}\",\n", name(number)));
    format!("names = [\"{relay}:{MANY_PORT}\"]\nname = [\n{}]\n", routes.collect::<String>())
}

/// Whose CPU time is taken.
struct Watch {
    sink: u32,
    /// The first relay and its mediator.
    first: [u32; 2],
    many: Beside,
}

impl Watch {
    fn measure(&self, lab: &Lab, load: &Load, door: Door, seconds: u64) -> anyhow::Result<Values> {
        let [relay, agent] = match door {
            Door::Many(_) => [self.many.relay_pid(), self.many.agent_pid()],
            Door::Plain | Door::PlainAgain | Door::Socks5 | Door::Sole => self.first,
        };
        let mut args = words(&format!("{} {}", load.work, load.args));
        args.extend(door.targets(load.work).into_iter().flat_map(|target| ["--to".to_owned(), target]));
        let watched = [(FAR, self.sink), ("relay", relay), ("agent", agent)];
        let mut values = lab.load_watching(&watched, &args, seconds)?;
        derive(load.work, &mut values)?;
        Ok(values)
    }
}

/// The relays' memory before anything was carried: they differ by their names.
fn memory(report: &mut Report, names: usize, relays: [u32; 2]) -> anyhow::Result<()> {
    let pss = relays.map(|pid| anyhow::Ok(meter::memory(pid)?.pss_kib as f64));
    let [sole, many] = [pss[0].as_ref(), pss[1].as_ref()];
    let (Ok(&sole), Ok(&many)) = (sole, many) else { anyhow::bail!("a relay is gone") };
    let values = [
        ("relay_pss_kib", many),
        ("relay_pss_kib_with_one_name", sole),
        ("bytes_per_name", (many - sole) * 1024.0 / (names - 1) as f64),
    ];
    record(report, WORK, &format!("memory, {names} names"), 1, values.map(|(key, value)| (key.into(), value)).into());
    Ok(())
}

fn judge(report: &mut Report, names: usize, loads: &[Load]) {
    let many = Door::Many(names);
    let pairs = [(Door::Socks5, Door::Plain), (Door::Sole, Door::Plain), (many, Door::Sole)];
    for (door, base) in pairs {
        for (key, what) in [(W, "W"), (RELAY, "relay's CPU per GB")] {
            let measured = worst(report, loads, Work::Tcp, key, door, base);
            let name = format!("{what}, {}, by {}", door.name(), base.name());
            report.bars.push(at_most(&name, &format!("<= {BULK_MAX}"), BULK_MAX, measured));
        }
    }
    let measured = worst(report, loads, Work::Setup, RELAY_CONNECTION, many, Door::Sole);
    let name = format!("relay's CPU per new connection, {}, by {}", many.name(), Door::Sole.name());
    report.bars.push(at_most(&name, &format!("<= {CONNECTION_MAX}"), CONNECTION_MAX, measured));
    for (work, key, what) in [
        (Work::Tcp, W, "W"),
        (Work::Tcp, RELAY, "relay's CPU per GB"),
        (Work::Setup, RELAY_CONNECTION, "per connection"),
    ] {
        let measured = worst(report, loads, work, key, Door::PlainAgain, Door::Plain);
        let why = measured.map(|_| "the run's own noise".to_owned());
        let name = format!("{what}, plain port, by itself");
        report.bars.push(Bar { name, bar: "1".to_owned(), limit: 1.0, measured, met: None, why });
    }
}

/// The ratio of medians at the worst of the loads; `None` where one is missing, since that might be the worst.
fn worst(report: &Report, loads: &[Load], work: Work, key: &str, door: Door, base: Door) -> Option<f64> {
    let of_work = loads.iter().filter(|load| load.work == work);
    let ratios = of_work.map(|load| ratio(report, WORK, key, &door.case(load), &base.case(load)));
    ratios.collect::<Option<Vec<f64>>>()?.into_iter().reduce(f64::max)
}

#[cfg(test)]
mod tests {
    use isthmus_relay::config::{Invocation, parse};

    use super::*;

    const NAMES: usize = 3;

    fn common() -> Common {
        Common { shards: 1, congestion: "cubic".into(), channels: 0 }
    }

    fn settings(loads: &[&str]) -> Settings {
        let loads = loads.iter().map(|&text| text.to_owned()).collect();
        Settings { names: NAMES, loads, rounds: 1, seconds: 1 }
    }

    #[test]
    fn settings_are_checked_before_anything_is_started() {
        for bad in [
            Settings { names: 1, ..settings(&[]) },
            Settings { names: NAMES_MAX + 1, ..settings(&[]) },
            settings(&["no such load"]),
        ] {
            let error = run(&bad, &common()).unwrap_err().to_string();
            assert!(error.starts_with("--"), "{error}");
        }
        let wanted = |texts: &[&str]| LOADS.iter().filter(|load| settings(texts).wants(load)).count();
        assert_eq!((wanted(&[]), wanted(&["16 streams"]), wanted(&["connections", " up"])), (6, 2, 4));
    }

    #[test]
    fn relay_understands_its_arguments_and_its_file_of_names() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("names.toml");
        std::fs::write(&file, configuration(NAMES)).unwrap();
        let of_file = vec!["--config".to_owned(), file.display().to_string()];
        for (args, names, proxies) in [(first_relay(), 1, 1), (of_file, NAMES, 0)] {
            let line = ["isthmus-relay", "--state", "/nowhere"].map(str::to_owned).into_iter().chain(args);
            let Ok(Invocation::Run(config)) = parse(line.collect::<Vec<_>>()) else { panic!("it is refused") };
            assert_eq!((config.name.len(), config.names.len(), config.socks.len()), (names, 1, proxies));
        }
    }

    #[test]
    fn targets_are_ones_that_the_loads_understand() {
        for door in doors(NAMES) {
            for work in [Work::Tcp, Work::Setup] {
                let targets = door.targets(work);
                let all = door == Door::Many(NAMES) && work == Work::Setup;
                assert_eq!(targets.len(), if all { NAMES } else { 1 });
                for target in targets {
                    target.parse::<crate::load::preface::Target>().unwrap();
                }
            }
        }
    }

    #[test]
    fn every_door_is_at_every_place_once() {
        for place in 0..5 {
            let there: Vec<Door> = (1..=5).map(|round| in_turn(doors(NAMES), round)[place]).collect();
            assert!(doors(NAMES).iter().all(|door| there.contains(door)), "{there:?}");
        }
    }

    #[test]
    fn worst_load_is_judged_against_its_own_base_and_noise_has_no_verdict() {
        let mut report = Report::begin("cubic");
        for (at, load) in LOADS.iter().enumerate() {
            let base = 1.0 + at as f64;
            for (door, times) in [
                (Door::Plain, 1.0),
                (Door::PlainAgain, 1.5),
                (Door::Socks5, if at == 3 { 1.03 } else { 1.0 }),
                (Door::Sole, 1.01),
                (Door::Many(NAMES), 1.02),
            ] {
                let values = [W, RELAY, RELAY_CONNECTION].map(|key| (key.to_owned(), base * times));
                record(&mut report, WORK, &door.case(load), 1, values.into());
            }
        }
        judge(&mut report, NAMES, &LOADS);
        let verdicts: Vec<_> = report.bars.iter().map(|bar| bar.met).collect();
        let (met, missed) = (Some(true), Some(false));
        assert_eq!(verdicts, [missed, missed, met, met, met, met, met, None, None, None]);
        assert!(report.bars[7..].iter().all(|bar| bar.measured == Some(1.5) && bar.why.is_some()));
        let mut partial = Report::begin("cubic");
        judge(&mut partial, NAMES, &LOADS[..2]);
        assert!(partial.bars.iter().all(|bar| bar.measured.is_none() && bar.met.is_none()));
    }
}
