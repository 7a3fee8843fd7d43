//! Questions about the way to the relay, asked of its service port by whoever has no session yet.
//!
//! They are Binding requests of STUN (RFC 8489, 5 and 14.2) with what RFC 5780 adds to tell how a NAT behaves. An answer says
//! from which address the question came. It is never longer than the question, so that nobody gains by forging addresses:
//! who asks pads the question (RFC 5780, 7.6). A message with padding cannot be taken for a channel's datagram, whose third
//! and fourth bytes are zero.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

const REQUEST: u16 = 0x0001;
const SUCCESS: u16 = 0x0101;
const COOKIE: u32 = 0x2112_a442;
const HEAD: usize = 20;

const CHANGE_REQUEST: u16 = 0x0003;
const XOR_MAPPED_ADDRESS: u16 = 0x0020;
const PADDING: u16 = 0x0026;
const RESPONSE_PORT: u16 = 0x0027;
const OTHER_ADDRESS: u16 = 0x802c;

/// The bits of CHANGE-REQUEST that ask for another port and another address.
const CHANGE_PORT: u32 = 0x2;
const CHANGE_ADDRESS: u32 = 0x4;

/// Longest question and answer in bytes.
pub const STUN_MAX: usize = 9000;

/// A question.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StunQuestion {
    /// Random; the answer repeats it.
    pub transaction: [u8; 12],
    /// The answer is to come from the other port.
    pub change_port: bool,
    /// The answer is to go to this port of the asker's address.
    pub response_port: Option<u16>,
}

/// An answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StunAnswer {
    /// The question's.
    pub transaction: [u8; 12],
    /// From where the question came.
    pub mapped: SocketAddr,
    /// The other port at which questions are answered, of the same address.
    pub other_port: Option<u16>,
}

impl StunQuestion {
    /// Reads a question; `None` for all that is none.
    pub fn parse(message: &[u8]) -> Option<Self> {
        let (transaction, attributes) = head(message, REQUEST)?;
        let mut question = Self { transaction, ..Self::default() };
        for (kind, value) in attributes {
            match kind {
                CHANGE_REQUEST => {
                    let change = u32::from_be_bytes(value.try_into().ok()?);
                    // A relay has no other address to answer from, and must not seem to.
                    if change & CHANGE_ADDRESS != 0 {
                        return None;
                    }
                    question.change_port = change & CHANGE_PORT != 0;
                }
                RESPONSE_PORT => {
                    let port = u16::from_be_bytes(*value.first_chunk()?);
                    question.response_port = Some(port).filter(|&port| port != 0);
                }
                PADDING => {}
                // Those below 0x8000 must be understood (RFC 8489, 14).
                ..0x8000 => return None,
                _ => {}
            }
        }
        Some(question)
    }

    /// Writes it with padding up to `length` bytes, a multiple of four; never longer than [`STUN_MAX`], nor shorter than
    /// the longest answer.
    pub fn encode(&self, length: usize) -> Vec<u8> {
        let mut message = begin(REQUEST, &self.transaction);
        if self.change_port {
            attribute(&mut message, CHANGE_REQUEST, &CHANGE_PORT.to_be_bytes());
        }
        if let Some(port) = self.response_port {
            attribute(&mut message, RESPONSE_PORT, &port.to_be_bytes());
        }
        let least = message.len() + 4 + HEAD + 2 * 24;
        let padding = length.clamp(least, STUN_MAX) - message.len() - 4;
        attribute(&mut message, PADDING, &vec![0; padding & !3]);
        end(message)
    }
}

