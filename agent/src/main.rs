//! `isthmus-agent`: see `--help`.

use std::process::ExitCode;

use isthmus_agent::config::{self, Config, Invocation};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let outcome = Config::from_process().map_err(anyhow::Error::new).and_then(|invocation| {
        let config = match invocation {
            Invocation::Run(config) => *config,
            Invocation::Enroll(args) => return isthmus_agent::enroll::run(&args),
            Invocation::Pages(pages) => return Ok(config::pages(&pages)?),
        };
        isthmus_agent::log::init(config.log);
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
