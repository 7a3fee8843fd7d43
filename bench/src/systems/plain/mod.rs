//! Two plain hops: the way of Isthmus' data (visitor, relay, gateway, mediator, host) as a program takes it that does nothing
//! else. No encryption, no multiplexing, no ring, no policy: threads that block in one receive, and send what it gave. What
//! Isthmus needs beyond this is its own; where it needs less, it has saved more than its encryption and policies cost.
//!
//! At 20,000 datagrams a second, one thread for all sockets of an end, which waits for any of them first, is slower still than
//! a thread for each direction (p50 of three rounds: 502 by 281 us).
//!
//! Each connection and each flow of datagrams takes one of the connections and bindings that the mediator's end made in
//! advance, so nothing needs to be told between the two ends.

mod datagrams;
mod mux;
mod streams;

use std::net::SocketAddr;
use std::thread;

use anyhow::Context;

use crate::systems::{Carries, Running, Site, System, serve};
use crate::world::{Proto, Role, SOON};

/// The system.
pub(super) struct Plain {
    /// All streams on one connection of the tunnel ([`mux`]), and no datagrams.
    pub(super) muxed: bool,
}

/// Port numbers of visitors and tunnel, without and with multiplexing: both may run at a time.
const PORTS: [(u16, u16); 2] = [(7004, 7005), (7034, 7035)];

/// Stack of a thread: there may be hundreds.
const STACK: usize = 64 * 1024;

impl System for Plain {
    fn name(&self) -> &'static str {
        if self.muxed { "plain-mux" } else { "plain-hops" }
    }

    fn carries(&self) -> Carries {
        Carries { tcp: true, udp: !self.muxed, encrypted: false }
    }

    fn flows_max(&self) -> usize {
        datagrams::BINDINGS
    }

    fn start(&self, site: &Site<'_>) -> anyhow::Result<Running> {
        let (visitors_port, tunnel_port) = PORTS[usize::from(self.muxed)];
        let (visitors, tunnel) = (site.relay(visitors_port), site.relay(tunnel_port).to_string());
        let mux = self.muxed.then_some("--mux");
        let (listen, host) = (visitors.to_string(), site.sink().to_string());
        let words = ["plain-hop", "--tunnel", &tunnel, "--visitors", &listen].into_iter().chain(mux);
        let relay = serve(site, &site.tools.bench, &words.collect::<Vec<_>>(), Proto::Tcp, visitors_port)?;
        relay.wait_for("ready", SOON)?;
        let words = ["plain-hop", "--tunnel", &tunnel, "--host", &host].into_iter().chain(mux);
        let mediator = site.world.start(Role::Private, &site.tools.bench, words)?;
        mediator.wait_for("ready", SOON)?;
        Ok(Running::at(Some(visitors), (!self.muxed).then_some(visitors)).with("relay", relay).with("agent", mediator))
    }
}

/// Carries what visitors send to `visitors` over what the other end makes to `tunnel`, until the process ends; with `muxed`,
/// streams only and on one connection.
///
/// # Errors
/// An address cannot be bound, or a thread cannot be made.
pub fn relay(tunnel: SocketAddr, visitors: SocketAddr, muxed: bool, ready: impl FnOnce()) -> anyhow::Result<()> {
    if muxed {
        return mux::relay(tunnel, visitors, ready);
    }
    datagrams::relay(tunnel, visitors)?;
    streams::relay(tunnel, visitors, ready)
}

