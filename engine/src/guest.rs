//! Guests: plain TCP connections whose first bytes the control reads itself, to learn which port they are for.
//! A guest that is admitted becomes that port's stream, and costs nothing from then on that another stream does not.
//!
//! What a guest sends is copied, as far as the control has to read it. Nothing is lent while nothing comes: a guest
//! that is silent holds its entry, and no buffer.

mod moved;

use std::time::Duration;

use isthmus_proto::Code;
use isthmus_proto::link::Slot;
use isthmus_ring::{OpId, Piece, SendBatch, SendMode, Socket};

use crate::Engine;
use crate::event::{Control, Event};
use crate::key::Key;
use crate::link_receive::ENOBUFS;
use crate::stream::{Inherited, probe};
use crate::timers::TimerId;

pub use moved::TakenGuest;

/// What a guest may have sent beyond what was consumed; receiving pauses there. One receive, of at most 4 KiB,
/// may go beyond.
pub const GUEST_BYTES_MAX: usize = 16 * 1024;

/// Bytes of replies that may wait for a guest to read them; one that makes us queue more is cut off.
pub const GUEST_REPLIES_MAX: usize = 16 * 1024;

/// A dismissed guest may read its last reply for so long, and may still send so many bytes: closing at once would cut
/// the reply off where bytes of the guest are unread.
const LINGER: Duration = Duration::from_secs(2);
const LINGER_BYTES_MAX: usize = 256 * 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The control reads.
    Waiting,
    /// The last reply is on its way, or has been sent: then whatever comes is discarded, up to so many bytes.
    Leaving { discarded: usize },
    /// It is that stream now. What was under way then completes here, for the stream.
    Moved(Key),
}

pub(crate) struct Guest {
    /// `None` once it is a stream's.
    socket: Option<Socket>,
    tag: u32,
    phase: Phase,
    timer: Option<TimerId>,
    received: Vec<u8>,
    receive_op: Option<OpId>,
    /// Its end of stream has come.
    ended: bool,
    /// What waits for the send that is in flight.
    replies: Vec<u8>,
    send_op: Option<OpId>,
    /// Bytes of that send.
    sending: usize,
}

impl Engine {
    /// Takes a connection, and tells what comes as [`Event::GuestBytes`]. After `timeout` without
    /// [`Engine::admit`], [`Engine::dismiss`] or [`Engine::set_guest_timeout`], it is closed.
    pub fn add_guest(&mut self, socket: Socket, tag: u32, timeout: Duration) -> Key {
        let key = self.guests.insert(Guest {
            socket: Some(socket),
            tag,
            phase: Phase::Waiting,
            timer: None,
            received: Vec::new(),
            receive_op: None,
            ended: false,
            replies: Vec::new(),
            send_op: None,
            sending: 0,
        });
        self.set_guest_timeout(key, Some(timeout));
        self.receive_guest(key);
        key
    }

    /// Guests that wait or leave.
    pub fn guests(&self) -> usize {
        self.guests.len()
    }

    /// Sets the time within which a guest has to be admitted or dismissed, from now; `None` for no bound.
    pub fn set_guest_timeout(&mut self, key: Key, timeout: Option<Duration>) {
        let now = self.now;
        let Some(guest) = self.guests.get_mut(key) else { return };
        match (timeout, guest.timer) {
            (None, timer) => {
                // It may stay for as long as its peer does.
                guest.socket.as_ref().inspect(|socket| probe(socket));
                if let Some(timer) = timer {
                    guest.timer = None;
                    self.timers.remove(timer);
                }
            }
            (Some(timeout), timer) => {
                let timer = timer.unwrap_or_else(|| self.timers.add(key));
                guest.timer = Some(timer);
                self.timers.set(timer, now + timeout);
            }
        }
    }

    /// What a guest has sent and was not consumed.
    pub fn guest_bytes(&self, key: Key) -> &[u8] {
        self.guests.get(key).map_or(&[], |guest| &guest.received)
    }

    /// The control has read the first `count` bytes and needs them no more.
    pub fn consume_guest(&mut self, key: Key, count: usize) {
        if let Some(guest) = self.guests.get_mut(key) {
            guest.received.drain(..count.min(guest.received.len()));
            self.receive_guest(key);
        }
    }

