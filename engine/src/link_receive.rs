//! Tunnel socket -> contiguous run of records -> opened in place -> payloads to their owners.

use isthmus_proto::Code;
use isthmus_proto::limits::GATHER_MAX;
use isthmus_proto::link::Input;
use isthmus_proto::record::{Opened, RECORD_MAX, parse_header};
use isthmus_proto::wire::{Frame, HEADER_LEN, read_header};
use isthmus_ring::Piece;

use crate::Engine;
use crate::event::{Ask, Control, Event};
use crate::key::{Key, What};
use crate::link::{LinkIo, Phase};
use crate::samples::Sample;
use crate::turn::{INTERACTIVE_FOR, RECEIVE_STEP};

impl Engine {
    /// Arms the receive, unless it is. `quiet`: nothing more is expected at once.
    pub(crate) fn receive_link(&mut self, key: Key, quiet: bool) {
        let limit = self.receive_bytes();
        if let Some(io) = self.links.get_mut(key)
            && io.receive_op.is_none()
            && io.closing.is_none()
        {
            // Here nothing that was pushed names the descriptor any more.
            if io.send_op.is_none() && matches!(io.phase, Phase::Live(_)) {
                self.ring.make_direct(&mut io.socket);
            }
            io.receive_op = Some(match io.roomy {
                true => self.ring.recv_bulk(&io.socket, limit as u32, quiet, key.to_bits()),
                false => self.ring.recv_small(&io.socket, quiet, key.to_bits()),
            });
        }
    }

    /// A receive ended.
    pub(crate) fn on_link_received(&mut self, control: &mut impl Control, key: Key, result: std::io::Result<usize>) {
        let Some(io) = self.links.get_mut(key) else { return };
        io.receive_op = None;
        if io.is_parting() {
            return;
        }
        match result {
            Ok(0) => self.end_link(control, key, Code::ConnectionLost, "the other end closed the connection", 0),
            Ok(length) => {
                let Some(mut piece) = self.received.pop() else { return };
                // One small receive may be the end of a stretch of bulk.
                self.small_receive = !io.roomy && length < ROOMY_FROM;
                io.roomy = length >= ROOMY_FROM;
                // A met limit means that more waits; asking whether it does costs less than being woken.
                let full = length == isthmus_ring::PoolConfig::SMALL.payload
                    || length >= RECEIVE_STEP && length.is_multiple_of(RECEIVE_STEP);
                if let Some(partial) = io.partial.take() {
                    self.counts.partial_bytes_moved += partial.len() as u64;
                    piece.prepend(partial.len()).copy_from_slice(&partial);
                }
                if let Some(link) = io.live() {
                    link.note_backlog(full);
                }
                self.note_receive(length);
                self.on_link_bytes(control, key, piece);
                self.receive_link(key, !full);
            }
            Err(error) if error.raw_os_error() == Some(ENOBUFS) => {
                self.counts.buffers_exhausted += 1;
                self.dirty.starved.push(key);
            }
            Err(error) => self.end_link(control, key, Code::ConnectionLost, &error.to_string(), 0),
        }
    }

    /// Opens the whole records of `bytes` and keeps the front of the one that is not whole.
    pub(crate) fn on_link_bytes(&mut self, control: &mut impl Control, key: Key, mut bytes: Piece) {
        if let Some(LinkIo { phase: Phase::Tls(_), .. }) = self.links.get(key) {
            return self.on_handshake_bytes(control, key, &bytes);
        }
        loop {
            let Some(io) = self.links.get_mut(key).filter(|io| !io.is_parting()) else { return };
            let Some(session) = &mut io.session else { return };
            let len = match parse_header(&bytes) {
                Ok(Some(len)) if len <= bytes.len() => len,
                Ok(_) => break,
                Err(error) => return self.end_link(control, key, Code::ProtocolError, &error.to_string(), 0),
            };
            let mut record = bytes.split_to(len);
            let opened = session.open(&mut record);
            self.counts.records_opened += 1;
            match opened {
                Ok(Opened::Data(range)) => {
                    record.truncate(range.end);
                    record.advance(range.start);
                    if matches!(io.phase, Phase::Greeting) {
                        // A link that goes to another thread by its greeting takes along what came behind it.
                        io.partial = Some(bytes);
                        self.on_record(control, key, record);
                        let rest = self.links.get_mut(key).and_then(|io| io.partial.take());
                        let Some(rest) = rest else { return };
                        bytes = rest;
                    } else {
                        self.on_record(control, key, record);
                    }
                }
                Ok(Opened::KeyUpdate { .. }) => {
                    self.counts.key_updates += 1;
                    self.touch(key);
                }
                Ok(Opened::CloseNotify) => {
                    return self.end_link(control, key, Code::PeerClosed, "the other end closed", 0);
                }
                Ok(Opened::Alert(alert)) => {
                    let text = format!("the other end sent TLS alert {alert}");
                    return self.end_link(control, key, Code::TlsFailed, &text, 0);
                }
                Ok(Opened::Ignored) => {}
                Err(error) => return self.end_link(control, key, Code::ProtocolError, &error.to_string(), 0),
            }
        }
        if bytes.is_empty() {
            return;
        }
        // A few links may keep their buffer until the rest of the record comes; were it all of them, none
        // would find another one to receive that rest into.
        let [_, bulk, _, small] = self.ring.pool_stats();
        if bytes.is_pooled() && (bulk.held > PARTIAL_KEPT_MAX || small.held > SMALL_KEPT_MAX) {
            self.counts.partial_bytes_moved += bytes.len() as u64;
            bytes = Piece::copy_from(&bytes, 0, 0);
        }
        if let Some(io) = self.links.get_mut(key) {
            io.partial = Some(bytes);
        }
    }

