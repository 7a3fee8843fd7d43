//! The state against a responder's link, in virtual time.

use isthmus_proto::link::{Input, Maintain, Side, Transmit, UNSPECIFIED};
use isthmus_proto::wire::{Frame, HEADER_LEN, OpenFlags, RequestKind, read_header, write_data_header};

use super::*;

struct Pair {
    state: State,
    other: Link<Vec<u8>>,
    other_slot: Option<Slot>,
    resets: Vec<Code>,
    /// What opens are refused with.
    refuses: Option<Code>,
}

fn link(side: Side) -> LinkConfig {
    LinkConfig { side, ports_max: 8, maintain: Maintain::Relay { silence: Duration::from_secs(60) } }
}

fn frames(link: &mut Link<Vec<u8>>, mut sent: impl FnMut(u64, usize)) -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    while let Some(next) = link.transmit() {
        match next {
            Transmit::Control => {
                all.push(link.control().take(16_384).to_vec());
                link.control().reclaim();
            }
            Transmit::Frame { owner, frame, .. } => {
                sent(owner, frame.len());
                all.push(frame);
            }
        }
    }
    all
}

fn data(slot: Slot, len: usize) -> Vec<u8> {
    let mut header = [0; HEADER_LEN];
    write_data_header(&mut header, slot.id(), len as u16);
    [&header[..], &vec![0; len]].concat()
}

impl Pair {
    /// A connected stream, held once; gives its key.
    fn connected() -> (Self, usize) {
        let state = State::new(link(Side::Requester), None, Instant::ZERO);
        let other = Link::new(link(Side::Responder), Instant::ZERO);
        let mut pair = Self { state, other, other_slot: None, resets: Vec::new(), refuses: None };
        let key = pair.connect();
        (pair, key)
    }

    fn connect(&mut self) -> usize {
        let flags = OpenFlags(OpenFlags::QUIET);
        let (key, _) = self.state.open(flags, UNSPECIFIED, None, Instant::ZERO).unwrap();
        let mut reply = self.state.connect(key, UNSPECIFIED, 1).unwrap();
        self.turn();
        assert_eq!(reply.try_recv(), Ok(Code::Ok));
        key
    }

    /// Everything that waits on either side goes to the other.
    fn turn(&mut self) {
        loop {
            let mut sent = Vec::new();
            let out = frames(&mut self.state.link, |owner, len| sent.push((owner, len)));
            for (owner, len) in sent {
                self.state.on_sent(owner, len);
            }
            for frames in &out {
                self.deliver(frames);
            }
            let back = frames(&mut self.other, |_, _| {});
            for frames in &back {
                self.state.on_frames(frames, Instant::ZERO).unwrap();
            }
            if out.is_empty() && back.is_empty() {
                return;
            }
        }
    }

    fn deliver(&mut self, mut frames: &[u8]) {
        while !frames.is_empty() {
            let header = read_header(frames).unwrap();
            let (frame, rest) = frames.split_at(HEADER_LEN + usize::from(header.len));
            frames = rest;
            match self.other.receive(Frame::decode(header, &frame[HEADER_LEN..]).unwrap(), Instant::ZERO).unwrap() {
                Input::Open { slot, request, .. } => {
                    if let Some(code) = self.refuses {
                        self.other.answer(slot, RequestKind::Open, request, code, None);
                    }
                }
                Input::Connect { slot, request, .. } => {
                    self.other_slot = Some(slot);
                    self.other.answer(slot, RequestKind::Connect, request, Code::Ok, None);
                }
                Input::Data { slot, len, .. } => self.other.consumed(slot, len, Instant::ZERO),
                Input::Reset { code, .. } => self.resets.push(code),
                _ => {}
            }
        }
    }

    fn write(&mut self, key: usize, len: usize) {
        let entry = &mut self.state.entries[key];
        let frame = data(entry.slot, len);
        entry.unsent += frame.len();
        assert!(self.state.link.enqueue(entry.slot, frame, Instant::ZERO));
    }

