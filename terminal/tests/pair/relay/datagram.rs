//! Datagrams: each goes back where it came from.

use std::net::SocketAddr;

use isthmus_proto::link::Slot;
use isthmus_proto::record::{ChannelKeys, DatagramHeader};
use isthmus_proto::wire::{
    HEADER_LEN, InnerDatagrams, TRAILER_ADDR_LEN, channel_kind, write_datagram_header, write_trailer,
};
use isthmus_proto::{ChannelId, Code, PortId, ShardId};
use tokio::net::UdpSocket;

use super::Seen;
use super::party::Party;

pub(super) struct Channel {
    pub(super) keys: ChannelKeys,
    pub(super) peer: Option<SocketAddr>,
}

impl Party {
    pub(super) async fn on_part(&mut self, slot: Slot, remote: Option<SocketAddr>, more: bool, part: &[u8]) {
        match remote {
            Some(remote) => self.assembly = Some((remote, part.to_vec())),
            None => self.assembly.as_mut().unwrap().1.extend_from_slice(part),
        }
        if more {
            return;
        }
        let (remote, bytes) = self.assembly.take().unwrap();
        self.tell(Seen::Datagram { len: bytes.len(), channel: false });
        self.echo_datagram(slot.id(), slot, remote, &bytes).await;
    }

    /// Back the way that the port's mode says, where it fits.
    async fn echo_datagram(&mut self, port: PortId, slot: Slot, remote: SocketAddr, bytes: &[u8]) {
        if remote.port() == 1 {
            self.link.udp_error(slot, Code::Refused, remote);
            return;
        }
        let now = self.now();
        let redirected = self.redirected.get(&port).copied().unwrap_or(false);
        let heard = self.channels.iter_mut().find(|(_, channel)| channel.peer.is_some());
        if let Some((&id, channel)) = heard
            && redirected
            && bytes.len() < 1300
        {
            let mut trailer = [0; TRAILER_ADDR_LEN];
            let len = write_trailer(&mut trailer, port, Some(remote), bytes.len() as u16);
            // Two inner datagrams in one packet: the echo, and its length.
            let mut plain = bytes.to_vec();
            plain.extend_from_slice(&trailer[..len]);
            let count = (bytes.len() as u16).to_be_bytes();
            plain.extend_from_slice(&count);
            let len = write_trailer(&mut trailer, port, Some(remote), 2);
            plain.extend_from_slice(&trailer[..len]);
            send_on(&self.udp, id, channel, channel_kind::DATA, &plain).await;
            return;
        }
        let count = bytes.len().div_ceil(16_000).max(1);
        let frames: Vec<Vec<u8>> = (0..count)
            .map(|n| {
                let part = &bytes[n * 16_000..bytes.len().min((n + 1) * 16_000)];
                let mut frame = vec![0; HEADER_LEN + if n == 0 { 18 } else { 0 }];
                write_datagram_header(&mut frame, port, (n == 0).then_some(remote), n + 1 < count, part.len() as u16);
                frame.extend_from_slice(part);
                frame
            })
            .collect();
        self.link.enqueue_datagram(slot, frames.into_iter(), now);
    }

    pub(super) async fn on_packet(&mut self, packet: &mut [u8], from: SocketAddr) {
        let header = DatagramHeader::parse(packet).unwrap();
        assert_eq!(header.shard, ShardId(5));
        let now = self.now();
        let channel = self.channels.get_mut(&header.channel).unwrap();
        let range = channel.keys.open(packet).unwrap();
        channel.peer = Some(from);
        let plain = packet[range].to_vec();
        match header.kind {
            channel_kind::PING if !self.deaf => {
                send_on(&self.udp, header.channel, channel, channel_kind::PONG, &plain).await;
            }
            channel_kind::DATA => {
                let inner: Vec<_> = InnerDatagrams::new(&plain).collect();
                for one in inner {
                    let bytes = &plain[one.payload];
                    self.tell(Seen::Datagram { len: bytes.len(), channel: true });
                    let (slot, _) = self.link.datagram_received(one.port, bytes.len(), now).unwrap();
                    self.echo_datagram(one.port, slot, one.remote.unwrap(), bytes).await;
                }
            }
            _ => {}
        }
    }
}

async fn send_on(udp: &UdpSocket, id: ChannelId, channel: &mut Channel, kind: u8, plain: &[u8]) {
    let header = DatagramHeader { shard: ShardId(5), kind, epoch: 0, channel: id, packet: 0 };
    let mut out = vec![0; plain.len() + 64];
    let len = channel.keys.seal_into(header, plain, &[], &mut out).unwrap();
    udp.send_to(&out[..len], channel.peer.unwrap()).await.unwrap();
}
