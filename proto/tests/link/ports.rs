//! How a port ends, and what becomes of what was on its way then.

use isthmus_proto::link::{Input, Violation};
use isthmus_proto::wire::{Frame, HEADER_LEN, OpenFlags, RequestKind};
use isthmus_proto::{Code, PortId};

use crate::pair::{ASKER, DOER, Pair, QUIET, TCP, UDP, addr, data, deliver, emit};

#[test]
fn half_closed_stream_still_carries_the_other_direction() {
    let mut pair = Pair::new();
    let (near, far) = pair.opened(TCP);
    pair.requester.enqueue(near, data(near, 10), pair.now);
    pair.requester.finish(near);
    assert!(!pair.requester.enqueue(near, data(near, 1), pair.now), "nothing is sent after FIN");
    assert_eq!(
        pair.tell_responder(),
        [Input::Data { owner: DOER, slot: far, len: 10 }, Input::Fin { owner: DOER, slot: far, over: false }]
    );
    pair.responder.enqueue(far, data(far, 20), pair.now);
    pair.responder.finish(far);
    assert_eq!(
        pair.tell_requester(),
        [Input::Data { owner: ASKER, slot: near, len: 20 }, Input::Fin { owner: ASKER, slot: near, over: true }]
    );
    assert_eq!(pair.ports(), (0, 0));
}

#[test]
fn crossing_fins_end_both_ends() {
    let mut pair = Pair::new();
    let (near, far) = pair.opened(TCP);
    pair.requester.finish(near);
    pair.responder.finish(far);
    let (from_requester, from_responder) = (emit(&mut pair.requester), emit(&mut pair.responder));
    let over = |owner, slot| Ok(vec![Input::Fin { owner, slot, over: true }]);
    assert_eq!(deliver(&mut pair.responder, from_requester, pair.now), over(DOER, far));
    assert_eq!(deliver(&mut pair.requester, from_responder, pair.now), over(ASKER, near));
    assert_eq!(pair.ports(), (0, 0));
}

#[test]
fn reset_drops_what_is_queued_and_is_never_an_orderly_end() {
    let mut pair = Pair::new();
    let (near, far) = pair.opened(TCP);
    pair.requester.enqueue(near, data(near, 3000), pair.now);
    pair.requester.finish(near);
    pair.requester.reset(near, Code::Reset);
    assert_eq!(pair.requester.queued(), 0);
    assert_eq!(pair.tell_responder(), [Input::Reset { owner: DOER, code: Code::Reset }]);
    assert_eq!(pair.responder.owner(far), None);
    assert_eq!(pair.ports(), (0, 0));
}

#[test]
fn late_frames_of_a_port_that_is_gone_are_passed_over_and_counted() {
    let mut pair = Pair::new();
    let (near, far) = pair.opened(TCP);
    pair.requester.enqueue(near, data(near, 10), pair.now);
    pair.requester.finish(near);
    let mut late = emit(&mut pair.requester);
    late.push(credit(near.id(), 1 << 20));
    pair.responder.reset(far, Code::Reset);
    assert_eq!(deliver(&mut pair.responder, late, pair.now), Ok(vec![]));
    assert_eq!(pair.responder.stats().stale_frames, 3);
    assert_eq!(pair.responder.stats().bytes_in, 0);
}

#[test]
fn reused_place_has_a_newer_identifier_that_late_frames_do_not_reach() {
    let mut pair = Pair::new();
    let (old, old_far) = pair.opened(TCP);
    pair.requester.reset(old, Code::Closed);
    pair.tell_responder();
    let (new, far) = pair.opened(TCP);
    assert_eq!(new.id().index(), old.id().index(), "the place is reused");
    assert_ne!(new.id(), old.id());
    for late in [data(old, 5), credit(old.id(), 1 << 20)] {
        assert_eq!(deliver(&mut pair.responder, vec![late], pair.now), Ok(vec![]));
    }
    assert_eq!((pair.responder.owner(old_far), pair.responder.owner(far)), (None, Some(DOER)));
    assert_eq!((pair.requester.owner(old), pair.requester.owner(new)), (None, Some(ASKER)));
    // Late calls of a driver miss it as well.
    pair.responder.consumed(old_far, 100, pair.now);
    pair.responder.reset(old_far, Code::Reset);
    pair.requester.finish(old);
    assert!(!pair.requester.enqueue(old, data(old, 5), pair.now));
    assert_eq!(pair.tell_responder(), []);
    assert_eq!(pair.ports(), (1, 1));
}

