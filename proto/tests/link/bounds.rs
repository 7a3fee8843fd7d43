//! Bounds of the queues, on both sides of their edges.

use isthmus_proto::Code;
use isthmus_proto::limits::{CONTROL_QUEUE_MAX, DATAGRAM_MAX, DATAGRAM_QUEUE_MAX, EGRESS_HIGH, EGRESS_LOW};
use isthmus_proto::link::Input;
use isthmus_proto::wire::{Frame, HEADER_LEN, RequestKind};

use crate::pair::{End, Pair, TCP, UDP, addr, data};

/// Lets a peer that reads nothing do `step` over and over: it is cut off before the queue is much over its bound.
fn flood(mut pair: Pair, requester: bool, mut step: impl FnMut(&mut Pair, u32)) {
    fn victim(pair: &mut Pair, requester: bool) -> &mut End {
        if requester { &mut pair.requester } else { &mut pair.responder }
    }
    let mut steps = 0;
    while !victim(&mut pair, requester).is_overrun() {
        let waiting = victim(&mut pair, requester).control().len();
        assert!(waiting <= CONTROL_QUEUE_MAX, "{waiting} bytes wait after {steps} steps");
        step(&mut pair, steps);
        steps += 1;
    }
    let now = pair.now;
    let link = victim(&mut pair, requester);
    assert!(link.control().len() > CONTROL_QUEUE_MAX, "not before the bound: {}", link.control().len());
    assert_eq!(link.on_deadline(now), Err(Code::Overloaded));
}

#[test]
fn pings_without_reading_the_echoes_are_cut_off() {
    flood(Pair::new(), false, |pair, n| {
        pair.responder.receive(Frame::Ping { opaque: n.into() }, pair.now).unwrap();
    });
}

#[test]
fn refused_requests_without_reading_the_answers_are_cut_off() {
    flood(Pair::new(), false, |pair, n| {
        let port = isthmus_proto::PortId::new(false, 1, 1);
        pair.responder.receive(Frame::Serve { port, request: n as u16 }, pair.now).unwrap();
    });
}

#[test]
fn opening_and_closing_without_reading_the_answers_is_cut_off() {
    flood(Pair::new(), false, |pair, n| {
        let (port, request) = (isthmus_proto::PortId::new(false, 1, n), n as u16);
        let open = Frame::Open { port, request, flags: TCP, local: addr(0), peer: None, asker: 0 };
        let Ok(Input::Open { slot, .. }) = pair.responder.receive(open, pair.now) else { panic!("refused") };
        pair.responder.answer(slot, RequestKind::Open, request, Code::Ok, None);
        pair.responder.receive(Frame::Close { port, request }, pair.now).unwrap();
        pair.responder.answer(slot, RequestKind::Close, request, Code::Ok, None);
    });
}

#[test]
fn accepting_without_reading_the_resets_is_cut_off() {
    flood(Pair::new(), true, |pair, n| {
        let (port, parent) = (isthmus_proto::PortId::new(true, 1, n), isthmus_proto::PortId::new(false, 1, 1));
        let accepted = Frame::Accepted { port, parent, peer: addr(1), local: addr(2) };
        pair.requester.receive(accepted, pair.now).unwrap();
    });
}

#[test]
fn sending_without_reading_the_credit_is_cut_off() {
    let mut pair = Pair::new();
    let (near, far) = pair.opened(TCP);
    flood(pair, false, |pair, _| {
        pair.responder.receive(Frame::Data { port: near.id(), len: 16_384 }, pair.now).unwrap();
        pair.responder.consumed(far, 16_384, pair.now);
    });
}

#[test]
fn a_peer_that_reads_is_never_cut_off() {
    let mut pair = Pair::new();
    for n in 0..200_000 {
        pair.responder.receive(Frame::Ping { opaque: n }, pair.now).unwrap();
        pair.responder.control().take(16_384);
        pair.responder.control().reclaim();
    }
    assert!(!pair.responder.is_overrun());
}

#[test]
fn datagrams_that_wait_are_bounded_and_the_rest_is_dropped_and_counted() {
    let mut pair = Pair::new();
    let (near, _) = pair.opened(UDP);
    let (other, _) = pair.opened(UDP);
    let parts = || [16_358, 16_376, 16_376, 16_376, 21].map(|len| vec![0; HEADER_LEN + len]);
    let mut taken = 0;
    while pair.requester.enqueue_datagram(near, parts().into_iter(), pair.now) {
        taken += 1;
        assert!(pair.requester.queued() <= DATAGRAM_QUEUE_MAX + DATAGRAM_MAX + 5 * HEADER_LEN);
    }
    assert!(pair.requester.queued() > DATAGRAM_QUEUE_MAX, "not before the bound");
    assert!(taken > 10);
    assert_eq!(pair.requester.stats().datagrams_dropped, 1);
    assert!(pair.requester.enqueue_datagram(other, parts().into_iter(), pair.now), "another port has its own bound");
    while pair.requester.queued() > DATAGRAM_QUEUE_MAX {
        pair.requester.transmit().unwrap();
    }
    assert!(pair.requester.enqueue_datagram(near, parts().into_iter(), pair.now), "it goes on once there is room");
    assert_eq!(pair.requester.stats().datagrams_dropped, 1);
}

#[test]
fn congestion_begins_at_the_high_mark_and_ends_at_the_low_one() {
    let mut pair = Pair::new();
    let (near, _) = pair.opened(TCP);
    pair.requester.receive(Frame::Credit { port: near.id(), offset: 1 << 30 }, pair.now).unwrap();
    let piece = |n: usize| data(near, n - HEADER_LEN);
    for _ in 0..EGRESS_HIGH / 16_384 - 1 {
        pair.requester.enqueue(near, piece(16_384), pair.now);
    }
    pair.requester.enqueue(near, piece(16_383), pair.now);
    assert!(!pair.requester.is_congested());
    pair.requester.enqueue(near, piece(9), pair.now);
    assert!(pair.requester.is_congested());
    while pair.requester.queued() > EGRESS_LOW {
        assert!(!pair.requester.is_relaxed());
        pair.requester.transmit().unwrap();
    }
    assert!(pair.requester.is_relaxed());
}

#[test]
fn udp_errors_of_a_flood_are_told_as_far_as_they_are_read() {
    let mut pair = Pair::new();
    let (_, far) = pair.opened(UDP);
    for _ in 0..10_000 {
        pair.responder.udp_error(far, Code::Refused, addr(9));
    }
    let told = pair.tell_requester().len();
    assert!((100..1000).contains(&told), "{told}");
    assert!(!pair.responder.is_overrun());
    pair.responder.udp_error(far, Code::Refused, addr(9));
    assert_eq!(pair.tell_requester().len(), 1);
}
