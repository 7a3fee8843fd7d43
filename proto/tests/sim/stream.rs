//! What drivers and hosts do with TCP ports.

use std::net::SocketAddr;

use isthmus_proto::Code;
use isthmus_proto::limits::FRAME_PAYLOAD_MAX;
use isthmus_proto::link::Input;
use isthmus_proto::wire::{HEADER_LEN, OpenFlags, RequestKind, write_data_header};

use crate::oracle::stream_name;
use crate::plan::{Reading, Talk, Via};
use crate::rng::pattern;
use crate::world::{REQUESTER, RESPONDER, Timer, World};

const OPEN: u16 = 1;
const CONNECT: u16 = 2;
const SERVE: u16 = 3;
const CLOSE: u16 = 4;

/// Bytes that a writer without regard to credit queues.
const BACKLOG: u64 = 64 * 1024;

/// A conversation's address: by its port number both ends know it.
pub(crate) fn addr(talk: usize) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, 1], 1000 + talk as u16))
}

fn owner(talk: usize) -> u64 {
    talk as u64 + 1
}

fn talk_of(owner: u64) -> usize {
    owner as usize - 1
}

impl World {
    pub(crate) fn start(&mut self, talk: usize) {
        let (flags, connects, early) = match &self.plan.talks[talk] {
            Talk::Stream(stream) => match stream.via {
                Via::Asked { quiet, early, .. } => (if quiet { OpenFlags::QUIET } else { 0 }, quiet, early),
                Via::Accepted { server } => return self.accept(talk, server),
            },
            Talk::Server { .. } => (0, false, false),
            Talk::Udp(udp) if udp.redirect => {
                self.states[talk].redirected[REQUESTER] = true;
                (OpenFlags::UDP | OpenFlags::REDIRECT, false, false)
            }
            Talk::Udp(_) => (OpenFlags::UDP, false, false),
        };
        let link = &mut self.ends[REQUESTER].link;
        let slot = link.open(owner(talk), OPEN, OpenFlags(flags), addr(talk), None, self.now).unwrap();
        if connects {
            link.connect(slot, CONNECT, addr(talk), 0);
        }
        self.states[talk].active[REQUESTER] = early;
        self.created(talk, REQUESTER, slot);
    }

    fn accept(&mut self, talk: usize, server: usize) {
        let Some(parent) = self.states[server].slot[RESPONDER].filter(|_| self.states[server].active[RESPONDER]) else {
            return;
        };
        let link = &mut self.ends[RESPONDER].link;
        let slot = link.accepted(parent, owner(talk), addr(talk), addr(server), self.now).unwrap();
        self.states[talk].active[RESPONDER] = true;
        self.created(talk, RESPONDER, slot);
    }

    pub(crate) fn answered(&mut self, talk: usize, request: u16) {
        let Some(slot) = self.states[talk].slot[RESPONDER] else { return };
        let Talk::Stream(stream) = &self.plan.talks[talk] else { unreachable!() };
        let Via::Asked { quiet, connect, .. } = stream.via else { unreachable!() };
        self.ends[RESPONDER].link.answer(slot, RequestKind::Connect, request, connect, None);
        if connect.is_ok() {
            self.states[talk].active[RESPONDER] = true;
        } else if quiet {
            self.oracle.cut_by(talk, RESPONDER);
            self.gone(talk, RESPONDER);
        }
    }

    pub(crate) fn read_slowly(&mut self, talk: usize, end: usize) {
        let Talk::Stream(stream) = &self.plan.talks[talk] else { unreachable!() };
        let Reading::Slow { bytes, every } = stream.sides[end].reading else { unreachable!() };
        self.consume(talk, end, bytes);
        self.after_ms(every, Timer::Read(talk, end));
    }

    fn consume(&mut self, talk: usize, end: usize, most: u64) {
        let half = self.oracle.half(talk, 1 - end);
        let n = most.min(half.read - half.consumed);
        half.consumed += n;
        if let Some(slot) = self.states[talk].slot[end].filter(|_| n > 0) {
            self.ends[end].link.consumed(slot, n as usize, self.now);
        }
    }

