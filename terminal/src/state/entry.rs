//! One port of the table.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::Waker;

use isthmus_proto::Code;
use isthmus_proto::limits::FRAME_PAYLOAD_MAX;
use isthmus_proto::link::{PortKind, Slot, UNSPECIFIED};
use isthmus_proto::wire::RequestKind;
use tokio::sync::{Notify, oneshot};

/// Frame bytes of one stream that may wait for the network: about one send of the driver.
pub(crate) const UNSENT_MAX: usize = 256 * 1024;

/// And at which its writer is woken again.
pub(super) const UNSENT_LOW: usize = UNSENT_MAX / 2;

/// Frame bytes of one UDP port's datagrams that may wait for the TCP channel before senders wait.
pub(crate) const UDP_UNSENT_MAX: usize = 256 * 1024;

/// Payload bytes and datagrams that may wait for a UDP socket's reader.
const UDP_QUEUE_BYTES_MAX: usize = 2 * 1024 * 1024;
const UDP_QUEUE_COUNT_MAX: usize = 8192;

/// A received queue's memory that is kept when it is empty.
const KEPT_BYTES: usize = 64 * 1024;

/// A port and who waits for it.
pub(crate) struct Entry {
    pub(crate) slot: Slot,
    /// The kind that was asked for.
    pub(crate) kind: PortKind,
    /// Whether the link still has it.
    pub(crate) live: bool,
    /// Why it does not, as far as an answer told.
    pub(super) over: Option<Code>,
    /// Sockets and ports of the user that refer to it.
    pub(crate) holders: u32,
    /// Its address on the mediator; unspecified until told.
    pub(crate) local: SocketAddr,
    pub(crate) pending: Vec<Pending>,
    /// Frame bytes that wait in the link.
    pub(crate) unsent: usize,
    pub(crate) body: Body,
}

/// A request without an answer yet.
pub(crate) struct Pending {
    pub(super) to: RequestKind,
    pub(super) request: u16,
    pub(super) reply: oneshot::Sender<Code>,
    /// What the port becomes when the answer is yes.
    pub(super) then: Option<Body>,
}

/// What a port is.
pub(crate) enum Body {
    /// Opened, not yet dedicated.
    Opened,
    Stream(Box<Stream>),
    Server(Server),
    Udp(Udp),
}

/// A connected TCP port.
pub(crate) struct Stream {
    pub(crate) peer: SocketAddr,
    pub(crate) received: VecDeque<u8>,
    pub(crate) read_end: Option<ReadEnd>,
    /// The user ended the writing direction.
    pub(crate) finished: bool,
    pub(crate) reader: Option<Waker>,
    pub(crate) writer: Option<Waker>,
}

/// What comes after the received bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ReadEnd {
    Fin,
    Reset(Code),
}

/// A listening TCP port.
#[derive(Default)]
pub(crate) struct Server {
    /// Accepted connections that nobody has taken yet; each is held once.
    pub(crate) waiting: VecDeque<usize>,
    pub(crate) arrived: Arc<Notify>,
}

/// A UDP port.
pub(crate) struct Udp {
    /// Its only party, if it was opened with one.
    pub(crate) peer: Option<SocketAddr>,
    pub(crate) redirect: bool,
    pub(crate) fallback: bool,
    pub(crate) received: VecDeque<UdpEvent>,
    received_bytes: usize,
    pub(crate) dropped: u64,
    pub(crate) readable: Arc<Notify>,
    pub(crate) writable: Arc<Notify>,
    /// A datagram whose further parts are still to come.
    pub(super) assembly: Option<(SocketAddr, Vec<u8>)>,
}

/// What a UDP socket's reader gets.
pub(crate) enum UdpEvent {
    Datagram { remote: SocketAddr, payload: Vec<u8> },
    Unreachable(crate::Unreachable),
}

impl Entry {
    pub(super) fn new(slot: Slot, kind: PortKind, body: Body) -> Self {
        Self {
            slot,
            kind,
            live: true,
            over: None,
            holders: 1,
            local: UNSPECIFIED,
            pending: Vec::new(),
            unsent: 0,
            body,
        }
    }

    pub(super) fn is_connecting(&self) -> bool {
        self.pending.iter().any(|pending| pending.to == RequestKind::Connect)
    }

    /// The link has forgotten the port: what was asked about it is answered.
    pub(super) fn on_over(&mut self, code: Code) {
        self.live = false;
        self.over = Some(code);
        for pending in self.pending.drain(..) {
            // Whoever asked may have gone.
            let _ = pending.reply.send(code);
        }
    }

    pub(super) fn wake_all(&mut self, wakers: &mut Vec<Waker>) {
        match &mut self.body {
            Body::Opened => {}
            Body::Stream(stream) => {
                wakers.extend(stream.reader.take());
                wakers.extend(stream.writer.take());
            }
            Body::Server(server) => server.arrived.notify_waiters(),
            Body::Udp(udp) => {
                udp.readable.notify_waiters();
                udp.writable.notify_waiters();
            }
        }
    }
}

