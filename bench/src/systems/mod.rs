//! What can carry a load from a visitor to a private host: Isthmus, its peers, and the ceilings. One small file each.
//!
//! | system | hops | TCP | UDP | what it shows |
//! |---|---|---|---|---|
//! | `isthmus`, `isthmus-plaintext` | 2 | yes | yes | relay and mediator, published ports |
//! | `isthmus-polling` | 2 | yes | yes | the first with `--busy-poll 50us` at both ends; only by name |
//! | `rathole`, `rathole-noise`, `rathole-tls` | 2 | yes | over TCP | a tunnel of the same shape |
//! | `ssh` | 2 | yes | no | `ssh -R` with aes128-gcm |
//! | `coturn` | 2 | no | yes | a relayed address, held from behind the NAT by a [`turn`] client that answers by itself |
//! | `haproxy`, `haproxy-128k`, `nginx` | 1 | yes | no | one plaintext hop on the relay's machine, through a hole in the NAT |
//! | `plain-hops` | 2 | yes | yes | yardstick: a relay and a mediator that do nothing but receive and send ([`plain`]) |
//! | `plain-mux` | 2 | yes | no | the same with all streams on one connection, as Isthmus has them |
//! | `direct` | 0 | yes | yes | ceiling: the mediator's machine to a public sink, through the masquerade |
//! | `dnat` | 0 | yes | yes | ceiling: the visitor to the host, through a hole in the NAT |

mod coturn;
mod haproxy;
mod isthmus;
mod kernel;
mod nginx;
pub mod plain;
mod rathole;
mod ssh;
pub mod turn;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::usage::Watched;
use crate::world::{Process, Proto, Role, World, find, meter};

/// The sinks' port number: of the private host's, and of the public one.
pub const SINK_PORT: u16 = 7000;

/// One way to carry a load.
pub trait System {
    /// Its name in results.
    fn name(&self) -> &'static str;

    /// What it can carry.
    fn carries(&self) -> Carries;

    /// Most flows of datagrams at once.
    fn flows_max(&self) -> usize {
        usize::MAX
    }

    /// Whether it takes part only where it is asked for.
    fn only_by_name(&self) -> bool {
        false
    }

    /// Starts it, and waits until it carries.
    ///
    /// # Errors
    /// A program is missing or does not start; the words say what would help.
    fn start(&self, site: &Site<'_>) -> anyhow::Result<Running>;
}

/// What a system can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Carries {
    /// Streams.
    pub tcp: bool,
    /// Datagrams.
    pub udp: bool,
    /// Whether the public network sees ciphertext only.
    pub encrypted: bool,
}

/// Where systems are started: a world, with sinks that run already, and the programs.
pub struct Site<'a> {
    /// The machines.
    pub world: &'a World,
    /// The programs.
    pub tools: &'a Tools,
    /// TCP congestion control, for those that choose it themselves.
    pub congestion: &'a str,
    /// Threads of a relay or proxy.
    pub shards: u16,
    /// The sinks' processes: the loads' other ends.
    pub far: [u32; 2],
}

/// Where programs are.
#[derive(Clone, Debug)]
pub struct Tools {
    /// This program.
    pub bench: PathBuf,
    /// rathole, where it is not in the PATH.
    pub rathole: Option<PathBuf>,
}

/// A system that carries.
pub struct Running {
    /// Where visitors connect to.
    pub tcp: Option<SocketAddr>,
    /// Where visitors send to.
    pub udp: Option<SocketAddr>,
    /// The visitors' machine.
    pub from: Role,
    /// Processes whose CPU time counts: those named `relay` at the public side, `agent` at the private one.
    pub watched: Vec<Watched>,
    /// All of its processes; dropping them ends it.
    pub processes: Vec<Process>,
}

