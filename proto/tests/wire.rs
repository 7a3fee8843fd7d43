//! Frames to bytes and back, for all frames and for all bytes.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use isthmus_proto::limits::FRAME_PAYLOAD_MAX;
use isthmus_proto::wire::{
    ADDR_LEN, ControlBuf, DecodeError, Frame, HEADER_LEN, InnerDatagrams, Kind, NamedTarget, OpenFlags, RequestKind,
    TRAILER_ADDR_LEN, read_header, write_data_header, write_datagram_header, write_trailer,
};
use isthmus_proto::{Code, PortId};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

/// The numbers of all kinds, as the protocol's table gives them.
const KINDS: [u8; 25] = [
    0x01, 0x02, 0x03, 0x04, 0x05, 0x06, 0x07, 0x08, 0x09, 0x0a, 0x0b, 0x10, 0x11, 0x12, 0x13, 0x14, 0x15, 0x18, 0x19,
    0x20, 0x21, 0x22, 0x23, 0x30, 0x31,
];

const REQUESTS: [RequestKind; 5] =
    [RequestKind::Open, RequestKind::Connect, RequestKind::Serve, RequestKind::Close, RequestKind::Switch];

/// All fields that any frame has.
#[derive(Clone, Debug)]
struct Fields {
    port: PortId,
    other: PortId,
    a16: u16,
    a32: u32,
    a64: u64,
    flags: u8,
    code: Code,
    to: RequestKind,
    addr: SocketAddr,
    peer: Option<SocketAddr>,
    text: String,
    bytes: Vec<u8>,
}

impl Fields {
    fn frame(&self, kind: Kind) -> Frame<'_> {
        let Self { port, other, a16, a32, a64, code, to, addr, peer, .. } = *self;
        let (json, request) = (&self.bytes[..], a16);
        match kind {
            Kind::Hello => Frame::Hello { version: a16, json },
            Kind::Welcome => Frame::Welcome { version: a16, json },
            Kind::Goodbye => Frame::Goodbye { code: Some(code), retry_after_ms: a32, text: &self.text },
            Kind::Report => Frame::Report { json },
            Kind::Ping => Frame::Ping { opaque: a64 },
            Kind::Pong => Frame::Pong { opaque: a64 },
            Kind::Query => Frame::Query { query: a32, json },
            Kind::QueryAnswer => Frame::QueryAnswer { query: a32, json },
            Kind::Renew => Frame::Renew { token: &self.text },
            Kind::Asker => Frame::Asker { asker: a16, name: &self.text },
            Kind::Outcomes => Frame::Outcomes { json },
            Kind::Open => {
                Frame::Open { port, request, flags: OpenFlags(self.flags & 0x3f), local: addr, peer, asker: a32 as u16 }
            }
            Kind::Connect => {
                Frame::Connect { port, request, to: addr, timeout_ms: a32, unanswered: self.flags & 1 == 1 }
            }
            Kind::ConnectName => {
                let to = NamedTarget { name: &self.text, port: a16, rules: &self.text };
                Frame::ConnectName { port, request, to, timeout_ms: a32 }
            }
            Kind::Serve => Frame::Serve { port, request },
            Kind::Close => Frame::Close { port, request },
            Kind::Switch => Frame::Switch { port, request, flags: OpenFlags(self.flags) },
            Kind::Answer => Frame::Answer { port, to, request, code, local: addr },
            Kind::Accepted => Frame::Accepted { port, parent: other, peer: addr, local: peer.unwrap_or(addr) },
            Kind::Data => Frame::Data { port, len: json.len() },
            Kind::Fin => Frame::Fin { port },
            Kind::Reset => Frame::Reset { port, code },
            Kind::Credit => Frame::Credit { port, offset: a64 },
            Kind::Datagram => Frame::Datagram { port, remote: peer, more: self.flags & 1 == 1, len: json.len() },
            Kind::UdpError => Frame::UdpError { port, code, remote: addr },
        }
    }

    /// The whole frame: payload that is the driver's is written by the driver's calls.
    fn encode(&self, kind: Kind) -> Vec<u8> {
        let mut bytes = match self.frame(kind) {
            Frame::Data { port, len } => {
                let mut head = [0; HEADER_LEN];
                write_data_header(&mut head, port, len as u16);
                head.to_vec()
            }
            Frame::Datagram { port, remote, more, len } => {
                let mut head = vec![0; HEADER_LEN + if remote.is_some() { ADDR_LEN } else { 0 }];
                write_datagram_header(&mut head, port, remote, more, len as u16);
                head
            }
            frame => return pushed(&frame),
        };
        bytes.extend_from_slice(&self.bytes);
        bytes
    }
}

