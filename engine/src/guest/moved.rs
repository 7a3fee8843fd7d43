//! A guest's move to another thread's engine, since the mediator that it turned out to be for lives there.

use isthmus_ring::Socket;

use super::{Guest, Phase};
use crate::Engine;
use crate::key::Key;

/// A guest between two engines: its connection, and what it has sent. Dropping it closes the connection.
#[derive(Debug)]
pub struct TakenGuest {
    socket: Socket,
    received: Vec<u8>,
    ended: bool,
}

impl TakenGuest {
    /// A connection from which nothing was read yet.
    pub fn new(socket: Socket) -> Self {
        Self { socket, received: Vec::new(), ended: false }
    }
}

impl Engine {
    /// Takes a guest out, for [`Engine::place_guest`] of another thread's engine. Only while nothing is under way on
    /// its connection: within the handling of [`crate::Event::GuestBytes`], and with no reply unsent; otherwise `None`,
    /// and the guest stays.
    pub fn take_guest(&mut self, key: Key) -> Option<TakenGuest> {
        let guest = self.guests.get(key)?;
        let resting = guest.receive_op.is_none() && guest.send_op.is_none() && guest.replies.is_empty();
        if !resting || guest.phase != Phase::Waiting {
            return None;
        }
        let guest = self.guests.remove(key)?;
        if let Some(timer) = guest.timer {
            self.timers.remove(timer);
        }
        Some(TakenGuest { socket: guest.socket?, received: guest.received, ended: guest.ended })
    }

    /// Takes a guest in. It has no deadline, and nothing more is received of it: [`Engine::admit`] or
    /// [`Engine::dismiss`] it at once.
    pub fn place_guest(&mut self, taken: TakenGuest, tag: u32) -> Key {
        let TakenGuest { socket, received, ended } = taken;
        self.guests.insert(Guest {
            socket: Some(socket),
            tag,
            phase: Phase::Waiting,
            timer: None,
            received,
            receive_op: None,
            ended,
            replies: Vec::new(),
            send_op: None,
            sending: 0,
        })
    }
}
