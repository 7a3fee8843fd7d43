//! What shards send each other: a greeted link to its owner, and questions that concern all of them.

use crossbeam_channel::Sender;
use isthmus_engine::{Detached, Engine, Key, TakenGuest};
use isthmus_proto::hello::{Hello, MediatorSummary};
use isthmus_proto::{Code, MediatorId, ShardId};
use isthmus_ring::Waker;

use super::lead::Visit;
use super::socks::Call;
use super::{Shard, tag};
use crate::trust::{Glob, Grant};

/// Messages that may wait for a shard. A link for which there is no room is told to come back later.
pub(super) const MAIL_MAX: usize = 8192;

/// Another shard's letter-box.
pub(super) struct Peer {
    pub(super) mail: Sender<Message>,
    pub(super) waker: Waker,
}

pub(super) enum Message {
    /// A greeted link for its owner.
    Link { detached: Box<Detached>, hello: Box<Hello>, grant: Box<Grant> },
    /// A visitor for one of your mediators.
    Visit { taken: TakenGuest, visit: Box<Visit> },
    /// A client of a proxy, for its mediator's shard.
    Client { taken: TakenGuest, tag: u32, call: Box<Call> },
    /// Which of your mediators does this pattern name?
    List { from: ShardId, link: Key, query: u32, glob: Glob, after: Option<MediatorId>, limit: usize },
    /// Those.
    Listed { link: Key, query: u32, rows: Vec<MediatorSummary> },
}

impl Shard {
    /// Sends to another shard.
    ///
    /// # Errors
    /// [`Code::Overloaded`] when its letter-box is full.
    pub(super) fn send(&self, to: ShardId, message: Message) -> Result<(), Code> {
        let peer = self.peers.get(usize::from(to.0)).ok_or(Code::Failed)?;
        peer.mail.try_send(message).map_err(|_| Code::Overloaded)?;
        peer.waker.wake();
        Ok(())
    }

    pub(super) fn on_message(&mut self, engine: &mut Engine, message: Message) {
        match message {
            Message::Link { detached, hello, grant } => {
                let link = engine.attach(*detached);
                self.admit(engine, link, *hello, *grant);
                engine.resume(self, link);
            }
            Message::Visit { taken, visit } => {
                let guest = engine.place_guest(taken, tag::LED);
                self.lead(engine, guest, tag::LED, *visit);
            }
            Message::Client { taken, tag, call } => {
                let guest = engine.place_guest(taken, tag);
                self.serve_call(engine, guest, tag, *call);
            }
            Message::List { from, link, query, glob, after, limit } => {
                let rows = self.summaries(engine, &glob, after.as_ref(), limit);
                // A full letter-box: the question waits until its terminal gives it up and leaves.
                let _ = self.send(from, Message::Listed { link, query, rows });
            }
            Message::Listed { link, query, rows } => self.on_listed(engine, link, query, rows),
        }
    }
}
