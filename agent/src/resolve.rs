//! The relay's address: resolved off the event loop, another one at each attempt.

use std::fmt;
use std::io;
use std::net::{Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::str::FromStr;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::thread;

/// Most addresses of one name that are tried; more are passed over.
pub const ADDRESSES_MAX: usize = 32;

/// Longest host name in bytes (RFC 1035 section 2.3.4, in its text form).
const HOST_LEN_MAX: usize = 253;

/// Called on the resolver's thread after each answer; must make the event loop call [`Resolver::poll`].
pub type Wake = Box<dyn Fn() + Send>;

/// A host, by name or address, and a port number: `relay.example.net:4470`, `192.0.2.1:4470`, `[2001:db8::1]:4470`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPort {
    host: String,
    port: u16,
}

/// The text is no host and port.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not HOST:PORT; write relay.example.net:4470, 192.0.2.1:4470 or, with brackets, [2001:db8::1]:4470")]
pub struct BadHostPort(String);

/// A name has no address to try.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cannot resolve {target}: {reason}; check the name and this machine's DNS settings")]
pub struct ResolveError {
    target: HostPort,
    reason: String,
}

/// Resolves one target again and again on a thread of its own, since the system's resolver blocks for as long as the
/// name server is silent, and hands out its addresses in turn.
///
/// At most one question is under way. When the name cannot be resolved, the addresses of the last good answer are used
/// on: a relay must stay reachable while the private network's name server is away.
pub struct Resolver {
    target: HostPort,
    questions: Sender<()>,
    answers: Receiver<io::Result<Vec<SocketAddr>>>,
    asked: bool,
    rotation: Rotation,
}

impl HostPort {
    /// The host without brackets: a name, or an address's text.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port number, never 0.
    pub fn port(&self) -> u16 {
        self.port
    }
}

impl Resolver {
    /// Starts the thread; it ends with the resolver, or when a blocked question comes back.
    ///
    /// # Errors
    /// The system's, when it has no thread left.
    pub fn new(target: HostPort, wake: Wake) -> io::Result<Self> {
        Self::with(target, wake, system_lookup)
    }

    /// Asks for the next attempt's address; nothing happens while a question is under way.
    pub fn ask(&mut self) {
        if !self.asked {
            // A thread that is gone shows as a disconnected answer in `poll`.
            let _ = self.questions.send(());
            self.asked = true;
        }
    }

    /// The address to try next, once after each [`Resolver::ask`]; `None` while there is no answer. Its answer may
    /// change after the wake callback ran. Never blocks.
    pub fn poll(&mut self) -> Option<Result<SocketAddr, ResolveError>> {
        if !self.asked {
            return None;
        }
        let answer = match self.answers.try_recv() {
            Ok(answer) => answer,
            Err(TryRecvError::Empty) => return None,
            Err(TryRecvError::Disconnected) => Err(io::Error::other("the resolver's thread is gone")),
        };
        self.asked = false;
        let reason = match answer {
            Ok(addresses) if addresses.is_empty() => "the name has no address".to_owned(),
            Ok(addresses) => {
                self.rotation.replace(addresses);
                String::new()
            }
            Err(error) => error.to_string(),
        };
        Some(self.rotation.next().ok_or_else(|| ResolveError { target: self.target.clone(), reason }))
    }

    /// The relay accepted a session at the address handed out last: the next attempt begins with the name server's
    /// first choice again.
    pub fn succeeded(&mut self) {
        self.rotation.tried.clear();
    }

    /// The relay at this address sends its mediators away: the others come first. Tells whether there are others that had no
    /// turn yet.
    pub fn avoid(&mut self, address: SocketAddr) -> bool {
        self.rotation.avoid(address)
    }

    fn with<L>(target: HostPort, wake: Wake, lookup: L) -> io::Result<Self>
    where
        L: Fn(&HostPort) -> io::Result<Vec<SocketAddr>> + Send + 'static,
    {
        let (questions, asked) = channel();
        let (answer, answers) = channel();
        let name = target.clone();
        thread::Builder::new().name("resolve".to_owned()).spawn(move || {
            for () in asked {
                if answer.send(lookup(&name)).is_err() {
                    return;
                }
                wake();
            }
        })?;
        Ok(Self { target, questions, answers, asked: false, rotation: Rotation::default() })
    }
}

fn system_lookup(target: &HostPort) -> io::Result<Vec<SocketAddr>> {
    Ok((target.host(), target.port()).to_socket_addrs()?.take(ADDRESSES_MAX).collect())
}

/// Addresses of the last good answer, and those of them that had their turn. By address and not by index, since name
/// servers shuffle their answers.
#[derive(Default)]
struct Rotation {
    addresses: Vec<SocketAddr>,
    /// In the order of trying.
    tried: Vec<SocketAddr>,
}

impl Rotation {
    fn replace(&mut self, mut addresses: Vec<SocketAddr>) {
        addresses.truncate(ADDRESSES_MAX);
        self.tried.retain(|address| addresses.contains(address));
        self.addresses = addresses;
    }

