//! The loop: one turn takes every completion, lets the control act, sends what became due, and waits.

use std::collections::VecDeque;
use std::os::fd::{AsRawFd, RawFd};
use std::time::Duration;

use isthmus_proto::time::Instant;
use isthmus_ring::{Completion, ConnectionOption, OpId, PollEvents, PoolConfig, Socket};

use crate::Engine;
use crate::event::{Control, Event};
use crate::key::{Key, What};
use crate::stream::Turn;

/// Longest sleep without any timer, so that a lost wake-up could never be for ever.
const SLEEP_MAX: Duration = Duration::from_secs(5);

/// Between two tries for buffers or descriptors that are scarce.
const RETRY_INTERVAL: Duration = Duration::from_millis(5);

/// Receives that are tried again in one turn.
const RETRIES_MAX: usize = 256;

/// Between two lines in the log about the same trouble.
const WARN_INTERVAL: Duration = Duration::from_secs(10);

/// Most bytes of one receive and of one send where there is bulk only. Large ones cost less: fewer packets,
/// acknowledgements, wake-ups and system calls. What it moves still fits a core's second-level cache.
pub(crate) const BYTES_MAX: usize = 512 * 1024;

/// The same while a stream or a UDP flow of this thread is interactive, which waits for whole turns.
const BYTES_MAX_INTERACTIVE: usize = 128 * 1024;

/// What the receives of one turn may bring together, as far as the turn before tells: about a turn's length
/// in nanoseconds.
const TURN_BYTES: usize = 4 << 20;

/// The same while something is interactive.
const TURN_BYTES_INTERACTIVE: usize = 512 * 1024;

/// What all bulk streams together receive in one round, as far as there are so many that each gets less than it could.
const ROUND_BYTES: usize = 8 << 20;

/// Blocks that no bulk stream receives into, so that small messages find one.
const BLOCKS_SPARED: usize = 8;

/// Less than this is left for the next turn.
pub(crate) const RATION_MIN: usize = 64 * 1024;

/// Receives are limited to multiples of this; one that reaches it is bulk.
pub(crate) const RECEIVE_STEP: usize = 32 * 1024;

/// A thread counts as interactive for so long after small messages.
pub(crate) const INTERACTIVE_FOR: Duration = Duration::from_millis(100);

/// Completions handled before what they made due goes out: bounds how long one turn can be.
const COMPLETIONS_MAX: usize = 1024;

/// A turn with so few completions has nothing better to do than to look for a new connection's first bytes.
const COMPLETIONS_FEW: usize = 8;

/// What is to be done at the turn's end.
#[derive(Default)]
pub(crate) struct Dirty {
    pub(crate) links: Vec<Key>,
    pub(crate) streams: Vec<Key>,
    /// Streams whose outgoing direction ends.
    pub(crate) finished: Vec<Key>,
    pub(crate) sockets: Vec<Key>,
    pub(crate) flows: Vec<Key>,
    pub(crate) channels: Vec<u32>,
    /// Streams that wait for the next turns' rations.
    pub(crate) rationed: VecDeque<Key>,
    /// Receives that found no buffer: UDP sockets, of which there may be very many, and all others.
    pub(crate) starved_sockets: VecDeque<Key>,
    pub(crate) starved: Vec<Key>,
    /// When those may be tried again, where buffers or descriptors are scarce.
    pub(crate) retry_at: Instant,
    /// When an accept's failure was logged last.
    pub(crate) warned_at: Option<Instant>,
    /// Scratch: what left a link: bytes of bridges, and the last of streams that pause.
    pub(crate) freed: Vec<(u64, usize)>,
    pub(crate) due: Vec<(crate::TimerId, Key)>,
}

impl Dirty {
    /// Whether any receive waits for a buffer, or an accept for a descriptor.
    fn starves(&self) -> bool {
        !self.starved.is_empty() || !self.starved_sockets.is_empty()
    }
}

pub(crate) struct Listener {
    socket: Socket,
    tag: u32,
    op: Option<OpId>,
}

pub(crate) struct Watch {
    fd: RawFd,
    number: u32,
    op: Option<OpId>,
}

