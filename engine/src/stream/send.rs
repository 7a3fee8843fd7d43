//! From a port to its plain connection.

use std::collections::VecDeque;

use isthmus_proto::Code;
use isthmus_proto::limits::GATHER_MAX;
use isthmus_ring::{Piece, PollEvents, Ring, SendBatch, SendMode};

use super::{Connecting, Incoming, Outgoing, Stream};
use crate::Engine;
use crate::event::Control;
use crate::key::Key;
use crate::link::LinkIo;
use crate::link_transmit::QUIET_MAX;

/// Memory in which few bytes wait together.
const OWN_BYTES: usize = 4 * GATHER_MAX;

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

impl Stream {
    /// What is queued, as far as one send takes it.
    pub(super) fn batch(&mut self, ring: &Ring) -> SendBatch {
        let mut batch = ring.send_batch();
        while !batch.is_full()
            && let Some(piece) = self.queue.pop_front()
        {
            batch.push(piece);
        }
        batch
    }
}

impl Engine {
    /// Bytes from the link for the stream's socket; they go out at the turn's end.
    pub(crate) fn write_stream(&mut self, key: Key, piece: Piece) {
        let Some(stream) = self.streams.get_mut(key) else { return };
        self.queued += piece.len();
        let waits =
            stream.send_op.is_some() || stream.stalled.is_some() || matches!(stream.connecting, Connecting::Begun(_));
        stream.push(piece, waits);
        self.touch_stream(key);
    }

    pub(super) fn touch_stream(&mut self, key: Key) {
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
        self.begin_connect(control, key);
        let Some(stream) = self.streams.get_mut(key) else { return };
        stream.dirty = false;
        if let Some(op) = stream.send_op {
            if !stream.queue.is_empty() || stream.outgoing == Outgoing::Finishing {
                self.ring.attend(op);
            }
            return;
        }
        if stream.stalled.is_some() || stream.connecting != Connecting::Done {
            return;
        }
        if stream.queue.is_empty() {
            if stream.outgoing == Outgoing::Finishing {
                stream.outgoing = Outgoing::Finished;
                if stream.incoming == Incoming::Ended {
                    // Closing tells the peer.
                    self.remove_stream(control, key, Code::Closed);
                } else {
                    self.dirty.finished.push(key);
                }
            }
            return;
        }
        let batch = stream.batch(&self.ring);
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

    /// The ends of streams: after the turn's sends have been submitted, where little goes on. Each is a packet, and the way that
    /// it takes.
    pub(crate) fn finish_streams(&mut self) {
        for key in self.dirty.finished.drain(..) {
            if let Some(stream) = self.streams.get(key) {
                // An error here is the connection's end, which the receive tells.
                let _ = stream.socket.shutdown_write();
            }
        }
    }

    pub(crate) fn on_stream_sent(
        &mut self,
        control: &mut impl Control,
        key: Key,
        mut batch: SendBatch,
        result: std::io::Result<usize>,
    ) {
        let Some(stream) = self.streams.get_mut(key) else { return self.close_linked(key) };
        stream.send_op = None;
        stream.linked = false;
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
    pub(crate) fn on_stream_polled(&mut self, control: &mut impl Control, key: Key) {
        let Some(stream) = self.streams.get_mut(key) else { return };
        // Of a failure the send tells.
        stream.stalled = None;
        self.flush_stream(control, key);
    }

    /// Moves what stalled sockets hold of the shared receive buffers into memory of its own size.
    /// Only when the buffers run out: credit bounds how much that can be.
    pub(crate) fn compact_stalled(&mut self) {
        let keys: Vec<Key> = self.streams.keys().collect();
        for key in keys {
            let Some(stream) = self.streams.get_mut(key) else { continue };
            if stream.stalled.is_none() && stream.connecting == Connecting::Done {
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
