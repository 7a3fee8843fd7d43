//! The server name of a TLS ClientHello (RFC 8446 section 4.1.2, RFC 6066 section 3).
//!
//! ```text
//! record     22 | 3.x | length 2 |            fragment of the message, repeated
//! message    1 | length 3 | version 2 | random 32 | session id <0..32> | suites <2..2^16-2> | compression <1..255>
//!            | extensions <0..2^16-1>:  type 2 | data <0..2^16-1>, repeated
//! extension  0:  list <1..2^16-1>:  0 (host name) | name <1..2^16-1>, repeated
//! ```

use std::borrow::Cow;

use super::name::{BadStart, CLIENT_HELLO_MAX, HostName};

const RECORD_HEADER: usize = 5;
const RECORD_MAX: usize = 1 << 14;
const MESSAGE_HEADER: usize = 4;
const CLIENT_HELLO: u8 = 1;
const SERVER_NAME: u16 = 0;
const HOST_NAME: u8 = 0;

/// The name in the ClientHello that `bytes` begin with: `None` when it is not whole yet, `Some(None)` where it names
/// nobody.
pub(super) fn server_name(bytes: &[u8]) -> Result<Option<Option<HostName>>, BadStart> {
    let Some(message) = message(bytes)? else { return Ok(None) };
    name_in(&message).ok_or(BadStart::Tls).map(Some)
}

/// The handshake message's body, joined from its records where it is spread over several.
fn message(bytes: &[u8]) -> Result<Option<Cow<'_, [u8]>>, BadStart> {
    let mut joined: Cow<'_, [u8]> = Cow::Borrowed(&[]);
    let mut rest = bytes;
    loop {
        let [22, major, _, high, low, body @ ..] = rest else {
            let header = &rest[..rest.len().min(RECORD_HEADER)];
            let possible =
                header.first().is_none_or(|&kind| kind == 22) && header.get(1).is_none_or(|&major| major == 3);
            return if possible { more(bytes) } else { Err(BadStart::Tls) };
        };
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        // An empty fragment of a handshake message is forbidden (RFC 8446 section 5.1).
        if *major != 3 || length == 0 || length > RECORD_MAX {
            return Err(BadStart::Tls);
        }
        let fragment = &body[..body.len().min(length)];
        if joined.is_empty() {
            joined = Cow::Borrowed(fragment);
        } else {
            joined.to_mut().extend_from_slice(fragment);
        }
        if let Some(&[kind, a, b, c]) = joined.first_chunk::<MESSAGE_HEADER>() {
            let length = usize::try_from(u32::from_be_bytes([0, a, b, c])).unwrap_or(usize::MAX);
            if kind != CLIENT_HELLO || length > CLIENT_HELLO_MAX {
                return Err(BadStart::Tls);
            }
            let end = MESSAGE_HEADER + length;
            if joined.len() >= end {
                return Ok(Some(match joined {
                    Cow::Borrowed(message) => Cow::Borrowed(&message[MESSAGE_HEADER..end]),
                    Cow::Owned(message) => Cow::Owned(message[MESSAGE_HEADER..end].to_vec()),
                }));
            }
        } else if joined.first().is_some_and(|&kind| kind != CLIENT_HELLO) {
            return Err(BadStart::Tls);
        }
        if body.len() < length {
            return more(bytes);
        }
        rest = &body[length..];
    }
}

fn more<T>(bytes: &[u8]) -> Result<Option<T>, BadStart> {
    if bytes.len() < CLIENT_HELLO_MAX { Ok(None) } else { Err(BadStart::Tls) }
}

