//! Control messages (`cmsg`), written and read as bytes: the kernel's layout without its alignment, since in a multishot
//! receive they follow the peer's name at any offset.
//!
//! ```text
//!  | length: usize | level: i32 | type: i32 | data ... | padding to size_of::<usize>() |
//! ```

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

const HEADER_BYTES: usize = size_of::<usize>() + 8;

/// Room for a source address and a segment size.
pub(crate) const SEND_BYTES: usize = space(size_of::<libc::in6_pktinfo>()) + space(2);

const fn space(data: usize) -> usize {
    (HEADER_BYTES + data).next_multiple_of(size_of::<usize>())
}

/// Messages to be sent with one `sendmsg`.
#[derive(Default)]
pub(crate) struct ControlWriter {
    bytes: Vec<u8>,
}

impl ControlWriter {
    pub(crate) fn clear(&mut self) {
        self.bytes.clear();
    }

    /// The messages so far; empty when there are none.
    pub(crate) fn bytes(&mut self) -> &mut [u8] {
        &mut self.bytes
    }

    /// `UDP_SEGMENT`: the kernel cuts the payload every `bytes` bytes.
    pub(crate) fn segment(&mut self, bytes: u16) {
        self.push(libc::SOL_UDP, libc::UDP_SEGMENT, &bytes.to_ne_bytes());
    }

    /// `IP_PKTINFO` or `IPV6_PKTINFO`: the source address, on whatever interface the route names.
    pub(crate) fn source(&mut self, ip: IpAddr) {
        match ip {
            IpAddr::V4(ip) => {
                // struct in_pktinfo { int ipi_ifindex; in_addr ipi_spec_dst; in_addr ipi_addr; }
                let mut info = [0; 12];
                info[4..8].copy_from_slice(&ip.octets());
                self.push(libc::IPPROTO_IP, libc::IP_PKTINFO, &info);
            }
            IpAddr::V6(ip) => {
                // struct in6_pktinfo { in6_addr ipi6_addr; int ipi6_ifindex; }
                let mut info = [0; 20];
                info[..16].copy_from_slice(&ip.octets());
                self.push(libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, &info);
            }
        }
    }

    fn push(&mut self, level: i32, kind: i32, data: &[u8]) {
        let end = self.bytes.len() + space(data.len());
        self.bytes.reserve(SEND_BYTES);
        self.bytes.extend_from_slice(&(HEADER_BYTES + data.len()).to_ne_bytes());
        self.bytes.extend_from_slice(&level.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(data);
        self.bytes.resize(end, 0);
    }
}

/// What a received datagram's control messages say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ReceivedControl {
    /// `UDP_GRO`: size of each but the last of several datagrams; 0 for a single one.
    pub(crate) segment: u16,
    /// The address that the datagram was sent to.
    pub(crate) local: Option<IpAddr>,
}

impl ReceivedControl {
    /// Reads the messages in `bytes`; what is unknown or cut short is passed over.
    pub(crate) fn parse(bytes: &[u8]) -> Self {
        let mut control = Self::default();
        for message in Messages(bytes) {
            control.read(message);
        }
        control
    }

    fn read(&mut self, message: Message<'_>) {
        match (message.level, message.kind) {
            (libc::SOL_UDP, libc::UDP_GRO) => {
                if let Some(size) = read_i32(message.data, 0) {
                    self.segment = u16::try_from(size).unwrap_or(0);
                }
            }
            (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                if let Some(ip) = message.data.get(8..12).and_then(|b| <[u8; 4]>::try_from(b).ok()) {
                    self.local = Some(Ipv4Addr::from(ip).into());
                }
            }
            (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                if let Some(ip) = message.data.get(..16).and_then(|b| <[u8; 16]>::try_from(b).ok()) {
                    self.local = Some(Ipv6Addr::from(ip).into());
                }
            }
            _ => {}
        }
    }
}

/// One control message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Message<'a> {
    pub(crate) level: i32,
    pub(crate) kind: i32,
    pub(crate) data: &'a [u8],
}

/// The control messages in a buffer, up to the first that is cut short.
pub(crate) struct Messages<'a>(pub(crate) &'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = Message<'a>;
    fn next(&mut self) -> Option<Message<'a>> {
        let (length, _) = self.0.split_first_chunk()?;
        let length = usize::from_ne_bytes(*length);
        let level = read_i32(self.0, size_of::<usize>())?;
        let kind = read_i32(self.0, size_of::<usize>() + 4)?;
        let data = self.0.get(HEADER_BYTES..length)?;
        self.0 = self.0.get(length.next_multiple_of(size_of::<usize>())..).unwrap_or_default();
        Some(Message { level, kind, data })
    }
}

pub(crate) fn read_i32(bytes: &[u8], at: usize) -> Option<i32> {
    bytes.get(at..)?.first_chunk().map(|b| i32::from_ne_bytes(*b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn written_messages_are_read_back_and_fit_their_room() {
        let mut writer = ControlWriter::default();
        writer.segment(1200);
        writer.source("fd00::7".parse().unwrap());
        assert_eq!(writer.bytes().len(), SEND_BYTES);
        let messages: Vec<_> = Messages(writer.bytes()).collect();
        assert_eq!(messages.len(), 2);
        assert_eq!((messages[0].level, messages[0].kind), (libc::SOL_UDP, libc::UDP_SEGMENT));
        assert_eq!(messages[0].data, 1200u16.to_ne_bytes());
        let control = ReceivedControl::parse(writer.bytes());
        assert_eq!(control.local, Some("fd00::7".parse().unwrap()));
    }

    #[test]
    fn cut_or_lying_messages_end_the_list() {
        let mut writer = ControlWriter::default();
        writer.source("10.0.0.1".parse().unwrap());
        writer.source("fd00::7".parse().unwrap());
        let whole = writer.bytes().to_vec();
        for cut in 0..whole.len() {
            assert!(Messages(&whole[..cut]).count() < 2 || cut >= space(12) + HEADER_BYTES + 20, "{cut}");
        }
        for length in [0usize, 1, HEADER_BYTES - 1, whole.len() + 1, usize::MAX / 2] {
            let mut lying = whole.clone();
            lying[..size_of::<usize>()].copy_from_slice(&length.to_ne_bytes());
            assert_eq!(Messages(&lying).count(), 0, "{length}");
        }
    }
}