    fn avoid(&mut self, address: SocketAddr) -> bool {
        self.tried.retain(|&other| other != address);
        self.tried.push(address);
        self.addresses.iter().any(|address| !self.tried.contains(address))
    }

    /// An untried address, of the other family than the last one if there is any (one family is often broken as a
    /// whole; RFC 8305 section 4), else the one that was tried longest ago.
    fn next(&mut self) -> Option<SocketAddr> {
        let last = self.tried.last().copied();
        let untried = || self.addresses.iter().copied().filter(|address| !self.tried.contains(address));
        let other = untried().find(|address| last.is_some_and(|last| last.is_ipv4() != address.is_ipv4()));
        let next = other.or_else(|| untried().next()).or_else(|| self.tried.first().copied())?;
        self.tried.retain(|&address| address != next);
        self.tried.push(next);
        Some(next)
    }
}

impl FromStr for HostPort {
    type Err = BadHostPort;
    fn from_str(text: &str) -> Result<Self, BadHostPort> {
        let bad = || BadHostPort(text.to_owned());
        let (host, port) = text.rsplit_once(':').ok_or_else(bad)?;
        let port: u16 = port.parse().map_err(|_| bad())?;
        let host = match host.strip_prefix('[').map(|rest| rest.strip_suffix(']')) {
            Some(inner) => inner.filter(|address| address.parse::<Ipv6Addr>().is_ok()),
            // An IPv6 address without brackets is refused: its last group could be the port.
            None => Some(host).filter(|name| is_name_or_ipv4(name)),
        };
        match host {
            Some(host) if port != 0 => Ok(Self { host: host.to_owned(), port }),
            Some(_) | None => Err(bad()),
        }
    }
}

