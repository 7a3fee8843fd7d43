//! Two ports on two links joined: a terminal's port and the mediator's behind it. Frames change their
//! port identifier and go on; a stream's bytes stay in the buffer that they came in.

use std::net::SocketAddr;

use isthmus_proto::Code;
use isthmus_proto::limits::GATHER_MAX;
use isthmus_proto::link::Slot;
use isthmus_proto::wire::{HEADER_LEN, write_data_header};
use isthmus_ring::Piece;

use crate::Engine;
use crate::carried::Carried;
use crate::key::{Key, What};

/// A port on a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BridgeEnd {
    /// The link.
    pub link: Key,
    /// The port.
    pub slot: Slot,
}

pub(crate) struct Bridge {
    a: BridgeEnd,
    b: BridgeEnd,
    /// Which directions of a stream have ended: from A, from B.
    ended: [bool; 2],
    /// UDP: datagrams may go over TCP while no channel works.
    fallback: bool,
    /// The same, asked for and not yet answered.
    asked_fallback: bool,
    /// "In" is from A.
    carried: Carried,
}

/// A bridge that is no more.
#[derive(Clone, Copy, Debug)]
pub struct EndedBridge {
    /// Its end A.
    pub key: Key,
    /// [`Code::Closed`] for an orderly end.
    pub code: Code,
    /// Payload that came to it: "in" is from A, "out" from B.
    pub carried: Carried,
}

impl Engine {
    /// Joins two ports; their owners become the bridge's ends.
    pub fn add_bridge(&mut self, a: BridgeEnd, b: BridgeEnd) -> Key {
        let carried = Carried::default();
        let key =
            self.bridges.insert(Bridge { a, b, ended: [false; 2], fallback: false, asked_fallback: false, carried });
        if let Some(link) = self.link(a.link) {
            link.set_owner(a.slot, key.to_bits());
        }
        if let Some(link) = self.link(b.link) {
            link.set_owner(b.slot, key.renamed(What::BridgeB).to_bits());
        }
        key
    }

    /// The port at the other end of the bridge from `owner`, which is one of its ends.
    pub fn bridge_other(&self, owner: Key) -> Option<BridgeEnd> {
        let bridge = self.bridges.get(owner)?;
        match owner.what() {
            What::BridgeA => Some(bridge.b),
            What::BridgeB => Some(bridge.a),
            _ => None,
        }
    }

    /// Whether a UDP port's datagrams may go over TCP while no UDP channel works: asked for, until
    /// [`Engine::confirm_bridge_fallback`].
    pub fn ask_bridge_fallback(&mut self, owner: Key, fallback: bool) {
        if let Some(bridge) = self.bridges.get_mut(owner) {
            bridge.asked_fallback = fallback;
        }
    }

    /// The mediator agreed to what was asked.
    pub fn confirm_bridge_fallback(&mut self, owner: Key) {
        if let Some(bridge) = self.bridges.get_mut(owner) {
            bridge.fallback = bridge.asked_fallback;
        }
    }

    pub(crate) fn bridge_fallback(&self, owner: Key) -> bool {
        self.bridges.get(owner).is_some_and(|bridge| bridge.fallback)
    }

    /// Forgets a bridge whose ports have ended by an answer.
    pub fn remove_bridge(&mut self, owner: Key, code: Code) {
        if let Some(bridge) = self.bridges.remove(owner)
            && let Some(ended) = &mut self.bridges_ended
        {
            ended.push(EndedBridge { key: owner.renamed(What::BridgeA), code, carried: bridge.carried });
        }
    }

    /// From now on [`Engine::take_ended_bridges`] has those that end.
    pub fn keep_ended_bridges(&mut self) {
        self.bridges_ended.get_or_insert_default();
    }

