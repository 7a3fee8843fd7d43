//! What idle tunnels cost the relay: memory, as the slope between two counts so that what it has anyway is left out, and CPU
//! for what keeps their channels alive. At the end one operation through each shows that they live.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::ensure;

use super::lab::Lab;
use super::{COUNT_MAX, Common, SYSTEM, Values, at_most, open, record};
use crate::results::Report;
use crate::world::meter;

/// What to do.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Tunnels in the end; the slope begins at an eighth of them.
    pub count: usize,
    /// Whether UDP channels are maintained as after everything was learned of the gateways, or as at first.
    pub learned: bool,
    /// Quiet time before each look: key contexts are given back after some of it, at a tunnel's next maintain packet.
    pub settle: Duration,
    /// Time for which CPU is watched.
    pub watch: Duration,
}

/// Fewest tunnels: below, the slope is noise.
pub const COUNT_MIN: usize = 64;

const WORK: &str = "idle";

/// Huge pages are counted whole when a byte of them is used: steps of 2 MiB, which two looks meet by chance.
const SMALL_PAGES: &str = "MIMALLOC_ALLOW_THP=0";

/// The relay has seen the end of all connections of a wave by then.
const WAVE_ENDS: Duration = Duration::from_secs(2);

/// Most of the relay's own memory for a tunnel, in bytes.
const BYTES_MAX: f64 = 2048.0;

/// Most CPU for the maintain packets of [`TUNNELS_AT`] tunnels, in percent of a core.
const CPU_PERCENT_MAX: f64 = 2.0;
const TUNNELS_AT: f64 = 16_000.0;

/// Fewer tunnels have no verdict on memory: what else the relay takes meanwhile would be theirs.
const JUDGED_MIN: usize = 4000;

/// Of CPU time: with less allowed there is no verdict, since it is told in steps of 0.01.
const CPU_SECONDS_MIN: f64 = 0.1;

/// Measures.
///
/// # Errors
/// Too few tunnels, no world, or not all come up.
pub fn run(settings: &Settings, common: &Common) -> anyhow::Result<Report> {
    ensure!((COUNT_MIN..=COUNT_MAX).contains(&settings.count), "--count is from {COUNT_MIN} to {COUNT_MAX}");
    let mut report = Report::begin(&common.congestion);
    let lab = Lab::up_with(common, &[], &[SMALL_PAGES])?;
    lab.look()?;
    let more: &[&str] = if settings.learned { &["--learned"] } else { &[] };
    // A first wave that goes again: from then on the relay has every buffer that tunnels need while they attach, and what
    // it grows by between the two looks is what tunnels keep.
    drop(lab.mediators_with(0, settings.count / 8, "echo", more)?);
    thread::sleep(WAVE_ENDS);
    let (mut processes, mut looks) = (Vec::new(), Vec::new());
    for count in [settings.count / 8, settings.count] {
        let before = looks.last().map_or(0, |&(count, _)| count);
        let begun = Instant::now();
        processes.extend(lab.mediators_with(before, count - before, "echo", more)?);
        let attach_s = begun.elapsed().as_secs_f64();
        thread::sleep(settings.settle);
        let (cpu, started) = (meter::cpu_s(lab.relay_pid())?, Instant::now());
        thread::sleep(settings.watch);
        let cpu = (meter::cpu_s(lab.relay_pid())? - cpu) / started.elapsed().as_secs_f64() * 100.0;
        let memory = meter::memory(lab.relay_pid())?;
        let values = Values::from([
            ("tunnels".to_owned(), count as f64),
            ("attach_s".to_owned(), attach_s),
            ("rss_kib".to_owned(), memory.rss_kib as f64),
            ("pss_kib".to_owned(), memory.pss_kib as f64),
            ("relay_cpu_percent".to_owned(), cpu),
        ]);
        record(&mut report, WORK, &tunnels(count), 1, values);
        looks.push((count, memory));
    }
    let [(few, least), (many, most)] = looks[..] else { anyhow::bail!("there are two looks") };
    let slope = |most: u64, least: u64| (most as f64 - least as f64) * 1024.0 / (many - few) as f64;
    let values = Values::from([
        ("rss_bytes_per_tunnel".to_owned(), slope(most.rss_kib, least.rss_kib)),
        ("pss_bytes_per_tunnel".to_owned(), slope(most.pss_kib, least.pss_kib)),
    ]);
    record(&mut report, WORK, "slope", 1, values);
    record(&mut report, WORK, "one operation through each", 1, lab.operate(settings.count)?);
    report.background = lab.background();
    judge(&mut report, settings.count, settings.watch);
    Ok(report)
}

fn tunnels(count: usize) -> String {
    format!("{count} tunnels")
}

fn judge(report: &mut Report, count: usize, watch: Duration) {
    let bytes = report.median(WORK, "slope", SYSTEM, "rss_bytes_per_tunnel");
    let bar = at_most("idle tunnel: the relay's memory in bytes", "<= 2048", BYTES_MAX, bytes);
    let few = count < JUDGED_MIN;
    report.bars.push(if few {
        open(bar, &format!("the slope is of too few; --count {JUDGED_MIN} tells"))
    } else {
        bar
    });
    // In proportion: the maintain packets are what there is to do.
    let limit = CPU_PERCENT_MAX * count as f64 / TUNNELS_AT;
    let cpu = report.median(WORK, &tunnels(count), SYSTEM, "relay_cpu_percent");
    let name = format!("keep-alives of {count} tunnels: percent of a core");
    let bar = at_most(&name, &format!("<= {limit:.2} (2 at 16,000)"), limit, cpu);
    let coarse = limit / 100.0 * watch.as_secs_f64() < CPU_SECONDS_MIN;
    report.bars.push(if coarse {
        open(bar, "CPU time is told in hundredths of a second; a longer --watch tells")
    } else {
        bar
    });
    let value = |key| report.median(WORK, "one operation through each", SYSTEM, key);
    let missing = value("asked").zip(value("answered")).map(|(asked, answered)| asked - answered);
    report.bars.push(at_most("tunnels that do not answer an operation", "0", 0.0, missing));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_bar_is_in_proportion_and_every_silent_tunnel_counts() {
        let mut report = Report::begin("cubic");
        let values = |key: &str, value| Values::from([(key.to_owned(), value)]);
        record(&mut report, WORK, "8000 tunnels", 1, values("relay_cpu_percent", 1.1));
        record(&mut report, WORK, "slope", 1, values("rss_bytes_per_tunnel", 2000.0));
        let mut operations = values("asked", 8000.0);
        operations.insert("answered".into(), 7999.0);
        record(&mut report, WORK, "one operation through each", 1, operations);
        judge(&mut report, 8000, Duration::from_secs(60));
        let met: Vec<_> = report.bars.iter().map(|bar| (bar.limit, bar.met)).collect();
        assert_eq!(met, [(2048.0, Some(true)), (1.0, Some(false)), (0.0, Some(false))]);
        report.bars.clear();
        judge(&mut report, 800, Duration::from_secs(60));
        let met: Vec<_> = report.bars.iter().map(|bar| (bar.met, bar.why.is_some())).collect();
        assert_eq!(met, [(None, true), (None, true), (Some(false), false)]);
    }
}
