//! What the front doors cost: bulk and new connections through a SOCKS5 port and by a TLS server name, against a plain
//! published port; and by one of ten thousand names, against a sole one.
//!
//! Two relays run on one machine with a mediator each. The first has the plain port, the SOCKS5 port and a port of names with
//! one name; the second has the many names, from a configuration file. They take turns, load by load, in an order
//! that differs from round to round. The plain port is measured twice: how far a port is from itself is what the
//! machine adds to every ratio. Many short rounds tell more than few long ones.

use anyhow::ensure;

use super::lab::{Beside, Lab, Urgency, words};
use super::{Common, SYSTEM, Values, record};
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

/// Each at each place and behind each other equally often: a measurement finds what the one before it left in caches and
/// buffers, and a mere rotation would leave every door behind the same other always.
fn in_turn(doors: [Door; 5], round: u32) -> [Door; 5] {
    let (first, step) = (round as usize % 5, 1 + round as usize / 5 % 4);
    // Five is a prime, so any step visits all.
    std::array::from_fn(|place| doors[(first + step * place) % 5])
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
    for (door, verdict) in [(Door::Socks5, true), (Door::Sole, true), (many, true), (Door::PlainAgain, false)] {
        for (key, what) in [(W, "W"), (RELAY, "relay's CPU per GB")] {
            let bases: &[Door] = if verdict { &[Door::Plain, Door::PlainAgain] } else { &[Door::Plain] };
            let name = format!("{what}, {}, by {}", door.name(), Door::Plain.name());
            let pooled = Pooled::of(report, loads, Work::Tcp, key, door, bases);
            report.bars.push(if verdict { pooled_bar(&name, BULK_MAX, pooled) } else { noise_bar(&name, pooled) });
        }
    }
    let name = format!("relay's CPU per new connection, {}, by {}", many.name(), Door::Sole.name());
    let pooled = Pooled::of(report, loads, Work::Setup, RELAY_CONNECTION, many, &[Door::Sole]);
    report.bars.push(pooled_bar(&name, CONNECTION_MAX, pooled));
    let name = "per connection, plain port, by itself";
    let pooled = Pooled::of(report, loads, Work::Setup, RELAY_CONNECTION, Door::PlainAgain, &[Door::Plain]);
    report.bars.push(noise_bar(name, pooled));
}

/// What a ratio is over all loads and rounds together: their geometric mean, which knows it the better the more rounds there
/// are. A single load's median of a few rounds is off by several percent on a machine with anything else on it.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Pooled {
    mean: f64,
    /// It is within this factor of the mean, but for one time in twenty: two standard errors.
    within: f64,
}

impl Pooled {
    /// By the mean of the bases in the same round; `None` where a load is missing, or too few rounds to tell.
    fn of(report: &Report, loads: &[Load], work: Work, key: &str, door: Door, bases: &[Door]) -> Option<Self> {
        let mut logs = Vec::new();
        for load in loads.iter().filter(|load| load.work == work) {
            let case = door.case(load);
            let by = |base: &Door| {
                let base = base.case(load);
                let ratios = report.ratios(WORK, key, (&case, SYSTEM), (&base, SYSTEM));
                ratios.map(f64::ln).collect::<Vec<_>>()
            };
            let by: Vec<Vec<f64>> = bases.iter().map(by).collect();
            let rounds = by.iter().map(Vec::len).min().filter(|&rounds| rounds > 0)?;
            logs.extend((0..rounds).map(|round| by.iter().map(|ratios| ratios[round]).sum::<f64>() / by.len() as f64));
        }
        if logs.len() < 2 {
            return None;
        }
        let count = logs.len() as f64;
        let mean = logs.iter().sum::<f64>() / count;
        let variance = logs.iter().map(|log| (log - mean).powi(2)).sum::<f64>() / (count - 1.0);
        Some(Self { mean: mean.exp(), within: (2.0 * (variance / count).sqrt()).exp() })
    }

