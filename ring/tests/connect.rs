//! Connecting with first bytes, and closing after all else.

mod common;

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsRawFd;
use std::time::Duration;

use common::{errno, run, socket, std_pair};
use isthmus_ring::{Completion, Family, Piece, PollEvents, Ring, RingConfig, SendBatch, SendMode, Socket};
use socket2::SockRef;

fn batch(ring: &Ring, bytes: &[u8]) -> SendBatch {
    let mut batch = ring.send_batch();
    for part in bytes.chunks(3) {
        batch.push(Piece::copy_from(part, 0, 0));
    }
    batch
}

#[test]
fn first_bytes_follow_a_connect_without_a_turn_in_between() {
    let mut ring = Ring::new(RingConfig::small()).unwrap();
    for addr in ["127.0.0.1:0", "[::1]:0"] {
        let listener = TcpListener::bind(addr).unwrap();
        let to = listener.local_addr().unwrap();
        let near = Socket::tcp(Family::from(to)).unwrap();
        let first = batch(&ring, b"first bytes");
        ring.connect_and_send(&near, to, first, 1);
        // Nothing is taken from the ring before they are read at the other end.
        ring.enter(Some(Duration::from_secs(1)), || false).unwrap();
        let (mut far, _) = listener.accept().unwrap();
        let mut got = [0; 11];
        far.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"first bytes");
        let mut connected = false;
        run(&mut ring, |_, completion, _| match completion {
            Completion::Connect { user: 1, result: Ok(()) } if !connected => {
                connected = true;
                None
            }
            Completion::Send { user: 1, result: Ok(11), .. } if connected => Some(()),
            other => panic!("{other:?}"),
        });
    }
}

#[test]
fn first_bytes_go_nowhere_when_the_connect_fails() {
    let mut ring = Ring::new(RingConfig::small()).unwrap();
    let refusing: SocketAddr = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    // Nobody answers there, and nothing leaves the machine: it is loopback's.
    let near = Socket::tcp(Family::V4).unwrap();
    let lost = batch(&ring, b"lost");
    ring.connect_and_send(&near, refusing, lost, 1);
    let mut refused = false;
    run(&mut ring, |_, completion, _| match completion {
        Completion::Connect { user: 1, result } if !refused => {
            assert_eq!(errno(&result), Some(libc::ECONNREFUSED));
            refused = true;
            None
        }
        Completion::Send { user: 1, batch, result } if refused => {
            assert_eq!((errno(&result), batch.bytes()), (Some(libc::ECANCELED), 4));
            Some(())
        }
        other => panic!("{other:?}"),
    });
    assert_eq!(ring.in_flight(), 1);
}

/// A listener whose queue is full answers no further connect: what a cancel finds under way.
#[test]
fn cancelled_connect_cancels_its_first_bytes() {
    let mut ring = Ring::new(RingConfig::small()).unwrap();
    let full = Socket::tcp_listener("127.0.0.1:0".parse().unwrap(), false, 0).unwrap();
    let to = full.local_addr().unwrap();
    let _filling: Vec<Socket> = (0..2)
        .map(|user| {
            let socket = Socket::tcp(Family::V4).unwrap();
            ring.connect(&socket, to, 10 + user);
            socket
        })
        .collect();
    ring.enter(Some(Duration::ZERO), || false).unwrap();
    let near = Socket::tcp(Family::V4).unwrap();
    let lost = batch(&ring, b"lost");
    let (connect, _) = ring.connect_and_send(&near, to, lost, 1);
    ring.enter(Some(Duration::ZERO), || false).unwrap();
    ring.cancel(connect);
    let mut ended = 0;
    run(&mut ring, |_, completion, _| {
        match completion {
            Completion::Connect { user: 1, result } => assert_eq!(errno(&result), Some(libc::ECANCELED)),
            Completion::Send { user: 1, result, .. } => assert_eq!(errno(&result), Some(libc::ECANCELED)),
            Completion::Connect { .. } => return None,
            other => panic!("{other:?}"),
        }
        ended += 1;
        (ended == 2).then_some(())
    });
}

#[test]
fn first_bytes_are_not_lost_with_a_small_queue() {
    let mut ring = Ring::new(RingConfig { sq_entries: 2, cq_entries: 64, ..RingConfig::small() }).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let to = listener.local_addr().unwrap();
    let (idle, _other) = std_pair();
    let idle = socket(idle);
    let sockets: Vec<Socket> = (0..20).map(|_| Socket::tcp(Family::V4).unwrap()).collect();
    for (user, near) in sockets.iter().enumerate() {
        // An odd number of entries before each.
        ring.poll(&idle, PollEvents::WRITABLE, 1000);
        let first = batch(&ring, b"first bytes");
        ring.connect_and_send(near, to, first, user as u64);
    }
    let mut done = 0;
    run(&mut ring, |ring, completion, _| {
        match completion {
            Completion::Connect { result, .. } => result.unwrap(),
            Completion::Send { result: Ok(11), .. } => done += 1,
            // It began early.
            Completion::Send { user, batch, result: Err(error) } if error.kind() == ErrorKind::WouldBlock => {
                ring.send(&sockets[user as usize], batch, SendMode::WaitAll, user);
            }
            Completion::Poll { user: 1000, .. } => {}
            other => panic!("{other:?}"),
        }
        (done == 20).then_some(())
    });
    for _ in 0..20 {
        let mut got = [0; 11];
        listener.accept().unwrap().0.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"first bytes");
    }
}

#[test]
fn closing_comes_after_what_is_pushed_later() {
    let mut ring = Ring::new(RingConfig::small()).unwrap();
    let (near, mut far) = std_pair();
    let (closing, near) = (socket(near.try_clone().unwrap()), socket(near));
    let number = closing.as_raw_fd();
    ring.close(closing);
    // By the number that will be closed: the send goes first.
    let last = batch(&ring, b"last words");
    ring.send(&number, last, SendMode::WaitAll, 1);
    run(&mut ring, |_, completion, _| matches!(completion, Completion::Send { result: Ok(10), .. }).then_some(()));
    drop(near);
    let mut got = Vec::new();
    far.read_to_end(&mut got).unwrap();
    assert_eq!(got, b"last words");
}

#[test]
fn accepted_connections_are_without_nagles_delay() {
    let mut ring = Ring::new(RingConfig::small()).unwrap();
    let listener = Socket::tcp_listener("127.0.0.1:0".parse().unwrap(), false, 16).unwrap();
    let mut client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    ring.accept(&listener, 1);
    let accepted = run(&mut ring, |_, completion, _| match completion {
        Completion::Accept { result, .. } => Some(result.unwrap().0),
        other => panic!("{other:?}"),
    });
    assert!(SockRef::from(&accepted).tcp_nodelay().unwrap());
    client.write_all(b"x").unwrap();
}