    /// Bridges that have ended since it was last asked; whoever wants them kept has to ask each turn.
    pub fn take_ended_bridges(&mut self) -> Vec<EndedBridge> {
        self.bridges_ended.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// Counts payload that came from one of a bridge's ends; `whole`: a datagram, or its last part.
    pub(crate) fn bridge_carries(&mut self, owner: Key, bytes: usize, whole: Option<bool>) {
        self.counts.bridge_bytes += bytes as u64;
        let Some(bridge) = self.bridges.get_mut(owner) else { return };
        let Carried { bytes_in, bytes_out, datagrams_in, datagrams_out } = &mut bridge.carried;
        let (sum, datagrams) = match owner.what() {
            What::BridgeA => (bytes_in, datagrams_in),
            _ => (bytes_out, datagrams_out),
        };
        *sum += bytes as u64;
        *datagrams += u64::from(whole == Some(true));
    }

    pub(crate) fn bridge_data(&mut self, owner: Key, mut payload: Piece) {
        let Some(other) = self.bridge_other(owner) else { return };
        let len = payload.len();
        if payload.len() <= GATHER_MAX {
            // It would be gathered anyway: the shared buffer is free again at once.
            payload = Piece::copy_from(&payload, HEADER_LEN, 0);
        } else if payload.headroom() < HEADER_LEN {
            payload = Piece::copy_from(&payload, 64, 64);
            self.counts.payloads_copied += 1;
        }
        if let Some(header) = payload.prepend(HEADER_LEN).first_chunk_mut() {
            write_data_header(header, other.slot.id(), len as u16);
        }
        self.bridge_carries(owner, len, None);
        let now = self.now;
        if let Some(link) = self.link(other.link) {
            link.enqueue(other.slot, payload, now);
            self.touch(other.link);
        }
    }

    /// The other end's frame has left its queue: its source may be granted more.
    pub(crate) fn bridge_consumed(&mut self, owner: Key, bytes: usize) {
        let Some(source) = self.bridge_other(owner) else { return };
        let now = self.now;
        if let Some(link) = self.link(source.link) {
            link.consumed(source.slot, bytes, now);
            if link.wants_to_send() {
                self.touch(source.link);
            }
        }
        self.sweep_bridge(owner);
    }

    pub(crate) fn bridge_fin(&mut self, owner: Key) {
        let Some(other) = self.bridge_other(owner) else { return };
        if let Some(link) = self.link(other.link) {
            link.finish(other.slot);
            self.touch(other.link);
        }
        let direction = usize::from(owner.what() == What::BridgeB);
        if let Some(bridge) = self.bridges.get_mut(owner) {
            bridge.ended[direction] = true;
            if bridge.ended == [true; 2] && self.bridge_is_drained(owner) {
                self.remove_bridge(owner, Code::Closed);
            }
        }
    }

    /// Both ports are gone from their links: nothing of the bridge is queued any more.
    fn bridge_is_drained(&mut self, owner: Key) -> bool {
        let Some(Bridge { a, b, .. }) = self.bridges.get(owner) else { return true };
        let (a, b) = (*a, *b);
        [a, b].into_iter().all(|end| self.link(end.link).is_none_or(|link| link.owner(end.slot).is_none()))
    }

    /// Drops bridges whose streams have ended in order once their last frame is sent.
    pub(crate) fn sweep_bridge(&mut self, owner: Key) {
        if self.bridges.get(owner).is_some_and(|bridge| bridge.ended == [true; 2]) && self.bridge_is_drained(owner) {
            self.remove_bridge(owner, Code::Closed);
        }
    }

    /// One port was cut: so is the other.
    pub(crate) fn end_bridge(&mut self, owner: Key, code: Code) {
        let Some(other) = self.bridge_other(owner) else { return };
        self.remove_bridge(owner, code);
        if let Some(link) = self.link(other.link) {
            link.reset(other.slot, code);
            self.touch(other.link);
        }
    }

    /// Part of a datagram over TCP on its way through.
    pub(crate) fn bridge_datagram_part(&mut self, owner: Key, remote: Option<SocketAddr>, more: bool, payload: Piece) {
        if let Some(other) = self.bridge_other(owner) {
            self.bridge_carries(owner, payload.len(), Some(!more));
            self.queue_datagram_parts(other.link, other.slot, remote, more, payload);
        }
    }
}
