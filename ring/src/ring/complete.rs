//! From the kernel's completion entries to [`Completion`]s.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

use io_uring::cqueue;

use super::{BULK, DATAGRAM, Ring, SMALL, STREAM};
use crate::datagram::Datagrams;
use crate::op::{Completion, Op, OpId, Poll, PollEvents};
use crate::piece::Piece;
use crate::socket::Socket;
use crate::sqe;

impl Ring {
    /// The next entry of the kernel's, after those that were taken ahead.
    pub(super) fn next_entry(&mut self) -> Option<cqueue::Entry> {
        self.quiet.entries.pop_front().or_else(|| self.uring.next())
    }

    /// What `entry` means to the caller; `None` for the ring's own operations and for stale entries.
    pub(super) fn complete(&mut self, entry: &cqueue::Entry, received: &mut Vec<Piece>) -> Option<Completion> {
        let id = OpId::from_raw(entry.user_data());
        if let Some(&(_, &Op::Poll(poll))) = self.ops.get(id).as_ref()
            && !self.is_over(id, poll, entry)
        {
            return None;
        }
        if cqueue::more(entry.flags()) {
            return match self.ops.get(id)? {
                (user, Op::Accept) => Some(accepted(user, entry, true)),
                (user, Op::RecvDatagrams) => Some(self.datagrams(user, entry, true)),
                (user, Op::Poll(_)) => {
                    // What the kernel still tells of it is stale.
                    self.cancel(id);
                    self.ops.remove(id);
                    Some(Completion::Poll { user, result: found(entry) })
                }
                _ => None,
            };
        }
        let (user, op) = self.ops.remove(id)?;
        Some(match op {
            Op::Accept => accepted(user, entry, false),
            Op::Connect(_) => Completion::Connect { user, result: outcome(entry).map(drop) },
            Op::SetOption(option, _) => Completion::OptionSet { user, option, result: outcome(entry).map(drop) },
            Op::Poll(_) => Completion::Poll { user, result: found(entry) },
            Op::RecvStream => self.received(user, entry, STREAM, received),
            Op::RecvBulk => self.received(user, entry, BULK, received),
            Op::RecvSmall => self.received(user, entry, SMALL, received),
            Op::Send(batch) => Completion::Send { user, batch, result: outcome(entry) },
            Op::RecvDatagrams => self.datagrams(user, entry, false),
            Op::SendDatagrams(batch) => Completion::SentDatagrams { user, batch, result: outcome(entry) },
            Op::CloseDirect(place) => {
                self.places.give_back(place);
                return None;
            }
            Op::Wake(_) => {
                self.arm_wake();
                return None;
            }
        })
    }

    /// Whether what a poll found is what was asked for. Else it goes on: a socket whose peer sends no more is reported as long as
    /// it is looked at anew, so only what changes is looked at from then on.
    fn is_over(&mut self, id: OpId, poll: Poll, entry: &cqueue::Entry) -> bool {
        let over = poll.cancelled || found(entry).map_or(true, |found| poll.events.are_met(found));
        if !over && !cqueue::more(entry.flags()) {
            // SAFETY: the entry points to nothing.
            unsafe { self.uring.push(sqe::poll_changes(poll.on, poll.events).user_data(id.raw())) };
        }
        over
    }

    fn received(&mut self, user: u64, entry: &cqueue::Entry, kind: usize, received: &mut Vec<Piece>) -> Completion {
        let result = self.count_exhausted(kind, outcome(entry));
        let provided = &mut self.provided[kind];
        if let Some(first) = cqueue::buffer_select(entry.flags()) {
            match result.as_ref().map_or(0, |&bytes| bytes) {
                0 => drop(provided.take_one(first, 0)),
                bytes => provided.take_run(first, bytes, received),
            }
        }
        Completion::Recv { user, result, nonempty: cqueue::sock_nonempty(entry.flags()) }
    }

    fn datagrams(&mut self, user: u64, entry: &cqueue::Entry, more: bool) -> Completion {
        let outcome = self.count_exhausted(DATAGRAM, outcome(entry));
        let bytes = outcome.as_ref().map_or(0, |&bytes| bytes);
        let first = cqueue::buffer_select(entry.flags());
        let piece = first.and_then(|first| self.provided[DATAGRAM].take_one(first, bytes));
        let result = outcome.and_then(|_| {
            let piece = piece.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))?;
            Datagrams::parse(piece)
        });
        Completion::Datagrams { user, result, more }
    }

    fn count_exhausted(&self, kind: usize, outcome: io::Result<usize>) -> io::Result<usize> {
        if let Err(e) = &outcome
            && e.raw_os_error() == Some(libc::ENOBUFS)
        {
            self.provided[kind].pool().count_exhausted();
        }
        outcome
    }
}

fn found(entry: &cqueue::Entry) -> io::Result<PollEvents> {
    outcome(entry).map(|bits| PollEvents(bits as u32))
}

fn outcome(entry: &cqueue::Entry) -> io::Result<usize> {
    match entry.result() {
        result @ 0.. => Ok(result as usize),
        error => Err(io::Error::from_raw_os_error(-error)),
    }
}

fn accepted(user: u64, entry: &cqueue::Entry, more: bool) -> Completion {
    let result = outcome(entry).and_then(|fd| {
        // SAFETY: a descriptor that the kernel made for this completion; nobody else owns it.
        let socket = Socket::from(unsafe { OwnedFd::from_raw_fd(fd as i32) });
        let peer = socket.peer_addr()?;
        Ok((socket, peer))
    });
    Completion::Accept { user, result, more }
}
