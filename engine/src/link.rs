//! A link's socket side: the record layer, what is being received and sent, and its life.

use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use isthmus_proto::Code;
use isthmus_proto::link::{Link, LinkConfig, LinkStats, Maintain, Slot};
use isthmus_proto::record::{Session, UdpSecret};
use isthmus_proto::time::Instant;
use isthmus_proto::wire::{ControlBuf, Frame};
use isthmus_ring::{Connection, ConnectionOption, OpId, Piece};

use crate::Engine;
use crate::event::{Control, Event};
use crate::handshake::Tls;
use crate::key::{Key, What};
use crate::pace::Pace;
use crate::timers::TimerId;
use isthmus_proto::rare::Rare;

/// Which end of the connection this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkRole {
    /// It dialled.
    Caller,
    /// It was called: the relay.
    Relay,
}

pub(crate) enum Phase {
    /// TCP connects (a caller's).
    Connecting,
    /// TLS goes on.
    Tls(Box<Tls>),
    /// The record layer stands; hello and welcome pass.
    Greeting,
    /// Established.
    Live(Box<Link<Piece>>),
    /// Ended for everybody: only its farewell is still to go out, behind the send in flight.
    Parting,
}

pub(crate) struct LinkIo {
    pub(crate) socket: Connection,
    pub(crate) role: LinkRole,
    pub(crate) peer: SocketAddr,
    pub(crate) phase: Phase,
    pub(crate) session: Option<Box<Session>>,
    pub(crate) udp_secret: Option<UdpSecret>,
    /// The caller's certificate in DER, until somebody takes it.
    pub(crate) certificate: Rare<Vec<u8>>,
    pub(crate) timer: TimerId,

    pub(crate) receive_op: Option<OpId>,
    /// The front of a record whose rest has not come.
    pub(crate) partial: Option<Piece>,

    pub(crate) send_op: Option<OpId>,
    /// When the send in flight, or the wait for room before it, began, and whether it was cancelled to free the buffers that
    /// it holds.
    pub(crate) sent_at: Instant,
    pub(crate) compacting: bool,
    /// The send in flight was taken at once, unless the ring says otherwise.
    pub(crate) quiet: bool,
    /// How much one send is.
    pub(crate) pace: Pace,
    /// The last send was so much.
    pub(crate) full: bool,
    /// Room was waited for since.
    pub(crate) waited: bool,
    /// Much came lately: the next receive takes a large block.
    pub(crate) roomy: bool,
    /// What waited here when the engine's sum was taken.
    pub(crate) counted: usize,
    /// Bytes to be sent before any record: handshake messages, key updates.
    pub(crate) raw: Rare<Vec<u8>>,
    /// Frames before the link is established.
    pub(crate) greeting: Rare<ControlBuf>,
    /// Streams that wait until the egress queue is short again.
    pub(crate) paused: Rare<Vec<Key>>,
    pub(crate) dirty: bool,
    /// End it once everything queued is sent.
    pub(crate) closing: Option<Code>,
    /// Parts of datagrams that come over TCP in several frames.
    pub(crate) assembling: Rare<Vec<crate::datagram::Assembly>>,
    /// Its UDP channels, by their place in the table.
    pub(crate) channels: Box<[u32]>,
    /// Which destinations its datagrams may go to; without one, all.
    pub(crate) permits: Option<Rc<dyn Fn(SocketAddr) -> bool>>,
}

/// A link without payload for this long gives its key contexts' memory back.
pub(crate) const CONTEXT_KEPT: Duration = Duration::from_secs(5);

/// How long a link that ended may wait for the send in flight, so that its farewell can follow.
const PARTING_MAX: Duration = Duration::from_secs(2);

/// Links that may wait so at a time, each with what its socket does not take. Others end without a farewell.
const PARTINGS_MAX: usize = 512;

/// Bytes of control frames that such a link keeps, the farewell among them.
const PARTING_BYTES_MAX: usize = 16 * 1024;

impl LinkIo {
    pub(crate) fn live(&mut self) -> Option<&mut Link<Piece>> {
        match &mut self.phase {
            Phase::Live(link) => Some(link),
            _ => None,
        }
    }

    /// Whether it has ended for everybody but its own socket.
    pub(crate) fn is_parting(&self) -> bool {
        matches!(self.phase, Phase::Parting)
    }

    /// Whether anything waits for the socket.
    pub(crate) fn wants_to_send(&mut self) -> bool {
        self.closing.is_some() || !self.raw.is_empty() || self.live().is_some_and(|link| link.wants_to_send())
    }

