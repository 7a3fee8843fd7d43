//! Plain TCP connections: a visitor's on the relay, a host's on the mediator. Each is one end of a port.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use isthmus_proto::Code;
use isthmus_proto::limits::FRAME_PAYLOAD_MAX;
use isthmus_proto::link::Slot;
use isthmus_proto::record::{RECORD_HEADER, RECORD_TAIL};
use isthmus_proto::wire::{HEADER_LEN, write_data_header};
use isthmus_ring::{OpId, Piece, Socket};

use crate::Engine;
use crate::carried::Carried;
use crate::event::{Control, Event};
use crate::key::Key;
use crate::timers::TimerId;

mod connect;
mod receive;
mod send;
mod young;

use connect::Connecting;
pub(crate) use receive::Turn;
pub(crate) use young::{Young, probe};

/// Between two looks at a half-closed connection.
const HALF_CLOSED_INTERVAL: Duration = Duration::from_secs(15);

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
    connecting: Connecting,
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
    /// That send follows the connect by itself: it may not have begun yet, and looks the socket up by its number when it does.
    linked: bool,
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
    fn armed(&self) -> Option<OpId> {
        match self.incoming {
            Incoming::Armed(op) => Some(op),
            Incoming::Paused | Incoming::Ended => None,
        }
    }

    fn connect_op(&self) -> Option<OpId> {
        match self.connecting {
            Connecting::Begun(op) => Some(op),
            Connecting::Due(_) | Connecting::GivenUp | Connecting::Done => None,
        }
    }
}

impl Engine {
    /// Joins a connected socket to a port, and begins to receive.
    pub fn add_stream(&mut self, socket: Socket, link: Key, slot: Slot, tag: u32) -> Key {
        let key = self.insert_stream(socket, link, slot, tag);
        if let Some(link) = self.link(link) {
            link.set_owner(slot, key.to_bits());
        }
        self.receive_stream(key);
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
        let key = self.streams.insert(Stream {
            socket,
            link,
            slot,
            tag,
            connecting: Connecting::Done,
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
            linked: false,
            stalled: None,
            dirty: false,
            waiting: false,
            rationed: false,
            watch: None,
            carried: Carried::default(),
        });
        self.young.add(key, self.now);
        key
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
            if stream.linked {
                // First bytes that follow by themselves find no way any more, at the price of an end before the reset.
                let _ = stream.socket.shutdown_both();
            }
            self.reset_stream(control, key, code);
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
        let (tag, carried) = (stream.tag, stream.carried);
        self.release(key, stream);
        control.on_event(self, Event::StreamEnded { stream: key, tag, code, carried });
    }
}
