//! Quiet sends: success ends no sleep, anything less does, and every one of them completes.

mod common;

use std::io::{ErrorKind, Read, Write};
use std::time::{Duration, Instant};

use common::{Random, errno, run, socket, std_pair};
use isthmus_ring::{Completion, OpId, Piece, PollEvents, Ring, RingConfig, Socket, UdpOptions};

const HANG: Duration = Duration::from_secs(20);

fn send(ring: &mut Ring, socket: &Socket, bytes: &[u8], user: u64) -> OpId {
    let mut batch = ring.send_batch();
    batch.push(Piece::copy_from(bytes, 0, 0));
    ring.send_quietly(socket, batch, user)
}

#[test]
fn success_ends_no_sleep_and_is_told_before_what_does() {
    let mut ring = Ring::new(RingConfig::small()).unwrap();
    let (near, mut far) = std_pair();
    let near = socket(near);
    let mut received = Vec::new();
    let start = Instant::now();
    send(&mut ring, &near, b"alone", 1);
    ring.enter(Some(Duration::from_millis(20)), || false).unwrap();
    assert!(start.elapsed() >= Duration::from_millis(20), "nothing ended the sleep");
    assert!(matches!(ring.next(&mut received), Some(Completion::Send { user: 1, result: Ok(5), .. })));
    assert!(ring.next(&mut received).is_none());

    // The echo is what ends the sleep.
    ring.recv_small(&near, false, 2);
    send(&mut ring, &near, b"to be echoed", 3);
    let echo = std::thread::spawn(move || {
        let mut bytes = [0; 17];
        far.read_exact(&mut bytes).unwrap();
        far.write_all(&bytes).unwrap();
        far
    });
    let mut order = Vec::new();
    run(&mut ring, |_, completion, received| match completion {
        Completion::Send { user: 3, batch, result } => {
            order.push("sent");
            assert_eq!((result.unwrap(), batch.bytes()), (12, 12));
            None
        }
        Completion::Recv { user: 2, result, .. } => {
            order.push("received");
            assert_eq!((result.unwrap(), &*received[0]), (17, &b"aloneto be echoed"[..]));
            Some(())
        }
        other => panic!("{other:?}"),
    });
    assert_eq!(order, ["sent", "received"]);
    drop(echo.join().unwrap());
    assert_eq!(ring.in_flight(), 1);
}

#[test]
fn an_awaited_success_is_told_at_once() {
    let mut ring = Ring::new(RingConfig::small()).unwrap();
    let (near, _far) = std_pair();
    let near = socket(near);
    let mut received = Vec::new();
    let start = Instant::now();
    let id = send(&mut ring, &near, b"x", 1);
    ring.attend(id);
    ring.enter(Some(HANG), || false).unwrap();
    assert!(matches!(ring.next(&mut received), Some(Completion::Send { user: 1, result: Ok(1), .. })));
    assert!(start.elapsed() < HANG);
    // What is over needs no attention.
    ring.attend(id);
    let start = Instant::now();
    ring.enter(Some(Duration::from_millis(20)), || false).unwrap();
    assert!(start.elapsed() >= Duration::from_millis(20));
}

#[test]
fn short_and_refused_sends_end_the_sleep() {
    let mut ring = Ring::new(RingConfig::small()).unwrap();
    let (near, mut far) = std_pair();
    let near = socket(near);
    near.set_buffers(None, Some(64 * 1024)).unwrap();
    let bytes = Random::new(5).bytes(8_000_000);
    let mut batch = ring.send_batch();
    let mut rest = Piece::copy_from(&bytes, 0, 0);
    while rest.len() > 200_000 {
        batch.push(rest.split_to(200_000));
    }
    batch.push(rest);
    ring.send_quietly(&near, batch, 1);
    let (mut short, mut refused, mut sent) = (0, 0, 0);
    let (mut waiting, mut reader) = (None, None);
    run(&mut ring, |ring, completion, _| match completion {
        Completion::Send { mut batch, result, .. } => {
            match result {
                Ok(count) => {
                    sent += count;
                    batch.advance(count);
                    short += u32::from(!batch.is_empty());
                }
                Err(e) => {
                    assert_eq!(e.kind(), ErrorKind::WouldBlock);
                    refused += 1;
                    ring.poll(&near, PollEvents::WRITABLE, 2);
                    // Nobody reads until the socket was full once.
                    if reader.is_none() {
                        let mut far = far.try_clone().unwrap();
                        let count = bytes.len();
                        reader = Some(std::thread::spawn(move || {
                            let mut got = vec![0; count];
                            far.read_exact(&mut got).map(|()| got)
                        }));
                    }
                    waiting = Some(batch);
                    return None;
                }
            }
            if batch.is_empty() {
                return Some(());
            }
            let id = ring.send_quietly(&near, batch, 1);
            ring.attend(id);
            None
        }
        Completion::Poll { user: 2, result } => {
            assert!(result.unwrap().intersects(PollEvents::WRITABLE));
            let id = ring.send_quietly(&near, waiting.take().unwrap(), 1);
            ring.attend(id);
            None
        }
        other => panic!("{other:?}"),
    });
    assert!(short > 0 && refused > 0, "{short} short, {refused} refused");
    assert_eq!(sent, bytes.len());
    assert!(reader.unwrap().join().unwrap().unwrap() == bytes);
    drop(near);
    assert_eq!(far.read(&mut [0; 1]).unwrap(), 0);
}

