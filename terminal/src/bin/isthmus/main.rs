//! `isthmus`: a mediator's network from the command line.

mod args;
mod ask;
mod forward;
mod forward_udp;
mod join;
mod listen;
mod nc;
mod output;
mod settings;
mod socks;
mod socks_udp;
mod spec;

use std::io::IsTerminal;
use std::process::ExitCode;

use tracing_subscriber::EnvFilter;

use args::{Args, Command};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let args: Args = isthmus_settings::parse(std::env::args_os(), args::RULES).unwrap_or_else(|error| error.exit());
    match start(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("isthmus: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start(args: Args) -> anyhow::Result<()> {
    if let Command::Pages(pages) = &args.command {
        return Ok(pages.run::<Args>()?);
    }
    let filter = EnvFilter::try_new(&args.log)
        .map_err(|_| anyhow::anyhow!("--log '{}' is no filter; give error, warn, info, debug or trace", args.log))?;
    let ansi = std::io::stderr().is_terminal();
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(ansi).init();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let result = runtime.block_on(run(args));
    // A read of the standard input cannot be interrupted, so its thread is not waited for.
    runtime.shutdown_background();
    result
}

async fn run(args: Args) -> anyhow::Result<()> {
    let config = settings::config(&args)?;
    match args.command {
        // They need no relay, and are done with already.
        Command::Pages(_) => Ok(()),
        Command::Info { mediator, json } => ask::info(&config, mediator, json).await,
        Command::List { json } => ask::list(&config, json).await,
        Command::Forward { mediator, local, udp } => forward::run(config, mediator, local, udp).await,
        Command::Listen { mediator, at, to, obligatory } => listen::run(config, mediator, at, to, obligatory).await,
        Command::Socks { mediator, listen } => socks::run(config, mediator, listen).await,
        Command::Nc { mediator, host, port, udp, redirect, wait } => {
            let to = (host, port).into();
            if udp {
                nc::udp(&config, mediator, to, redirect, wait).await
            } else {
                nc::tcp(&config, mediator, to).await
            }
        }
    }
}