fn is_name_or_ipv4(text: &str) -> bool {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    !text.is_empty() && text.len() <= HOST_LEN_MAX && text.bytes().all(good)
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::time::Duration;

    use super::*;

    /// Longer than any test machine stalls; only a broken resolver waits so long.
    const PATIENCE: Duration = Duration::from_secs(30);

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn addresses(texts: &[&str]) -> Vec<SocketAddr> {
        texts.iter().map(|text| address(text)).collect()
    }

    fn resolver(
        lookup: impl Fn(&HostPort) -> io::Result<Vec<SocketAddr>> + Send + 'static,
    ) -> (Resolver, Receiver<()>) {
        let (woken, wakes) = channel();
        let wake = Box::new(move || woken.send(()).unwrap());
        (Resolver::with("relay.test:4470".parse().unwrap(), wake, lookup).unwrap(), wakes)
    }

    fn next(resolver: &mut Resolver, wakes: &Receiver<()>) -> Result<SocketAddr, ResolveError> {
        resolver.ask();
        wakes.recv_timeout(PATIENCE).unwrap();
        resolver.poll().unwrap()
    }

    /// A lookup that gives these answers, one a question.
    fn script(answers: Vec<io::Result<Vec<SocketAddr>>>) -> impl Fn(&HostPort) -> io::Result<Vec<SocketAddr>> {
        let answers = std::sync::Mutex::new(VecDeque::from(answers));
        move |_: &HostPort| answers.lock().unwrap().pop_front().unwrap()
    }

    #[test]
    fn address_of_a_relay_that_drains_has_its_turn_last() {
        let all = addresses(&["192.0.2.1:1", "192.0.2.2:1", "192.0.2.3:1"]);
        let answers = (0..4).map(|_| Ok(all.clone())).collect();
        let (mut resolver, wakes) = resolver(script(answers));
        assert_eq!(next(&mut resolver, &wakes), Ok(all[0]));
        resolver.succeeded();
        assert!(resolver.avoid(all[0]));
        assert_eq!([next(&mut resolver, &wakes), next(&mut resolver, &wakes)], [Ok(all[1]), Ok(all[2])]);
        assert!(!resolver.avoid(all[2]));
        assert_eq!(next(&mut resolver, &wakes), Ok(all[0]));
    }

    #[test]
    fn host_and_port_are_printed_as_written() {
        for (text, host, port) in [
            ("relay.example.net:4470", "relay.example.net", 4470),
            ("192.0.2.1:1", "192.0.2.1", 1),
            ("[2001:db8::1]:65535", "2001:db8::1", 65535),
            ("localhost:80", "localhost", 80),
        ] {
            let target: HostPort = text.parse().unwrap();
            assert_eq!((target.host(), target.port(), target.to_string().as_str()), (host, port, text));
        }
    }

    #[test]
    fn bad_targets_are_named_with_the_cure() {
        let long = format!("{}:80", "a".repeat(HOST_LEN_MAX + 1));
        for text in [
            "",
            "relay",
            ":80",
            "relay:",
            "relay:0",
            "relay:65536",
            "[relay]:80",
            "[::1:80",
            "2001:db8::1:80",
            "a b:80",
            "a/b:80",
            &long,
        ] {
            let error = text.parse::<HostPort>().unwrap_err();
            assert_eq!(error, BadHostPort(text.to_owned()));
            assert!(error.to_string().contains("HOST:PORT"));
        }
        assert!(long[1..].parse::<HostPort>().is_ok());
    }

    #[test]
    fn a_literal_address_resolves_to_itself() {
        let (woken, wakes) = channel();
        let target = "[::1]:4470".parse().unwrap();
        let mut resolver = Resolver::new(target, Box::new(move || woken.send(()).unwrap())).unwrap();
        assert_eq!(next(&mut resolver, &wakes), Ok(address("[::1]:4470")));
        assert_eq!(resolver.poll(), None);
    }

    #[test]
    fn every_address_has_its_turn_with_alternating_families() {
        let all = ["[2001:db8::1]:1", "[2001:db8::2]:1", "192.0.2.1:1", "192.0.2.2:1"];
        let (mut resolver, wakes) = resolver(move |_| Ok(addresses(&all)));
        let got: Vec<_> = (0..8).map(|_| next(&mut resolver, &wakes).unwrap()).collect();
        let order = addresses(&["[2001:db8::1]:1", "192.0.2.1:1", "[2001:db8::2]:1", "192.0.2.2:1"]);
        assert_eq!(got, [order.clone(), order].concat());
    }

    #[test]
    fn shuffled_answers_repeat_no_address_before_all_had_their_turn() {
        let (one, two) = (addresses(&["192.0.2.1:1", "192.0.2.2:1"]), addresses(&["192.0.2.2:1", "192.0.2.1:1"]));
        let (mut resolver, wakes) = resolver(script(vec![Ok(one.clone()), Ok(two.clone()), Ok(two), Ok(one)]));
        let got: Vec<_> = (0..4).map(|_| next(&mut resolver, &wakes).unwrap().to_string()).collect();
        assert_eq!(got, ["192.0.2.1:1", "192.0.2.2:1", "192.0.2.1:1", "192.0.2.2:1"]);
    }

    #[test]
    fn after_success_the_first_address_comes_again() {
        let (mut resolver, wakes) = resolver(|_| Ok(addresses(&["192.0.2.1:1", "192.0.2.2:1"])));
        assert_eq!(next(&mut resolver, &wakes), Ok(address("192.0.2.1:1")));
        resolver.succeeded();
        assert_eq!(next(&mut resolver, &wakes), Ok(address("192.0.2.1:1")));
        assert_eq!(next(&mut resolver, &wakes), Ok(address("192.0.2.2:1")));
    }

    #[test]
    fn known_addresses_outlive_a_failing_name_server() {
        let failure = || Err(io::Error::other("no name server"));
        let known = Ok(addresses(&["192.0.2.1:1", "192.0.2.2:1"]));
        let (mut resolver, wakes) = resolver(script(vec![failure(), known, failure(), Ok(vec![])]));
        let error = next(&mut resolver, &wakes).unwrap_err().to_string();
        assert!(error.contains("relay.test:4470") && error.contains("no name server"), "{error}");
        assert_eq!(next(&mut resolver, &wakes), Ok(address("192.0.2.1:1")));
        assert_eq!(next(&mut resolver, &wakes), Ok(address("192.0.2.2:1")));
        assert_eq!(next(&mut resolver, &wakes), Ok(address("192.0.2.1:1")));
    }

    #[test]
    fn a_name_that_moved_is_followed() {
        let (mut resolver, wakes) =
            resolver(script(vec![Ok(addresses(&["192.0.2.1:1"])), Ok(addresses(&["198.51.100.1:1"]))]));
        assert_eq!(next(&mut resolver, &wakes), Ok(address("192.0.2.1:1")));
        assert_eq!(next(&mut resolver, &wakes), Ok(address("198.51.100.1:1")));
    }

    #[test]
    fn a_blocked_lookup_blocks_neither_poll_nor_further_questions() {
        let (release, blocked) = channel::<()>();
        let (mut resolver, wakes) = resolver(move |_| {
            blocked.recv().unwrap();
            Ok(addresses(&["192.0.2.1:1"]))
        });
        resolver.ask();
        resolver.ask();
        assert_eq!(resolver.poll(), None);
        release.send(()).unwrap();
        wakes.recv_timeout(PATIENCE).unwrap();
        assert_eq!(resolver.poll(), Some(Ok(address("192.0.2.1:1"))));
        // The second question joined the first: the thread waits for a new one and has no answer in store.
        assert_eq!(resolver.poll(), None);
        drop(release);
    }

    #[test]
    fn addresses_are_bounded() {
        let many = |_: &HostPort| Ok((1..=1000).map(|port| SocketAddr::from(([192, 0, 2, 1], port))).collect());
        let (mut resolver, wakes) = resolver(many);
        let got: Vec<_> = (0..=ADDRESSES_MAX).map(|_| next(&mut resolver, &wakes).unwrap()).collect();
        assert_eq!(got[ADDRESSES_MAX], got[0]);
        assert_eq!(got[ADDRESSES_MAX - 1].port(), ADDRESSES_MAX as u16);
    }
}