#[test]
fn a_dead_connection_ends_the_sleep() {
    let mut ring = Ring::new(RingConfig::small()).unwrap();
    let (near, _far) = std_pair();
    let near = socket(near);
    near.shutdown_write().unwrap();
    send(&mut ring, &near, b"x", 1);
    let mut received = Vec::new();
    let start = Instant::now();
    ring.enter(Some(HANG), || false).unwrap();
    match ring.next(&mut received) {
        Some(Completion::Send { user: 1, batch, result }) => {
            assert_eq!((errno(&result), batch.bytes()), (Some(libc::EPIPE), 1));
        }
        other => panic!("{other:?}"),
    }
    assert!(start.elapsed() < HANG);
}

#[test]
fn queues_that_overflow_mistake_no_failure_for_a_success() {
    let mut ring = Ring::new(RingConfig { sq_entries: 4, cq_entries: 8, ..RingConfig::small() }).unwrap();
    let (good, mut far) = std_pair();
    let (bad, _bad_far) = std_pair();
    let (good, bad) = (socket(good), socket(bad));
    bad.shutdown_write().unwrap();
    let mut last = None;
    for user in 0..1000 {
        let to = if user % 3 == 0 { &good } else { &bad };
        last = Some(send(&mut ring, to, b"x", user));
    }
    ring.attend(last.unwrap());
    let mut seen = vec![false; 1000];
    let mut count = 0;
    run(&mut ring, |_, completion, _| {
        let Completion::Send { user, result, .. } = completion else { panic!("{completion:?}") };
        assert!(!std::mem::replace(&mut seen[user as usize], true), "{user} completed twice");
        match user % 3 {
            0 => assert_eq!(result.unwrap(), 1),
            _ => assert_eq!(errno(&result), Some(libc::EPIPE), "{user}"),
        }
        count += 1;
        (count == 1000).then_some(())
    });
    assert_eq!(ring.in_flight(), 1);
    let mut got = [0; 334];
    far.read_exact(&mut got).unwrap();
}

#[test]
fn datagrams_are_told_of_likewise() {
    let mut ring = Ring::new(RingConfig::small()).unwrap();
    let to = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let sender = Socket::udp("127.0.0.1:0".parse().unwrap(), UdpOptions::default()).unwrap();
    let mut received = Vec::new();
    let letter = |ring: &mut Ring, bytes: &[u8], user| {
        let mut batch = ring.datagram_batch();
        batch.set_to(Some(to.local_addr().unwrap()));
        batch.push(Piece::copy_from(bytes, 0, 0));
        ring.send_datagrams_quietly(&sender, batch, user)
    };
    letter(&mut ring, b"small", 1);
    let start = Instant::now();
    ring.enter(Some(Duration::from_millis(20)), || false).unwrap();
    assert!(start.elapsed() >= Duration::from_millis(20));
    assert!(matches!(ring.next(&mut received), Some(Completion::SentDatagrams { user: 1, result: Ok(5), .. })));
    // Larger than any datagram.
    letter(&mut ring, &[0; 70_000], 2);
    let start = Instant::now();
    ring.enter(Some(HANG), || false).unwrap();
    match ring.next(&mut received) {
        Some(Completion::SentDatagrams { user: 2, result, .. }) => assert_eq!(errno(&result), Some(libc::EMSGSIZE)),
        other => panic!("{other:?}"),
    }
    assert!(start.elapsed() < HANG);
    let mut got = [0; 9];
    assert_eq!(to.recv(&mut got).unwrap(), 5);
}

#[test]
fn a_ring_with_untold_sends_is_dropped_without_waiting_for_them() {
    let mut ring = Ring::new(RingConfig::small()).unwrap();
    let (near, mut far) = std_pair();
    let near = socket(near);
    send(&mut ring, &near, b"last", 1);
    ring.enter(Some(Duration::ZERO), || false).unwrap();
    send(&mut ring, &near, b" words", 2);
    let start = Instant::now();
    drop(ring);
    // It waits two seconds for what does not end.
    assert!(start.elapsed() < Duration::from_secs(2));
    drop(near);
    let mut got = Vec::new();
    far.read_to_end(&mut got).unwrap();
    assert_eq!(got, b"last words");
}
