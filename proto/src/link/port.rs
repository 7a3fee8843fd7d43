//! The table of a link's ports.

use std::collections::VecDeque;

use slab::Slab;

use crate::code::Code;
use crate::id::PortId;
use crate::limits::WINDOW_EARLY;
use crate::rare::Rare;
use crate::time::Instant;

/// A port's place in its link's table. Stale ones (the port is gone, its place reused) are recognised.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Slot {
    index: u32,
    id: PortId,
}

impl Slot {
    /// No port: every table misses it.
    pub const NONE: Self = Self { index: u32::MAX, id: PortId(u32::MAX) };

    /// The identifier on the wire.
    pub fn id(self) -> PortId {
        self.id
    }

    /// Both parts in one number, for a driver's key.
    pub fn to_bits(self) -> u64 {
        u64::from(self.index) << 32 | u64::from(self.id.0)
    }

    /// The reverse of [`Slot::to_bits`].
    pub fn from_bits(bits: u64) -> Self {
        Self { index: (bits >> 32) as u32, id: PortId(bits as u32) }
    }
}

/// What travels through a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortKind {
    /// A TCP port: opened, a server, or a stream.
    Tcp,
    /// A UDP port.
    Udp,
}

/// Which list a port waits in to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Listed {
    No,
    Fast,
    Bulk,
}

/// One direction's end: half-close is the pair of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outgoing {
    Open,
    /// The end comes after what is queued.
    Finishing,
    Finished,
}

pub(super) struct Port<P> {
    pub(super) id: PortId,
    pub(super) kind: PortKind,
    pub(super) owner: u64,
    pub(super) listed: Listed,
    /// Bytes that its last bulk turn took beyond its quantum, negative: taken off the next one.
    pub(super) debt: i64,
    pub(super) outgoing: Outgoing,
    pub(super) fin_received: bool,
    /// Number of the request to close, once that is asked; what still comes is dropped.
    pub(super) closing: Option<u16>,
    /// An ephemeral one: a failed connect ends it.
    pub(super) quiet: bool,
    /// Nobody wants to hear that its connect succeeded.
    pub(super) unanswered: bool,

    /// Whole encoded frames.
    pub(super) queue: VecDeque<P>,
    /// Their bytes.
    pub(super) queued: usize,
    /// UDP: further parts of a datagram whose first part was taken, and the bytes that they may still have.
    pub(super) part_room: usize,
    /// Payload bytes sent, and the offset up to which the other end lets us.
    pub(super) sent: u64,
    pub(super) send_max: u64,

    /// Payload bytes received, those of them that the driver has got rid of, and the offset told to the other end.
    pub(super) received: u64,
    pub(super) consumed: u64,
    pub(super) granted: u64,
    pub(super) window: u32,
    /// What the link's budget is charged with for it, in bytes.
    pub(super) charged: u64,
    /// It counts among those that share the link's budget.
    pub(super) wants_window: bool,
    /// Start of the present measurement of consumption, and the offset there.
    pub(super) epoch: Instant,
    pub(super) epoch_consumed: u64,
    /// What [`super::Link`]'s count of empty moments was then.
    pub(super) epoch_empty: u32,
}

impl<P> Port<P> {
    fn new(id: PortId, kind: PortKind, owner: u64) -> Self {
        Self {
            id,
            kind,
            owner,
            listed: Listed::No,
            debt: 0,
            outgoing: Outgoing::Open,
            fin_received: false,
            closing: None,
            quiet: false,
            unanswered: false,
            queue: VecDeque::new(),
            queued: 0,
            part_room: 0,
            sent: 0,
            send_max: u64::from(WINDOW_EARLY),
            received: 0,
            consumed: 0,
            granted: u64::from(WINDOW_EARLY),
            window: WINDOW_EARLY,
            charged: 0,
            wants_window: false,
            epoch: Instant::ZERO,
            epoch_consumed: 0,
            epoch_empty: 0,
        }
    }

    /// Both directions ended in order.
    pub(super) fn is_over(&self) -> bool {
        self.kind == PortKind::Tcp && self.fin_received && self.outgoing == Outgoing::Finished
    }
}

const NOWHERE: u32 = u32::MAX;

