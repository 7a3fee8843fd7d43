//! Streams: bundles, bounds, exhaustion, cancelling, short sends, accepting.

mod common;

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use common::{Random, bytes_of, errno, run, small_block_ring, socket, std_pair, take_recv};
use isthmus_ring::{Completion, Family, Piece, PollEvents, PoolConfig, Ring, RingConfig, SendMode, Socket};

#[test]
fn bundles_keep_order_and_rooms_over_many_sizes() {
    let mut ring = small_block_ring(1000, 16, 64);
    let (near, mut far) = std_pair();
    let near = socket(near);
    let mut random = Random::new(7);
    let mut longest = 0;
    for size in [1, 2, 999, 1000, 1001, 1999, 2000, 2001, 5000, 15_999, 16_000, 16_001, 40_000] {
        let bytes = random.bytes(size);
        far.write_all(&bytes).unwrap();
        let mut got = Vec::new();
        while got.len() < size {
            ring.recv_stream(&near, 0, false, 1);
            let (result, pieces) = take_recv(&mut ring, 1);
            assert_eq!(result.unwrap(), bytes_of(&pieces).len());
            longest = longest.max(pieces.len());
            for piece in &pieces {
                assert_eq!((piece.headroom(), piece.block_bytes(), piece.is_pooled()), (16, 1024, true));
                assert_eq!(piece.len() + piece.tailroom(), 1008);
            }
            got.extend(bytes_of(&pieces));
        }
        assert!(got == bytes, "size {size}");
    }
    assert_eq!(longest, 16, "one bundle took the whole ring");
}

#[test]
fn a_bundle_never_exceeds_its_limit() {
    let mut ring = small_block_ring(1000, 16, 64);
    let (near, mut far) = std_pair();
    let near = socket(near);
    let bytes = Random::new(8).bytes(100_000);
    let sent = bytes.clone();
    let writer = std::thread::spawn(move || far.write_all(&sent).map(|()| far));
    let mut got = Vec::new();
    for (turn, len_max) in [1, 999, 1000, 1001, 2000, 3000, 3001, 4000, 8000, 9500].iter().cycle().enumerate() {
        ring.recv_stream(&near, *len_max, turn % 2 == 0, 1);
        let (result, pieces) = take_recv(&mut ring, 1);
        let count = result.unwrap();
        assert!((1..=*len_max as usize).contains(&count), "{count} of at most {len_max}");
        got.extend(bytes_of(&pieces));
        if got.len() == bytes.len() {
            break;
        }
    }
    assert!(got == bytes);
    drop(writer.join());
}

#[test]
fn a_limit_on_an_idle_socket_leaves_other_sockets_bytes_in_order() {
    // On some kernels arming the idle receive shortens the first lent buffer, which the next receive gets.
    let mut ring = small_block_ring(1000, 16, 64);
    let (idle, mut idle_far) = std_pair();
    let (busy, mut busy_far) = std_pair();
    let (idle, busy) = (socket(idle), socket(busy));
    let bytes = Random::new(9).bytes(7000);
    for _ in 0..10 {
        ring.recv_stream(&idle, 100, false, 1);
        ring.enter(Some(Duration::ZERO), || false).unwrap();
        busy_far.write_all(&bytes).unwrap();
        let mut got = Vec::new();
        while got.len() < bytes.len() {
            ring.recv_stream(&busy, 0, false, 2);
            got.extend(bytes_of(&take_recv(&mut ring, 2).1));
        }
        assert!(got == bytes);
        idle_far.write_all(b"late").unwrap();
        let (result, pieces) = take_recv(&mut ring, 1);
        assert_eq!((result.unwrap(), bytes_of(&pieces)), (4, b"late".to_vec()));
    }
}

#[test]
fn bulk_receives_into_one_block_with_room_before() {
    let mut ring = Ring::new(RingConfig::small()).unwrap();
    let (near, mut far) = std_pair();
    let near = socket(near);
    let bytes = Random::new(3).bytes(100_000);
    let sent = bytes.clone();
    let writer = std::thread::spawn(move || far.write_all(&sent).map(|()| far));
    let mut got = Vec::new();
    while got.len() < bytes.len() {
        ring.recv_bulk(&near, 0, true, 4);
        let (result, mut pieces) = take_recv(&mut ring, 4);
        assert_eq!((pieces.len(), result.unwrap()), (1, pieces[0].len()));
        assert_eq!(pieces[0].headroom(), 16_704);
        got.extend_from_slice(&pieces[0]);
        pieces[0].prepend(16_704).fill(0xff);
    }
    assert!(got == bytes);
    drop(writer.join());
    ring.recv_bulk(&near, 0, false, 5);
    let (result, pieces) = take_recv(&mut ring, 5);
    assert_eq!((result.unwrap(), pieces.len()), (0, 0), "the end of the stream");
}

