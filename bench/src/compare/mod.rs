//! `compare`: the same work on every system, round by round, in one world.
//!
//! Rounds are outermost, then cases, then systems: what is compared is measured within seconds. The order of the systems is
//! turned by one with each round, so that none always comes after the same other. All systems run all the time; those
//! that carry nothing use nothing, which the looks at the idle machine between the measurements would show.

pub mod bars;
pub mod cases;
mod progress;
pub mod table;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use crate::console::note;
use crate::results::{Background, Measurement, Report, Skipped, middle};
use crate::systems::{Running, SINK_PORT, Site, System, Tools, all};
use crate::usage::FAR;
use crate::world::{self, Process, Role, SOON, World, meter};
use cases::{Case, Work, derive, parse};
use progress::Progress;

/// What to compare.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Kinds of load.
    pub works: Vec<Work>,
    /// Systems by name; empty for all.
    pub systems: Vec<String>,
    /// Only cases whose work and name contain one of these; empty for all.
    pub cases: Vec<String>,
    /// Every combination of the works' parameters.
    pub full: bool,
    /// Rounds.
    pub rounds: u32,
    /// Seconds of each measurement.
    pub seconds: u64,
    /// TCP congestion control on every leg.
    pub congestion: String,
    /// Threads of relays and proxies.
    pub shards: u16,
    /// rathole, where it is not in the PATH.
    pub rathole: Option<PathBuf>,
}

/// How long a load may take beyond its seconds: warming up, the search for a rate, setting flows up.
const BEYOND: Duration = Duration::from_secs(120);

/// Time of a look at what others use, and how long to wait for a quiet one.
const LOOK: Duration = Duration::from_millis(300);
const SETTLE_MAX: Duration = Duration::from_secs(15);

/// What others may use of one core before figures are called noisy, in percent.
pub const NOISY_PERCENT: f64 = 10.0;

/// A system that takes part.
struct Entrant {
    system: Box<dyn System>,
    running: Running,
}

/// Measures.
///
/// # Errors
/// The world cannot be made, no system starts, or nothing is left to do. What fails for one system is in the report.
pub fn run(settings: &Settings) -> anyhow::Result<Report> {
    let cases: Vec<Case> = settings.works.iter().flat_map(|&work| cases::cases(work, settings.full)).collect();
    let cases: Vec<Case> = cases.into_iter().filter(|case| settings.wants(case)).collect();
    ensure!(!cases.is_empty(), "no case has a name that contains '{}'", settings.cases.join("' or '"));
    let mut report = Report::begin(&settings.congestion);
    let tools = Tools { bench: std::env::current_exe()?, rathole: settings.rathole.clone() };
    let world = World::up(&settings.congestion)?;
    let sinks = [sink(&world, &tools, Role::Host)?, sink(&world, &tools, Role::Public)?];
    let far = sinks.each_ref().map(Process::pid);
    let (congestion, shards) = (&settings.congestion, settings.shards);
    let site = Site { world: &world, tools: &tools, congestion, shards, far };
    let mut entrants = start(settings, &site, &cases, &mut report.skipped)?;

    let steps = cases.iter().map(|case| entrants.iter().filter(|entrant| entrant.carries(case)).count()).sum::<usize>();
    let mut run = Run { report, looks: Vec::new(), progress: Progress::new(steps * settings.rounds as usize) };
    for round in 1..=settings.rounds {
        for case in &cases {
            run.case(&site, settings, round, case, &mut entrants)?;
        }
    }
    Ok(run.finish())
}

/// A run under way.
struct Run {
    report: Report,
    /// What others used, each time that nothing was measured.
    looks: Vec<f64>,
    progress: Progress,
}