    /// Gives the memory back that an idle link can do without. Contexts cost 140 ns each to be built again, which a
    /// maintain packet pays; two of them for each of very many idle links would be most of what those take.
    pub(crate) fn rest(&mut self, now: Instant) {
        let quiet = match &mut self.phase {
            Phase::Live(link) => {
                let quiet = now.since(link.stats().last_payload) > CONTEXT_KEPT;
                if quiet && link.ports() == 0 {
                    link.release_memory();
                }
                quiet
            }
            Phase::Connecting | Phase::Tls(_) | Phase::Greeting | Phase::Parting => false,
        };
        if !quiet {
            return;
        }
        if let Some(session) = &mut self.session {
            session.release_context();
        }
        if self.assembling.is_empty() {
            self.assembling.clear();
        }
    }
}

impl Engine {
    /// The state machine of an established link.
    pub fn link(&mut self, key: Key) -> Option<&mut Link<Piece>> {
        self.links.get_mut(key)?.live()
    }

    /// The other end's address.
    pub fn link_peer(&self, key: Key) -> Option<SocketAddr> {
        self.links.get(key).map(|io| io.peer)
    }

    /// What is queued on a link will go out this turn. Call after using [`Engine::link`] to send.
    pub fn touch(&mut self, key: Key) {
        if let Some(io) = self.links.get_mut(key)
            && !io.dirty
        {
            io.dirty = true;
            self.dirty.links.push(key);
        }
    }

    /// Sends a frame on a link that is not yet established.
    pub fn greet(&mut self, key: Key, frame: &Frame<'_>) {
        if let Some(io) = self.links.get_mut(key) {
            io.greeting.push(frame);
            self.touch(key);
        }
    }

    /// Establishes a greeted link.
    pub fn establish(&mut self, key: Key, config: LinkConfig) {
        let now = self.now;
        let Some(io) = self.links.get_mut(key) else { return };
        let maintain = config.maintain;
        let link = Link::new(config, now);
        self.timers.set(io.timer, link.deadline());
        io.phase = Phase::Live(Box::new(link));
        if let Maintain::Caller { dead, .. } = maintain
            && let Some(result) = self.ring.set_option(&io.socket, ConnectionOption::UserTimeout(dead), key.to_bits())
        {
            self.on_watched_link(key, result);
        }
        self.touch(key);
    }

    /// A caller's connection ends by itself where nothing acknowledges what it sends; or, if that could not be set, each
    /// of its maintain packets asks for an answer.
    pub(crate) fn on_watched_link(&mut self, key: Key, result: std::io::Result<()>) {
        if let (Ok(()), Some(link)) = (result, self.link(key)) {
            link.watch_acknowledgements();
        }
    }

    /// Tells the other end why, sends what is queued, and ends the link.
    pub fn farewell(&mut self, key: Key, code: Code, retry_after_ms: u32, text: &str) {
        let Some(io) = self.links.get_mut(key) else { return };
        let frame = Frame::Goodbye { code: Some(code), retry_after_ms, text };
        match &mut io.phase {
            Phase::Live(link) => link.control().push(&frame),
            _ => io.greeting.push(&frame),
        }
        io.closing = Some(code);
        // What the other end does with it is its own affair: after a while the socket goes anyway.
        let deadline = self.now + isthmus_proto::limits::DEAD_AFTER;
        self.timers.set(io.timer, deadline);
        self.touch(key);
    }

    /// Ends a link right after its farewell, which goes out as far as the socket takes it at once. Where a send is in
    /// flight, the socket stays until that and the farewell behind it are sent, for at most [`PARTING_MAX`]; all else of
    /// the link ends now.
    pub fn end_link_after_farewell(&mut self, control: &mut impl Control, key: Key, code: Code) {
        if self.links.get(key).is_some_and(|io| io.send_op.is_some()) {
            if self.partings < PARTINGS_MAX {
                return self.part(control, key, code);
            }
            self.counts.farewells_cut += 1;
        }
        self.flush_link(control, key);
        self.end_link(control, key, code, "", 0);
    }

    /// Links that have ended but for their farewell.
    pub fn partings(&self) -> usize {
        self.partings
    }

    fn part(&mut self, control: &mut impl Control, key: Key, code: Code) {
        let Some(io) = self.links.get_mut(key) else { return };
        let mut phase = std::mem::replace(&mut io.phase, Phase::Parting);
        if let Phase::Live(link) = &mut phase {
            // Payload belongs to ports that end, and so do most control frames: a little of what goes before the farewell
            // is kept, since it is in one piece with it.
            let control = link.control();
            control.take(control.len().saturating_sub(PARTING_BYTES_MAX));
            io.greeting.append(control);
        }
        io.closing = Some(code);
        io.partial = None;
        io.paused.clear();
        io.assembling.clear();
        if let Some(op) = io.receive_op.take() {
            self.ring.cancel(op);
        }
        self.timers.set(io.timer, self.now + PARTING_MAX);
        let peer = io.peer;
        let (channels, counted) = (std::mem::take(&mut io.channels), std::mem::take(&mut io.counted));
        self.partings += 1;
        // It hears of the end of the send in flight.
        self.touch(key);
        self.end_remains(control, (key, peer), &phase, &channels, counted, (code, "", 0));
    }

