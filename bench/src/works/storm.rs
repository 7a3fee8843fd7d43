//! All mediators come back after the relay's crash: how soon, what it costs, and what those notice that another relay on the
//! same machine carries meanwhile.
//!
//! No time can be less than the CPU time of the handshakes at both ends divided by the processors, since relay and mediators
//! share this machine. That is measured in memory ([`handshake::pure`]), and with the kernel's part, sockets, connect and
//! accept, over the same path ([`handshake::connected`]): of whole handshakes, which mediators without a ticket have, and of
//! those with one, which the storm has. What a tunnel has beyond that (greeting, token, report, the end of its predecessor) is in
//! the storm's time only; its UDP channels are opened afterwards, as far as the relay asks for that (`channels_later`).
//!
//! Time counts from the first attempt that found a relay: what passes before is the relay's start, and the wait between
//! attempts, which a mediator chooses at random so that not all come at once.

use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, ensure};

use super::handshake::{self, Kind, Pure};
use super::lab::{Lab, PATIENCE, Urgency, words};
use super::{COUNT_MAX, Common, SYSTEM, Values, at_most, open, ratio, record};
use crate::compare::cases::parse;
use crate::results::Report;
use crate::simulate::AGAIN;
use crate::world::{Process, Role, meter};
use isthmus_relay::trust::State;

/// What to do.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Mediators.
    pub count: usize,
    /// Crashes.
    pub rounds: u32,
}

/// Most of the time until all are back, as a multiple of the handshakes' CPU time over all processors.
const RATIO_MAX: f64 = 1.3;

/// Fewer mediators have no verdict: they are back before both ends' threads have found their pace.
const JUDGED_MIN: usize = 2000;

const WORK: &str = "storm";
const STORM: &str = "relay killed";
const PURE: &str = "handshakes alone";
const QUIET: &str = "survivor's ping-pong, quiet";
const MEANWHILE: &str = "survivor's ping-pong, meanwhile";

/// Handshakes in memory, and as many over connections.
const HANDSHAKES: u32 = 2000;

/// Seconds of the quiet ping-pong.
const QUIET_SECONDS: u64 = 4;

/// Where the surviving relay publishes a port, and the sink behind it.
const PUBLISHED: u16 = 7001;
const SINK: u16 = 7000;

/// Messages a second: far below what the survivor carries, so that what is seen is how long each waits.
const PING: &str = "--rate 200";

/// What the handshakes cost alone, for so many.
#[derive(Clone, Copy, Debug)]
struct Alone {
    pure: Pure,
    /// Of both ends of one, with the kernel's part.
    connected_s: f64,
    /// The same with a ticket.
    resumed_s: f64,
    count: usize,
    cores: usize,
}

/// What a storm took: moments in seconds since the kill, and CPU seconds from when the relay ran again.
#[derive(Clone, Copy, Debug)]
struct Storm {
    runs: f64,
    found: f64,
    back: f64,
    relay_cpu: f64,
    mediators_cpu: f64,
    machine_cpu: f64,
    /// Mediators that left their UDP channels for later, as the relay asked, and in how many seconds the last ones open them.
    channels_later: f64,
    channels_wait: f64,
}

