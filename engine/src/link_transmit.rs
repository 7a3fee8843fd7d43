//! Frames -> records, sealed in place -> one gathered send.

use std::time::Duration;

use isthmus_proto::Code;
use isthmus_proto::limits::GATHER_MAX;
use isthmus_proto::link::Transmit;
use isthmus_proto::record::{PLAINTEXT_MAX, RECORD_HEADER, RECORD_TAIL};
use isthmus_proto::time::Instant;
use isthmus_proto::wire::HEADER_LEN;
use isthmus_ring::{BATCH_PIECES_MAX, ConnectionOption, Piece, PollEvents, SendBatch, SendMode};

use crate::Engine;
use crate::event::Control;
use crate::key::{Key, What};
use crate::link::{LinkIo, Phase};
use crate::pace::SEND_TIME;

/// A send that is under way for so long is stalled.
const STALLED_AFTER: Duration = Duration::from_millis(100);

/// A send of at most so many bytes, behind which nothing waits, needs no turn of its own to hear of its end.
pub(crate) const QUIET_MAX: usize = 4096;

/// What a turn receives by so few large receives takes less than [`SEND_TIME`].
const RECEIVES_FEW: usize = 4;

pub(crate) const ECANCELED: i32 = 125;

/// Room for a record around its frames: header before, content type and tag after.
const ROOM_BEFORE: usize = HEADER_LEN + RECORD_HEADER;

impl Engine {
    /// Sends what a link has to send, unless a send is in flight: its end comes back here.
    pub(crate) fn flush_link(&mut self, control: &mut impl Control, key: Key) {
        let mut batch = self.ring.send_batch();
        let most = self.send_bytes();
        let mut freed = std::mem::take(&mut self.dirty.freed);
        let Some(io) = self.links.get_mut(key) else { return };
        io.dirty = false;
        let waits = io.live().map_or(0, |link| link.queued());
        self.queued = self.queued + waits - std::mem::replace(&mut io.counted, waits);
        if io.live().is_some_and(|link| link.is_overrun()) {
            self.dirty.freed = freed;
            let text = "the other end asks without reading the answers";
            return self.end_link(control, key, Code::Overloaded, text, 0);
        }
        if let Some(op) = io.send_op {
            if io.wants_to_send() {
                self.ring.attend(op);
            }
            self.dirty.freed = freed;
            return;
        }
        if io.full && io.pace.is_slow() && io.wants_to_send() {
            // What comes to be sent first while this waits goes before the rest. A send that waited itself would not let it.
            (io.full, io.waited, io.sent_at) = (false, true, self.now);
            io.send_op = Some(self.ring.poll(&io.socket, PollEvents::WRITABLE, key.to_bits()));
            self.dirty.freed = freed;
            return;
        }
        let bytes_max = most.min(io.pace.bytes(self.now));
        let built = Builder {
            bytes_max,
            ring: &mut self.ring,
            counts: &mut self.counts,
            batch: &mut batch,
            freed: &mut freed,
            paused: !io.paused.is_empty(),
        };
        let built = built.build(io);
        io.rest(self.now);
        if let Err(error) = built {
            self.dirty.freed = freed;
            return self.end_link(control, key, Code::ProtocolError, &error.to_string(), 0);
        }
        let sends = !batch.is_empty();
        if sends {
            if !std::mem::take(&mut io.waited) {
                io.sent_at = self.now;
            }
            io.full = batch.bytes() >= bytes_max || batch.len() + 2 >= BATCH_PIECES_MAX;
            if let Some(unsent) = io.pace.tell(batch.bytes()) {
                self.ring.set_option(&io.socket, ConnectionOption::UnsentMax(unsent), key.to_bits());
            }
            io.quiet = batch.bytes() <= QUIET_MAX && matches!(io.phase, Phase::Live(_)) && !io.wants_to_send();
            io.send_op = Some(match io.quiet {
                true => self.ring.send_quietly(&io.socket, batch, key.to_bits()),
                false => self.ring.send(&io.socket, batch, SendMode::WaitAll, key.to_bits()),
            });
        } else if let Some(code) = io.closing {
            self.dirty.freed = freed;
            return self.end_link(control, key, code, "", 0);
        } else {
            (io.full, io.waited) = (false, false);
        }
        let relaxed = io.live().is_some_and(|link| link.is_relaxed());
        // It may be long until the queue is short, or for ever where others keep it long, a little each.
        let one = !relaxed && sends && io.pace.is_slow() && !io.paused.is_empty();
        if one {
            let stream = io.paused.remove(0);
            self.spare_stream(stream);
        } else if relaxed && !io.paused.is_empty() {
            for stream in io.paused.take() {
                self.resume_stream(stream);
            }
        }
        for (owner, bytes) in freed.drain(..) {
            match Key::from_bits(owner) {
                stream if stream.what() == What::Stream => self.resume_small_stream(stream),
                bridge => self.bridge_consumed(bridge, bytes),
            }
        }
        self.dirty.freed = freed;
    }