    fn ends(self) -> [f64; 2] {
        [self.mean / self.within, self.mean * self.within]
    }

    fn words(self) -> String {
        let [low, high] = self.ends();
        format!("{low:.3} to {high:.3}")
    }
}

/// There is a verdict where the whole interval is on one side of the limit.
fn pooled_bar(name: &str, limit: f64, pooled: Option<Pooled>) -> Bar {
    let [low, high] = pooled.map_or([f64::NAN; 2], Pooled::ends);
    let met = if high <= limit { Some(true) } else { (low > limit).then_some(false) };
    let why = pooled.filter(|_| met.is_none()).map(|pooled| format!("{}: more rounds tell", pooled.words()));
    let name =
        pooled.filter(|_| met.is_some()).map_or(name.to_owned(), |pooled| format!("{name} ({})", pooled.words()));
    Bar { name, bar: format!("<= {limit}"), limit, measured: pooled.map(|pooled| pooled.mean), met, why }
}

fn noise_bar(name: &str, pooled: Option<Pooled>) -> Bar {
    let why = pooled.map(|pooled| format!("{}: the run's own noise", pooled.words()));
    let measured = pooled.map(|pooled| pooled.mean);
    Bar { name: name.to_owned(), bar: "1".to_owned(), limit: 1.0, measured, met: None, why }
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
    fn every_door_is_at_every_place_and_behind_every_other_equally_often() {
        let rounds: Vec<[Door; 5]> = (0..20).map(|round| in_turn(doors(NAMES), round)).collect();
        for door in doors(NAMES) {
            for place in 0..5 {
                assert_eq!(rounds.iter().filter(|round| round[place] == door).count(), 4);
            }
            for other in doors(NAMES).into_iter().filter(|&other| other != door) {
                let behind = |round: &&[Door; 5]| round.windows(2).any(|pair| pair == [other, door]);
                assert_eq!(rounds.iter().filter(behind).count(), 4);
            }
        }
    }

    /// A report of two rounds, in the second of which the machine is twice as slow, with these ratios by the plain port.
    fn report(ratio: impl Fn(Door, u32) -> f64) -> Report {
        let mut report = Report::begin("cubic");
        for round in 1..=2 {
            for (at, load) in LOADS.iter().enumerate() {
                for door in doors(NAMES) {
                    let value = (1.0 + at as f64) * f64::from(round) * ratio(door, round);
                    let values = [W, RELAY, RELAY_CONNECTION].map(|key| (key.to_owned(), value));
                    record(&mut report, WORK, &door.case(load), round, values.into());
                }
            }
        }
        report
    }

    #[test]
    fn verdict_is_of_all_loads_and_rounds_together_and_noise_has_none() {
        let mut report = report(|door, _| match door {
            Door::Plain | Door::PlainAgain => 1.0,
            Door::Socks5 => 1.03,
            Door::Sole => 1.01,
            Door::Many(_) => 1.015,
        });
        judge(&mut report, NAMES, &LOADS);
        let verdicts: Vec<_> = report.bars.iter().map(|bar| bar.met).collect();
        let (met, missed) = (Some(true), Some(false));
        assert_eq!(verdicts, [missed, missed, met, met, met, met, None, None, met, None]);
        let mut partial = Report::begin("cubic");
        judge(&mut partial, NAMES, &LOADS[..2]);
        assert!(partial.bars.iter().all(|bar| bar.measured.is_none() && bar.met.is_none()));
    }

    #[test]
    fn no_verdict_where_the_rounds_differ_by_more_than_the_limit_asks() {
        let mut report = report(|door, round| if door == Door::Socks5 && round == 1 { 1.1 } else { 1.0 });
        judge(&mut report, NAMES, &LOADS);
        let bar = &report.bars[0];
        assert!(bar.met.is_none() && bar.measured.is_some_and(|measured| (1.04..1.06).contains(&measured)), "{bar:?}");
        assert!(bar.why.as_ref().is_some_and(|why| why.contains("more rounds")), "{bar:?}");
    }
}