#[test]
fn an_exhausted_pool_says_so_and_loses_nothing() {
    let mut ring = small_block_ring(1000, 2, 2);
    let (near, mut far) = std_pair();
    let near = socket(near);
    let bytes = Random::new(4).bytes(3000);
    far.write_all(&bytes).unwrap();
    let mut held = Vec::new();
    while held.len() < 2 {
        ring.recv_stream(&near, 0, false, 1);
        held.extend(take_recv(&mut ring, 1).1);
    }
    ring.recv_stream(&near, 0, false, 1);
    let (result, pieces) = take_recv(&mut ring, 1);
    assert_eq!((errno(&result), pieces.len()), (Some(libc::ENOBUFS), 0));
    let stats = ring.pool_stats()[0];
    assert_eq!((stats.live, stats.held, stats.held_max, stats.provided, stats.exhausted), (2, 2, 2, 0, 1));
    assert!(ring.alloc_stream().is_none());
    let mut got = bytes_of(&held);
    held.clear();
    while got.len() < bytes.len() {
        ring.recv_stream(&near, 0, false, 1);
        got.extend(bytes_of(&take_recv(&mut ring, 1).1));
    }
    assert!(got == bytes);
    assert_eq!(ring.pool_stats()[0].held, 0);
}

#[test]
fn holders_do_not_starve_the_rest() {
    let mut ring = small_block_ring(1000, 8, 64);
    let (near, mut far) = std_pair();
    let near = socket(near);
    far.write_all(&[1; 20_000]).unwrap();
    let mut held = Vec::new();
    while held.len() < 20 {
        ring.recv_stream(&near, 0, false, 1);
        let (result, pieces) = take_recv(&mut ring, 1);
        assert!(result.unwrap() > 0);
        held.extend(pieces);
        ring.enter(Some(Duration::ZERO), || false).unwrap();
        let stats = ring.pool_stats()[0];
        assert!(stats.provided >= 2, "a quarter at least: {stats:?}");
        assert!(stats.provided + stats.held <= 8.max(stats.held + 2), "{stats:?}");
    }
    assert_eq!(ring.pool_stats()[0].provided, 2);
    drop(held);
    ring.enter(Some(Duration::ZERO), || false).unwrap();
    let stats = ring.pool_stats()[0];
    assert_eq!((stats.provided, stats.held), (8, 0));
    assert!(stats.free <= 16, "surplus goes back to the allocator: {stats:?}");
}

#[test]
fn pieces_outlive_the_ring() {
    let mut ring = small_block_ring(1000, 8, 64);
    let (near, mut far) = std_pair();
    let near = socket(near);
    far.write_all(&[7; 1500]).unwrap();
    let mut held = Vec::new();
    while held.iter().map(|p: &Piece| p.len()).sum::<usize>() < 1500 {
        ring.recv_stream(&near, 0, false, 1);
        held.extend(take_recv(&mut ring, 1).1);
    }
    held.extend(ring.alloc_bulk());
    drop(ring);
    for piece in &mut held {
        assert!(piece.iter().all(|&b| b == 7));
        let (head, tail) = (piece.headroom(), piece.tailroom());
        piece.prepend(head);
        piece.append(tail);
        piece.fill(9);
    }
    let front = held[0].split_to(3);
    drop(held);
    assert_eq!(&*front, [9; 3]);
}

