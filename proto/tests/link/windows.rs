//! Receive windows: that they grow for who reads fast, and only for him; and the budget that they share.

use std::time::Duration;

use isthmus_proto::Code;
use isthmus_proto::limits::{FRAME_PAYLOAD_MAX, LINK_WINDOW_SUM_MAX, WINDOW_EARLY, WINDOW_MAX, WINDOW_START};
use isthmus_proto::link::{Input, Slot};

use crate::pair::{Pair, TCP, data};

/// One stream from the requester to the responder.
struct Stream {
    near: Slot,
    far: Slot,
    sent: usize,
    consumed: usize,
}

impl Stream {
    fn all(pair: &mut Pair, count: usize) -> Vec<Self> {
        (0..count)
            .map(|_| {
                let (near, far) = pair.opened(TCP);
                Self { near, far, sent: 0, consumed: 0 }
            })
            .collect()
    }

    /// Sends all that credit allows, up to `most` bytes in all.
    fn fill(&mut self, pair: &mut Pair, most: usize) {
        while self.sent < most && pair.requester.room(self.near) > 0 {
            let len = pair.requester.room(self.near).min(FRAME_PAYLOAD_MAX).min(most - self.sent);
            pair.requester.enqueue(self.near, data(self.near, len), pair.now);
            self.sent += len;
        }
    }

    fn consume(&mut self, pair: &mut Pair, most: usize) {
        let n = most.min(self.sent - self.consumed);
        pair.responder.consumed(self.far, n, pair.now);
        self.consumed += n;
    }

    /// Bytes that the sender may have on the way or unread at the reader.
    fn ahead(&self, pair: &Pair) -> usize {
        self.sent + pair.requester.room(self.near) - self.consumed
    }
}

/// A round trip in which each reader reads up to `bytes`.
fn round(pair: &mut Pair, streams: &mut [Stream], bytes: usize) {
    round_of(pair, streams, bytes, Duration::from_millis(50));
}

fn round_of(pair: &mut Pair, streams: &mut [Stream], bytes: usize, time: Duration) {
    pair.wait(time);
    for stream in &mut *streams {
        stream.fill(pair, usize::MAX);
    }
    pair.tell_responder();
    for stream in &mut *streams {
        stream.consume(pair, bytes);
    }
    pair.tell_requester();
}

#[test]
fn window_grows_to_its_maximum_for_a_fast_reader_and_not_beyond() {
    let mut pair = Pair::new();
    let mut streams = Stream::all(&mut pair, 1);
    for _ in 0..12 {
        round(&mut pair, &mut streams, usize::MAX);
        assert!(streams[0].ahead(&pair) <= WINDOW_MAX as usize);
    }
    assert!(streams[0].ahead(&pair) > WINDOW_MAX as usize / 4 * 3, "{}", streams[0].ahead(&pair));
}

#[test]
fn window_does_not_grow_for_a_slow_reader() {
    let mut pair = Pair::new();
    let mut streams = Stream::all(&mut pair, 1);
    for _ in 0..100 {
        round(&mut pair, &mut streams, 8000);
        assert!(streams[0].ahead(&pair) <= WINDOW_START as usize);
    }
    assert_eq!(streams[0].consumed, 800_000);
}

#[test]
fn window_shrinks_while_more_waits_than_is_received_and_grows_again_when_all_is() {
    let mut pair = Pair::new();
    let mut streams = Stream::all(&mut pair, 1);
    for _ in 0..12 {
        round(&mut pair, &mut streams, usize::MAX);
    }
    let grown = streams[0].ahead(&pair);
    for _ in 0..60 {
        pair.responder.note_backlog(true);
        round(&mut pair, &mut streams, usize::MAX);
    }
    let queued = streams[0].ahead(&pair);
    assert!((grown / 32..grown / 8).contains(&queued), "{grown} {queued}");
    // More waits now and then only: it is not this end that the sender waits for.
    for _ in 0..12 {
        pair.responder.note_backlog(false);
        pair.responder.note_backlog(true);
        round(&mut pair, &mut streams, usize::MAX);
    }
    assert!(streams[0].ahead(&pair) > grown / 4 * 3, "{}", streams[0].ahead(&pair));
}

#[test]
fn bulk_has_less_ahead_while_another_port_has_a_little_unless_the_path_needs_more() {
    for (time, count, bytes, shared) in [(2, 300, 300_000, 1_048_576), (50, 40, 4_000_000, WINDOW_MAX as usize)] {
        let mut pair = Pair::new();
        let mut streams = Stream::all(&mut pair, 1);
        let mut little = Stream::all(&mut pair, 1).remove(0);
        for _ in 0..12 {
            round(&mut pair, &mut streams, usize::MAX);
        }
        let mut rounds = |messages: bool, read: usize| {
            for number in 0..count {
                if messages && (time > 20 || number % 10 == 0) {
                    little.fill(&mut pair, little.sent + 64);
                    little.consume(&mut pair, read);
                }
                round_of(&mut pair, &mut streams, bytes, Duration::from_millis(time));
            }
            streams[0].ahead(&pair)
        };
        let alone = rounds(false, 0);
        assert!(alone > WINDOW_MAX as usize / 4 * 3, "{alone}");
        // One that reads nothing is no company.
        assert!(rounds(true, 0) > WINDOW_MAX as usize / 4 * 3);
        let beside = rounds(true, 64);
        assert!((shared / 4 * 3..=shared * 5 / 4).contains(&beside), "{time} ms: {beside} instead of {shared}");
    }
}

