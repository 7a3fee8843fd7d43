//! What goes first: control, then ports with little, then the others in turn.

use isthmus_proto::PortId;
use isthmus_proto::limits::{FRAME_PAYLOAD_MAX, GATHER_MAX};
use isthmus_proto::link::{Slot, Transmit};
use isthmus_proto::wire::{Frame, HEADER_LEN, Kind, read_header};

use crate::pair::{Pair, TCP, UDP, data, emit, port_of};

/// Bytes that a port may send in one turn, as the design says: two frames.
const QUANTUM: usize = 32 * 1024;

/// Full frames.
const BULK: usize = 16_000;

/// Opened ports of the requester, each with `credit` bytes of it.
fn ports(pair: &mut Pair, credits: &[u64]) -> Vec<Slot> {
    credits
        .iter()
        .map(|&offset| {
            let near = pair.opened(TCP).0;
            pair.requester.receive(Frame::Credit { port: near.id(), offset }, pair.now).unwrap();
            near
        })
        .collect()
}

fn next(pair: &mut Pair) -> Option<(PortId, usize)> {
    match pair.requester.transmit()? {
        Transmit::Frame { frame, .. } => Some((port_of(&frame), frame.len())),
        Transmit::Control => panic!("control waits"),
    }
}

#[test]
fn a_ports_little_data_overtakes_all_bulk_that_is_not_taken_yet() {
    let mut pair = Pair::new();
    let [bulk, other, fast] = ports(&mut pair, &[1 << 30; 3])[..] else { unreachable!() };
    for _ in 0..20 {
        pair.requester.enqueue(bulk, data(bulk, BULK), pair.now);
        pair.requester.enqueue(other, data(other, BULK), pair.now);
    }
    for _ in 0..7 {
        assert_ne!(next(&mut pair).unwrap().0, fast.id());
        pair.requester.enqueue(fast, data(fast, 100), pair.now);
        assert_eq!(next(&mut pair), Some((fast.id(), 108)), "no bulk byte stands before it");
    }
}

#[test]
fn a_port_counts_as_fast_on_one_side_of_the_gather_limit_only() {
    for (len, overtakes) in [(GATHER_MAX - HEADER_LEN, true), (GATHER_MAX - HEADER_LEN + 1, false)] {
        let mut pair = Pair::new();
        let [bulk, other] = ports(&mut pair, &[1 << 30; 2])[..] else { unreachable!() };
        pair.requester.enqueue(bulk, data(bulk, BULK), pair.now);
        pair.requester.enqueue(other, data(other, len), pair.now);
        assert_eq!(next(&mut pair).unwrap().0 == other.id(), overtakes, "{len}");
    }
}

#[test]
fn control_stands_before_all_payload() {
    let mut pair = Pair::new();
    let near = ports(&mut pair, &[1 << 30])[0];
    pair.requester.enqueue(near, data(near, 10), pair.now);
    pair.requester.serve(near, 1);
    let kinds: Vec<_> = emit(&mut pair.requester).iter().map(|frame| frame[0]).collect();
    assert_eq!(kinds, [Kind::Serve as u8, Kind::Data as u8]);
}

#[test]
fn fin_stands_behind_the_last_byte() {
    let mut pair = Pair::new();
    let near = ports(&mut pair, &[0])[0];
    for _ in 0..5 {
        pair.requester.enqueue(near, data(near, BULK), pair.now);
    }
    pair.requester.finish(near);
    let kinds = |pair: &mut Pair| emit(&mut pair.requester).iter().map(|frame| frame[0]).collect::<Vec<_>>();
    assert_eq!(kinds(&mut pair), [Kind::Data as u8; 4], "credit lasts for four");
    pair.requester.receive(Frame::Credit { port: near.id(), offset: 80_000 }, pair.now).unwrap();
    assert_eq!(kinds(&mut pair), [Kind::Data as u8, Kind::Fin as u8]);
}