/// All systems, in the order in which results show them.
pub fn all() -> Vec<Box<dyn System>> {
    vec![
        Box::new(isthmus::Isthmus::Usual),
        Box::new(isthmus::Isthmus::Plaintext),
        Box::new(isthmus::Isthmus::Polling),
        Box::new(rathole::Rathole(rathole::Transport::Plain)),
        Box::new(rathole::Rathole(rathole::Transport::Noise)),
        Box::new(rathole::Rathole(rathole::Transport::Tls)),
        Box::new(ssh::Ssh),
        Box::new(coturn::Coturn),
        Box::new(haproxy::Haproxy { large_buffers: false }),
        Box::new(haproxy::Haproxy { large_buffers: true }),
        Box::new(nginx::Nginx),
        Box::new(plain::Plain { muxed: false }),
        Box::new(plain::Plain { muxed: true }),
        Box::new(kernel::Direct),
        Box::new(kernel::Dnat),
    ]
}

impl Site<'_> {
    /// The private host's sink.
    pub fn sink(&self) -> SocketAddr {
        (Role::Host.address(), SINK_PORT).into()
    }

    /// A port of the relay's machine.
    fn relay(&self, port: u16) -> SocketAddr {
        (Role::Relay.address(), port).into()
    }
}

impl Tools {
    /// A program of this project, which is looked for beside this one.
    ///
    /// # Errors
    /// It is not there.
    pub fn own(&self, name: &str) -> anyhow::Result<PathBuf> {
        let path = self.bench.parent().unwrap_or(Path::new(".")).join(name);
        let cure = || format!("{} is missing: cargo build --release -p {name}", path.display());
        path.is_file().then_some(()).with_context(cure)?;
        Ok(path)
    }

    /// A program of another.
    ///
    /// # Errors
    /// It is not installed.
    pub fn peer(&self, name: &str) -> anyhow::Result<PathBuf> {
        find(name).with_context(|| format!("{name} is not installed: run scripts/peers"))
    }

    fn rathole(&self) -> anyhow::Result<PathBuf> {
        match &self.rathole {
            Some(path) => {
                let cure = || format!("--rathole {}: there is no such file", path.display());
                path.is_file().then_some(()).with_context(cure)?;
                Ok(path.clone())
            }
            None => find("rathole").context("rathole is not installed: run scripts/peers, or give --rathole PATH"),
        }
    }
}

impl Running {
    /// Without processes yet; visitors are in the public network.
    fn at(tcp: Option<SocketAddr>, udp: Option<SocketAddr>) -> Self {
        Self { tcp, udp, from: Role::Public, watched: Vec::new(), processes: Vec::new() }
    }

    /// With a process, and all that it has started by now; their CPU times are added up under `name`.
    fn with(mut self, name: &str, process: Process) -> Self {
        let watched = |pid| Watched { name: name.to_owned(), pid };
        self.watched.extend(meter::family(process.pid()).into_iter().map(watched));
        self.processes.push(process);
        self
    }

    /// Whether all of it still runs.
    ///
    /// # Errors
    /// The last words of a process that ended.
    pub fn check(&mut self) -> anyhow::Result<()> {
        for process in &mut self.processes {
            anyhow::ensure!(process.runs(), "{} ended: {}", process.name(), process.last_words());
        }
        Ok(())
    }
}

/// Starts a server on the relay's machine and waits until it listens.
fn serve(site: &Site<'_>, program: &Path, args: &[&str], proto: Proto, port: u16) -> anyhow::Result<Process> {
    let mut process = site.world.start(Role::Relay, program, args)?;
    site.world.wait_listening(Role::Relay, proto, port, &mut process)?;
    Ok(process)
}

/// A path as an argument or in a configuration: ours have no strange characters, since `tempfile` names them.
fn text(path: &Path) -> String {
    path.display().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_distinct_and_every_system_carries_something() {
        let systems = all();
        let names: Vec<&str> = systems.iter().map(|system| system.name()).collect();
        for (at, name) in names.iter().enumerate() {
            assert!(!names[..at].contains(name), "{name}");
        }
        assert!(systems.iter().all(|system| system.carries().tcp || system.carries().udp));
    }

    #[test]
    fn what_is_missing_is_said_with_its_cure() {
        let tools = Tools { bench: "/nowhere/isthmus-bench".into(), rathole: Some("/nowhere/rathole".into()) };
        assert!(tools.own("isthmus-relay").unwrap_err().to_string().contains("cargo build --release -p isthmus-relay"));
        assert!(tools.peer("no-such-program-here").unwrap_err().to_string().contains("scripts/peers"));
        assert!(tools.rathole().unwrap_err().to_string().contains("no such file"));
    }
}
