//! The PROXY protocol (haproxy's `doc/proxy-protocol.txt`), versions 1 and 2: whom a connection or a flow of
//! datagrams is from, told before its first byte.
//!
//! ```text
//! v1   PROXY TCP4|TCP6|UNKNOWN [source target source-port target-port] CR LF            at most 107 bytes
//! v2   signature 12 | 2, command 4 bits | family, transport 4 bits | length 2 |
//!      source 4/16 | target 4/16 | source port 2 | target port 2 | extensions: type 1, length 2, value ...
//! ```

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
const V1_START: &[u8] = b"PROXY ";

/// Longest version 1 line, CR and LF included.
const V1_MAX: usize = 107;

/// Longest version 2 header that is accepted: addresses, and extensions of some certificates' length.
pub const HEADER_MAX: usize = 4096;

/// Longest header that is made: version 1 over IPv6.
pub const MADE_MAX: usize = V1_MAX;

const FIXED: usize = 16;
const CRC32C_EXTENSION: u8 = 3;

/// Which form of header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Version {
    /// A line of text; streams only.
    V1,
    /// Binary; streams and datagrams.
    V2,
}

/// What carries the payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// A TCP connection.
    Stream,
    /// UDP.
    Datagram,
}

/// From whom, to whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ends {
    /// The visitor.
    pub source: SocketAddr,
    /// The address that it came to.
    pub target: SocketAddr,
}

/// The header for a connection or a flow between `ends`. Where one of them is IPv4 and the other IPv6, the first is
/// written as a mapped address. Version 1 has no form for datagrams: they get version 2.
pub fn encode(version: Version, transport: Transport, ends: Ends) -> Vec<u8> {
    match (version, transport) {
        (Version::V1, Transport::Stream) => encode_v1(ends),
        (Version::V2, _) | (Version::V1, Transport::Datagram) => encode_v2(transport, ends),
    }
}

/// The header of a connection that nobody but its opener stands behind, such as a health check.
pub fn encode_local(version: Version) -> Vec<u8> {
    match version {
        Version::V1 => b"PROXY UNKNOWN\r\n".to_vec(),
        Version::V2 => [&SIGNATURE[..], &[0x20, 0, 0, 0]].concat(),
    }
}

/// A header that was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Its length in bytes; the payload begins after it.
    pub length: usize,
    /// Between whom the connection really is; `None` where the header leaves it to the connection itself (`LOCAL`,
    /// `UNKNOWN`, and what has no IP address).
    pub ends: Option<Ends>,
}

/// The bytes do not begin with a valid header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no valid PROXY protocol header")]
pub struct BadHeader;

/// Reads the header that `bytes`, a connection's first ones, begin with: `None` asks for more.
///
/// # Errors
/// More bytes cannot help: there is no header, it is not valid, or it is longer than [`HEADER_MAX`].
pub fn decode(bytes: &[u8]) -> Result<Option<Header>, BadHeader> {
    if starts(bytes, &SIGNATURE) {
        decode_v2(bytes)
    } else if starts(bytes, V1_START) {
        decode_v1(bytes)
    } else {
        Err(BadHeader)
    }
}

/// Whether one of them is the other's beginning.
fn starts(bytes: &[u8], with: &[u8]) -> bool {
    std::iter::zip(bytes, with).all(|(a, b)| a == b)
}

fn encode_v1(ends: Ends) -> Vec<u8> {
    let (source, target) = (ends.source.port(), ends.target.port());
    let text = match one_family(ends) {
        Family::V4(a, b) => format!("PROXY TCP4 {a} {b} {source} {target}\r\n"),
        Family::V6(a, b) => format!("PROXY TCP6 {a} {b} {source} {target}\r\n"),
    };
    text.into_bytes()
}

fn encode_v2(transport: Transport, ends: Ends) -> Vec<u8> {
    let transport = match transport {
        Transport::Stream => 1,
        Transport::Datagram => 2,
    };
    let mut header = SIGNATURE.to_vec();
    match one_family(ends) {
        Family::V4(a, b) => {
            header.extend([0x21, 0x10 | transport, 0, 12]);
            header.extend(a.octets());
            header.extend(b.octets());
        }
        Family::V6(a, b) => {
            header.extend([0x21, 0x20 | transport, 0, 36]);
            header.extend(a.octets());
            header.extend(b.octets());
        }
    }
    header.extend(ends.source.port().to_be_bytes());
    header.extend(ends.target.port().to_be_bytes());
    header
}

enum Family {
    V4(Ipv4Addr, Ipv4Addr),
    V6(Ipv6Addr, Ipv6Addr),
}