    /// Ends a link now. Streams and flows on it end, bridged ports are reset.
    pub fn end_link(&mut self, control: &mut impl Control, key: Key, code: Code, text: &str, retry_after_ms: u32) {
        let Some(io) = self.links.remove(key) else { return };
        for op in [io.receive_op, io.send_op].into_iter().flatten() {
            self.ring.cancel(op);
        }
        self.timers.remove(io.timer);
        let parting = io.is_parting();
        // Dropping a socket with an armed receive would not close it: the other end is told.
        self.graveyard.extend(self.ring.close_connection(io.socket));
        if parting {
            // Everybody was told before.
            self.partings -= 1;
            self.parted = true;
            self.counts.farewells_cut += u64::from(!io.greeting.is_empty() || io.send_op.is_some());
            return;
        }
        self.end_remains(control, (key, io.peer), &io.phase, &io.channels, io.counted, (code, text, retry_after_ms));
    }

    /// All of a link but its socket.
    fn end_remains(
        &mut self,
        control: &mut impl Control,
        (key, peer): (Key, SocketAddr),
        phase: &Phase,
        channels: &[u32],
        counted: usize,
        (code, text, retry_after_ms): (Code, &str, u32),
    ) {
        self.queued -= counted;
        self.end_channels(channels);
        let (mut ended, mut stats) = (Vec::new(), LinkStats::default());
        if let Phase::Live(link) = phase {
            stats = link.stats();
            self.counts.datagrams_dropped_full += link.stats().datagrams_dropped;
            ended.extend(link.live().map(|(slot, owner)| (slot, Key::from_bits(owner))));
        }
        for (slot, owner) in ended {
            self.end_port_owner(control, key, slot, owner, Code::PeerGone);
        }
        control
            .on_event(self, Event::LinkEnded { link: key, code, text: text.to_owned(), retry_after_ms, peer, stats });
    }

    /// Which destinations a terminal's datagrams may go to.
    pub fn set_link_filter(&mut self, key: Key, permits: Rc<dyn Fn(SocketAddr) -> bool>) {
        if let Some(io) = self.links.get_mut(key) {
            io.permits = Some(permits);
        }
    }

    pub(crate) fn link_permits(&self, key: Key, to: SocketAddr) -> bool {
        self.links.get(key).is_some_and(|io| io.permits.as_ref().is_none_or(|permits| permits(to)))
    }

    /// A port is gone (its link ended, or the other end reset it): whoever it belonged to ends too.
    pub(crate) fn end_port_owner(
        &mut self,
        control: &mut impl Control,
        link: Key,
        _slot: Slot,
        owner: Key,
        code: Code,
    ) {
        match owner.what() {
            What::Stream => self.abort_stream(control, owner, code),
            What::BridgeA | What::BridgeB => self.end_bridge(owner, code),
            What::Flow => self.end_flow(control, owner, false),
            What::Udp => {
                let association = self.associations.contains_key(&owner);
                self.remove_udp(owner);
                if association {
                    control.on_event(self, Event::PortEnded { link, owner, code });
                }
            }
            What::Listener => {
                self.remove_listener(owner);
                control.on_event(self, Event::PortEnded { link, owner, code });
            }
            What::Control | What::Link | What::Watch | What::Guest | What::Probe => {
                control.on_event(self, Event::PortEnded { link, owner, code });
            }
        }
    }

    /// A link's timer.
    pub(crate) fn on_link_timer(&mut self, control: &mut impl Control, key: Key) {
        let now = self.now;
        let Some(io) = self.links.get_mut(key) else { return };
        if let Some(code) = io.closing {
            return self.end_link(control, key, code, "", 0);
        }
        match &mut io.phase {
            Phase::Live(link) => match link.on_deadline(now) {
                Ok(()) => {
                    let deadline = link.deadline();
                    self.timers.set(io.timer, deadline);
                    io.rest(now);
                    self.touch(key);
                }
                Err(code) => self.end_link(control, key, code, "", 0),
            },
            Phase::Connecting | Phase::Tls(_) | Phase::Greeting | Phase::Parting => {
                self.end_link(control, key, Code::HandshakeTimeout, "", 0);
            }
        }
    }
}

/// There is one of each for each of very many tunnels.
const _: () = assert!(size_of::<LinkIo>() <= 240 && size_of::<Link<Piece>>() <= 256);
