//! `isthmus-agent`: see `--help`.

use std::io::IsTerminal;
use std::process::ExitCode;

use isthmus_agent::config::{Config, Invocation};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let outcome = Config::from_process().map_err(anyhow::Error::new).and_then(|invocation| {
        let config = match invocation {
            Invocation::Run(config) => *config,
            Invocation::Enroll(args) => return isthmus_agent::enroll::run(&args),
        };
        tracing_subscriber::fmt()
            .with_max_level(config.log)
            .with_writer(std::io::stderr)
            .with_ansi(std::io::stderr().is_terminal())
            .init();
        isthmus_agent::run(config)
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("isthmus-agent: {error:#}");
            ExitCode::FAILURE
        }
    }
}
