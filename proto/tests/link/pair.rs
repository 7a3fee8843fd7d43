//! A requester and a responder whose frames are carried by hand, so that a test decides what crosses what.

use std::net::SocketAddr;
use std::time::Duration;

use isthmus_proto::link::{Input, Link, LinkConfig, Maintain, Side, Slot, Transmit, UNSPECIFIED, Violation};
use isthmus_proto::wire::{Frame, HEADER_LEN, OpenFlags, RequestKind, read_header, write_data_header};
use isthmus_proto::{Code, Instant, PortId};

pub(crate) type End = Link<Vec<u8>>;

/// Owners of the requester's and of the responder's ports in these tests.
pub(crate) const ASKER: u64 = 7;
pub(crate) const DOER: u64 = 9;

pub(crate) const TCP: OpenFlags = OpenFlags(0);
pub(crate) const QUIET: OpenFlags = OpenFlags(OpenFlags::QUIET);
pub(crate) const UDP: OpenFlags = OpenFlags(OpenFlags::UDP);

pub(crate) struct Pair {
    pub(crate) requester: End,
    pub(crate) responder: End,
    pub(crate) now: Instant,
}

impl Pair {
    pub(crate) fn new() -> Self {
        Self::with_ports(16_384, 16_384)
    }

    /// With these most ports at the requester's and the responder's end.
    pub(crate) fn with_ports(requester: u32, responder: u32) -> Self {
        Self {
            requester: end(Side::Requester, requester),
            responder: end(Side::Responder, responder),
            now: Instant::ZERO,
        }
    }

    pub(crate) fn wait(&mut self, time: Duration) {
        self.now = self.now + time;
    }

    /// Carries all that the requester has to send.
    pub(crate) fn tell_responder(&mut self) -> Vec<Input<'static>> {
        deliver(&mut self.responder, emit(&mut self.requester), self.now).unwrap()
    }

    /// Carries all that the responder has to send.
    pub(crate) fn tell_requester(&mut self) -> Vec<Input<'static>> {
        deliver(&mut self.requester, emit(&mut self.responder), self.now).unwrap()
    }

    /// Asks for a port; the responder takes it and does not answer yet. Gives both ends' slots.
    pub(crate) fn asked(&mut self, flags: OpenFlags) -> (Slot, Slot) {
        let near = self.requester.open(ASKER, 1, flags, UNSPECIFIED, None, self.now).unwrap();
        let inputs = self.tell_responder();
        let far = inputs
            .iter()
            .find_map(|input| match input {
                Input::Open { slot, .. } => Some(*slot),
                _ => None,
            })
            .unwrap();
        self.responder.set_owner(far, DOER);
        (near, far)
    }

    /// A port that is opened and answered.
    pub(crate) fn opened(&mut self, flags: OpenFlags) -> (Slot, Slot) {
        let (near, far) = self.asked(flags);
        self.responder.answer(far, RequestKind::Open, 1, Code::Ok, Some(addr(1000)));
        self.tell_requester();
        (near, far)
    }

    /// A host's connection to a server port: the responder's slot, not told yet.
    pub(crate) fn accepted(&mut self, parent: Slot) -> Slot {
        self.responder.accepted(parent, DOER, addr(5000), addr(80), self.now).unwrap()
    }

    /// Live ports at both ends.
    pub(crate) fn ports(&self) -> (usize, usize) {
        (self.requester.ports(), self.responder.ports())
    }
}

pub(crate) fn end(side: Side, ports_max: u32) -> End {
    let maintain = match side {
        Side::Requester => Maintain::Relay { silence: Duration::from_secs(60) },
        Side::Responder => Maintain::Caller { interval: Duration::from_secs(20), dead: Duration::from_secs(10) },
    };
    Link::new(LinkConfig { side, ports_max, maintain }, Instant::ZERO)
}

pub(crate) fn addr(port: u16) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, 5], port))
}

/// A data frame of `len` payload bytes.
pub(crate) fn data(slot: Slot, len: usize) -> Vec<u8> {
    let mut frame = vec![0x5a; HEADER_LEN + len];
    write_data_header(frame.first_chunk_mut().unwrap(), slot.id(), len as u16);
    frame
}

/// Everything that `link` would send now, frame by frame in the order of the wire.
pub(crate) fn emit(link: &mut End) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    while let Some(transmit) = link.transmit() {
        match transmit {
            Transmit::Frame { frame, .. } => frames.push(frame),
            Transmit::Control => {
                let mut bytes = link.control().take(usize::MAX);
                while !bytes.is_empty() {
                    let (frame, rest) = bytes.split_at(HEADER_LEN + usize::from(read_header(bytes).unwrap().len));
                    frames.push(frame.to_vec());
                    bytes = rest;
                }
                link.control().reclaim();
            }
        }
    }
    frames
}

/// What `link` makes of `frames`, without [`Input::None`] and [`Input::Writable`].
pub(crate) fn deliver(link: &mut End, frames: Vec<Vec<u8>>, now: Instant) -> Result<Vec<Input<'static>>, Violation> {
    let mut inputs = Vec::new();
    for frame in frames {
        // Leaked so that inputs outlive it: a test's few frames.
        let frame: &'static [u8] = frame.leak();
        let header = read_header(frame).unwrap();
        let input = link.receive(Frame::decode(header, &frame[HEADER_LEN..]).unwrap(), now)?;
        if !matches!(input, Input::None | Input::RoundTrip(_) | Input::Writable { .. }) {
            inputs.push(input);
        }
    }
    Ok(inputs)
}

/// The port whose frame this is.
pub(crate) fn port_of(frame: &[u8]) -> PortId {
    read_header(frame).unwrap().port
}
