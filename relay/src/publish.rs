//! A published port: a port of the relay that leads to a host behind a mediator.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use isthmus_proto::MediatorId;
use isthmus_proto::door::proxy_protocol::Version;
use serde::{Deserialize, Serialize};

use crate::upstream::{Options, mediators};

mod bound;
mod kept;
mod spec;

pub use bound::{Bound, Origin, refusal};
pub(crate) use bound::{IN_USE_RETRIES, IN_USE_WAIT, retry_in_use, tcp_listener};
pub use kept::Kept;
pub use spec::{PORTS_MAX, Ports, PublishSpec};

/// Transport protocol of a published port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Proto {
    /// Streams.
    Tcp,
    /// Datagrams.
    Udp,
}

impl fmt::Display for Proto {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

impl FromStr for Proto {
    type Err = BadPublish;
    fn from_str(text: &str) -> Result<Self, BadPublish> {
        match text {
            "tcp" => Ok(Self::Tcp),
            "udp" => Ok(Self::Udp),
            other => Err(BadPublish(format!("'{other}' is neither tcp nor udp"))),
        }
    }
}

/// One published port, written `PROTO:ADDR:PORT=MEDIATOR/HOST:PORT`, IPv6 addresses in brackets:
/// `tcp:0.0.0.0:8080=cpe-1/10.0.0.5:80`, `udp:[::]:5353=cpe-1/[fd00::5]:53`. Several mediators share the visitors of
/// `cpe-1|cpe-2/10.0.0.5:80`; `,proxy=v2` at the end tells the host who they are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Publish {
    /// TCP or UDP, on both sides.
    pub proto: Proto,
    /// Where visitors come in.
    pub listen: SocketAddr,
    /// Whose private network the host is in. Its shard listens.
    pub mediator: MediatorId,
    /// Those who share the visitors with it; TCP only.
    pub others: Vec<MediatorId>,
    /// The host's address there.
    pub host: IpAddr,
    /// And its port number, never 0.
    pub port: u16,
    /// How visitors are led there.
    pub options: Options,
}

impl Publish {
    /// The host's address and port number.
    pub fn target(&self) -> SocketAddr {
        SocketAddr::new(self.host, self.port)
    }

    /// Whether every visitor is led to the one mediator as it comes.
    pub fn is_plain(&self) -> bool {
        self.others.is_empty() && self.options == Options::default()
    }

    /// All who share the visitors.
    pub fn mediators(&self) -> Vec<MediatorId> {
        std::iter::once(&self.mediator).chain(&self.others).cloned().collect()
    }
}

/// The text is not a published port; the message says which part, and how to write it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0}; write PROTO:ADDR:PORT=MEDIATOR/HOST:PORT, as in tcp:0.0.0.0:8080=cpe-1/10.0.0.5:80, IPv6 addresses in brackets, \
     several addresses with commas, several ports as 8000-8010, several mediators as cpe-1|cpe-2, and ,proxy=v2 at the end"
)]
pub struct BadPublish(String);

impl FromStr for Publish {
    type Err = BadPublish;
    fn from_str(text: &str) -> Result<Self, BadPublish> {
        let (front, back) = text.split_once('=').ok_or_else(|| BadPublish("there is no '='".into()))?;
        let (proto, listen) =
            front.split_once(':').ok_or_else(|| BadPublish("there is no PROTO: before the address".into()))?;
        let proto = proto.parse()?;
        let (mediator, target) =
            back.split_once('/').ok_or_else(|| BadPublish("there is no '/' between mediator and host".into()))?;
        let mut mediators = mediators(mediator).map_err(BadPublish)?;
        let mediator = mediators.remove(0);
        let (target, options) = Options::split(target).map_err(BadPublish)?;
        let listen = address(listen)?;
        let target = address(target)?;
        if target.port() == 0 {
            return Err(BadPublish("the host's port number is 0".into()));
        }
        if proto == Proto::Udp && !mediators.is_empty() {
            return Err(BadPublish("a UDP port leads to one mediator; publish one for each".into()));
        }
        if proto == Proto::Udp && options.proxy == Some(Version::V1) {
            return Err(BadPublish("the PROXY protocol's version 1 knows no UDP; write proxy=v2".into()));
        }
        let (host, port) = (target.ip(), target.port());
        Ok(Self { proto, listen, mediator, others: mediators, host, port, options })
    }
}

fn address(text: &str) -> Result<SocketAddr, BadPublish> {
    text.parse().map_err(|_| BadPublish(format!("'{text}' is not an IP address with a port number")))
}

impl fmt::Display for Publish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}={}", self.proto, self.listen, self.mediator)?;
        for other in &self.others {
            write!(f, "|{other}")?;
        }
        write!(f, "/{}{}", self.target(), self.options)
    }
}

impl TryFrom<String> for Publish {
    type Error = BadPublish;
    fn try_from(text: String) -> Result<Self, BadPublish> {
        text.parse()
    }
}

impl From<Publish> for String {
    fn from(publish: Publish) -> Self {
        publish.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_ports_print_as_they_are_written() {
        for text in [
            "tcp:0.0.0.0:8080=cpe-1/10.0.0.5:80",
            "udp:[::]:5353=cpe-1/[fd00::5]:53",
            "tcp:0.0.0.0:80=a|b|c/10.0.0.5:80,proxy=v1",
            "udp:[::]:53=a/[fd00::5]:53,proxy=v2",
        ] {
            assert_eq!(text.parse::<Publish>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn each_bad_part_is_named() {
        for (text, part) in [
            ("tcp:0.0.0.0:80", "no '='"),
            ("8080=cpe/10.0.0.1:80", "no PROTO:"),
            ("sctp:0.0.0.0:80=cpe/10.0.0.1:80", "'sctp'"),
            ("tcp:0.0.0.0=cpe/10.0.0.1:80", "'0.0.0.0'"),
            ("tcp::::80=cpe/10.0.0.1:80", "':::80'"),
            ("tcp:0.0.0.0:80=cpe", "no '/'"),
            ("tcp:0.0.0.0:80=-cpe/10.0.0.1:80", "'-cpe'"),
            ("tcp:0.0.0.0:80=cpe/host:80", "'host:80'"),
            ("tcp:0.0.0.0:80=cpe/10.0.0.1:0", "number is 0"),
            ("tcp:0.0.0.0:80=a|a/10.0.0.1:1", "named twice"),
            ("udp:0.0.0.0:80=a|b/10.0.0.1:1", "one mediator"),
            ("udp:0.0.0.0:80=a/10.0.0.1:1,proxy=v1", "write proxy=v2"),
            ("tcp:0.0.0.0:80=a/10.0.0.1:1,mtu=9", "'mtu=9'"),
        ] {
            let error = text.parse::<Publish>().unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
