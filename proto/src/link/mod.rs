//! One end of a tunnel or terminal connection, once it is authenticated: ports, credit, order of
//! sending, maintain packets. A mediator's link and a terminal's link are the same machine; only
//! [`Side`] differs.
//!
//! The driver feeds decoded frames to [`Link::receive`] and acts on the [`Input`] that comes back;
//! it takes whole encoded frames from [`Link::transmit`] and seals them. A payload never enters: a
//! queued piece is an opaque `P` whose length is known.
//!
//! The driver's contract for timers: after [`Link::receive`], [`Link::on_deadline`] and any call that
//! makes the link send, [`Link::deadline`] may have changed. It is enough to call
//! [`Link::on_deadline`] and look again when the old deadline has come: a ping that measures the round
//! trip of a busy link may bring it forward, but who looks then still notices a dead end within the
//! interval and the dead time of [`Maintain`].

mod flow;
mod keepalive;
mod lifetime;
mod port;
mod receive;
mod request;
mod transmit;

use std::collections::VecDeque;
use std::time::Duration;

pub use keepalive::{ChannelAction, ChannelClock, Maintain};
pub use lifetime::{Lifetime, LifetimeAction};
pub use port::{PortKind, Slot};
pub use receive::{Input, Violation};
pub use request::UNSPECIFIED;
pub use transmit::{Payload, Transmit};

use crate::code::Code;
use crate::rare::Rare;
use crate::time::Instant;
use crate::wire::ControlBuf;
use keepalive::Pulse;
use port::Ports;
use transmit::QUANTUM;

/// Which end of a link this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Asks: a terminal, or the relay towards a mediator.
    Requester,
    /// Carries out: a mediator, or the relay towards a terminal.
    Responder,
}

/// What a link needs to know at its start.
#[derive(Clone, Copy, Debug)]
pub struct LinkConfig {
    /// Which end.
    pub side: Side,
    /// Most ports at once.
    pub ports_max: u32,
    /// Who maintains it, and when it counts as dead.
    pub maintain: Maintain,
}

/// Counts of one link, for its row in the operator's tables.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkStats {
    /// Stream and datagram payload bytes handed to [`Link::transmit`]'s caller.
    pub bytes_out: u64,
    /// Stream and datagram payload bytes received.
    pub bytes_in: u64,
    /// Frames for ports that are gone.
    pub stale_frames: u64,
    /// Datagrams dropped since too many waited for the TCP channel.
    pub datagrams_dropped: u64,
    /// Datagrams received, over either kind of channel.
    pub datagrams_in: u64,
    /// Datagrams sent, over either kind of channel.
    pub datagrams_out: u64,
    /// Redirected datagrams sent over TCP since they did not fit a UDP channel.
    pub datagrams_oversize: u64,
    /// When payload travelled last.
    pub last_payload: Instant,
}

/// One end of an authenticated link. See the module's text.
pub struct Link<P> {
    side: Side,
    ports: Ports<P>,
    control: ControlBuf,
    /// Ports with little to send, before all others: an interactive stream never waits behind bulk.
    fast: Rare<VecDeque<u32>>,
    /// Ports with more, in deficit round robin.
    bulk: Rare<VecDeque<u32>>,
    /// What the front of `bulk` may still send in its turn, in bytes.
    quantum: i64,
    quantum_left: i64,
    /// Frame bytes queued in all ports.
    queued: usize,
    /// Of them, those of streams that credit lets go: what waits for this link and for nothing else.
    ready: usize,
    /// Receive windows granted beyond the early ones, in bytes.
    window_sum: u64,
    /// More had come than the last receive took, and how often it had not, modulo 2^32.
    backlog: bool,
    empty: u32,
    /// Until when bulk shares the link with ports that have a little now and then.
    shared_until: Instant,
    /// Ports whose window has grown, or would if the budget allowed it.
    windows_wanted: u32,
    pulse: Pulse,
    stats: LinkStats,
}

