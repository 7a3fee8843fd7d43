//! Terminals: what their tokens permit is asked of the mediator on their behalf, each of their ports
//! joined to one of the mediator's.

use std::net::SocketAddr;
use std::rc::Rc;

use isthmus_engine::{Ask, BridgeEnd, Engine, Key};
use isthmus_proto::link::{Side, Slot};
use isthmus_proto::time::Instant;
use isthmus_proto::wire::{NamedTarget, OpenFlags, RequestKind};
use isthmus_proto::{Code, MediatorId};

use super::{Party, Shard};
use crate::admin::Counter;
use crate::journal;
use crate::trust::{Grant, Operation};

pub(super) struct Terminal {
    pub(super) grant: Rc<Grant>,
    pub(super) mediator: Option<MediatorId>,
    /// The tunnel that it is attached to.
    pub(super) tunnel: Option<Key>,
    pub(super) since: Instant,
}

impl Shard {
    pub(super) fn attach_terminal(
        &mut self,
        engine: &mut Engine,
        link: Key,
        mediator: Option<MediatorId>,
        grant: Grant,
        udp_channels: u8,
    ) {
        let mut report = None;
        let mut tunnel_link = None;
        if let Some(id) = &mediator {
            let Some((key, tunnel)) = self.tunnel_of(id) else {
                return self.refuse(engine, link, Code::MediatorAway, &format!("mediator {id} is not connected"));
            };
            tunnel_link = Some(key);
            report = grant.permits(Operation::Info).then(|| Box::new(tunnel.report.unpack()));
        }
        let channels = if mediator.is_some() { udp_channels } else { 0 };
        let session = self.welcome(engine, link, Side::Responder, channels, report);
        let grant = Rc::new(grant);
        let permits = grant.clone();
        engine.set_link_filter(link, Rc::new(move |to| permits.permits_destination(to)));
        tracing::info!(
            terminal = grant.name,
            mediator = mediator.as_ref().map(tracing::field::display),
            session,
            "terminal attached"
        );
        self.seat.recorder.record(journal::What::TerminalUp, mediator.as_ref(), grant.name.clone());
        self.counters.add(Counter::TerminalsTotal, 1);
        self.counters.add(Counter::TerminalsLive, 1);
        if let Some(Party::Tunnel(tunnel)) = tunnel_link.and_then(|key| self.links.get_mut(&key)) {
            tunnel.terminals.push(link);
        }
        self.watch_expiry(engine, link, &grant.credential);
        self.links.insert(
            link,
            Party::Terminal(Box::new(Terminal { grant, mediator, tunnel: tunnel_link, since: engine.now() })),
        );
    }

    pub(super) fn on_terminal_ended(&mut self, link: Key, terminal: &Terminal, code: Code, text: &str) {
        tracing::info!(terminal = terminal.grant.name, reason = code.word(), text, "terminal left");
        self.forget_expiry(link, &terminal.grant.credential);
        let said = format!("{}: {}", terminal.grant.name, code.word());
        self.seat.recorder.record(journal::What::TerminalDown, terminal.mediator.as_ref(), said);
        self.counters.sub(Counter::TerminalsLive, 1);
        if let Some(Party::Tunnel(tunnel)) = terminal.tunnel.and_then(|key| self.links.get_mut(&key)) {
            tunnel.terminals.retain(|&other| other != link);
        }
    }

    /// A terminal is sent away with its mediator's tunnel.
    pub(super) fn counters_terminal_left(&mut self, link: Key) {
        if let Some(Party::Terminal(terminal)) = self.links.insert(link, Party::Leaving) {
            self.forget_expiry(link, &terminal.grant.credential);
            self.counters.sub(Counter::TerminalsLive, 1);
        }
    }

    /// A terminal asks; its token decides, then the mediator is asked.
    pub(super) fn on_request(
        &mut self,
        engine: &mut Engine,
        link: Key,
        slot: Slot,
        owner: Key,
        request: u16,
        ask: Ask,
    ) {
        if let Err((kind, code)) = self.forward_request(engine, link, slot, owner, request, ask)
            && let Some(machine) = engine.link(link)
        {
            machine.answer(slot, kind, request, code, None);
        }
        engine.touch(link);
    }