impl Engine {
    /// One turn. Returns after at least one completion, a timer or a wake-up.
    ///
    /// # Errors
    /// The ring failed: the thread cannot go on.
    pub fn turn(&mut self, control: &mut impl Control) -> std::io::Result<()> {
        self.counts.turns += 1;
        self.bulk_before = std::mem::take(&mut self.bulk_now);
        self.turn_before = std::mem::replace(&mut self.now, Instant(self.start.elapsed().as_nanos() as u64 + 1));
        self.counts.turns_short += u64::from(self.now < self.interactive_until);
        // Bulk streams are served in their order, once it is known who there is.
        self.ration = 0;
        let quiet = self.take_completions(control) <= COMPLETIONS_FEW;
        if std::mem::take(&mut self.connected) && quiet {
            // A visitor's first bytes are mostly there before its acceptance is told, and a host's reply to first bytes before
            // the connect's success: they travel with the request for a port or the answer then, in one record, one send and
            // one wake-up of the other end. Where much goes on anyway, one record has those of several connections, and
            // entering once more would only part them.
            self.ring.enter(Some(Duration::ZERO), || true)?;
            self.take_completions(control);
        }
        control.on_turn(self);
        self.run_timers(control);
        self.probe_grown_streams();
        self.close_spent();
        self.ration = self.ration_of_turn();
        self.retry_starved();
        self.serve_rationed();
        self.flush(control);
        // Where much goes on anyway, nobody gains by one more entry.
        if !self.graveyard.is_empty() || quiet && !self.dirty.finished.is_empty() {
            self.ring.enter(Some(Duration::ZERO), || true)?;
            for socket in self.graveyard.drain(..) {
                // One that is gone already has nobody left to be told.
                let _ = socket.shutdown_both();
            }
        }
        self.finish_streams();
        self.sample_turn();
        let parted = std::mem::take(&mut self.parted);
        let unserved = !self.dirty.rationed.is_empty() && !self.dirty.starves();
        let timeout = if parted && self.partings == 0 || unserved {
            // Whoever leaves once all farewells are out is not asked before the next turn, nor may those that wait for a ration
            // of it wait for an event; unless something was refused, which is no better at once.
            Duration::ZERO
        } else {
            self.sleep_for()
        };
        self.ring.set_busy_poll(self.busy.spell(self.counts.payload_moved(), self.now));
        self.ring.enter(Some(timeout), || control.has_work())
    }

    /// Handles what is complete; how much it was.
    fn take_completions(&mut self, control: &mut impl Control) -> usize {
        let mut taken = 0;
        while taken < COMPLETIONS_MAX {
            let mut received = std::mem::take(&mut self.received);
            let completion = self.ring.next(&mut received);
            self.received = received;
            let Some(completion) = completion else { break };
            self.on_completion(control, completion);
            taken += 1;
        }
        self.received.clear();
        taken
    }

    /// Most bytes of one send, now.
    pub(crate) fn send_bytes(&self) -> usize {
        if self.now < self.interactive_until { BYTES_MAX_INTERACTIVE } else { BYTES_MAX }
    }

    /// Most bytes of one receive, now: neither one noisy peer nor many together own a turn.
    pub(crate) fn receive_bytes(&self) -> usize {
        let interactive = self.now < self.interactive_until;
        let together = if interactive { TURN_BYTES_INTERACTIVE } else { TURN_BYTES };
        let share = together / self.bulk_before.max(1) / RECEIVE_STEP * RECEIVE_STEP;
        share.clamp(RECEIVE_STEP, self.send_bytes())
    }

    /// What bulk streams may receive in this turn: no more than the blocks that will be lent to the kernel. Whom it had none for
    /// would be chance. However few those are, it is enough for one stream: else what one link holds would stop all others.
    fn ration_of_turn(&self) -> usize {
        let [stream, ..] = self.ring.pool_stats();
        let blocks = stream.lent - BLOCKS_SPARED.min(stream.lent / 2);
        let most = (blocks * PoolConfig::STREAM.payload).max(RATION_MIN);
        if self.now < self.interactive_until { most.min(TURN_BYTES_INTERACTIVE) } else { most }
    }

    /// Most bytes that one bulk stream receives, now that so many others wait.
    pub(crate) fn stream_share(&self) -> usize {
        let waiting = self.dirty.rationed.len() + 1;
        (ROUND_BYTES / waiting / RECEIVE_STEP * RECEIVE_STEP).clamp(RECEIVE_STEP, self.send_bytes())
    }

    /// Takes note of a receive's length, for the limits of the next turn.
    pub(crate) fn note_receive(&mut self, length: usize) {
        self.bulk_now += usize::from(length >= RECEIVE_STEP / 2);
    }