impl StunAnswer {
    /// Writes it; `None` if it would be longer than the question, of `asked` bytes.
    pub fn encode(&self, asked: usize) -> Option<Vec<u8>> {
        let mut message = begin(SUCCESS, &self.transaction);
        let mut mask = [0; 16];
        mask[..4].copy_from_slice(&COOKIE.to_be_bytes());
        mask[4..].copy_from_slice(&self.transaction);
        attribute(&mut message, XOR_MAPPED_ADDRESS, &address(self.mapped, &mask));
        if let Some(port) = self.other_port {
            // The address is the one that was asked, which a relay that listens on all of them need not know.
            let any =
                if self.mapped.is_ipv4() { IpAddr::V4(Ipv4Addr::UNSPECIFIED) } else { Ipv6Addr::UNSPECIFIED.into() };
            attribute(&mut message, OTHER_ADDRESS, &address(SocketAddr::new(any, port), &[0; 16]));
        }
        let message = end(message);
        (message.len() <= asked).then_some(message)
    }

    /// Reads an answer; `None` for all that is none.
    pub fn parse(message: &[u8]) -> Option<Self> {
        let (transaction, attributes) = head(message, SUCCESS)?;
        let mut mask = [0; 16];
        mask[..4].copy_from_slice(&COOKIE.to_be_bytes());
        mask[4..].copy_from_slice(&transaction);
        let (mut mapped, mut other_port) = (None, None);
        for (kind, value) in attributes {
            match kind {
                XOR_MAPPED_ADDRESS => mapped = Some(read_address(value, &mask)?),
                OTHER_ADDRESS => other_port = Some(read_address(value, &[0; 16])?.port()),
                _ => {}
            }
        }
        Some(Self { transaction, mapped: mapped?, other_port })
    }
}

fn begin(kind: u16, transaction: &[u8; 12]) -> Vec<u8> {
    let mut message = Vec::with_capacity(HEAD + 64);
    message.extend(kind.to_be_bytes());
    message.extend([0, 0]);
    message.extend(COOKIE.to_be_bytes());
    message.extend(transaction);
    message
}

fn attribute(message: &mut Vec<u8>, kind: u16, value: &[u8]) {
    message.extend(kind.to_be_bytes());
    // Padding, the longest, is below STUN_MAX.
    message.extend((value.len() as u16).to_be_bytes());
    message.extend(value);
    message.resize(message.len().next_multiple_of(4), 0);
}

fn end(mut message: Vec<u8>) -> Vec<u8> {
    let length = (message.len() - HEAD) as u16;
    message[2..4].copy_from_slice(&length.to_be_bytes());
    message
}

/// The transaction and the attributes of a message of that kind.
fn head(message: &[u8], kind: u16) -> Option<([u8; 12], Attributes<'_>)> {
    let (head, rest) = message.split_first_chunk::<HEAD>()?;
    let word = |at: usize| u16::from_be_bytes([head[at], head[at + 1]]);
    let cookie = u32::from_be_bytes([head[4], head[5], head[6], head[7]]);
    let whole = usize::from(word(2)) == rest.len() && rest.len().is_multiple_of(4) && message.len() <= STUN_MAX;
    if word(0) != kind || cookie != COOKIE || !whole {
        return None;
    }
    let mut transaction = [0; 12];
    transaction.copy_from_slice(&head[8..]);
    Some((transaction, Attributes(rest)))
}

/// Kind and value of each; ends where one is cut off.
struct Attributes<'a>(&'a [u8]);

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let (head, rest) = self.0.split_first_chunk::<4>()?;
        let length = usize::from(u16::from_be_bytes([head[2], head[3]]));
        let value = rest.get(..length)?;
        self.0 = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((u16::from_be_bytes([head[0], head[1]]), value))
    }
}

/// RFC 8489, 14.1 and 14.2: the mask is zero where the address stands as it is.
fn address(address: SocketAddr, mask: &[u8; 16]) -> Vec<u8> {
    let port = address.port() ^ u16::from_be_bytes([mask[0], mask[1]]);
    let (family, bytes): (u8, Vec<u8>) = match address.ip() {
        IpAddr::V4(ip) => (1, ip.octets().to_vec()),
        IpAddr::V6(ip) => (2, ip.octets().to_vec()),
    };
    let mut value = vec![0, family];
    value.extend(port.to_be_bytes());
    value.extend(bytes.iter().zip(mask).map(|(byte, mask)| byte ^ mask));
    value
}

