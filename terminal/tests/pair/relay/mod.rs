//! A relay and mediator in one, of the same machines that the real ones use. What it does with a
//! connection is told by the destination's port number.

mod answer;
mod datagram;
mod greet;
mod party;
mod stream;

use std::net::SocketAddr;
use std::sync::Arc;

use isthmus_proto::record::{fingerprint, server_config};
use isthmus_terminal::{Code, Config, Mediator, Trust};
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::{Mutex, mpsc};
use tokio::task::JoinHandle;

use party::Party;

/// Sends back what comes.
pub(crate) const ECHO: u16 = 7;
/// Takes all; after the end, sends the count of bytes.
pub(crate) const COUNT: u16 = 9;
/// Sends "hello" and ends; then takes all, and the count goes to [`Seen::Sunk`].
pub(crate) const HELLO: u16 = 13;
/// Connects and never takes a byte.
pub(crate) const STALL: u16 = 19;
/// Sends "hello" and resets.
pub(crate) const RESET: u16 = 21;
/// Sends [`SOURCE_BYTES`] and ends.
pub(crate) const SOURCE: u16 = 25;
/// Answers each piece of bytes with a page, as a web server does.
pub(crate) const PAGE: u16 = 80;
/// Never answers.
pub(crate) const SILENT: u16 = 30;
/// And the code's number: refuses with that code.
pub(crate) const REFUSE: u16 = 1000;

pub(crate) const SOURCE_BYTES: usize = 3_000_000;

pub(crate) const SESSION: u64 = 77;

#[derive(Clone, Copy, Default)]
pub(crate) struct Options {
    pub(crate) plaintext: bool,
    pub(crate) goodbye: Option<(Code, u32, &'static str)>,
    pub(crate) channels: u8,
    /// Nothing comes back on the channels.
    pub(crate) deaf: bool,
    /// Added to the number that was asked for.
    pub(crate) shift: u16,
}

/// From the test.
pub(crate) enum Command {
    Accept { peer: SocketAddr },
    Goodbye(Code),
    UpdateKeys,
    Cut,
}

/// To the test.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    Opened(u8),
    /// A server, at this address.
    Served(SocketAddr),
    Reset(Code),
    Closed,
    Sunk(u64),
    KeysUpdated,
    /// A datagram, and whether a channel brought it.
    Datagram {
        len: usize,
        channel: bool,
    },
    Gone,
}

pub(crate) struct Relay {
    pub(crate) addr: SocketAddr,
    pub(crate) pin: [u8; 32],
    pub(crate) commands: mpsc::UnboundedSender<Command>,
    pub(crate) seen: mpsc::UnboundedReceiver<Seen>,
    /// Each of the next opens is refused with one of these, the last first.
    pub(crate) refusals: Refusals,
    /// After the next restart, ports get the number behind the asked one.
    pub(crate) move_desired: bool,
    plaintext: bool,
    service: Service,
    running: JoinHandle<()>,
}

pub(crate) type Refusals = Arc<std::sync::Mutex<Vec<Code>>>;

/// What a relay that was stopped needs to come back as itself.
#[derive(Clone)]
struct Service {
    options: Options,
    tls: Arc<rustls::ServerConfig>,
    tell: mpsc::UnboundedSender<Seen>,
    command: Arc<Mutex<mpsc::UnboundedReceiver<Command>>>,
    refusals: Refusals,
}

impl Relay {
    /// Serves one connection after the other.
    pub(crate) async fn start(options: Options) -> Self {
        let sockets = sockets("127.0.0.1:0".parse().unwrap()).await;
        let addr = sockets.0.local_addr().unwrap();
        let certified = rcgen::generate_simple_self_signed(["isthmus-relay".to_owned()]).unwrap();
        let certificate = certified.cert.der().clone();
        let pin = fingerprint(&certificate);
        let key = rustls::pki_types::PrivateKeyDer::try_from(certified.signing_key.serialize_der()).unwrap();
        let tls = server_config(vec![certificate], key).unwrap();
        let (commands, command) = mpsc::unbounded_channel();
        let (tell, seen) = mpsc::unbounded_channel();
        let refusals = Refusals::default();
        let service =
            Service { options, tls, tell, command: Arc::new(Mutex::new(command)), refusals: refusals.clone() };
        let running = tokio::spawn(service.clone().run(sockets));
        Self {
            addr,
            pin,
            commands,
            seen,
            refusals,
            move_desired: false,
            plaintext: options.plaintext,
            service,
            running,
        }
    }

    /// As if killed: its sockets close, without a word.
    pub(crate) async fn stop(&mut self) {
        self.running.abort();
        // Only then are they closed.
        let _ = (&mut self.running).await;
    }

    /// After [`Relay::stop`]: the same relay at the same address, which knows nothing of what was.
    pub(crate) async fn restart(&mut self) {
        let sockets = sockets(self.addr).await;
        self.service.options.shift = u16::from(self.move_desired);
        self.running = tokio::spawn(self.service.clone().run(sockets));
    }

    pub(crate) fn config(&self) -> Config {
        let trust = if self.plaintext { Trust::Plaintext } else { Trust::Pin(self.pin) };
        Config::new(self.addr.to_string(), trust, "token")
    }

    /// A mediator whose lost connection does not come back.
    pub(crate) async fn attach(&self) -> Mediator {
        Mediator::attach(&self.config().without_reconnect(), "cpe-1".parse().unwrap()).await.unwrap()
    }

    /// Waits until `wanted` was seen; what was seen before it is dropped.
    pub(crate) async fn expect(&mut self, wanted: Seen) {
        loop {
            let seen = self.seen.recv().await.expect("the relay is alive");
            if seen == wanted {
                return;
            }
            assert_ne!(seen, Seen::Gone, "the connection ended before {wanted:?}");
        }
    }
}

impl Service {
    async fn run(self, (listener, udp): (TcpListener, UdpSocket)) {
        let udp = Arc::new(udp);
        while let Ok((socket, _)) = listener.accept().await {
            if let Some(party) = Party::greet(socket, udp.clone(), &self).await {
                party.run(&mut *self.command.lock().await).await;
            }
            let _ = self.tell.send(Seen::Gone);
        }
    }
}

/// The same number for TCP and UDP. A number that is wanted again may be held by a closing socket for a moment.
async fn sockets(addr: SocketAddr) -> (TcpListener, UdpSocket) {
    loop {
        if let Ok(tcp) = TcpListener::bind(addr).await
            && let Ok(udp) = UdpSocket::bind(tcp.local_addr().unwrap()).await
        {
            return (tcp, udp);
        }
        tokio::task::yield_now().await;
    }
}
