//! Waits for room in a full socket, whose peer may have ended its side.

mod common;

use std::io::Read;
use std::net::Shutdown;
use std::time::{Duration, Instant};

use common::{errno, run, socket, std_pair};
use isthmus_ring::{Completion, Connection, Piece, PollEvents, Ring, RingConfig, SendMode, Target};

/// As much as a socket takes while nobody reads: all buffers on the way have grown as far as they do.
fn fill(ring: &mut Ring, near: &impl Target) -> usize {
    let mut filled = 0;
    loop {
        let more = fill_now(ring, near);
        filled += more;
        if more == 0 {
            return filled;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn fill_now(ring: &mut Ring, near: &impl Target) -> usize {
    let mut filled = 0;
    loop {
        let mut batch = ring.send_batch();
        batch.push(Piece::copy_from(&[7; 100_000], 0, 0));
        ring.send(near, batch, SendMode::TryNow, 1);
        let sent = run(ring, |_, completion, _| match completion {
            Completion::Send { result, .. } => Some(result),
            other => panic!("{other:?}"),
        });
        match sent {
            Ok(sent) => filled += sent,
            Err(error) => {
                assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
                return filled;
            }
        }
    }
}

/// What comes within a while, and how often the ring slept no longer than that.
fn within(ring: &mut Ring, time: Duration) -> (Vec<Completion>, usize) {
    let (end, mut seen, mut turns) = (Instant::now() + time, Vec::new(), 0);
    while let Some(left) = end.checked_duration_since(Instant::now()) {
        ring.enter(Some(left), || false).unwrap();
        seen.extend(std::iter::from_fn(|| ring.next(&mut Vec::new())));
        turns += 1;
    }
    (seen, turns)
}

#[test]
fn room_is_waited_for_though_the_peer_sends_no_more() {
    for direct in [false, true] {
        let mut ring = Ring::new(RingConfig::small()).unwrap();
        let (near, mut far) = std_pair();
        let mut near = Connection::from(socket(near));
        if direct {
            ring.make_direct(&mut near);
            assert!(near.is_direct());
        }
        let filled = fill(&mut ring, &near);
        far.shutdown(Shutdown::Write).unwrap();
        for _ in 0..3 {
            // Whoever gives up is told so once.
            let id = ring.poll(&near, PollEvents::WRITABLE, 2);
            let (seen, turns) = within(&mut ring, Duration::from_millis(50));
            assert!(seen.is_empty() && turns < 20, "{seen:?} in {turns} turns");
            ring.cancel(id);
            let (seen, _) = within(&mut ring, Duration::from_millis(50));
            let [Completion::Poll { user: 2, result }] = &seen[..] else { panic!("{seen:?}") };
            assert_eq!(errno(result), Some(libc::ECANCELED));
            assert_eq!(ring.in_flight(), 1);
        }
        // One that is cancelled before it goes on, too.
        let id = ring.poll(&near, PollEvents::WRITABLE, 3);
        ring.cancel(id);
        let (seen, _) = within(&mut ring, Duration::from_millis(50));
        assert!(matches!(seen[..], [Completion::Poll { user: 3, .. }]), "{seen:?}");
        assert_eq!(ring.in_flight(), 1);

        ring.poll(&near, PollEvents::WRITABLE, 4);
        assert!(within(&mut ring, Duration::from_millis(50)).0.is_empty());
        far.read_exact(&mut vec![0; filled]).unwrap();
        let (seen, turns) = within(&mut ring, Duration::from_millis(100));
        let [Completion::Poll { user: 4, result: Ok(found) }] = &seen[..] else { panic!("{seen:?}") };
        assert!(found.intersects(PollEvents::WRITABLE) && turns < 20, "{found:?} in {turns} turns");
        assert_eq!(ring.in_flight(), 1);
        // What is over is not told again.
        fill(&mut ring, &near);
        drop(far);
        assert!(within(&mut ring, Duration::from_millis(50)).0.is_empty());
        ring.poll(&near, PollEvents::WRITABLE, 5);
        let (seen, _) = within(&mut ring, Duration::from_millis(50));
        assert!(
            matches!(seen[..], [Completion::Poll { user: 5, result: Ok(found) }] if found.intersects(PollEvents::ERROR))
        );
    }
}

#[test]
fn wait_for_room_that_is_over_keeps_no_socket_open() {
    for (direct, cancelled) in [(false, false), (false, true), (true, false), (true, true)] {
        let mut ring = Ring::new(RingConfig::small()).unwrap();
        let (near, mut far) = std_pair();
        let mut near = Connection::from(socket(near));
        if direct {
            ring.make_direct(&mut near);
        }
        let filled = fill(&mut ring, &near);
        far.shutdown(Shutdown::Write).unwrap();
        let id = ring.poll(&near, PollEvents::WRITABLE, 2);
        assert!(within(&mut ring, Duration::from_millis(50)).0.is_empty());
        match cancelled {
            true => ring.cancel(id),
            false => far.read_exact(&mut vec![0; filled]).unwrap(),
        }
        assert_eq!(within(&mut ring, Duration::from_millis(50)).0.len(), 1);
        if let Some(socket) = ring.close_connection(near) {
            ring.close(socket);
        }
        ring.enter(Some(Duration::ZERO), || false).unwrap();
        far.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let end = std::io::copy(&mut far, &mut std::io::sink());
        assert!(end.is_ok(), "direct {direct}, cancelled {cancelled}: {end:?}");
    }
}

#[test]
fn ring_is_dropped_at_once_whatever_a_wait_for_room_has_come_to() {
    for enters in 0..4 {
        let mut ring = Ring::new(RingConfig::small()).unwrap();
        let (near, far) = std_pair();
        let near = socket(near);
        fill(&mut ring, &near);
        far.shutdown(Shutdown::Write).unwrap();
        ring.poll(&near, PollEvents::WRITABLE, 2);
        for _ in 0..enters {
            ring.enter(Some(Duration::from_millis(20)), || false).unwrap();
            assert!(ring.next(&mut Vec::new()).is_none());
        }
        let before = Instant::now();
        drop(ring);
        assert!(before.elapsed() < Duration::from_secs(1), "after {enters} enters");
    }
}
