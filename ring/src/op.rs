//! Operations in flight, and what their completions say.

use std::io;
use std::net::SocketAddr;
use std::num::NonZeroU64;
use std::ops::BitOr;

use slab::Slab;
use socket2::SockAddr;

use crate::batch::{DatagramBatch, SendBatch};
use crate::datagram::Datagrams;
use crate::direct::Name;
use crate::socket::{ConnectionOption, Socket};

/// Names an operation in flight; stale ones are harmless.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct OpId(NonZeroU64);

impl OpId {
    /// What no operation is called: for entries whose completion nobody looks at.
    pub(crate) const NOBODY: u64 = u64::MAX;

    fn new(index: usize, generation: u32) -> Self {
        Self::from_raw(u64::from(generation) << 32 | index as u64 & 0xffff_ffff)
    }

    /// The reverse of [`OpId::raw`]. Generations begin with 1, so that zero is nobody's either.
    pub(crate) fn from_raw(raw: u64) -> Self {
        Self(NonZeroU64::new(raw).unwrap_or(NonZeroU64::MAX))
    }

    pub(crate) fn raw(self) -> u64 {
        self.0.get()
    }

    fn index(self) -> usize {
        (self.raw() & 0xffff_ffff) as usize
    }
}

/// What a poll waits for, and what it found: the bits of `poll(2)`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct PollEvents(pub u32);

impl PollEvents {
    /// Data, or the peer's end of stream or reset: `POLLIN | POLLRDHUP`.
    pub const READABLE: Self = Self((libc::POLLIN | libc::POLLRDHUP) as u32);
    /// Room to send: `POLLOUT`.
    pub const WRITABLE: Self = Self(libc::POLLOUT as u32);
    /// The peer will send no more: `POLLRDHUP`.
    pub const PEER_CLOSED: Self = Self(libc::POLLRDHUP as u32);
    /// An error is pending, always reported: `POLLERR`.
    pub const ERROR: Self = Self(libc::POLLERR as u32);
    /// Both directions are closed, always reported: `POLLHUP`.
    pub const HANGUP: Self = Self(libc::POLLHUP as u32);

    /// Whether a wait for these has come to its end with `found`. Where the kernel is asked through io_uring, it always
    /// reports `PEER_CLOSED` too (its `IO_POLL_UNMASK`), which is none to whoever waits for room only.
    pub(crate) fn are_met(self, found: Self) -> bool {
        found.intersects(self | Self::ERROR | Self::HANGUP | Self(libc::POLLNVAL as u32))
    }

    /// Whether any bit of `other` is set.
    pub fn intersects(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }
}

impl BitOr for PollEvents {
    type Output = Self;
    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// What a stream's send does when the socket is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SendMode {
    /// Wait until all is sent, or an error.
    WaitAll,
    /// Complete at once, short or with `EAGAIN` ([`io::ErrorKind::WouldBlock`]).
    TryNow,
}

/// Who is told of a send's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Told {
    Always,
    /// The kernel tells of a failure only.
    OnFailure,
}

/// The outcome of an operation; `user` is what the caller gave with it.
#[derive(Debug)]
pub enum Completion {
    /// Of [`crate::Ring::accept`].
    Accept {
        /// As given.
        user: u64,
        /// The connection and its peer. An error may concern one connection only, if `more`: `ENOTCONN` is one that
        /// was gone before its address could be read, `EMFILE` asks for descriptors to be freed.
        result: io::Result<(Socket, SocketAddr)>,
        /// Whether the operation goes on; else it has to be started again.
        more: bool,
    },
    /// Of [`crate::Ring::connect`] and [`crate::Ring::connect_and_send`].
    Connect {
        /// As given.
        user: u64,
        /// Connected, or why not.
        result: io::Result<()>,
    },
    /// Of [`crate::Ring::set_option`].
    OptionSet {
        /// As given.
        user: u64,
        /// As given.
        option: ConnectionOption,
        /// Set, or why not.
        result: io::Result<()>,
    },
    /// Of [`crate::Ring::poll`].
    Poll {
        /// As given.
        user: u64,
        /// What is ready.
        result: io::Result<PollEvents>,
    },
    /// Of [`crate::Ring::recv_stream`], [`crate::Ring::recv_bulk`] and [`crate::Ring::recv_small`]; the bytes are in the caller's vector.
    Recv {
        /// As given.
        user: u64,
        /// Bytes received; 0 is the end of the stream. `ENOBUFS` is an empty pool: nothing is lost, ask again later.
        result: io::Result<usize>,
        /// Whether the socket had more to read when this completed (a hint: `false` says that waiting is likely).
        nonempty: bool,
    },
    /// Of [`crate::Ring::send`], [`crate::Ring::send_quietly`] and [`crate::Ring::connect_and_send`].
    Send {
        /// As given.
        user: u64,
        /// The batch as it was given: [`SendBatch::advance`] by what was sent, or drop it.
        batch: SendBatch,
        /// Bytes sent.
        result: io::Result<usize>,
    },
    /// Of [`crate::Ring::recv_datagrams`].
    Datagrams {
        /// As given.
        user: u64,
        /// What was received. An error without `more` ends the operation, which may be started again: `ENOBUFS` is an
        /// empty pool, `ECONNREFUSED` and the like are ICMP's answer to an earlier send.
        /// An empty datagram ends it likewise (the kernel takes it for an end), though it is a good result.
        result: io::Result<Datagrams>,
        /// Whether the operation goes on.
        more: bool,
    },
    /// Of [`crate::Ring::send_datagrams`] and [`crate::Ring::send_datagrams_quietly`].
    SentDatagrams {
        /// As given.
        user: u64,
        /// The batch as it was given.
        batch: DatagramBatch,
        /// Bytes sent: all of them, or an error (`EIO`, `EINVAL` and `EMSGSIZE` with a segment size call for sending without).
        result: io::Result<usize>,
    },
}

