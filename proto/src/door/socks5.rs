//! SOCKS5: RFC 1928, and user name and password of RFC 1929.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::proxy::{Bad, Command, Request, Step};
use super::target::{Host, Target};
use crate::Code;

/// The first byte of a SOCKS5 client.
pub const VERSION: u8 = 5;

const METHOD_NONE: u8 = 0;
const METHOD_PASSWORD: u8 = 2;
const METHOD_REFUSED: u8 = 0xff;
const LOGIN_VERSION: u8 = 1;

const IPV4: u8 = 1;
const NAME: u8 = 3;
const IPV6: u8 = 4;

const SUCCEEDED: u8 = 0;
const FAILED: u8 = 1;
const NOT_ALLOWED: u8 = 2;
const NETWORK_UNREACHABLE: u8 = 3;
const HOST_UNREACHABLE: u8 = 4;
const REFUSED: u8 = 5;
const TTL_EXPIRED: u8 = 6;
const COMMAND_UNSUPPORTED: u8 = 7;
const ADDRESS_UNSUPPORTED: u8 = 8;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum State {
    #[default]
    Methods,
    Login,
    /// The driver checks it.
    Checking,
    Request,
    Done,
}

/// One step with what has come, replies going to `out`: bytes consumed, and what they mean. `None`: more has to come.
pub(super) fn feed(state: &mut State, open: bool, bytes: &[u8], out: &mut Vec<u8>) -> Option<(usize, Step)> {
    match state {
        State::Methods => methods(state, open, bytes, out),
        State::Login => login(state, bytes, out),
        State::Request => request(state, bytes, out),
        State::Checking | State::Done => None,
    }
}

fn methods(state: &mut State, open: bool, bytes: &[u8], out: &mut Vec<u8>) -> Option<(usize, Step)> {
    let &[version, count, ref rest @ ..] = bytes else { return None };
    if version != VERSION {
        return Some((0, Step::Refused(Bad::Malformed)));
    }
    let offered = rest.get(..usize::from(count))?;
    let method = match (open, offered) {
        (true, offered) if offered.contains(&METHOD_NONE) => METHOD_NONE,
        (_, offered) if offered.contains(&METHOD_PASSWORD) => METHOD_PASSWORD,
        _ => METHOD_REFUSED,
    };
    out.extend_from_slice(&[VERSION, method]);
    let step = match method {
        METHOD_NONE => {
            *state = State::Request;
            Step::More
        }
        METHOD_PASSWORD => {
            *state = State::Login;
            Step::More
        }
        _ => Step::Refused(Bad::Login),
    };
    Some((2 + usize::from(count), step))
}

fn login(state: &mut State, bytes: &[u8], out: &mut Vec<u8>) -> Option<(usize, Step)> {
    let (&version, rest) = bytes.split_first()?;
    if version != LOGIN_VERSION {
        out.extend_from_slice(&[LOGIN_VERSION, FAILED]);
        return Some((0, Step::Refused(Bad::Malformed)));
    }
    let (user, rest) = counted(rest)?;
    let (password, rest) = counted(rest)?;
    *state = State::Checking;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Some((bytes.len() - rest.len(), Step::Login { user: text(user), password: text(password) }))
}

/// What the driver found of a login.
pub(super) fn logged_in(state: &mut State, good: bool, out: &mut Vec<u8>) {
    *state = if good { State::Request } else { State::Done };
    out.extend_from_slice(&[LOGIN_VERSION, if good { SUCCEEDED } else { FAILED }]);
}

fn request(state: &mut State, bytes: &[u8], out: &mut Vec<u8>) -> Option<(usize, Step)> {
    let &[version, command, _, ref rest @ ..] = bytes else { return None };
    let mut refuse = |code, bad| {
        out.extend_from_slice(&reply(code, UNKNOWN));
        Some((0, Step::Refused(bad)))
    };
    if version != VERSION {
        return refuse(FAILED, Bad::Malformed);
    }
    let (target, rest) = match read_target(rest) {
        Ok(Some(read)) => read,
        Ok(None) => return None,
        Err(Bad::AddressType) => return refuse(ADDRESS_UNSUPPORTED, Bad::AddressType),
        Err(bad) => return refuse(FAILED, bad),
    };
    let command = match command {
        1 => Command::Connect,
        2 => Command::Bind,
        3 => Command::Associate,
        _ => return refuse(COMMAND_UNSUPPORTED, Bad::Command),
    };
    *state = State::Done;
    Some((bytes.len() - rest.len(), Step::Request(Request { command, target })))
}

/// Type, address and port number; the rest comes back. `Ok(None)`: more has to come.
fn read_target(bytes: &[u8]) -> Result<Option<(Target, &[u8])>, Bad> {
    let Some((&kind, rest)) = bytes.split_first() else { return Ok(None) };
    let read = match kind {
        IPV4 => rest.split_first_chunk::<4>().map(|(ip, rest)| (Host::Ip(Ipv4Addr::from(*ip).into()), rest)),
        IPV6 => {
            let canonical = |ip: &[u8; 16]| Host::Ip(IpAddr::from(Ipv6Addr::from(*ip)).to_canonical());
            rest.split_first_chunk::<16>().map(|(ip, rest)| (canonical(ip), rest))
        }
        NAME => match counted(rest) {
            None => None,
            Some((name, rest)) => {
                let name = std::str::from_utf8(name).ok().and_then(Host::parse).ok_or(Bad::Malformed)?;
                Some((name, rest))
            }
        },
        _ => return Err(Bad::AddressType),
    };
    let with_port = read.and_then(|(host, rest)| {
        let (port, rest) = rest.split_first_chunk::<2>()?;
        Some((Target { host, port: u16::from_be_bytes(*port) }, rest))
    });
    Ok(with_port)
}

