//! Where the management plane and the shards meet: commands one way, rows ([`super::rows`]) and counters the other.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Sender, TrySendError};
use isthmus_proto::MediatorId;
use isthmus_ring::Socket;
use tokio::sync::oneshot;

use super::counters::ShardCounters;
use super::rows::{ExposeRow, FlowPage, PublishRow, ShardState, TunnelDetail, TunnelRow};
use crate::expose::{Expose, ServerPort};
use crate::names::Names;
use crate::publish::{Bound, Origin, Proto};
use crate::run::Shared;
use crate::trust::{Glob, Trust};

/// Commands that may wait for a shard; one more is refused, and the operator told that the shard is busy.
pub const COMMANDS_MAX: usize = 256;

/// One more than the most rows of one page. The shards are asked for it in parts.
pub const ROWS_MAX: usize = 10_001;

/// What a shard is asked to do, between two turns of its loop.
///
/// A reply may have lost its reader (who waits for a bounded time): the shard ignores a failed send.
#[derive(Debug)]
pub enum Command {
    /// The tunnels that pass the filter, in the order of their mediators' names.
    Tunnels {
        /// Which ones.
        filter: TunnelFilter,
        /// Takes at most `filter.limit` rows.
        reply: oneshot::Sender<Vec<TunnelRow>>,
    },
    /// All that is known of one mediator.
    Detail {
        /// Whose; only its owner shard is asked.
        mediator: MediatorId,
        /// Takes it, if the mediator is connected.
        reply: oneshot::Sender<Option<Box<TunnelDetail>>>,
    },
    /// Where do names lead?
    Names {
        /// Takes the table.
        reply: oneshot::Sender<Arc<Names>>,
    },
    /// From now on names lead there; visitors who are in stay.
    SetNames(Arc<Names>),
    /// End a mediator's tunnel ([`isthmus_proto::Code::Killed`]).
    Kill {
        /// Whose; only its owner shard is asked.
        mediator: MediatorId,
        /// Takes whether there was one.
        reply: oneshot::Sender<bool>,
    },
    /// Tell every tunnel to go, spread over this time, and send mediators away that come.
    Drain {
        /// From now.
        over: Duration,
        /// Takes how many tunnels there are to go.
        reply: oneshot::Sender<usize>,
    },
    /// Let mediators in again.
    Undrain {
        /// Takes whether they were sent away.
        reply: oneshot::Sender<bool>,
    },
    /// Ask every tunnel for an operation, bit by bit; the counters tell how it goes.
    Check {
        /// How long each may take.
        within: Duration,
        /// Takes the number of tunnels; `None` while the round before goes on.
        reply: oneshot::Sender<Option<usize>>,
    },
    /// The published ports that this shard listens on.
    Publishes {
        /// Takes all of them.
        reply: oneshot::Sender<Vec<PublishRow>>,
    },
    /// Let in whom this names from now on, and end the sessions that it would not.
    Trust {
        /// What is trusted.
        trust: Arc<Trust>,
        /// Takes how many sessions were ended.
        reply: oneshot::Sender<usize>,
    },
    /// From now on these are settings, trust and names; whoever is still let in stays.
    Reload {
        /// What the shard has read so far, anew.
        shared: Arc<Shared>,
        /// Takes that it is done.
        reply: oneshot::Sender<()>,
    },
    /// Serve these ports as well: all, or none of them.
    Publish {
        /// Bound already, all of mediators that this shard owns.
        ports: Vec<Bound>,
        /// Takes why not, if not.
        reply: oneshot::Sender<Result<(), String>>,
    },
    /// Serve these ports no more; those that this shard does not serve are passed over.
    Unpublish {
        /// By protocol and address, the real one or the one asked for.
        ports: Vec<(Proto, SocketAddr)>,
        /// What becomes of visitors and socket.
        how: Unpublish,
        /// Takes what was served, as it was, with the sockets if they were asked for.
        reply: oneshot::Sender<Vec<Unpublished>>,
    },
    /// Of this shard's mediators, those whose asks have changed; the more there are, the more often it is asked.
    Asks {
        /// Takes some of them, and whether there are more.
        reply: oneshot::Sender<(Vec<Asking>, bool)>,
    },
    /// Tell a mediator what became of what it asks for.
    Outcomes(Told),
    /// What is exposed by this shard's mediators.
    Exposes {
        /// Takes all of them.
        reply: oneshot::Sender<Vec<ExposeRow>>,
    },
    /// Expose these as well, or lead those that are exposed already elsewhere: all, or none of them.
    Expose {
        /// All of mediators that this shard owns.
        services: Vec<(Expose, Origin)>,
        /// Takes why not, if not.
        reply: oneshot::Sender<Result<(), String>>,
    },
    /// Expose these no more; those that are not this shard's are passed over.
    Unexpose {
        /// By their server ports.
        servers: Vec<ServerPort>,
        /// Connections end, too.
        now: bool,
        /// Takes what was exposed, as it was.
        reply: oneshot::Sender<Vec<ExposeRow>>,
    },
    /// Say how the shard itself is.
    State {
        /// Takes it.
        reply: oneshot::Sender<ShardState>,
    },
    /// Show some of the UDP flows.
    Flows {
        /// A place in the table: 0, or what the page before said.
        from: u32,
        /// Of mediators of this pattern.
        glob: Glob,
        /// Takes those that were found.
        reply: oneshot::Sender<FlowPage>,
    },
    /// Say that the loop turns.
    Turn {
        /// Takes that it does.
        reply: oneshot::Sender<()>,
    },
    /// End every tunnel in an orderly way ([`isthmus_proto::Code::Draining`]) and the thread.
    Stop,
}

