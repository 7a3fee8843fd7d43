//! What drivers do with UDP ports and with the UDP channel.

use std::net::SocketAddr;

use isthmus_proto::limits::{CHANNEL_PLAINTEXT_MAX, FRAME_PAYLOAD_MAX};
use isthmus_proto::link::ChannelAction;
use isthmus_proto::record::{DATAGRAM_OVERHEAD, DatagramError, DatagramHeader};
use isthmus_proto::wire::{
    ADDR_LEN, HEADER_LEN, InnerDatagrams, OpenFlags, TRAILER_ADDR_LEN, channel_kind, write_datagram_header,
    write_trailer,
};
use isthmus_proto::{ChannelId, ShardId};

use crate::end::DEAD;
use crate::oracle::datagram_name;
use crate::plan::Talk;
use crate::rng::pattern;
use crate::world::{REQUESTER, RESPONDER, World};

/// Request numbers of switches, by what is switched to.
const OPEN: u16 = 10;
pub(crate) const REDIRECT: u16 = 11;

/// A datagram's remote party, which numbers it.
fn remote(talk: usize, number: usize) -> SocketAddr {
    SocketAddr::from(([10, 9, (number >> 8) as u8, number as u8], 1000 + talk as u16))
}

fn number_of(remote: SocketAddr, talk: usize) -> u64 {
    let SocketAddr::V4(v4) = remote else { panic!("{remote}") };
    let [10, 9, high, low] = v4.ip().octets() else { panic!("{remote}") };
    assert_eq!(usize::from(v4.port()), 1000 + talk, "a datagram of another port");
    u64::from(high) << 8 | u64::from(low)
}

impl World {
    pub(crate) fn switch(&mut self, talk: usize, redirect: bool) {
        let state = &self.states[talk];
        let Some(slot) = state.slot[REQUESTER].filter(|_| state.active[REQUESTER]) else { return };
        let (request, flags) = if redirect { (REDIRECT, OpenFlags::REDIRECT) } else { (OPEN, 0) };
        self.ends[REQUESTER].link.switch(slot, request, OpenFlags(flags));
    }

    pub(crate) fn send_datagram(&mut self, talk: usize, end: usize, number: usize) {
        let Talk::Udp(udp) = &self.plan.talks[talk] else { unreachable!() };
        let len = udp.sends[end][number].1;
        let state = &self.states[talk];
        let Some(slot) = state.slot[end].filter(|_| state.active[end]) else { return };
        let payload = pattern(datagram_name(talk, end, number as u64), 0, len);
        let remote = remote(talk, number);
        let fits = len + TRAILER_ADDR_LEN <= CHANNEL_PLAINTEXT_MAX;
        if state.redirected[end] && fits && self.is_channel_live(end) {
            if self.batch[end].len() + len + TRAILER_ADDR_LEN > CHANNEL_PLAINTEXT_MAX {
                self.flush_channel(end);
            }
            let mut trailer = [0; TRAILER_ADDR_LEN];
            let trailer_len = write_trailer(&mut trailer, slot.id(), Some(remote), len as u16);
            self.batch[end].extend_from_slice(&payload);
            self.batch[end].extend_from_slice(&trailer[..trailer_len]);
            self.ends[end].link.count_datagram_out(Some(len), false, self.now);
            self.oracle.datagram_sent(talk, end, number as u64, len, true);
            return;
        }
        let first = payload.len().min(FRAME_PAYLOAD_MAX - ADDR_LEN);
        let mut parts = vec![&payload[..first]];
        parts.extend(payload[first..].chunks(FRAME_PAYLOAD_MAX));
        let last = parts.len() - 1;
        let frames: Vec<_> = parts
            .iter()
            .enumerate()
            .map(|(n, part)| {
                let remote = (n == 0).then_some(remote);
                let mut frame = vec![0; HEADER_LEN + if n == 0 { ADDR_LEN } else { 0 }];
                write_datagram_header(&mut frame, slot.id(), remote, n < last, part.len() as u16);
                frame.extend_from_slice(part);
                frame
            })
            .collect();
        let bytes: usize = frames.iter().map(Vec::len).sum();
        if self.ends[end].link.enqueue_datagram(slot, frames.into_iter(), self.now) {
            self.states[talk].queued[end] += bytes as u64;
            self.oracle.datagram_sent(talk, end, number as u64, len, false);
        }
    }