/// Bytes with their count before them, and the rest.
fn counted(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (&count, rest) = bytes.split_first()?;
    rest.split_at_checked(usize::from(count))
}

const UNKNOWN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);

fn reply(code: u8, bound: SocketAddr) -> Vec<u8> {
    let mut reply = vec![VERSION, code, 0];
    write_address(&mut reply, bound);
    reply
}

fn write_address(out: &mut Vec<u8>, address: SocketAddr) {
    match address.ip().to_canonical() {
        IpAddr::V4(v4) => {
            out.push(IPV4);
            out.extend_from_slice(&v4.octets());
        }
        IpAddr::V6(v6) => {
            out.push(IPV6);
            out.extend_from_slice(&v6.octets());
        }
    }
    out.extend_from_slice(&address.port().to_be_bytes());
}

/// The reply to a request that was carried out.
pub fn granted(bound: SocketAddr) -> Vec<u8> {
    reply(SUCCEEDED, bound)
}

/// The reply to a request that was not.
pub fn refused(code: Code) -> Vec<u8> {
    let number = match code {
        Code::Refused => REFUSED,
        Code::HostUnreachable | Code::NameNotFound => HOST_UNREACHABLE,
        Code::NetworkUnreachable | Code::MediatorAway => NETWORK_UNREACHABLE,
        Code::Denied | Code::NotPermitted | Code::TokenMismatch | Code::TokenExpired | Code::Revoked => NOT_ALLOWED,
        Code::TimedOut | Code::NameFailed => TTL_EXPIRED,
        Code::Unsupported => COMMAND_UNSUPPORTED,
        _ => FAILED,
    };
    reply(number, UNKNOWN)
}

/// Longest head of a relayed datagram that [`write_datagram_head`] writes.
pub const DATAGRAM_HEAD_MAX: usize = 22;

/// Why a client's datagram is dropped (RFC 1928 section 7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadDatagram {
    /// It is a fragment, which an implementation may refuse.
    Fragment,
    /// Its head is cut or has a bad address.
    Malformed,
}

/// Reads the head of a client's datagram: where it goes, and its payload.
///
/// # Errors
/// Why it is dropped.
pub fn read_datagram(bytes: &[u8]) -> Result<(Target, &[u8]), BadDatagram> {
    let &[0, 0, fragment, ref rest @ ..] = bytes else { return Err(BadDatagram::Malformed) };
    if fragment != 0 {
        return Err(BadDatagram::Fragment);
    }
    read_target(rest).ok().flatten().ok_or(BadDatagram::Malformed)
}

/// The head of a datagram to a client, which came from `remote`.
pub fn write_datagram_head(out: &mut Vec<u8>, remote: SocketAddr) {
    out.extend_from_slice(&[0, 0, 0]);
    write_address(out, remote);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn datagrams_are_read_as_they_are_written() {
        for remote in ["10.0.0.5:53", "[fd00::5]:53"] {
            let remote: SocketAddr = remote.parse().unwrap();
            let mut bytes = Vec::new();
            write_datagram_head(&mut bytes, remote);
            assert!(bytes.len() <= DATAGRAM_HEAD_MAX);
            let head = bytes.len();
            bytes.extend_from_slice(b"payload");
            let (target, payload) = read_datagram(&bytes).unwrap();
            assert_eq!((target.address(), payload), (Some(remote), &b"payload"[..]));
            for cut in 0..head {
                assert_eq!(read_datagram(&bytes[..cut]), Err(BadDatagram::Malformed), "{cut}");
            }
            bytes[2] = 1;
            assert_eq!(read_datagram(&bytes), Err(BadDatagram::Fragment));
            bytes[0] = 1;
            assert_eq!(read_datagram(&bytes), Err(BadDatagram::Malformed));
        }
        let named = [&[0, 0, 0, 3, 3][..], b"dns", &[0, 53], b"?"].concat();
        let (target, payload) = read_datagram(&named).unwrap();
        assert_eq!((target.to_string().as_str(), payload), ("dns:53", &b"?"[..]));
    }

    #[test]
    fn replies_tell_the_reasons_apart() {
        for (code, number) in [
            (Code::Failed, 1),
            (Code::Denied, 2),
            (Code::NotPermitted, 2),
            (Code::TokenExpired, 2),
            (Code::Revoked, 2),
            (Code::NetworkUnreachable, 3),
            (Code::HostUnreachable, 4),
            (Code::NameNotFound, 4),
            (Code::Refused, 5),
            (Code::TimedOut, 6),
            (Code::Unsupported, 7),
        ] {
            assert_eq!(refused(code), [5, number, 0, 1, 0, 0, 0, 0, 0, 0], "{code:?}");
        }
        assert_eq!(granted("10.0.0.5:258".parse().unwrap()), [5, 0, 0, 1, 10, 0, 0, 5, 1, 2]);
        assert_eq!(granted("[::ffff:10.0.0.5]:258".parse().unwrap()), [5, 0, 0, 1, 10, 0, 0, 5, 1, 2]);
        assert_eq!(granted("[fd00::5]:80".parse().unwrap()).len(), 22);
    }
}