impl Run {
    /// Measures one case on every system that carries it. A system that has ended leaves.
    fn case(
        &mut self,
        site: &Site<'_>,
        settings: &Settings,
        round: u32,
        case: &Case,
        entrants: &mut Vec<Entrant>,
    ) -> anyhow::Result<()> {
        let count = entrants.len();
        for at in 0..count {
            let entrant = &mut entrants[(at + round as usize - 1) % count];
            if !entrant.carries(case) {
                continue;
            }
            let system = entrant.system.name().to_owned();
            // What has failed would fail again, and might take minutes each time.
            if self.has_failed(&system, case) {
                self.progress.pass();
                continue;
            }
            self.looks.push(settled(NOISY_PERCENT)?);
            let what = format!("round {round} of {}: {} {}, {system}", settings.rounds, case.work, case.name);
            self.progress.begin(&what);
            match entrant.measure(site, case, settings.seconds) {
                Ok(values) => {
                    self.progress.end(&what, &headline(case.work, &values));
                    let (work, case) = (case.work.name().to_owned(), case.name.clone());
                    self.report.results.push(Measurement { work, case, system, round, values });
                }
                Err(error) => {
                    let why = format!("in round {round}: {error:#}");
                    self.progress.fail(&what, &why);
                    self.skip(&system, &case.full_name(), why);
                }
            }
        }
        entrants.retain_mut(|entrant| match entrant.running.check() {
            Ok(()) => true,
            Err(error) => {
                self.skip(entrant.system.name(), "the rest", format!("{error:#}"));
                false
            }
        });
        Ok(())
    }

    fn has_failed(&self, system: &str, case: &Case) -> bool {
        self.report.skipped.iter().any(|skipped| skipped.system == system && skipped.work == case.full_name())
    }

    fn skip(&mut self, system: &str, work: &str, why: String) {
        self.report.skipped.push(Skipped { system: system.to_owned(), work: work.to_owned(), why });
    }

    fn finish(mut self) -> Report {
        self.progress.clear();
        self.looks.sort_by(f64::total_cmp);
        if let Some(&max_percent) = self.looks.last() {
            self.report.background = Some(Background { median_percent: middle(&self.looks), max_percent });
        }
        self.report.bars = bars::judge(&self.report);
        self.report
    }
}

impl Settings {
    fn wants(&self, case: &Case) -> bool {
        let name = case.full_name();
        self.cases.is_empty() || self.cases.iter().any(|text| name.contains(text.as_str()))
    }
}

fn sink(world: &World, tools: &Tools, role: Role) -> anyhow::Result<Process> {
    let listen = format!("{}:{SINK_PORT}", role.address());
    let process = world.start(role, &tools.bench, ["sink", "--listen", &listen])?;
    process.wait_for("ready", SOON)?;
    Ok(process)
}

/// Starts the systems that are wanted and can carry one of the cases.
fn start(
    settings: &Settings,
    site: &Site<'_>,
    cases: &[Case],
    skipped: &mut Vec<Skipped>,
) -> anyhow::Result<Vec<Entrant>> {
    let systems = all();
    for name in &settings.systems {
        let names = || systems.iter().map(|system| system.name()).collect::<Vec<_>>().join(", ");
        ensure!(
            systems.iter().any(|system| system.name() == name),
            "there is no system '{name}'; there are {}",
            names()
        );
    }
    let mut entrants = Vec::new();
    for system in systems {
        let wanted = match settings.systems.is_empty() {
            true => !system.only_by_name(),
            false => settings.systems.iter().any(|name| name == system.name()),
        };
        if !wanted || !cases.iter().any(|case| carries(&*system, case)) {
            continue;
        }
        match system.start(site) {
            Ok(running) => entrants.push(Entrant { system, running }),
            Err(error) => {
                world::wait_if_ending();
                note(format_args!("{} is skipped: {error:#}", system.name()));
                skipped.push(Skipped { system: system.name().into(), work: "all".into(), why: format!("{error:#}") });
            }
        }
    }
    let first = skipped.first().map_or("no system carries these works", |skipped| &skipped.why);
    ensure!(!entrants.is_empty(), "nothing to measure: {first}");
    Ok(entrants)
}

fn carries(system: &dyn System, case: &Case) -> bool {
    let carries = system.carries();
    if case.work == Work::Udp { carries.udp && case.flows() <= system.flows_max() } else { carries.tcp }
}

impl Entrant {
    fn carries(&self, case: &Case) -> bool {
        carries(&*self.system, case)
    }

    fn measure(&mut self, site: &Site<'_>, case: &Case, seconds: u64) -> anyhow::Result<BTreeMap<String, f64>> {
        self.running.check()?;
        let to = if case.work == Work::Udp { self.running.udp } else { self.running.tcp };
        let to = to.context("it has no address for visitors")?;
        let mut args = vec![case.work.name().to_owned(), "--to".to_owned(), to.to_string()];
        args.extend(case.args.iter().cloned());
        args.extend(["--seconds".to_owned(), seconds.to_string()]);
        for watched in &self.running.watched {
            args.extend(["--cpu".to_owned(), format!("{}={}", watched.name, watched.pid)]);
        }
        // Either sink: the one that is not used uses nothing.
        args.extend(site.far.iter().flat_map(|pid| ["--cpu".to_owned(), format!("{FAR}={pid}")]));
        let limit = Duration::from_secs(seconds) + BEYOND;
        let line = site.world.run(self.running.from, &site.tools.bench, args, limit)?;
        let mut values = parse(&line)?;
        derive(case.work, &mut values)?;
        Ok(values)
    }
}