    /// Moves what links hold of the shared receive buffers into memory of its own size: their queues,
    /// the fronts of records, and, by way of a cancelled send, what a stalled socket does not take.
    pub(crate) fn compact_links(&mut self) {
        let now = self.now;
        for key in self.links.keys().collect::<Vec<_>>() {
            let Some(io) = self.links.get_mut(key) else { continue };
            let mut moved = 0;
            if let Some(partial) = io.partial.as_mut().filter(|partial| partial.is_pooled()) {
                moved += partial.len();
                *partial = Piece::copy_from(partial, 0, 0);
            }
            // A poll holds nothing.
            if let Some(op) =
                io.send_op.filter(|_| !io.waited && !io.compacting && now.since(io.sent_at) > STALLED_AFTER)
            {
                io.compacting = true;
                self.ring.cancel(op);
            }
            if let Some(link) = io.live() {
                for piece in link.queued_mut().filter(|piece| piece.is_pooled()) {
                    moved += piece.len();
                    *piece = Piece::copy_from(piece, RECORD_HEADER, RECORD_TAIL);
                }
            }
            self.counts.stalled_bytes_compacted += moved as u64;
        }
    }

    /// Of what began at a time and is found complete now: whether it may be that it did not wait for the network, but for
    /// this thread. The first turn after it is the first to know, and the one between may have had much to do.
    fn turn_took_it(&self) -> impl Fn(Instant) -> bool + use<> {
        let (before, busy) = (self.turn_before, self.bulk_before > RECEIVES_FEW);
        move |began| busy && began >= before
    }

    /// The socket has room, or has failed, which the next send tells.
    pub(crate) fn on_link_polled(&mut self, control: &mut impl Control, key: Key) {
        let turn_took_it = self.turn_took_it();
        if let Some(io) = self.links.get_mut(key) {
            io.send_op = None;
            io.waited &= !turn_took_it(io.sent_at);
            self.flush_link(control, key);
        }
    }

    /// A send ended.
    pub(crate) fn on_link_sent(
        &mut self,
        control: &mut impl Control,
        key: Key,
        mut batch: SendBatch,
        result: std::io::Result<usize>,
    ) {
        let turn_took_it = self.turn_took_it();
        let Some(io) = self.links.get_mut(key) else { return };
        io.send_op = None;
        let compacting = std::mem::take(&mut io.compacting);
        let quiet = std::mem::take(&mut io.quiet);
        let result = match result {
            // The socket is full: the send waits for it now.
            Err(error) if quiet && error.kind() == std::io::ErrorKind::WouldBlock => Ok(0),
            // Cancelled by us before anything of it went.
            Err(error) if compacting && error.raw_os_error() == Some(ECANCELED) => Ok(0),
            result => result,
        };
        match result {
            Ok(sent) if sent < batch.bytes() => {
                batch.advance(sent);
                if compacting {
                    let pieces: Vec<Piece> = batch.drain().collect();
                    for piece in pieces {
                        self.counts.stalled_bytes_compacted += piece.len() as u64;
                        batch.push(Piece::copy_from(&piece, 0, 0));
                    }
                }
                io.send_op = Some(self.ring.send(&io.socket, batch, SendMode::WaitAll, key.to_bits()));
            }
            Ok(_) => {
                let waited = !turn_took_it(io.sent_at);
                let took = if quiet { Duration::ZERO } else { self.now.since(io.sent_at) };
                io.pace.sent(batch.bytes(), io.full, took, waited, self.now);
                drop(batch);
                if let Some(link) = io.live() {
                    link.set_fast(took < SEND_TIME || !waited);
                }
                self.flush_link(control, key);
            }
            Err(error) => self.end_link(control, key, Code::ConnectionLost, &error.to_string(), 0),
        }
    }
}

struct Builder<'a> {
    /// The batch ends with the frame that reaches it.
    bytes_max: usize,
    ring: &'a mut isthmus_ring::Ring,
    counts: &'a mut crate::Counts,
    batch: &'a mut SendBatch,
    /// Bytes of bridges that go out, and streams with nothing queued any more where some pause.
    freed: &'a mut Vec<(u64, usize)>,
    /// Streams of the link pause.
    paused: bool,
}