#[test]
fn accepted_connection_works_both_ways_and_belongs_to_its_server() {
    let mut pair = Pair::new();
    let (server, far_server) = pair.opened(TCP);
    let far = pair.accepted(far_server);
    pair.responder.enqueue(far, data(far, 5), pair.now);
    let inputs = pair.tell_requester();
    let Some(&Input::Accepted { owner, parent, slot, peer, local }) = inputs.first() else { panic!("{inputs:?}") };
    assert_eq!((owner, parent, peer, local), (ASKER, server, addr(5000), addr(80)));
    assert!(slot.id().by_mediator());
    assert_eq!(inputs[1..], [Input::Data { owner: 0, slot, len: 5 }]);
    pair.requester.set_owner(slot, 11);
    pair.requester.enqueue(slot, data(slot, 6), pair.now);
    assert!(pair.tell_responder().contains(&Input::Data { owner: DOER, slot: far, len: 6 }));
}

#[test]
fn accepted_on_a_closing_server_is_reset() {
    let mut pair = Pair::new();
    let (server, far_server) = pair.opened(TCP);
    pair.requester.close(server, 3);
    pair.accepted(far_server);
    assert_eq!(pair.tell_requester(), []);
    assert_eq!(
        pair.tell_responder(),
        [
            Input::Close { owner: DOER, slot: far_server, request: 3 },
            Input::Reset { owner: DOER, code: Code::PeerGone }
        ]
    );
    pair.responder.answer(far_server, RequestKind::Close, 3, Code::Ok, None);
    pair.tell_requester();
    assert_eq!(pair.ports(), (0, 0));
}

#[test]
fn accepting_on_a_server_that_is_gone_is_refused() {
    let mut pair = Pair::new();
    let (server, far_server) = pair.opened(TCP);
    pair.requester.reset(server, Code::Closed);
    pair.tell_responder();
    assert_eq!(pair.responder.accepted(far_server, 0, addr(1), addr(2), pair.now), Err(Code::UnknownPort));
}

#[test]
fn closing_port_delivers_and_sends_nothing_more() {
    let mut pair = Pair::new();
    let (near, far) = pair.opened(TCP);
    pair.requester.enqueue(near, data(near, 5000), pair.now);
    pair.responder.enqueue(far, data(far, 50), pair.now);
    pair.requester.close(near, 2);
    assert_eq!(pair.requester.queued(), 0);
    assert!(!pair.requester.enqueue(near, data(near, 1), pair.now));
    pair.requester.finish(near);
    assert_eq!(pair.tell_requester(), [], "what was on its way is dropped");
    assert_eq!(pair.tell_responder(), [Input::Close { owner: DOER, slot: far, request: 2 }]);
}

/// The other end's FIN ended the port there before it read our close: it has nothing left to answer for.
#[test]
fn close_that_crosses_the_last_fin_ends_the_port() {
    let mut pair = Pair::new();
    let (near, far) = pair.opened(TCP);
    pair.requester.finish(near);
    pair.tell_responder();
    pair.responder.finish(far);
    assert_eq!(pair.responder.ports(), 0);
    pair.requester.close(near, 2);
    let inputs = pair.tell_requester();
    assert!(matches!(
        inputs[..],
        [Input::Answer { to: RequestKind::Close, request: 2, code: Code::Ok, over: true, .. }]
    ));
    assert_eq!(pair.tell_responder(), []);
    assert_eq!(pair.tell_requester(), [], "its late answer belongs to nobody");
    assert_eq!(pair.ports(), (0, 0));
}

/// As above, for an accepted connection, whose place the mediator reuses at once.
#[test]
fn close_that_crosses_the_last_fin_does_not_hurt_the_places_next_port() {
    let mut pair = Pair::new();
    let (_, server) = pair.opened(TCP);
    let far = pair.accepted(server);
    let inputs = pair.tell_requester();
    let Some(&Input::Accepted { slot: near, .. }) = inputs.first() else { panic!("{inputs:?}") };
    pair.requester.finish(near);
    pair.tell_responder();
    pair.responder.finish(far);
    pair.requester.close(near, 2);
    let next = pair.accepted(server);
    assert_eq!(next.id().index(), far.id().index());
    let inputs = pair.tell_requester();
    assert!(inputs.iter().any(|input| matches!(input, Input::Accepted { slot, .. } if slot.id() == next.id())));
    pair.tell_responder();
    assert_eq!(pair.responder.owner(next), Some(DOER), "it is not reset");
    assert_eq!(pair.ports(), (2, 2));
}

