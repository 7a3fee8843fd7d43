//! The setting of an exposed service: a port on a mediator that leads to a public address.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

use isthmus_proto::MediatorId;
use isthmus_proto::door::proxy_protocol::Version;
use serde::{Deserialize, Serialize};

use crate::publish::Proto;
use crate::upstream::Options;

/// Most exposed services of one relay: each takes some memory for as long as the relay runs.
pub const EXPOSES_MAX: usize = 65_536;

/// One exposed service, written `PROTO:MEDIATOR/IP:PORT=HOST:PORT`, IPv6 addresses in brackets:
/// `tcp:cpe-1/10.0.0.2:8080=198.51.100.7:80`, `udp:cpe-1/10.0.0.2:53=198.51.100.7:53`. Private hosts reach it at an address
/// of the mediator. `,proxy=v2` at the end tells the public end who they are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Expose {
    /// Where private hosts come in.
    pub server: ServerPort,
    /// The public address, never with port 0.
    pub target: SocketAddr,
    /// How they are led there.
    pub options: Options,
}

/// A server port on a mediator, written `PROTO:MEDIATOR/IP:PORT`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServerPort {
    /// On whom.
    pub mediator: MediatorId,
    /// An address of the mediator's; port 0 asks it for a free one, each time that it connects.
    pub listen: SocketAddr,
    /// TCP or UDP, on both sides.
    pub proto: Proto,
}

/// The text is not an exposed service; the message says which part, and how to write it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0}; write PROTO:MEDIATOR/IP:PORT=HOST:PORT, as in tcp:cpe-1/10.0.0.2:8080=198.51.100.7:80, PROTO being tcp or udp, \
     IPv6 addresses in brackets, and ,proxy=v2 at the end"
)]
pub struct BadExpose(String);

impl FromStr for ServerPort {
    type Err = BadExpose;
    fn from_str(text: &str) -> Result<Self, BadExpose> {
        let bad = |why: &str| BadExpose(why.to_owned());
        let (proto, rest) = text.split_once(':').ok_or_else(|| bad("there is no tcp: or udp: before the mediator"))?;
        let proto = proto.parse().map_err(|_| BadExpose(format!("'{proto}' is neither tcp nor udp")))?;
        let (mediator, listen) =
            rest.split_once('/').ok_or_else(|| bad("there is no '/' between mediator and address"))?;
        let mediator = mediator.parse().map_err(|error| BadExpose(format!("'{mediator}': {error}")))?;
        Ok(Self { mediator, listen: address(listen)?, proto })
    }
}

impl fmt::Display for ServerPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}/{}", self.proto, self.mediator, self.listen)
    }
}

impl FromStr for Expose {
    type Err = BadExpose;
    fn from_str(text: &str) -> Result<Self, BadExpose> {
        let (front, back) = text.split_once('=').ok_or_else(|| BadExpose("there is no '='".into()))?;
        let (target, options) = Options::split(back).map_err(BadExpose)?;
        let (server, target) = (front.parse::<ServerPort>()?, address(target)?);
        if target.port() == 0 {
            return Err(BadExpose("the public port number is 0".into()));
        }
        if server.proto == Proto::Udp && options.proxy == Some(Version::V1) {
            return Err(BadExpose("the PROXY protocol's version 1 knows no UDP; write proxy=v2".into()));
        }
        Ok(Self { server, target, options })
    }
}

impl fmt::Display for Expose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}{}", self.server, self.target, self.options)
    }
}

impl TryFrom<String> for Expose {
    type Error = BadExpose;
    fn try_from(text: String) -> Result<Self, BadExpose> {
        text.parse()
    }
}

impl From<Expose> for String {
    fn from(expose: Expose) -> Self {
        expose.to_string()
    }
}

fn address(text: &str) -> Result<SocketAddr, BadExpose> {
    text.parse().map_err(|_| BadExpose(format!("'{text}' is not an IP address with a port number")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exposed_services_print_as_they_are_written() {
        for text in [
            "tcp:cpe-1/10.0.0.2:8080=198.51.100.7:80",
            "tcp:cpe-1/0.0.0.0:0=198.51.100.7:80,proxy=v2",
            "tcp:cpe-1/[fd00::2]:443=[2001:db8::1]:443,proxy=v1",
            "udp:cpe-1/10.0.0.2:53=198.51.100.7:53",
            "udp:cpe-1/[::]:0=[2001:db8::1]:53,proxy=v2",
        ] {
            assert_eq!(text.parse::<Expose>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn each_bad_part_is_named() {
        for (text, part) in [
            ("tcp:m/10.0.0.2:80", "no '='"),
            ("m/10.0.0.2:80=198.51.100.7:80", "'m/10.0.0.2' is neither tcp nor udp"),
            ("sctp:m/10.0.0.2:80=198.51.100.7:80", "'sctp' is neither tcp nor udp"),
            ("udp:m/10.0.0.2:80=198.51.100.7:80,proxy=v1", "write proxy=v2"),
            ("tcp:10.0.0.2:80=198.51.100.7:80", "no '/'"),
            ("tcp:-m/10.0.0.2:80=198.51.100.7:80", "'-m'"),
            ("tcp:m/10.0.0.2=198.51.100.7:80", "'10.0.0.2'"),
            ("tcp:m/10.0.0.2:80=terminal:80", "'terminal:80'"),
            ("tcp:m/10.0.0.2:80=198.51.100.7:0", "port number is 0"),
            ("tcp:m/10.0.0.2:80=198.51.100.7:80,proxy=v3", "'proxy=v3'"),
        ] {
            let error = text.parse::<Expose>().unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