#[test]
fn dropping_a_ring_ends_what_is_in_flight() {
    let mut ring = Ring::new(RingConfig::small()).unwrap();
    let listener = Socket::tcp_listener("127.0.0.1:0".parse().unwrap(), false, 16).unwrap();
    let addr = listener.local_addr().unwrap();
    let (near, mut far) = std_pair();
    let near = socket(near);
    ring.accept(&listener, 1);
    ring.recv_stream(&near, 0, false, 2);
    let mut batch = ring.send_batch();
    for _ in 0..64 {
        batch.push(Piece::copy_from(&[5; 200_000], 0, 0));
    }
    ring.send(&near, batch, SendMode::WaitAll, 3);
    ring.enter(Some(Duration::ZERO), || false).unwrap();
    assert_eq!(ring.in_flight(), 4);
    // A connection whose completion is never taken must not leak either.
    let unseen = TcpStream::connect(addr).unwrap();
    drop((listener, near));
    drop(ring);
    // An operation in flight would keep the listener open, and the connections.
    assert!(TcpStream::connect(addr).is_err());
    let mut rest = Vec::new();
    let _ = far.read_to_end(&mut rest);
    assert!(rest.len() < 12_800_000 && rest.iter().all(|&b| b == 5));
    assert!(matches!((&unseen).read(&mut [0; 1]), Ok(0) | Err(_)));
}

#[test]
fn cancelled_operations_complete_as_cancelled() {
    let mut ring = Ring::new(RingConfig::small()).unwrap();
    let listener = Socket::tcp_listener("[::1]:0".parse().unwrap(), false, 16).unwrap();
    let (near, _far) = std_pair();
    let near = socket(near);
    let ids = [
        ring.accept(&listener, 1),
        ring.recv_stream(&near, 0, false, 2),
        ring.recv_bulk(&near, 0, true, 3),
        ring.poll(&near, PollEvents::READABLE, 4),
    ];
    ring.enter(Some(Duration::ZERO), || false).unwrap();
    for id in ids {
        ring.cancel(id);
    }
    let mut seen = Vec::new();
    run(&mut ring, |_, completion, _| {
        let (user, code) = match completion {
            Completion::Accept { user, result, more: false } => (user, errno(&result)),
            Completion::Recv { user, result, .. } => (user, errno(&result)),
            Completion::Poll { user, result } => (user, errno(&result)),
            other => panic!("{other:?}"),
        };
        assert_eq!(code, Some(libc::ECANCELED), "{user}");
        seen.push(user);
        (seen.len() == 4).then_some(())
    });
    // Cancelling what has completed does nothing.
    for id in ids {
        ring.cancel(id);
    }
    ring.poll(&near, PollEvents::WRITABLE, 9);
    run(&mut ring, |_, completion, _| match completion {
        Completion::Poll { user: 9, result } => {
            assert!(result.unwrap().intersects(PollEvents::WRITABLE));
            Some(())
        }
        other => panic!("{other:?}"),
    });
}

