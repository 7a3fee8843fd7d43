//! UDP ASSOCIATE: a UDP socket on the relay for one client, joined to a redirected UDP port of the mediator. It ends with
//! the client's TCP connection.

use std::net::SocketAddr;

use isthmus_engine::{AssociationSpec, Engine, Key};
use isthmus_proto::Code;
use isthmus_proto::door::target::Target;
use isthmus_proto::link::{Slot, UNSPECIFIED};
use isthmus_proto::wire::OpenFlags;
use isthmus_ring::{Socket, UdpOptions};

use super::{Client, Wants};
use crate::admin::Counter;
use crate::shard::Shard;
use crate::trust::{Grant, Operation};

impl Shard {
    #[allow(clippy::too_many_arguments)]
    pub(super) fn begin_association(
        &mut self,
        engine: &mut Engine,
        guest: Key,
        link: Key,
        asker: u16,
        target: &Target,
        grant: &std::rc::Rc<Grant>,
        peer: SocketAddr,
    ) -> Result<(Slot, Wants), Code> {
        if !grant.permits(Operation::Redirect) {
            return Err(Code::NotPermitted);
        }
        let here = engine.guest_local_addr(guest).ok_or(Code::Failed)?;
        let options = UdpOptions { gro: true, ..UdpOptions::default() };
        let socket = Socket::udp(SocketAddr::new(here.ip(), 0), options).map_err(|_| Code::NoResources)?;
        let flags = OpenFlags(OpenFlags::UDP | OpenFlags::REDIRECT | OpenFlags::FALLBACK);
        let now = engine.now();
        let machine = engine.link(link).ok_or(Code::MediatorAway)?;
        let slot = machine.open_as(asker, 0, 0, flags, UNSPECIFIED, None, now)?;
        let permits = grant.clone();
        let socket = engine.add_association(
            socket,
            AssociationSpec {
                client: peer.ip(),
                client_port: target.port,
                link,
                slot,
                permits: std::rc::Rc::new(move |to| permits.permits_destination(to)),
            },
        );
        self.proxies.by_socket.insert(socket, guest);
        self.counters.add(Counter::SocksAssociationsLive, 1);
        Ok((slot, Wants::Associate { socket, told: false }))
    }

    /// The mediator's answer about an association's port.
    pub(in crate::shard) fn on_association_answer(&mut self, engine: &mut Engine, socket: Key, code: Code, over: bool) {
        let Some(&guest) = self.proxies.by_socket.get(&socket) else { return };
        let Some(Client::Asking(asking)) = self.proxies.clients.get_mut(&guest) else { return };
        if over || !code.is_ok() {
            return self.end_client(engine, guest, Some(code), !over);
        }
        let Wants::Associate { told, .. } = &mut asking.wants else { return };
        let Some(bound) = engine.udp_addr(socket).filter(|_| !*told) else { return };
        *told = true;
        let reply = asking.proxy.granted(bound);
        engine.association_opened(socket);
        engine.reply_guest(guest, &reply);
        engine.set_guest_timeout(guest, None);
    }

    pub(super) fn end_association(&mut self, engine: &mut Engine, socket: Key) {
        if self.proxies.by_socket.remove(&socket).is_some() {
            engine.remove_udp(socket);
            self.counters.sub(Counter::SocksAssociationsLive, 1);
        }
    }
}
