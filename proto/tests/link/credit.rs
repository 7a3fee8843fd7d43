//! Credit: what a sender may send, and what a receiver need not bear.

use isthmus_proto::limits::{FRAME_PAYLOAD_MAX, WINDOW_EARLY, WINDOW_START};
use isthmus_proto::link::{Input, UNSPECIFIED, Violation};
use isthmus_proto::wire::Frame;

use crate::pair::{ASKER, DOER, Pair, TCP, data, emit};

#[test]
fn bytes_beyond_the_grant_are_a_violation_and_the_last_granted_one_is_not() {
    for (extra, want) in [(0, false), (1, true)] {
        let mut pair = Pair::new();
        let (near, far) = pair.opened(TCP);
        let granted = WINDOW_START as usize;
        let mut send = |len| pair.responder.receive(Frame::Data { port: near.id(), len }, pair.now);
        assert_eq!(send(granted - 100), Ok(Input::Data { owner: DOER, slot: far, len: granted - 100 }));
        let last = send(100 + extra);
        assert_eq!(last == Err(Violation::Flow), want, "{last:?}");
    }
}

#[test]
fn closing_port_still_counts_what_comes_against_its_grant() {
    let mut pair = Pair::new();
    let (near, _) = pair.opened(TCP);
    pair.requester.close(near, 1);
    let mut send = |len| pair.requester.receive(Frame::Data { port: near.id(), len }, pair.now);
    assert_eq!(send(WINDOW_START as usize), Ok(Input::None));
    assert_eq!(send(1), Err(Violation::Flow));
}

#[test]
fn early_bytes_may_be_sent_before_any_answer_and_no_more() {
    let mut pair = Pair::new();
    let near = pair.requester.open(ASKER, 1, TCP, UNSPECIFIED, None, pair.now).unwrap();
    assert_eq!(pair.requester.room(near), WINDOW_EARLY as usize);
    pair.requester.enqueue(near, data(near, FRAME_PAYLOAD_MAX), pair.now);
    pair.requester.enqueue(near, data(near, WINDOW_EARLY as usize - FRAME_PAYLOAD_MAX), pair.now);
    pair.requester.enqueue(near, data(near, 1), pair.now);
    let sizes: Vec<_> = emit(&mut pair.requester).iter().filter(|f| f[0] == 0x20).map(|f| f.len() - 8).collect();
    assert_eq!(sizes, [FRAME_PAYLOAD_MAX, WINDOW_EARLY as usize - FRAME_PAYLOAD_MAX]);
    assert!(!pair.requester.wants_to_send(), "the last byte waits for credit");
}

#[test]
fn a_frame_is_sent_only_when_the_whole_of_it_fits() {
    let mut pair = Pair::new();
    let (near, _) = pair.opened(TCP);
    pair.requester.enqueue(near, data(near, 16_000), pair.now);
    assert_eq!(emit(&mut pair.requester).len(), 1);
    for _ in 0..4 {
        pair.requester.enqueue(near, data(near, 16_000), pair.now);
    }
    assert_eq!(emit(&mut pair.requester).len(), 3);
    let more = |offset| Frame::Credit { port: near.id(), offset };
    pair.requester.receive(more(79_999), pair.now).unwrap();
    assert!(pair.requester.transmit().is_none());
    pair.requester.receive(more(80_000), pair.now).unwrap();
    assert!(pair.requester.transmit().is_some());
}

#[test]
fn credit_is_absolute_and_never_taken_back() {
    let mut pair = Pair::new();
    let (near, _) = pair.opened(TCP);
    let mut credit = |offset| pair.requester.receive(Frame::Credit { port: near.id(), offset }, pair.now).unwrap();
    assert_eq!(credit(u64::MAX), Input::Writable { owner: ASKER, slot: near });
    assert_eq!(credit(u64::MAX), Input::None);
    assert_eq!(credit(5), Input::None);
    pair.requester.enqueue(near, data(near, 1000), pair.now);
    assert!(pair.requester.room(near) > usize::MAX / 2, "and the largest does not overflow");
}

#[test]
fn room_counts_what_is_queued() {
    let mut pair = Pair::new();
    let (near, _) = pair.opened(TCP);
    assert_eq!(pair.requester.room(near), WINDOW_START as usize);
    pair.requester.enqueue(near, data(near, 10_000), pair.now);
    assert!(pair.requester.room(near) <= WINDOW_START as usize - 10_000);
    emit(&mut pair.requester);
    assert_eq!(pair.requester.room(near), WINDOW_START as usize - 10_000);
}