fn one_family(ends: Ends) -> Family {
    match (ends.source.ip().to_canonical(), ends.target.ip().to_canonical()) {
        (IpAddr::V4(a), IpAddr::V4(b)) => Family::V4(a, b),
        (a, b) => Family::V6(mapped(a), mapped(b)),
    }
}

fn mapped(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    }
}

fn decode_v1(bytes: &[u8]) -> Result<Option<Header>, BadHeader> {
    let head = &bytes[..bytes.len().min(V1_MAX)];
    let Some(end) = head.iter().position(|&byte| byte == b'\n') else {
        return if head.len() < V1_MAX { Ok(None) } else { Err(BadHeader) };
    };
    let line = std::str::from_utf8(&head[..end]).map_err(|_| BadHeader)?;
    let line = line.strip_prefix("PROXY ").and_then(|line| line.strip_suffix('\r')).ok_or(BadHeader)?;
    let length = end + 1;
    if line == "UNKNOWN" || line.starts_with("UNKNOWN ") {
        return Ok(Some(Header { length, ends: None }));
    }
    let mut words = line.split(' ');
    let mut word = || words.next().ok_or(BadHeader);
    let (family, source, target, source_port, target_port) = (word()?, word()?, word()?, word()?, word()?);
    if words.next().is_some() {
        return Err(BadHeader);
    }
    let address = |text: &str| match family {
        "TCP4" => text.parse().map(IpAddr::V4).map_err(|_| BadHeader),
        "TCP6" => text.parse().map(IpAddr::V6).map_err(|_| BadHeader),
        _ => Err(BadHeader),
    };
    let source = SocketAddr::new(address(source)?.to_canonical(), port(source_port)?);
    let target = SocketAddr::new(address(target)?.to_canonical(), port(target_port)?);
    Ok(Some(Header { length, ends: Some(Ends { source, target }) }))
}

fn port(text: &str) -> Result<u16, BadHeader> {
    // The standard parser would take a sign.
    if text.bytes().all(|byte| byte.is_ascii_digit()) { text.parse().map_err(|_| BadHeader) } else { Err(BadHeader) }
}

fn decode_v2(bytes: &[u8]) -> Result<Option<Header>, BadHeader> {
    if bytes.get(12).is_some_and(|&command| !matches!(command, 0x20 | 0x21)) {
        return Err(BadHeader);
    }
    let Some(&[command, family, high, low]) = bytes.get(12..).and_then(|rest| rest.first_chunk()) else {
        return Ok(None);
    };
    let length = FIXED + usize::from(u16::from_be_bytes([high, low]));
    if length > HEADER_MAX {
        return Err(BadHeader);
    }
    let Some(header) = bytes.get(..length) else { return Ok(None) };
    let body = header.get(FIXED..).ok_or(BadHeader)?;
    let (ends, addresses) = match family {
        0x11 | 0x12 => (Some(ends_v4(body)?), 12),
        0x21 | 0x22 => (Some(ends_v6(body)?), 36),
        // UNIX sockets.
        0x31 | 0x32 => (None, 216),
        // Unspecified: what follows cannot be told apart, and is passed over.
        0 => (None, body.len()),
        _ => return Err(BadHeader),
    };
    if command == 0x20 {
        // LOCAL: addresses are to be ignored, whatever they are.
        return Ok(Some(Header { length, ends: None }));
    }
    check_extensions(header, FIXED + addresses)?;
    Ok(Some(Header { length, ends }))
}

fn ends_v4(body: &[u8]) -> Result<Ends, BadHeader> {
    let &[a, b, c, d, e, f, g, h, i, j, k, l] = body.first_chunk().ok_or(BadHeader)?;
    let source = SocketAddr::new(Ipv4Addr::new(a, b, c, d).into(), u16::from_be_bytes([i, j]));
    let target = SocketAddr::new(Ipv4Addr::new(e, f, g, h).into(), u16::from_be_bytes([k, l]));
    Ok(Ends { source, target })
}

fn ends_v6(body: &[u8]) -> Result<Ends, BadHeader> {
    let (source, rest) = body.split_first_chunk::<16>().ok_or(BadHeader)?;
    let (target, rest) = rest.split_first_chunk::<16>().ok_or(BadHeader)?;
    let &[i, j, k, l] = rest.first_chunk().ok_or(BadHeader)?;
    let address = |octets: &[u8; 16]| IpAddr::V6(Ipv6Addr::from(*octets)).to_canonical();
    let source = SocketAddr::new(address(source), u16::from_be_bytes([i, j]));
    let target = SocketAddr::new(address(target), u16::from_be_bytes([k, l]));
    Ok(Ends { source, target })
}

