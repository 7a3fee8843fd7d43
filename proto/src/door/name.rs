//! Which host a public client asks for, read from its first bytes: a TLS ClientHello's server name
//! (RFC 6066 section 3) or the Host of an HTTP/1 request (RFC 9112 section 3.2), told apart by the first byte.
//!
//! The bytes are only looked at: they belong to the host, which gets all of them. With Encrypted ClientHello the
//! outer name is the one that is read, as its client means it to be.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use super::{client_hello, http_host};

/// Most bytes of a ClientHello, record headers included.
pub const CLIENT_HELLO_MAX: usize = 16 * 1024;

/// Most bytes of an HTTP request's head.
pub const REQUEST_HEAD_MAX: usize = 8 * 1024;

/// Most bytes that have to be kept until [`read`] knows.
pub const FIRST_BYTES_MAX: usize = CLIENT_HELLO_MAX;

/// The first byte of a TLS connection: a handshake record.
const TLS_HANDSHAKE: u8 = 22;

/// What a client speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Speaks {
    /// TLS; only its first message is looked at.
    Tls,
    /// HTTP/1 in the clear.
    Http,
}

/// What the first bytes told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// In which protocol.
    pub speaks: Speaks,
    /// For whom; `None` where a ClientHello names nobody. HTTP always does.
    pub name: Option<HostName>,
}

/// The first bytes are no beginning of a connection that could be led anywhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadStart {
    /// Neither TLS nor HTTP/1.
    #[error("neither TLS nor HTTP/1")]
    Unknown,
    /// A TLS connection whose first message is no valid ClientHello, or too long.
    #[error("not a valid ClientHello of at most 16 KiB")]
    Tls,
    /// An HTTP request without exactly one valid Host, malformed, or no request for a host (CONNECT).
    #[error("not a valid HTTP/1 request with one Host")]
    Http,
    /// An HTTP request head longer than 8 KiB.
    #[error("an HTTP request head of more than 8 KiB")]
    HttpTooLong,
}

/// Looks at what has come so far, from the connection's first byte on: `None` asks for more.
///
/// Asked again with each receive until it answers, it reads the bytes anew; there are at most
/// [`FIRST_BYTES_MAX`] of them.
///
/// # Errors
/// More bytes cannot help.
pub fn read(bytes: &[u8]) -> Result<Option<Asked>, BadStart> {
    match bytes.first() {
        None => Ok(None),
        Some(&TLS_HANDSHAKE) => {
            let name = client_hello::server_name(bytes)?;
            Ok(name.map(|name| Asked { speaks: Speaks::Tls, name }))
        }
        Some(byte) if byte.is_ascii_uppercase() || matches!(byte, b'\r' | b'\n') => {
            let host = http_host::host(bytes)?;
            Ok(host.map(|host| Asked { speaks: Speaks::Http, name: Some(host) }))
        }
        Some(_) => Err(BadStart::Unknown),
    }
}

/// A name that a client asked for: lower case, without the final dot and without a port number.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct HostName(Box<str>);

/// The text is not a host's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a host's name is 1 to 253 letters, digits, '-' and '_', in labels of 1 to 63 between dots, none of which begins or ends with '-'"
)]
pub struct BadHostName;

impl HostName {
    /// Longest name in bytes.
    pub const LEN_MAX: usize = 253;

    /// The name's text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The first label and what stands after its dot; the latter is empty for a name of one label.
    pub fn split_label(&self) -> (&str, &str) {
        self.0.split_once('.').unwrap_or((&self.0, ""))
    }

    /// An address in place of a name, as HTTP clients give it: no route has it, yet it is no mistake of theirs.
    pub(super) fn from_address(address: IpAddr) -> Self {
        Self(address.to_string().into())
    }
}

impl FromStr for HostName {
    type Err = BadHostName;
    fn from_str(text: &str) -> Result<Self, BadHostName> {
        let text = text.strip_suffix('.').unwrap_or(text);
        let label_is_good = |label: &str| {
            (1..=63).contains(&label.len())
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
        };
        let good = (1..=Self::LEN_MAX).contains(&text.len()) && text.split('.').all(label_is_good);
        if good { Ok(Self(text.to_ascii_lowercase().into())) } else { Err(BadHostName) }
    }
}

