//! What a mediator's own configuration asks of the relay: ports to be published for it, and names to be led to it.
//!
//! An ask travels as its text, one by one, so that a relay refuses the one that it does not understand and nothing else.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use crate::door::name::HostName;
use crate::door::proxy_protocol::Version;

/// What stands before a name.
const NAME: &str = "name:";

/// Something that a mediator asks for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Ask {
    /// A port of the relay.
    Port(PortAsk),
    /// Visitors of this name; which host they reach is told by [`crate::hello::Report::offers`].
    Name(HostName),
}

/// A port of the relay that is to lead to a host, written `PROTO:[ADDR:]PORT=HOST:PORT[,proxy=v1|,proxy=v2]`:
/// `tcp:8080=10.0.0.5:80`, `udp:192.0.2.1:53=10.0.0.5:53`, `tcp:[2001:db8::1]:443=[fd00::5]:443,proxy=v2`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PortAsk {
    /// On both sides.
    pub proto: AskProto,
    /// The relay's address; `None` for the one that its policy names.
    pub addr: Option<IpAddr>,
    /// The relay's port number, never 0.
    pub port: u16,
    /// The host, with a port number that is never 0.
    pub target: SocketAddr,
    /// The host is told of the visitor's address by this version of the PROXY protocol.
    pub proxy: Option<Version>,
}

/// The transport protocol of an asked port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AskProto {
    /// Streams.
    Tcp,
    /// Datagrams.
    Udp,
}

impl fmt::Display for AskProto {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// The text is nothing that can be asked for; the message says which part, and how to write it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}; write PROTO:[ADDR:]PORT=HOST:PORT, as in tcp:8080=10.0.0.5:80 or udp:[2001:db8::1]:53=10.0.0.5:53")]
pub struct BadAsk(String);

impl FromStr for Ask {
    type Err = BadAsk;
    fn from_str(text: &str) -> Result<Self, BadAsk> {
        match text.strip_prefix(NAME) {
            Some(name) => name.parse().map(Self::Name).map_err(|error| BadAsk(format!("'{name}': {error}"))),
            None => text.parse().map(Self::Port),
        }
    }
}

impl fmt::Display for Ask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Port(port) => port.fmt(f),
            Self::Name(name) => write!(f, "{NAME}{name}"),
        }
    }
}

impl FromStr for PortAsk {
    type Err = BadAsk;
    fn from_str(text: &str) -> Result<Self, BadAsk> {
        let (front, back) = text.split_once('=').ok_or_else(|| BadAsk("there is no '='".into()))?;
        let (proto, listen) =
            front.split_once(':').ok_or_else(|| BadAsk("there is no PROTO: before the port".into()))?;
        let proto = match proto {
            "tcp" => AskProto::Tcp,
            "udp" => AskProto::Udp,
            other => return Err(BadAsk(format!("'{other}' is neither tcp nor udp"))),
        };
        let (addr, port) = match listen.parse::<u16>() {
            Ok(port) => (None, port),
            Err(_) => address(listen).map(|addr| (Some(addr.ip()), addr.port()))?,
        };
        if port == 0 {
            return Err(BadAsk("the relay's port number is 0".into()));
        }
        let (target, option) = back.split_once(',').map_or((back, None), |(target, option)| (target, Some(option)));
        let target = address(target)?;
        if target.port() == 0 {
            return Err(BadAsk("the host's port number is 0".into()));
        }
        let proxy = match (option, proto) {
            (None, _) => None,
            (Some("proxy=v1"), AskProto::Tcp) => Some(Version::V1),
            (Some("proxy=v1"), AskProto::Udp) => {
                return Err(BadAsk("the PROXY protocol's version 1 knows no UDP, write proxy=v2".into()));
            }
            (Some("proxy=v2"), _) => Some(Version::V2),
            (Some(other), _) => return Err(BadAsk(format!("'{other}' is neither proxy=v1 nor proxy=v2"))),
        };
        Ok(Self { proto, addr, port, target, proxy })
    }
}

