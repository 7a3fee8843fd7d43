//! What a multishot `recvmsg` leaves in a buffer, and how it becomes a piece.
//!
//! ```text
//!  headroom | namelen controllen payloadlen flags: 4 x u32 | name: 32 | control: 112 | payload ...
//! ```

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};

use crate::control::{ReceivedControl, read_i32};
use crate::piece::Piece;

/// `sizeof(struct io_uring_recvmsg_out)`.
const HEADER_BYTES: usize = 16;
/// Room for the peer's address; more than `sockaddr_in6` so that the control messages begin aligned.
pub(crate) const NAME_BYTES: usize = 32;
/// Room for both families' packet information and the segment size, which takes 96 bytes.
pub(crate) const CONTROL_BYTES: usize = 112;
/// What stands before the payload.
pub(crate) const PREFIX_BYTES: usize = HEADER_BYTES + NAME_BYTES + CONTROL_BYTES;

const _: () = assert!(PREFIX_BYTES.is_multiple_of(32), "payload stays aligned for the cipher");

/// One datagram, or several of one size from one peer that the kernel coalesced (`UDP_GRO`).
#[derive(Debug)]
pub struct Datagrams {
    /// The payload; empty for an empty datagram, which is no end of anything.
    pub payload: Piece,
    /// 0 when `payload` is one datagram; else the size in bytes of each datagram in it but the last, which may be shorter.
    pub segment: u16,
    /// Who sent it. On a dual-stack socket an IPv4 peer appears as an IPv4-mapped address.
    pub peer: SocketAddr,
    /// To which local address, if the socket was made with `pktinfo`.
    pub local: Option<IpAddr>,
    /// Whether bytes were lost because the buffer was too small.
    pub truncated: bool,
}

impl Datagrams {
    /// Interprets a received buffer; the view becomes the payload and what stood before it headroom.
    pub(crate) fn parse(mut piece: Piece) -> io::Result<Self> {
        let header = |at| read_i32(&piece, at).map(|v| v as u32 as usize);
        let (Some(name_len), Some(control_len), Some(flags)) = (header(0), header(4), header(12)) else {
            return Err(malformed());
        };
        if piece.len() < PREFIX_BYTES {
            return Err(malformed());
        }
        let name = &piece[HEADER_BYTES..][..name_len.min(NAME_BYTES)];
        let control = &piece[HEADER_BYTES + NAME_BYTES..][..control_len.min(CONTROL_BYTES)];
        let peer = read_address(name).ok_or_else(malformed)?;
        let ReceivedControl { segment, local } = ReceivedControl::parse(control);
        piece.advance(PREFIX_BYTES);
        // The kernel reports a segment size for a lone datagram of just that size, too.
        let segment = if piece.len() > usize::from(segment) { segment } else { 0 };
        Ok(Self { payload: piece, segment, peer, local, truncated: flags & libc::MSG_TRUNC as usize != 0 })
    }
}

fn malformed() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "a received datagram carries no usable address")
}

/// Reads a `sockaddr_in` or `sockaddr_in6`.
pub(crate) fn read_address(bytes: &[u8]) -> Option<SocketAddr> {
    let family = i32::from(u16::from_ne_bytes(*bytes.first_chunk()?));
    let port = u16::from_be_bytes(*bytes.get(2..)?.first_chunk()?);
    match family {
        libc::AF_INET => {
            let ip: [u8; 4] = *bytes.get(4..)?.first_chunk()?;
            Some((Ipv4Addr::from(ip), port).into())
        }
        libc::AF_INET6 => {
            let flow = u32::from_be_bytes(*bytes.get(4..)?.first_chunk()?);
            let ip: [u8; 16] = *bytes.get(8..)?.first_chunk()?;
            let scope = u32::from_ne_bytes(*bytes.get(24..)?.first_chunk()?);
            Some(SocketAddrV6::new(Ipv6Addr::from(ip), port, flow, scope).into())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_buffers_are_refused_rather_than_read() {
        for len in [0, 15, PREFIX_BYTES - 1, PREFIX_BYTES] {
            assert!(Datagrams::parse(Piece::copy_from(&vec![0xff; len], 0, 0)).is_err(), "{len}");
        }
    }

    #[test]
    fn addresses_of_both_families_are_read() {
        let v4 = [&(libc::AF_INET as u16).to_ne_bytes()[..], &[0x11, 0x76], &[10, 0, 0, 5]].concat();
        assert_eq!(read_address(&v4), Some("10.0.0.5:4470".parse().unwrap()));
        assert_eq!(read_address(&v4[..7]), None);
        let mut v6 = [&(libc::AF_INET6 as u16).to_ne_bytes()[..], &[0x11, 0x76], &[0; 24]].concat();
        v6[23] = 1;
        assert_eq!(read_address(&v6), Some("[::1]:4470".parse().unwrap()));
    }
}