impl Stream {
    pub(super) fn new(peer: SocketAddr) -> Self {
        Self { peer, received: VecDeque::new(), read_end: None, finished: false, reader: None, writer: None }
    }

    /// How many more payload bytes may be queued, `room` being the credit's.
    pub(crate) fn writable(room: usize, unsent: usize, congested: bool) -> usize {
        // A stream with nothing in the queue may always add a frame, so that bulk on another one never
        // keeps it waiting; the sum stays bounded by the number of ports.
        let blocked = unsent >= UNSENT_MAX || (congested && unsent > 0);
        if blocked { 0 } else { room.min(FRAME_PAYLOAD_MAX) }
    }

    /// Moves received bytes into `out`; gives how many.
    pub(crate) fn take(&mut self, out: &mut tokio::io::ReadBuf<'_>) -> usize {
        let mut taken = 0;
        for part in [self.received.as_slices().0, self.received.as_slices().1] {
            let part = part.get(..out.remaining()).unwrap_or(part);
            out.put_slice(part);
            taken += part.len();
        }
        self.received.drain(..taken);
        if self.received.is_empty() && self.received.capacity() > KEPT_BYTES {
            self.received = VecDeque::new();
        }
        taken
    }
}

impl Udp {
    pub(super) fn new(peer: Option<SocketAddr>, redirect: bool, fallback: bool) -> Self {
        Self {
            peer,
            redirect,
            fallback,
            received: VecDeque::new(),
            received_bytes: 0,
            dropped: 0,
            readable: Arc::default(),
            writable: Arc::default(),
            assembly: None,
        }
    }

    /// Queues for the reader; a full queue drops the newest, as a socket's does.
    pub(super) fn push(&mut self, event: UdpEvent) -> bool {
        let len = event.len();
        if self.received.len() >= UDP_QUEUE_COUNT_MAX || self.received_bytes + len > UDP_QUEUE_BYTES_MAX {
            self.dropped += 1;
            return false;
        }
        self.received_bytes += len;
        self.received.push_back(event);
        self.readable.notify_one();
        true
    }

    pub(crate) fn pop(&mut self) -> Option<UdpEvent> {
        let event = self.received.pop_front()?;
        self.received_bytes -= event.len();
        // Several readers may wait, and a notification is remembered once only.
        if !self.received.is_empty() {
            self.readable.notify_one();
        }
        Some(event)
    }
}

impl UdpEvent {
    fn len(&self) -> usize {
        match self {
            Self::Datagram { payload, .. } => payload.len(),
            Self::Unreachable(_) => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn udp_queue_drops_the_newest_beyond_its_bounds_and_counts() {
        let remote = UNSPECIFIED;
        let mut udp = Udp::new(None, false, false);
        for n in 0..UDP_QUEUE_COUNT_MAX {
            assert!(udp.push(UdpEvent::Datagram { remote, payload: vec![n as u8] }));
        }
        assert!(!udp.push(UdpEvent::Datagram { remote, payload: vec![] }));
        assert_eq!(udp.dropped, 1);
        assert!(matches!(udp.pop(), Some(UdpEvent::Datagram { payload, .. }) if payload == [0]));
        let big = vec![0; UDP_QUEUE_BYTES_MAX - (UDP_QUEUE_COUNT_MAX - 1)];
        assert!(udp.push(UdpEvent::Datagram { remote, payload: big }));
        udp.pop();
        assert!(udp.push(UdpEvent::Datagram { remote, payload: vec![1] }));
        udp.pop();
        assert!(!udp.push(UdpEvent::Datagram { remote, payload: vec![1, 2] }), "the bytes' bound");
        assert_eq!(udp.dropped, 2);
    }

    #[test]
    fn a_stream_with_an_empty_queue_may_write_though_the_link_is_congested() {
        assert_eq!(Stream::writable(100_000, 0, true), FRAME_PAYLOAD_MAX);
        assert_eq!(Stream::writable(100_000, 1, true), 0);
        assert_eq!(Stream::writable(10, 1, false), 10);
        assert_eq!(Stream::writable(100_000, UNSENT_MAX, false), 0);
        assert_eq!(Stream::writable(0, 0, false), 0);
    }

    #[test]
    fn received_bytes_come_out_in_order_across_the_ring() {
        let mut stream = Stream::new(UNSPECIFIED);
        let (mut next_in, mut next_out) = (0u32, 0u32);
        for round in 0..200 {
            for _ in 0..round {
                stream.received.extend(&[next_in as u8]);
                next_in += 1;
            }
            let mut space = [0; 70];
            let mut out = tokio::io::ReadBuf::new(&mut space);
            let taken = stream.take(&mut out);
            assert_eq!(taken, out.filled().len());
            for &byte in out.filled() {
                assert_eq!(byte, next_out as u8);
                next_out += 1;
            }
        }
        assert_eq!(stream.received.len() as u32, next_in - next_out);
    }
}