    pub(crate) fn sleep_for(&self) -> Duration {
        let spent_due = self.spent.is_due(self.now);
        let deadlines = [self.timers.next_deadline(), self.spent.until().filter(|_| !spent_due)];
        let now = Instant(self.start.elapsed().as_nanos() as u64 + 1);
        let until = deadlines.into_iter().flatten().min().map_or(SLEEP_MAX, |deadline| deadline.since(now));
        // Spent ones that are due go a few at a time.
        let soon = self.dirty.starves() || self.young.is_due(self.now) || spent_due;
        until.min(if soon { RETRY_INTERVAL } else { SLEEP_MAX })
    }

    fn run_timers(&mut self, control: &mut impl Control) {
        let mut due = std::mem::take(&mut self.dirty.due);
        self.timers.expire(self.now, &mut due);
        for (id, owner) in due.drain(..) {
            // An earlier one of them may have ended it.
            if self.timers.owner(id) != Some(owner) {
                continue;
            }
            match owner.what() {
                What::Control => control.on_event(self, Event::Timer { number: owner.index() }),
                What::Link => self.on_link_timer(control, owner),
                What::Flow => self.on_flow_timer(control, owner),
                What::Stream => self.on_stream_timer(control, owner),
                What::Guest => self.on_guest_timer(control, owner),
                What::Udp if self.associations.contains_key(&owner) => self.on_association_timer(control, owner),
                What::Udp => self.on_channel_timer(control, id, owner),
                What::Probe => self.on_probe_timer(control, owner),
                _ => {}
            }
        }
        self.dirty.due = due;
    }

    /// Receives that found no buffer try again: more are lent each time the ring is entered. Only when
    /// the pools near their bounds does what stalled sockets hold have to make room.
    fn retry_starved(&mut self) {
        if !self.dirty.starves() {
            return;
        }
        let pools = [PoolConfig::STREAM, PoolConfig::BULK, PoolConfig::DATAGRAM, PoolConfig::SMALL];
        let scarce =
            std::iter::zip(self.ring.pool_stats(), pools).any(|(stats, pool)| stats.held * 8 >= pool.blocks_max * 7);
        let refused = self.dirty.starved.iter().any(|key| key.what() == What::Listener);
        if scarce || refused {
            // What is scarce does not come back by asking all the time.
            if self.now < self.dirty.retry_at {
                return;
            }
            self.dirty.retry_at = self.now + RETRY_INTERVAL;
        }
        if scarce {
            self.compact_stalled();
            self.compact_links();
        }
        // What exceeds the blocks would only be refused again.
        let [_, _, datagram, _] = self.ring.pool_stats();
        let mut armed = 0;
        while armed < datagram.lent
            && let Some(key) = self.dirty.starved_sockets.pop_front()
        {
            armed += usize::from(self.receive_udp(key));
        }
        let now = self.dirty.starved.len().min(RETRIES_MAX);
        let later = self.dirty.starved.split_off(now);
        for key in std::mem::replace(&mut self.dirty.starved, later) {
            match key.what() {
                What::Link => self.receive_link(key, false),
                What::Stream => self.arm_stream(key, Turn::Rationed),
                What::Guest => self.receive_guest(key),
                What::Listener => self.accept_on(key),
                _ => {}
            }
        }
    }

    /// Everything that became due goes out. What that queues anew on links (credit) goes out as well.
    pub(crate) fn flush(&mut self, control: &mut impl Control) {
        self.flush_datagrams();
        loop {
            let mut idle = true;
            for key in std::mem::take(&mut self.dirty.streams) {
                idle = false;
                self.flush_stream(control, key);
            }
            for key in std::mem::take(&mut self.dirty.links) {
                idle = false;
                self.flush_link(control, key);
            }
            if idle {
                break;
            }
        }
    }

