//! `compare`, `turn-echo` and `plain-hop`.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, value_parser};
use isthmus_bench::compare::{self, NOISY_PERCENT, cases::Work, table};
use isthmus_bench::console::{note, put};
use isthmus_bench::results::{Bar, Report};
use isthmus_bench::systems::{plain, turn};

use super::results::Files;

#[derive(Debug, Args)]
pub(super) struct Compare {
    /// Kinds of load [default: all]
    #[arg(long, value_name = "LIST", value_enum, value_delimiter = ',')]
    works: Vec<Work>,
    /// Systems [default: all that are installed]
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    systems: Vec<String>,
    /// Only cases with this in their name, such as '16 streams' or 'udp 200 B, 1 flow'; may be repeated
    #[arg(long, value_name = "TEXT")]
    cases: Vec<String>,
    /// Every size with every number of flows at every rate
    #[arg(long)]
    full: bool,
    /// Rounds, whose medians are shown
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// Seconds of each measurement
    #[arg(long, value_name = "S", default_value_t = 3, value_parser = value_parser!(u64).range(1..=3600))]
    seconds: u64,
    /// TCP congestion control on every leg
    #[arg(long, value_name = "NAME", default_value = "cubic", value_parser = ["cubic", "bbr", "reno"])]
    congestion: String,
    /// Threads of relays and proxies
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = value_parser!(u16).range(1..=64))]
    shards: u16,
    /// rathole, where it is not in the PATH
    #[arg(long, value_name = "PATH")]
    rathole: Option<PathBuf>,
    /// Write the results here
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write them here as a page, too
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Show the bars and their verdicts
    #[arg(long)]
    bars: bool,
    /// The same, and fail if one is missed or none was measured
    #[arg(long)]
    check: bool,
}

#[derive(Debug, Args)]
pub(super) struct TurnEcho {
    /// The TURN server
    #[arg(long, value_name = "ADDR:PORT")]
    server: SocketAddr,
    /// Whose datagrams it shall let through
    #[arg(long, value_name = "IP")]
    visitor: IpAddr,
}

#[derive(Debug, Args)]
pub(super) struct PlainHop {
    /// Where the relay's end is reached by the mediator's
    #[arg(long, value_name = "ADDR:PORT")]
    tunnel: SocketAddr,
    /// Be the relay's end, with visitors here
    #[arg(long, value_name = "ADDR:PORT", required_unless_present = "host", conflicts_with = "host")]
    visitors: Option<SocketAddr>,
    /// Be the mediator's end, and lead there
    #[arg(long, value_name = "ADDR:PORT")]
    host: Option<SocketAddr>,
    /// All streams on one connection of the tunnel, as the other end; no datagrams
    #[arg(long)]
    mux: bool,
}

pub(super) fn compare(args: Compare) -> anyhow::Result<ExitCode> {
    let settings = compare::Settings {
        works: if args.works.is_empty() { Work::ALL.to_vec() } else { args.works },
        systems: args.systems,
        cases: args.cases,
        full: args.full,
        rounds: args.rounds,
        seconds: args.seconds,
        congestion: args.congestion,
        shards: args.shards,
        rathole: args.rathole,
    };
    let files = Files { json: args.json.as_deref(), html: args.html.as_deref() };
    files.check()?;
    let report = compare::run(&settings)?;
    let saved = files.save(&report);
    put(format_args!("{}{}\n", table::results(&report), closing(&report)));
    if args.bars || args.check {
        put(format_args!("\n{}", table::bars(&report.bars)));
    }
    saved?;
    Ok(if args.check { verdict(&report) } else { ExitCode::SUCCESS })
}

pub(super) fn turn_echo(args: &TurnEcho) -> anyhow::Result<ExitCode> {
    turn::run(args.server, args.visitor, |relayed| println!("ready {relayed}")).map(|()| ExitCode::SUCCESS)
}

pub(super) fn plain_hop(args: &PlainHop) -> anyhow::Result<ExitCode> {
    let ready = || println!("ready");
    match (args.visitors, args.host) {
        (Some(visitors), _) => plain::relay(args.tunnel, visitors, args.mux, ready)?,
        (None, Some(host)) => plain::mediator(args.tunnel, host, args.mux, ready)?,
        (None, None) => anyhow::bail!("give --visitors or --host"),
    }
    Ok(ExitCode::SUCCESS)
}

/// What `--check` says: failure where a bar is missed, or where none has a verdict, which would be a check of nothing.
pub(super) fn verdict(report: &Report) -> ExitCode {
    let open = report.bars.iter().filter(|bar| bar.met.is_none()).count();
    if open > 0 || report.bars.is_empty() {
        note(format_args!("{open} of {} bars have no verdict", report.bars.len()));
    }
    if holds(&report.bars) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn holds(bars: &[Bar]) -> bool {
    bars.iter().all(|bar| bar.met != Some(false)) && bars.iter().any(|bar| bar.met == Some(true))
}

/// Where this was measured, and how quiet it was.
pub(super) fn closing(report: &Report) -> String {
    let machine = &report.machine;
    let mut text = format!(
        "{}, {} cores, {} GiB, Linux {}; medians of the rounds.",
        machine.cpu, machine.cores, machine.memory_gib, machine.kernel
    );
    if let Some(background) = report.background {
        text += &format!(
            "\nBetween measurements others used {:.0} % of a core (median), {:.0} % at most.",
            background.median_percent, background.max_percent
        );
        if background.median_percent > NOISY_PERCENT {
            text += " That is noisy: end what else runs, and measure again.";
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn check_fails_by_a_missed_bar_and_by_nothing_to_check() {
        let bar = |met: Option<bool>| Bar {
            name: "W".into(),
            bar: "<= 1".into(),
            limit: 1.0,
            measured: met.map(|_| 1.0),
            met,
            why: None,
        };
        for (mets, holding) in
            [(&[Some(true), None][..], true), (&[Some(true), Some(false)], false), (&[None, None], false), (&[], false)]
        {
            assert_eq!(holds(&mets.iter().map(|&met| bar(met)).collect::<Vec<_>>()), holding, "{mets:?}");
        }
    }
}
