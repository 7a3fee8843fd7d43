//! From a plain connection to its port: when a receive is armed, and what it brings.

use isthmus_proto::Code;
use isthmus_proto::limits::{FRAME_PAYLOAD_MAX, GATHER_MAX, WINDOW_EARLY};
use isthmus_proto::wire::{HEADER_LEN, write_data_header};
use isthmus_ring::{Piece, PoolConfig};

use super::{Connecting, HALF_CLOSED_INTERVAL, Incoming};
use crate::Engine;
use crate::event::Control;
use crate::key::Key;
use crate::link::Phase;
use crate::link_receive::ENOBUFS;
use crate::turn::{INTERACTIVE_FOR, RATION_MIN};

/// What counts as a small message, or a few of them that came together.
const SMALL_MAX: usize = 4096;

/// What a stream may receive while its link's queue is long with others'. One that has so much is bulk; and it is more than
/// what counts as a small message at the other end.
const LITTLE_MAX: usize = 2 * GATHER_MAX;

/// By what right a receive is armed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    /// None: after all who wait.
    Usual,
    /// Its turn of those that wait for a ration.
    Rationed,
    /// A frame, though its link's queue is long.
    Spared,
}

impl Engine {
    /// Arms the receive if the port has credit, and its link's queue is short or has no part in that.
    pub(crate) fn receive_stream(&mut self, key: Key) {
        self.arm_stream(key, Turn::Usual);
    }

    pub(crate) fn arm_stream(&mut self, key: Key, turn: Turn) {
        let receive_max = self.stream_share();
        let Some(stream) = self.streams.get_mut(key) else { return };
        if stream.incoming != Incoming::Paused || stream.connecting != Connecting::Done {
            return;
        }
        let Some(io) = self.links.get_mut(stream.link) else { return };
        let Phase::Live(link) = &mut io.phase else { return };
        let congested = link.is_congested();
        if congested && turn != Turn::Spared && (stream.bulk || !link.has_little_queued(stream.slot)) {
            if !stream.waiting {
                stream.waiting = true;
                io.paused.push(key);
            }
            return;
        }
        let receive_max = match turn {
            Turn::Spared => FRAME_PAYLOAD_MAX,
            _ if congested => LITTLE_MAX,
            _ => receive_max,
        };
        let mut room = link.room(stream.slot).min(receive_max);
        // Of what waits in the socket the last few bytes of credit would make a record and a send of their own, where more
        // credit comes as soon as the other end gets rid of what it has: of less than this it must tell
        // (`Link::has_credit_left`).
        if room == 0 || room < WINDOW_EARLY as usize / 2 && stream.bulk && stream.more {
            return;
        }
        if stream.bulk && !stream.drained && turn != Turn::Spared {
            if self.ration < RATION_MIN || !self.dirty.rationed.is_empty() && turn == Turn::Usual {
                if !stream.rationed {
                    stream.rationed = true;
                    self.dirty.rationed.push_back(key);
                }
                return;
            }
            room = room.min(self.ration);
            self.ration -= room;
        }
        stream.limit = room as u32;
        let op = self.ring.recv_stream(&stream.socket, room as u32, stream.drained, key.to_bits());
        stream.incoming = Incoming::Armed(op);
    }

    /// Streams that have much to give and found this turn's ration used up, first come, first served.
    pub(crate) fn serve_rationed(&mut self) {
        while self.ration >= RATION_MIN
            && let Some(key) = self.dirty.rationed.pop_front()
        {
            if let Some(stream) = self.streams.get_mut(key) {
                stream.rationed = false;
                self.arm_stream(key, Turn::Rationed);
            }
        }
    }

    /// A frame of one that pauses, though its link's queue is long.
    pub(crate) fn spare_stream(&mut self, key: Key) {
        if let Some(stream) = self.streams.get_mut(key) {
            stream.waiting = false;
            self.arm_stream(key, Turn::Spared);
        }
    }

    /// All that it had queued on its link is sent: one with little at a time does not wait for the bulk of others.
    pub(crate) fn resume_small_stream(&mut self, key: Key) {
        if self.streams.get(key).is_some_and(|stream| stream.waiting && !stream.bulk) {
            self.receive_stream(key);
        }
    }

    /// Its link's queue is short again.
    pub(crate) fn resume_stream(&mut self, key: Key) {
        if let Some(stream) = self.streams.get_mut(key) {
            stream.waiting = false;
            self.receive_stream(key);
        }
    }

    /// A receive ended; `nonempty`: it left something behind.
    pub(crate) fn on_stream_received(
        &mut self,
        control: &mut impl Control,
        key: Key,
        result: std::io::Result<usize>,
        nonempty: bool,
    ) {
        let Some(stream) = self.streams.get_mut(key) else { return };
        stream.incoming = Incoming::Paused;
        let (link_key, slot) = (stream.link, stream.slot);
        let length = match result {
            Ok(length) => length,
            Err(error) if error.raw_os_error() == Some(ENOBUFS) => {
                self.counts.buffers_exhausted += 1;
                stream.drained = false;
                self.dirty.starved.push(key);
                return;
            }
            Err(_) => return self.reset_stream(control, key, Code::Reset),
        };
        if length == 0 {
            self.end_incoming(key);
            return self.end_stream_if_over(control, key);
        }
        // With whole blocks only, a receive that met its limit may be up to a block shorter.
        stream.drained = !nonempty && length + PoolConfig::STREAM.payload <= stream.limit as usize;
        stream.more = nonempty;
        // One small receive may be the end of a stretch of bulk, or all that credit allowed. A message leaves nothing behind.
        let small = length <= SMALL_MAX && length < stream.limit as usize && !nonempty;
        if small && stream.small {
            self.interactive_until = self.now + INTERACTIVE_FOR;
        }
        stream.small = small;
        // Where little was allowed, all of that.
        stream.bulk =
            length >= PoolConfig::STREAM.payload || length == LITTLE_MAX && stream.limit as usize == LITTLE_MAX;
        stream.carried.bytes_in += length as u64;
        self.counts.stream_bytes_in += length as u64;
        self.note_receive(length);
        let now = self.now;
        let mut received = std::mem::take(&mut self.received);
        if let Some(io) = self.links.get_mut(link_key)
            && let busy = io.send_op.is_some()
            && let Some(link) = io.live()
        {
            for mut piece in received.drain(..) {
                let len = piece.len() as u16;
                // A few bytes that have to wait give their shared buffer back.
                if busy && piece.len() <= GATHER_MAX {
                    piece = Piece::copy_from(&piece, HEADER_LEN, 0);
                }
                if let Some(header) = piece.prepend(HEADER_LEN).first_chunk_mut() {
                    write_data_header(header, slot.id(), len);
                }
                link.enqueue(slot, piece, now);
            }
        }
        received.clear();
        self.received = received;
        self.touch(link_key);
        self.receive_stream(key);
    }

    /// The socket's peer sends no more.
    pub(super) fn end_incoming(&mut self, key: Key) {
        let Some(stream) = self.streams.get_mut(key) else { return };
        stream.incoming = Incoming::Ended;
        let timer = self.timers.add(key);
        self.timers.set(timer, self.now + HALF_CLOSED_INTERVAL);
        stream.watch = Some(timer);
        let (link_key, slot) = (stream.link, stream.slot);
        if let Some(link) = self.link(link_key) {
            link.finish(slot);
            self.touch(link_key);
        }
    }
}