#[test]
fn payload_where_none_may_come_is_a_violation() {
    let mut pair = Pair::new();
    let tcp = pair.opened(TCP).0.id();
    let udp = pair.opened(UDP).0.id();
    let mut refuses = |frame| assert_eq!(pair.responder.receive(frame, pair.now), Err(Violation::State));
    refuses(Frame::Data { port: udp, len: 1 });
    refuses(Frame::Fin { port: udp });
    refuses(Frame::Datagram { port: tcp, remote: Some(addr(1)), more: false, len: 1 });
    pair.responder.receive(Frame::Fin { port: tcp }, pair.now).unwrap();
    for frame in [Frame::Fin { port: tcp }, Frame::Data { port: tcp, len: 1 }] {
        assert_eq!(pair.responder.receive(frame, pair.now), Err(Violation::State));
    }
}

#[test]
fn frames_that_only_the_other_side_may_send_are_violations() {
    let mut pair = Pair::new();
    let port = pair.opened(TCP).0.id();
    let (request, local) = (1, addr(1));
    for frame in [
        Frame::Open { port, request, flags: QUIET, local, peer: None, asker: 0 },
        Frame::Connect { port, request, to: local, timeout_ms: 0, unanswered: false },
        Frame::Serve { port, request },
        Frame::Close { port, request },
        Frame::Switch { port, request, flags: UDP },
        Frame::Query { query: 1, json: b"{}" },
    ] {
        assert!(pair.requester.receive(frame.clone(), pair.now) == Err(Violation::Role), "{frame:?}");
    }
    for frame in [
        Frame::Answer { port, to: RequestKind::Open, request, code: Code::Ok, local },
        Frame::Accepted { port, parent: port, peer: local, local },
        Frame::UdpError { port, code: Code::Refused, remote: local },
        Frame::Report { json: b"{}" },
        Frame::QueryAnswer { query: 1, json: b"{}" },
    ] {
        assert!(pair.responder.receive(frame.clone(), pair.now) == Err(Violation::Role), "{frame:?}");
    }
    for frame in [Frame::Hello { version: 1, json: b"{}" }, Frame::Welcome { version: 1, json: b"{}" }] {
        assert_eq!(pair.requester.receive(frame.clone(), pair.now), Err(Violation::Role));
        assert_eq!(pair.responder.receive(frame, pair.now), Err(Violation::Role));
    }
    assert_eq!(pair.requester.receive(Frame::Unknown, pair.now), Ok(Input::None));
}

#[test]
fn identifiers_of_the_wrong_maker_or_beyond_every_limit_are_violations() {
    let mut pair = Pair::with_ports(100, 100);
    let (_, server) = pair.opened(TCP);
    let open = |port| Frame::Open { port, request: 1, flags: OpenFlags(0), local: addr(0), peer: None, asker: 0 };
    assert_eq!(pair.responder.receive(open(PortId::new(true, 3, 1)), pair.now), Err(Violation::Identifier));
    assert_eq!(pair.responder.receive(open(PortId::new(false, 200, 1)), pair.now), Err(Violation::Identifier));
    assert!(matches!(pair.responder.receive(open(PortId::new(false, 199, 1)), pair.now), Ok(Input::Open { .. })));
    let accepted = |port| Frame::Accepted { port, parent: server.id(), peer: addr(1), local: addr(2) };
    assert_eq!(pair.requester.receive(accepted(PortId::new(false, 3, 1)), pair.now), Err(Violation::Identifier));
    assert_eq!(pair.requester.receive(accepted(PortId::new(true, 200, 1)), pair.now), Err(Violation::Identifier));
}

fn credit(port: PortId, offset: u64) -> Vec<u8> {
    let mut control = isthmus_proto::wire::ControlBuf::default();
    control.push(&Frame::Credit { port, offset });
    assert_eq!(control.len(), HEADER_LEN + 8);
    control.take(usize::MAX).to_vec()
}
