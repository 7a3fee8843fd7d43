//! Datagrams: an echo server, and clients that compare what comes back byte by byte.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use clap::Args;
use isthmus_e2e::noise;

use crate::{Outcome, during};

const DATAGRAM_MAX: usize = 65_535;

#[derive(Args)]
pub(crate) struct Echo {
    /// Where to listen
    address: SocketAddr,
}

#[derive(Args)]
pub(crate) struct Ping {
    /// The echo server
    address: SocketAddr,
    /// Payload sizes, one datagram each, in bytes
    #[arg(long, value_delimiter = ',', default_value = "100")]
    sizes: Vec<usize>,
    /// How many times each size
    #[arg(long, default_value_t = 1)]
    count: usize,
    /// How many visitors (sockets) at once
    #[arg(long, default_value_t = 1)]
    visitors: usize,
    /// How long one echo may take, in milliseconds
    #[arg(long, default_value_t = 5000)]
    timeout_ms: u64,
    /// How often a datagram is sent again that got no echo in time: 0 demands every single one
    #[arg(long, default_value_t = 0)]
    retries: usize,
}

pub(crate) fn echo(args: &Echo) -> Outcome {
    let socket = UdpSocket::bind(args.address).map_err(during("bind"))?;
    println!("ready {}", socket.local_addr().map_err(during("local address"))?);
    let mut buffer = vec![0; DATAGRAM_MAX];
    loop {
        match socket.recv_from(&mut buffer) {
            Ok((len, from)) => {
                // A visitor that is gone is no reason to end; it shows as an error of the next call.
                let _ = socket.send_to(&buffer[..len], from);
            }
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => {}
            Err(error) => return Err(format!("receive: {error}")),
        }
    }
}

pub(crate) fn ping(args: &Ping) -> Outcome {
    thread::scope(|scope| {
        let visitors: Vec<_> = (0..args.visitors).map(|visitor| scope.spawn(move || visit(args, visitor))).collect();
        visitors.into_iter().try_for_each(|visitor| visitor.join().map_err(|_| "a visitor panicked")?)
    })?;
    println!("{} echoes", args.visitors * args.sizes.len() * args.count);
    Ok(())
}

fn visit(args: &Ping, visitor: usize) -> Outcome {
    let any: SocketAddr = match args.address {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any).map_err(during("bind"))?;
    socket.connect(args.address).map_err(during("connect"))?;
    for round in 0..args.count {
        for &size in &args.sizes {
            let seed = (visitor as u64) << 40 | (round as u64) << 20 | size as u64;
            exchange(args, &socket, &noise(seed, size))
                .map_err(|text| format!("visitor {visitor}, round {round}, {size} bytes: {text}"))?;
        }
    }
    Ok(())
}

/// Sends `payload` and waits for its echo. Late echoes of datagrams that were sent again are passed over; anything else
/// that is not the payload is an error.
fn exchange(args: &Ping, socket: &UdpSocket, payload: &[u8]) -> Outcome {
    let mut buffer = vec![0; DATAGRAM_MAX];
    for attempt in 0..=args.retries {
        let deadline = Instant::now() + Duration::from_millis(args.timeout_ms);
        // With retries, a refused datagram (an ICMP error of a port that is not there yet) counts as lost.
        if let Err(error) = socket.send(payload)
            && attempt == args.retries
        {
            return Err(format!("send: {error}"));
        }
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            socket.set_read_timeout(Some(left)).map_err(during("time limit"))?;
            match socket.recv(&mut buffer) {
                Ok(len) if buffer[..len] == *payload => return Ok(()),
                Ok(_) if args.retries > 0 => {}
                Ok(len) => return Err(format!("another datagram of {len} bytes came back")),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => break,
                Err(error) if error.kind() == ErrorKind::ConnectionRefused && args.retries > 0 => {
                    thread::sleep(left);
                    break;
                }
                Err(error) => return Err(format!("receive: {error}")),
            }
        }
    }
    Err(format!("no echo in {} ms, {} times", args.timeout_ms, args.retries + 1))
}