/// Which tunnels a command is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TunnelFilter {
    /// Mediators of this pattern.
    pub glob: Glob,
    /// Names greater than this one only (paging).
    pub after: Option<MediatorId>,
    /// Most rows, 1 to [`ROWS_MAX`].
    pub limit: usize,
}

impl TunnelFilter {
    /// Whether a mediator of this name passes; the limit is the caller's to keep.
    pub fn passes(&self, id: &MediatorId) -> bool {
        self.after.as_ref().is_none_or(|after| id > after) && self.glob.matches(id)
    }
}

/// What becomes of a port that is unpublished.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unpublish {
    /// Nobody else comes in; who is in stays.
    Gently,
    /// Visitors' connections and flows end.
    Now,
    /// As [`Unpublish::Gently`] for connections; flows end, and the socket is handed out, still receiving, so that
    /// nobody who comes in the meantime is sent away.
    HandOut,
}

/// A port that was unpublished.
#[derive(Debug)]
pub struct Unpublished {
    /// As it was just before.
    pub row: PublishRow,
    /// The address that had been asked for.
    pub asked: SocketAddr,
    /// With [`Unpublish::HandOut`].
    pub socket: Option<Socket>,
}

/// What a mediator asks for now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asking {
    /// Who.
    pub mediator: MediatorId,
    /// Its session; `None` when it has lost what it asked for.
    pub session: Option<u64>,
    /// The texts, as they came.
    pub asks: Vec<String>,
}

/// What a mediator is told of what it asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// Who.
    pub mediator: MediatorId,
    /// In which session.
    pub session: u64,
    /// JSON of [`isthmus_proto::hello::Outcomes`].
    pub json: Vec<u8>,
    /// For the counters: what of it is granted that was not before.
    pub granted: u64,
    /// And refused.
    pub refused: u64,
}

/// One shard as the management plane sees it.
#[derive(Clone)]
pub struct ShardHandle {
    /// Its bounded queue of commands.
    pub commands: Sender<Command>,
    /// Makes a sleeping shard look at its queue; cheap and safe to call at any time, even after the shard's end.
    pub wake: Arc<dyn Fn() + Send + Sync>,
    /// Its figures.
    pub counters: Arc<ShardCounters>,
}

/// A shard did not take a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotSent {
    /// Its queue is full.
    #[error("the shard is busy; try again")]
    Busy,
    /// Its thread has ended.
    #[error("the shard has ended")]
    Ended,
}

impl ShardHandle {
    /// Queues a command and wakes the shard.
    ///
    /// # Errors
    /// See [`NotSent`]; the command is dropped, and with it its reply.
    pub fn send(&self, command: Command) -> Result<(), NotSent> {
        self.commands.try_send(command).map_err(|error| match error {
            TrySendError::Full(_) => NotSent::Busy,
            TrySendError::Disconnected(_) => NotSent::Ended,
        })?;
        (self.wake)();
        Ok(())
    }
}

impl fmt::Debug for ShardHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ShardHandle").field("waiting", &self.commands.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    fn filter(glob: &str, after: Option<&str>) -> TunnelFilter {
        TunnelFilter { glob: glob.parse().unwrap(), after: after.map(|id| id.parse().unwrap()), limit: 1 }
    }

    #[test]
    fn filter_passes_names_of_its_pattern_that_come_after_its_mark() {
        let passes = |filter: TunnelFilter, id: &str| filter.passes(&id.parse().unwrap());
        assert!(passes(filter("cpe-*", None), "cpe-1"));
        assert!(!passes(filter("cpe-*", None), "hub-1"));
        assert!(!passes(filter("*", Some("cpe-1")), "cpe-1"));
        assert!(passes(filter("*", Some("cpe-1")), "cpe-10"));
        assert!(!passes(filter("*", Some("cpe-1")), "cpe-0"));
    }

    #[test]
    fn command_wakes_the_shard_unless_it_was_refused() {
        let (commands, queue) = crossbeam_channel::bounded(1);
        let wakes = Arc::new(AtomicUsize::new(0));
        let counted = wakes.clone();
        let wake = Arc::new(move || {
            counted.fetch_add(1, Ordering::Relaxed);
        });
        let handle = ShardHandle { commands, wake, counters: Arc::default() };
        assert_eq!(handle.send(Command::Stop), Ok(()));
        assert_eq!(handle.send(Command::Stop), Err(NotSent::Busy));
        drop(queue);
        assert_eq!(handle.send(Command::Stop), Err(NotSent::Ended));
        assert_eq!(wakes.load(Ordering::Relaxed), 1);
    }
}
