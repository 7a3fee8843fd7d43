//! A frame's way through a relay: received on one link, queued on another, sent.

use std::hint::black_box;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use gungraun::{library_benchmark, library_benchmark_group};
use isthmus_proto::link::{Input, Link, LinkConfig, Maintain, Payload, Side, Slot, Transmit, UNSPECIFIED};
use isthmus_proto::wire::{
    ADDR_LEN, Frame, HEADER_LEN, InnerDatagrams, OpenFlags, TRAILER_ADDR_LEN, read_header, write_data_header,
    write_datagram_header, write_trailer,
};
use isthmus_proto::{Instant, PortId};

use crate::{REPEAT, about};

/// A frame's length stands for it: its bytes never enter a link.
#[derive(Clone, Copy)]
struct Length(usize);

impl Payload for Length {
    fn len(&self) -> usize {
        self.0
    }
}

/// A mediator's link and a terminal's at the relay, joined by one port, and a frame of the mediator's.
struct Bridge {
    mediator: Link<Length>,
    near: Slot,
    terminal: Link<Length>,
    far: Slot,
    frame: Vec<u8>,
    now: Instant,
}

const REMOTE: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::new(10, 0, 0, 5)), 53);

fn end(side: Side) -> Link<Length> {
    let maintain = Maintain::Relay { silence: Duration::from_secs(60) };
    Link::new(LinkConfig { side, ports_max: 16_384, maintain }, Instant::ZERO)
}

impl Bridge {
    fn new(flags: u8, frame: impl FnOnce(PortId) -> Vec<u8>) -> Self {
        let now = Instant::ZERO;
        let (mut mediator, mut terminal) = (end(Side::Requester), end(Side::Responder));
        let near = mediator.open(1, 1, OpenFlags(flags), UNSPECIFIED, None, now).unwrap();
        let port = PortId::new(false, 1, 1);
        let open = Frame::Open { port, request: 1, flags: OpenFlags(flags), local: UNSPECIFIED, peer: None, asker: 0 };
        let Ok(Input::Open { slot: far, .. }) = terminal.receive(open, now) else { panic!("refused") };
        // A host that reads all at once; what it grants does not end.
        terminal.receive(Frame::Credit { port, offset: u64::MAX / 2 }, now).unwrap();
        let mut bridge = Self { mediator, near, terminal, far, frame: frame(near.id()), now };
        // Queues have their size from now on.
        bridge.pass();
        bridge
    }

    /// The frame goes through.
    fn pass(&mut self) {
        self.now = self.now + Duration::from_micros(1);
        let frame = black_box(self.frame.as_slice());
        let header = read_header(frame).unwrap();
        let decoded = Frame::decode(header, &frame[HEADER_LEN..HEADER_LEN + usize::from(header.len)]).unwrap();
        match self.mediator.receive(decoded, self.now).unwrap() {
            Input::Data { slot, len, .. } => {
                assert!(self.terminal.enqueue(self.far, Length(HEADER_LEN + len), self.now));
                self.mediator.consumed(slot, len, self.now);
            }
            Input::Datagram { .. } => {
                let parts = std::iter::once(Length(frame.len()));
                assert!(self.terminal.enqueue_datagram(self.far, parts, self.now));
            }
            other => panic!("{other:?} is no payload"),
        }
        send(&mut self.mediator);
        send(&mut self.terminal);
    }
}

/// Takes all that waits.
fn send(link: &mut Link<Length>) {
    while let Some(transmit) = link.transmit() {
        match transmit {
            Transmit::Control => {
                black_box(link.control().take(usize::MAX));
                link.control().reclaim();
            }
            Transmit::Frame { owner, frame, .. } => {
                black_box((owner, frame.len()));
            }
        }
    }
}

fn stream(len: usize) -> Bridge {
    Bridge::new(0, |port| {
        let mut frame = vec![0; HEADER_LEN + len];
        write_data_header(frame.first_chunk_mut().unwrap(), port, len as u16);
        frame
    })
}

/// A datagram over the TCP channel.
fn datagram(len: usize) -> Bridge {
    Bridge::new(OpenFlags::UDP, |port| {
        let mut frame = vec![0; HEADER_LEN + ADDR_LEN + len];
        write_datagram_header(&mut frame, port, Some(REMOTE), false, len as u16);
        frame
    })
}

#[library_benchmark]
#[bench::small_stream(args = (stream(64)), config = about(74_990))]
#[bench::bulk_stream(args = (stream(16_000)), config = about(86_035))]
#[bench::datagram(args = (datagram(200)), config = about(87_490))]
fn route(mut bridge: Bridge) -> Bridge {
    (0..REPEAT).for_each(|_| bridge.pass());
    bridge
}

/// A link with a UDP port, and the opened plaintext of a channel's datagram for it.
fn channel_datagram() -> (Bridge, Vec<u8>) {
    let bridge = datagram(200);
    let mut plaintext = vec![0; 200];
    let mut trailer = [0; TRAILER_ADDR_LEN];
    let len = write_trailer(&mut trailer, bridge.near.id(), Some(REMOTE), 200);
    plaintext.extend_from_slice(&trailer[..len]);
    (bridge, plaintext)
}

#[library_benchmark(config = about(22_034))]
#[bench::of_200_bytes(channel_datagram())]
fn route_channel((mut bridge, plaintext): (Bridge, Vec<u8>)) -> (Bridge, Vec<u8>) {
    for _ in 0..REPEAT {
        for inner in InnerDatagrams::new(black_box(&plaintext)) {
            let mut trailer = [0; TRAILER_ADDR_LEN];
            let len = inner.payload.len();
            bridge.mediator.datagram_received(inner.port, len, bridge.now).unwrap();
            write_trailer(&mut trailer, bridge.far.id(), inner.remote, len as u16);
            black_box(&trailer);
            bridge.terminal.count_datagram_out(Some(len), false, bridge.now);
        }
    }
    (bridge, plaintext)
}

library_benchmark_group!(name = links, benchmarks = [route, route_channel]);
