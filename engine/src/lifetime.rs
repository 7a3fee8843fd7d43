//! Learning how long the gateway keeps UDP bindings: a caller's spare local port, and the relay's late answers.
//!
//! Probes borrow the keys of one of the link's channels, so that the relay holds nothing for a spare port but the
//! answer that it owes.

use std::net::SocketAddr;
use std::time::Duration;

use isthmus_proto::ChannelId;
use isthmus_proto::link::{Lifetime, LifetimeAction};
use isthmus_proto::wire::{MaintainBody, channel_kind as kind};
use isthmus_ring::Socket;

use crate::Engine;
use crate::event::{Control, Event};
use crate::key::Key;
use crate::timers::TimerId;
use crate::udp::UdpRole;

/// What probes are under way on this thread.
pub(crate) enum Probe {
    /// The relay's end: an answer that it owes.
    Owed(Owed),
    /// A caller's end.
    Learner(Box<Learner>),
}

pub(crate) struct Owed {
    channel: u32,
    id: ChannelId,
    /// The spare port as the gateway shows it.
    to: SocketAddr,
    body: MaintainBody,
    timer: TimerId,
}

/// Makes a spare port's socket, connected to the relay; `None` if the system refuses one now.
pub type MakeSocket = Box<dyn Fn() -> Option<Socket>>;

pub(crate) struct Learner {
    link: Key,
    channel: u32,
    lifetime: Lifetime,
    make: MakeSocket,
    /// Open while it probes.
    socket: Option<Key>,
    /// What the last probe carried.
    expected: u64,
    timer: TimerId,
}

impl Engine {
    /// Begins to learn the lifetime of the gateway's UDP bindings, on a spare port beside the link's first UDP
    /// channel. [`Event::Lifetime`] tells what was found. Does nothing for a link without channels.
    pub fn learn_lifetime(&mut self, link: Key, lifetime: Lifetime, make: MakeSocket) {
        let Some(&channel) = self.links.get(link).and_then(|io| io.channels.first()) else { return };
        let Some(deadline) = lifetime.deadline() else { return };
        let timer = self.timers.add(Key::control(0));
        let learner = Learner { link, channel, lifetime, make, socket: None, expected: 0, timer };
        let key = self.probes.insert(Probe::Learner(Box::new(learner)));
        self.timers.give(timer, key);
        self.timers.set(timer, deadline);
        if !self.channels.set_probe(channel, key) {
            self.end_probe(key);
        }
    }

    /// The time of a probe or of an answer has come.
    pub(crate) fn on_probe_timer(&mut self, control: &mut impl Control, key: Key) {
        match self.probes.get_mut(key) {
            Some(Probe::Owed(_)) => {
                if let Some(Probe::Owed(owed)) = self.probes.remove(key) {
                    self.timers.remove(owed.timer);
                    self.channels.clear_probe(owed.channel, owed.id);
                    self.send_probe(owed.channel, None, Some(owed.to), kind::PROBED, owed.body);
                }
            }
            Some(Probe::Learner(learner)) => {
                let before = learner.lifetime.period();
                let action = learner.lifetime.on_deadline(self.now);
                match action {
                    LifetimeAction::Wait => {}
                    LifetimeAction::Probe(silence) => self.ask(key, silence),
                    LifetimeAction::Settled => self.close_spare(key),
                }
                self.set_learned(control, key, before, action == LifetimeAction::Settled);
            }
            None => {}
        }
    }

    /// Sets the timer, and tells the channels and the control what is known now.
    fn set_learned(&mut self, control: &mut impl Control, key: Key, before: Duration, settled: bool) {
        let Some(Probe::Learner(learner)) = self.probes.get_mut(key) else { return };
        if let Some(deadline) = learner.lifetime.deadline() {
            self.timers.set(learner.timer, deadline);
        }
        let (link, period, proven) = (learner.link, learner.lifetime.period(), learner.lifetime.proven());
        if period == before && !settled {
            return;
        }
        self.set_channels_period(link, period);
        control.on_event(self, Event::Lifetime { link, proven, period, settled });
    }

    /// Sends a probe from the spare port, which is opened for it.
    fn ask(&mut self, key: Key, silence: Duration) {
        let opaque = self.now.0;
        let Some(Probe::Learner(learner)) = self.probes.get_mut(key) else { return };
        let channel = learner.channel;
        learner.expected = opaque;
        let socket = match learner.socket {
            Some(socket) => socket,
            None => {
                // Without one the probe counts as unanswered, and comes again later.
                let Some(socket) = (learner.make)() else { return };
                let socket = self.add_udp(socket, UdpRole::Probe { channel, probe: key });
                if let Some(Probe::Learner(learner)) = self.probes.get_mut(key) {
                    learner.socket = Some(socket);
                }
                socket
            }
        };
        let time_ms = u32::try_from(silence.as_millis()).unwrap_or(u32::MAX);
        self.send_probe(channel, Some(socket), None, kind::PROBE, MaintainBody { opaque, time_ms });
    }

    fn close_spare(&mut self, key: Key) {
        let Some(Probe::Learner(learner)) = self.probes.get_mut(key) else { return };
        if let Some(socket) = learner.socket.take() {
            self.remove_udp(socket);
        }
    }

    /// An answer came to the spare port.
    pub(crate) fn on_probed(&mut self, control: &mut impl Control, key: Key, body: &[u8]) {
        let now = self.now;
        let Some(Probe::Learner(learner)) = self.probes.get_mut(key) else { return };
        if MaintainBody::parse(body).is_none_or(|body| body.opaque != learner.expected) {
            return;
        }
        let before = learner.lifetime.period();
        learner.lifetime.answered(now);
        self.set_learned(control, key, before, false);
    }

    /// What was learned holds no longer: one of the link's channels died.
    pub(crate) fn forget_lifetime(&mut self, control: &mut impl Control, link: Key) {
        let now = self.now;
        let Some(key) = self.links.get(link).and_then(|io| self.channels.probe(*io.channels.first()?)) else { return };
        let Some(Probe::Learner(learner)) = self.probes.get_mut(key) else { return };
        let before = learner.lifetime.period();
        learner.lifetime.forget(now);
        self.close_spare(key);
        self.set_learned(control, key, before, false);
    }

    /// The relay's end: answers a probe at once, or later. One link has one answer due: a newer one takes its place.
    pub(crate) fn on_probe(&mut self, channel: u32, id: ChannelId, from: SocketAddr, body: &[u8]) {
        let Some(body) = MaintainBody::parse(body) else { return };
        let silence = Duration::from_millis(u64::from(body.time_ms));
        if let Some(old) = self.channels.probe(channel) {
            self.end_probe(old);
            self.channels.clear_probe(channel, id);
        }
        if silence.is_zero() {
            return self.send_probe(channel, None, Some(from), kind::PROBED, body);
        }
        if silence > self.config.silence_max {
            return;
        }
        let timer = self.timers.add(Key::control(0));
        let key = self.probes.insert(Probe::Owed(Owed { channel, id, to: from, body, timer }));
        self.timers.give(timer, key);
        self.timers.set(timer, self.now + silence);
        if !self.channels.set_probe(channel, key) {
            self.end_probe(key);
        }
    }

    /// Ends what a channel's end leaves.
    pub(crate) fn end_probe(&mut self, key: Key) {
        match self.probes.remove(key) {
            Some(Probe::Owed(owed)) => self.timers.remove(owed.timer),
            Some(Probe::Learner(learner)) => {
                self.timers.remove(learner.timer);
                if let Some(socket) = learner.socket {
                    self.remove_udp(socket);
                }
            }
            None => {}
        }
    }
}
