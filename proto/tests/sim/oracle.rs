//! What must be true whatever happens. It shares no code with the implementation: it knows the script, sees
//! what the hosts do and get, and reads the frames on the wire by itself.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::rng::pattern;

/// Bytes that may be sent without any credit, and the first and the largest window: the protocol's numbers.
const EARLY: u64 = 16 * 1024;
const WINDOW_START: u64 = 64 * 1024;
const WINDOW_SUM: u64 = 8 * 1024 * 1024;

const DATA: u8 = 0x20;
const CREDIT: u8 = 0x23;

/// One direction of a conversation.
#[derive(Default)]
pub(crate) struct Half {
    pub(crate) wrote: u64,
    pub(crate) read: u64,
    pub(crate) consumed: u64,
    /// Its writer ended in order.
    finished: bool,
    pub(crate) saw_fin: bool,
    /// Sent over TCP and not received yet, in order: number and length.
    pub(crate) by_tcp: VecDeque<(u64, usize)>,
    by_channel: BTreeMap<u64, usize>,
}

/// What happened in a run, so that a test can tell whether its seeds reach everything.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tally {
    pub(crate) fins: u64,
    pub(crate) resets: u64,
    pub(crate) cuts: u64,
    pub(crate) by_tcp: u64,
    pub(crate) by_channel: u64,
    pub(crate) replayed: u64,
    pub(crate) damaged: u64,
    pub(crate) late_accepts: u64,
}

#[derive(Default)]
pub(crate) struct Oracle {
    pub(crate) tally: Tally,
    halves: BTreeMap<(usize, usize), Half>,
    /// Who cut which conversation on purpose: its end number with it.
    cuts: BTreeSet<(usize, usize)>,
    /// Ends that have heard the end of it: they may get nothing more.
    deaf: BTreeSet<(usize, usize)>,
    /// By end and port: stream bytes sent, and the offset that the other end allows.
    credit: [BTreeMap<u32, (u64, u64)>; 2],
    created: [u64; 2],
    gone: [u64; 2],
}

impl Oracle {
    /// Direction of `talk` that end `from` writes.
    pub(crate) fn half(&mut self, talk: usize, from: usize) -> &mut Half {
        self.halves.entry((talk, from)).or_default()
    }

    pub(crate) fn peek(&self, talk: usize, from: usize) -> Option<&Half> {
        self.halves.get(&(talk, from))
    }

    /// Whether an end cut that conversation.
    pub(crate) fn is_cut(&self, talk: usize) -> bool {
        (0..2).any(|end| self.cuts.contains(&(talk, end)))
    }

    pub(crate) fn wrote(&mut self, talk: usize, from: usize, len: u64) {
        self.half(talk, from).wrote += len;
    }

    pub(crate) fn finished(&mut self, talk: usize, from: usize) {
        self.half(talk, from).finished = true;
    }

    /// An end cuts a conversation: from then on it gets nothing, and the other end may hear of a reset.
    pub(crate) fn cut_by(&mut self, talk: usize, end: usize) {
        self.tally.cuts += u64::from(self.cuts.insert((talk, end)));
        self.deaf.insert((talk, end));
    }

    pub(crate) fn read(&mut self, talk: usize, at: usize, bytes: &[u8]) {
        assert!(!self.deaf.contains(&(talk, at)), "bytes after the end of talk {talk} at {at}");
        let half = self.half(talk, 1 - at);
        assert!(!half.saw_fin, "bytes after FIN in talk {talk} at {at}");
        assert!(half.read + bytes.len() as u64 <= half.wrote, "bytes that nobody wrote in talk {talk} at {at}");
        let want = pattern(stream_name(talk, 1 - at), half.read, bytes.len());
        assert!(bytes == want, "other bytes than were written in talk {talk} at {at} from {}", half.read);
        half.read += bytes.len() as u64;
    }

    pub(crate) fn saw_fin(&mut self, talk: usize, at: usize) {
        self.tally.fins += 1;
        assert!(!self.deaf.contains(&(talk, at)), "FIN after the end of talk {talk} at {at}");
        let half = self.half(talk, 1 - at);
        assert!(half.finished, "FIN that nobody sent in talk {talk} at {at}");
        assert_eq!(half.read, half.wrote, "FIN before the last byte in talk {talk} at {at}");
        assert!(!std::mem::replace(&mut half.saw_fin, true), "FIN twice in talk {talk} at {at}");
    }

    pub(crate) fn saw_reset(&mut self, talk: usize, at: usize) {
        self.tally.resets += 1;
        assert!(self.cuts.contains(&(talk, 1 - at)), "a reset that nobody made in talk {talk} at {at}");
        self.deaf.insert((talk, at));
    }

    /// Whether a port may vanish at this end without a word: both directions have ended in order.
    pub(crate) fn both_ended(&mut self, talk: usize, at: usize) -> bool {
        self.half(talk, 1 - at).saw_fin && self.half(talk, at).finished
    }