#[test]
fn a_stalled_reader_gets_its_first_window_and_nothing_more() {
    let mut pair = Pair::new();
    let mut streams = Stream::all(&mut pair, 1);
    for _ in 0..20 {
        round(&mut pair, &mut streams, 0);
    }
    assert!(streams[0].sent <= WINDOW_START as usize);
    assert!(streams[0].sent > WINDOW_START as usize - 64, "{}", streams[0].sent);
}

#[test]
fn windows_of_a_link_share_one_budget() {
    let mut pair = Pair::new();
    let mut streams = Stream::all(&mut pair, 4);
    for _ in 0..12 {
        round(&mut pair, &mut streams, usize::MAX);
        let sum: usize = streams.iter().map(|stream| stream.ahead(&pair)).sum();
        assert!(sum <= (LINK_WINDOW_SUM_MAX + 4 * WINDOW_EARLY) as usize, "{sum}");
    }
    let sum: usize = streams.iter().map(|stream| stream.ahead(&pair)).sum();
    assert!(sum > LINK_WINDOW_SUM_MAX as usize / 4 * 3, "it is used: {sum}");
}

#[test]
fn whoever_came_first_makes_room_for_those_who_read_as_fast() {
    let mut pair = Pair::new();
    let mut streams = Stream::all(&mut pair, 8);
    for _ in 0..12 {
        round(&mut pair, &mut streams[..2], usize::MAX);
    }
    assert!(streams[0].ahead(&pair) > WINDOW_MAX as usize / 2);
    for _ in 0..24 {
        round(&mut pair, &mut streams, usize::MAX);
        // What a window that shrinks has granted before still counts.
        let sum: usize = streams.iter().map(|stream| stream.ahead(&pair)).sum();
        assert!(sum <= LINK_WINDOW_SUM_MAX as usize + streams.len() * WINDOW_EARLY as usize, "{sum}");
    }
    let share = LINK_WINDOW_SUM_MAX as usize / streams.len();
    for stream in &streams {
        let ahead = stream.ahead(&pair);
        assert!((share / 4 * 3..=share).contains(&ahead), "{ahead} of {share}");
    }
    // Those who have ended leave their share to the others.
    for stream in streams.split_off(1) {
        pair.requester.reset(stream.near, Code::Closed);
    }
    for _ in 0..24 {
        round(&mut pair, &mut streams, usize::MAX);
    }
    assert!(streams[0].ahead(&pair) > WINDOW_MAX as usize / 4 * 3);
}

#[test]
fn the_first_port_beyond_the_budget_gets_the_early_window_and_an_ended_one_gives_its_share_back() {
    let full = (LINK_WINDOW_SUM_MAX / (WINDOW_START - WINDOW_EARLY)) as usize;
    let mut pair = Pair::new();
    let streams = Stream::all(&mut pair, full + 1);
    let room = |pair: &Pair, n: usize| pair.requester.room(streams[n].near);
    assert_eq!(room(&pair, full - 1), WINDOW_START as usize);
    assert_eq!(room(&pair, full), WINDOW_EARLY as usize);
    pair.requester.reset(streams[0].near, Code::Closed);
    pair.tell_responder();
    let next = Stream::all(&mut pair, 1);
    assert_eq!(pair.requester.room(next[0].near), WINDOW_START as usize);
}

#[test]
fn streams_without_a_share_of_the_budget_still_move_whatever_sizes_are_sent_and_read() {
    const STREAMS: usize = 260;
    const BYTES: usize = 70_000;
    let mut pair = Pair::new();
    let mut streams = Stream::all(&mut pair, STREAMS);
    // Whole frames are sent without a look at the room, as by a driver that has read them already.
    for stream in &mut streams {
        while stream.sent < BYTES {
            let len = FRAME_PAYLOAD_MAX.min(BYTES - stream.sent);
            pair.requester.enqueue(stream.near, data(stream.near, len), pair.now);
            stream.sent += len;
        }
        pair.requester.finish(stream.near);
    }
    let mut finished = 0;
    for step in 0.. {
        pair.wait(Duration::from_millis(10));
        let inputs = pair.tell_responder();
        let mut moved = false;
        for input in inputs {
            match input {
                Input::Data { slot, mut len, .. } => {
                    moved = true;
                    while len > 0 {
                        let n = len.min(1 + step * 977 % 9000);
                        pair.responder.consumed(slot, n, pair.now);
                        len -= n;
                    }
                }
                Input::Fin { .. } => finished += 1,
                _ => {}
            }
        }
        pair.tell_requester();
        if finished == STREAMS {
            break;
        }
        assert!(moved, "stuck after {step} steps with {finished} of {STREAMS} done");
    }
    assert_eq!(pair.requester.queued(), 0);
}
