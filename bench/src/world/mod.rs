//! Machines of our own: a private network behind a NAT gateway, made of network namespaces by `scripts/nat`.
//!
//! ```text
//!   pub 198.51.100.2 ---- relay 198.51.100.1 ---- gw 198.51.100.10 | 10.77.0.1 ---- priv 10.77.0.2, host2 10.77.0.3
//! ```
//!
//! The script is part of the program, so that the binary alone is enough. A world goes when its [`World`] is dropped,
//! and when the process is interrupted or terminated ([`cleanup`]); what a killed process left is removed by the next.

mod cleanup;
pub mod meter;
mod process;

use std::ffi::OsStr;
use std::fmt;
use std::fs;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};

pub use cleanup::wait_if_ending;
pub use process::Process;

/// How long a program may take to listen, or to say that it is ready.
pub const SOON: Duration = Duration::from_secs(20);

const SCRIPT: &str = include_str!("../../../scripts/nat");
const POLL: Duration = Duration::from_millis(20);

/// A machine of the world.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// A visitor's or terminal's.
    Public,
    /// The relay's.
    Relay,
    /// NAT and firewall.
    Gateway,
    /// The mediator's.
    Private,
    /// Another host of the private network.
    Host,
}

impl Role {
    /// Its IPv4 address; the gateway's public one.
    pub const fn address(self) -> IpAddr {
        IpAddr::V4(match self {
            Self::Public => Ipv4Addr::new(198, 51, 100, 2),
            Self::Relay => Ipv4Addr::new(198, 51, 100, 1),
            Self::Gateway => Ipv4Addr::new(198, 51, 100, 10),
            Self::Private => Ipv4Addr::new(10, 77, 0, 2),
            Self::Host => Ipv4Addr::new(10, 77, 0, 3),
        })
    }
}

/// The name that the script gives it.
impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Public => "pub",
            Self::Relay => "relay",
            Self::Gateway => "gw",
            Self::Private => "priv",
            Self::Host => "host2",
        })
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

/// Five machines, the cables between them, and a folder for their files. Dropping it removes them, with all that still
/// runs there.
pub struct World {
    name: String,
    folder: PathBuf,
}

