//! Relay and mediator on the loopback interface: no root, no namespaces, ports of the system's choice.

use std::process::Command;

use crate::SOON;
use crate::parties::Keys;
use crate::process::Process;
use crate::program::program;

/// A relay and one mediator, `cpe`, that may reach loopback addresses.
pub struct Loopback {
    /// The mediator's process.
    pub agent: Process,
    /// The relay's process.
    pub relay: Process,
    /// The relay's keys.
    pub keys: Keys,
    /// The service port's address.
    pub service: String,
}

impl Loopback {
    /// Starts both and waits for the tunnel, its UDP channels included.
    ///
    /// # Panics
    /// If that does not happen soon.
    #[track_caller]
    pub fn start(relay_args: &[&str], agent_args: &[&str]) -> Self {
        let keys = Keys::new();
        let mut command = Command::new(program("isthmus-relay"));
        command.arg("--state").arg(keys.path()).args(["--listen", "127.0.0.1:0", "--shards", "2"]).args(relay_args);
        let relay = Process::spawn("relay", command);
        let line = relay.wait_for_line("relay runs", SOON);
        let service = word_after(&line, "listen=").to_owned();
        let agent = Self::start_agent(
            &keys,
            &service,
            "cpe",
            &[&["--allow", "127.0.0.0/8", "--allow", "[::1]"], agent_args].concat(),
        );
        Self { agent, relay, keys, service }
    }

    /// Starts a further mediator and waits for its tunnel.
    ///
    /// # Panics
    /// If that does not happen soon.
    #[track_caller]
    pub fn start_agent(keys: &Keys, service: &str, id: &str, args: &[&str]) -> Process {
        let agent = Process::spawn(id, Self::agent_command(keys, service, id, args));
        agent.wait_for_line("tunnel up", SOON);
        if !args.contains(&"--udp-channels") {
            agent.wait_for_line("UDP channels", SOON);
        }
        agent
    }

    /// The command line of a mediator.
    pub fn agent_command(keys: &Keys, service: &str, id: &str, args: &[&str]) -> Command {
        let mut command = Command::new(program("isthmus-agent"));
        command.args(["--relay", service, "--pin", keys.pin(), "--token", &keys.mediator_token(id, &[])]).args(args);
        command
    }
}

/// The word that follows `mark` in a log line.
///
/// # Panics
/// If the line has no such mark.
#[track_caller]
pub fn word_after<'a>(line: &'a str, mark: &str) -> &'a str {
    let (_, rest) = line.split_once(mark).unwrap_or_else(|| panic!("no {mark} in: {line}"));
    rest.split_whitespace().next().unwrap_or_default()
}
