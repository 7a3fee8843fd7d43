//! The way of UDP to the relay: whether datagrams arrive and answers come back, what the NAT does with them (RFC 5780's
//! questions), how large they may be, and how long a binding lives. All is asked of the relay without any session
//! ([`isthmus_proto::stun`]), so that a running mediator notices nothing.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use isthmus_proto::stun::{STUN_MAX, StunAnswer, StunQuestion};
use isthmus_service::{Findings, Severity};
use rustix::net::sockopt::{self, Ipv4PathMtuDiscovery, Ipv6PathMtuDiscovery};

/// How long one answer is waited for, and how often it is asked.
const WAIT: Duration = Duration::from_millis(600);
const TRIES: u32 = 3;

/// Packets of these sizes are tried, the largest first: Ethernet, PPPoE, tunnels in it, and the least that IPv6 promises.
const PACKETS: [usize; 9] = [1500, 1492, 1480, 1460, 1440, 1420, 1400, 1340, 1280];

/// A UDP datagram's headers.
const HEADERS_V4: usize = 28;
const HEADERS_V6: usize = 48;

/// Looks at the way to one address of the relay; a binding's life only if it is to be waited for.
pub(super) fn look(findings: &mut Findings, relay: SocketAddr, silence: Option<Duration>) {
    let name = |what: &str| format!("{what} {relay}");
    let asker = match Asker::new(relay) {
        Ok(asker) => asker,
        Err(error) => {
            let cure = "give this machine a route to the relay";
            return findings.add(&name("UDP"), Severity::Warning, error.to_string(), cure);
        }
    };
    let first = match asker.ask(relay, StunQuestion::default(), 0) {
        Ok(answer) => answer,
        Err(why) => {
            let cure =
                "let this machine send UDP to that port and take the answers; without it datagrams travel over TCP";
            return findings.add(&name("UDP"), Severity::Warning, why, cure);
        }
    };
    findings.ok(&name("UDP"), format!("datagrams arrive and are answered; the relay sees {}", first.mapped));
    nat(findings, &name("NAT"), &asker, &first);
    path_mtu(findings, &name("path MTU"), relay);
    if let Some(silence) = silence {
        lifetime(findings, &name("UDP binding"), relay, silence);
    }
}

/// A socket on a port of its own.
struct Asker {
    socket: UdpSocket,
    relay: SocketAddr,
    /// This machine's address on the way to the relay.
    own: IpAddr,
}

impl Asker {
    fn new(relay: SocketAddr) -> std::io::Result<Self> {
        let any = if relay.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let routed = UdpSocket::bind(any)?;
        routed.connect(relay)?;
        let own = routed.local_addr()?.ip();
        // Not connected: answers may come from another port.
        Ok(Self { socket: UdpSocket::bind(SocketAddr::new(own, 0))?, relay, own })
    }

    /// Asks up to [`TRIES`] times; the error is for a person.
    fn ask(&self, to: SocketAddr, question: StunQuestion, length: usize) -> Result<StunAnswer, String> {
        let question = StunQuestion { transaction: random()?, ..question };
        let message = question.encode(length);
        for _ in 0..TRIES {
            self.socket.send_to(&message, to).map_err(|error| error.to_string())?;
            if let Some(answer) = self.hear(&question.transaction, WAIT)? {
                return Ok(answer);
            }
        }
        Err(format!("no answer within {:.1} s", (WAIT * TRIES).as_secs_f32()))
    }

    /// The answer to that question, if it comes in time.
    fn hear(&self, transaction: &[u8; 12], wait: Duration) -> Result<Option<StunAnswer>, String> {
        let end = Instant::now() + wait;
        let mut buffer = [0; 512];
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            self.socket.set_read_timeout(Some(left)).map_err(|error| error.to_string())?;
            match self.socket.recv_from(&mut buffer) {
                Ok((length, from)) if from.ip() == self.relay.ip() => {
                    let answer = StunAnswer::parse(&buffer[..length]);
                    if let Some(answer) = answer.filter(|answer| answer.transaction == *transaction) {
                        return Ok(Some(answer));
                    }
                }
                Ok(_) => {}
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => return Ok(None),
                Err(error) => return Err(error.to_string()),
            }
        }
    }
}

fn random() -> Result<[u8; 12], String> {
    let mut bytes = [0; 12];
    getrandom::fill(&mut bytes).map_err(|error| format!("no random bytes: {error}"))?;
    Ok(bytes)
}

