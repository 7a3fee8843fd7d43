//! `isthmus-relay doctor`: whether this machine and these settings let the relay run well, each finding with its cure.
//!
//! It takes the relay's own flags, file and environment, changes nothing, and may run beside a running relay.

use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use isthmus_service::{Findings, Severity};
use serde_json::Value;

use crate::admin::ctl;
use crate::config::Config;
use crate::publish::Proto;
use crate::run::Shared;
use crate::trust::State;

/// A clock that shows less is wrong: 2026-01-01.
const CLOCK_MIN: Duration = Duration::from_secs(1_767_225_600);

/// Share of its connection tracking table that may be in use.
const CONNTRACK_PERCENT_MAX: u64 = 80;

/// Looks, prints, and tells how bad it is.
pub fn run(config: &Config, json: bool) -> ExitCode {
    look(config).print(json)
}

/// Looks at everything.
pub fn look(config: &Config) -> Findings {
    let mut findings = Findings::default();
    machine(&mut findings);
    clock(&mut findings);
    cores(&mut findings, config.shards);
    conntrack(&mut findings, Path::new("/"));
    keys(&mut findings, config);
    let running = running(&config.stats_socket_path());
    if let Some(info) = &running {
        let found = format!("process {} runs with these settings, version {}", info["pid"], info["version"]);
        findings.add("relay", Severity::Note, found, "");
    }
    ports(&mut findings, config, running.is_some());
    findings
}

/// What a relay at this stats socket says of itself; `None` where nobody does.
fn running(path: &Path) -> Option<Value> {
    let answer = ctl::ask(path, "show info json").ok()?;
    let info: Value = serde_json::from_str(ctl::answers(&answer).next()?).ok()?;
    (info["name"] == "isthmus-relay").then_some(info)
}

/// Kernel, io_uring, limits.
fn machine(findings: &mut Findings) {
    for finding in isthmus_ring::probe() {
        let needed = ["kernel", "io_uring"].contains(&finding.what);
        let severity = match (finding.ok, needed) {
            (true, _) => Severity::Ok,
            (false, true) => Severity::Error,
            (false, false) => Severity::Warning,
        };
        findings.add(finding.what, severity, finding.cause, finding.cure);
    }
}

fn clock(findings: &mut Findings) {
    let now = SystemTime::now();
    let shown = humantime::format_rfc3339_seconds(now).to_string();
    if now.duration_since(SystemTime::UNIX_EPOCH).is_ok_and(|since| since >= CLOCK_MIN) {
        findings.ok("clock", shown);
    } else {
        let cure = "set it (timedatectl set-ntp true): tokens that are issued now would be expired or not valid yet";
        findings.add("clock", Severity::Error, format!("it shows {shown}"), cure);
    }
}

fn cores(findings: &mut Findings, shards: usize) {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let found = format!("{shards} shards on {cores} cores");
    if shards > cores {
        findings.add(
            "shards",
            Severity::Warning,
            found,
            "leave --shards out, or give at most as many as there are cores",
        );
    } else {
        findings.ok("shards", found);
    }
    #[cfg(target_arch = "x86_64")]
    {
        let aes = std::is_x86_feature_detected!("aes") && std::is_x86_feature_detected!("pclmulqdq");
        if aes {
            findings.ok("AES", "the processor has instructions for it");
        } else {
            let cure = "let the virtual machine see the host's processor (cpu type 'host')";
            findings.add(
                "AES",
                Severity::Warning,
                "without the processor's help: encryption takes most of the time",
                cure,
            );
        }
    }
}

/// Where the machine tracks connections, each visitor takes an entry.
fn conntrack(findings: &mut Findings, root: &Path) {
    let read = |name: &str| {
        let path = root.join("proc/sys/net/netfilter").join(name);
        std::fs::read_to_string(path).ok().and_then(|text| text.trim().parse::<u64>().ok())
    };
    let (Some(count), Some(max)) = (read("nf_conntrack_count"), read("nf_conntrack_max")) else { return };
    let found = format!("{count} of {max} connections are tracked");
    if count * 100 > max * CONNTRACK_PERCENT_MAX {
        let cure = "sysctl -w net.netfilter.nf_conntrack_max=…, or exempt the relay's ports (nft: notrack)";
        findings.add("nf_conntrack", Severity::Warning, found, cure);
    } else {
        findings.ok("nf_conntrack", found);
    }
}

/// The state directory, and all that the settings say of whom to trust.
fn keys(findings: &mut Findings, config: &Config) {
    let state = match State::read(&config.state) {
        Ok(Some(state)) => state,
        Ok(None) => {
            let found = format!("there are none in {} yet; the first start makes them", config.state.display());
            return findings.add("keys", Severity::Note, found, "");
        }
        Err(error) => {
            let cure = "do what the text says, as the relay's user or root, or restore the directory from its backup: mediators pin \
                        its certificate";
            return findings.add("keys", Severity::Error, format!("{error:#}"), cure);
        }
    };
    findings.ok("keys", format!("certificate {}", state.fingerprint()));
    match Shared::new(config.clone(), &state, None) {
        Ok(_) => findings.ok("trust", "token keys, issuers, authorities and revocations can be read"),
        Err(error) => {
            findings.add("trust", Severity::Error, format!("{error:#}"), "the relay would not start like this")
        }
    }
}

