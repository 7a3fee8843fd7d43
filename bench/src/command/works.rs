//! `idle`, `storm`, `mixed`, `share`, `flows`, `doors`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, value_parser};
use isthmus_bench::console::put;
use isthmus_bench::results::Report;
use isthmus_bench::works::{self, doors, flows, idle, mixed, share, storm};
use isthmus_proto::limits::CHANNELS_MAX;

use super::compare::{closing, verdict};
use super::results::Files;

#[derive(Debug, Args)]
pub(super) struct Common {
    /// Threads of the relay [default: 1; for storm one for each processor, as is a relay's own]
    #[arg(long, value_name = "N", value_parser = value_parser!(u16).range(1..=64))]
    shards: Option<u16>,
    /// TCP congestion control on every leg
    #[arg(long, value_name = "NAME", default_value = "cubic", value_parser = ["cubic", "bbr", "reno"])]
    congestion: String,
    /// UDP channels of each tunnel
    #[arg(long, value_name = "K", default_value_t = 2, value_parser = value_parser!(u8).range(0..=i64::from(CHANNELS_MAX)))]
    udp_channels: u8,
    /// Write the results here
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write them here as a page, too
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Fail if a bar is missed or none was measured
    #[arg(long)]
    check: bool,
}

#[derive(Debug, Args)]
pub(super) struct Rounds {
    /// Rounds, whose medians are shown
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// Seconds of each measurement
    #[arg(long, value_name = "S", default_value_t = 3, value_parser = value_parser!(u64).range(1..=3600))]
    seconds: u64,
}

#[derive(Debug, Args)]
pub(super) struct Idle {
    /// Tunnels
    #[arg(long, value_name = "N", default_value_t = 16_000)]
    count: usize,
    /// Quiet seconds before each look
    #[arg(long, value_name = "S", default_value_t = 30, value_parser = value_parser!(u64).range(0..=3600))]
    settle: u64,
    /// Maintain UDP channels as mediators do that have learned all of their gateways' bindings, instead of as new ones
    #[arg(long)]
    learned: bool,
    /// Seconds for which CPU is watched; the default sees each kind of maintain packet once
    #[arg(long, value_name = "S", default_value_t = 60, value_parser = value_parser!(u64).range(1..=3600))]
    watch: u64,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Args)]
pub(super) struct Storm {
    /// Mediators
    #[arg(long, value_name = "N", default_value_t = 15_000)]
    count: usize,
    /// Crashes, whose medians are shown
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = value_parser!(u32).range(1..=1000))]
    rounds: u32,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Args)]
pub(super) struct Mixed {
    #[command(flatten)]
    rounds: Rounds,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Args)]
pub(super) struct Share {
    /// Tunnels in all
    #[arg(long, value_name = "N", default_value_t = 16_000)]
    count: usize,
    /// Of them, those that carry bulk
    #[arg(long, value_name = "A", default_value_t = 100)]
    active: usize,
    /// Quiet seconds once tunnels have come; the default sees each kind of maintain packet once
    #[arg(long, value_name = "S", default_value_t = 30, value_parser = value_parser!(u64).range(0..=3600))]
    settle: u64,
    /// Maintain UDP channels as mediators do that have learned all of their gateways' bindings, instead of as new ones
    #[arg(long)]
    learned: bool,
    /// Rounds, whose medians are shown
    #[arg(long, value_name = "N", default_value_t = 6, value_parser = value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// Seconds of each measurement
    #[arg(long, value_name = "S", default_value_t = 3, value_parser = value_parser!(u64).range(1..=3600))]
    seconds: u64,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Args)]
pub(super) struct Flows {
    /// Flows on one published port
    #[arg(long, value_name = "F", default_value_t = 10_000)]
    flows: usize,
    /// Mediators with a flow each
    #[arg(long, value_name = "N", default_value_t = 1000)]
    mediators: usize,
    /// Datagrams a second at which all are compared [default: 0.7 of the least highest rate, which is searched]
    #[arg(long, value_name = "R", value_parser = value_parser!(u32).range(1..=10_000_000))]
    rate: Option<u32>,
    #[command(flatten)]
    rounds: Rounds,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Args)]
pub(super) struct Doors {
    /// Names that are compared to one
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    names: usize,
    /// Only loads with this in their name, such as '16 streams', 'up' or 'connections'; may be repeated
    #[arg(long, value_name = "TEXT")]
    loads: Vec<String>,
    #[command(flatten)]
    rounds: Rounds,
    #[command(flatten)]
    common: Common,
}

impl Common {
    fn settings(&self) -> works::Common {
        self.settings_with(1)
    }

    /// With so many shards where none are given.
    fn settings_with(&self, shards: u16) -> works::Common {
        works::Common {
            shards: self.shards.unwrap_or(shards),
            congestion: self.congestion.clone(),
            channels: self.udp_channels,
        }
    }

    fn files(&self) -> Files<'_> {
        Files { json: self.json.as_deref(), html: self.html.as_deref() }
    }

    /// Measures, once what it is told to write can be written.
    fn finish(&self, measure: impl FnOnce() -> anyhow::Result<Report>) -> anyhow::Result<ExitCode> {
        self.files().check()?;
        let report = measure()?;
        let saved = self.files().save(&report);
        put(format_args!("{}{}\n", works::table::text(&report), closing(&report)));
        saved?;
        Ok(if self.check { verdict(&report) } else { ExitCode::SUCCESS })
    }
}

pub(super) fn idle(args: &Idle) -> anyhow::Result<ExitCode> {
    let (settle, watch) = (Duration::from_secs(args.settle), Duration::from_secs(args.watch));
    let settings = idle::Settings { count: args.count, learned: args.learned, settle, watch };
    args.common.finish(|| idle::run(&settings, &args.common.settings()))
}

pub(super) fn storm(args: &Storm) -> anyhow::Result<ExitCode> {
    let settings = storm::Settings { count: args.count, rounds: args.rounds };
    // As many as a relay has by itself, at most as may be given.
    let cores = std::thread::available_parallelism().map_or(1, usize::from).min(64);
    args.common.finish(|| storm::run(&settings, &args.common.settings_with(cores as u16)))
}

pub(super) fn mixed(args: &Mixed) -> anyhow::Result<ExitCode> {
    let settings = mixed::Settings { rounds: args.rounds.rounds, seconds: args.rounds.seconds };
    args.common.finish(|| mixed::run(&settings, &args.common.settings()))
}

pub(super) fn share(args: &Share) -> anyhow::Result<ExitCode> {
    let settle = Duration::from_secs(args.settle);
    let Share { count, active, learned, rounds, seconds, .. } = *args;
    let settings = share::Settings { count, active, learned, settle, rounds, seconds };
    args.common.finish(|| share::run(&settings, &args.common.settings()))
}

pub(super) fn flows(args: &Flows) -> anyhow::Result<ExitCode> {
    let (flows, mediators, rate) = (args.flows, args.mediators, args.rate);
    let Rounds { rounds, seconds } = args.rounds;
    let settings = flows::Settings { flows, mediators, rate, rounds, seconds };
    args.common.finish(|| flows::run(&settings, &args.common.settings()))
}

pub(super) fn doors(args: &Doors) -> anyhow::Result<ExitCode> {
    let Rounds { rounds, seconds } = args.rounds;
    let settings = doors::Settings { names: args.names, loads: args.loads.clone(), rounds, seconds };
    args.common.finish(|| doors::run(&settings, &args.common.settings()))
}