impl Builder<'_> {
    /// Fills the batch. Strictly in order: what is gathered goes before the next record of its own.
    fn build(mut self, io: &mut LinkIo) -> Result<(), isthmus_proto::record::RecordError> {
        if let Some(session) = &mut io.session
            && session.key_update_due()
        {
            session.write_key_update(false, &mut io.raw)?;
            self.counts.key_updates += 1;
        }
        if !io.raw.is_empty() {
            self.batch.push(Piece::copy_from(&io.raw, 0, 0));
            io.raw.clear();
        }
        let Some(session) = &mut io.session else { return Ok(()) };
        let tail = session.tail();
        let mut gather: Option<Piece> = None;
        while !io.greeting.is_empty() {
            let frames = io.greeting.take(PLAINTEXT_MAX);
            if frames.is_empty() {
                break;
            }
            let mut record = Piece::with_capacity(RECORD_HEADER, frames.len() + tail);
            record.append(frames.len()).copy_from_slice(frames);
            self.seal(session, record, tail)?;
        }
        io.greeting.clear();
        let Phase::Live(link) = &mut io.phase else { return Ok(()) };
        while self.batch.bytes() < self.bytes_max && self.batch.len() + 2 < BATCH_PIECES_MAX {
            let small = match link.transmit() {
                None => break,
                Some(Transmit::Control) => None,
                Some(Transmit::Frame { owner, frame, last }) => {
                    if Key::from_bits(owner).what() != What::Stream {
                        self.freed.push((owner, frame.len() - HEADER_LEN));
                    } else if last && self.paused {
                        self.freed.push((owner, 0));
                    }
                    if frame.len() > GATHER_MAX + HEADER_LEN {
                        if let Some(record) = gather.take() {
                            self.seal(session, record, tail)?;
                        }
                        let record = self.with_room(frame, tail);
                        self.seal(session, record, tail)?;
                        continue;
                    }
                    Some(frame)
                }
            };
            let need = small.as_ref().map_or(HEADER_LEN, Piece::len);
            if gather
                .as_ref()
                .is_some_and(|record| record.tailroom() < need + tail || record.len() + need > PLAINTEXT_MAX)
                && let Some(record) = gather.take()
            {
                self.seal(session, record, tail)?;
            }
            let record = match &mut gather {
                Some(record) => record,
                None => gather.insert(
                    self.ring.alloc_stream().unwrap_or_else(|| Piece::with_capacity(ROOM_BEFORE, PLAINTEXT_MAX)),
                ),
            };
            let room = (record.tailroom() - tail).min(PLAINTEXT_MAX - record.len());
            match small {
                Some(frame) => {
                    self.counts.frames_gathered += 1;
                    record.append(frame.len()).copy_from_slice(&frame);
                }
                None => {
                    let frames = link.control().take(room);
                    if frames.is_empty() {
                        // The next control frame needs a record of its own.
                        if let Some(record) = gather.take() {
                            if record.is_empty() {
                                let frames = link.control().take(PLAINTEXT_MAX);
                                let mut own = Piece::with_capacity(RECORD_HEADER, frames.len() + tail);
                                own.append(frames.len()).copy_from_slice(frames);
                                self.seal(session, own, tail)?;
                            } else {
                                self.seal(session, record, tail)?;
                            }
                        }
                        continue;
                    }
                    record.append(frames.len()).copy_from_slice(frames);
                }
            }
        }
        if let Some(record) = gather {
            self.seal(session, record, tail)?;
        }
        link.control().reclaim();
        Ok(())
    }

    fn seal(
        &mut self,
        session: &mut isthmus_proto::record::Session,
        mut record: Piece,
        tail: usize,
    ) -> Result<(), isthmus_proto::record::RecordError> {
        record.prepend(RECORD_HEADER);
        record.append(tail);
        session.seal(&mut record)?;
        self.counts.records_sealed += 1;
        self.batch.push(record);
        Ok(())
    }

    /// A frame from another record's middle has no room around it: it moves.
    fn with_room(&mut self, frame: Piece, tail: usize) -> Piece {
        if frame.headroom() >= RECORD_HEADER && frame.tailroom() >= tail {
            return frame;
        }
        self.counts.payloads_copied += 1;
        Piece::copy_from(&frame, ROOM_BEFORE, tail)
    }
}
