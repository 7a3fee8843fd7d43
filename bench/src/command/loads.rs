//! `setup` and `pingpong`.

use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, value_parser};
use isthmus_bench::load::{pingpong, preface::Target, setup};
use isthmus_bench::usage::Watched;

use super::{SECONDS_MAX, resolve};

#[derive(Debug, Args)]
pub(super) struct Setup {
    /// The sink, or a door that leads to it, as for tcp; the connections take turns with several
    #[arg(long, value_name = "HOST:PORT[,socks5=IP:PORT|,tls=NAME]", required = true)]
    to: Vec<Target>,
    /// Connections at once, each followed by the next
    #[arg(long, value_name = "N", default_value_t = 1)]
    at_once: usize,
    /// Seconds that are measured
    #[arg(long, value_name = "S", default_value_t = 5, value_parser = value_parser!(u64).range(1..=SECONDS_MAX))]
    seconds: u64,
    /// Report the CPU time of a process, too
    #[arg(long = "cpu", value_name = "NAME=PID")]
    watched: Vec<Watched>,
}

#[derive(Debug, Args)]
pub(super) struct Pingpong {
    /// The sink
    #[arg(long, value_name = "HOST:PORT")]
    to: String,
    /// Bytes of each message
    #[arg(long, value_name = "B", default_value_t = 64)]
    size: usize,
    /// Messages a second in all, due at fixed times
    #[arg(long, value_name = "R", default_value_t = 2000, conflicts_with = "closed")]
    rate: u32,
    /// One message at a time on each connection, back to back
    #[arg(long)]
    closed: bool,
    /// Connections, which take turns
    #[arg(long, value_name = "C", default_value_t = 1)]
    connections: usize,
    /// Seconds that are measured
    #[arg(long, value_name = "S", default_value_t = 5, value_parser = value_parser!(u64).range(1..=SECONDS_MAX))]
    seconds: u64,
    /// Report the CPU time of a process, too
    #[arg(long = "cpu", value_name = "NAME=PID")]
    watched: Vec<Watched>,
}

pub(super) fn setup(args: Setup) -> anyhow::Result<ExitCode> {
    let line = setup::run(&setup::Settings {
        to: args.to,
        at_once: args.at_once,
        measured: Duration::from_secs(args.seconds),
        watched: args.watched,
    })?;
    println!("{line}");
    Ok(ExitCode::SUCCESS)
}

pub(super) fn pingpong(args: Pingpong) -> anyhow::Result<ExitCode> {
    let line = pingpong::run(&pingpong::Settings {
        to: resolve(&args.to)?,
        size: args.size,
        pace: if args.closed { pingpong::Pace::Closed } else { pingpong::Pace::Open(args.rate) },
        connections: args.connections,
        measured: Duration::from_secs(args.seconds),
        watched: args.watched,
    })?;
    println!("{line}");
    Ok(ExitCode::SUCCESS)
}