fn pushed(frame: &Frame<'_>) -> Vec<u8> {
    let mut control = ControlBuf::default();
    control.push(frame);
    let len = control.len();
    let bytes = control.take(len).to_vec();
    assert_eq!(bytes.len(), len, "one whole frame");
    bytes
}

fn decode(bytes: &[u8]) -> Result<Frame<'_>, DecodeError> {
    let header = read_header(bytes)?;
    Frame::decode(header, &bytes[HEADER_LEN..HEADER_LEN + usize::from(header.len)])
}

fn addr() -> impl Strategy<Value = SocketAddr> {
    let v4 = any::<(u32, u16)>().prop_map(|(ip, port)| SocketAddr::from((Ipv4Addr::from(ip), port)));
    let v6 = any::<(u128, u16)>().prop_map(|(ip, port)| SocketAddr::from((Ipv6Addr::from(ip).to_canonical(), port)));
    prop_oneof![v4, v6]
}

fn fields() -> impl Strategy<Value = Fields> {
    let numbers = (any::<u32>(), any::<u32>(), any::<u16>(), any::<u32>(), any::<u64>(), any::<u8>());
    let names = (select(Code::ALL), select(&REQUESTS[..]), addr(), proptest::option::of(addr()));
    (numbers, names, "\\PC{0,40}", vec(any::<u8>(), 0..300)).prop_map(
        |((port, other, a16, a32, a64, flags), (code, to, addr, peer), text, bytes)| Fields {
            port: PortId(port),
            other: PortId(other),
            a16,
            a32,
            a64,
            flags,
            code,
            to,
            addr,
            peer,
            text,
            bytes,
        },
    )
}

fn kind() -> impl Strategy<Value = Kind> {
    select(&KINDS[..]).prop_map(|number| Kind::from_u8(number).unwrap())
}