impl fmt::Display for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HostName({})", self.0)
    }
}

/// Why a client is turned away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Its first bytes are not valid.
    Bad,
    /// Its request head is too long.
    TooLong,
    /// It named nobody, or somebody unknown.
    UnknownName,
    /// Nobody who serves this name is connected.
    Away,
}

/// The last bytes for a client that is turned away, in the protocol that it speaks.
pub fn refusal(speaks: Speaks, why: Refusal) -> &'static [u8] {
    match (speaks, why) {
        (Speaks::Tls, Refusal::UnknownName) => const { &alert(112) },
        (Speaks::Tls, Refusal::Bad | Refusal::TooLong) => const { &alert(50) },
        (Speaks::Tls, Refusal::Away) => const { &alert(80) },
        (Speaks::Http, Refusal::Bad) => {
            b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nContent-Length: 38\r\nConnection: close\r\n\r\n\
              This is no HTTP request with one Host\n"
        }
        (Speaks::Http, Refusal::TooLong) => {
            b"HTTP/1.1 431 Request Header Fields Too Large\r\nContent-Type: text/plain\r\nContent-Length: 39\r\n\
              Connection: close\r\n\r\n\
              The request's head is more than 8 KiB.\n"
        }
        (Speaks::Http, Refusal::UnknownName) => {
            b"HTTP/1.1 421 Misdirected Request\r\nContent-Type: text/plain\r\nContent-Length: 34\r\nConnection: close\r\n\r\n\
              Nothing of that name is to be had\n"
        }
        (Speaks::Http, Refusal::Away) => {
            b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain\r\nContent-Length: 39\r\nConnection: close\r\n\
              Retry-After: 10\r\n\r\n\
              What serves this name is not connected\n"
        }
    }
}

/// A fatal alert in a record of its own (RFC 8446 section 6): unencrypted, as it is before any ServerHello.
const fn alert(description: u8) -> [u8; 7] {
    [21, 3, 3, 0, 2, 2, description]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_compared_in_one_form() {
        for (text, name) in [
            ("WWW.Example.NET", "www.example.net"),
            ("www.example.net.", "www.example.net"),
            ("a_b.x", "a_b.x"),
            ("xn--bcher-kva.example", "xn--bcher-kva.example"),
        ] {
            assert_eq!(text.parse::<HostName>().unwrap().as_str(), name);
        }
        let long = format!("{0}.{0}.{0}.{1}", "a".repeat(63), "b".repeat(61));
        assert_eq!((long.len(), long.parse::<HostName>().is_ok()), (253, true));
        for bad in ["", ".", "a..b", ".a", "-a.b", "a-.b", "a b", "bücher", "*.a", &format!("{long}c"), &"a".repeat(64)]
        {
            assert_eq!(bad.parse::<HostName>(), Err(BadHostName), "{bad}");
        }
    }

    #[test]
    fn the_first_byte_tells_the_protocol() {
        assert_eq!(read(b""), Ok(None));
        assert_eq!(read(b"\x16"), Ok(None));
        assert_eq!(read(b"G"), Ok(None));
        for other in [b"SSH-2.0-x\r\n\r\n".as_slice(), b"HELO x\r\n\r\n"] {
            assert_eq!(read(other), Err(BadStart::Http));
        }
        for other in [b"\x05\x01\x00".as_slice(), b"\x80\x2e\x01\x00\x02", b"\0"] {
            assert_eq!(read(other), Err(BadStart::Unknown));
        }
    }

    #[test]
    fn refusals_are_whole_in_their_protocol() {
        use Refusal::*;
        for why in [Bad, TooLong, UnknownName, Away] {
            let alert = refusal(Speaks::Tls, why);
            assert_eq!((alert.len(), alert[0], alert[5]), (7, 21, 2));
            let text = std::str::from_utf8(refusal(Speaks::Http, why)).unwrap();
            let (head, body) = text.split_once("\r\n\r\n").unwrap();
            let length: usize =
                head.lines().find_map(|line| line.strip_prefix("Content-Length: ")).unwrap().parse().unwrap();
            assert_eq!(length, body.len(), "{why:?}");
            assert!(head.contains("Connection: close"), "{why:?}");
        }
        assert_eq!(refusal(Speaks::Tls, UnknownName)[6], 112);
    }
}
