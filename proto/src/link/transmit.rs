//! What is sent next: control first, then ports with little, then the others in turn.

use super::port::{Listed, Outgoing, Slot};
use super::{Link, PortKind};
use crate::code::Code;
use crate::limits::{
    CONTROL_QUEUE_MAX, DATAGRAM_MAX, DATAGRAM_QUEUE_MAX, EGRESS_HIGH, EGRESS_LOW, GATHER_MAX, LINK_DATAGRAM_QUEUE_MAX,
};
use crate::time::Instant;
use crate::wire::{ADDR_LEN, ControlBuf, Frame, HEADER_LEN};

/// Bytes that a port with much to send may send before the next one, where the network is slow: two frames.
pub(super) const QUANTUM: i64 = 32 * 1024;

/// The same where it is fast. The far end sends on what comes for a port together: the more of it, the fewer
/// and larger its packets.
pub(super) const QUANTUM_FAST: i64 = 256 * 1024;

/// Most frame bytes of one datagram: its payload in parts, each with its header, the first with an address.
const PARTS_BYTES_MAX: usize = DATAGRAM_MAX + 8 * (HEADER_LEN + ADDR_LEN);

/// A queued piece: the driver's handle of one whole encoded frame.
pub trait Payload: 'static {
    /// Bytes of the frame, header included.
    fn len(&self) -> usize;

    /// Whether there are none; never true of a frame.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<B: std::ops::Deref<Target = [u8]> + 'static> Payload for B {
    fn len(&self) -> usize {
        self.deref().len()
    }
}

/// What to put next into a record.
#[derive(Debug, PartialEq, Eq)]
pub enum Transmit<P> {
    /// Encoded control frames wait in [`Link::control`]: take some.
    Control,
    /// One frame of a port. The frames of one call after another keep their order on the wire.
    Frame {
        /// The port's owner.
        owner: u64,
        /// The whole encoded frame.
        frame: P,
        /// Nothing of the port waits any more.
        last: bool,
    },
}

impl<P: Payload> Link<P> {
    /// The control frames that wait.
    pub fn control(&mut self) -> &mut ControlBuf {
        &mut self.control
    }

    /// Frame bytes that wait in ports.
    pub fn queued(&self) -> usize {
        self.queued
    }

    /// Whether sources should pause. What waits for another port's credit does not count: a host that
    /// does not read stops its own port only.
    pub fn is_congested(&self) -> bool {
        self.ready >= EGRESS_HIGH
    }

    /// Whether so little of a port waits that nothing of the others goes before it.
    pub fn has_little_queued(&self, slot: Slot) -> bool {
        self.ports.get(slot).is_some_and(|port| port.queued <= GATHER_MAX)
    }

    /// Whether paused sources may go on.
    pub fn is_relaxed(&self) -> bool {
        self.ready <= EGRESS_LOW
    }

    /// Every queued piece, for the driver to move them to other memory. Their lengths must stay.
    pub fn queued_mut(&mut self) -> impl Iterator<Item = &mut P> {
        self.ports.iter_mut().flat_map(|port| port.queue.iter_mut())
    }

    /// Whether [`Link::transmit`] would give something.
    pub fn wants_to_send(&self) -> bool {
        !self.control.is_empty() || !self.fast.is_empty() || !self.bulk.is_empty()
    }

    /// Queues a whole data frame (header written) of a stream. After [`Link::finish`], or when the
    /// port is gone, it is dropped and `false` comes back.
    pub fn enqueue(&mut self, slot: Slot, frame: P, now: Instant) -> bool {
        self.stats.last_payload = now;
        let Some(port) = self.ports.get_mut(slot) else { return false };
        if port.outgoing != Outgoing::Open || port.closing.is_some() {
            return false;
        }
        port.queued += frame.len();
        self.queued += frame.len();
        if port.is_ready() {
            self.ready += frame.len();
        }
        port.queue.push_back(frame);
        self.list(slot);
        true
    }

    /// Queues the whole frames of one datagram for the TCP channel; drops and counts it when too much waits.
    pub fn enqueue_datagram(&mut self, slot: Slot, parts: impl Iterator<Item = P>, now: Instant) -> bool {
        let mut parts = parts.peekable();
        let mut first = true;
        while let Some(part) = parts.next() {
            if !self.enqueue_part(slot, first, parts.peek().is_some(), part, now) {
                return false;
            }
            first = false;
        }
        true
    }

    /// Queues a frame with a datagram's `first` part, or with one that follows it, for the TCP channel.
    /// A datagram is dropped, and counted, when too much waits on its port or on the link; parts whose
    /// first one was dropped, or which make more than a datagram can have, are dropped as well.
    pub fn enqueue_part(&mut self, slot: Slot, first: bool, more: bool, frame: P, now: Instant) -> bool {
        let crowded = self.queued > LINK_DATAGRAM_QUEUE_MAX;
        let Some(port) = self.ports.get_mut(slot) else { return false };
        if first {
            port.part_room = 0;
            if port.closing.is_some() || crowded || port.queued > DATAGRAM_QUEUE_MAX {
                self.stats.datagrams_dropped += 1;
                return false;
            }
            port.part_room = PARTS_BYTES_MAX;
        }
        let room = port.part_room.checked_sub(frame.len());
        port.part_room = room.filter(|_| more).unwrap_or(0);
        room.is_some() && self.enqueue(slot, frame, now)
    }

    /// No more bytes come from this stream's source: FIN after what is queued.
    pub fn finish(&mut self, slot: Slot) {
        let Some(port) = self.ports.get_mut(slot) else { return };
        if port.outgoing == Outgoing::Open && port.closing.is_none() {
            port.outgoing = Outgoing::Finishing;
            self.send_fin_if_drained(slot);
        }
    }

