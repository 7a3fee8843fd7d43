//! What a UDP channel's datagram carries once it is opened: one or more inner datagrams, each with
//! its trailer **behind** it, so that a received payload can be sealed where it lies, with nothing
//! put before it:
//!
//! ```text
//! | payload | [ remote: 18 bytes ] | port: 4 | payload length: 2 | flags: 2 |  (next inner datagram) ...
//! ```
//!
//! They are read from the end backwards.

use std::net::SocketAddr;
use std::ops::Range;

use super::decode::Reader;
use super::encode::{ADDR_LEN, addr_bytes};
use crate::id::PortId;

/// Bytes behind a payload whose remote party is the port's only one.
pub const TRAILER_LEN: usize = 8;

/// Bytes behind a payload that names its remote party.
pub const TRAILER_ADDR_LEN: usize = TRAILER_LEN + ADDR_LEN;

const FLAG_REMOTE: u16 = 1;

/// Writes a trailer to the front of `out`; gives its length.
pub fn write_trailer(out: &mut [u8; TRAILER_ADDR_LEN], port: PortId, remote: Option<SocketAddr>, len: u16) -> usize {
    let mut at = 0;
    if let Some(remote) = remote {
        out[..ADDR_LEN].copy_from_slice(&addr_bytes(remote));
        at = ADDR_LEN;
    }
    out[at..at + 4].copy_from_slice(&port.0.to_be_bytes());
    out[at + 4..at + 6].copy_from_slice(&len.to_be_bytes());
    out[at + 6..at + 8].copy_from_slice(&(if remote.is_some() { FLAG_REMOTE } else { 0 }).to_be_bytes());
    at + TRAILER_LEN
}

/// One inner datagram.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inner {
    /// The UDP port.
    pub port: PortId,
    /// Its remote party, unless the port has only one.
    pub remote: Option<SocketAddr>,
    /// Where its payload lies in the opened plaintext.
    pub payload: Range<usize>,
}

/// The inner datagrams of an opened plaintext, the **last one first**. Stops at the first that does
/// not parse; [`InnerDatagrams::is_malformed`] then tells.
pub struct InnerDatagrams<'a> {
    plaintext: &'a [u8],
    malformed: bool,
}

impl<'a> InnerDatagrams<'a> {
    /// Reads `plaintext`.
    pub fn new(plaintext: &'a [u8]) -> Self {
        Self { plaintext, malformed: false }
    }

    /// Whether bytes were left that are no inner datagram.
    pub fn is_malformed(&self) -> bool {
        self.malformed
    }

    fn take(&mut self) -> Option<Inner> {
        let (rest, trailer) = self.plaintext.split_last_chunk::<TRAILER_LEN>()?;
        let mut reader = Reader(trailer);
        let (port, len, flags) = (PortId(reader.u32()?), reader.u16()?, reader.u16()?);
        let (rest, remote) = if flags & FLAG_REMOTE == 0 {
            (rest, None)
        } else {
            let (rest, addr) = rest.split_last_chunk::<ADDR_LEN>()?;
            (rest, Some(Reader(addr).addr()?))
        };
        let start = rest.len().checked_sub(usize::from(len))?;
        self.plaintext = &rest[..start];
        Some(Inner { port, remote, payload: start..rest.len() })
    }
}

impl Iterator for InnerDatagrams<'_> {
    type Item = Inner;
    fn next(&mut self) -> Option<Inner> {
        if self.plaintext.is_empty() || self.malformed {
            return None;
        }
        let inner = self.take();
        self.malformed = inner.is_none();
        inner
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inner_datagrams_come_back_from_the_end_with_boundaries_and_source() {
        let remote: SocketAddr = "10.0.0.5:53".parse().unwrap();
        let mut plain = Vec::new();
        for (n, (payload, remote)) in
            [(&b"one"[..], None), (b"", Some(remote)), (b"three", Some(remote))].iter().enumerate()
        {
            let mut trailer = [0; TRAILER_ADDR_LEN];
            let len = write_trailer(&mut trailer, PortId(n as u32), *remote, payload.len() as u16);
            plain.extend_from_slice(payload);
            plain.extend_from_slice(&trailer[..len]);
        }
        let mut reader = InnerDatagrams::new(&plain);
        let got: Vec<_> = reader.by_ref().map(|i| (i.port.0, i.remote, plain[i.payload].to_vec())).collect();
        assert_eq!(got, [(2, Some(remote), b"three".to_vec()), (1, Some(remote), vec![]), (0, None, b"one".to_vec())]);
        assert!(!reader.is_malformed());
    }

    #[test]
    fn malformed_bytes_end_the_reading_and_are_told() {
        for bad in [&[0u8; 7][..], &[0, 0, 0, 1, 0, 9, 0, 0], &[0, 0, 0, 1, 0, 0, 0, 1]] {
            let mut reader = InnerDatagrams::new(bad);
            assert_eq!(reader.next(), None);
            assert!(reader.is_malformed(), "{bad:?}");
        }
    }
}