/// Measures.
///
/// # Errors
/// No mediators, no world, or not all come back.
pub fn run(settings: &Settings, common: &Common) -> anyhow::Result<Report> {
    ensure!((1..=COUNT_MAX).contains(&settings.count), "--count is from 1 to {COUNT_MAX}");
    let mut report = Report::begin(&common.congestion);
    let mut lab = Lab::up(common, &[])?;
    let (_sink, _survivor) = (lab.sink(Role::Host, SINK, Urgency::First)?, lab.survivor(PUBLISHED, SINK)?);
    let ping = words(&format!("pingpong --to {}:{PUBLISHED} {PING}", Role::Relay.address()));
    let state = State::open(&lab.state())?;
    let cores = report.machine.cores.max(1);
    let mediators = lab.mediators(0, settings.count, "echo")?;
    for round in 1..=settings.rounds {
        lab.look()?;
        // Each round's own: what a handshake costs differs from one minute to the next by a quarter and more.
        let alone = Alone {
            pure: handshake::pure(&state, Kind::Whole, HANDSHAKES, cores)?,
            connected_s: handshake::connected(&state, Kind::Whole, HANDSHAKES, cores, &lab.path())?,
            resumed_s: handshake::connected(&state, Kind::Resumed, HANDSHAKES, cores, &lab.path())?,
            count: settings.count,
            cores,
        };
        record(&mut report, WORK, PURE, round, alone.values());
        // Within the storm, not longer: a quiet rest would hide it.
        let expected = (alone.connected_over_cores_s().floor() as u64).max(1);
        let quiet = lab.begin_alone(Urgency::First, &ping, QUIET_SECONDS)?;
        record(&mut report, WORK, QUIET, round, Lab::ended(&quiet, QUIET_SECONDS)?);
        let meanwhile = lab.begin_alone(Urgency::First, &ping, expected)?;
        let storm = storm(&mut lab, &mediators)?;
        record(&mut report, WORK, STORM, round, storm.values(&alone));
        record(&mut report, WORK, MEANWHILE, round, Lab::ended(&meanwhile, expected)?);
        // Before the next crash all of them have their channels, and the machine is quiet.
        std::thread::sleep(Duration::from_secs_f64(1.0 + storm.channels_wait));
    }
    report.background = lab.background();
    judge(&mut report, settings.count, cores);
    Ok(report)
}

/// Kills the relay, and waits until all are back.
fn storm(lab: &mut Lab, mediators: &[Process]) -> anyhow::Result<Storm> {
    let marks: Vec<usize> = mediators.iter().map(Process::mark).collect();
    let cpu = || mediators.iter().map(|process| meter::cpu_s(process.pid())).sum::<anyhow::Result<f64>>();
    let (killed, clock) = (Instant::now(), unix_s());
    lab.crash_relay()?;
    // What it takes to start is not the handshakes'.
    let runs = killed.elapsed().as_secs_f64();
    let (relay, mediated, machine) = (meter::cpu_s(lab.relay_pid())?, cpu()?, meter::busy_s()?);
    let (mut found, mut back) = (f64::INFINITY, 0.0f64);
    let (mut channels_later, mut channels_wait) = (0.0, 0.0f64);
    for (process, mark) in mediators.iter().zip(marks) {
        let line = parse(&process.wait_for_after(mark, "back ", PATIENCE)?)?;
        let value = |key: &str| line.get(key).copied().with_context(|| format!("mediators came back without {key}"));
        let at = value("up_at_s")? - clock;
        channels_later += value("channels_later")?;
        channels_wait = channels_wait.max(value("channels_wait_s")?);
        (found, back) = (found.min(at - value("found_up_s")?), back.max(at));
    }
    Ok(Storm {
        runs,
        found,
        back,
        relay_cpu: meter::cpu_s(lab.relay_pid())? - relay,
        mediators_cpu: cpu()? - mediated,
        machine_cpu: meter::busy_s()? - machine,
        channels_later,
        channels_wait,
    })
}

fn unix_s() -> f64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

impl Alone {
    fn pure_over_cores_s(&self) -> f64 {
        (self.pure.server_s + self.pure.client_s) * self.count as f64 / self.cores as f64
    }

    fn connected_over_cores_s(&self) -> f64 {
        self.connected_s * self.count as f64 / self.cores as f64
    }

    fn resumed_over_cores_s(&self) -> f64 {
        self.resumed_s * self.count as f64 / self.cores as f64
    }

    fn values(&self) -> Values {
        values([
            ("server_us_per_handshake", self.pure.server_s * 1e6),
            ("client_us_per_handshake", self.pure.client_s * 1e6),
            ("connected_us_per_handshake", self.connected_s * 1e6),
            ("resumed_us_per_handshake", self.resumed_s * 1e6),
            ("pure_over_cores_s", self.pure_over_cores_s()),
            ("connected_over_cores_s", self.connected_over_cores_s()),
        ])
    }
}