fn address(text: &str) -> Result<SocketAddr, BadAsk> {
    text.parse().map_err(|_| BadAsk(format!("'{text}' is not an IP address with a port number")))
}

impl fmt::Display for PortAsk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.addr {
            Some(addr) => write!(f, "{}:{}", self.proto, SocketAddr::new(addr, self.port))?,
            None => write!(f, "{}:{}", self.proto, self.port)?,
        }
        write!(f, "={}", self.target)?;
        match self.proxy {
            None => Ok(()),
            Some(Version::V1) => f.write_str(",proxy=v1"),
            Some(Version::V2) => f.write_str(",proxy=v2"),
        }
    }
}

macro_rules! refusals {
    ($($(#[$doc:meta])* $name:ident = $word:literal, $text:literal;)*) => {
        /// Why the relay does not give what was asked for.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum AskRefusal { $($(#[$doc])* $name,)* }

        impl AskRefusal {
            /// One word, for logs and JSON.
            pub fn word(self) -> &'static str {
                match self { $(Self::$name => $word,)* }
            }

            /// What is the matter, for the mediator's owner, with the cure.
            pub fn text(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }
        }
    };
}

refusals! {
    /// It cannot be read.
    NotUnderstood = "not-understood", "the relay does not understand it; upgrade the relay";
    /// No rule covers it.
    NotAllowed = "not-allowed", "the relay's policy does not allow it; its operator can, with --allow-publish or --allow-name";
    /// Somebody else has it.
    Taken = "taken", "another one has it at the relay; ask for another, or wait: it is tried again";
    /// Below 1024, and the relay may not.
    Privileged = "privileged", "the relay may not listen below 1024; ask for a higher number, or have its operator give it CAP_NET_BIND_SERVICE";
    /// Not an address of the relay.
    NoAddress = "no-address", "the relay has no such address; leave the address out, or ask its operator for the right one";
    /// Too many.
    Limit = "limit", "a limit is reached, of this mediator or of the relay; ask for less, or wait: it is tried again";
    /// The operator closed it.
    Withdrawn = "withdrawn", "the relay's operator took it away; it is asked for anew at the next connection";
    /// The system refuses.
    Failed = "failed", "the relay's system refuses; its log says why";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn asks_print_as_they_are_written() {
        for text in [
            "tcp:8080=10.0.0.5:80",
            "udp:192.0.2.1:53=10.0.0.5:53",
            "tcp:[2001:db8::1]:443=[fd00::5]:443,proxy=v2",
            "tcp:1=10.0.0.5:65535,proxy=v1",
            "udp:65535=10.0.0.5:1,proxy=v2",
            "name:www.example.net",
        ] {
            assert_eq!(text.parse::<Ask>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn each_bad_part_is_named() {
        for (text, part) in [
            ("", "no '='"),
            ("tcp:8080", "no '='"),
            ("8080=10.0.0.5:80", "no PROTO:"),
            ("sctp:8080=10.0.0.5:80", "'sctp'"),
            ("tcp:0=10.0.0.5:80", "relay's port number is 0"),
            ("tcp:65536=10.0.0.5:80", "'65536'"),
            ("tcp:192.0.2.1=10.0.0.5:80", "'192.0.2.1'"),
            ("tcp:8080=host:80", "'host:80'"),
            ("tcp:8080=10.0.0.5:0", "host's port number is 0"),
            ("udp:53=10.0.0.5:53,proxy=v1", "no UDP"),
            ("tcp:80=10.0.0.5:80,proxy=v3", "'proxy=v3'"),
            ("tcp:80=10.0.0.5:80,proxy=v2,proxy=v2", "'proxy=v2,proxy=v2'"),
            ("name:a b", "'a b'"),
        ] {
            let error = text.parse::<Ask>().unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
