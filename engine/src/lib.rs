//! The data plane that relay and mediator share: one [`Engine`] per thread drives links (tunnels and
//! terminal connections), plain TCP streams and UDP sockets over one ring.
//!
//! What the parties do differently is in their [`Control`]: the engine moves bytes between the two
//! ends of a port without asking it, and tells it everything else as an [`Event`].
//!
//! **Invariant:** on the way from one socket to another a payload byte is never copied in user space,
//! but for frames of at most [`isthmus_proto::limits::GATHER_MAX`] bytes, which share a record, and the
//! part of a record that straddles a receive buffer's end.
//!
//! **Invariant:** one receive and one send are in flight per TCP socket, so nothing overtakes.

#![forbid(unsafe_code)]

mod association;
mod bridge;
mod busy;
mod carried;
mod channel;
mod chunks;
mod counts;
mod datagram;
mod event;
mod flow;
mod guest;
mod handshake;
mod key;
mod lifetime;
mod link;
mod link_receive;
mod link_transmit;
mod outlet;
mod pace;
mod samples;
mod stream;
mod timers;
mod turn;
mod udp;

use std::collections::HashMap;
use std::time::Instant as Clock;

use isthmus_proto::time::Instant;
use isthmus_ring::{Piece, Ring};

pub use association::AssociationSpec;
pub use bridge::{BridgeEnd, EndedBridge};
pub use carried::Carried;
pub use counts::Counts;
pub use event::{Ask, Control, Event};
pub use flow::{FlowSpec, FlowView};
pub use guest::{GUEST_BYTES_MAX, GUEST_REPLIES_MAX, TakenGuest};
pub use handshake::{Caller, Detached};
pub use key::{Key, KeyMap, What};
pub use lifetime::MakeSocket;
pub use link::LinkRole;
pub use outlet::HostSpec;
pub use samples::Sample;
pub use stream::StreamParty;
pub use timers::TimerId;
pub use udp::{PortRoute, UdpRole};

use key::Table;

/// Bounds and intervals that the parties set.
#[derive(Clone, Copy, Debug)]
pub struct EngineConfig {
    /// TLS and greeting together end within this.
    pub handshake_timeout: std::time::Duration,
    /// A visitor's or a host's UDP flow, or an association, without a datagram for this long is closed.
    pub flow_idle: std::time::Duration,
    /// How long the ring polls before it sleeps, while payload moves; zero for never.
    pub busy_poll: std::time::Duration,
    /// Longest silence that a caller's maintain packets may leave on a UDP channel, or ask the relay to keep on a probe;
    /// what is longer is not answered, or counts as this.
    pub silence_max: std::time::Duration,
    /// Dismissed guests that may read their last reply at a time; one more is cut off with a reset.
    pub leaving_max: usize,
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            handshake_timeout: isthmus_proto::limits::HANDSHAKE_TIMEOUT,
            flow_idle: std::time::Duration::from_secs(60),
            busy_poll: std::time::Duration::ZERO,
            silence_max: isthmus_proto::limits::KEEPALIVE_UDP_MAX + isthmus_proto::limits::DEAD_AFTER,
            leaving_max: 1024,
        }
    }
}

