//! Maintain packets through a whole link, and the round trip that they measure.

use std::time::Duration;

use isthmus_proto::Code;

use crate::pair::{Pair, TCP, data, deliver, emit};

const MS: Duration = Duration::from_millis(1);

#[test]
fn an_idle_links_caller_pings_and_both_ends_stay() {
    let mut pair = Pair::new();
    for _ in 0..50 {
        pair.now = pair.responder.deadline().max(pair.now);
        assert_eq!(pair.responder.on_deadline(pair.now), Ok(()));
        pair.tell_requester();
        pair.wait(30 * MS);
        if pair.now >= pair.requester.deadline() {
            assert_eq!(pair.requester.on_deadline(pair.now), Ok(()));
        }
        pair.tell_responder();
    }
    assert_eq!(pair.responder.rtt(), Some(30 * MS));
    assert!(pair.now.since(isthmus_proto::Instant::ZERO) > Duration::from_secs(900));
}

/// Sends from the requester for twenty seconds over a path of this round trip, so slowly that credit comes all the time.
fn round_trip_of_a_busy_link(rtt: Duration) -> Option<Duration> {
    let mut pair = Pair::new();
    let (near, far) = pair.opened(TCP);
    let step = 20 * MS;
    let delay = (rtt.as_millis() / step.as_millis() / 2) as usize;
    let (mut forth, mut back) = (std::collections::VecDeque::new(), std::collections::VecDeque::new());
    for _ in 0..1000 {
        pair.wait(step);
        if pair.requester.room(near) > 1000 {
            pair.requester.enqueue(near, data(near, 1000), pair.now);
        }
        forth.push_back(emit(&mut pair.requester));
        if forth.len() > delay {
            let frames = forth.pop_front().unwrap();
            for input in deliver(&mut pair.responder, frames, pair.now).unwrap() {
                if let isthmus_proto::link::Input::Data { len, .. } = input {
                    pair.responder.consumed(far, len, pair.now);
                }
            }
        }
        back.push_back(emit(&mut pair.responder));
        if back.len() > delay {
            deliver(&mut pair.requester, back.pop_front().unwrap(), pair.now).unwrap();
        }
    }
    pair.responder.rtt()
}

#[test]
fn a_busy_link_measures_its_round_trip_however_long_it_is() {
    for rtt in [40, 400, 600, 1400] {
        let got = round_trip_of_a_busy_link(rtt * MS).unwrap_or_else(|| panic!("no sample at {rtt} ms"));
        assert!(got >= rtt * MS && got <= (rtt + 40) * MS, "{got:?} of {rtt} ms");
    }
}

/// A sampled ping may bring the deadline forward without the driver's knowledge: it looks when the old one has
/// come, and the end is still noticed within interval and dead time.
#[test]
fn a_driver_that_looks_at_the_old_deadline_only_notices_the_end_in_time() {
    let mut pair = Pair::new();
    let (near, far) = pair.opened(TCP);
    pair.responder.on_deadline(pair.now).unwrap();
    pair.tell_requester();
    pair.tell_responder();
    let mut looked_for = pair.responder.deadline();
    pair.wait(3000 * MS);
    pair.requester.enqueue(near, data(near, 16_000), pair.now);
    pair.requester.enqueue(near, data(near, 16_000), pair.now);
    pair.tell_responder();
    pair.responder.consumed(far, 32_000, pair.now);
    assert!(pair.responder.deadline() < looked_for, "a ping was sampled");
    let cut = pair.now;
    let noticed = loop {
        pair.now = looked_for;
        match pair.responder.on_deadline(pair.now) {
            Ok(()) => looked_for = pair.responder.deadline(),
            Err(code) => break (code, pair.now.since(cut)),
        }
    };
    assert_eq!(noticed.0, Code::Silent);
    assert!(noticed.1 >= Duration::from_secs(10) && noticed.1 <= Duration::from_secs(30), "{noticed:?}");
}