    /// The frames of one record.
    fn on_record(&mut self, control: &mut impl Control, key: Key, record: Piece) {
        let mut rest = Some(record).filter(|record| !record.is_empty());
        while let Some(mut record) = rest.take() {
            let header = match read_header(&record) {
                Ok(header) => header,
                Err(error) => return self.end_link(control, key, Code::ProtocolError, &error.to_string(), 0),
            };
            let frame_len = HEADER_LEN + usize::from(header.len);
            // The usual record of a bulk stream is one frame: it keeps the record's room on both sides.
            let mut frame = if frame_len == record.len() {
                record
            } else {
                let frame = record.split_to(frame_len);
                rest = Some(record);
                frame
            };
            frame.advance(HEADER_LEN);
            let now = self.now;
            let Some(io) = self.links.get_mut(key).filter(|io| !io.is_parting()) else { return };
            let decoded = match Frame::decode(header, &frame) {
                Ok(decoded) => decoded,
                Err(error) => return self.end_link(control, key, Code::ProtocolError, &error.to_string(), 0),
            };
            match &mut io.phase {
                Phase::Live(link) => match link.receive(decoded, now) {
                    Ok(input) => match Delivery::of(input) {
                        Ok(delivery) => self.deliver(control, key, delivery, frame),
                        Err(event) => self.on_input(control, key, event),
                    },
                    Err(violation) => {
                        return self.end_link(control, key, Code::ProtocolError, &violation.to_string(), 0);
                    }
                },
                _ => {
                    if let Frame::Goodbye { code, retry_after_ms, text } = decoded {
                        return self.end_link(control, key, code.unwrap_or(Code::Failed), text, retry_after_ms);
                    }
                    if rest.is_some() {
                        let text = "a greeting must be alone in its record";
                        return self.end_link(control, key, Code::ProtocolError, text, 0);
                    }
                    if io.closing.is_none() {
                        control.on_event(self, Event::Greeting { link: key, frame: decoded });
                    }
                }
            }
            if self.links.get(key).is_none() {
                return;
            }
        }
    }

    /// The data path: the frame's payload goes on.
    fn deliver(&mut self, control: &mut impl Control, key: Key, delivery: Delivery, mut frame: Piece) {
        match delivery {
            Delivery::Data { owner, slot, len } => {
                if self.small_receive && len <= GATHER_MAX {
                    self.interactive_until = self.now + INTERACTIVE_FOR;
                }
                let owner = Key::from_bits(owner);
                frame.advance(frame.len() - len);
                match owner.what() {
                    What::Stream => self.write_stream(owner, frame),
                    What::BridgeA | What::BridgeB => self.bridge_data(owner, frame),
                    // The port is not connected to anything (yet): the bytes have nowhere to go.
                    _ => self.refuse_payload(control, key, slot, owner),
                }
            }
            Delivery::Datagram { owner, remote, more, len } => {
                frame.advance(frame.len() - len);
                self.on_datagram_frame(control, key, Key::from_bits(owner), remote, more, frame);
            }
        }
    }

