//! `isthmus-agent doctor`: whether this machine and these settings let the mediator run well, each finding with its cure.
//!
//! It takes the mediator's own flags, file and environment and changes nothing. It goes as far as the end of the TLS
//! handshake and shows no token, and asks of UDP without any session, so that a running mediator of the same name keeps its
//! tunnel.

mod way;

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpStream, ToSocketAddrs, UdpSocket};
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use isthmus_service::{Findings, Severity};
use rustls::ClientConnection;

use crate::config::{Config, DoctorArgs, Trust};
use crate::session;

/// How long each step of reaching the relay may take.
const STEP: Duration = Duration::from_secs(5);

/// A token that ends sooner than this should be renewed.
const EXPIRY_SOON: Duration = Duration::from_secs(3 * 24 * 60 * 60);

/// The least that IPv6 promises; less, and a UDP channel's datagrams are in pieces.
const MTU_MIN: u32 = 1280;

/// Looks, prints, and tells how bad it is.
pub fn run(config: &Config, args: &DoctorArgs) -> ExitCode {
    look(config, args.nat_silence).print(args.json)
}

/// Looks at everything; `silence`: for how long a UDP binding is to be tried.
pub fn look(config: &Config, silence: Option<Duration>) -> Findings {
    let mut findings = Findings::default();
    machine(&mut findings);
    token(&mut findings, config);
    let addresses = resolve(&mut findings, config);
    for address in addresses {
        relay(&mut findings, config, address, silence);
    }
    findings
}

/// What a mediator needs; a relay's limits do not matter here.
fn machine(findings: &mut Findings) {
    for finding in isthmus_ring::probe() {
        let severity = match (finding.ok, finding.what) {
            (true, _) => Severity::Ok,
            (false, "kernel" | "io_uring") => Severity::Error,
            (false, "UDP_SEGMENT") => Severity::Warning,
            (false, _) => continue,
        };
        findings.add(finding.what, severity, finding.cause, finding.cure);
    }
}

fn token(findings: &mut Findings, config: &Config) {
    let token = match config.token.load() {
        Ok(token) => token,
        Err(error) => return findings.add("token", Severity::Error, error.to_string(), "see the text"),
    };
    let named = format!("it names {}", token.mediator);
    let Some(expires) = token.expires else { return findings.ok("token", named) };
    let shown = humantime::format_rfc3339_seconds(expires);
    let cure = "isthmus-relay token --mediator ID makes another one; with --token-file a renewed one is read by itself";
    match expires.duration_since(SystemTime::now()) {
        Err(_) => findings.add("token", Severity::Error, format!("{named}, and ended {shown} by this clock"), cure),
        Ok(left) if left < EXPIRY_SOON => {
            findings.add("token", Severity::Warning, format!("{named}, and ends {shown}"), cure);
        }
        Ok(_) => findings.ok("token", format!("{named}, until {shown}")),
    }
}

fn resolve(findings: &mut Findings, config: &Config) -> Vec<SocketAddr> {
    let (host, port) = (config.relay.host(), config.relay.port());
    match (host, port).to_socket_addrs().map(Iterator::collect::<Vec<_>>) {
        Ok(addresses) if !addresses.is_empty() => {
            let shown: Vec<String> = addresses.iter().map(ToString::to_string).collect();
            findings.ok("relay's name", shown.join(", "));
            addresses
        }
        Ok(_) | Err(_) => {
            let cure = "check --relay and this machine's DNS settings (/etc/resolv.conf)";
            findings.add("relay's name", Severity::Error, format!("'{host}' has no address"), cure);
            Vec::new()
        }
    }
}

/// The service port at one address, as far as it goes.
fn relay(findings: &mut Findings, config: &Config, address: SocketAddr, silence: Option<Duration>) {
    let name = |what: &str| format!("{what} {address}");
    let stream = match TcpStream::connect_timeout(&address, STEP) {
        Ok(stream) => stream,
        Err(error) => {
            let cure = match error.kind() {
                ErrorKind::ConnectionRefused => "nobody listens there: start the relay, or correct --relay",
                ErrorKind::TimedOut => "let this machine connect to that TCP port: a firewall on the way drops it",
                _ => "give this machine a route to the relay",
            };
            return findings.add(&name("TCP"), Severity::Error, error.to_string(), cure);
        }
    };
    findings.ok(&name("TCP"), "connected");
    match &config.trust {
        Trust::Plaintext => findings.add(
            "TLS",
            Severity::Warning,
            "--plaintext: everybody on the way can read and change it",
            "leave --plaintext off, here and at the relay",
        ),
        _ => tls(findings, config, &name("TLS"), stream),
    }
    interface(findings, address);
    way::look(findings, address, silence);
}

/// The relay has to prove itself.
fn tls(findings: &mut Findings, config: &Config, name: &str, mut stream: TcpStream) {
    let timeouts = stream.set_read_timeout(Some(STEP)).and_then(|()| stream.set_write_timeout(Some(STEP)));
    let begun = session::tls_config(config).and_then(|(tls, server)| Ok(ClientConnection::new(tls, server)?));
    let mut connection = match (begun, timeouts) {
        (Ok(connection), Ok(())) => connection,
        (Err(error), _) => return findings.add(name, Severity::Error, format!("{error:#}"), "correct the file"),
        (_, Err(error)) => return findings.add(name, Severity::Error, error.to_string(), ""),
    };
    while connection.is_handshaking() {
        if let Err(error) = connection.complete_io(&mut stream) {
            let cure = match error.kind() {
                ErrorKind::WouldBlock | ErrorKind::TimedOut => {
                    "something else than a relay listens there, or a middlebox holds it up"
                }
                ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset => {
                    "it closed: is it a relay, and not one with --plaintext?"
                }
                _ => "compare --pin with what 'isthmus-relay fingerprint' prints on the relay",
            };
            return findings.add(name, Severity::Error, error.to_string(), cure);
        }
    }
    findings.ok(name, "the relay has proved itself");
}

/// The interface that leads there; the path's own is [`way`]'s.
fn interface(findings: &mut Findings, address: SocketAddr) {
    match mtu_to(address) {
        Some(mtu) if mtu < MTU_MIN => {
            findings.add("MTU", Severity::Warning, format!("{mtu} bytes"), "raise the MTU of this machine's interface");
        }
        Some(mtu) => findings.ok("MTU", format!("{mtu} bytes on this machine's interface")),
        None => {}
    }
}

/// Of the interface that leads there.
fn mtu_to(address: SocketAddr) -> Option<u32> {
    let any = if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any).ok()?;
    socket.connect(address).ok()?;
    let own = socket.local_addr().ok()?.ip();
    let interfaces = crate::environment::interfaces().ok()?;
    let of_own = |interface: &&isthmus_proto::hello::Interface| interface.addresses.iter().any(|net| net.addr() == own);
    interfaces.iter().find(of_own).map(|interface| interface.mtu)
}
