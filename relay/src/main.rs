//! `isthmus-relay`: see `--help`.

use std::process::ExitCode;

use isthmus_relay::config::{self, Invocation};
use isthmus_relay::{admin, log, token_cmd, top};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let outcome = match config::parse(std::env::args_os()) {
        Ok(Invocation::Run(config)) => {
            log::init(&config.log, config.log_format);
            isthmus_relay::run(*config).map(|()| ExitCode::SUCCESS)
        }
        Ok(Invocation::Token(args)) => token_cmd::token(&args).map(|()| ExitCode::SUCCESS),
        Ok(Invocation::Keys(action)) => token_cmd::keys(&action).map(|()| ExitCode::SUCCESS),
        Ok(Invocation::Enroll(args)) => token_cmd::enroll(&args).map(|()| ExitCode::SUCCESS),
        Ok(Invocation::Fingerprint(args)) => token_cmd::fingerprint(&args).map(|()| ExitCode::SUCCESS),
        Ok(Invocation::Ctl(args)) => admin::ctl::run(&args),
        Ok(Invocation::Pages(pages)) => config::pages(&pages).map(|()| ExitCode::SUCCESS).map_err(Into::into),
        Ok(Invocation::Doctor(config, args)) => Ok(isthmus_relay::doctor::run(&config, args.json)),
        Ok(Invocation::Top(args)) => top::run(&args).map(|()| ExitCode::SUCCESS),
        Err(error) => error.exit(),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("isthmus-relay: {error:#}");
        ExitCode::FAILURE
    })
}