    pub(crate) fn on_datagram(
        &mut self,
        end: usize,
        talk: usize,
        remote: Option<SocketAddr>,
        more: bool,
        bytes: &[u8],
    ) {
        let partial = &mut self.states[talk].partial[end];
        if let Some(remote) = remote {
            let before = partial.replace((number_of(remote, talk), Vec::new()));
            assert_eq!(before, None, "a datagram begins within another");
        }
        let (number, mut whole) = partial.take().expect("a part of no datagram");
        whole.extend_from_slice(bytes);
        if more {
            *partial = Some((number, whole));
        } else {
            self.oracle.datagram_read(talk, end, number, &whole, false);
        }
    }

    fn is_channel_live(&self, end: usize) -> bool {
        match end {
            RESPONDER => self.clock.is_live(self.now),
            _ => self.channel_heard.is_some_and(|heard| self.now.since(heard) < DEAD),
        }
    }

    /// Maintains the channel: the caller's part.
    pub(crate) fn tend_channel(&mut self) {
        if self.clock.on_deadline(self.now) == ChannelAction::Ping {
            let opaque = self.now.0.to_be_bytes();
            self.fly(RESPONDER, channel_kind::PING, &opaque);
        }
    }

    /// Sends what has gathered.
    pub(crate) fn flush_channel(&mut self, end: usize) {
        let batch = std::mem::take(&mut self.batch[end]);
        if !batch.is_empty() {
            self.fly(end, channel_kind::DATA, &batch);
        }
    }

    fn fly(&mut self, end: usize, kind: u8, plaintext: &[u8]) {
        let header = DatagramHeader { shard: ShardId(3), kind, channel: ChannelId(5), ..Default::default() };
        let mut out = vec![0; DATAGRAM_OVERHEAD + plaintext.len()];
        let len = self.ends[end].keys.seal_into(header, plaintext, &[], &mut out).unwrap();
        assert_eq!(len, out.len());
        assert!(len <= CHANNEL_PLAINTEXT_MAX + DATAGRAM_OVERHEAD);
        self.airs[1 - end].send(&out, self.now.0, self.weather, &mut self.rng);
    }

    pub(crate) fn receive_datagrams(&mut self, end: usize) {
        while let Some((mut bytes, genuine)) = self.airs[end].receive(self.now.0) {
            let header = DatagramHeader::parse(&bytes);
            match self.ends[end].keys.open(&mut bytes) {
                Ok(range) => {
                    assert!(genuine, "a damaged datagram was taken");
                    self.on_channel(end, header.unwrap().kind, &bytes[range]);
                }
                Err(DatagramError::Replayed | DatagramError::TooOld) => {
                    self.oracle.tally.replayed += 1;
                    assert!(genuine);
                }
                Err(error) => {
                    self.oracle.tally.damaged += 1;
                    assert!(!genuine, "{error}");
                }
            }
        }
    }

    fn on_channel(&mut self, end: usize, kind: u8, plaintext: &[u8]) {
        match end {
            RESPONDER => self.clock.heard(self.now),
            _ => self.channel_heard = Some(self.now),
        }
        match kind {
            channel_kind::PING => self.fly(end, channel_kind::PONG, plaintext),
            channel_kind::PONG => assert_eq!(end, RESPONDER),
            _ => {
                let mut inner = InnerDatagrams::new(plaintext);
                for one in inner.by_ref() {
                    let payload = &plaintext[one.payload];
                    let found = self.ends[end].link.datagram_received(one.port, payload.len(), self.now);
                    let Some((slot, owner)) = found else { continue };
                    let talk = owner as usize - 1;
                    assert_eq!(self.states[talk].slot[end], Some(slot));
                    self.oracle.datagram_read(talk, end, number_of(one.remote.unwrap(), talk), payload, true);
                }
                assert!(!inner.is_malformed());
            }
        }
    }
}