    /// The address that a guest connected to.
    pub fn guest_local_addr(&self, key: Key) -> Option<std::net::SocketAddr> {
        let addr = self.guests.get(key)?.socket.as_ref()?.local_addr().ok()?;
        Some(crate::udp::canonical(addr))
    }

    /// Sends bytes to a guest, after those before. `false`: too much waits already, and nothing was added.
    pub fn reply_guest(&mut self, key: Key, bytes: &[u8]) -> bool {
        let Some(guest) = self.guests.get_mut(key) else { return false };
        if guest.phase != Phase::Waiting || guest.replies.len() + bytes.len() > GUEST_REPLIES_MAX {
            return false;
        }
        guest.replies.extend_from_slice(bytes);
        self.send_guest(key);
        true
    }

    /// Lets a guest in: it becomes the stream of the port `slot`, and the key of that comes back. `ahead` goes to the
    /// mediator first, then what the guest has sent beyond the first `consumed` bytes; replies that wait go to the
    /// guest before anything of the mediator's. `None`: there is no such guest (any more).
    pub fn admit(&mut self, key: Key, link: Key, slot: Slot, tag: u32, consumed: usize, ahead: &[u8]) -> Option<Key> {
        let guest = self.guests.get_mut(key).filter(|guest| guest.phase == Phase::Waiting)?;
        let socket = guest.socket.take()?;
        if let Some(timer) = guest.timer.take() {
            self.timers.remove(timer);
        }
        let received = std::mem::take(&mut guest.received);
        let mut first = ahead.to_vec();
        first.extend_from_slice(&received[consumed.min(received.len())..]);
        let inherited = Inherited {
            receive_op: guest.receive_op,
            ended: guest.ended,
            send_op: guest.send_op,
            sending: guest.sending,
            replies: std::mem::take(&mut guest.replies),
            first,
        };
        let under_way = guest.receive_op.is_some() || guest.send_op.is_some();
        let stream = self.inherit_stream(socket, link, slot, tag, inherited);
        match self.guests.get_mut(key) {
            Some(guest) if under_way => guest.phase = Phase::Moved(stream),
            _ => {
                self.guests.remove(key);
            }
        }
        Some(stream)
    }

    /// Sends a guest away: with `last` and an orderly end after it, or (`reset`) with RST at once, as well where too
    /// many are leaving already. The control hears no more of it.
    pub fn dismiss(&mut self, key: Key, last: &[u8], reset: bool) {
        let Some(guest) = self.guests.get_mut(key).filter(|guest| guest.phase == Phase::Waiting) else { return };
        let full = self.guests_leaving >= self.config.leaving_max;
        if reset || full {
            self.counts.guests_cut += u64::from(!reset);
            // Where the socket is gone already there is nobody left to be told.
            let _ = guest.socket.as_ref().map(Socket::set_reset_on_close);
            self.remove_guest(key);
            return;
        }
        self.guests_leaving += 1;
        guest.phase = Phase::Leaving { discarded: guest.received.len() };
        guest.received = Vec::new();
        guest.replies.extend_from_slice(last);
        self.set_guest_timeout(key, Some(LINGER));
        self.send_guest(key);
        self.receive_guest(key);
    }

    /// Arms the receive, unless it is, or the bound is reached, or the end came.
    pub(crate) fn receive_guest(&mut self, key: Key) {
        let Some(guest) = self.guests.get_mut(key) else { return };
        let Some(socket) = &guest.socket else { return };
        if guest.receive_op.is_none() && !guest.ended && guest.received.len() < GUEST_BYTES_MAX {
            guest.receive_op = Some(self.ring.recv_small(socket, false, key.to_bits()));
        }
    }

    pub(crate) fn on_guest_received(
        &mut self,
        control: &mut impl Control,
        key: Key,
        result: std::io::Result<usize>,
        nonempty: bool,
    ) {
        let Some(guest) = self.guests.get_mut(key) else { return };
        guest.receive_op = None;
        if let Phase::Moved(stream) = guest.phase {
            self.forget_moved(key);
            return self.on_stream_received(control, stream, result, nonempty);
        }
        match result {
            Err(error) if error.raw_os_error() == Some(ENOBUFS) => {
                self.counts.buffers_exhausted += 1;
                self.dirty.starved.push(key);
                return;
            }
            Err(_) => return self.end_guest(control, key, Code::Reset),
            Ok(0) => guest.ended = true,
            Ok(_) => {
                let pieces = self.received.drain(..);
                match &mut guest.phase {
                    Phase::Leaving { discarded } => *discarded += pieces.map(|piece| piece.len()).sum::<usize>(),
                    Phase::Waiting | Phase::Moved(_) => {
                        pieces.for_each(|piece| guest.received.extend_from_slice(&piece))
                    }
                }
            }
        }
        match guest.phase {
            Phase::Leaving { discarded } => {
                let sent = guest.send_op.is_none() && guest.replies.is_empty();
                if discarded > LINGER_BYTES_MAX || guest.ended && sent {
                    return self.remove_guest(key);
                }
            }
            Phase::Waiting | Phase::Moved(_) => {
                let (tag, ended) = (guest.tag, guest.ended);
                control.on_event(self, Event::GuestBytes { guest: key, tag, ended });
            }
        }
        self.receive_guest(key);
    }

