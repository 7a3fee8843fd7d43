//! What happened: a short memory of events for operators, written by the shards and the management plane.
//!
//! The shards hand events over by a bounded queue and never wait: what finds it full is counted and left out. The management
//! plane keeps the last [`KEPT`].

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use crossbeam_channel::{Receiver, Sender};
use isthmus_proto::MediatorId;
use serde::Serialize;
use tokio::sync::{Notify, watch};

/// Events that are remembered.
pub const KEPT: usize = 4096;

/// Between two looks at what is written.
const PAUSE: Duration = Duration::from_millis(50);

/// Events that may wait for the management plane; with 15,000 tunnels that come at once, most of them find it awake.
const QUEUE: usize = 4096;

/// What kind of thing happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum What {
    /// A mediator's tunnel is up.
    TunnelUp,
    /// It has ended; the text begins with the reason.
    TunnelDown,
    /// A mediator's environment or wishes have changed.
    Environment,
    /// Two mediators with one token take the tunnel from each other.
    Contended,
    /// A terminal attached.
    TerminalUp,
    /// It left.
    TerminalDown,
    /// An operator changed something.
    Operator,
}

/// One event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// When, by the system's clock.
    pub at: SystemTime,
    /// Its kind.
    pub what: What,
    /// Whom it is about, if it is about one mediator.
    pub mediator: Option<MediatorId>,
    /// What there is to say; may hold words of others.
    pub text: String,
}

/// Where a shard writes.
#[derive(Clone, Debug)]
pub struct Recorder {
    queue: Sender<Event>,
    wake: Arc<Notify>,
    lost: Arc<AtomicU64>,
}

impl Recorder {
    /// Hands an event over, or counts it as lost.
    pub fn record(&self, what: What, mediator: Option<&MediatorId>, text: impl Into<String>) {
        let event = Event { at: SystemTime::now(), what, mediator: mediator.cloned(), text: text.into() };
        if self.queue.try_send(event).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
        self.wake.notify_one();
    }
}

/// The other end, until the management plane takes it.
#[derive(Debug)]
pub struct Inbox {
    queue: Receiver<Event>,
    wake: Arc<Notify>,
    lost: Arc<AtomicU64>,
}

/// Both ends of the queue.
pub fn queue() -> (Recorder, Inbox) {
    let (sender, receiver) = crossbeam_channel::bounded(QUEUE);
    let (wake, lost) = (Arc::new(Notify::new()), Arc::new(AtomicU64::new(0)));
    (Recorder { queue: sender, wake: wake.clone(), lost: lost.clone() }, Inbox { queue: receiver, wake, lost })
}

/// The memory, on the management plane's thread.
#[derive(Debug)]
pub struct Journal {
    inbox: Inbox,
    events: RefCell<VecDeque<(u64, Event)>>,
    next: Cell<u64>,
    told: watch::Sender<u64>,
}

impl Journal {
    /// An empty one.
    pub fn new(inbox: Inbox) -> Self {
        Self { inbox, events: RefCell::default(), next: Cell::new(1), told: watch::Sender::new(0) }
    }

    /// Takes in what is written, without end.
    pub async fn run(&self) {
        loop {
            self.take();
            self.inbox.wake.notified().await;
            // Until this ends, writers wake nobody: a storm of them costs this thread few turns, and them no system call.
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Takes in what waits now.
    pub fn take(&self) {
        let mut events = self.events.borrow_mut();
        let before = self.next.get();
        for event in self.inbox.queue.try_iter() {
            if events.len() == KEPT {
                events.pop_front();
            }
            events.push_back((self.next.get(), event));
            self.next.set(self.next.get() + 1);
        }
        drop(events);
        if self.next.get() > before {
            self.told.send_replace(self.next.get() - 1);
        }
    }

    /// Events that found the queue full.
    pub fn lost(&self) -> u64 {
        self.inbox.lost.load(Ordering::Relaxed)
    }

    /// The number of the newest event; changes whenever there is another.
    pub fn newest(&self) -> watch::Receiver<u64> {
        self.told.subscribe()
    }

    /// At most `limit` of the events behind number `after` that `passes` lets through, the oldest first; of more than that the
    /// newest.
    pub fn since(&self, after: u64, limit: usize, passes: impl Fn(&Event) -> bool) -> Vec<(u64, Event)> {
        let events = self.events.borrow();
        let newer = events.iter().rev().take_while(|(number, _)| *number > after);
        let mut found: Vec<_> = newer.filter(|(_, event)| passes(event)).take(limit).cloned().collect();
        found.reverse();
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newest_events_are_kept_in_order_and_found_by_number() {
        let (recorder, inbox) = queue();
        let journal = Journal::new(inbox);
        let newest = journal.newest();
        for round in 0..3 {
            for n in 0..KEPT / 2 {
                recorder.record(What::Operator, None, format!("{round} {n}"));
            }
            journal.take();
        }
        let total = (3 * (KEPT / 2)) as u64;
        assert_eq!(*newest.borrow(), total);
        let all = journal.since(0, usize::MAX, |_| true);
        assert_eq!((all.len(), all[0].0, all[KEPT - 1].0), (KEPT, total - KEPT as u64 + 1, total));
        assert_eq!(all[KEPT - 1].1.text, format!("2 {}", KEPT / 2 - 1));
        let last: Vec<u64> = journal.since(total - 5, 3, |_| true).iter().map(|(number, _)| *number).collect();
        assert_eq!(last, [total - 2, total - 1, total]);
        assert_eq!(journal.since(0, 9, |event| event.text == "2 0").len(), 1);
        assert!(journal.since(total, 9, |_| true).is_empty());
    }

    #[test]
    fn writer_never_waits_and_what_is_lost_is_counted() {
        let (recorder, inbox) = queue();
        let journal = Journal::new(inbox);
        let id: MediatorId = "cpe-1".parse().unwrap();
        for _ in 0..QUEUE + 7 {
            recorder.record(What::TunnelUp, Some(&id), "");
        }
        journal.take();
        assert_eq!((journal.lost(), *journal.newest().borrow()), (7, QUEUE as u64));
    }
}
