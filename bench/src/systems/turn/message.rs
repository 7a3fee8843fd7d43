//! The few messages of STUN and TURN that holding a relayed address takes (RFC 8489, RFC 8656).
//!
//! ```text
//!  0                   2                   4                   8                  20
//!  | type: 14 bits     | length of what follows | 0x2112A442   | transaction: 12  | attributes: type, length, value, pad to 4
//! ```

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

const COOKIE: [u8; 4] = 0x2112_a442_u32.to_be_bytes();
const HEADER: usize = 20;

/// Methods.
pub(super) const BINDING: u16 = 0x001;
pub(super) const ALLOCATE: u16 = 0x003;
pub(super) const REFRESH: u16 = 0x004;
pub(super) const SEND: u16 = 0x006;
pub(super) const DATA: u16 = 0x007;
pub(super) const CREATE_PERMISSION: u16 = 0x008;
pub(super) const CHANNEL_BIND: u16 = 0x009;

/// Attributes.
pub(super) const ERROR_CODE: u16 = 0x0009;
pub(super) const CHANNEL_NUMBER: u16 = 0x000c;
pub(super) const LIFETIME: u16 = 0x000d;
pub(super) const PEER_ADDRESS: u16 = 0x0012;
pub(super) const PAYLOAD: u16 = 0x0013;
pub(super) const RELAYED_ADDRESS: u16 = 0x0016;
pub(super) const REQUESTED_TRANSPORT: u16 = 0x0019;

/// Classes: two bits of the type.
pub(super) const REQUEST: u16 = 0x000;
pub(super) const INDICATION: u16 = 0x010;
pub(super) const SUCCESS: u16 = 0x100;
pub(super) const ERROR: u16 = 0x110;

/// Channel numbers that a client may bind (RFC 8656, section 12).
pub(super) const CHANNELS: std::ops::Range<u16> = 0x4000..0x5000;

/// Whether a datagram is ChannelData, by its first two bits.
pub(super) fn is_channel_data(datagram: &[u8]) -> bool {
    datagram.first().is_some_and(|first| first >> 6 == 1)
}

/// A message that is being written.
pub(super) struct Writer {
    bytes: Vec<u8>,
    transaction: [u8; 12],
}

impl Writer {
    pub(super) fn new(method: u16, class: u16, transaction: [u8; 12]) -> Self {
        let mut bytes = Vec::with_capacity(64);
        bytes.extend((method | class).to_be_bytes());
        bytes.extend([0, 0]);
        bytes.extend(COOKIE);
        bytes.extend(transaction);
        Self { bytes, transaction }
    }

    pub(super) fn attribute(mut self, kind: u16, value: &[u8]) -> Self {
        self.bytes.extend(kind.to_be_bytes());
        self.bytes.extend((value.len() as u16).to_be_bytes());
        self.bytes.extend(value);
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
        self
    }

    pub(super) fn address(self, kind: u16, address: SocketAddr) -> Self {
        let port = (address.port() ^ u16::from_be_bytes([COOKIE[0], COOKIE[1]])).to_be_bytes();
        let mask = mask(&self.transaction);
        let mut value = match address.ip() {
            IpAddr::V4(ip) => [&[0, 1][..], &port, &ip.octets()].concat(),
            IpAddr::V6(ip) => [&[0, 2][..], &port, &ip.octets()].concat(),
        };
        value[4..].iter_mut().zip(mask).for_each(|(byte, mask)| *byte ^= mask);
        self.attribute(kind, &value)
    }

    pub(super) fn finish(mut self) -> Vec<u8> {
        let length = (self.bytes.len() - HEADER) as u16;
        self.bytes[2..4].copy_from_slice(&length.to_be_bytes());
        self.bytes
    }
}

/// A message that was received.
pub(super) struct Reader<'a> {
    pub(super) method: u16,
    pub(super) class: u16,
    pub(super) transaction: [u8; 12],
    attributes: &'a [u8],
}

impl<'a> Reader<'a> {
    /// `None` for what is no message.
    pub(super) fn new(datagram: &'a [u8]) -> Option<Self> {
        let (header, attributes) = datagram.split_first_chunk::<HEADER>()?;
        let kind = u16::from_be_bytes([header[0], header[1]]);
        let length = usize::from(u16::from_be_bytes([header[2], header[3]]));
        if kind & 0xc000 != 0 || header[4..8] != COOKIE || length > attributes.len() {
            return None;
        }
        let mut transaction = [0; 12];
        transaction.copy_from_slice(&header[8..]);
        Some(Self { method: kind & !ERROR, class: kind & ERROR, transaction, attributes: &attributes[..length] })
    }