    pub(crate) fn created(&mut self, end: usize) {
        self.created[end] += 1;
    }

    pub(crate) fn gone(&mut self, end: usize) {
        self.gone[end] += 1;
    }

    /// `live`: ports that the link says it has. `unread`: bytes that it delivered and that are not consumed.
    pub(crate) fn check(&self, end: usize, live: usize, unread: u64) {
        assert_eq!(self.created[end], self.gone[end] + live as u64, "opened = closed + live at {end}");
        assert!(unread <= WINDOW_SUM + live as u64 * EARLY, "{unread} bytes wait at {end}");
    }

    pub(crate) fn check_stalled(&mut self, talk: usize, from: usize) {
        let half = self.half(talk, from);
        assert_eq!(half.consumed, 0);
        assert!(half.read <= WINDOW_START, "a stalled reader got {} bytes in talk {talk}", half.read);
    }

    /// Sees a record that `end` sends.
    pub(crate) fn sent(&mut self, end: usize, plaintext: &[u8]) {
        for (kind, port, payload) in frames(plaintext) {
            if kind == DATA {
                let (sent, allowed) = self.credit[end].entry(port).or_insert((0, EARLY));
                *sent += payload.len() as u64;
                assert!(sent <= allowed, "{sent} bytes sent of {allowed} on port {port:08x} by {end}");
            }
        }
    }

    /// Sees a record that `end` receives.
    pub(crate) fn received(&mut self, end: usize, plaintext: &[u8]) {
        for (kind, port, payload) in frames(plaintext) {
            if kind == CREDIT {
                let offset = u64::from_be_bytes(payload.try_into().unwrap());
                let (_, allowed) = self.credit[end].entry(port).or_insert((0, EARLY));
                *allowed = offset.max(*allowed);
            }
        }
    }

    pub(crate) fn datagram_sent(&mut self, talk: usize, from: usize, number: u64, len: usize, by_channel: bool) {
        let half = self.half(talk, from);
        match by_channel {
            true => assert_eq!(half.by_channel.insert(number, len), None),
            false => half.by_tcp.push_back((number, len)),
        }
    }

    pub(crate) fn datagram_read(&mut self, talk: usize, at: usize, number: u64, bytes: &[u8], by_channel: bool) {
        assert!(!self.deaf.contains(&(talk, at)), "a datagram after the end of talk {talk} at {at}");
        let half = self.half(talk, 1 - at);
        let sent = match by_channel {
            true => half.by_channel.remove(&number),
            false => half.by_tcp.pop_front().filter(|&(next, _)| next == number).map(|(_, len)| len),
        };
        let place = format!("datagram {number} of talk {talk} at {at}, by channel: {by_channel}");
        assert_eq!(sent, Some(bytes.len()), "never sent, or twice, or out of order: {place}");
        *if by_channel { &mut self.tally.by_channel } else { &mut self.tally.by_tcp } += 1;
        assert!(bytes == pattern(datagram_name(talk, 1 - at, number), 0, bytes.len()), "{place}");
    }

    /// Over TCP all arrive that were sent.
    pub(crate) fn check_datagrams(&mut self, talk: usize) {
        for from in 0..2 {
            let half = self.half(talk, from);
            assert!(half.by_tcp.is_empty(), "{:?} of talk {talk} from {from} never came", half.by_tcp);
        }
    }
}

impl Tally {
    pub(crate) fn add(&mut self, other: Self) {
        self.fins += other.fins;
        self.resets += other.resets;
        self.cuts += other.cuts;
        self.by_tcp += other.by_tcp;
        self.by_channel += other.by_channel;
        self.replayed += other.replayed;
        self.damaged += other.damaged;
        self.late_accepts += other.late_accepts;
    }

    pub(crate) fn least(&self) -> u64 {
        let Self { fins, resets, cuts, by_tcp, by_channel, replayed, damaged, late_accepts } = *self;
        [fins, resets, cuts, by_tcp, by_channel, replayed, damaged, late_accepts].into_iter().min().unwrap_or(0)
    }
}

pub(crate) fn stream_name(talk: usize, from: usize) -> u64 {
    (talk as u64) << 1 | from as u64
}

pub(crate) fn datagram_name(talk: usize, from: usize, number: u64) -> u64 {
    1 << 23 | number << 12 | stream_name(talk, from)
}

/// Kind, port and payload of each frame, read as the protocol's drawing says.
fn frames(mut bytes: &[u8]) -> Vec<(u8, u32, &[u8])> {
    let mut out = Vec::new();
    while !bytes.is_empty() {
        let len = usize::from(bytes[2]) << 8 | usize::from(bytes[3]);
        let port = u32::from_be_bytes(bytes[4..8].try_into().unwrap());
        out.push((bytes[0], port, &bytes[8..8 + len]));
        bytes = &bytes[8 + len..];
    }
    out
}