    fn forward_request(
        &mut self,
        engine: &mut Engine,
        link: Key,
        slot: Slot,
        owner: Key,
        request: u16,
        ask: Ask,
    ) -> Result<(), (RequestKind, Code)> {
        let kind = ask.kind();
        let refused = |code| (kind, code);
        let Some(Party::Terminal(terminal)) = self.links.get(&link) else { return Err(refused(Code::MediatorAway)) };
        if !permitted(&terminal.grant, &ask) {
            return Err(refused(Code::NotPermitted));
        }
        let tunnel = terminal.tunnel.ok_or(refused(Code::MediatorAway))?;
        let now = engine.now();
        if let Ask::Open { flags, local, peer, .. } = ask {
            if engine.is_overcommitted() {
                return Err(refused(Code::NoResources));
            }
            let name = terminal.grant.clone();
            let asker = self.asker(engine, tunnel, &format!("terminal {}", name.name));
            let machine = engine.link(tunnel).ok_or(refused(Code::MediatorAway))?;
            let far = machine.open_as(asker, 0, request, flags, local, peer, now).map_err(refused)?;
            let bridge = engine.add_bridge(BridgeEnd { link, slot }, BridgeEnd { link: tunnel, slot: far });
            engine.ask_bridge_fallback(bridge, flags.has(OpenFlags::FALLBACK));
            if flags.has(OpenFlags::UDP) {
                self.record_bridge(engine, bridge, link, "terminal", &any_or(peer));
            }
            engine.touch(tunnel);
            return Ok(());
        }
        let far = engine.bridge_other(owner).ok_or(refused(Code::UnknownPort))?;
        let machine = engine.link(far.link).ok_or(refused(Code::MediatorAway))?;
        if machine.kind(far.slot).is_none() {
            // The mediator's side has ended in order; this one only drains.
            if ask == Ask::Close {
                engine.remove_bridge(owner, Code::Closed);
                if let Some(near) = engine.link(link) {
                    near.answer(slot, kind, request, Code::Ok, None);
                }
                return Ok(());
            }
            return Err(refused(Code::UnknownPort));
        }
        match ask {
            Ask::Connect { to, timeout_ms } => {
                machine.connect(far.slot, request, to, timeout_ms);
                self.record_bridge(engine, owner, link, "terminal", &to.to_string());
            }
            Ask::Serve => machine.serve(far.slot, request),
            Ask::Close => machine.close(far.slot, request),
            Ask::Switch { flags } => {
                machine.switch(far.slot, request, flags);
                engine.ask_bridge_fallback(owner, flags.has(OpenFlags::FALLBACK));
            }
            Ask::Open { .. } => {}
        }
        engine.touch(far.link);
        Ok(())
    }
}

impl Shard {
    /// A terminal asks to connect to a host by its name. The mediator checks the name's addresses against what the
    /// token allows, since only it knows them.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn on_request_name(
        &mut self,
        engine: &mut Engine,
        link: Key,
        slot: Slot,
        owner: Key,
        request: u16,
        to: NamedTarget<'_>,
        timeout_ms: u32,
    ) {
        let asked = match self.links.get(&link) {
            Some(Party::Terminal(terminal)) if !terminal.grant.permits(Operation::Connect) => Err(Code::NotPermitted),
            Some(Party::Terminal(terminal)) => Ok(super::socks::rules_of(&terminal.grant)),
            _ => Err(Code::MediatorAway),
        };
        let asked = asked.and_then(|rules| {
            let far = engine.bridge_other(owner).ok_or(Code::UnknownPort)?;
            let machine = engine.link(far.link).filter(|machine| machine.kind(far.slot).is_some());
            machine.ok_or(Code::UnknownPort)?.connect_name(
                far.slot,
                request,
                NamedTarget { rules: &rules, ..to },
                timeout_ms,
            );
            engine.touch(far.link);
            Ok(())
        });
        if asked.is_ok() {
            self.record_bridge(engine, owner, link, "terminal", &format!("{}:{}", to.name, to.port));
        }
        if let (Err(code), Some(machine)) = (asked, engine.link(link)) {
            machine.answer(slot, RequestKind::Connect, request, code, None);
        }
        engine.touch(link);
    }
}