/// What others use of the machine now, in percent of one core.
pub(crate) fn background() -> anyhow::Result<f64> {
    let (before, started) = (meter::busy_s()?, Instant::now());
    thread::sleep(LOOK);
    Ok((meter::busy_s()? - before).max(0.0) / started.elapsed().as_secs_f64() * 100.0)
}

/// The same when the last load's rests have gone, as far as they are more than `quiet`: what 256 streams have in their buffers
/// takes seconds to drain, and would be the next load's.
pub(crate) fn settled(quiet: f64) -> anyhow::Result<f64> {
    let deadline = Instant::now() + SETTLE_MAX;
    loop {
        let percent = background()?;
        if percent <= quiet {
            return Ok(percent);
        }
        if Instant::now() >= deadline {
            note(format_args!(
                "the machine does not come to rest: {percent:.0} % of a core are used, {:.0} s after the last load",
                SETTLE_MAX.as_secs_f64()
            ));
            return Ok(percent);
        }
    }
}

/// The figure or two that a person waits for.
fn headline(work: Work, values: &BTreeMap<String, f64>) -> String {
    let value = |key: &str| values.get(key).copied().unwrap_or(f64::NAN);
    let text = match work {
        Work::Tcp => format!("{:.2} Gbit/s, W {:.3}", value("gbit_s"), value("machine_s_per_gb")),
        Work::Setup => format!("{:.0} a second, p50 {:.0} us", value("rate"), value("p50_us")),
        Work::Pingpong => format!("p50 {:.0} us, p99 {:.0} us", value("p50_us"), value("p99_us")),
        Work::Udp => format!("{:.0} echoes a second, {:.2} % lost", value("echo_rate"), value("loss_percent")),
    };
    if values.get("load_bound").is_some_and(|&bound| bound > 0.0) {
        format!("{text} (the load is at its end)")
    } else {
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(cases: &[&str]) -> Settings {
        Settings {
            works: Work::ALL.to_vec(),
            systems: Vec::new(),
            cases: cases.iter().map(|&text| text.to_owned()).collect(),
            full: false,
            rounds: 1,
            seconds: 1,
            congestion: "cubic".into(),
            shards: 1,
            rathole: None,
        }
    }

    #[test]
    fn nobody_is_asked_for_more_flows_than_it_has_room_for() {
        let who = |flows| {
            let case = cases::cases(Work::Udp, true).into_iter().find(|case| case.flows() == flows).unwrap();
            all().iter().filter(|system| carries(&***system, &case)).map(|system| system.name()).collect::<Vec<_>>()
        };
        let (few, many) = (who(100), who(10_000));
        assert!(few.contains(&"plain-hops") && many.contains(&"direct"));
        assert_eq!(few.into_iter().filter(|name| !many.contains(name)).collect::<Vec<_>>(), ["plain-hops"]);
    }

    #[test]
    fn filter_takes_parts_of_work_and_name() {
        let all: Vec<Case> = Work::ALL.into_iter().flat_map(|work| cases::cases(work, false)).collect();
        let wanted = |texts: &[&str]| all.iter().filter(|case| settings(texts).wants(case)).count();
        assert_eq!(wanted(&[]), all.len());
        assert_eq!(wanted(&["16 streams"]), 2);
        assert_eq!(wanted(&["16 streams", "setup 1 at"]), 3);
        assert_eq!(wanted(&["no such case"]), 0);
        assert!(run(&settings(&["no such case"])).unwrap_err().to_string().contains("no such case"));
    }

    #[test]
    fn headline_tells_when_the_load_was_the_limit() {
        let mut values = parse("gbit_s=12.345 machine_s_per_gb=0.5").unwrap();
        assert_eq!(headline(Work::Tcp, &values), "12.35 Gbit/s, W 0.500");
        values.insert("load_bound".into(), 1.0);
        assert!(headline(Work::Tcp, &values).ends_with("(the load is at its end)"));
    }
}