proptest! {
    #[test]
    fn every_frame_comes_back_from_its_bytes(fields in fields()) {
        for kind in KINDS.map(|number| Kind::from_u8(number).unwrap()) {
            let bytes = fields.encode(kind);
            prop_assert_eq!(bytes[0], kind as u8);
            prop_assert_eq!(decode(&bytes), Ok(fields.frame(kind)));
        }
    }

    #[test]
    fn a_frame_that_ends_early_is_truncated_wherever_it_ends(fields in fields(), kind in kind()) {
        let bytes = fields.encode(kind);
        for end in 0..bytes.len() {
            prop_assert_eq!(read_header(&bytes[..end]), Err(DecodeError::Truncated));
        }
        prop_assert!(read_header(&bytes).is_ok());
    }

    /// The header claims less than the fields need: an error of that kind, never a frame with other fields.
    #[test]
    fn a_payload_that_is_too_short_for_its_fields_is_bad(fields in fields(), kind in kind()) {
        let whole = Fields { bytes: Vec::new(), text: String::new(), ..fields };
        let mut bytes = whole.encode(kind);
        for len in 0..bytes.len() - HEADER_LEN {
            bytes[2..4].copy_from_slice(&(len as u16).to_be_bytes());
            prop_assert_eq!(decode(&bytes), Err(DecodeError::BadPayload(kind as u8)), "{} bytes", len);
        }
    }

    /// A later version may append fields.
    #[test]
    fn bytes_behind_the_last_field_are_passed_over(fields in fields(), kind in kind(), more in vec(any::<u8>(), 1..20)) {
        let mut bytes = fields.encode(kind);
        bytes.extend_from_slice(&more);
        let len = (bytes.len() - HEADER_LEN) as u16;
        bytes[2..4].copy_from_slice(&len.to_be_bytes());
        let takes_all = matches!(
            kind,
            Kind::Hello | Kind::Welcome | Kind::Goodbye | Kind::Report | Kind::Query | Kind::QueryAnswer | Kind::Data
                | Kind::Datagram | Kind::Renew | Kind::Asker | Kind::Outcomes
        );
        if !takes_all {
            prop_assert_eq!(decode(&bytes), Ok(fields.frame(kind)));
        }
    }

    #[test]
    fn any_bytes_are_frames_or_errors(bytes in vec(any::<u8>(), 0..200), kind in select(&KINDS[..]), len in 0u8..64) {
        let mut likely = bytes.clone();
        for (place, value) in likely.iter_mut().zip([kind, bytes.first().copied().unwrap_or(0), 0, len]) {
            *place = value;
        }
        for bytes in [&bytes, &likely] {
            let mut rest = &bytes[..];
            while let Ok(header) = read_header(rest) {
                let (payload, next) = rest[HEADER_LEN..].split_at(usize::from(header.len));
                let known = KINDS.contains(&header.kind);
                prop_assert_eq!(Frame::decode(header, payload) == Ok(Frame::Unknown), !known);
                rest = next;
            }
            let inner: Vec<_> = InnerDatagrams::new(bytes).collect();
            for pair in inner.windows(2) {
                prop_assert!(pair[1].payload.end < pair[0].payload.start, "inner datagrams do not overlap");
            }
        }
    }

    #[test]
    fn inner_datagrams_come_back_in_reverse(inner in vec((any::<u32>(), proptest::option::of(addr()), vec(any::<u8>(), 0..200)), 0..6)) {
        let mut plaintext = Vec::new();
        for (port, remote, payload) in &inner {
            let mut trailer = [0; TRAILER_ADDR_LEN];
            let len = write_trailer(&mut trailer, PortId(*port), *remote, payload.len() as u16);
            plaintext.extend_from_slice(payload);
            plaintext.extend_from_slice(&trailer[..len]);
        }
        let mut reader = InnerDatagrams::new(&plaintext);
        let mut got: Vec<_> =
            reader.by_ref().map(|one| (one.port.0, one.remote, plaintext[one.payload].to_vec())).collect();
        got.reverse();
        prop_assert_eq!(got, inner);
        prop_assert!(!reader.is_malformed());
    }

    /// Whole frames only, as many as fit, each once, in order.
    #[test]
    fn control_frames_are_taken_whole_and_in_order(
        frames in vec((fields(), kind()), 0..40),
        rooms in vec((0usize..400, any::<bool>()), 1..60),
    ) {
        let mut control = ControlBuf::default();
        let whole: Vec<Vec<u8>> = frames
            .iter()
            .filter(|(_, kind)| !matches!(kind, Kind::Data | Kind::Datagram))
            .map(|(fields, kind)| {
                control.push(&fields.frame(*kind));
                pushed(&fields.frame(*kind))
            })
            .collect();
        let mut waiting = whole.iter().map(Vec::len).collect::<std::collections::VecDeque<_>>();
        let mut taken = Vec::new();
        for (room, reclaim) in rooms.into_iter().chain(std::iter::repeat_n((4000, true), 40)) {
            prop_assert_eq!(control.len(), waiting.iter().sum::<usize>());
            let mut want = 0;
            while waiting.front().is_some_and(|len| want + len <= room) {
                want += waiting.pop_front().unwrap();
            }
            let got = control.take(room);
            prop_assert_eq!(got.len(), want);
            taken.extend_from_slice(got);
            if reclaim {
                control.reclaim();
            }
        }
        prop_assert!(control.is_empty());
        prop_assert_eq!(taken, whole.concat());
    }
}