/// The outer `None` is a malformed message.
fn name_in(message: &[u8]) -> Option<Option<HostName>> {
    let mut reader = Reader(message);
    reader.take(2 + 32)?;
    let session = reader.prefixed_u8()?;
    let suites = reader.prefixed_u16()?;
    let compression = reader.prefixed_u8()?;
    if session.len() > 32 || suites.is_empty() || suites.len() % 2 != 0 || compression.is_empty() {
        return None;
    }
    if reader.0.is_empty() {
        // Before TLS 1.3 there could be no extensions at all.
        return Some(None);
    }
    let mut extensions = Reader(reader.prefixed_u16()?);
    let mut name = None;
    while !extensions.0.is_empty() {
        let kind = extensions.u16()?;
        let data = extensions.prefixed_u16()?;
        if kind == SERVER_NAME && name.replace(host_name(data)?).is_some() {
            // Two of them: which one the host takes is not ours to guess.
            return None;
        }
    }
    if reader.0.is_empty() { Some(name) } else { None }
}

/// The one host name of a server name list. Other kinds of names were never defined.
fn host_name(data: &[u8]) -> Option<HostName> {
    let mut reader = Reader(data);
    let mut list = Reader(reader.prefixed_u16()?);
    let kind = list.u8()?;
    let name = list.prefixed_u16()?;
    if kind != HOST_NAME || !list.0.is_empty() || !reader.0.is_empty() {
        return None;
    }
    std::str::from_utf8(name).ok()?.parse().ok()
}

