//! One datagram's way between a port and the other end of its link: over a UDP channel or, in frames,
//! over the TCP channel.

use std::net::SocketAddr;

use isthmus_proto::limits::{CHANNEL_PLAINTEXT_MAX, DATAGRAM_MAX, FRAME_PAYLOAD_MAX, GATHER_MAX};
use isthmus_proto::link::Slot;
use isthmus_proto::wire::{ADDR_LEN, HEADER_LEN, TRAILER_ADDR_LEN, write_datagram_header, write_trailer};
use isthmus_ring::Piece;

use crate::Engine;
use crate::event::Control;
use crate::key::{Key, What};
use crate::turn::INTERACTIVE_FOR;

/// How a datagram shall travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// In frames on the TCP channel, reliable and in order.
    Tcp,
    /// On a UDP channel; on TCP where it does not fit, or (`fallback`) while no channel works.
    Channel { fallback: bool },
}

/// Parts of one datagram that have come.
pub(crate) struct Assembly {
    owner: Key,
    remote: SocketAddr,
    bytes: Vec<u8>,
}

/// Largest part of a datagram in one frame.
const PART_MAX: usize = FRAME_PAYLOAD_MAX - ADDR_LEN;

/// Datagrams of different ports whose parts may be on their way at once; the oldest gives way.
const ASSEMBLIES_MAX: usize = 64;

impl Engine {
    /// A port's datagram to the other end of its link. `remote` is its party there: the host, for a
    /// datagram from a mediator or towards it.
    pub(crate) fn send_datagram(&mut self, link: Key, slot: Slot, way: Way, remote: SocketAddr, payload: &[u8]) {
        let now = self.now;
        self.interactive_until = now + INTERACTIVE_FOR;
        let mut oversize = false;
        if let Way::Channel { fallback } = way {
            let mut trailer = [0; TRAILER_ADDR_LEN];
            let trailer_len = write_trailer(&mut trailer, slot.id(), Some(remote), payload.len() as u16);
            if payload.len() + trailer_len > CHANNEL_PLAINTEXT_MAX {
                self.counts.datagrams_oversize += 1;
                oversize = true;
            } else if self.seal_datagram(link, slot, payload, &trailer[..trailer_len]) {
                if let Some(live) = self.link(link) {
                    live.count_datagram_out(Some(payload.len()), false, now);
                }
                return;
            } else if !fallback {
                self.counts.datagrams_dropped_channel += 1;
                return;
            } else {
                self.counts.datagrams_by_tcp += 1;
            }
        }
        let parts = payload.chunks(PART_MAX).count().max(1);
        let frames = (0..parts).map(|part| {
            let bytes = &payload[part * PART_MAX..payload.len().min((part + 1) * PART_MAX)];
            with_header(Piece::copy_from(bytes, 64, 32), slot, (part == 0).then_some(remote), part + 1 < parts)
        });
        if let Some(live) = self.links.get_mut(link).and_then(|io| io.live()) {
            if live.enqueue_datagram(slot, frames, now) {
                live.count_datagram_out(None, oversize, now);
            }
            self.touch(link);
        }
    }

    /// A part that came in a frame goes on in a frame.
    pub(crate) fn queue_datagram_parts(
        &mut self,
        link: Key,
        slot: Slot,
        remote: Option<SocketAddr>,
        more: bool,
        payload: Piece,
    ) {
        let now = self.now;
        if let Some(live) = self.link(link) {
            let first = remote.is_some();
            let payload = if payload.len() <= GATHER_MAX { Piece::copy_from(&payload, 64, 32) } else { payload };
            let frame = with_header(payload, slot, remote, more);
            if live.enqueue_part(slot, first, more, frame, now) && first {
                live.count_datagram_out(None, false, now);
            }
            self.touch(link);
        }
    }

    /// A datagram, or a part, came in a frame.
    pub(crate) fn on_datagram_frame(
        &mut self,
        control: &mut impl Control,
        link: Key,
        owner: Key,
        remote: Option<SocketAddr>,
        more: bool,
        payload: Piece,
    ) {
        if matches!(owner.what(), What::BridgeA | What::BridgeB) {
            if remote.is_none_or(|remote| self.link_permits(link, remote)) {
                self.bridge_datagram_part(owner, remote, more, payload);
            }
            return;
        }
        if let (Some(remote), false) = (remote, more) {
            return self.deliver_datagram(control, link, owner, Some(remote), payload);
        }
        let Some(io) = self.links.get_mut(link) else { return };
        if let Some(remote) = remote {
            io.assembling.retain(|assembly| assembly.owner != owner);
            if io.assembling.len() >= ASSEMBLIES_MAX {
                // The oldest is the likeliest to have been given up.
                io.assembling.remove(0);
            }
            io.assembling.push(Assembly { owner, remote, bytes: payload.to_vec() });
            return;
        }
        let Some(place) = io.assembling.iter().position(|assembly| assembly.owner == owner) else { return };
        let assembly = &mut io.assembling[place];
        assembly.bytes.extend_from_slice(&payload);
        if assembly.bytes.len() > DATAGRAM_MAX {
            io.assembling.swap_remove(place);
        } else if !more {
            let assembly = io.assembling.swap_remove(place);
            let payload = Piece::copy_from(&assembly.bytes, 0, 0);
            self.deliver_datagram(control, link, owner, Some(assembly.remote), payload);
        }
    }

    /// A whole datagram from a link to its port's owner, unless that is a bridge.
    pub(crate) fn deliver_datagram(
        &mut self,
        control: &mut impl Control,
        link: Key,
        owner: Key,
        remote: Option<SocketAddr>,
        payload: Piece,
    ) {
        self.interactive_until = self.now + INTERACTIVE_FOR;
        match owner.what() {
            What::Udp => self.write_port(owner, remote, payload),
            What::Flow => self.write_flow(owner, payload),
            What::Control => self.on_host_datagram(control, link, owner.index(), remote, payload),
            _ => self.counts.datagrams_unknown_port += 1,
        }
    }
}

fn with_header(mut payload: Piece, slot: Slot, remote: Option<SocketAddr>, more: bool) -> Piece {
    let len = payload.len() as u16;
    let room = HEADER_LEN + if remote.is_some() { ADDR_LEN } else { 0 };
    if payload.headroom() < room {
        payload = Piece::copy_from(&payload, 64, 32);
    }
    write_datagram_header(payload.prepend(room), slot.id(), remote, more, len);
    payload
}