    /// The first attribute of a kind.
    pub(super) fn attribute(&self, wanted: u16) -> Option<&'a [u8]> {
        let mut rest = self.attributes;
        loop {
            let (head, tail) = rest.split_first_chunk::<4>()?;
            let length = usize::from(u16::from_be_bytes([head[2], head[3]]));
            let value = tail.get(..length)?;
            if u16::from_be_bytes([head[0], head[1]]) == wanted {
                return Some(value);
            }
            rest = tail.get(length.next_multiple_of(4)..)?;
        }
    }

    pub(super) fn address(&self, kind: u16) -> Option<SocketAddr> {
        let (head, ip) = self.attribute(kind)?.split_first_chunk::<4>()?;
        let port = u16::from_be_bytes([head[2], head[3]]) ^ u16::from_be_bytes([COOKIE[0], COOKIE[1]]);
        let mut bytes = [0; 16];
        bytes.get_mut(..ip.len())?.copy_from_slice(ip);
        bytes.iter_mut().zip(mask(&self.transaction)).for_each(|(byte, mask)| *byte ^= mask);
        match (head[1], ip.len()) {
            (1, 4) => Some((Ipv4Addr::new(bytes[0], bytes[1], bytes[2], bytes[3]), port).into()),
            (2, 16) => Some((Ipv6Addr::from(bytes), port).into()),
            _ => None,
        }
    }

    /// Number and words of an error.
    pub(super) fn error(&self) -> String {
        match self.attribute(ERROR_CODE).and_then(|value| value.split_first_chunk::<4>()) {
            Some((head, words)) => {
                format!("{} {}", u16::from(head[2] & 7) * 100 + u16::from(head[3]), String::from_utf8_lossy(words))
            }
            None => "no reason".to_owned(),
        }
    }
}

fn mask(transaction: &[u8; 12]) -> impl Iterator<Item = u8> {
    COOKIE.into_iter().chain(*transaction)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_read_as_they_were_written() {
        let transaction = *b"abcdefghijkl";
        let four: SocketAddr = "198.51.100.2:4711".parse().unwrap();
        let six: SocketAddr = "[2001:db8::7]:9".parse().unwrap();
        let message = Writer::new(DATA, INDICATION, transaction)
            .attribute(PAYLOAD, b"seven b")
            .address(PEER_ADDRESS, four)
            .address(RELAYED_ADDRESS, six)
            .finish();
        let read = Reader::new(&message).unwrap();
        assert_eq!((read.method, read.class, read.transaction), (DATA, INDICATION, transaction));
        assert_eq!(read.attribute(PAYLOAD), Some(&b"seven b"[..]));
        assert_eq!((read.address(PEER_ADDRESS), read.address(RELAYED_ADDRESS)), (Some(four), Some(six)));
        assert_eq!(read.attribute(LIFETIME), None);
        for cut in 0..message.len() {
            assert!(Reader::new(&message[..cut]).is_none(), "{cut}");
        }
    }

    /// RFC 5769, section 2.2: the mapped address of the sample response.
    #[test]
    fn addresses_are_masked_as_the_standard_says() {
        let transaction = [0xb7, 0xe7, 0xa7, 0x01, 0xbc, 0x34, 0xd6, 0x86, 0xfa, 0x87, 0xdf, 0xae];
        let message = Writer::new(1, SUCCESS, transaction).address(0x0020, "192.0.2.1:32853".parse().unwrap()).finish();
        assert_eq!(message[HEADER..], [0x00, 0x20, 0x00, 0x08, 0x00, 0x01, 0xa1, 0x47, 0xe1, 0x12, 0xa6, 0x43]);
    }

    #[test]
    fn malformed_attributes_are_none() {
        let mut message = Writer::new(DATA, INDICATION, [0; 12]).attribute(PEER_ADDRESS, &[0, 1, 2]).finish();
        assert_eq!(Reader::new(&message).unwrap().address(PEER_ADDRESS), None);
        message[HEADER + 3] = 200;
        assert_eq!(Reader::new(&message).unwrap().attribute(PEER_ADDRESS), None);
        assert_eq!(Reader::new(&message).unwrap().error(), "no reason");
    }

    #[test]
    fn channel_data_and_messages_differ_in_their_first_bits() {
        assert!(is_channel_data(&[0x40, 0, 0, 0]) && is_channel_data(&[0x4f, 0xff]));
        assert!(!is_channel_data(&Writer::new(ALLOCATE, SUCCESS, [0; 12]).finish()) && !is_channel_data(&[]));
    }
}