    pub(crate) fn reset(&mut self, talk: usize, end: usize) {
        let Some(slot) = self.states[talk].slot[end].filter(|_| self.states[talk].active[end]) else { return };
        self.ends[end].link.reset(slot, Code::Reset);
        self.oracle.cut_by(talk, end);
        self.gone(talk, end);
    }

    pub(crate) fn close(&mut self, talk: usize) {
        let Some(slot) = self.states[talk].slot[REQUESTER].filter(|_| !self.states[talk].closed) else { return };
        self.ends[REQUESTER].link.close(slot, CLOSE);
        self.oracle.cut_by(talk, REQUESTER);
        let state = &mut self.states[talk];
        state.closed = true;
        state.active[REQUESTER] = false;
    }

    /// Lets the hosts write what they can; tells whether anything was written.
    pub(crate) fn write_streams(&mut self, end: usize) -> bool {
        let mut wrote = false;
        for talk in 0..self.states.len() {
            wrote |= self.write_stream(talk, end);
        }
        wrote
    }

    fn write_stream(&mut self, talk: usize, end: usize) -> bool {
        let Talk::Stream(stream) = &self.plan.talks[talk] else { return false };
        let side = stream.sides[end];
        let state = &mut self.states[talk];
        let Some(slot) = state.slot[end].filter(|_| state.active[end] && !state.finished[end]) else { return false };
        let link = &mut self.ends[end].link;
        let mut moved = false;
        while !link.is_congested() {
            let wrote = self.oracle.half(talk, end).wrote;
            if wrote == side.bytes {
                link.finish(slot);
                state.finished[end] = true;
                self.oracle.finished(talk, end);
                return true;
            }
            let room = match side.eager {
                true => BACKLOG.saturating_sub(state.queued[end]),
                false => link.room(slot) as u64,
            };
            if room == 0 {
                break;
            }
            let piece = self.rng.between(1, side.piece).min(FRAME_PAYLOAD_MAX as u64);
            let len = piece.min(room).min(side.bytes - wrote);
            let mut frame = vec![0; HEADER_LEN];
            write_data_header(frame.first_chunk_mut().unwrap(), slot.id(), len as u16);
            frame.extend(pattern(stream_name(talk, end), wrote, len as usize));
            state.queued[end] += frame.len() as u64;
            assert!(link.enqueue(slot, frame, self.now));
            self.oracle.wrote(talk, end, len);
            moved = true;
        }
        moved
    }

    pub(crate) fn on_input(&mut self, end: usize, input: Input<'_>, payload: &[u8]) {
        match input {
            Input::None | Input::RoundTrip(_) | Input::Writable { .. } => {}
            Input::Data { owner, slot, len } => {
                let talk = talk_of(owner);
                assert_eq!(self.states[talk].slot[end], Some(slot));
                self.oracle.read(talk, end, &payload[payload.len() - len..]);
                let Talk::Stream(stream) = &self.plan.talks[talk] else { panic!("bytes for talk {talk}") };
                if stream.sides[end].reading == Reading::Fast {
                    self.consume(talk, end, u64::MAX);
                }
            }
            Input::Fin { owner, over, .. } => {
                let talk = talk_of(owner);
                self.oracle.saw_fin(talk, end);
                if over {
                    assert!(self.oracle.both_ended(talk, end), "talk {talk} is over at {end}");
                    self.gone(talk, end);
                }
            }
            Input::Reset { owner, code } => self.on_reset(end, talk_of(owner), code),
            Input::Datagram { owner, remote, more, len, .. } => {
                self.on_datagram(end, talk_of(owner), remote, more, &payload[payload.len() - len..]);
            }
            Input::Open { slot, request, local, flags, .. } => {
                let talk = usize::from(local.port()) - 1000;
                self.ends[end].link.set_owner(slot, owner(talk));
                self.created(talk, end, slot);
                self.answer_open(talk, slot, request, flags);
            }
            Input::Connect { owner, slot, request, to, .. } => {
                let talk = talk_of(owner);
                assert_eq!((self.states[talk].slot[end], to), (Some(slot), addr(talk)));
                let Talk::Stream(stream) = &self.plan.talks[talk] else { panic!("connect of talk {talk}") };
                let Via::Asked { takes, .. } = stream.via else { panic!("connect of talk {talk}") };
                self.after_ms(takes, Timer::Answered(talk, request));
            }
            Input::Serve { owner, slot, request } => {
                self.states[talk_of(owner)].active[end] = true;
                self.ends[end].link.answer(slot, RequestKind::Serve, request, Code::Ok, None);
            }
            Input::Close { owner, slot, request } => {
                self.ends[end].link.answer(slot, RequestKind::Close, request, Code::Ok, None);
                self.oracle.cut_by(talk_of(owner), end);
                self.gone(talk_of(owner), end);
            }
            Input::Switch { owner, slot, request, flags } => {
                self.states[talk_of(owner)].redirected[end] = flags.has(OpenFlags::REDIRECT);
                self.ends[end].link.answer(slot, RequestKind::Switch, request, Code::Ok, None);
            }
            Input::Answer { owner, to, request, code, over, .. } => {
                self.on_answer(talk_of(owner), to, request, code, over);
            }
            Input::Accepted { owner: parent_owner, parent, slot, peer, .. } => {
                let (server, talk) = (talk_of(parent_owner), usize::from(peer.port()) - 1000);
                assert_eq!(self.states[server].slot[end], Some(parent));
                self.ends[end].link.set_owner(slot, owner(talk));
                self.created(talk, end, slot);
                self.states[talk].active[end] = true;
            }
            other => panic!("nobody sent {other:?}"),
        }
    }