impl World {
    /// Makes one, with a TCP congestion control on every route: `cubic`, `bbr`, `reno`.
    ///
    /// # Errors
    /// Not root, a tool is missing, or the kernel refuses; the words of the script say which.
    pub fn up(congestion: &str) -> anyhow::Result<Self> {
        ensure!(rustix::process::geteuid().is_root(), "network namespaces need root: start it with sudo");
        remove_dead_worlds();
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("{PREFIX}{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        // Its keys and tokens are nobody else's, whatever the system's mask says.
        let owner = fs::Permissions::from_mode(0o700);
        let folder = tempfile::Builder::new().prefix(&format!("{FOLDER}{name}-")).permissions(owner).tempdir()?.keep();
        cleanup::guard(&name, &folder, || nat(&["up", &name, "--congestion", congestion]))?;
        Ok(Self { name, folder })
    }

    /// Its folder, which only its owner can read. It goes with the world.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Writes a file of the folder, and tells its path.
    ///
    /// # Errors
    /// The system's.
    pub fn write(&self, name: &str, text: impl AsRef<[u8]>) -> anyhow::Result<PathBuf> {
        let path = self.folder.join(name);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }

    /// A command that will run on a machine. `ip netns exec` becomes the program, so that the identifier of the started
    /// process is the program's own.
    pub fn command(&self, role: Role, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.namespace(role)]).arg(program).env("NO_COLOR", "1");
        command
    }

    /// Starts a program on a machine; it is killed when the [`Process`] is dropped.
    ///
    /// # Errors
    /// `ip` cannot be started. A program that is missing shows when it is waited for.
    pub fn start<A: AsRef<OsStr>>(
        &self,
        role: Role,
        program: impl AsRef<Path>,
        args: impl IntoIterator<Item = A>,
    ) -> anyhow::Result<Process> {
        let program = program.as_ref();
        let name = format!("{} in {role}", program.file_name().unwrap_or_default().to_string_lossy());
        let mut command = self.command(role, program);
        command.args(args);
        Process::spawn(name, command)
    }

    /// Runs a program on a machine to its end, and returns its standard output.
    ///
    /// # Errors
    /// It failed, with what it wrote to standard error, or took longer than `limit`.
    pub fn run<A: AsRef<OsStr>>(
        &self,
        role: Role,
        program: impl AsRef<Path>,
        args: impl IntoIterator<Item = A>,
        limit: Duration,
    ) -> anyhow::Result<String> {
        let program = program.as_ref();
        let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let mut command = Command::new("timeout");
        command.args(["-k", "1", &limit.as_secs().max(1).to_string(), "ip", "netns", "exec", &self.namespace(role)]);
        let output = command.arg(program).args(args).env("NO_COLOR", "1").stdin(Stdio::null()).output();
        let output = output.context("cannot start timeout(1); install coreutils")?;
        ensure!(output.status.code() != Some(124), "{name} took longer than {limit:?}");
        let words = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{name}: {}", last_lines(words.lines(), &output.status.to_string()));
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Loads rules of nftables on a machine.
    ///
    /// # Errors
    /// The rules are refused.
    pub fn rules(&self, role: Role, rules: &str) -> anyhow::Result<()> {
        let mut command = self.command(role, "nft");
        command.args(["-f", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().context("cannot start ip")?;
        if let Some(mut input) = child.stdin.take() {
            // Where nft has ended already, its words are the better explanation.
            let _ = input.write_all(rules.as_bytes());
        }
        let output = child.wait_with_output()?;
        ensure!(output.status.success(), "nft: {}", String::from_utf8_lossy(&output.stderr).trim());
        Ok(())
    }

    /// Waits until a socket listens on (UDP: is bound to) a port number of the machine where `process` shall make it. It
    /// looks into the kernel's table and sends nothing.
    ///
    /// # Errors
    /// None does within [`SOON`], or the process ends; with its last words.
    pub fn wait_listening(&self, role: Role, proto: Proto, port: u16, process: &mut Process) -> anyhow::Result<()> {
        let deadline = Instant::now() + SOON;
        loop {
            if listens(process.pid(), proto, port) {
                return Ok(());
            }
            if !process.runs() {
                bail!("{} ended: {}", process.name(), process.last_words());
            }
            if Instant::now() >= deadline {
                bail!("nothing listens on {proto:?} port {port} of {role}; {}", process.last_words());
            }
            thread::sleep(POLL);
        }
    }

    /// The name of a machine's namespace, for `ip netns exec`.
    pub fn namespace(&self, role: Role) -> String {
        format!("{}-{role}", self.name)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        cleanup::release(&self.name);
    }
}

/// How a world's name begins; the rest is the process's identifier and a counter.
const PREFIX: &str = "isb";

/// How its folder's name begins, before the world's.
const FOLDER: &str = "isthmus-bench-";

fn nat(args: &[&str]) -> anyhow::Result<()> {
    let output = Command::new("bash").args(["-c", SCRIPT, "nat"]).args(args).stdin(Stdio::null()).output();
    let output = output.context("cannot start bash")?;
    let words = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{}", last_lines(words.lines(), "the namespaces cannot be made"));
    Ok(())
}

/// Looks with the eyes of a process, whose network is its machine's.
fn listens(pid: u32, proto: Proto, port: u16) -> bool {
    let (tables, state) = match proto {
        Proto::Tcp => (["tcp", "tcp6"], "0A"),
        Proto::Udp => (["udp", "udp6"], "07"),
    };
    let suffix = format!(":{port:04X}");
    tables.iter().filter_map(|table| fs::read_to_string(format!("/proc/{pid}/net/{table}")).ok()).any(|text| {
        text.lines().any(|line| {
            let mut columns = line.split_whitespace();
            columns.nth(1).is_some_and(|local| local.ends_with(&suffix)) && columns.nth(1) == Some(state)
        })
    })
}

/// A process that was killed cannot clean up.
fn remove_dead_worlds() {
    let names = |folder: &Path| {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().into_string().ok()).collect::<Vec<_>>()
    };
    // What cannot be removed is in nobody's way.
    let suffix = format!("-{}", Role::Public);
    for namespace in names(Path::new("/run/netns")) {
        if let Some(world) = namespace.strip_suffix(&suffix).filter(|world| is_dead(world)) {
            let _ = nat(&["down", world]);
        }
    }
    let folders = std::env::temp_dir();
    for folder in names(&folders) {
        if folder.strip_prefix(FOLDER).is_some_and(is_dead) {
            let _ = fs::remove_dir_all(folders.join(folder));
        }
    }
}

/// Whether the process is gone whose world's name this begins with.
fn is_dead(name: &str) -> bool {
    let pid = name.strip_prefix(PREFIX).and_then(|rest| rest.split_once('-')).map(|(pid, _)| pid);
    pid.is_some_and(|pid| pid.parse::<u32>().is_ok() && !Path::new("/proc").join(pid).exists())
}

/// The end of what a program said, on one line; `otherwise` where it said nothing.
fn last_lines<'a>(lines: impl DoubleEndedIterator<Item = &'a str>, otherwise: &str) -> String {
    let mut last: Vec<&str> = lines.rev().map(str::trim).filter(|line| !line.is_empty()).take(3).collect();
    last.reverse();
    if last.is_empty() { otherwise.to_owned() } else { last.join(" / ") }
}

