//! The world: network namespaces with a masquerading, default-drop gateway, made by `scripts/nat`.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::process::{Finished, Process};
use crate::program::{on_path, program};

/// How a world's name begins; the rest is the test's process identifier and a counter.
const PREFIX: &str = "ist";
/// Longest that a command of [`World::run`] may take.
const RUN_SECONDS_MAX: &str = "60";
const POLL: Duration = Duration::from_millis(20);

/// A machine of the world.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ns {
    /// A visitor's or terminal's machine: 198.51.100.2, 2001:db8:1::2.
    Public,
    /// The relay's machine: 198.51.100.1, 2001:db8:1::1.
    Relay,
    /// NAT and firewall: 198.51.100.10 outside, 10.77.0.1 and `fd77::1` inside.
    Gateway,
    /// The mediator's machine: 10.77.0.2, `fd77::2`.
    Private,
    /// Another host of the private network: 10.77.0.3, `fd77::3`.
    Host,
}

impl Ns {
    fn role(self) -> &'static str {
        match self {
            Self::Public => "pub",
            Self::Relay => "relay",
            Self::Gateway => "gw",
            Self::Private => "priv",
            Self::Host => "host2",
        }
    }
}

/// A transport protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proto {
    /// Streams.
    Tcp,
    /// Datagrams.
    Udp,
}

/// What one of the gateway's counters has seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counter {
    /// IP packets.
    pub packets: u64,
    /// Their bytes, IP headers included.
    pub bytes: u64,
}

/// What crossed the gateway to and from the relay's service port; `out` is towards the relay.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// UDP towards the relay.
    pub udp_out: Counter,
    /// UDP from the relay.
    pub udp_in: Counter,
    /// TCP towards the relay.
    pub tcp_out: Counter,
    /// TCP from the relay.
    pub tcp_in: Counter,
}

/// Five machines and the cables between them. Dropping it removes them, with all that still runs there.
pub struct World {
    name: String,
}

impl World {
    /// The standard world; `None`, with the reason on standard error, where namespaces cannot be had: the test then ends
    /// well, since it has nothing to say.
    ///
    /// # Panics
    /// If it cannot be made although it should be possible.
    pub fn new() -> Option<Self> {
        Self::with(&[])
    }

