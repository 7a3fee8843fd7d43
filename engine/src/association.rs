//! UDP associations of SOCKS5 (RFC 1928 section 7): a UDP socket for one client, each of whose datagrams tells in its
//! head where it goes, joined to one UDP port of a mediator.
//!
//! Only the client may use it: the address of its TCP connection, and of that the port number that it announced or, where
//! it announced none, the first one that sends.

use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;

use isthmus_proto::Code;
use isthmus_proto::door::socks5::{self, BadDatagram, DATAGRAM_HEAD_MAX};
use isthmus_proto::link::Slot;
use isthmus_proto::time::Instant;
use isthmus_ring::{Datagrams, Piece, Socket};

use crate::Engine;
use crate::datagram::Way;
use crate::event::{Control, Event};
use crate::key::Key;
use crate::timers::TimerId;
use crate::udp::{UdpRole, canonical, segments};

/// Whose association, and to where.
pub struct AssociationSpec {
    /// The client's address.
    pub client: IpAddr,
    /// The port number that it announced, or 0.
    pub client_port: u16,
    /// The tunnel.
    pub link: Key,
    /// The UDP port asked for on it.
    pub slot: Slot,
    /// Where its datagrams may go.
    pub permits: Rc<dyn Fn(SocketAddr) -> bool>,
}

pub(crate) struct Association {
    spec: AssociationSpec,
    /// Where the client sends from, once known.
    from: Option<SocketAddr>,
    /// The mediator has answered that its port is open.
    opened: bool,
    /// When a datagram last went either way.
    last_used: Instant,
    pub(crate) timer: TimerId,
}

impl Engine {
    /// Adds an association; its socket becomes the port's owner, and [`crate::Event::PortEnded`] tells if the port ends,
    /// as it does after [`crate::EngineConfig::flow_idle`] without a datagram either way.
    pub fn add_association(&mut self, socket: Socket, spec: AssociationSpec) -> Key {
        let key = self.add_udp(socket, UdpRole::Association);
        if let Some(link) = self.link(spec.link) {
            link.set_owner(spec.slot, key.to_bits());
        }
        let from = (spec.client_port != 0).then(|| SocketAddr::new(spec.client, spec.client_port));
        let timer = self.timers.add(key);
        self.timers.set(timer, self.now + self.config.flow_idle);
        let association = Association { spec, from, opened: false, last_used: self.now, timer };
        self.associations.insert(key, association);
        key
    }

    /// The mediator has opened the port: from now on datagrams travel.
    pub fn association_opened(&mut self, key: Key) {
        if let Some(association) = self.associations.get_mut(&key) {
            association.opened = true;
            association.last_used = self.now;
        }
    }

    /// Ends an association that nobody uses: its client may be there still, and hold a port of the mediator's.
    pub(crate) fn on_association_timer(&mut self, control: &mut impl Control, key: Key) {
        let Some(association) = self.associations.get(&key) else { return };
        let deadline = association.last_used + self.config.flow_idle;
        if self.now < deadline {
            return self.timers.set(association.timer, deadline);
        }
        let (link, slot) = (association.spec.link, association.spec.slot);
        if let Some(machine) = self.link(link) {
            machine.set_owner(slot, Key::control(0).to_bits());
            machine.close(slot, 0);
            self.touch(link);
        }
        self.remove_udp(key);
        control.on_event(self, Event::PortEnded { link, owner: key, code: Code::TimedOut });
    }

    /// Datagrams at an association's socket.
    pub(crate) fn on_client_datagrams(&mut self, key: Key, datagrams: &Datagrams) {
        let source = canonical(datagrams.peer);
        for bytes in segments(datagrams) {
            self.on_client_datagram(key, source, bytes);
        }
    }

    fn on_client_datagram(&mut self, key: Key, source: SocketAddr, bytes: &[u8]) {
        let Some(association) = self.associations.get_mut(&key) else { return };
        let known = association.from.is_none_or(|from| from == source) && association.spec.client == source.ip();
        if !known || !association.opened {
            self.counts.associations_refused += 1;
            return;
        }
        let (target, payload) = match socks5::read_datagram(bytes) {
            Ok((target, payload)) => (target.address(), payload),
            Err(BadDatagram::Fragment) => {
                self.counts.associations_fragments += 1;
                return;
            }
            Err(BadDatagram::Malformed) => (None, bytes),
        };
        // A name would have to be looked up for each datagram: clients look names up first, through the association.
        let Some(target) = target.filter(|&target| target.port() != 0 && (association.spec.permits)(target)) else {
            self.counts.associations_refused += 1;
            return;
        };
        association.from = Some(source);
        association.last_used = self.now;
        // Behind the checks: what anybody can send is no traffic, and keeps nothing awake.
        self.counts.datagrams_in += 1;
        let (link, slot) = (association.spec.link, association.spec.slot);
        self.send_datagram(link, slot, Way::Channel { fallback: true }, target, payload);
    }

    /// A datagram for an association's client: what to send it, and where.
    pub(crate) fn address_to_client(
        &mut self,
        key: Key,
        remote: Option<SocketAddr>,
        mut payload: Piece,
    ) -> Option<(SocketAddr, Piece)> {
        let association = self.associations.get_mut(&key)?;
        let (remote, to) = (remote?, association.from?);
        association.last_used = self.now;
        let mut head = Vec::with_capacity(DATAGRAM_HEAD_MAX);
        socks5::write_datagram_head(&mut head, remote);
        if payload.headroom() < head.len() {
            payload = Piece::copy_from(&payload, head.len(), 0);
        }
        payload.prepend(head.len()).copy_from_slice(&head);
        Some((to, payload))
    }
}