/// Reads from the front; `None` when there is too little.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (front, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(front)
    }

    fn u8(&mut self) -> Option<u8> {
        self.take(1)?.first().copied()
    }

    fn u16(&mut self) -> Option<u16> {
        self.take(2)?.first_chunk().map(|&bytes| u16::from_be_bytes(bytes))
    }

    fn prefixed_u8(&mut self) -> Option<&'a [u8]> {
        let length = self.u8()?;
        self.take(length.into())
    }

    fn prefixed_u16(&mut self) -> Option<&'a [u8]> {
        let length = self.u16()?;
        self.take(length.into())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::collection::vec;
    use proptest::prelude::*;
    use rustls::pki_types::ServerName;
    use rustls::{ClientConfig, ClientConnection, RootCertStore};

    use super::*;

    /// A ClientHello as a real client sends it.
    fn real(name: &str) -> Vec<u8> {
        let config = ClientConfig::builder().with_root_certificates(RootCertStore::empty()).with_no_client_auth();
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let mut client = ClientConnection::new(Arc::new(config), name).unwrap();
        let mut bytes = Vec::new();
        client.write_tls(&mut bytes).unwrap();
        bytes
    }

    fn hello(extensions: &[u8]) -> Vec<u8> {
        let mut body = vec![3, 3];
        body.extend([7; 32]);
        body.extend([0, 0, 2, 0x13, 1, 1, 0]);
        body.extend((extensions.len() as u16).to_be_bytes());
        body.extend(extensions);
        let mut message = vec![1, 0];
        message.extend((body.len() as u16).to_be_bytes());
        message.extend(body);
        message
    }

    fn sni(name: &[u8]) -> Vec<u8> {
        let n = name.len() as u16;
        let mut bytes = vec![0, 0];
        for length in [n + 5, n + 3] {
            bytes.extend(length.to_be_bytes());
        }
        bytes.push(0);
        bytes.extend(n.to_be_bytes());
        bytes.extend(name);
        bytes
    }

    /// In records of at most `size` bytes.
    fn records(message: &[u8], size: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        for part in message.chunks(size) {
            bytes.extend([22, 3, 1]);
            bytes.extend((part.len() as u16).to_be_bytes());
            bytes.extend(part);
        }
        bytes
    }

    #[test]
    fn a_real_clients_name_is_read_at_its_last_byte_and_not_before() {
        let bytes = real("device-7.example.net");
        for end in 0..bytes.len() {
            assert_eq!(server_name(&bytes[..end]), Ok(None), "{end}");
        }
        let name = server_name(&bytes).unwrap().unwrap().unwrap();
        assert_eq!(name.as_str(), "device-7.example.net");
        // What follows it is not looked at.
        let followed = [bytes, vec![0xff; 100]].concat();
        assert_eq!(server_name(&followed).unwrap().unwrap().unwrap().as_str(), "device-7.example.net");
    }

    #[test]
    fn a_client_that_dials_an_address_names_nobody() {
        assert_eq!(server_name(&real("127.0.0.1")), Ok(Some(None)));
        let mut bare = hello(&[]);
        bare.truncate(bare.len() - 2);
        bare[3] -= 2;
        assert_eq!(server_name(&records(&bare, 1000)), Ok(Some(None)));
    }

    #[test]
    fn malformed_hellos_are_refused() {
        let good = sni(b"a.example");
        assert!(matches!(server_name(&records(&hello(&good), 1000)), Ok(Some(Some(_)))));
        let twice = [good.clone(), good.clone()].concat();
        let mut long_list = good.clone();
        long_list[5] += 1;
        let mut other_kind = good.clone();
        other_kind[6] = 1;
        for extensions in [twice, long_list, other_kind, sni(b"a b"), sni(b""), sni(b"\xff.x"), vec![0, 1, 0, 9, 0]] {
            assert_eq!(server_name(&records(&hello(&extensions), 1000)), Err(BadStart::Tls), "{extensions:?}");
        }
        for bytes in [
            vec![22, 2, 0, 0, 5],
            vec![22, 3, 1, 0, 0],
            vec![22, 3, 1, 0x40, 1],
            vec![22, 3, 1, 0, 5, 2],
            vec![22, 3, 1, 0, 1, 1, 23],
            vec![22, 3, 1, 0, 5, 1, 0, 0x40, 1, 0],
        ] {
            assert_eq!(server_name(&bytes), Err(BadStart::Tls), "{bytes:?}");
        }
    }

    #[test]
    fn a_hello_is_bounded_on_both_sides_of_the_edge() {
        let padding = |length: usize| {
            let mut bytes = vec![0, 21];
            bytes.extend((length as u16).to_be_bytes());
            bytes.extend(vec![0; length]);
            [bytes, sni(b"a.example")].concat()
        };
        let overhead = records(&hello(&padding(0)), RECORD_MAX).len();
        let most = records(&hello(&padding(CLIENT_HELLO_MAX - overhead)), RECORD_MAX);
        assert_eq!(most.len(), CLIENT_HELLO_MAX);
        assert!(matches!(server_name(&most), Ok(Some(Some(_)))));
        assert_eq!(server_name(&most[..CLIENT_HELLO_MAX - 1]), Ok(None));
        let more = records(&hello(&padding(CLIENT_HELLO_MAX - overhead + 100)), RECORD_MAX);
        assert_eq!(server_name(&more[..CLIENT_HELLO_MAX]), Err(BadStart::Tls));
    }

    proptest! {
        #[test]
        fn however_a_hello_is_cut_its_name_is_the_same(
            name in "[a-z0-9]{1,20}(\\.[a-z0-9]{1,20}){0,3}",
            before in vec(any::<u8>(), 0..40),
            size in 1_usize..200,
            cut in any::<prop::sample::Index>(),
        ) {
            let mut extensions = vec![0x12, 0x34, 0, before.len() as u8];
            extensions.extend(before);
            extensions.extend(sni(name.as_bytes()));
            let bytes = records(&hello(&extensions), size);
            prop_assert_eq!(server_name(&bytes[..cut.index(bytes.len())]), Ok(None));
            prop_assert_eq!(server_name(&bytes), Ok(Some(Some(name.parse().unwrap()))));
        }

        #[test]
        fn random_and_damaged_bytes_never_panic(
            bytes in vec(any::<u8>(), 0..300),
            at in any::<prop::sample::Index>(),
            value in any::<u8>(),
        ) {
            let _ = server_name(&bytes);
            let _ = server_name(&[&[22, 3, 1][..], &bytes].concat());
            let _ = server_name(&records(&hello(&bytes), 64));
            let mut damaged = records(&hello(&sni(b"a.example")), 30);
            let at = at.index(damaged.len());
            damaged[at] = value;
            let _ = server_name(&damaged);
        }
    }
}
