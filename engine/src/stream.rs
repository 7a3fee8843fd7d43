//! Plain TCP connections: a visitor's on the relay, a host's on the mediator. Each is one end of a port.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use isthmus_proto::Code;
use isthmus_proto::limits::{FRAME_PAYLOAD_MAX, GATHER_MAX, WINDOW_EARLY};
use isthmus_proto::link::Slot;
use isthmus_proto::record::{RECORD_HEADER, RECORD_TAIL};
use isthmus_proto::wire::{HEADER_LEN, write_data_header};
use isthmus_ring::{OpId, Piece, PollEvents, PoolConfig, SendBatch, SendMode, Socket};

use crate::Engine;
use crate::carried::Carried;
use crate::event::{Control, Event};
use crate::key::Key;
use crate::link::{LinkIo, Phase};
use crate::link_receive::ENOBUFS;
use crate::link_transmit::QUIET_MAX;
use crate::timers::TimerId;
use crate::turn::{INTERACTIVE_FOR, RATION_MIN};

/// When a silent plain connection is probed, how often, and how many lost probes end it.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(120);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(20);
const KEEPALIVE_COUNT: u32 = 6;

/// Between two looks at a half-closed connection.
const HALF_CLOSED_INTERVAL: Duration = Duration::from_secs(15);

/// What counts as a small message, or a few of them that came together.
const SMALL_MAX: usize = 4096;

/// What a stream may receive while its link's queue is long with others'. One that has so much is bulk; and it is more than
/// what counts as a small message at the other end.
const LITTLE_MAX: usize = 2 * GATHER_MAX;