/// What stands between, and what it does. Each kind serves; they explain what is seen elsewhere.
fn nat(findings: &mut Findings, name: &str, asker: &Asker, first: &StunAnswer) {
    let Ok(local) = asker.socket.local_addr() else { return };
    if first.mapped == SocketAddr::new(asker.own, local.port()) {
        return findings.ok(name, "none: the relay sees this machine's own address");
    }
    // First who may send in, on a fresh port that has sent to nobody else yet.
    let change = StunQuestion { change_port: true, ..StunQuestion::default() };
    let (unknown, plain) = ("may or may not let other ports of the relay answer", StunQuestion::default());
    let filtering = match (first.other_port, Asker::new(asker.relay)) {
        (Some(_), Ok(fresh)) if fresh.ask(asker.relay, change, 0).is_ok() => {
            "lets any port of the relay answer (filtering by address at most)"
        }
        // The same socket hears the port that it asked: so it was the other one that was not let in.
        (Some(_), Ok(fresh)) if fresh.ask(asker.relay, plain, 0).is_ok() => {
            "lets nobody answer but the very port that was asked (address and port-dependent filtering)"
        }
        _ => unknown,
    };
    let other = first.other_port.map(|port| SocketAddr::new(asker.relay.ip(), port));
    let mapping = match other.map(|other| asker.ask(other, StunQuestion::default(), 0)) {
        Some(Ok(second)) if second.mapped == first.mapped => {
            "shows one port to all of the relay's (mapping independent of the port)".to_owned()
        }
        Some(Ok(second)) => {
            let ports = (first.mapped.port(), second.mapped.port());
            format!("shows another port to each, {} and {} (address and port-dependent mapping)", ports.0, ports.1)
        }
        _ => "may or may not show one port to all: the relay's other port is not reachable".to_owned(),
    };
    findings.add(name, Severity::Note, format!("it {mapping}; it {filtering}. Isthmus works with each kind"), "");
}

/// The largest packet that arrives whole, asked with fragmentation forbidden.
fn path_mtu(findings: &mut Findings, name: &str, relay: SocketAddr) {
    let headers = if relay.is_ipv4() { HEADERS_V4 } else { HEADERS_V6 };
    let of_interface = super::mtu_to(relay).map_or(PACKETS[0], |mtu| mtu as usize);
    let jumbo = of_interface.min(STUN_MAX + headers);
    let sizes = [jumbo].into_iter().filter(|&size| size > PACKETS[0]).chain(PACKETS);
    for size in sizes.filter(|&size| size <= of_interface) {
        // A fresh socket: an ICMP error about a larger packet is not this one's.
        let Ok(asker) = Asker::new(relay) else { return };
        if dont_fragment(&asker.socket, relay).is_err() {
            return findings.add(name, Severity::Note, "this system cannot tell", "");
        }
        // Four bytes at a time; the size meant is not exceeded.
        if asker.ask(relay, StunQuestion::default(), (size - headers) & !3).is_ok() {
            return findings.ok(name, format!("packets of {size} bytes arrive whole"));
        }
    }
    let cure = "raise the MTU on the way: large datagrams of UDP channels are lost or cut to pieces";
    findings.add(name, Severity::Warning, "packets of 1280 bytes do not arrive whole", cure);
}

/// Every packet is sent whole, whatever the system believes of the path.
fn dont_fragment(socket: &UdpSocket, relay: SocketAddr) -> std::io::Result<()> {
    match relay.is_ipv4() {
        true => sockopt::set_ip_mtu_discover(socket, Ipv4PathMtuDiscovery::PROBE)?,
        false => sockopt::set_ipv6_mtu_discover(socket, Ipv6PathMtuDiscovery::PROBE)?,
    }
    Ok(())
}

/// Whether a binding lives through a silence: after it, the relay is asked from elsewhere to send to it.
fn lifetime(findings: &mut Findings, name: &str, relay: SocketAddr, silence: Duration) {
    let shown = humantime::format_duration(silence);
    let begin = || -> Result<(Asker, SocketAddr, Asker), String> {
        let rested = Asker::new(relay).map_err(|error| error.to_string())?;
        let mapped = rested.ask(relay, StunQuestion::default(), 0)?.mapped;
        Ok((rested, mapped, Asker::new(relay).map_err(|error| error.to_string())?))
    };
    let (rested, mapped, asker) = match begin() {
        Ok(all) => all,
        Err(why) => return findings.add(name, Severity::Note, why, ""),
    };
    eprintln!("doctor: {shown} of silence, to see whether the NAT keeps a UDP binding");
    std::thread::sleep(silence);
    let lives = (0..TRIES).any(|_| {
        let Ok(transaction) = random() else { return false };
        let question = StunQuestion { transaction, response_port: Some(mapped.port()), change_port: false };
        asker.socket.send_to(&question.encode(0), relay).is_ok()
            && matches!(rested.hear(&transaction, WAIT), Ok(Some(_)))
    });
    if lives {
        findings.ok(name, format!("it lives through {shown} of silence"));
    } else {
        let found = format!("it does not live through {shown} of silence");
        findings.add(
            name,
            Severity::Note,
            found,
            "none is needed: the mediator learns it and keeps its channels alive",
        );
    }
}
