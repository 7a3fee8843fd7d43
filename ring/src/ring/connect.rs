//! Connecting, with first bytes or without.

use std::net::SocketAddr;

use io_uring::squeue;
use socket2::SockAddr;

use super::Ring;
use crate::batch::SendBatch;
use crate::direct::Target;
use crate::op::{Op, OpId, SendMode};
use crate::sqe;

impl Ring {
    /// Connects a TCP socket.
    pub fn connect(&mut self, socket: &impl Target, to: SocketAddr, user: u64) -> OpId {
        let (id, entry) = self.connect_entry(socket, to, user);
        // SAFETY: the address is in the operation table until the final completion.
        unsafe { self.uring.push(entry) };
        id
    }

    /// Connects a TCP socket and, once that has succeeded, sends a batch in [`SendMode::TryNow`]: within the same
    /// [`Ring::enter`] where the connect succeeds at once, else within that which brings its success or the next. The
    /// operations complete in this order; after a failed connect the send tells `ECANCELED`, or another error. In rare cases
    /// (a full submission queue) it begins early, and tells [`WouldBlock`](std::io::ErrorKind::WouldBlock).
    ///
    /// The kernel looks the socket's number up when the send begins: close the socket only after the send's completion, also
    /// after a cancel, or the bytes may reach whoever has that number then. Cancelling the send before has no effect.
    pub fn connect_and_send(
        &mut self,
        socket: &impl Target,
        to: SocketAddr,
        batch: SendBatch,
        user: u64,
    ) -> (OpId, OpId) {
        let (connect, first) = self.connect_entry(socket, to, user);
        let (send, then) = self.send_entry(socket, batch, SendMode::TryNow, user);
        // SAFETY: address and batch are in the operation table until their final completions, as in `connect` and `send`.
        unsafe { self.uring.push_linked(sqe::linked(first), then) };
        (connect, send)
    }

    fn connect_entry(&mut self, socket: &impl Target, to: SocketAddr, user: u64) -> (OpId, squeue::Entry) {
        let (id, op) = self.ops.insert(user, Op::Connect(Box::new(SockAddr::from(to))));
        let Op::Connect(name) = op else { unreachable!("just inserted") };
        (id, sqe::connect(socket.name(), name.as_ptr().cast(), name.len()).user_data(id.raw()))
    }
}
