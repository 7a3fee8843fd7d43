//! Relay, mediator and terminal: the real programs with keys and tokens made by the real command line.

use std::ffi::OsStr;
use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

use crate::SOON;
use crate::process::{Finished, Process};
use crate::program::program;
use crate::world::{Ns, Proto, World};

/// The relay's service port as mediators and terminals dial it.
pub const SERVICE: &str = "198.51.100.1:4470";
const SERVICE_PORT: u16 = 4470;

/// A relay's state directory with its keys; gone when dropped.
pub struct Keys {
    folder: TempDir,
    pin: String,
}

impl Keys {
    /// A new state directory, filled by `isthmus-relay fingerprint`.
    ///
    /// # Panics
    /// If that fails.
    #[allow(clippy::new_without_default, reason = "it starts a process, which nobody expects of default()")]
    pub fn new() -> Self {
        let folder = TempDir::new().expect("a temporary directory");
        let pin = relay_says(folder.path(), &["fingerprint"]);
        Self { folder, pin }
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// The server certificate's fingerprint, for `--pin`.
    pub fn pin(&self) -> &str {
        &self.pin
    }

    /// A token for a mediator.
    ///
    /// # Panics
    /// If none is issued.
    pub fn mediator_token(&self, id: &str, args: &[&str]) -> String {
        relay_says(self.path(), &[&["token", "--mediator", id], args].concat())
    }

    /// A token for a terminal that may use the mediators that match `glob`.
    ///
    /// # Panics
    /// If none is issued.
    pub fn terminal_token(&self, glob: &str, args: &[&str]) -> String {
        relay_says(self.path(), &[&["token", "--terminal", "e2e", "--mediators", glob], args].concat())
    }
}

/// Runs a subcommand of `isthmus-relay` on a state directory and returns its output.
fn relay_says(state: &Path, args: &[&str]) -> String {
    let output = Command::new(program("isthmus-relay"))
        .arg(args[0])
        .arg("--state")
        .arg(state)
        .args(&args[1..])
        .env("NO_COLOR", "1")
        .output()
        .expect("isthmus-relay can be started");
    let finished = Finished {
        status: output.status,
        stdout: output.stdout,
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
    .ok();
    let text = finished.text().trim().to_owned();
    assert!(!text.is_empty(), "isthmus-relay {args:?} printed nothing");
    text
}

/// A running relay on [`Ns::Relay`].
pub struct Relay {
    /// Its process.
    pub process: Process,
}

impl Relay {
    /// Starts a relay that listens on the service port of both address families, and waits until it does.
    ///
    /// # Panics
    /// If it does not.
    #[track_caller]
    pub fn start(world: &World, keys: &Keys, args: &[&str]) -> Self {
        let relay = Self::launch(world, keys, args);
        world.wait_listening(Ns::Relay, Proto::Tcp, SERVICE_PORT);
        world.wait_listening(Ns::Relay, Proto::Udp, SERVICE_PORT);
        relay
    }

    /// Starts it and waits for nothing.
    pub fn launch(world: &World, keys: &Keys, args: &[&str]) -> Self {
        let listen = format!("[::]:{SERVICE_PORT}");
        let mut all: Vec<&OsStr> = ["--state".as_ref(), keys.path().as_os_str(), "--listen".as_ref()].to_vec();
        all.push(listen.as_ref());
        all.extend(["--shards".as_ref(), OsStr::new("2")]);
        all.extend(args.iter().map(OsStr::new));
        Self { process: world.spawn(Ns::Relay, program("isthmus-relay"), &all) }
    }

    /// Sends a command to its stats socket (`isthmus-relay ctl`).
    pub fn ctl(&self, world: &World, keys: &Keys, command: &[&str]) -> Finished {
        let mut all: Vec<&OsStr> = ["ctl".as_ref(), "--state".as_ref(), keys.path().as_os_str()].to_vec();
        all.extend(command.iter().map(OsStr::new));
        world.run(Ns::Relay, program("isthmus-relay"), &all)
    }
}

/// A running mediator.
pub struct Agent {
    /// Its process.
    pub process: Process,
}

impl Agent {
    /// Starts a mediator on [`Ns::Private`] with a fresh token, and waits until it says that the tunnel is up.
    ///
    /// # Panics
    /// If that does not happen soon.
    #[track_caller]
    pub fn start(world: &World, keys: &Keys, id: &str, args: &[&str]) -> Self {
        let token = keys.mediator_token(id, &[]);
        let agent = Self::launch(world, &[&["--pin", keys.pin(), "--token", &token], args].concat());
        agent.process.wait_for_line("tunnel up", SOON);
        agent
    }

    /// Starts it with what `args` say of trust and token, and waits for nothing.
    pub fn launch(world: &World, args: &[&str]) -> Self {
        let all = [&["--relay", SERVICE], args].concat();
        Self { process: world.spawn(Ns::Private, program("isthmus-agent"), &all) }
    }
}

/// The terminal's command line on [`Ns::Public`], with its settings in the environment.
pub struct Terminal {
    pin: String,
    token: String,
}

impl Terminal {
    /// A terminal with a token for every mediator.
    ///
    /// # Panics
    /// If no token is issued.
    pub fn new(keys: &Keys) -> Self {
        Self::with_token(keys.pin(), keys.terminal_token("*", &[]))
    }

    /// A terminal with any pin and token.
    pub fn with_token(pin: impl Into<String>, token: impl Into<String>) -> Self {
        Self { pin: pin.into(), token: token.into() }
    }

    /// Runs `isthmus ARGS…` to its end.
    pub fn run(&self, world: &World, args: &[&str]) -> Finished {
        world.run_with(Ns::Public, program("isthmus"), args, &self.environment())
    }

    /// Starts `isthmus ARGS…`.
    pub fn spawn(&self, world: &World, args: &[&str]) -> Process {
        world.spawn_with(Ns::Public, program("isthmus"), args, &self.environment())
    }

    fn environment(&self) -> [(&str, &str); 3] {
        [("ISTHMUS_RELAY", SERVICE), ("ISTHMUS_PIN", &self.pin), ("ISTHMUS_TOKEN", &self.token)]
    }
}