/// Whether a program is installed: where it would be started from.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // Servers are in sbin, and what cargo installs is in its own folder, which are not in everybody's PATH.
    let cargo = std::env::var_os("HOME").map(|home| Path::new(&home).join(".cargo/bin"));
    let others = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from).into_iter().chain(cargo);
    let folders = std::env::split_paths(&path).chain(others);
    folders.map(|folder| folder.join(program)).find(|file| file.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_lines_are_few_and_in_order() {
        assert_eq!(last_lines("a\n\nb\nc\nd\n".lines(), "none"), "b / c / d");
        assert_eq!(last_lines(" \n".lines(), "none"), "none");
    }

    #[test]
    fn listening_sockets_of_both_protocols_are_seen() {
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let udp = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let me = std::process::id();
        assert!(listens(me, Proto::Tcp, tcp.local_addr().unwrap().port()));
        assert!(listens(me, Proto::Udp, udp.local_addr().unwrap().port()));
        let port = udp.local_addr().unwrap().port();
        drop(udp);
        assert!(!listens(me, Proto::Udp, port));
    }

    #[test]
    fn worlds_are_dead_whose_process_is() {
        let me = std::process::id();
        for (name, dead) in [
            (format!("isb{me}-0"), false),
            ("isb4294967295-0-x".into(), true),
            ("isb1".into(), false),
            ("x".into(), false),
        ] {
            assert_eq!(is_dead(&name), dead, "{name}");
        }
    }

    #[test]
    fn programs_are_found_or_not() {
        assert!(find("sh").is_some());
        assert!(find("no-such-program-here").is_none());
    }

    #[test]
    fn world_has_its_machines_and_goes_with_its_processes() {
        let tools = ["ip", "nft", "conntrack"];
        if !rustix::process::geteuid().is_root() || tools.iter().any(|tool| find(tool).is_none()) {
            eprintln!("skipped: needs root, and ip, nft and conntrack");
            return;
        }
        let left = std::env::temp_dir().join(format!("{FOLDER}isb4294967295-0-test"));
        fs::create_dir_all(&left).unwrap();
        let world = World::up("cubic").unwrap();
        assert!(!left.exists(), "what a killed process left goes");
        let roles = [Role::Public, Role::Relay, Role::Gateway, Role::Private, Role::Host];
        let namespaces = roles.map(|role| Path::new("/run/netns").join(world.namespace(role)));
        assert!(namespaces.iter().all(|file| file.exists()));
        let folder = world.folder().to_owned();
        assert_eq!(fs::metadata(&folder).unwrap().permissions().mode() & 0o777, 0o700);
        world.write("file", "text").unwrap();
        let addresses = world.run(Role::Host, "ip", ["-4", "addr", "show", "eth0"], SOON).unwrap();
        assert!(addresses.contains(&Role::Host.address().to_string()), "{addresses}");
        assert!(world.run(Role::Relay, "false", [""; 0], SOON).is_err());
        world.rules(Role::Gateway, "add table ip mine").unwrap();
        assert!(world.rules(Role::Gateway, "no rule").is_err());
        let process = world.start(Role::Private, "sleep", ["600"]).unwrap();
        let pid = process.pid();
        assert!(Path::new("/proc").join(pid.to_string()).exists());
        drop(process);
        assert!(!Path::new("/proc").join(pid.to_string()).exists());
        drop(world);
        assert!(!folder.exists() && namespaces.iter().all(|file| !file.exists()));
    }
}
