//! Every request and every answer.

use isthmus_proto::Code;
use isthmus_proto::link::{Input, PortKind, Slot, UNSPECIFIED};
use isthmus_proto::wire::{Frame, NamedTarget, OpenFlags, RequestKind};

use crate::pair::{ASKER, DOER, End, Pair, QUIET, TCP, UDP, addr, data, deliver, emit};

/// The codes of all answers among `inputs`, with what they answer and whether the port is gone.
fn answers(inputs: &[Input<'_>]) -> Vec<(RequestKind, u16, Code, bool)> {
    inputs
        .iter()
        .filter_map(|input| match input {
            Input::Answer { to, request, code, over, .. } => Some((*to, *request, *code, *over)),
            _ => None,
        })
        .collect()
}

fn answer(pair: &mut Pair, slot: Slot, to: RequestKind, request: u16, code: Code) {
    pair.responder.answer(slot, to, request, code, None);
}

#[test]
fn open_carries_all_its_fields_and_its_answer_the_assigned_number() {
    let mut pair = Pair::new();
    let flags = OpenFlags(OpenFlags::UDP | OpenFlags::OBLIGATORY | OpenFlags::REDIRECT | OpenFlags::FALLBACK);
    let near = pair.requester.open(ASKER, 77, flags, addr(53), Some(addr(54)), pair.now).unwrap();
    let inputs = pair.tell_responder();
    let [Input::Open { slot: far, request: 77, flags: got, local, peer, asker: 0 }] = inputs[..] else {
        panic!("{inputs:?}")
    };
    assert_eq!((got, local, peer), (flags, addr(53), Some(addr(54))));
    assert_eq!(far.id(), near.id());
    assert_eq!((pair.responder.kind(far), pair.requester.kind(near)), (Some(PortKind::Udp), Some(PortKind::Udp)));
    pair.responder.answer(far, RequestKind::Open, 77, Code::Ok, Some(addr(1053)));
    assert_eq!(
        pair.tell_requester(),
        [Input::Answer {
            owner: ASKER,
            slot: near,
            to: RequestKind::Open,
            request: 77,
            code: Code::Ok,
            local: addr(1053),
            over: false
        }]
    );
}

#[test]
fn refused_open_frees_both_ends() {
    for code in [Code::AddressInUse, Code::Denied, Code::NoResources] {
        let mut pair = Pair::new();
        let (_, far) = pair.asked(TCP);
        answer(&mut pair, far, RequestKind::Open, 1, code);
        assert_eq!(answers(&pair.tell_requester()), [(RequestKind::Open, 1, code, true)]);
        assert_eq!(pair.ports(), (0, 0));
    }
}

#[test]
fn connect_serve_and_switch_reach_the_owner_and_are_answered() {
    let mut pair = Pair::new();
    let (tcp, far_tcp) = pair.opened(TCP);
    let (server, far_server) = pair.opened(TCP);
    let (udp, far_udp) = pair.opened(UDP);
    let (named, far_named) = pair.opened(TCP);
    let redirect = OpenFlags(OpenFlags::REDIRECT);
    pair.requester.connect(tcp, 2, addr(80), 1500);
    pair.requester.serve(server, 3);
    pair.requester.switch(udp, 4, redirect);
    let host = NamedTarget { name: "printer.lan", port: 631, rules: "10.0.0.0/8" };
    pair.requester.connect_name(named, 5, host, 700);
    assert_eq!(
        pair.tell_responder(),
        [
            Input::Connect { owner: DOER, slot: far_tcp, request: 2, to: addr(80), timeout_ms: 1500 },
            Input::Serve { owner: DOER, slot: far_server, request: 3 },
            Input::Switch { owner: DOER, slot: far_udp, request: 4, flags: redirect },
            Input::ConnectName { owner: DOER, slot: far_named, request: 5, to: host, timeout_ms: 700 },
        ]
    );
    // In another order than asked: the numbers tell them apart.
    answer(&mut pair, far_udp, RequestKind::Switch, 4, Code::NoUdpChannel);
    answer(&mut pair, far_server, RequestKind::Serve, 3, Code::Ok);
    answer(&mut pair, far_tcp, RequestKind::Connect, 2, Code::TimedOut);
    answer(&mut pair, far_named, RequestKind::Connect, 5, Code::NameNotFound);
    assert_eq!(
        answers(&pair.tell_requester()),
        [
            (RequestKind::Switch, 4, Code::NoUdpChannel, false),
            (RequestKind::Serve, 3, Code::Ok, false),
            (RequestKind::Connect, 2, Code::TimedOut, false),
            (RequestKind::Connect, 5, Code::NameNotFound, false)
        ]
    );
    assert_eq!(pair.ports(), (4, 4), "a failed connect leaves an opened port opened");
}

#[test]
fn requests_that_do_not_fit_the_ports_kind_are_refused_without_asking_its_owner() {
    let mut pair = Pair::new();
    let (tcp, _) = pair.opened(TCP);
    let (udp, _) = pair.opened(UDP);
    pair.requester.connect(udp, 2, addr(80), 0);
    pair.requester.serve(udp, 3);
    pair.requester.switch(tcp, 4, OpenFlags(0));
    assert_eq!(pair.tell_responder(), []);
    assert_eq!(
        answers(&pair.tell_requester()),
        [
            (RequestKind::Connect, 2, Code::NotTcp, false),
            (RequestKind::Serve, 3, Code::NotTcp, false),
            (RequestKind::Switch, 4, Code::NotUdp, false)
        ]
    );
    assert_eq!(pair.ports(), (2, 2));
}

#[test]
fn quiet_flag_of_a_udp_port_means_nothing_to_either_end() {
    let mut pair = Pair::new();
    let (udp, _) = pair.opened(OpenFlags(OpenFlags::UDP | OpenFlags::QUIET));
    pair.requester.connect(udp, 2, addr(80), 0);
    pair.tell_responder();
    assert_eq!(answers(&pair.tell_requester()), [(RequestKind::Connect, 2, Code::NotTcp, false)]);
    assert_eq!(pair.ports(), (1, 1));
}

#[test]
fn every_request_for_a_port_that_is_gone_is_answered_unknown() {
    let mut pair = Pair::new();
    let gone = pair.opened(TCP).0.id();
    let requests = [
        (
            Frame::Connect { port: gone, request: 11, to: addr(1), timeout_ms: 0, unanswered: false },
            RequestKind::Connect,
        ),
        (Frame::Serve { port: gone, request: 12 }, RequestKind::Serve),
        (Frame::Close { port: gone, request: 13 }, RequestKind::Close),
        (Frame::Switch { port: gone, request: 14, flags: UDP }, RequestKind::Switch),
    ];
    pair.responder.receive(Frame::Reset { port: gone, code: Code::Reset }, pair.now).unwrap();
    for (frame, _) in &requests {
        assert_eq!(pair.responder.receive(frame.clone(), pair.now), Ok(Input::None));
    }
    let want: Vec<_> = (11..).zip(requests).map(|(n, (_, to))| (to, n, Code::UnknownPort)).collect();
    let got: Vec<_> = answers(&pair.tell_requester()).into_iter().map(|(to, n, code, _)| (to, n, code)).collect();
    assert_eq!(got, want);
}

#[test]
fn identifier_in_use_is_refused_and_its_port_lives_on() {
    let mut pair = Pair::new();
    let (near, far) = pair.opened(TCP);
    let open = Frame::Open { port: near.id(), request: 5, flags: TCP, local: UNSPECIFIED, peer: None, asker: 0 };
    assert_eq!(pair.responder.receive(open, pair.now), Ok(Input::None));
    assert_eq!(only_answer_code(&mut pair.responder), Code::PortExists);
    assert_eq!(pair.responder.owner(far), Some(DOER));
}

#[test]
fn the_limit_of_ports_holds_at_the_requester() {
    let mut pair = Pair::with_ports(2, 16);
    let (first, _) = pair.opened(TCP);
    pair.opened(UDP);
    let more = pair.requester.open(ASKER, 1, TCP, UNSPECIFIED, None, pair.now);
    assert_eq!(more, Err(Code::TooManyPorts));
    pair.requester.reset(first, Code::Closed);
    assert!(pair.requester.open(ASKER, 1, TCP, UNSPECIFIED, None, pair.now).is_ok(), "one place is free again");
}

#[test]
fn the_limit_of_ports_holds_at_the_responder() {
    let mut pair = Pair::with_ports(16, 2);
    pair.opened(TCP);
    let (server, far) = pair.opened(TCP);
    pair.requester.open(ASKER, 6, TCP, UNSPECIFIED, None, pair.now).unwrap();
    assert_eq!(pair.tell_responder(), []);
    assert_eq!(answers(&pair.tell_requester()), [(RequestKind::Open, 6, Code::TooManyPorts, true)]);
    assert_eq!(pair.responder.accepted(far, 0, addr(1), addr(2), pair.now), Err(Code::TooManyPorts));
    assert_eq!(pair.ports(), (2, 2));
    pair.requester.reset(server, Code::Closed);
    pair.tell_responder();
    pair.opened(TCP);
    assert_eq!(pair.ports(), (2, 2));
}

#[test]
fn accepted_beyond_the_requesters_limit_is_reset_there() {
    let mut pair = Pair::with_ports(2, 16);
    let (_, server) = pair.opened(TCP);
    pair.accepted(server);
    assert!(matches!(pair.tell_requester()[..], [Input::Accepted { .. }]));
    pair.accepted(server);
    assert_eq!(pair.tell_requester(), []);
    assert_eq!(pair.tell_responder(), [Input::Reset { owner: DOER, code: Code::TooManyPorts }]);
    assert_eq!(pair.ports(), (2, 2));
}

#[test]
fn closing_twice_is_answered_once_for_the_port_and_frees_both_ends() {
    let mut pair = Pair::new();
    let (near, far) = pair.opened(TCP);
    pair.requester.close(near, 8);
    pair.requester.close(near, 9);
    let asked = |request| Input::Close { owner: DOER, slot: far, request };
    assert_eq!(pair.tell_responder(), [asked(8), asked(9)]);
    answer(&mut pair, far, RequestKind::Close, 8, Code::Ok);
    answer(&mut pair, far, RequestKind::Close, 9, Code::Ok);
    assert_eq!(answers(&pair.tell_requester()), [(RequestKind::Close, 8, Code::Ok, true)]);
    // Once it is gone at both ends, a close is answered but belongs to nobody.
    pair.requester.close(near, 10);
    assert_eq!(pair.tell_responder(), []);
    assert_eq!(only_answer_code(&mut pair.responder), Code::UnknownPort);
    assert_eq!(pair.ports(), (0, 0));
}

#[test]
fn quiet_open_is_not_answered_and_its_failed_connect_frees_both_ends() {
    let mut pair = Pair::new();
    let near = pair.requester.open(ASKER, 1, QUIET, UNSPECIFIED, None, pair.now).unwrap();
    pair.requester.connect(near, 2, addr(80), 0);
    let inputs = pair.tell_responder();
    let Some(&Input::Open { slot: far, .. }) = inputs.first() else { panic!("{inputs:?}") };
    answer(&mut pair, far, RequestKind::Open, 1, Code::Ok);
    answer(&mut pair, far, RequestKind::Connect, 2, Code::Refused);
    assert_eq!(answers(&pair.tell_requester()), [(RequestKind::Connect, 2, Code::Refused, true)]);
    assert_eq!(pair.ports(), (0, 0));
}

#[test]
fn unanswered_connect_sends_nothing_until_bytes_were_consumed() {
    let mut pair = Pair::new();
    let near = pair.requester.open(ASKER, 0, QUIET, UNSPECIFIED, None, pair.now).unwrap();
    pair.requester.connect_unanswered(near, addr(80));
    let inputs = pair.tell_responder();
    let [Input::Open { slot: far, .. }, Input::Connect { request: 0, .. }] = inputs[..] else { panic!("{inputs:?}") };
    answer(&mut pair, far, RequestKind::Open, 0, Code::Ok);
    answer(&mut pair, far, RequestKind::Connect, 0, Code::Ok);
    assert!(emit(&mut pair.responder).is_empty());

    // Few bytes leave credit that their sender can use; more of them do not.
    let early = pair.requester.room(near);
    assert!(pair.requester.enqueue(near, data(near, 64), pair.now));
    pair.tell_responder();
    assert!(pair.responder.has_credit_left(far));
    assert!(pair.requester.enqueue(near, data(near, early - 64), pair.now));
    pair.tell_responder();
    assert!(!pair.responder.has_credit_left(far));
    assert_eq!(pair.requester.room(near), 0);
    pair.responder.consumed(far, 64, pair.now);
    assert!(!emit_is_empty_after_delivery(&mut pair));
    assert!(pair.requester.room(near) > early);
}

/// Carries what the responder has to send; whether that was nothing.
fn emit_is_empty_after_delivery(pair: &mut Pair) -> bool {
    let frames = emit(&mut pair.responder);
    let empty = frames.is_empty();
    deliver(&mut pair.requester, frames, pair.now).unwrap();
    empty
}

#[test]
fn unanswered_connect_that_fails_is_answered_and_frees_both_ends() {
    let mut pair = Pair::new();
    let near = pair.requester.open(ASKER, 0, QUIET, UNSPECIFIED, None, pair.now).unwrap();
    pair.requester.connect_unanswered(near, addr(80));
    let inputs = pair.tell_responder();
    let Some(&Input::Open { slot: far, .. }) = inputs.first() else { panic!("{inputs:?}") };
    answer(&mut pair, far, RequestKind::Connect, 0, Code::Refused);
    assert_eq!(answers(&pair.tell_requester()), [(RequestKind::Connect, 0, Code::Refused, true)]);
    assert_eq!(pair.ports(), (0, 0));
}

#[test]
fn quiet_open_grants_with_the_answer_to_its_connect() {
    let mut pair = Pair::new();
    let (near, far) = pair.asked(QUIET);
    let early = pair.requester.room(near);
    pair.requester.connect(near, 2, addr(80), 0);
    pair.tell_responder();
    assert!(emit(&mut pair.responder).is_empty());
    // A whole frame may come that does not fit the rest of the early window: that has to be told of.
    assert!(pair.requester.enqueue(near, data(near, 64), pair.now));
    pair.tell_responder();
    assert!(!pair.responder.has_credit_left(far));
    answer(&mut pair, far, RequestKind::Connect, 2, Code::Ok);
    assert_eq!(answers(&pair.tell_requester()), [(RequestKind::Connect, 2, Code::Ok, false)]);
    assert!(pair.requester.room(near) > early);
    assert!(pair.responder.has_credit_left(far));
}

#[test]
fn quiet_open_that_fails_is_answered() {
    let mut pair = Pair::new();
    let near = pair.requester.open(ASKER, 1, QUIET, UNSPECIFIED, None, pair.now).unwrap();
    pair.requester.connect(near, 2, addr(80), 0);
    // The responder's answer to open comes before it looks at the connect, as a driver's does.
    let mut frames = emit(&mut pair.requester).into_iter();
    let inputs = deliver(&mut pair.responder, vec![frames.next().unwrap()], pair.now).unwrap();
    let Some(&Input::Open { slot: far, .. }) = inputs.first() else { panic!("{inputs:?}") };
    answer(&mut pair, far, RequestKind::Open, 1, Code::Denied);
    assert_eq!(deliver(&mut pair.responder, frames.collect(), pair.now), Ok(vec![]));
    assert_eq!(answers(&pair.tell_requester()), [(RequestKind::Open, 1, Code::Denied, true)]);
    assert_eq!(pair.ports(), (0, 0));
}

fn only_answer_code(link: &mut End) -> Code {
    let frames = emit(link);
    let codes: Vec<_> = frames
        .iter()
        .filter_map(|frame| {
            let header = isthmus_proto::wire::read_header(frame).unwrap();
            match Frame::decode(header, &frame[isthmus_proto::wire::HEADER_LEN..]) {
                Ok(Frame::Answer { code, .. }) => Some(code),
                _ => None,
            }
        })
        .collect();
    assert_eq!(codes.len(), 1, "{codes:?}");
    codes[0]
}
