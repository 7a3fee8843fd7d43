//! A minimal TURN client (RFC 8656, UDP, no credentials): it holds a relayed address from behind a NAT, and sends back every
//! datagram that arrives there, in batches where they came in batches.
//!
//! Answering by itself spares coturn the way to a host and back, which Isthmus has: the comparison is in coturn's favour.

mod message;
mod session;

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use isthmus_ring::{Completion, Piece, Ring, Socket};

use crate::peer::datagram;
use session::Session;

/// How long the server may take until visitors may come.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long to wait for sends to give their buffers back.
const STARVED: Duration = Duration::from_millis(1);

/// Holds a relayed address of `server` and echoes what `visitor` sends there, until the process ends. `ready` is told the
/// relayed address.
///
/// # Errors
/// No io_uring, or the server does not answer, or refuses.
pub fn run(server: SocketAddr, visitor: IpAddr, ready: impl FnOnce(SocketAddr)) -> anyhow::Result<()> {
    let any: SocketAddr = match server {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = datagram::socket(any, 1)?;
    socket.connect_udp(server).with_context(|| format!("cannot reach {server}"))?;
    let started = Instant::now();
    let mut client = Client { ring: datagram::ring(1)?, socket, session: Session::new(visitor, started), armed: false };
    let mut ready = Some(ready);
    loop {
        let starved = client.take_all()?;
        match client.session.ready() {
            Some(relayed) => {
                if let Some(ready) = ready.take() {
                    ready(relayed);
                }
            }
            None => ensure!(started.elapsed() < PATIENCE, "no TURN server answers at {server}"),
        }
        client.wait(starved)?;
    }
}

struct Client {
    ring: Ring,
    socket: Socket,
    session: Session,
    armed: bool,
}

impl Client {
    /// Takes what came, and answers. Whether there was no buffer for more.
    fn take_all(&mut self) -> anyhow::Result<bool> {
        let (mut received, mut out, mut starved) = (Vec::new(), Vec::new(), false);
        let now = Instant::now();
        while let Some(completion) = self.ring.next(&mut received) {
            let Completion::Datagrams { result, more, .. } = completion else { continue };
            self.armed &= more;
            match result {
                Ok(datagrams) => self.take(datagrams.payload, datagrams.segment, now, &mut out)?,
                // An empty pool, or a server that is not up yet.
                Err(error) => starved |= error.kind() != ErrorKind::ConnectionRefused,
            }
        }
        self.session.due(now, &mut out);
        for message in out {
            self.send(Piece::copy_from(&message, 0, 0), 0);
        }
        Ok(starved)
    }

    fn wait(&mut self, starved: bool) -> anyhow::Result<()> {
        if !self.armed {
            self.ring.recv_datagrams(&self.socket, 0);
            self.armed = true;
        }
        let wait = self.session.next().saturating_duration_since(Instant::now()).min(PATIENCE);
        self.ring.enter(Some(if starved { STARVED } else { wait }), || false)?;
        Ok(())
    }

    /// ChannelData goes back as it is: channel and length are the same in both directions.
    fn take(&mut self, payload: Piece, segment: u16, now: Instant, out: &mut Vec<Vec<u8>>) -> anyhow::Result<()> {
        let step = if segment > 0 { usize::from(segment) } else { payload.len().max(1) };
        if payload.chunks(step).all(message::is_channel_data) {
            self.send(payload, segment);
            return Ok(());
        }
        for datagram in payload.chunks(step) {
            if message::is_channel_data(datagram) {
                self.send(Piece::copy_from(datagram, 0, 0), 0);
            } else {
                self.session.receive(datagram, now, out)?;
            }
        }
        Ok(())
    }

    fn send(&mut self, piece: Piece, segment: u16) {
        if piece.is_empty() {
            return;
        }
        let mut batch = self.ring.datagram_batch();
        batch.set_segment((segment > 0).then_some(segment));
        batch.push(piece);
        self.ring.send_datagrams(&self.socket, batch, 0);
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::sync::mpsc;
    use std::thread;

    use super::message::*;
    use super::*;

    /// Takes datagrams until one is a message with this method; others are earlier requests, repeated.
    fn expect(server: &UdpSocket, method: u16) -> (Vec<u8>, SocketAddr) {
        let mut buffer = [0; 2048];
        loop {
            let (length, from) = server.recv_from(&mut buffer).unwrap();
            if Reader::new(&buffer[..length]).is_some_and(|message| message.method == method) {
                return (buffer[..length].to_vec(), from);
            }
        }
    }

    #[test]
    fn visitors_datagrams_come_back_by_indication_and_by_channel() {
        let server = UdpSocket::bind("127.0.0.1:0").unwrap();
        server.set_read_timeout(Some(PATIENCE)).unwrap();
        let address = server.local_addr().unwrap();
        let (tell, told) = mpsc::channel();
        thread::spawn(move || run(address, Ipv4Addr::LOCALHOST.into(), |relayed| tell.send(relayed).unwrap()));

        let relayed: SocketAddr = "127.0.0.1:50000".parse().unwrap();
        let visitor: SocketAddr = "127.0.0.1:4711".parse().unwrap();
        let (request, client) = expect(&server, ALLOCATE);
        let transaction = Reader::new(&request).unwrap().transaction;
        let answer = Writer::new(ALLOCATE, SUCCESS, transaction).address(RELAYED_ADDRESS, relayed).finish();
        server.send_to(&answer, client).unwrap();
        let (request, _) = expect(&server, CREATE_PERMISSION);
        let transaction = Reader::new(&request).unwrap().transaction;
        server.send_to(&Writer::new(CREATE_PERMISSION, SUCCESS, transaction).finish(), client).unwrap();
        assert_eq!(told.recv_timeout(PATIENCE).unwrap(), relayed);

        let data = Writer::new(DATA, INDICATION, [1; 12]).address(PEER_ADDRESS, visitor).attribute(PAYLOAD, b"hello");
        server.send_to(&data.finish(), client).unwrap();
        let (echo, _) = expect(&server, SEND);
        let echo = Reader::new(&echo).unwrap();
        assert_eq!((echo.address(PEER_ADDRESS), echo.attribute(PAYLOAD)), (Some(visitor), Some(&b"hello"[..])));
        let (bind, _) = expect(&server, CHANNEL_BIND);
        assert_eq!(Reader::new(&bind).unwrap().address(PEER_ADDRESS), Some(visitor));

        let channel_data = b"\x40\x00\x00\x05again";
        server.send_to(channel_data, client).unwrap();
        let mut buffer = [0; 64];
        let length = server.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], channel_data);
    }
}