    fn on_reset(&mut self, end: usize, talk: usize, code: Code) {
        if let Talk::Stream(stream) = &self.plan.talks[talk]
            && let Via::Accepted { server } = stream.via
            && self.states[server].closed
            && code == Code::PeerGone
        {
            // It crossed the server's close.
            assert_eq!((end, self.states[talk].active[REQUESTER]), (RESPONDER, false));
            self.oracle.cut_by(talk, REQUESTER);
            self.oracle.tally.late_accepts += 1;
        }
        self.oracle.saw_reset(talk, end);
        self.gone(talk, end);
    }

    fn answer_open(&mut self, talk: usize, slot: isthmus_proto::link::Slot, request: u16, flags: OpenFlags) {
        let code = match &self.plan.talks[talk] {
            Talk::Stream(stream) => match stream.via {
                Via::Asked { open, .. } => open,
                Via::Accepted { .. } => panic!("open of talk {talk}"),
            },
            Talk::Server { .. } => Code::Ok,
            Talk::Udp(_) => {
                self.states[talk].active[RESPONDER] = true;
                self.states[talk].redirected[RESPONDER] = flags.has(OpenFlags::REDIRECT);
                Code::Ok
            }
        };
        self.ends[RESPONDER].link.answer(slot, RequestKind::Open, request, code, Some(addr(talk)));
        if !code.is_ok() {
            self.oracle.cut_by(talk, RESPONDER);
            self.gone(talk, RESPONDER);
        }
    }

    fn on_answer(&mut self, talk: usize, to: RequestKind, request: u16, code: Code, over: bool) {
        if over {
            self.oracle.cut_by(talk, REQUESTER);
            return self.gone(talk, REQUESTER);
        }
        assert_ne!(to, RequestKind::Close, "a close ends its port");
        let Some(slot) = self.states[talk].slot[REQUESTER].filter(|_| !self.states[talk].closed) else { return };
        let link = &mut self.ends[REQUESTER].link;
        match (to, &self.plan.talks[talk]) {
            (RequestKind::Open, Talk::Stream(_)) => link.connect(slot, CONNECT, addr(talk), 0),
            (RequestKind::Open, Talk::Server { .. }) => link.serve(slot, SERVE),
            (RequestKind::Connect, _) if !code.is_ok() => self.close(talk),
            (RequestKind::Switch, _) => self.states[talk].redirected[REQUESTER] = request == crate::packets::REDIRECT,
            (RequestKind::Open | RequestKind::Connect, _) => self.states[talk].active[REQUESTER] = true,
            (RequestKind::Serve | RequestKind::Close, _) => {}
        }
    }
}