impl<P: Payload> Link<P> {
    /// A link that begins now.
    pub fn new(config: LinkConfig, now: Instant) -> Self {
        Self {
            side: config.side,
            ports: Ports::new(config.side == Side::Responder, config.ports_max),
            control: ControlBuf::default(),
            fast: Rare::default(),
            bulk: Rare::default(),
            quantum: QUANTUM,
            quantum_left: QUANTUM,
            queued: 0,
            ready: 0,
            window_sum: 0,
            backlog: false,
            empty: 0,
            shared_until: Instant::ZERO,
            windows_wanted: 0,
            pulse: Pulse::new(config.maintain, now),
            stats: LinkStats::default(),
        }
    }

    /// Live ports.
    pub fn ports(&self) -> usize {
        self.ports.len()
    }

    /// Counts so far.
    pub fn stats(&self) -> LinkStats {
        self.stats
    }

    /// Counts a datagram sent: over a UDP channel with so many payload bytes, or over TCP (counted
    /// there) since it did not fit one.
    pub fn count_datagram_out(&mut self, by_channel: Option<usize>, oversize: bool, now: Instant) {
        self.stats.datagrams_out += 1;
        self.stats.bytes_out += by_channel.unwrap_or(0) as u64;
        self.stats.datagrams_oversize += u64::from(oversize);
        self.stats.last_payload = now;
    }

    /// The driver ends the connection when what was sent stays unacknowledged for [`Maintain::Caller`]'s `dead` time
    /// (`TCP_USER_TIMEOUT`): most maintain packets of an idle link need no answer of the other end then.
    pub fn watch_acknowledgements(&mut self) {
        self.pulse.watch_acknowledgements();
    }

    /// Measures the round trip, as a link that carries payload does by itself now and then.
    pub fn measure(&mut self, now: Instant) {
        self.pulse.sample(now, &mut self.control);
    }

    /// Whether more had come than was received at once. As long as it is so each time, the sender waits for this end, and a
    /// larger window would only make the queue longer.
    pub fn note_backlog(&mut self, more: bool) {
        self.backlog = more;
        self.empty = self.empty.wrapping_add(u32::from(!more));
    }

    /// Smoothed round trip of the TCP channel, once measured.
    pub fn rtt(&self) -> Option<Duration> {
        self.pulse.rtt()
    }

    /// When something was received last.
    pub fn last_heard(&self) -> Instant {
        self.pulse.last_heard()
    }

    /// The time to call [`Link::on_deadline`].
    pub fn deadline(&self) -> Instant {
        self.pulse.deadline()
    }

    /// Sends a maintain packet if it is time.
    ///
    /// # Errors
    /// [`Code::Silent`]: the other end is dead; [`Code::Overloaded`]: it asks without reading the answers.
    pub fn on_deadline(&mut self, now: Instant) -> Result<(), Code> {
        if self.is_overrun() {
            return Err(Code::Overloaded);
        }
        self.pulse.on_deadline(now, &mut self.control)
    }

    /// Frees what ports that are gone have left behind, for a link that fell idle.
    pub fn release_memory(&mut self) {
        self.ports.release();
        if self.control.is_empty() {
            self.control = ControlBuf::new();
        }
        if self.ports.len() == 0 {
            self.fast.clear();
            self.bulk.clear();
        }
    }

    /// The driver's key of a port, if it lives.
    pub fn owner(&self, slot: Slot) -> Option<u64> {
        self.ports.get(slot).map(|port| port.owner)
    }

    /// Gives a port to another owner. A slot that is gone is passed over.
    pub fn set_owner(&mut self, slot: Slot, owner: u64) {
        if let Some(port) = self.ports.get_mut(slot) {
            port.owner = owner;
        }
    }

    /// A port's kind, if it lives.
    pub fn kind(&self, slot: Slot) -> Option<PortKind> {
        self.ports.get(slot).map(|port| port.kind)
    }

    /// Every live port with its owner, in table order: for the end of a link.
    pub fn live(&self) -> impl Iterator<Item = (Slot, u64)> + '_ {
        self.ports.iter()
    }
}