#[test]
fn unknown_kinds_pass_whatever_they_carry() {
    for kind in (0..=u8::MAX).filter(|kind| !KINDS.contains(kind)) {
        let bytes = [kind, 0xff, 0, 3, 1, 2, 3, 4, 9, 9, 9];
        assert_eq!(decode(&bytes), Ok(Frame::Unknown), "{kind:#x}");
    }
}

#[test]
fn codes_of_a_later_version_become_a_known_word() {
    let decoded = |kind: Kind, payload: &[u8]| {
        let mut bytes = vec![kind as u8, RequestKind::Open as u8, 0, payload.len() as u8, 0, 0, 0, 2];
        bytes.extend_from_slice(payload);
        format!("{:?}", decode(&bytes).unwrap())
    };
    let addr = [0; ADDR_LEN];
    assert!(decoded(Kind::Goodbye, &[0xff, 0xff, 0, 0, 0, 0]).contains("code: None"));
    assert!(decoded(Kind::Reset, &[0xff, 0xff]).contains("code: Reset"));
    assert!(decoded(Kind::Answer, &[&[0, 1, 0xff, 0xff][..], &addr].concat()).contains("code: Failed"));
    assert!(decoded(Kind::UdpError, &[&[0xff, 0xff][..], &addr].concat()).contains("code: Failed"));
}

#[test]
fn values_that_may_not_be_are_bad_payloads() {
    let answer = [&[Kind::Answer as u8, 0x15, 0, 22, 0, 0, 0, 2][..], &[0; 22]].concat();
    assert_eq!(decode(&answer), Err(DecodeError::BadPayload(0x18)), "an answer to no request");
    let goodbye = [Kind::Goodbye as u8, 0, 0, 7, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0xff];
    assert_eq!(decode(&goodbye), Err(DecodeError::BadPayload(0x03)), "text that is no UTF-8");
}

#[test]
fn the_peer_bit_of_open_is_not_the_callers_to_set() {
    let local: SocketAddr = "10.0.0.1:1".parse().unwrap();
    let open =
        |flags, peer| Frame::Open { port: PortId(2), request: 1, flags: OpenFlags(flags), local, peer, asker: 0 };
    let bytes = pushed(&open(OpenFlags::UDP, Some(local)));
    assert_eq!(bytes[1], OpenFlags::UDP | 0x80);
    assert_eq!(decode(&bytes), Ok(open(OpenFlags::UDP, Some(local))));
}

#[test]
fn mapped_addresses_come_out_as_ipv4() {
    let mapped: SocketAddr = "[::ffff:10.0.0.5]:80".parse().unwrap();
    let bytes = pushed(&Frame::Connect { port: PortId(2), request: 1, to: mapped, timeout_ms: 0, unanswered: false });
    let Ok(Frame::Connect { to, .. }) = decode(&bytes) else { panic!() };
    assert_eq!(to, "10.0.0.5:80".parse().unwrap());
}

#[test]
fn the_longest_payload_is_cut_at_the_frames_limit_and_not_below() {
    for (len, want) in [(FRAME_PAYLOAD_MAX, FRAME_PAYLOAD_MAX), (FRAME_PAYLOAD_MAX + 1, FRAME_PAYLOAD_MAX)] {
        let bytes = pushed(&Frame::Report { json: &vec![b'x'; len] });
        assert_eq!(bytes.len(), HEADER_LEN + want);
        assert_eq!(usize::from(read_header(&bytes).unwrap().len), want);
    }
}

#[test]
fn a_frame_larger_than_the_room_waits_for_a_larger_one() {
    let mut control = ControlBuf::default();
    control.push(&Frame::Ping { opaque: 1 });
    assert!(control.take(HEADER_LEN + 7).is_empty());
    assert_eq!(control.len(), HEADER_LEN + 8);
    assert_eq!(control.take(HEADER_LEN + 8).len(), HEADER_LEN + 8);
    assert!(control.is_empty());
}
