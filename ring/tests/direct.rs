//! Sockets in the ring's own table.

mod common;

use std::io::{Read, Write};
use std::time::Duration;

use common::{run, socket, std_pair, take_recv};
use isthmus_ring::{Completion, Connection, ConnectionOption, Ring, RingConfig, SendMode, raise_descriptor_limit};

#[test]
fn a_direct_connection_carries_bytes_both_ways_and_ends_when_it_is_closed() {
    let mut ring = Ring::new(RingConfig::small()).unwrap();
    let (near, mut far) = std_pair();
    let mut near = Connection::from(socket(near));
    assert!(!near.is_direct());
    ring.make_direct(&mut near);
    assert!(near.is_direct());
    assert_eq!(ring.direct_count(), 1);

    far.write_all(b"in").unwrap();
    ring.recv_bulk(&near, 0, true, 1);
    let (result, pieces) = take_recv(&mut ring, 1);
    assert_eq!((result.unwrap(), &*pieces[0]), (2, &b"in"[..]));

    let mut piece = ring.alloc_stream().unwrap();
    piece.append(3).copy_from_slice(b"out");
    let mut batch = ring.send_batch();
    batch.push(piece);
    ring.send(&near, batch, SendMode::WaitAll, 2);
    let sent = run(&mut ring, |_, completion, _| match completion {
        Completion::Send { user: 2, result, .. } => Some(result.unwrap()),
        _ => None,
    });
    assert_eq!(sent, 3);

    // An armed receive keeps the connection open: it is cancelled first, as a link's end does.
    let armed = ring.recv_bulk(&near, 0, true, 3);
    ring.cancel(armed);
    assert!(ring.close_connection(near).is_none());
    let (cancelled, _) = take_recv(&mut ring, 3);
    assert!(cancelled.is_err());
    let mut rest = Vec::new();
    far.read_to_end(&mut rest).unwrap();
    assert_eq!(rest, b"out");
}

#[test]
fn a_place_is_used_again_once_the_kernel_has_emptied_it() {
    let mut ring = Ring::new(RingConfig::small()).unwrap();
    for round in 0..100u64 {
        let (near, mut far) = std_pair();
        let mut near = Connection::from(socket(near));
        ring.make_direct(&mut near);
        far.write_all(&[round as u8]).unwrap();
        ring.recv_bulk(&near, 0, false, round);
        let (result, pieces) = take_recv(&mut ring, round);
        assert_eq!((result.unwrap(), &*pieces[0]), (1, &[round as u8][..]), "another socket's byte");
        assert!(ring.close_connection(near).is_none());
    }
    assert!(ring.direct_count() <= 2, "places are given back");
}

#[test]
fn a_connection_of_the_process_is_handed_back_at_its_close() {
    let mut ring = Ring::new(RingConfig::small()).unwrap();
    let (near, _far) = std_pair();
    let near = Connection::from(socket(near));
    let socket = ring.close_connection(near).unwrap();
    assert!(socket.peer_addr().is_ok());
    assert!(Connection::from(socket).into_socket().is_ok());
}

#[test]
fn the_limit_of_descriptors_is_raised_once_and_stays() {
    let limit = raise_descriptor_limit().unwrap();
    assert_eq!(raise_descriptor_limit().unwrap(), limit);
    assert!(limit >= 3);
}

#[test]
fn options_are_set_wherever_the_connection_is_kept() {
    let mut ring = Ring::new(RingConfig::small()).unwrap();
    let (near, _far) = std_pair();
    let same = near.try_clone().unwrap();
    let set = || socket2::SockRef::from(&same).tcp_user_timeout().unwrap();
    let mut near = Connection::from(socket(near));
    let unsent = || socket2::SockRef::from(&same).tcp_notsent_lowat().unwrap();
    let seven = ConnectionOption::UserTimeout(Duration::from_secs(7));
    for option in [seven, ConnectionOption::UnsentMax(70_000)] {
        assert!(ring.set_option(&near, option, 1).unwrap().is_ok());
    }
    assert_eq!((set(), unsent()), (Some(Duration::from_secs(7)), 70_000));

    ring.make_direct(&mut near);
    for asked in [ConnectionOption::UserTimeout(Duration::from_millis(1500)), ConnectionOption::UnsentMax(16_384)] {
        assert!(ring.set_option(&near, asked, 2).is_none());
        let result = run(&mut ring, |_, completion, _| match completion {
            Completion::OptionSet { user: 2, option, result } if option == asked => Some(result),
            _ => None,
        });
        result.unwrap();
    }
    assert_eq!((set(), unsent()), (Some(Duration::from_millis(1500)), 16_384));
}