/// Carries what comes from `tunnel` to `host`, until the process ends or the other end does; `muxed` as the other end.
///
/// # Errors
/// The other end cannot be reached or has ended, or a thread cannot be made.
pub fn mediator(tunnel: SocketAddr, host: SocketAddr, muxed: bool, ready: impl FnOnce()) -> anyhow::Result<()> {
    if muxed {
        return mux::mediator(tunnel, host, ready);
    }
    datagrams::mediator(tunnel, host)?;
    streams::mediator(tunnel, host, ready)
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> anyhow::Result<thread::JoinHandle<()>> {
    thread::Builder::new().name(name.into()).stack_size(STACK).spawn(work).context("cannot make a thread")
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{Shutdown, TcpListener, TcpStream, UdpSocket};
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;
    use crate::peer;

    const SOON: Duration = Duration::from_secs(20);

    /// Two numbers that are free for both protocols.
    fn free() -> [SocketAddr; 2] {
        std::iter::repeat_with(|| {
            let listeners = [0; 2].map(|_| TcpListener::bind("127.0.0.1:0").unwrap());
            let addresses = listeners.each_ref().map(|listener| listener.local_addr().unwrap());
            addresses.iter().all(|address| UdpSocket::bind(address).is_ok()).then_some(addresses)
        })
        .flatten()
        .next()
        .unwrap()
    }

    fn up(host: SocketAddr, muxed: bool) -> SocketAddr {
        let [tunnel, visitors] = free();
        let (tell, told) = mpsc::channel();
        let ready = tell.clone();
        thread::spawn(move || relay(tunnel, visitors, muxed, move || ready.send(()).unwrap()).unwrap());
        told.recv_timeout(SOON).unwrap();
        // Ends with the process.
        thread::spawn(move || mediator(tunnel, host, muxed, move || tell.send(()).unwrap()));
        told.recv_timeout(SOON).unwrap();
        visitors
    }

    #[test]
    fn streams_pass_whole_with_their_ends_both_ways() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        for (muxed, length) in [false, true].into_iter().flat_map(|muxed| [(muxed, 1), (muxed, 1 << 20)]) {
            let visitors = up(listener.local_addr().unwrap(), muxed);
            let mut visitor = TcpStream::connect(visitors).unwrap();
            let writer = {
                let mut visitor = visitor.try_clone().unwrap();
                thread::spawn(move || {
                    visitor.write_all(&vec![7; length]).unwrap();
                    visitor.shutdown(Shutdown::Write).unwrap();
                })
            };
            let (mut host, _) = listener.accept().unwrap();
            let mut all = Vec::new();
            host.read_to_end(&mut all).unwrap();
            writer.join().unwrap();
            assert_eq!(all, vec![7; length]);
            host.write_all(b"answer").unwrap();
            drop(host);
            let mut answer = String::new();
            visitor.read_to_string(&mut answer).unwrap();
            assert_eq!(answer, "answer");
        }
    }

    #[test]
    fn host_that_sends_without_end_is_stopped_when_its_visitor_goes() {
        for muxed in [false, true] {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let visitors = up(listener.local_addr().unwrap(), muxed);
            let mut visitor = TcpStream::connect(visitors).unwrap();
            visitor.write_all(b"go").unwrap();
            let (mut host, _) = listener.accept().unwrap();
            host.set_write_timeout(Some(SOON)).unwrap();
            drop(visitor);
            let error = std::iter::repeat_with(|| host.write_all(&[7; 1 << 16])).find_map(Result::err).unwrap();
            assert!(
                matches!(error.kind(), std::io::ErrorKind::BrokenPipe | std::io::ErrorKind::ConnectionReset),
                "{error}"
            );
        }
    }

    #[test]
    fn each_flow_of_datagrams_gets_its_own_answers() {
        let host = peer::datagram::spawn("127.0.0.1:0".parse().unwrap()).unwrap();
        let visitors = up(host, false);
        // More than there are bindings, one after the other: the oldest give way.
        let sockets: Vec<UdpSocket> = (0..datagrams::BINDINGS + 10)
            .map(|number| {
                let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
                socket.connect(visitors).unwrap();
                socket.set_read_timeout(Some(SOON)).unwrap();
                echo(&socket, number);
                socket
            })
            .collect();
        for (number, socket) in sockets.iter().enumerate().rev().take(datagrams::BINDINGS / 2) {
            echo(socket, number + 1000);
        }
    }

    fn echo(socket: &UdpSocket, number: usize) {
        let said = format!("flow {number}");
        socket.send(said.as_bytes()).unwrap();
        let mut answer = [0; 64];
        let length = socket.recv(&mut answer).unwrap();
        assert_eq!(&answer[..length], said.as_bytes());
    }
}