/// Memory in which few bytes wait together.
const OWN_BYTES: usize = 4 * GATHER_MAX;

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

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Incoming {
    /// Nothing is armed: no connection yet, no credit, or the link's queue is long.
    Paused,
    Armed(OpId),
    /// Its end was reached and told.
    Ended,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outgoing {
    Open,
    /// Shut down after what is queued.
    Finishing,
    Finished,
}

pub(crate) struct Stream {
    socket: Socket,
    link: Key,
    slot: Slot,
    tag: u32,
    connecting: Option<OpId>,
    incoming: Incoming,
    /// The last receive brought a small message.
    small: bool,
    /// The last receive brought much at once.
    bulk: bool,
    /// It left something behind.
    more: bool,
    /// The limit of the last receive.
    limit: u32,
    /// The last receive left nothing behind.
    drained: bool,
    outgoing: Outgoing,
    queue: VecDeque<Piece>,
    queued: usize,
    /// Of them, the first ones are our own replies: no credit is given for them.
    replies: usize,
    send_op: Option<OpId>,
    /// The socket's buffer is full: waiting for room, with nothing of ours in the kernel's hands.
    stalled: Option<OpId>,
    dirty: bool,
    /// In its link's list of those that wait for a short queue.
    waiting: bool,
    /// In the list of those that wait for the next turns' rations.
    rationed: bool,
    /// Looks for the connection's failure once nothing is received any more.
    watch: Option<TimerId>,
    carried: Carried,
}

/// A stream and its other party.
#[derive(Clone, Copy, Debug)]
pub struct StreamParty {
    /// The stream.
    pub stream: Key,
    /// The link of its port.
    pub link: Key,
    /// Its port.
    pub slot: Slot,
    /// The number given with it.
    pub tag: u32,
    /// Its socket's other party.
    pub peer: SocketAddr,
}

/// What a guest leaves to the stream that it becomes.
pub(crate) struct Inherited {
    pub(crate) receive_op: Option<OpId>,
    pub(crate) ended: bool,
    pub(crate) send_op: Option<OpId>,
    /// Bytes of that send.
    pub(crate) sending: usize,
    /// To be sent after it.
    pub(crate) replies: Vec<u8>,
    /// To go to the port first.
    pub(crate) first: Vec<u8>,
}

impl Stream {
    /// Queues bytes. Few ones that have to wait (`waits`) join those before them, in memory of their own.
    fn push(&mut self, piece: Piece, waits: bool) {
        self.queued += piece.len();
        if !waits || piece.len() > GATHER_MAX {
            self.queue.push_back(piece);
            return;
        }
        match self.queue.back_mut() {
            Some(last) if !last.is_pooled() && last.tailroom() >= piece.len() => {
                last.append(piece.len()).copy_from_slice(&piece);
            }
            _ => {
                let mut own = Piece::with_capacity(0, OWN_BYTES);
                own.append(piece.len()).copy_from_slice(&piece);
                self.queue.push_back(own);
            }
        }
    }
}

/// A peer that vanished would hold its port for ever. Where it cannot be set, that is all that is lost.
pub(crate) fn set_keepalive(socket: &Socket) {
    let _ = socket.set_keepalive(KEEPALIVE_IDLE, KEEPALIVE_INTERVAL, KEEPALIVE_COUNT);
}

impl Engine {
    /// Joins a connected socket to a port, and begins to receive.
    pub fn add_stream(&mut self, socket: Socket, link: Key, slot: Slot, tag: u32) -> Key {
        set_keepalive(&socket);
        let key = self.insert_stream(socket, link, slot, tag);
        if let Some(link) = self.link(link) {
            link.set_owner(slot, key.to_bits());
        }
        self.receive_stream(key);
        key
    }

    /// Joins a socket that is to be connected to a port; [`Event::Connected`] tells the result. Bytes
    /// may come for it at once.
    pub fn connect_stream(&mut self, socket: Socket, to: SocketAddr, link: Key, slot: Slot, tag: u32) -> Key {
        let key = self.insert_stream(socket, link, slot, tag);
        if let Some(link) = self.link(link) {
            link.set_owner(slot, key.to_bits());
        }
        if let Some(stream) = self.streams.get_mut(key) {
            stream.connecting = Some(self.ring.connect(&stream.socket, to, key.to_bits()));
        }
        key
    }

    /// Bytes of our own, ahead of all that comes for a stream's socket: to be called in the turn that made the stream.
    pub fn send_ahead(&mut self, key: Key, bytes: &[u8]) {
        let Some(stream) = self.streams.get_mut(key) else { return };
        stream.replies += bytes.len();
        stream.queued += bytes.len();
        self.queued += bytes.len();
        stream.queue.push_back(Piece::copy_from(bytes, 0, 0));
        self.touch_stream(key);
    }

    fn insert_stream(&mut self, socket: Socket, link: Key, slot: Slot, tag: u32) -> Key {
        self.streams.insert(Stream {
            socket,
            link,
            slot,
            tag,
            connecting: None,
            incoming: Incoming::Paused,
            small: false,
            bulk: false,
            more: false,
            limit: 0,
            drained: false,
            outgoing: Outgoing::Open,
            queue: VecDeque::new(),
            queued: 0,
            replies: 0,
            send_op: None,
            stalled: None,
            dirty: false,
            waiting: false,
            rationed: false,
            watch: None,
            carried: Carried::default(),
        })
    }

    /// A guest's connection becomes a stream, with what is under way on it.
    pub(crate) fn inherit_stream(
        &mut self,
        socket: Socket,
        link_key: Key,
        slot: Slot,
        tag: u32,
        inherited: Inherited,
    ) -> Key {
        let key = self.insert_stream(socket, link_key, slot, tag);
        let now = self.now;
        let Inherited { receive_op, ended, send_op, sending, replies, first } = inherited;
        if let Some(stream) = self.streams.get_mut(key) {
            stream.send_op = send_op;
            stream.replies = sending + replies.len();
            stream.queued = stream.replies;
            self.queued += stream.queued;
            if !replies.is_empty() {
                stream.queue.push_back(Piece::copy_from(&replies, 0, 0));
            }
            if let Some(op) = receive_op {
                stream.incoming = Incoming::Armed(op);
            }
        }
        if let Some(link) = self.link(link_key) {
            link.set_owner(slot, key.to_bits());
            for bytes in first.chunks(FRAME_PAYLOAD_MAX) {
                let mut frame = Piece::copy_from(bytes, 2 * HEADER_LEN + RECORD_HEADER, RECORD_TAIL);
                if let Some(header) = frame.prepend(HEADER_LEN).first_chunk_mut() {
                    write_data_header(header, slot.id(), bytes.len() as u16);
                }
                link.enqueue(slot, frame, now);
            }
        }
        self.counts.stream_bytes_in += first.len() as u64;
        if let Some(stream) = self.streams.get_mut(key) {
            stream.carried.bytes_in += first.len() as u64;
        }
        self.touch(link_key);
        self.touch_stream(key);
        if ended {
            self.end_incoming(key);
        } else {
            self.receive_stream(key);
        }
        key
    }

    /// The stream's local address.
    pub fn stream_local_addr(&self, key: Key) -> Option<SocketAddr> {
        self.streams.get(key)?.socket.local_addr().ok()
    }

    /// The number given with a stream, its link and port, and the address of its other party, where that is known.
    pub fn stream_parties(&self) -> Vec<StreamParty> {
        let party = |key| {
            let stream = self.streams.get(key)?;
            Some(StreamParty {
                stream: key,
                link: stream.link,
                slot: stream.slot,
                tag: stream.tag,
                peer: stream.socket.peer_addr().ok()?,
            })
        };
        self.streams.keys().filter_map(party).collect()
    }

    /// Cuts a stream, from the control: RST to the socket's peer, and the other end of the port is told why.
    pub fn cut_stream(&mut self, control: &mut impl Control, key: Key, code: Code) {
        if let Some(stream) = self.streams.get(key) {
            // Where the socket is gone already there is nobody left to be told.
            let _ = stream.socket.set_reset_on_close();
            self.reset_stream(control, key, code);
        }
    }

    /// Gives up a connect that takes too long: [`Event::Connected`] will tell.
    pub fn cancel_connect(&mut self, key: Key) {
        if let Some(op) = self.streams.get(key).and_then(|stream| stream.connecting) {
            self.ring.cancel(op);
        }
    }

    pub(crate) fn on_stream_connected(&mut self, control: &mut impl Control, key: Key, result: std::io::Result<()>) {
        let Some(stream) = self.streams.get_mut(key) else { return };
        stream.connecting = None;
        set_keepalive(&stream.socket);
        let (link, slot) = (stream.link, stream.slot);
        let failed = result.is_err();
        if failed && let Some(stream) = self.streams.remove(key) {
            self.queued -= stream.queued;
            self.ring.close(stream.socket);
        }
        control.on_event(self, Event::Connected { stream: key, link, slot, result });
        if !failed {
            self.receive_stream(key);
            self.touch_stream(key);
        }
    }

    /// Arms the receive if the port has credit, and its link's queue is short or has no part in that.
    pub(crate) fn receive_stream(&mut self, key: Key) {
        self.arm_stream(key, Turn::Usual);
    }

    pub(crate) fn arm_stream(&mut self, key: Key, turn: Turn) {
        let receive_max = self.stream_share();
        let Some(stream) = self.streams.get_mut(key) else { return };
        if stream.incoming != Incoming::Paused || stream.connecting.is_some() {
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
        if stream.bulk && !stream.drained {
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
    fn end_incoming(&mut self, key: Key) {
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

    /// Bytes from the link for the stream's socket; they go out at the turn's end.
    pub(crate) fn write_stream(&mut self, key: Key, piece: Piece) {
        let Some(stream) = self.streams.get_mut(key) else { return };
        self.queued += piece.len();
        let waits = stream.send_op.is_some() || stream.stalled.is_some() || stream.connecting.is_some();
        stream.push(piece, waits);
        self.touch_stream(key);
    }

    fn touch_stream(&mut self, key: Key) {
        if let Some(stream) = self.streams.get_mut(key)
            && !stream.dirty
        {
            stream.dirty = true;
            self.dirty.streams.push(key);
        }
    }

    /// The link's end of the stream: shut down after what is queued.
    pub(crate) fn finish_stream(&mut self, control: &mut impl Control, key: Key) {
        if let Some(stream) = self.streams.get_mut(key) {
            if stream.outgoing == Outgoing::Open {
                stream.outgoing = Outgoing::Finishing;
            }
            self.flush_stream(control, key);
        }
    }

    /// Sends what is queued, unless a send is in flight or the socket is full.
    pub(crate) fn flush_stream(&mut self, control: &mut impl Control, key: Key) {
        let Some(stream) = self.streams.get_mut(key) else { return };
        stream.dirty = false;
        if let Some(op) = stream.send_op {
            if !stream.queue.is_empty() || stream.outgoing == Outgoing::Finishing {
                self.ring.attend(op);
            }
            return;
        }
        if stream.stalled.is_some() || stream.connecting.is_some() {
            return;
        }
        if stream.queue.is_empty() {
            if stream.outgoing == Outgoing::Finishing {
                stream.outgoing = Outgoing::Finished;
                // An error here is the connection's end, which the receive tells.
                let _ = stream.socket.shutdown_write();
                self.end_stream_if_over(control, key);
            }
            return;
        }
        let mut batch = self.ring.send_batch();
        while !batch.is_full()
            && let Some(piece) = stream.queue.pop_front()
        {
            batch.push(piece);
        }
        // Of what its other end may still send, a send that nothing waits for would tell too late.
        let quiet = batch.bytes() <= QUIET_MAX
            && stream.queue.is_empty()
            && stream.outgoing == Outgoing::Open
            && self
                .links
                .get_mut(stream.link)
                .and_then(LinkIo::live)
                .is_some_and(|link| link.has_credit_left(stream.slot));
        stream.send_op = Some(match quiet {
            true => self.ring.send_quietly(&stream.socket, batch, key.to_bits()),
            false => self.ring.send(&stream.socket, batch, SendMode::TryNow, key.to_bits()),
        });
    }

    pub(crate) fn on_stream_sent(
        &mut self,
        control: &mut impl Control,
        key: Key,
        mut batch: SendBatch,
        result: std::io::Result<usize>,
    ) {
        let Some(stream) = self.streams.get_mut(key) else { return };
        stream.send_op = None;
        let sent = match result {
            Ok(sent) => sent,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => 0,
            Err(_) => return self.reset_stream(control, key, Code::Reset),
        };
        let short = sent < batch.bytes();
        if short {
            batch.advance(sent);
            for piece in batch.drain().rev() {
                stream.queue.push_front(piece);
            }
            stream.stalled = Some(self.ring.poll(&stream.socket, PollEvents::WRITABLE, key.to_bits()));
        }
        drop(batch);
        stream.queued -= sent;
        self.queued -= sent;
        let own = sent.min(stream.replies);
        stream.replies -= own;
        stream.carried.bytes_out += (sent - own) as u64;
        let (link_key, slot) = (stream.link, stream.slot);
        if !short && stream.queue.is_empty() && stream.queue.capacity() > 256 {
            stream.queue = VecDeque::new();
        }
        self.counts.stream_bytes_out += sent as u64;
        let now = self.now;
        if let Some(link) = self.link(link_key) {
            link.consumed(slot, sent - own, now);
            if link.wants_to_send() {
                self.touch(link_key);
            }
        }
        if !short {
            self.flush_stream(control, key);
        }
    }

    /// The socket has room again, or has failed.
    pub(crate) fn on_stream_polled(
        &mut self,
        control: &mut impl Control,
        key: Key,
        result: std::io::Result<PollEvents>,
    ) {
        let Some(stream) = self.streams.get_mut(key) else { return };
        if result.is_ok() {
            // Of a failure the send tells.
            stream.stalled = None;
            self.flush_stream(control, key);
        }
    }

    /// A half-closed connection has nothing armed that would tell of a reset, or of a peer that
    /// keepalive found gone, and a poll for just those is ready at once: so it is looked at now and then.
    pub(crate) fn on_stream_timer(&mut self, control: &mut impl Control, key: Key) {
        let Some(stream) = self.streams.get_mut(key) else { return };
        if let Ok(None) = stream.socket.take_error() {
            if let Some(timer) = stream.watch {
                self.timers.set(timer, self.now + HALF_CLOSED_INTERVAL);
            }
            return;
        }
        self.reset_stream(control, key, Code::Reset);
    }

    /// The socket failed: the other end of the port is told.
    fn reset_stream(&mut self, control: &mut impl Control, key: Key, code: Code) {
        let Some(stream) = self.streams.get(key) else { return };
        let (link_key, slot) = (stream.link, stream.slot);
        if let Some(link) = self.link(link_key) {
            link.reset(slot, code);
            self.touch(link_key);
        }
        self.remove_stream(control, key, code);
    }

    /// The port was cut: the socket's peer sees RST, never an orderly end.
    pub(crate) fn abort_stream(&mut self, control: &mut impl Control, key: Key, code: Code) {
        if let Some(stream) = self.streams.get(key) {
            // Where the socket is gone already there is nobody left to be told.
            let _ = stream.socket.set_reset_on_close();
            self.remove_stream(control, key, code);
        }
    }

    /// Ends a stream and its port, from the control: RST to the socket's peer; the link is not told.
    pub fn drop_stream(&mut self, control: &mut impl Control, key: Key, code: Code) {
        self.abort_stream(control, key, code);
    }

    /// Ends a stream and its port, from the control: RST to both ends.
    pub fn end_stream(&mut self, control: &mut impl Control, key: Key, code: Code) {
        if let Some(stream) = self.streams.get(key) {
            // Where the socket is gone already there is nobody left to be told.
            let _ = stream.socket.set_reset_on_close();
            self.reset_stream(control, key, code);
        }
    }

    /// The streams that were given this number. It looks at all streams: for what an operator asks, not for traffic.
    pub fn streams_of(&self, tag: u32) -> Vec<Key> {
        let has_tag = |key: &Key| self.streams.get(*key).is_some_and(|stream| stream.tag == tag);
        self.streams.keys().filter(has_tag).collect()
    }

    fn end_stream_if_over(&mut self, control: &mut impl Control, key: Key) {
        let over = self.streams.get(key).is_some_and(|stream| {
            stream.incoming == Incoming::Ended && stream.outgoing == Outgoing::Finished && stream.queue.is_empty()
        });
        if over {
            self.remove_stream(control, key, Code::Closed);
        }
    }

    fn remove_stream(&mut self, control: &mut impl Control, key: Key, code: Code) {
        let Some(stream) = self.streams.remove(key) else { return };
        self.queued -= stream.queued;
        let armed = match stream.incoming {
            Incoming::Armed(op) => Some(op),
            Incoming::Paused | Incoming::Ended => None,
        };
        for op in [armed, stream.send_op, stream.stalled, stream.connecting].into_iter().flatten() {
            self.ring.cancel(op);
        }
        if let Some(timer) = stream.watch {
            self.timers.remove(timer);
        }
        let (tag, carried) = (stream.tag, stream.carried);
        self.ring.close(stream.socket);
        control.on_event(self, Event::StreamEnded { stream: key, tag, code, carried });
    }

    /// Moves what stalled sockets hold of the shared receive buffers into memory of its own size.
    /// Only when the buffers run out: credit bounds how much that can be.
    pub(crate) fn compact_stalled(&mut self) {
        let keys: Vec<Key> = self.streams.keys().collect();
        for key in keys {
            let Some(stream) = self.streams.get_mut(key) else { continue };
            if stream.stalled.is_none() && stream.connecting.is_none() {
                continue;
            }
            for piece in &mut stream.queue {
                if piece.is_pooled() {
                    self.counts.stalled_bytes_compacted += piece.len() as u64;
                    *piece = Piece::copy_from(piece, 0, 0);
                }
            }
        }
    }
}
