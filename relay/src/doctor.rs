//! `isthmus-relay doctor`: whether this machine and these settings let the relay run well, each finding with its cure.
//!
//! It takes the relay's own flags, file and environment, changes nothing, and may run beside a running relay.

mod machine;

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
use crate::trust::{State, first_expiry};

/// A certificate that ends sooner than this should be renewed.
const EXPIRY_SOON: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// Looks, prints, and tells how bad it is.
pub fn run(config: &Config, json: bool) -> ExitCode {
    look(config).print(json)
}

/// Looks at everything.
pub fn look(config: &Config) -> Findings {
    let mut findings = Findings::default();
    machine::look(&mut findings, config.shards, Path::new("/"));
    keys(&mut findings, config);
    certificates(&mut findings, config);
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

/// When what others check against a clock ends.
fn certificates(findings: &mut Findings, config: &Config) {
    let server = (!config.plaintext).then(|| config.state.join("server.pem"));
    let renew = "mediators pin the certificate: make a new --state directory only with new pins for all of them";
    let ca = "put the authority's newer certificate into the file, and reload";
    for (name, path, cure) in
        [("certificate", server.as_deref(), renew), ("--client-ca", config.client_ca.as_deref(), ca)]
    {
        let Some(expires) = path.and_then(first_expiry) else { continue };
        let end = SystemTime::UNIX_EPOCH + Duration::from_secs(expires);
        let shown = format!("ends {}", humantime::format_rfc3339_seconds(end));
        match end.duration_since(SystemTime::now()) {
            Err(_) => findings.add(name, Severity::Error, format!("{shown}, which is past"), cure),
            Ok(left) if left < EXPIRY_SOON => findings.add(name, Severity::Warning, shown, cure),
            Ok(_) => findings.ok(name, shown),
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
}