    /// Cuts a stream: what is queued is dropped, the other end learns why, the port is gone.
    pub fn reset(&mut self, slot: Slot, code: Code) {
        if let Some(port) = self.ports.get(slot) {
            self.control.push(&Frame::Reset { port: port.id, code });
            self.forget(slot);
        }
    }

    /// Whether anything came on a stream: its bytes or its end.
    pub fn has_received(&self, slot: Slot) -> bool {
        self.ports.get(slot).is_some_and(|port| port.received > 0 || port.fin_received)
    }

    /// Drops a port without a word, as when the other end knows already.
    pub(super) fn forget(&mut self, slot: Slot) -> Option<u64> {
        let port = self.ports.remove(slot)?;
        self.queued -= port.queued;
        self.end_window(&port);
        if port.is_ready() {
            self.ready -= port.queued;
        }
        match port.listed {
            Listed::No => {}
            Listed::Fast => self.fast.retain(|&index| index != slot.index()),
            Listed::Bulk => {
                let its_turn = self.bulk.front() == Some(&slot.index());
                self.bulk.retain(|&index| index != slot.index());
                if its_turn {
                    self.begin_turn();
                }
            }
        }
        Some(port.owner)
    }

    /// Puts a port that can send into its list.
    pub(super) fn list(&mut self, slot: Slot) {
        let Some(port) = self.ports.get_mut(slot) else { return };
        if port.listed != Listed::No || !port.can_send() {
            return;
        }
        if port.queued <= GATHER_MAX {
            port.listed = Listed::Fast;
            self.fast.push_back(slot.index());
        } else {
            port.listed = Listed::Bulk;
            self.bulk.push_back(slot.index());
        }
        if port.is_ready() {
            self.ready += port.queued;
        }
    }

    /// A port that cannot send for now leaves its list.
    fn unlist(&mut self, index: u32) {
        let Some(port) = self.ports.at(index) else { return };
        if port.is_ready() {
            self.ready -= port.queued;
        }
        port.listed = Listed::No;
    }

    /// Whether the network takes at once what is given to it: then each port's turn is longer.
    pub fn set_fast(&mut self, fast: bool) {
        self.quantum = if fast { QUANTUM_FAST } else { QUANTUM };
    }

    /// The next thing to send. `None`: nothing that credit allows.
    pub fn transmit(&mut self) -> Option<Transmit<P>> {
        if !self.control.is_empty() {
            return Some(Transmit::Control);
        }
        while let Some(&index) = self.fast.front() {
            let port = self.ports.at(index)?;
            if port.queued > GATHER_MAX {
                port.listed = Listed::Bulk;
                self.fast.pop_front();
                self.bulk.push_back(index);
            } else if port.can_send() {
                return self.take_frame(index);
            } else {
                self.fast.pop_front();
                self.unlist(index);
            }
        }
        while let Some(&index) = self.bulk.front() {
            let debt = self.quantum_left.min(0);
            let port = self.ports.at(index)?;
            if !port.can_send() {
                port.debt = debt;
                self.bulk.pop_front();
                self.unlist(index);
                self.begin_turn();
            } else if self.quantum_left <= 0 {
                port.debt = debt;
                self.bulk.rotate_left(1);
                self.begin_turn();
            } else {
                // Before the frame is taken: that may end the port, and the next one's turn begins.
                self.quantum_left -= self.ports.at(index)?.queue.front()?.len() as i64;
                return self.take_frame(index);
            }
        }
        None
    }

    /// Gives the front of `bulk` its quantum.
    fn begin_turn(&mut self) {
        let port = self.bulk.front().and_then(|&index| self.ports.at(index));
        self.quantum_left = self.quantum + port.map_or(0, |port| std::mem::take(&mut port.debt));
    }

    fn take_frame(&mut self, index: u32) -> Option<Transmit<P>> {
        let slot = self.ports.slot_at(index)?;
        let port = self.ports.at(index)?;
        let frame = port.queue.pop_front()?;
        let owner = port.owner;
        port.queued -= frame.len();
        self.queued -= frame.len();
        if port.is_ready() {
            self.ready -= frame.len();
        }
        let (payload, last) = (frame.len() - HEADER_LEN, port.queue.is_empty());
        port.sent += payload as u64;
        self.stats.bytes_out += payload as u64;
        if last {
            // A burst's queue is not kept for an idle port.
            if port.queue.capacity() > 64 {
                port.queue = std::collections::VecDeque::new();
            }
            self.send_fin_if_drained(slot);
        }
        Some(Transmit::Frame { owner, frame, last })
    }

    fn send_fin_if_drained(&mut self, slot: Slot) {
        let Some(port) = self.ports.get_mut(slot) else { return };
        if port.outgoing == Outgoing::Finishing && port.queue.is_empty() {
            port.outgoing = Outgoing::Finished;
            self.control.push(&Frame::Fin { port: port.id });
            if port.is_over() {
                self.forget(slot);
            }
        }
    }

    /// Whether the other end makes us queue answers that it does not read; the driver ends such a link.
    pub fn is_overrun(&self) -> bool {
        self.control.len() > CONTROL_QUEUE_MAX
    }
}

impl<P: Payload> super::port::Port<P> {
    /// Whether its queue counts as waiting for the link: a stream's that credit lets go.
    pub(super) fn is_ready(&self) -> bool {
        self.listed != Listed::No && self.kind == PortKind::Tcp
    }

    fn can_send(&self) -> bool {
        self.queue.front().is_some_and(|frame| {
            self.kind == PortKind::Udp || self.sent + (frame.len() - HEADER_LEN) as u64 <= self.send_max
        })
    }
}