/// The only party of a UDP port, or any.
fn any_or(peer: Option<SocketAddr>) -> String {
    peer.map_or_else(|| "*".to_owned(), |peer| peer.to_string())
}

/// What a terminal's token says to a request. Closing one's own needs no permission.
fn permitted(grant: &Grant, ask: &Ask) -> bool {
    match *ask {
        // A TCP port of no particular number is good for a connect only, which needs one.
        Ask::Open { flags, local, peer: None, .. }
            if !flags.has(OpenFlags::UDP) && local.port() == 0 && local.ip().is_unspecified() =>
        {
            grant.permits(Operation::Open) || grant.permits(Operation::Connect)
        }
        Ask::Open { flags, peer, .. } => {
            let op = if flags.has(OpenFlags::REDIRECT) { Operation::Redirect } else { Operation::Open };
            grant.permits(op) && peer.is_none_or(|peer| grant.permits_destination(peer))
        }
        Ask::Connect { to, .. } => grant.permits(Operation::Connect) && grant.permits_destination(to),
        Ask::Serve => grant.permits(Operation::Listen),
        Ask::Switch { flags } => {
            grant.permits(if flags.has(OpenFlags::REDIRECT) { Operation::Redirect } else { Operation::Open })
        }
        Ask::Close => true,
    }
}

/// The mediator's answer goes to the terminal that asked.
pub(super) fn forward_answer(
    engine: &mut Engine,
    owner: Key,
    to: RequestKind,
    request: u16,
    code: Code,
    local: SocketAddr,
    over: bool,
) {
    let Some(near) = engine.bridge_other(owner) else { return };
    if let Some(machine) = engine.link(near.link) {
        machine.answer(near.slot, to, request, code, Some(local));
        engine.touch(near.link);
    }
    if over {
        // An orderly close is answered so.
        engine.remove_bridge(owner, if code.is_ok() { Code::Closed } else { code });
    } else if code.is_ok() && matches!(to, RequestKind::Open | RequestKind::Switch) {
        engine.confirm_bridge_fallback(owner);
    }
}

impl Shard {
    /// A host connected to a server port that a terminal made.
    pub(super) fn forward_accepted(
        &mut self,
        engine: &mut Engine,
        tunnel: Key,
        owner: Key,
        slot: Slot,
        peer: SocketAddr,
        local: SocketAddr,
    ) {
        let now = engine.now();
        let made = engine.bridge_other(owner).ok_or(Code::PeerGone).and_then(|near| {
            let machine = engine.link(near.link).ok_or(Code::PeerGone)?;
            let made = machine.accepted(near.slot, 0, peer, local, now)?;
            Ok(BridgeEnd { link: near.link, slot: made })
        });
        match made {
            Ok(near) => {
                let bridge = engine.add_bridge(near, BridgeEnd { link: tunnel, slot });
                self.record_host(engine, bridge, near.link, peer, local);
                engine.touch(near.link);
            }
            Err(code) => {
                if let Some(machine) = engine.link(tunnel) {
                    machine.reset(slot, code);
                    engine.touch(tunnel);
                }
            }
        }
    }
}

/// A UDP port's ICMP error goes to the terminal.
pub(super) fn forward_udp_error(engine: &mut Engine, owner: Key, code: Code, remote: SocketAddr) {
    let Some(near) = engine.bridge_other(owner) else { return };
    if let Some(machine) = engine.link(near.link) {
        machine.udp_error(near.slot, code, remote);
        engine.touch(near.link);
    }
}