    /// The same with options of `scripts/nat up`: `--udp-timeout 2`, `--tcp-timeout 60`, `--mtu 1280` …
    ///
    /// # Panics
    /// As [`World::new`].
    pub fn with(options: &[&str]) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: needs root, to make network namespaces");
            return None;
        }
        for tool in ["ip", "nft", "conntrack"] {
            if !on_path(tool) {
                eprintln!("skipped: needs {tool}");
                return None;
            }
        }
        remove_worlds_of_dead_tests();
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("{PREFIX}{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        nat("up", &name, options);
        Some(Self { name })
    }

    /// Starts a program on a machine. A name without a slash is a program of the system.
    pub fn spawn<A: AsRef<OsStr>>(&self, ns: Ns, path: impl AsRef<Path>, args: &[A]) -> Process {
        self.spawn_with(ns, path, args, &[])
    }

    /// The same with environment variables.
    pub fn spawn_with<A: AsRef<OsStr>>(
        &self,
        ns: Ns,
        path: impl AsRef<Path>,
        args: &[A],
        environment: &[(&str, &str)],
    ) -> Process {
        let path = path.as_ref();
        let name = format!("{} on {ns:?}", path.file_name().unwrap_or_default().to_string_lossy());
        let mut command = Command::new("ip");
        // `ip netns exec` becomes the program, so that the guard's process identifier is the program's.
        command.args(["netns", "exec", &self.namespace(ns)]).arg(path).args(args).envs(environment.iter().copied());
        Process::spawn(name, command)
    }

    /// Starts `e2e-tool` on a machine: `udp-echo`, `tcp-end serve` …
    pub fn tool(&self, ns: Ns, args: &[&str]) -> Process {
        self.spawn(ns, program("e2e-tool"), args)
    }

    /// Starts a server of `e2e-tool` and waits until it listens.
    ///
    /// # Panics
    /// If it does not listen soon.
    #[track_caller]
    pub fn serve(&self, ns: Ns, args: &[&str]) -> Process {
        let process = self.tool(ns, args);
        process.wait_for_line("ready", crate::SOON);
        process
    }

    /// Runs `e2e-tool` on a machine to its end.
    pub fn run_tool(&self, ns: Ns, args: &[&str]) -> Finished {
        self.run(ns, program("e2e-tool"), args)
    }

    /// Runs a program on a machine to its end, at most a minute.
    pub fn run<A: AsRef<OsStr>>(&self, ns: Ns, path: impl AsRef<Path>, args: &[A]) -> Finished {
        self.run_with(ns, path, args, &[])
    }

    /// The same with environment variables.
    ///
    /// # Panics
    /// If it cannot be started.
    pub fn run_with<A: AsRef<OsStr>>(
        &self,
        ns: Ns,
        path: impl AsRef<Path>,
        args: &[A],
        environment: &[(&str, &str)],
    ) -> Finished {
        let output = Command::new("timeout")
            .args(["-k", "1", RUN_SECONDS_MAX, "ip", "netns", "exec", &self.namespace(ns)])
            .arg(path.as_ref())
            .args(args)
            .envs(environment.iter().copied())
            .env("NO_COLOR", "1")
            .output()
            .expect("timeout(1) can be started");
        Finished {
            status: output.status,
            stdout: output.stdout,
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Waits until a socket listens on (UDP: is bound to) a port number of a machine. It looks into the kernel's table
    /// and sends nothing, so that a published port sees no visitor but the test's own.
    ///
    /// # Panics
    /// If none does soon.
    #[track_caller]
    pub fn wait_listening(&self, ns: Ns, proto: Proto, port: u16) {
        let deadline = Instant::now() + crate::SOON;
        while !self.listens(ns, proto, port) {
            assert!(Instant::now() < deadline, "nothing listens on {proto:?} port {port} of {ns:?}");
            thread::sleep(POLL);
        }
    }

    /// Waits until none does any more.
    ///
    /// # Panics
    /// If one still does after a while.
    #[track_caller]
    pub fn wait_free(&self, ns: Ns, proto: Proto, port: u16) {
        let deadline = Instant::now() + crate::SOON;
        while self.listens(ns, proto, port) {
            assert!(Instant::now() < deadline, "something still listens on {proto:?} port {port} of {ns:?}");
            thread::sleep(POLL);
        }
    }

    /// Whether a socket listens on (UDP: is bound to) a port number of a machine, now.
    pub fn listens(&self, ns: Ns, proto: Proto, port: u16) -> bool {
        let tables = match proto {
            Proto::Tcp => ["/proc/net/tcp", "/proc/net/tcp6"],
            Proto::Udp => ["/proc/net/udp", "/proc/net/udp6"],
        };
        let listening = match proto {
            Proto::Tcp => "0A",
            Proto::Udp => "07",
        };
        let suffix = format!(":{port:04X}");
        self.run(ns, "cat", &tables).ok().text().lines().any(|line| {
            let mut columns = line.split_whitespace();
            columns.nth(1).is_some_and(|local| local.ends_with(&suffix)) && columns.nth(1) == Some(listening)
        })
    }

    /// What crossed the gateway so far.
    ///
    /// # Panics
    /// If the gateway does not tell.
    pub fn counters(&self) -> Counters {
        let mut counters = Counters::default();
        for line in nat("counters", &self.name, &[]).text().lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            let [name, packets, bytes] = words[..] else { panic!("a counter is NAME PACKETS BYTES: {line}") };
            let number = |text: &str| text.parse().expect("a counter is a number");
            let counter = Counter { packets: number(packets), bytes: number(bytes) };
            match name {
                "udp_out" => counters.udp_out = counter,
                "udp_in" => counters.udp_in = counter,
                "tcp_out" => counters.tcp_out = counter,
                "tcp_in" => counters.tcp_in = counter,
                other => panic!("unknown counter {other}"),
            }
        }
        counters
    }

    /// The gateway forgets all bindings.
    pub fn flush_conntrack(&self) {
        nat("flush", &self.name, &[]);
    }

    /// The gateway forgets UDP bindings and takes other public port numbers for the next ones.
    pub fn rebind_udp(&self) {
        nat("rebind-udp", &self.name, &[]);
    }

    /// The gateway's public IPv4 address changes (198.51.100.10 at first), and with it all bindings go.
    pub fn change_public_address(&self, old: &str, new: &str) {
        nat("address", &self.name, &[old, new]);
    }

    /// The gateway drops everything, silently, or works again.
    pub fn drop_everything(&self, on: bool) {
        nat("drop", &self.name, &[if on { "all" } else { "none" }]);
    }

    /// The gateway drops UDP, silently, or works again.
    pub fn drop_udp(&self, on: bool) {
        nat("drop", &self.name, &[if on { "udp" } else { "none" }]);
    }

    /// The gateway's bindings, a line each, as `conntrack -L` prints them.
    pub fn bindings(&self) -> Vec<String> {
        self.run(Ns::Gateway, "conntrack", &["-L"]).ok().text().lines().map(str::to_owned).collect()
    }

    /// The name of a machine's namespace, for `ip netns exec`.
    pub fn namespace(&self, ns: Ns) -> String {
        format!("{}-{}", self.name, ns.role())
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // No panic here: the test may be failing already, and its own words are the ones to show.
        let _ = Command::new(script()).args(["down", &self.name]).status();
    }
}

fn script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/nat")
}

fn nat(verb: &str, name: &str, args: &[&str]) -> Finished {
    let output = Command::new(script()).args([verb, name]).args(args).output().expect("scripts/nat can be started");
    Finished {
        status: output.status,
        stdout: output.stdout,
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
    .ok()
}

/// A test that is killed cannot clean up; the next one does it. A name tells whose it was.
fn remove_worlds_of_dead_tests() {
    let Ok(entries) = fs::read_dir("/run/netns") else { return };
    let suffix = format!("-{}", Ns::Public.role());
    for entry in entries.flatten() {
        let file = entry.file_name();
        let Some(world) = file.to_str().and_then(|name| name.strip_suffix(&suffix)) else { continue };
        let pid = world.strip_prefix(PREFIX).and_then(|rest| rest.split_once('-')).map(|(pid, _)| pid);
        if pid.is_some_and(|pid| pid.parse::<u32>().is_ok() && !Path::new("/proc").join(pid).exists()) {
            let _ = Command::new(script()).args(["down", world]).status();
        }
    }
}