    /// Everything that is no payload.
    fn on_input(&mut self, control: &mut impl Control, key: Key, input: Input<'_>) {
        // Answers, credit or pongs may have been queued.
        self.touch(key);
        let ask =
            |slot, owner, request, ask| Event::Request { link: key, slot, owner: Key::from_bits(owner), request, ask };
        let event = match input {
            Input::RoundTrip(time) => return self.samples.push(Sample::RoundTrip(time)),
            Input::None | Input::Data { .. } | Input::Datagram { .. } => return,
            Input::Writable { owner, .. } => return self.on_credit(Key::from_bits(owner)),
            Input::Fin { owner, slot, over } => return self.on_fin(control, key, Key::from_bits(owner), slot, over),
            Input::Reset { owner, code } => {
                return self.end_port_owner(control, key, NO_SLOT, Key::from_bits(owner), code);
            }
            Input::Open { slot, request, flags, local, peer, asker } => {
                ask(slot, 0, request, Ask::Open { flags, local, peer, asker })
            }
            Input::Connect { owner, slot, request, to, timeout_ms } => {
                ask(slot, owner, request, Ask::Connect { to, timeout_ms })
            }
            Input::ConnectName { owner, slot, request, to, timeout_ms } => {
                Event::RequestName { link: key, slot, owner: Key::from_bits(owner), request, to, timeout_ms }
            }
            Input::Serve { owner, slot, request } => ask(slot, owner, request, Ask::Serve),
            Input::Close { owner, slot, request } => ask(slot, owner, request, Ask::Close),
            Input::Switch { owner, slot, request, flags } => ask(slot, owner, request, Ask::Switch { flags }),
            Input::Answer { owner, slot, to, request, code, local, over } => {
                Event::Answered { link: key, slot, owner: Key::from_bits(owner), to, request, code, local, over }
            }
            Input::Accepted { owner, parent, slot, peer, local } => {
                Event::PortAccepted { link: key, owner: Key::from_bits(owner), slot, parent, peer, local }
            }
            Input::UdpError { owner, slot, code, remote } => {
                Event::UdpError { link: key, owner: Key::from_bits(owner), slot, code, remote }
            }
            Input::Report(json) => Event::Report { link: key, json },
            Input::Renew(token) => Event::Renew { link: key, token },
            Input::Asker { asker, name } => Event::Asker { link: key, asker, name },
            Input::Outcomes(json) => Event::Outcomes { link: key, json },
            Input::Query { query, json } => Event::Query { link: key, query, json },
            Input::QueryAnswer { .. } => return,
            Input::Goodbye { code, retry_after_ms, text } => {
                return self.end_link(control, key, code.unwrap_or(Code::Failed), text, retry_after_ms);
            }
        };
        control.on_event(self, event);
    }

    fn on_credit(&mut self, owner: Key) {
        match owner.what() {
            What::Stream => self.receive_stream(owner),
            What::BridgeA | What::BridgeB => {}
            _ => {}
        }
    }

    fn on_fin(
        &mut self,
        control: &mut impl Control,
        link: Key,
        owner: Key,
        slot: isthmus_proto::link::Slot,
        over: bool,
    ) {
        match owner.what() {
            What::Stream => self.finish_stream(control, owner),
            What::BridgeA | What::BridgeB => self.bridge_fin(owner),
            _ if over => self.end_port_owner(control, link, slot, owner, Code::Closed),
            _ => self.refuse_payload(control, link, slot, owner),
        }
    }

    /// Bytes or an end came for a port that is no stream, such as a server: the port is cut.
    fn refuse_payload(&mut self, control: &mut impl Control, key: Key, slot: isthmus_proto::link::Slot, owner: Key) {
        if let Some(link) = self.link(key) {
            link.reset(slot, Code::NotTcp);
            self.touch(key);
        }
        self.end_port_owner(control, key, slot, owner, Code::NotTcp);
    }
}

// A partial record moves in front of what is received next: there must be room for the longest.
const _: () = assert!(isthmus_ring::PoolConfig::BULK.headroom >= RECORD_MAX);
const _: () = assert!(isthmus_ring::PoolConfig::SMALL.headroom >= RECORD_MAX);

/// A receive of so many bytes announces more; each first one of a burst takes a small block.
const ROOMY_FROM: usize = 2048;

/// Small receive buffers that may be in use before links give theirs up likewise.
const SMALL_KEPT_MAX: usize = 64;

/// Receive buffers that may be in use before links give theirs up for a record that is not whole.
const PARTIAL_KEPT_MAX: usize = 8;

/// `ENOBUFS`: no buffer was free for a receive.
pub(crate) const ENOBUFS: i32 = 105;

/// For owners that know their port themselves.
const NO_SLOT: isthmus_proto::link::Slot = isthmus_proto::link::Slot::NONE;

/// An [`Input`] whose payload is in the frame's piece, without the borrow of it.
enum Delivery {
    Data { owner: u64, slot: isthmus_proto::link::Slot, len: usize },
    Datagram { owner: u64, remote: Option<std::net::SocketAddr>, more: bool, len: usize },
}

impl Delivery {
    fn of(input: Input<'_>) -> Result<Self, Input<'_>> {
        match input {
            Input::Data { owner, slot, len } => Ok(Self::Data { owner, slot, len }),
            Input::Datagram { owner, remote, more, len, .. } => Ok(Self::Datagram { owner, remote, more, len }),
            other => Err(other),
        }
    }
}
