//! The subcommands that need the state directory only: `token` and `fingerprint`. Both make the keys where there
//! are none, so that mediators can be provisioned before the relay's first start.

use std::time::SystemTime;

use anyhow::{Context, bail};

use crate::config::{FingerprintArgs, TokenArgs};
use crate::trust::{State, TerminalScope};

/// Prints a new token.
///
/// # Errors
/// The state directory cannot be used, or the token not be made.
pub fn token(args: &TokenArgs) -> anyhow::Result<()> {
    println!("{}", issue(args)?);
    Ok(())
}

/// Prints the server certificate's fingerprint.
///
/// # Errors
/// The state directory cannot be used.
pub fn fingerprint(args: &FingerprintArgs) -> anyhow::Result<()> {
    println!("{}", State::open(&args.state)?.fingerprint());
    Ok(())
}

fn issue(args: &TokenArgs) -> anyhow::Result<String> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).context("the clock is before 1970")?.as_secs();
    let state = State::open(&args.state)?;
    match (&args.mediator, &args.terminal, &args.mediators) {
        (Some(id), None, None) => state.tokens().issue_mediator(id, args.ttl, now),
        (None, Some(name), Some(mediators)) => {
            let scope = TerminalScope {
                name: name.clone(),
                mediators: mediators.clone(),
                operations: (!args.allow.is_empty()).then(|| args.allow.clone()),
                destinations: (!args.to.is_empty()).then(|| args.to.clone()),
            };
            state.tokens().issue_terminal(&scope, args.ttl, now)
        }
        // The command line's own rules come first; this says the same for other callers.
        _ => bail!("give either --mediator ID, or --terminal NAME with --mediators GLOB"),
    }
}

#[cfg(test)]
mod tests {
    use isthmus_proto::MediatorId;
    use isthmus_proto::hello::{Hello, Role};

    use super::*;
    use crate::config::{Invocation, parse};

    fn args(line: &str) -> TokenArgs {
        match parse(line.split_whitespace()) {
            Ok(Invocation::Token(args)) => args,
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn token_of_the_command_line_is_good_at_the_relay_of_that_state() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("state");
        let line = format!("isthmus-relay token --state {} --terminal desk --mediators cpe-*", state.display());
        let token = issue(&args(&line)).unwrap();
        let mediator: MediatorId = "cpe-1".parse().unwrap();
        let hello = Hello { token, role: Role::Terminal { mediator: Some(mediator) }, udp_channels: 0 };
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
        let grant = State::open(&state).unwrap().tokens().verify(&hello, now).unwrap();
        assert_eq!(grant.name, "desk");
        assert!(grant.expires.abs_diff(now + 30 * 24 * 3600) < 60);
    }
}