fn read_address(value: &[u8], mask: &[u8; 16]) -> Option<SocketAddr> {
    let (&[_, family, p0, p1], bytes) = value.split_first_chunk()?;
    let port = u16::from_be_bytes([p0 ^ mask[0], p1 ^ mask[1]]);
    let bytes: Vec<u8> = bytes.iter().zip(mask).map(|(byte, mask)| byte ^ mask).collect();
    let ip: IpAddr = match family {
        1 => <[u8; 4]>::try_from(bytes).ok()?.into(),
        2 => <[u8; 16]>::try_from(bytes).ok()?.into(),
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// RFC 5769, 2.2 and 2.3: the addresses of its sample responses.
    #[test]
    fn addresses_are_masked_as_in_the_standards_samples() {
        let transaction = [0xb7, 0xe7, 0xa7, 0x01, 0xbc, 0x34, 0xd6, 0x86, 0xfa, 0x87, 0xdf, 0xae];
        let v4 = StunAnswer { transaction, mapped: "192.0.2.1:32853".parse().unwrap(), other_port: None };
        let bytes = v4.encode(100).unwrap();
        assert_eq!(bytes[20..], [0, 0x20, 0, 8, 0, 1, 0xa1, 0x47, 0xe1, 0x12, 0xa6, 0x43]);
        let mapped = "[2001:db8:1234:5678:11:2233:4455:6677]:32853".parse().unwrap();
        let bytes = StunAnswer { transaction, mapped, other_port: None }.encode(100).unwrap();
        let expected = [
            0, 0x20, 0, 0x14, 0, 2, 0xa1, 0x47, 1, 0x13, 0xa9, 0xfa, 0xa5, 0xd3, 0xf1, 0x79, 0xbc, 0x25, 0xf4, 0xb5,
            0xbe, 0xd2, 0xb9, 0xd9,
        ];
        assert_eq!(bytes[20..], expected);
    }

    #[test]
    fn question_of_every_length_is_as_long_as_its_answer_at_least() {
        for length in [0, 44, 100, 1200, 1472, 9000, 70_000] {
            let question = StunQuestion { transaction: [7; 12], change_port: true, response_port: Some(9) };
            let message = question.encode(length);
            assert_eq!(StunQuestion::parse(&message), Some(question), "{length}");
            assert!(message.len() <= STUN_MAX && message.len().abs_diff(length.clamp(108, STUN_MAX)) < 4, "{length}");
            let mapped = "[2001:db8::1]:65535".parse().unwrap();
            let answer = StunAnswer { transaction: [7; 12], mapped, other_port: Some(5) };
            let bytes = answer.encode(message.len()).expect("it fits");
            assert_eq!(StunAnswer::parse(&bytes), Some(answer));
            assert_eq!(answer.encode(bytes.len() - 1), None);
        }
    }

    #[test]
    fn what_has_to_be_understood_and_is_not_is_no_question() {
        let mut message = begin(REQUEST, &[0; 12]);
        attribute(&mut message, 0x0006, b"name");
        assert_eq!(StunQuestion::parse(&end(message.clone())), None);
        message[HEAD] = 0x80;
        assert!(StunQuestion::parse(&end(message)).is_some());
        for (bits, is_one) in [(0u32, true), (2, true), (4, false), (6, false)] {
            let mut message = begin(REQUEST, &[0; 12]);
            attribute(&mut message, CHANGE_REQUEST, &bits.to_be_bytes());
            assert_eq!(StunQuestion::parse(&end(message)).is_some(), is_one, "{bits}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_harm(bytes in proptest::collection::vec(any::<u8>(), 0..200), cut in 0..200usize) {
            let _ = (StunQuestion::parse(&bytes), StunAnswer::parse(&bytes));
            let mut message = StunQuestion { transaction: [1; 12], ..StunQuestion::default() }.encode(120);
            for (place, byte) in message[HEAD..].iter_mut().zip(&bytes) {
                *place = *byte;
            }
            let _ = StunQuestion::parse(&message);
            prop_assert_eq!(StunQuestion::parse(&message[..cut.min(message.len() - 1)]), None);
        }
    }
}
