//! `isthmus-agent`: see `--help`.

use std::process::ExitCode;

use isthmus_agent::config::{self, Config, Invocation};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let outcome = Config::from_process().map_err(anyhow::Error::new).and_then(|invocation| {
        let config = match invocation {
            Invocation::Run(config) => *config,
            Invocation::Enroll(args) => return isthmus_agent::enroll::run(&args).map(|()| ExitCode::SUCCESS),
            Invocation::Doctor(config, args) => return Ok(isthmus_agent::doctor::run(&config, &args)),
            Invocation::Pages(pages) => {
                config::pages(&pages)?;
                return Ok(ExitCode::SUCCESS);
            }
        };
        isthmus_agent::log::init(config.log, config.log_format);
        isthmus_agent::run(config).map(|()| ExitCode::SUCCESS)
    });
    match outcome {
        Ok(code) => code,
        Err(error) => {
            eprintln!("isthmus-agent: {error:#}");
            ExitCode::FAILURE
        }
    }
}