#[test]
fn try_now_sends_what_fits_and_polls_for_the_rest() {
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
    ring.send(&near, batch, SendMode::TryNow, 1);
    let (mut short, mut refused, mut sent) = (0, 0, 0);
    let mut waiting = None;
    let mut reader = None;
    run(&mut ring, |ring, completion, _| match completion {
        Completion::Send { mut batch, result, .. } => {
            match result {
                Ok(count) => {
                    sent += count;
                    batch.advance(count);
                    short += u32::from(!batch.is_empty());
                }
                Err(e) => {
                    assert_eq!(e.kind(), std::io::ErrorKind::WouldBlock);
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
            ring.send(&near, batch, SendMode::TryNow, 1);
            None
        }
        Completion::Poll { user: 2, result } => {
            assert!(result.unwrap().intersects(PollEvents::WRITABLE));
            ring.send(&near, waiting.take().unwrap(), SendMode::TryNow, 1);
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
fn one_accept_serves_many_connections_and_connect_reaches_it() {
    let mut ring = Ring::new(RingConfig::small()).unwrap();
    for addr in ["127.0.0.1:0", "[::1]:0"] {
        let listener = Socket::tcp_listener(addr.parse().unwrap(), true, 64).unwrap();
        let to = listener.local_addr().unwrap();
        let id = ring.accept(&listener, 1);
        let clients: Vec<_> = (0..10).map(|_| Socket::tcp(Family::from(to)).unwrap()).collect();
        for client in &clients {
            ring.connect(client, to, 2);
        }
        let (mut peers, mut connected) = (Vec::new(), 0);
        run(&mut ring, |_, completion, _| {
            match completion {
                Completion::Accept { user: 1, result, more } => {
                    assert!(more);
                    peers.push(result.unwrap().1);
                }
                Completion::Connect { user: 2, result } => {
                    result.unwrap();
                    connected += 1;
                }
                other => panic!("{other:?}"),
            }
            (peers.len() == 10 && connected == 10).then_some(())
        });
        let mut locals: Vec<_> = clients.iter().map(|c| c.local_addr().unwrap()).collect();
        locals.sort();
        peers.sort();
        assert_eq!(peers, locals);
        ring.cancel(id);
        run(&mut ring, |_, completion, _| matches!(completion, Completion::Accept { more: false, .. }).then_some(()));
        ring.close(listener);
        // The kernel lets go of the listener on its way back from this call.
        ring.enter(Some(Duration::ZERO), || false).unwrap();
        let late = Socket::tcp(Family::from(to)).unwrap();
        ring.connect(&late, to, 3);
        run(&mut ring, |_, completion, _| match completion {
            Completion::Connect { user: 3, result } => {
                assert_eq!(errno(&result), Some(libc::ECONNREFUSED));
                Some(())
            }
            other => panic!("{other:?}"),
        });
    }
}

#[test]
fn small_queues_lose_no_completion() {
    let mut ring = Ring::new(RingConfig { sq_entries: 4, cq_entries: 8, ..RingConfig::small() }).unwrap();
    let (near, _far) = std_pair();
    let near = socket(near);
    for user in 0..1000 {
        ring.poll(&near, PollEvents::WRITABLE, user);
    }
    let mut seen = vec![false; 1000];
    let mut count = 0;
    run(&mut ring, |_, completion, _| {
        let Completion::Poll { user, result } = completion else { panic!("{completion:?}") };
        assert!(result.is_ok() && !seen[user as usize]);
        seen[user as usize] = true;
        count += 1;
        (count == 1000).then_some(())
    });
    assert_eq!(ring.in_flight(), 1);
}

#[test]
fn a_peers_half_close_and_reset_are_told_apart() {
    let mut ring = Ring::new(RingConfig::small()).unwrap();
    let (near, far) = std_pair();
    let near = socket(near);
    ring.poll(&near, PollEvents::READABLE, 1);
    far.shutdown(Shutdown::Write).unwrap();
    let events = run(&mut ring, |_, completion, _| match completion {
        Completion::Poll { result, .. } => Some(result.unwrap()),
        _ => None,
    });
    assert!(events.intersects(PollEvents::PEER_CLOSED) && !events.intersects(PollEvents::ERROR));
    ring.recv_stream(&near, 0, false, 2);
    assert_eq!(take_recv(&mut ring, 2).0.unwrap(), 0);
    // The other direction is still usable.
    let mut batch = ring.send_batch();
    batch.push(Piece::copy_from(b"still", 0, 0));
    ring.send(&near, batch, SendMode::WaitAll, 3);
    let mut far = far;
    let mut got = [0; 5];
    run(&mut ring, |_, completion, _| matches!(completion, Completion::Send { result: Ok(5), .. }).then_some(()));
    far.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"still");

    let (near, far) = std_pair();
    let (near, far) = (socket(near), socket(far));
    ring.poll(&near, PollEvents::READABLE, 4);
    far.set_reset_on_close().unwrap();
    drop(far);
    let events = run(&mut ring, |_, completion, _| match completion {
        Completion::Poll { user: 4, result } => Some(result.unwrap()),
        _ => None,
    });
    assert!(events.intersects(PollEvents::ERROR));
    ring.recv_stream(&near, 0, false, 5);
    assert_eq!(errno(&take_recv(&mut ring, 5).0), Some(libc::ECONNRESET));
}

#[test]
fn bad_configurations_are_refused_with_a_cure() {
    let small = RingConfig::small();
    for bad in [
        RingConfig { stream: PoolConfig { provided_max: 3, ..small.stream }, ..small },
        RingConfig { bulk: PoolConfig { payload: 0, ..small.bulk }, ..small },
        RingConfig { datagram: PoolConfig { payload: 65_694, ..small.datagram }, ..small },
        RingConfig { sq_entries: 0, ..small },
    ] {
        let error = Ring::new(bad).err().unwrap();
        assert!(!error.cure.is_empty(), "{error}");
    }
    assert!(Ring::new(RingConfig { datagram: PoolConfig { payload: 65_695, ..small.datagram }, ..small }).is_ok());
}
