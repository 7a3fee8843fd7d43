//! `isthmus-bench`: see `--help`.

mod command;

use std::process::ExitCode;

use clap::Parser;
use isthmus_bench::console;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_env("ISTHMUS_LOG"))
        .with_writer(std::io::stderr)
        .init();
    match command::Cli::parse().run() {
        Ok(code) => code,
        Err(error) => {
            console::note(format_args!("isthmus-bench: {error:#}"));
            ExitCode::FAILURE
        }
    }
}