    fn on_completion(&mut self, control: &mut impl Control, completion: Completion) {
        match completion {
            Completion::Recv { user, result, nonempty } => match Key::from_bits(user) {
                key if key.what() == What::Link => self.on_link_received(control, key, result),
                key if key.what() == What::Guest => self.on_guest_received(control, key, result, nonempty),
                key => self.on_stream_received(control, key, result, nonempty),
            },
            Completion::Send { user, batch, result } => match Key::from_bits(user) {
                key if key.what() == What::Link => self.on_link_sent(control, key, batch, result),
                key if key.what() == What::Guest => self.on_guest_sent(control, key, batch, result),
                key => self.on_stream_sent(control, key, batch, result),
            },
            Completion::Connect { user, result } => match Key::from_bits(user) {
                key if key.what() == What::Link => self.on_link_connected(control, key, result),
                key => self.on_stream_connected(control, key, result),
            },
            Completion::OptionSet { user, option: ConnectionOption::UserTimeout(_), result } => {
                self.on_watched_link(Key::from_bits(user), result);
            }
            // A kernel that cannot do it sends as it always did.
            Completion::OptionSet { option: ConnectionOption::UnsentMax(_), .. } => {}
            Completion::Poll { user, .. } => match Key::from_bits(user) {
                key if key.what() == What::Watch => self.on_watched(control, key),
                key if key.what() == What::Link => self.on_link_polled(control, key),
                key => self.on_stream_polled(control, key),
            },
            Completion::Accept { user, result, more } => self.on_accept(control, Key::from_bits(user), result, more),
            Completion::Datagrams { user, result, more } => {
                self.on_datagrams(control, Key::from_bits(user), result, more);
            }
            Completion::SentDatagrams { user, batch, result } => {
                self.on_datagrams_sent(control, Key::from_bits(user), batch, result);
            }
        }
    }

    /// Accepts on a listening socket; each connection comes as [`Event::Accepted`] with `tag`.
    pub fn add_listener(&mut self, socket: Socket, tag: u32) -> Key {
        let key = self.listeners.insert(Listener { socket, tag, op: None });
        self.accept_on(key);
        key
    }

    /// A listener's local address.
    pub fn listener_addr(&self, key: Key) -> Option<std::net::SocketAddr> {
        self.listeners.get(key)?.socket.local_addr().ok()
    }

    /// Closes a listener.
    pub fn remove_listener(&mut self, key: Key) {
        if let Some(listener) = self.listeners.remove(key) {
            if let Some(op) = listener.op {
                self.ring.cancel(op);
            }
            self.graveyard.push(listener.socket);
        }
    }

    /// Takes a listener away without closing it: connections that come from now on wait in it for whoever accepts
    /// there next.
    pub fn take_listener(&mut self, key: Key) -> Option<Socket> {
        let listener = self.listeners.remove(key)?;
        if let Some(op) = listener.op {
            self.ring.cancel(op);
        }
        Some(listener.socket)
    }

    fn accept_on(&mut self, key: Key) {
        if let Some(listener) = self.listeners.get_mut(key) {
            listener.op = Some(self.ring.accept(&listener.socket, key.to_bits()));
        }
    }

    fn on_accept(
        &mut self,
        control: &mut impl Control,
        key: Key,
        result: std::io::Result<(Socket, std::net::SocketAddr)>,
        more: bool,
    ) {
        let Some(listener) = self.listeners.get_mut(key) else { return };
        let tag = listener.tag;
        match result {
            Ok((socket, peer)) => {
                let peer = crate::udp::canonical(peer);
                self.connected = true;
                control.on_event(self, Event::Accepted { tag, socket, peer });
            }
            // Gone before its address could be read.
            Err(error) if error.kind() == std::io::ErrorKind::NotConnected => {}
            Err(error) => {
                self.counts.accept_errors += 1;
                if self.dirty.warned_at.is_none_or(|at| self.now.since(at) >= WARN_INTERVAL) {
                    self.dirty.warned_at = Some(self.now);
                    tracing::warn!(%error, "cannot accept connections; is the limit of descriptors (LimitNOFILE=) too low?");
                }
                // Out of descriptors, most likely: asking again at once would only spin.
                if !more {
                    self.dirty.starved.push(key);
                    return;
                }
            }
        }
        if !more {
            self.accept_on(key);
        }
    }

    /// Watches a descriptor of the control's for readability: [`Event::Watched`], again and again.
    /// The descriptor must live until [`Engine::unwatch`].
    pub fn watch(&mut self, fd: &impl AsRawFd, number: u32) -> Key {
        let key = self.watches.insert(Watch { fd: fd.as_raw_fd(), number, op: None });
        self.arm_watch(key);
        key
    }

    /// Ends a watch.
    pub fn unwatch(&mut self, key: Key) {
        if let Some(op) = self.watches.remove(key).and_then(|watch| watch.op) {
            self.ring.cancel(op);
        }
    }

    fn arm_watch(&mut self, key: Key) {
        if let Some(watch) = self.watches.get_mut(key) {
            watch.op = Some(self.ring.poll(&watch.fd, PollEvents::READABLE, key.to_bits()));
        }
    }

    fn on_watched(&mut self, control: &mut impl Control, key: Key) {
        if let Some(watch) = self.watches.get(key) {
            control.on_event(self, Event::Watched { number: watch.number });
            self.arm_watch(key);
        }
    }
}