    fn send_guest(&mut self, key: Key) {
        let Some(guest) = self.guests.get_mut(key) else { return };
        let Some(socket) = &guest.socket else { return };
        if guest.send_op.is_some() {
            return;
        }
        if guest.replies.is_empty() {
            if let Phase::Leaving { .. } = guest.phase {
                // An error here is the connection's end, which the receive tells.
                let _ = socket.shutdown_write();
                if guest.ended {
                    self.remove_guest(key);
                }
            }
            return;
        }
        let mut batch = self.ring.send_batch();
        batch.push(Piece::copy_from(&std::mem::take(&mut guest.replies), 0, 0));
        guest.sending = batch.bytes();
        guest.send_op = Some(self.ring.send(socket, batch, SendMode::WaitAll, key.to_bits()));
    }

    pub(crate) fn on_guest_sent(
        &mut self,
        control: &mut impl Control,
        key: Key,
        batch: SendBatch,
        result: std::io::Result<usize>,
    ) {
        let Some(guest) = self.guests.get_mut(key) else { return };
        guest.send_op = None;
        if let Phase::Moved(stream) = guest.phase {
            self.forget_moved(key);
            return self.on_stream_sent(control, stream, batch, result);
        }
        match result {
            Ok(sent) if sent == batch.bytes() => self.send_guest(key),
            Ok(_) | Err(_) => self.end_guest(control, key, Code::Reset),
        }
    }

    /// The time to be admitted, or to read the last reply, is over.
    pub(crate) fn on_guest_timer(&mut self, control: &mut impl Control, key: Key) {
        self.end_guest(control, key, Code::TimedOut);
    }

    fn end_guest(&mut self, control: &mut impl Control, key: Key, code: Code) {
        let Some(guest) = self.guests.get(key) else { return };
        let (tag, waiting) = (guest.tag, guest.phase == Phase::Waiting);
        self.remove_guest(key);
        if waiting {
            control.on_event(self, Event::GuestEnded { guest: key, tag, code });
        }
    }

    fn remove_guest(&mut self, key: Key) {
        let Some(guest) = self.guests.remove(key) else { return };
        self.guests_leaving -= usize::from(matches!(guest.phase, Phase::Leaving { .. }));
        for op in [guest.receive_op, guest.send_op].into_iter().flatten() {
            self.ring.cancel(op);
        }
        if let Some(timer) = guest.timer {
            self.timers.remove(timer);
        }
        if let Some(socket) = guest.socket {
            self.ring.close(socket);
        }
    }

    fn forget_moved(&mut self, key: Key) {
        if self.guests.get(key).is_some_and(|guest| guest.receive_op.is_none() && guest.send_op.is_none()) {
            self.guests.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use isthmus_ring::{Family, Ring, RingConfig};
    use socket2::SockRef;

    use super::*;
    use crate::EngineConfig;

    #[test]
    fn guest_that_may_stay_is_probed() {
        let mut engine = Engine::new(Ring::new(RingConfig::small()).unwrap(), EngineConfig::default());
        let key = engine.add_guest(Socket::tcp(Family::V4).unwrap(), 0, Duration::from_secs(1));
        let probed = |engine: &Engine| {
            let guest = engine.guests.get(key).unwrap();
            SockRef::from(guest.socket.as_ref().unwrap()).keepalive().unwrap()
        };
        assert!(!probed(&engine));
        engine.set_guest_timeout(key, Some(Duration::from_secs(2)));
        assert!(!probed(&engine));
        engine.set_guest_timeout(key, None);
        assert!(probed(&engine));
    }
}
