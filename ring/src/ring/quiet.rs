//! Sends whose success ends no sleep: what is small, and taken by the socket while it is submitted, needs no turn of the
//! loop to hear that it was.
//!
//! The kernel completes such a send within the system call that submits it, one way or the other, and posts an entry only
//! if it failed or was short. So once everything is submitted, every such send without an entry has succeeded. An entry
//! may be anywhere in the queue: the queue is taken ahead to tell them apart, and successes come before what it holds.

use std::collections::VecDeque;

use io_uring::cqueue;

use super::Ring;
use crate::batch::{DatagramBatch, Prepared, SendBatch};
use crate::direct::Target;
use crate::op::{Completion, Op, OpId, Told};
use crate::socket::Socket;
use crate::sqe;

/// Quiet sends, and what was taken ahead to learn of their ends.
#[derive(Default)]
pub(super) struct Quiet {
    /// Pushed; their ends are not known.
    sent: Vec<OpId>,
    /// Succeeded, to be told.
    done: Vec<OpId>,
    /// Of the kernel, in its order.
    pub(super) entries: VecDeque<cqueue::Entry>,
    /// The caller waits for one of them.
    awaited: bool,
}

impl Quiet {
    /// Whether there is something to be taken, or will be as soon as what was pushed is submitted.
    pub(super) fn is_awaited(&self) -> bool {
        self.awaited || !self.done.is_empty() || !self.entries.is_empty()
    }
}

impl Ring {
    /// Sends a batch on a stream as far as the socket takes it at once. When it takes all, that alone does not end the
    /// ring's sleep: the completion comes with whatever does, before it. Anything less is told as of
    /// [`SendMode::TryNow`](crate::SendMode::TryNow). For few bytes, after which nothing else waits to be sent.
    pub fn send_quietly(&mut self, socket: &impl Target, batch: SendBatch, user: u64) -> OpId {
        let name = socket.name();
        let (id, op) = self.ops.insert(user, Op::Send(batch));
        let Op::Send(batch) = op else { unreachable!("just inserted") };
        let entry = match batch.0.prepare() {
            Prepared::One(bytes, len) => sqe::send_quietly(name, bytes, len),
            Prepared::Many(message) => sqe::send_message_quietly(name, message),
        };
        self.begin_quietly(id);
        // SAFETY: as in `send`: the batch stays in the operation table until the kernel told of a failure, or has submitted
        // it without one, after which it does not look at it any more.
        unsafe { self.uring.push(entry.user_data(id.raw())) };
        id
    }

    /// Sends a batch of datagrams to one destination. Its success alone does not end the ring's sleep, as with
    /// [`Ring::send_quietly`].
    pub fn send_datagrams_quietly(&mut self, socket: &Socket, batch: DatagramBatch, user: u64) -> OpId {
        let id = self.push_datagrams(socket, batch, Told::OnFailure, user);
        self.begin_quietly(id);
        id
    }

    /// Somebody waits for this operation's end: if it is a quiet send, the next [`Ring::enter`] does not sleep.
    pub fn attend(&mut self, id: OpId) {
        self.quiet.awaited |= self.ops.is_untold(id);
    }

    fn begin_quietly(&mut self, id: OpId) {
        self.ops.set_told(id, false);
        self.quiet.sent.push(id);
    }

    /// Tells quiet sends that failed from those that succeeded, if all of them were submitted.
    pub(super) fn look_for_failures(&mut self) {
        if self.quiet.sent.is_empty() {
            self.quiet.awaited = false;
            return;
        }
        if !self.uring.is_submitted() {
            return;
        }
        while let Some(entry) = self.uring.next() {
            self.ops.set_told(OpId::from_raw(entry.user_data()), true);
            self.quiet.entries.push_back(entry);
        }
        // A failure may be among what found no room in the queue; the next `enter` brings it.
        if self.uring.has_overflowed() {
            self.quiet.awaited = true;
            return;
        }
        // Not before: whoever enters twice without looking in between must not sleep the second time.
        self.quiet.awaited = false;
        let ops = &self.ops;
        self.quiet.done.extend(self.quiet.sent.drain(..).filter(|&id| ops.is_untold(id)));
    }

    /// A quiet send that succeeded.
    pub(super) fn next_quiet(&mut self) -> Option<Completion> {
        while let Some(id) = self.quiet.done.pop() {
            match self.ops.remove(id) {
                Some((user, Op::Send(batch))) => {
                    let result = Ok(batch.bytes());
                    return Some(Completion::Send { user, batch, result });
                }
                Some((user, Op::SendDatagrams(batch))) => {
                    let result = Ok(batch.bytes());
                    return Some(Completion::SentDatagrams { user, batch, result });
                }
                _ => {}
            }
        }
        None
    }
}