    fn finish(&mut self, key: usize) {
        let entry = &mut self.state.entries[key];
        let Body::Stream(stream) = &mut entry.body else { panic!("no stream") };
        stream.finished = true;
        self.state.link.finish(entry.slot);
    }

    fn counts(&self) -> (usize, usize) {
        (self.state.link.ports(), self.state.entries.len())
    }
}

#[test]
fn whoever_uses_a_port_that_was_refused_meanwhile_is_told_why() {
    let (mut pair, _) = Pair::connected();
    pair.refuses = Some(Code::NotPermitted);
    let (key, _) = pair.state.open(OpenFlags(OpenFlags::QUIET), UNSPECIFIED, None, Instant::ZERO).unwrap();
    pair.turn();
    let refused = pair.state.connect(key, UNSPECIFIED, 1);
    assert!(matches!(refused, Err(Error::Refused(Code::NotPermitted))), "{refused:?}");
}

#[test]
fn a_finished_stream_lingers_for_its_time_and_not_longer() {
    let (mut pair, key) = Pair::connected();
    pair.write(key, 1000);
    pair.finish(key);
    pair.state.release(key, Instant::ZERO);
    pair.turn();
    let end = Instant::ZERO + LINGER;
    assert_eq!(pair.state.expire_lingering(Instant(end.0 - 1)), Some(end));
    assert_eq!(pair.counts(), (1, 1));
    assert_eq!(pair.state.expire_lingering(end), None);
    pair.turn();
    assert_eq!(pair.resets, [Code::PeerGone]);
    assert_eq!(pair.counts(), (0, 0));
}

#[test]
fn a_lingering_stream_ends_with_the_other_ends_fin_whichever_comes_first() {
    for other_first in [true, false] {
        let (mut pair, key) = Pair::connected();
        let slot = pair.other_slot.unwrap();
        if other_first {
            pair.other.finish(slot);
            pair.turn();
        }
        pair.write(key, 1000);
        pair.finish(key);
        pair.state.release(key, Instant::ZERO);
        pair.turn();
        pair.other.finish(slot);
        pair.turn();
        assert_eq!(pair.state.expire_lingering(Instant::ZERO), None);
        assert_eq!(pair.counts(), (0, 0), "other first: {other_first}");
        assert!(pair.resets.is_empty());
    }
}

#[test]
fn data_for_a_lingering_stream_cuts_it() {
    let (mut pair, key) = Pair::connected();
    pair.finish(key);
    pair.state.release(key, Instant::ZERO);
    pair.turn();
    let slot = pair.other_slot.unwrap();
    pair.other.enqueue(slot, data(slot, 10), Instant::ZERO);
    pair.turn();
    assert_eq!(pair.resets, [Code::PeerGone]);
    assert_eq!(pair.counts(), (0, 0));
}

#[test]
fn an_unfinished_stream_is_reset_when_its_last_holder_goes_and_not_before() {
    let (mut pair, key) = Pair::connected();
    pair.write(key, 1000);
    pair.state.hold(key);
    pair.state.release(key, Instant::ZERO);
    pair.turn();
    assert_eq!(pair.counts(), (1, 1));
    pair.state.release(key, Instant::ZERO);
    pair.turn();
    assert_eq!(pair.resets, [Code::Reset]);
    assert_eq!(pair.counts(), (0, 0));
}

#[test]
fn an_end_of_the_connection_frees_what_nobody_holds_and_is_told_by_the_rest() {
    let (mut pair, held) = Pair::connected();
    let lingering = pair.connect();
    pair.finish(lingering);
    pair.state.release(lingering, Instant::ZERO);
    pair.turn();
    pair.state.abandoned = true;
    assert!(!pair.state.is_over(Instant::ZERO));
    pair.state.end(Error::Closed);
    assert_eq!(pair.state.entries.len(), 1);
    assert!(matches!(pair.state.connect(held, UNSPECIFIED, 1), Err(Error::Closed)));
    pair.state.release(held, Instant::ZERO);
    assert_eq!(pair.state.entries.len(), 0);
}