#[test]
fn bulk_ports_share_within_one_quantum_whatever_their_frames_sizes() {
    let mut pair = Pair::new();
    let [large, small] = ports(&mut pair, &[1 << 30; 2])[..] else { unreachable!() };
    for _ in 0..60 {
        pair.requester.enqueue(large, data(large, BULK), pair.now);
    }
    for _ in 0..800 {
        pair.requester.enqueue(small, data(small, 1200), pair.now);
    }
    let (mut by_large, mut by_small) = (0usize, 0usize);
    for _ in 0..500 {
        match next(&mut pair).unwrap() {
            (port, len) if port == large.id() => by_large += len,
            (_, len) => by_small += len,
        }
        // A turn ends with the frame that spends it, so that it may be longer by all but a byte of one frame.
        assert!(by_large.abs_diff(by_small) < QUANTUM + BULK + HEADER_LEN, "{by_large} {by_small}");
    }
    assert!(by_large > 10 * QUANTUM && by_small > 10 * QUANTUM, "{by_large} {by_small}");
}

/// The port that each turn belongs to. A quantum is two full frames.
fn turns(pair: &mut Pair) -> Vec<PortId> {
    let mut turns: Vec<_> = std::iter::from_fn(|| next(pair)).map(|(port, _)| port).collect();
    turns.dedup();
    turns
}

#[test]
fn a_port_whose_neighbour_runs_out_of_credit_keeps_its_turn() {
    let mut pair = Pair::new();
    let [blocked, b, c] = ports(&mut pair, &[16_384, 1 << 30, 1 << 30])[..] else { unreachable!() };
    pair.requester.receive(Frame::Credit { port: blocked.id(), offset: 65_536 }, pair.now).unwrap();
    for _ in 0..5 {
        pair.requester.enqueue(blocked, data(blocked, FRAME_PAYLOAD_MAX), pair.now);
    }
    for _ in 0..6 {
        pair.requester.enqueue(b, data(b, FRAME_PAYLOAD_MAX), pair.now);
        pair.requester.enqueue(c, data(c, FRAME_PAYLOAD_MAX), pair.now);
    }
    let [blocked, b, c] = [blocked, b, c].map(Slot::id);
    assert_eq!(turns(&mut pair), [blocked, b, c, blocked, b, c, b, c]);
}

#[test]
fn a_port_whose_neighbour_ends_keeps_its_turn() {
    let mut pair = Pair::new();
    let [ending, b, c] = ports(&mut pair, &[1 << 30; 3])[..] else { unreachable!() };
    // Its other direction has ended, so that it is gone with its last byte.
    pair.requester.receive(Frame::Fin { port: ending.id() }, pair.now).unwrap();
    pair.requester.enqueue(ending, data(ending, FRAME_PAYLOAD_MAX), pair.now);
    pair.requester.finish(ending);
    for _ in 0..4 {
        pair.requester.enqueue(b, data(b, FRAME_PAYLOAD_MAX), pair.now);
        pair.requester.enqueue(c, data(c, FRAME_PAYLOAD_MAX), pair.now);
    }
    assert_eq!(next(&mut pair).unwrap().0, ending.id());
    assert_eq!(pair.requester.owner(ending), None);
    emit_fin(&mut pair, ending.id());
    assert_eq!(turns(&mut pair), [b.id(), c.id(), b.id(), c.id()]);
}

fn emit_fin(pair: &mut Pair, port: PortId) {
    let control = pair.requester.control();
    let header = read_header(control.take(HEADER_LEN)).unwrap();
    assert_eq!((header.kind, header.port), (Kind::Fin as u8, port));
    assert!(control.is_empty());
}

#[test]
fn datagrams_need_no_credit_and_keep_their_order() {
    let mut pair = Pair::new();
    let near = pair.opened(UDP).0;
    for len in [5000, 1, 16_000, 0, 9000, 9000] {
        let mut frame = vec![0; HEADER_LEN + len];
        isthmus_proto::wire::write_datagram_header(&mut frame, near.id(), None, false, len as u16);
        assert!(pair.requester.enqueue_datagram(near, std::iter::once(frame), pair.now));
    }
    let sizes: Vec<_> = std::iter::from_fn(|| next(&mut pair)).map(|(_, len)| len - HEADER_LEN).collect();
    assert_eq!(sizes, [5000, 1, 16_000, 0, 9000, 9000]);
}