/// Whether what is to be listened on is free.
fn ports(findings: &mut Findings, config: &Config, running: bool) {
    let both = |address| [(Proto::Tcp, address), (Proto::Udp, address)];
    let mut wanted: Vec<(&str, Proto, SocketAddr)> = Vec::new();
    wanted.extend(both(config.listen).map(|(proto, address)| ("--listen", proto, address)));
    wanted.extend(config.publishes().map(|publish| ("--publish", publish.proto, publish.listen)));
    wanted.extend(config.names.iter().map(|&address| ("--names", Proto::Tcp, address)));
    wanted.extend(config.socks.iter().map(|port| ("--socks", Proto::Tcp, port.listen)));
    wanted.extend(config.http.map(|address| ("--http", Proto::Tcp, address)));
    for (flag, proto, address) in wanted {
        let name = format!("{flag} {proto}:{address}");
        let bound = match proto {
            Proto::Tcp => bind_tcp(address),
            Proto::Udp => UdpSocket::bind(address).map(drop),
        };
        match bound {
            Ok(()) if running && address.port() != 0 => {
                let cure = "isthmus-relay ctl reload, or start it again";
                findings.add(&name, Severity::Warning, "nobody listens there, though the relay runs", cure);
            }
            Ok(()) => findings.ok(&name, "free"),
            Err(error) if error.kind() == ErrorKind::AddrInUse && running => {
                findings.ok(&name, "in use; by the running relay, unless somebody else was first")
            }
            Err(error) if error.kind() == ErrorKind::AddrInUse => {
                let cure = format!(
                    "ss -lnp 'sport = :{}' tells who has it; stop that, or give {flag} another port",
                    address.port()
                );
                findings.add(&name, Severity::Error, "in use by another program", cure);
            }
            Err(error) if error.kind() == ErrorKind::PermissionDenied => {
                let cure = "give the unit AmbientCapabilities=CAP_NET_BIND_SERVICE, or take a port above 1023";
                findings.add(&name, Severity::Error, "not permitted", cure);
            }
            Err(error) => findings.add(&name, Severity::Error, error.to_string(), "give an address of this machine"),
        }
    }
}

/// Whether a port could be listened on. It is not: visitors may come any time.
fn bind_tcp(address: SocketAddr) -> std::io::Result<()> {
    use rustix::net::{AddressFamily, SocketType, bind, socket, sockopt};
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = socket(family, SocketType::STREAM, None)?;
    // As a listener has it: connections that have ended are no hindrance.
    sockopt::set_socket_reuseaddr(&socket, true)?;
    Ok(bind(&socket, &address)?)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::config::{Invocation, parse};

    fn look_at(args: &[&str]) -> Findings {
        let line = ["isthmus-relay", "--shards", "1"].iter().chain(args);
        let Ok(Invocation::Run(config)) = parse(line) else { panic!("bad flags: {args:?}") };
        look(&config)
    }

    fn finding(findings: &Findings, name: &str) -> (Severity, String) {
        let json: Value = serde_json::to_value(findings).unwrap();
        let all = json.as_array().unwrap();
        let one = all.iter().find(|one| one["name"].as_str().unwrap().starts_with(name));
        let one = one.unwrap_or_else(|| panic!("no {name} in {json:#}"));
        (serde_json::from_value(one["severity"].clone()).unwrap(), one["cure"].as_str().unwrap().to_owned())
    }

    #[test]
    fn taken_port_is_an_error_with_its_cure_and_a_free_one_is_fine() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("state");
        let listen = taken.local_addr().unwrap().to_string();
        let findings = look_at(&["--state", state.to_str().unwrap(), "--listen", &listen]);
        let (severity, cure) = finding(&findings, "--listen tcp");
        assert!(severity == Severity::Error && cure.contains("ss -lnp"), "{cure}");
        assert_eq!(finding(&findings, "--listen udp").0, Severity::Ok);
        assert_eq!(finding(&findings, "keys").0, Severity::Note);
        assert!(!state.exists(), "it makes nothing");
        std::fs::create_dir(&state).unwrap();
        assert_eq!(finding(&look_at(&["--state", state.to_str().unwrap()]), "keys").0, Severity::Note);
        assert_eq!(std::fs::read_dir(&state).unwrap().count(), 0, "it makes nothing");
        assert_eq!(findings.worst(), Severity::Error);
    }

    #[test]
    fn keys_that_others_can_read_are_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        State::open(&path).unwrap();
        let look = || look_at(&["--state", path.to_str().unwrap(), "--listen", "127.0.0.1:0"]);
        assert_eq!(finding(&look(), "trust").0, Severity::Ok);
        for file in std::fs::read_dir(&path).unwrap() {
            std::fs::set_permissions(file.unwrap().path(), PermissionsExt::from_mode(0o644)).unwrap();
        }
        let (severity, cure) = finding(&look(), "keys");
        assert!(severity == Severity::Error && cure.contains("backup"), "{cure}");
    }

    #[test]
    fn full_table_of_tracked_connections_is_a_warning() {
        let root = tempfile::tempdir().unwrap();
        let table = root.path().join("proc/sys/net/netfilter");
        std::fs::create_dir_all(&table).unwrap();
        for (count, severity) in [(80, Severity::Ok), (81, Severity::Warning)] {
            std::fs::write(table.join("nf_conntrack_count"), format!("{count}\n")).unwrap();
            std::fs::write(table.join("nf_conntrack_max"), "100\n").unwrap();
            let mut findings = Findings::default();
            conntrack(&mut findings, root.path());
            assert_eq!(finding(&findings, "nf_conntrack").0, severity);
        }
    }
}
