//! What comes from the relay, to whom it belongs.

use std::net::SocketAddr;
use std::time::Duration;

use isthmus_proto::limits::DATAGRAM_MAX;
use isthmus_proto::link::{Input, PortKind, Slot};
use isthmus_proto::wire::{Frame, HEADER_LEN, InnerDatagrams, read_header};
use isthmus_proto::{Code, Instant, PortId};

use super::State;
use super::entry::{Body, Entry, ReadEnd, Stream, UdpEvent};
use crate::{Error, Unreachable};

/// Accepted connections that may wait for [`crate::TcpListener::accept`]; more are reset.
const BACKLOG_MAX: usize = 1024;

impl State {
    /// The whole frames of one record.
    ///
    /// # Errors
    /// The end of the connection.
    pub(crate) fn on_frames(&mut self, mut frames: &[u8], now: Instant) -> Result<(), Error> {
        while !frames.is_empty() {
            let header = read_header(frames).map_err(Error::protocol)?;
            let split = frames.split_at_checked(HEADER_LEN + usize::from(header.len));
            let (frame, rest) = split.ok_or_else(|| Error::protocol("a frame is longer than its record"))?;
            frames = rest;
            let payload = frame.get(HEADER_LEN..).unwrap_or_default();
            let decoded = Frame::decode(header, payload).map_err(Error::protocol)?;
            let input = self.link.receive(decoded, now).map_err(Error::protocol)?;
            self.on_input(input, payload, now)?;
        }
        Ok(())
    }

    /// The inner datagrams of an opened packet of a UDP channel.
    pub(crate) fn on_channel_plaintext(&mut self, plaintext: &[u8], now: Instant) {
        let mut inner = InnerDatagrams::new(plaintext);
        // They are read from the end; the first one is the oldest.
        let Some(mut last) = inner.next() else { return };
        let mut earlier = Vec::new();
        for next in inner {
            earlier.push(std::mem::replace(&mut last, next));
        }
        for one in std::iter::once(last).chain(earlier.into_iter().rev()) {
            self.on_channel_datagram(one.port, one.remote, plaintext.get(one.payload).unwrap_or_default(), now);
        }
    }

    fn on_channel_datagram(&mut self, port: PortId, remote: Option<SocketAddr>, payload: &[u8], now: Instant) {
        if let Some((_, owner)) = self.link.datagram_received(port, payload.len(), now) {
            self.push_datagram(owner as usize, remote, payload);
        }
    }

    fn on_input(&mut self, input: Input<'_>, payload: &[u8], now: Instant) -> Result<(), Error> {
        match input {
            Input::None | Input::RoundTrip(_) => {}
            Input::Data { owner, slot, len } => self.on_data(owner as usize, slot, last(payload, len), now),
            Input::Fin { owner, slot, over } => self.on_fin(owner as usize, slot, over),
            Input::Reset { owner, code } => self.on_reset(owner as usize, code),
            Input::Writable { owner, .. } => self.on_writable(owner as usize),
            Input::Datagram { owner, remote, more, len, .. } => {
                self.on_part(owner as usize, remote, more, last(payload, len));
            }
            Input::Answer { owner, to, request, code, local, over, .. } => {
                self.on_answer(owner as usize, to, request, code, local, over);
            }
            Input::Accepted { owner, slot, peer, local, .. } => self.on_accepted(owner as usize, slot, peer, local),
            Input::UdpError { owner, code, remote, .. } => {
                if let Some(Entry { body: Body::Udp(udp), .. }) = self.entries.get_mut(owner as usize) {
                    udp.push(UdpEvent::Unreachable(Unreachable { remote, code }));
                }
            }
            Input::Report(json) => {
                if let Ok(report) = serde_json::from_slice(json) {
                    self.report = Some(report);
                }
            }
            Input::QueryAnswer { query, json } => self.on_query_answer(query, json),
            Input::Goodbye { code, retry_after_ms, text } => {
                return Err(Error::Goodbye {
                    code: code.unwrap_or(Code::Failed),
                    text: text.to_owned(),
                    retry_after: Duration::from_millis(retry_after_ms.into()),
                });
            }
            // A requester's link never gives these.
            Input::Open { .. }
            | Input::Connect { .. }
            | Input::ConnectName { .. }
            | Input::Serve { .. }
            | Input::Close { .. } => {}
            Input::Switch { .. } | Input::Query { .. } | Input::Renew(_) | Input::Asker { .. } | Input::Outcomes(_) => {
            }
        }
        Ok(())
    }