/// An operation in flight, with what the kernel may still look at.
pub(crate) enum Op {
    Accept,
    Connect(Box<SockAddr>),
    /// The option's value.
    SetOption(ConnectionOption, Box<libc::c_uint>),
    Poll(Poll),
    RecvStream,
    RecvBulk,
    RecvSmall,
    Send(SendBatch),
    RecvDatagrams,
    SendDatagrams(DatagramBatch),
    /// Of this place in the ring's table.
    CloseDirect(u32),
    Wake(Box<u64>),
}

/// A wait for events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Poll {
    pub(crate) on: Name,
    pub(crate) events: PollEvents,
    /// It is to end, whatever it finds.
    pub(crate) cancelled: bool,
}

struct Entry {
    user: u64,
    generation: u32,
    /// The kernel will tell of its end, or has.
    told: bool,
    op: Op,
}

/// All operations in flight.
#[derive(Default)]
pub(crate) struct OpTable {
    entries: Slab<Entry>,
    generation: u32,
}

impl OpTable {
    /// Adds an operation; the place in the table keeps what the operation owns until [`OpTable::remove`].
    pub(crate) fn insert(&mut self, user: u64, op: Op) -> (OpId, &mut Op) {
        // All ones would let an identifier be NOBODY, zero that of nothing.
        self.generation = self.generation % (u32::MAX - 1) + 1;
        let vacant = self.entries.vacant_entry();
        let id = OpId::new(vacant.key(), self.generation);
        (id, &mut vacant.insert(Entry { user, generation: self.generation, told: true, op }).op)
    }

    pub(crate) fn get(&self, id: OpId) -> Option<(u64, &Op)> {
        let entry = self.entries.get(id.index())?;
        (OpId::new(id.index(), entry.generation) == id).then_some((entry.user, &entry.op))
    }

    /// Takes note that an operation is to end: where it is begun again and again, it is not any more.
    pub(crate) fn cancel(&mut self, id: OpId) {
        if self.get(id).is_some()
            && let Some(Entry { op: Op::Poll(poll), .. }) = self.entries.get_mut(id.index())
        {
            poll.cancelled = true;
        }
    }

    pub(crate) fn remove(&mut self, id: OpId) -> Option<(u64, Op)> {
        self.get(id)?;
        let entry = self.entries.try_remove(id.index())?;
        Some((entry.user, entry.op))
    }

    /// Takes note of whether the kernel tells of an operation's end.
    pub(crate) fn set_told(&mut self, id: OpId, told: bool) {
        if self.get(id).is_some()
            && let Some(entry) = self.entries.get_mut(id.index())
        {
            entry.told = told;
        }
    }

    /// Whether an operation is in the table, and the kernel has not told of its end.
    pub(crate) fn is_untold(&self, id: OpId) -> bool {
        self.get(id).is_some() && self.entries.get(id.index()).is_some_and(|entry| !entry.told)
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stale_identifiers_name_nothing() {
        let mut table = OpTable::default();
        let first = table.insert(7, Op::RecvSmall).0;
        assert!(matches!(table.remove(first), Some((7, Op::RecvSmall))));
        let second = table.insert(8, Op::Accept).0;
        assert_eq!(first.index(), second.index());
        assert!(table.get(first).is_none() && table.remove(first).is_none());
        assert!(matches!(table.get(second), Some((8, Op::Accept))));
        assert!(table.get(OpId::from_raw(OpId::NOBODY)).is_none());
        assert_eq!(table.len(), 1);
    }
}