/// One thread's data plane. See the crate's text.
pub struct Engine {
    pub(crate) ring: Ring,
    config: EngineConfig,
    start: Clock,
    now: Instant,
    links: Table<link::LinkIo>,
    /// Those of them that have ended but for their farewell, and whether the last turn took one away.
    partings: usize,
    parted: bool,
    streams: Table<stream::Stream>,
    young: stream::Young,
    /// Sockets of removed streams with a send that is linked to their connect: until that has ended.
    linked: HashMap<Key, isthmus_ring::Socket>,
    guests: Table<guest::Guest>,
    /// Those of them that were dismissed.
    guests_leaving: usize,
    listeners: Table<turn::Listener>,
    sockets: Table<udp::UdpSocket>,
    spent: udp::Spent,
    flows: Table<flow::Flow>,
    associations: HashMap<Key, association::Association>,
    /// By their numbers.
    outlets: HashMap<u32, outlet::Outlet>,
    bridges: Table<bridge::Bridge>,
    /// Those that have ended, where somebody wants to know.
    bridges_ended: Option<Vec<EndedBridge>>,
    watches: Table<turn::Watch>,
    channels: channel::Channels,
    probes: Table<lifetime::Probe>,
    timers: timers::Timers,
    /// Which destinations a mediator allows.
    destination_filter: Option<Box<dyn Fn(std::net::SocketAddr) -> bool>>,
    dirty: turn::Dirty,
    /// Sockets to be shut down and closed once every operation on them has been submitted: a farewell
    /// must still go out, and a descriptor that is free again earlier could make an operation reach
    /// another socket.
    graveyard: Vec<isthmus_ring::Socket>,
    /// Bytes that wait in links and streams together.
    queued: usize,
    /// Until then turns are kept short.
    interactive_until: Instant,
    /// When the turn before began.
    turn_before: Instant,
    /// Receives of much in the turn before this one, and so far in this one.
    bulk_before: usize,
    bulk_now: usize,
    /// What bulk streams may still receive in this turn.
    ration: usize,
    busy: busy::BusyPoll,
    samples: samples::Samples,
    /// What is handled now came in a receive of a few small frames, as did what came before it on that link.
    small_receive: bool,
    /// In this turn a listener brought a connection, or one with first bytes was made.
    connected: bool,
    /// Scratch for received pieces.
    received: Vec<Piece>,
    /// What happened, counted.
    pub counts: Counts,
}

impl Engine {
    /// An engine on a ring of its own thread.
    pub fn new(ring: Ring, config: EngineConfig) -> Self {
        Self {
            ring,
            config,
            start: Clock::now(),
            now: Instant(1),
            links: Table::new(What::Link),
            partings: 0,
            parted: false,
            streams: Table::new(What::Stream),
            young: stream::Young::default(),
            linked: HashMap::new(),
            guests: Table::new(What::Guest),
            guests_leaving: 0,
            listeners: Table::new(What::Listener),
            sockets: Table::new(What::Udp),
            spent: udp::Spent::default(),
            flows: Table::new(What::Flow),
            associations: HashMap::new(),
            outlets: HashMap::new(),
            bridges: Table::new(What::BridgeA),
            bridges_ended: None,
            watches: Table::new(What::Watch),
            channels: channel::Channels::default(),
            probes: Table::new(What::Probe),
            timers: timers::Timers::default(),
            destination_filter: None,
            dirty: turn::Dirty::default(),
            graveyard: Vec::new(),
            queued: 0,
            interactive_until: Instant(0),
            turn_before: Instant(0),
            bulk_before: 0,
            bulk_now: 0,
            ration: 0,
            busy: busy::BusyPoll::new(config.busy_poll),
            samples: samples::Samples::default(),
            small_receive: false,
            connected: false,
            received: Vec::new(),
            counts: Counts::default(),
        }
    }

    /// Changes what [`EngineConfig`] says of time, for handshakes that begin and for all flows.
    pub fn set_times(&mut self, handshake_timeout: std::time::Duration, flow_idle: std::time::Duration) {
        self.config.handshake_timeout = handshake_timeout;
        self.config.flow_idle = flow_idle;
    }

    /// This turn's time.
    pub fn now(&self) -> Instant {
        self.now
    }

    /// The ring, for its waker and its pools' figures.
    pub fn ring(&self) -> &Ring {
        &self.ring
    }

    /// Whether so much waits in all queues together that no new port should be opened.
    pub fn is_overcommitted(&self) -> bool {
        self.queued > isthmus_proto::limits::SHARD_QUEUED_MAX
    }

    /// Live links, streams and flows.
    pub fn sizes(&self) -> (usize, usize, usize) {
        (self.links.len(), self.streams.len(), self.flows.len())
    }
}