    fn on_data(&mut self, key: usize, slot: Slot, payload: &[u8], now: Instant) {
        match self.entries.get_mut(key) {
            Some(Entry { holders: 1.., body: Body::Stream(stream), .. }) => {
                stream.received.extend(payload);
                self.wakers.extend(stream.reader.take());
            }
            // Nobody will read it: a lingering stream ends as a closed socket does, once all of ours is on its way.
            Some(entry @ Entry { holders: 0, .. }) if entry.unsent > 0 => self.link.consumed(slot, payload.len(), now),
            Some(Entry { holders: 0, .. }) => {
                self.link.reset(slot, Code::PeerGone);
                self.entries.remove(key);
            }
            Some(entry) => {
                entry.on_over(Code::NotTcp);
                self.link.reset(slot, Code::NotTcp);
            }
            None => self.link.reset(slot, Code::PeerGone),
        }
    }

    fn on_fin(&mut self, key: usize, slot: Slot, over: bool) {
        let Some(entry) = self.entries.get_mut(key) else { return };
        match &mut entry.body {
            Body::Stream(stream) => {
                stream.read_end = Some(ReadEnd::Fin);
                self.wakers.extend(stream.reader.take());
                entry.live = !over;
                if over && entry.holders == 0 {
                    self.entries.remove(key);
                }
            }
            _ => {
                entry.on_over(Code::PeerGone);
                entry.wake_all(&mut self.wakers);
                if !over {
                    self.link.reset(slot, Code::NotTcp);
                }
            }
        }
    }

    fn on_reset(&mut self, key: usize, code: Code) {
        let Some(entry) = self.entries.get_mut(key) else { return };
        entry.on_over(code);
        if let Body::Stream(stream) = &mut entry.body {
            // An orderly end that was received stays one; the writing direction is what was cut.
            stream.read_end.get_or_insert(ReadEnd::Reset(code));
        }
        entry.wake_all(&mut self.wakers);
        if entry.holders == 0 {
            self.entries.remove(key);
        }
    }

    fn on_writable(&mut self, key: usize) {
        if let Some(Entry { body: Body::Stream(stream), .. }) = self.entries.get_mut(key) {
            self.wakers.extend(stream.writer.take());
        }
    }

    fn on_accepted(&mut self, parent: usize, slot: Slot, peer: SocketAddr, local: SocketAddr) {
        let key = self.entries.vacant_key();
        let Some(Entry { body: Body::Server(server), live: true, .. }) = self.entries.get_mut(parent) else {
            return self.link.reset(slot, Code::PeerGone);
        };
        if server.waiting.len() >= BACKLOG_MAX {
            self.counts.accepts_dropped += 1;
            return self.link.reset(slot, Code::Overloaded);
        }
        server.waiting.push_back(key);
        server.arrived.notify_one();
        self.link.set_owner(slot, key as u64);
        let mut entry = Entry::new(slot, PortKind::Tcp, Body::Stream(Box::new(Stream::new(peer))));
        entry.local = local;
        self.entries.insert(entry);
    }

    /// A datagram, or a part of one, that came over the TCP channel.
    fn on_part(&mut self, key: usize, remote: Option<SocketAddr>, more: bool, payload: &[u8]) {
        let Some(Entry { body: Body::Udp(udp), .. }) = self.entries.get_mut(key) else { return };
        match (remote, more) {
            (Some(_), false) => self.push_datagram(key, remote, payload),
            (Some(remote), true) => udp.assembly = Some((remote, payload.to_vec())),
            (None, more) => {
                let Some((remote, mut bytes)) = udp.assembly.take() else {
                    // A port with one party may leave its address out.
                    if !more {
                        self.push_datagram(key, None, payload);
                    }
                    return;
                };
                bytes.extend_from_slice(payload);
                if bytes.len() > DATAGRAM_MAX {
                    self.counts.datagrams_refused += 1;
                } else if more {
                    udp.assembly = Some((remote, bytes));
                } else {
                    self.push_datagram(key, Some(remote), &bytes);
                }
            }
        }
    }

    fn push_datagram(&mut self, key: usize, remote: Option<SocketAddr>, payload: &[u8]) {
        let Some(Entry { body: Body::Udp(udp), .. }) = self.entries.get_mut(key) else { return };
        let Some(remote) = remote.or(udp.peer) else {
            self.counts.datagrams_refused += 1;
            return;
        };
        if !udp.push(UdpEvent::Datagram { remote, payload: payload.to_vec() }) {
            self.counts.datagrams_dropped += 1;
        }
    }
}

/// The last `len` bytes of a frame's payload, behind whatever else it tells.
fn last(payload: &[u8], len: usize) -> &[u8] {
    payload.get(payload.len().saturating_sub(len)..).unwrap_or_default()
}