/// Passes over the extensions from `at` on, but for a checksum, which has to be right where there is one.
fn check_extensions(header: &[u8], mut at: usize) -> Result<(), BadHeader> {
    if at > header.len() {
        return Err(BadHeader);
    }
    while at < header.len() {
        let &[kind, high, low] = header.get(at..).and_then(|rest| rest.first_chunk()).ok_or(BadHeader)?;
        let start = at + 3;
        at = start + usize::from(u16::from_be_bytes([high, low]));
        let value = header.get(start..at).ok_or(BadHeader)?;
        if kind == CRC32C_EXTENSION {
            let &sum = value.first_chunk::<4>().filter(|_| value.len() == 4).ok_or(BadHeader)?;
            // It is made with zeros in its own place.
            let whole = header[..start].iter().chain(&[0; 4]).chain(&header[at..]);
            if crc32c(whole) != u32::from_be_bytes(sum) {
                return Err(BadHeader);
            }
        }
    }
    Ok(())
}

/// Castagnoli's CRC, bit by bit: once a connection, over some hundred bytes at most as a rule.
fn crc32c<'a>(bytes: impl Iterator<Item = &'a u8>) -> u32 {
    let step = |crc: u32, _| crc >> 1 ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 };
    !bytes.fold(!0, |crc, &byte| (0..8).fold(crc ^ u32::from(byte), step))
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn ends(source: &str, target: &str) -> Ends {
        Ends { source: source.parse().unwrap(), target: target.parse().unwrap() }
    }

    fn v2(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
        let length = (body.len() as u16).to_be_bytes();
        [&SIGNATURE[..], &[command, family], &length, body].concat()
    }

    #[test]
    fn the_bytes_are_the_specifications() {
        let four = ends("192.0.2.1:56324", "198.51.100.2:443");
        assert_eq!(encode(Version::V1, Transport::Stream, four), b"PROXY TCP4 192.0.2.1 198.51.100.2 56324 443\r\n");
        assert_eq!(
            encode(Version::V2, Transport::Stream, four),
            b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\0\x02\x01\xc6\x33\x64\x02\xdc\x04\x01\xbb"
        );
        assert_eq!(encode(Version::V2, Transport::Datagram, four)[13], 0x12);
        assert_eq!(encode(Version::V1, Transport::Datagram, four)[13], 0x12);
        let six = ends("[2001:db8::1]:1", "[2001:db8::2]:2");
        assert_eq!(encode(Version::V1, Transport::Stream, six), b"PROXY TCP6 2001:db8::1 2001:db8::2 1 2\r\n");
        let both = ends("192.0.2.1:1", "[2001:db8::2]:2");
        assert_eq!(encode(Version::V1, Transport::Stream, both), b"PROXY TCP6 ::ffff:192.0.2.1 2001:db8::2 1 2\r\n");
        assert_eq!(crc32c(b"123456789".iter()), 0xe306_9283);
        for version in [Version::V1, Version::V2] {
            let local = encode_local(version);
            assert_eq!(decode(&local), Ok(Some(Header { length: local.len(), ends: None })));
        }
    }

    #[test]
    fn extensions_are_passed_over_and_a_checksum_is_checked() {
        let four = ends("192.0.2.1:56324", "198.51.100.2:443");
        let addresses = encode(Version::V2, Transport::Stream, four)[FIXED..].to_vec();
        let with = |extensions: &[u8]| v2(0x21, 0x11, &[&addresses, extensions].concat());
        let plain = with(&[4, 0, 2, 9, 9, 1, 0, 0]);
        assert_eq!(decode(&plain), Ok(Some(Header { length: plain.len(), ends: Some(four) })));
        let mut summed = with(&[3, 0, 4, 0, 0, 0, 0, 4, 0, 1, 7]);
        let sum = crc32c(summed.iter()).to_be_bytes();
        let at = FIXED + 12 + 3;
        summed[at..at + 4].copy_from_slice(&sum);
        assert_eq!(decode(&summed), Ok(Some(Header { length: summed.len(), ends: Some(four) })));
        summed[at] ^= 1;
        assert_eq!(decode(&summed), Err(BadHeader));
        for bad in [&[4, 0][..], &[4, 0, 1], &[3, 0, 3, 0, 0, 0], &[3, 0, 5, 0, 0, 0, 0, 0]] {
            assert_eq!(decode(&with(bad)), Err(BadHeader), "{bad:?}");
        }
    }

    #[test]
    fn headers_without_addresses_leave_them_to_the_connection() {
        for header in [v2(0x20, 0x11, &[1; 12]), v2(0x20, 0, b""), v2(0x21, 0, b"anything"), v2(0x21, 0x31, &[0; 216])]
        {
            assert_eq!(decode(&header), Ok(Some(Header { length: header.len(), ends: None })));
        }
        for line in ["PROXY UNKNOWN\r\n", "PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n"] {
            assert_eq!(decode(line.as_bytes()), Ok(Some(Header { length: line.len(), ends: None })));
        }
    }

    #[test]
    fn malformed_headers_are_refused_as_early_as_they_can_be() {
        for bad in [
            "GET / HTTP/1.1\r\n",
            "PROXX",
            "PROXY TCP4 192.0.2.1 198.51.100.2 56324 443\n",
            "PROXY TCP4 192.0.2.1 198.51.100.2 56324\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.2 56324 443 1\r\n",
            "PROXY TCP4 192.0.2.1  198.51.100.2 56324 443\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.2 +56324 443\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.2 65536 443\r\n",
            "PROXY TCP4 2001:db8::1 2001:db8::2 1 2\r\n",
            "PROXY TCP6 192.0.2.1 198.51.100.2 1 2\r\n",
            "PROXY UDP4 192.0.2.1 198.51.100.2 1 2\r\n",
            "PROXY UNKNOWNX\r\n",
        ] {
            assert_eq!(decode(bad.as_bytes()), Err(BadHeader), "{bad:?}");
        }
        for bad in [v2(0x11, 0x11, &[1; 12]), v2(0x22, 0x11, &[1; 12]), v2(0x21, 0x11, &[1; 11]), v2(0x21, 0x41, b"")] {
            assert_eq!(decode(&bad), Err(BadHeader), "{bad:?}");
        }
    }

    #[test]
    fn headers_are_bounded_on_both_sides_of_the_edge() {
        let line = |length: usize| format!("PROXY UNKNOWN {}\r\n", "x".repeat(length - 16));
        assert!(matches!(decode(line(V1_MAX).as_bytes()), Ok(Some(_))));
        assert_eq!(decode(&line(V1_MAX + 1).as_bytes()[..V1_MAX - 1]), Ok(None));
        assert_eq!(decode(line(V1_MAX + 1).as_bytes()), Err(BadHeader));
        assert!(matches!(decode(&v2(0x21, 0, &vec![0; HEADER_MAX - FIXED])), Ok(Some(_))));
        assert_eq!(decode(&v2(0x21, 0, &vec![0; HEADER_MAX - FIXED + 1])[..FIXED]), Err(BadHeader));
    }

    fn any_ends() -> impl Strategy<Value = Ends> {
        let four = (any::<[[u8; 4]; 2]>()).prop_map(|[a, b]| (IpAddr::from(a), IpAddr::from(b)));
        let six = (any::<[[u8; 16]; 2]>()).prop_map(|[a, b]| (IpAddr::from(a), IpAddr::from(b)));
        let mixed = (any::<[u8; 4]>(), any::<[u8; 16]>()).prop_map(|(a, b)| (IpAddr::from(a), IpAddr::from(b)));
        let ports = any::<(u16, u16)>();
        (prop_oneof![four, six, mixed], ports).prop_map(|((a, b), (m, n))| Ends {
            source: SocketAddr::new(a.to_canonical(), m),
            target: SocketAddr::new(b.to_canonical(), n),
        })
    }

    proptest! {
        #[test]
        fn what_is_made_is_read_at_its_last_byte(
            ends in any_ends(),
            one in any::<bool>(),
            datagram in any::<bool>(),
            payload in vec(any::<u8>(), 0..20),
        ) {
            let version = if one { Version::V1 } else { Version::V2 };
            let transport = if datagram { Transport::Datagram } else { Transport::Stream };
            let header = encode(version, transport, ends);
            prop_assert!(header.len() <= MADE_MAX);
            for end in 0..header.len() {
                prop_assert_eq!(decode(&header[..end]), Ok(None));
            }
            let length = header.len();
            prop_assert_eq!(decode(&[header, payload].concat()), Ok(Some(Header { length, ends: Some(ends) })));
        }

        #[test]
        fn random_and_damaged_bytes_never_panic(
            bytes in vec(any::<u8>(), 0..300),
            ends in any_ends(),
            at in any::<prop::sample::Index>(),
            value in any::<u8>(),
        ) {
            let _ = decode(&bytes);
            let _ = decode(&[V1_START, &bytes].concat());
            let _ = decode(&[&SIGNATURE[..], &bytes].concat());
            let _ = decode(&v2(0x21, value, &bytes));
            let mut damaged = encode(Version::V2, Transport::Stream, ends);
            damaged.extend([3, 0, 4, 1, 2, 3, 4]);
            let at = at.index(damaged.len());
            damaged[at] = value;
            let _ = decode(&damaged);
        }
    }
}
