//! What the driver and the sockets share: the link, and a table of its ports.
//!
//! Sockets work on the link directly, under one lock that is held for a memory copy at most and never
//! over I/O; the driver only moves bytes between the link and the network.

mod deliver;
mod entry;
mod request;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, VecDeque};
use std::task::Waker;
use std::time::Duration;

use isthmus_proto::hello::{QueryAnswer, Report};
use isthmus_proto::link::{Link, LinkConfig, Slot};
use isthmus_proto::{Code, Instant};
use slab::Slab;
use tokio::sync::oneshot;

use crate::Error;
pub(crate) use entry::{Body, Entry, ReadEnd, Stream, UDP_UNSENT_MAX, Udp, UdpEvent};

/// Owner of ports that nobody holds any more.
const ORPHAN: u64 = u64::MAX;

/// How long a stream that was finished but not read to its end is kept for the other end's last
/// bytes and acknowledging FIN.
const LINGER: Duration = Duration::from_secs(10);

/// See the module's text.
pub(crate) struct State {
    pub(crate) link: Link<Vec<u8>>,
    pub(crate) entries: Slab<Entry>,
    /// Why the connection ended, once it did.
    pub(crate) ended: Option<Error>,
    /// The driver has done its last.
    pub(crate) finished: bool,
    /// No handle and no socket is left.
    pub(crate) abandoned: bool,
    /// The driver will look at the link before it sleeps, so that nobody needs to wake it.
    pub(crate) driver_awake: bool,
    pub(crate) report: Option<Box<Report>>,
    /// To be woken after the lock is given back.
    pub(crate) wakers: Vec<Waker>,
    pub(crate) counts: Counts,
    queries: HashMap<u32, oneshot::Sender<QueryAnswer>>,
    /// Finished streams that nobody holds, oldest first.
    lingering: VecDeque<(Instant, usize, Slot)>,
    next_request: u16,
    next_query: u32,
}

/// Counts that are no stream bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) datagrams_dropped: u64,
    pub(crate) datagrams_by_tcp: u64,
    pub(crate) datagrams_refused: u64,
    pub(crate) accepts_dropped: u64,
}

impl State {
    pub(crate) fn new(config: LinkConfig, report: Option<Box<Report>>, now: Instant) -> Self {
        let mut link = Link::new(config, now);
        // Its owner may ask how long the way is before anything has gone it.
        link.measure(now);
        Self {
            link,
            entries: Slab::new(),
            ended: None,
            finished: false,
            abandoned: false,
            driver_awake: true,
            report,
            wakers: Vec::new(),
            counts: Counts::default(),
            queries: HashMap::new(),
            lingering: VecDeque::new(),
            next_request: 0,
            next_query: 0,
        }
    }

    /// # Errors
    /// Why the connection ended.
    pub(crate) fn check(&self) -> Result<(), Error> {
        self.ended.clone().map_or(Ok(()), Err)
    }

    /// A frame of `len` bytes left the link for the network.
    pub(crate) fn on_sent(&mut self, owner: u64, len: usize) {
        let relaxed = self.link.is_relaxed();
        let Some(entry) = self.entries.get_mut(owner as usize) else { return };
        entry.unsent = entry.unsent.saturating_sub(len);
        let idle = entry.unsent == 0;
        // The last frame of a stream whose other direction has ended takes the port along.
        if idle && self.link.owner(entry.slot).is_none() {
            entry.live = false;
            if entry.holders == 0 {
                self.entries.remove(owner as usize);
                return;
            }
        }
        match &mut entry.body {
            Body::Stream(stream) if idle || (relaxed && entry.unsent <= entry::UNSENT_LOW) => {
                self.wakers.extend(stream.writer.take());
            }
            Body::Udp(udp) if entry.unsent < UDP_UNSENT_MAX => udp.writable.notify_waiters(),
            _ => {}
        }
    }

    /// The connection is gone, and everything on it.
    pub(crate) fn end(&mut self, error: Error) {
        if self.ended.is_some() {
            return;
        }
        self.ended = Some(error);
        self.queries.clear();
        self.lingering.clear();
        let Self { entries, wakers, .. } = self;
        for (_, entry) in entries.iter_mut() {
            entry.live = false;
            entry.pending.clear();
            entry.wake_all(wakers);
        }
        entries.retain(|_, entry| entry.holders > 0);
    }

    /// Whether nothing is left to be done after the last handle has gone.
    pub(crate) fn is_over(&mut self, now: Instant) -> bool {
        self.abandoned && self.expire_lingering(now).is_none() && !self.link.wants_to_send()
    }

    /// Cuts streams that lingered long enough; gives the time of the next one.
    pub(crate) fn expire_lingering(&mut self, now: Instant) -> Option<Instant> {
        while let Some(&(deadline, key, slot)) = self.lingering.front() {
            let waits = self.entries.get(key).is_some_and(|entry| entry.holders == 0 && entry.slot == slot);
            if waits && now < deadline {
                return Some(deadline);
            }
            self.lingering.pop_front();
            if waits {
                self.link.reset(slot, Code::PeerGone);
                self.entries.remove(key);
            }
        }
        None
    }

    /// Another holder of an entry.
    pub(crate) fn hold(&mut self, key: usize) {
        if let Some(entry) = self.entries.get_mut(key) {
            entry.holders += 1;
        }
    }

    /// A holder less; the last one's going ends the port.
    pub(crate) fn release(&mut self, key: usize, now: Instant) {
        let Some(entry) = self.entries.get_mut(key) else { return };
        entry.holders -= 1;
        if entry.holders > 0 {
            return;
        }
        let (slot, live, connecting) = (entry.slot, entry.live, entry.is_connecting());
        match &mut entry.body {
            // All was written; it only has to arrive, and the other end to end.
            Body::Stream(stream)
                if live && stream.finished && (stream.read_end.is_some() || stream.received.is_empty()) =>
            {
                self.lingering.push_back((now + LINGER, key, slot));
                return;
            }
            Body::Stream(_) if live => self.link.reset(slot, Code::Reset),
            Body::Opened if live && connecting => self.link.reset(slot, Code::Reset),
            Body::Server(server) => {
                let waiting = std::mem::take(&mut server.waiting);
                for key in waiting {
                    self.release(key, now);
                }
                self.close_orphan(slot, live);
            }
            Body::Opened | Body::Udp(_) | Body::Stream(_) => self.close_orphan(slot, live),
        }
        self.entries.remove(key);
    }

    fn close_orphan(&mut self, slot: Slot, live: bool) {
        if live && self.ended.is_none() {
            self.link.set_owner(slot, ORPHAN);
            let request = self.next_request();
            self.link.close(slot, request);
        }
    }

    fn next_request(&mut self) -> u16 {
        self.next_request = self.next_request.wrapping_add(1);
        self.next_request
    }
}