impl Storm {
    fn values(&self, alone: &Alone) -> Values {
        let (count, back) = (alone.count as f64, self.back - self.found);
        values([
            ("tunnels", count),
            ("redial_wait_ms", AGAIN.as_secs_f64() * 1e3),
            ("since_kill_relay_runs_s", self.runs),
            ("since_kill_found_s", self.found),
            ("since_kill_back_s", self.back),
            ("back_s", back),
            ("back_by_pure_ratio", back / alone.pure_over_cores_s()),
            ("back_by_connected_ratio", back / alone.connected_over_cores_s()),
            ("back_by_resumed_ratio", back / alone.resumed_over_cores_s()),
            ("relay_us_per_handshake", self.relay_cpu * 1e6 / count),
            ("mediator_us_per_handshake", self.mediators_cpu * 1e6 / count),
            ("machine_us_per_handshake", self.machine_cpu * 1e6 / count),
            ("channels_later", self.channels_later),
            ("channels_wait_s", self.channels_wait),
        ])
    }
}

fn values<const N: usize>(values: [(&str, f64); N]) -> Values {
    values.map(|(key, value)| (key.to_owned(), value)).into()
}

fn judge(report: &mut Report, count: usize, cores: usize) {
    for (key, what) in [
        ("back_by_pure_ratio", "CPU time of the handshakes in memory"),
        ("back_by_connected_ratio", "the same with connect, accept and sockets"),
        ("back_by_resumed_ratio", "these with a ticket, as they were made"),
    ] {
        let measured = report.median(WORK, STORM, SYSTEM, key);
        let name = format!("{count} mediators back, by {what}, over {cores} cores");
        let bar = at_most(&name, "<= 1.3", RATIO_MAX, measured);
        let few = count < JUDGED_MIN;
        report.bars.push(if few { open(bar, &format!("too few; --count {JUDGED_MIN} tells")) } else { bar });
    }
    // No bar of the issue's; shown for what it is.
    if let Some(times) = ratio(report, WORK, "p99_us", MEANWHILE, QUIET) {
        record(report, WORK, "survivor's p99, meanwhile by quiet", 1, values([("p99_ratio", times)]));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn storm_is_held_against_the_cost_of_both_ends_over_all_cores() {
        let pure = Pure { server_s: 60e-6, client_s: 140e-6 };
        let alone = Alone { pure, connected_s: 300e-6, resumed_s: 200e-6, count: 10_000, cores: 2 };
        let storm = Storm {
            runs: 0.2,
            found: 0.25,
            back: 2.05,
            relay_cpu: 1.2,
            mediators_cpu: 2.0,
            machine_cpu: 3.5,
            channels_later: 0.0,
            channels_wait: 0.0,
        };
        let values = storm.values(&alone);
        assert!((values["back_s"] - 1.8).abs() < 1e-9);
        assert!((values["back_by_pure_ratio"] - 1.8).abs() < 1e-9);
        assert!((values["back_by_connected_ratio"] - 1.2).abs() < 1e-9);
        assert!((values["back_by_resumed_ratio"] - 1.8).abs() < 1e-9);
        assert!((values["relay_us_per_handshake"] - 120.0).abs() < 1e-9);
        assert!((values["machine_us_per_handshake"] - 350.0).abs() < 1e-9);
        let mut report = Report::begin("cubic");
        record(&mut report, WORK, STORM, 1, values);
        judge(&mut report, 10_000, 2);
        assert_eq!(report.bars.iter().map(|bar| bar.met).collect::<Vec<_>>(), [Some(false), Some(true), Some(false)]);
        report.bars.clear();
        judge(&mut report, JUDGED_MIN - 1, 2);
        assert!(report.bars.iter().all(|bar| bar.met.is_none() && bar.why.is_some() && bar.measured.is_some()));
    }
}