pub(super) struct Ports<P> {
    table: Rare<Slab<Port<P>>>,
    /// Place of the ports that the other end made, by its index.
    theirs: Rare<Vec<u32>>,
    by_mediator: bool,
    generation: u32,
    max: u32,
}

impl<P: 'static> Ports<P> {
    pub(super) fn new(by_mediator: bool, max: u32) -> Self {
        Self { table: Rare::default(), theirs: Rare::default(), by_mediator, generation: 0, max }
    }

    pub(super) fn len(&self) -> usize {
        self.table.len()
    }

    /// Frees the table's memory if no port is left. Identifiers go on where they were.
    pub(super) fn release(&mut self) {
        if self.table.is_empty() {
            self.table.clear();
            self.theirs.clear();
        }
    }

    /// A port with an identifier of our own.
    pub(super) fn make(&mut self, kind: PortKind, owner: u64) -> Result<Slot, Code> {
        if self.table.len() >= self.max as usize {
            return Err(Code::TooManyPorts);
        }
        self.generation = self.generation.wrapping_add(1);
        let entry = self.table.vacant_entry();
        let index = entry.key() as u32;
        let id = PortId::new(self.by_mediator, index, self.generation);
        entry.insert(Port::new(id, kind, owner));
        Ok(Slot { index, id })
    }

    /// A port that the other end made.
    pub(super) fn adopt(&mut self, id: PortId, kind: PortKind) -> Result<Slot, Code> {
        if id.by_mediator() == self.by_mediator || id.index() >= self.index_limit() {
            return Err(Code::ProtocolError);
        }
        if self.find(id).is_some() {
            return Err(Code::PortExists);
        }
        if self.table.len() >= self.max as usize {
            return Err(Code::TooManyPorts);
        }
        if self.theirs.len() <= id.index() {
            self.theirs.resize(id.index() + 1, NOWHERE);
        }
        // A newer generation at an index whose older port still lives: the other end forgot the old
        // one, which is its error, and only its own port is hurt.
        if self.theirs[id.index()] != NOWHERE {
            return Err(Code::PortExists);
        }
        let index = self.table.insert(Port::new(id, kind, 0)) as u32;
        self.theirs[id.index()] = index;
        Ok(Slot { index, id })
    }

    /// The other end's indexes are dense (its table's lowest free place comes first), so that
    /// anything far above the limit of ports is an error and not a need for memory.
    fn index_limit(&self) -> usize {
        (self.max as usize).saturating_mul(2).max(64)
    }

    pub(super) fn find(&self, id: PortId) -> Option<Slot> {
        let index =
            if id.by_mediator() == self.by_mediator { id.index() as u32 } else { *self.theirs.get(id.index())? };
        let slot = Slot { index, id };
        self.get(slot).map(|_| slot)
    }

    pub(super) fn get(&self, slot: Slot) -> Option<&Port<P>> {
        self.table.get(slot.index as usize).filter(|port| port.id == slot.id)
    }

    pub(super) fn get_mut(&mut self, slot: Slot) -> Option<&mut Port<P>> {
        self.table.get_mut(slot.index as usize).filter(|port| port.id == slot.id)
    }

    /// The port at a place that a list names: lists hold live ones only.
    pub(super) fn at(&mut self, index: u32) -> Option<&mut Port<P>> {
        self.table.get_mut(index as usize)
    }

    pub(super) fn slot_at(&self, index: u32) -> Option<Slot> {
        self.table.get(index as usize).map(|port| Slot { index, id: port.id })
    }

    pub(super) fn remove(&mut self, slot: Slot) -> Option<Port<P>> {
        self.get(slot)?;
        let port = self.table.remove(slot.index as usize);
        if port.id.by_mediator() != self.by_mediator
            && let Some(place) = self.theirs.get_mut(port.id.index())
        {
            *place = NOWHERE;
        }
        Some(port)
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Port<P>> {
        self.table.iter_mut().map(|(_, port)| port)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (Slot, u64)> + '_ {
        self.table.iter().map(|(index, port)| (Slot { index: index as u32, id: port.id }, port.owner))
    }
}

impl Slot {
    pub(super) fn index(self) -> u32 {
        self.index
    }
}
