//! The setting of a proxy's port: SOCKS5 and HTTP CONNECT for clients that know nothing of Isthmus.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

use isthmus_proto::MediatorId;
use serde::{Deserialize, Serialize};

/// A port for SOCKS5 and HTTP CONNECT, written `ADDR:PORT`, or `ADDR:PORT=MEDIATOR` for one mediator's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ProxyPort {
    /// Where clients come in.
    pub listen: SocketAddr,
    /// The only mediator that it leads to; without one, the client names it.
    pub mediator: Option<MediatorId>,
}

/// The text is not a proxy's port.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}; write ADDR:PORT or ADDR:PORT=MEDIATOR, as in 0.0.0.0:1080 or 127.0.0.1:1081=cpe-1")]
pub struct BadProxyPort(String);

impl ProxyPort {
    /// Whether clients need no token: only for one mediator, and only where `everywhere` is allowed or nobody but this
    /// machine can come.
    pub fn is_open(&self, everywhere: bool) -> bool {
        self.mediator.is_some() && (everywhere || self.listen.ip().to_canonical().is_loopback())
    }
}

impl FromStr for ProxyPort {
    type Err = BadProxyPort;
    fn from_str(text: &str) -> Result<Self, BadProxyPort> {
        let (listen, mediator) = match text.split_once('=') {
            Some((listen, mediator)) => (listen, Some(mediator)),
            None => (text, None),
        };
        let address = listen.parse();
        let listen =
            address.map_err(|_| BadProxyPort(format!("'{listen}' is not an IP address with a port number")))?;
        let mediator =
            mediator.map(|id| id.parse().map_err(|error| BadProxyPort(format!("'{id}': {error}")))).transpose()?;
        Ok(Self { listen, mediator })
    }
}

impl fmt::Display for ProxyPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.listen)?;
        self.mediator.as_ref().map_or(Ok(()), |id| write!(f, "={id}"))
    }
}

impl TryFrom<String> for ProxyPort {
    type Error = BadProxyPort;
    fn try_from(text: String) -> Result<Self, BadProxyPort> {
        text.parse()
    }
}

impl From<ProxyPort> for String {
    fn from(port: ProxyPort) -> Self {
        port.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_print_as_they_are_written_and_only_a_mediators_own_is_open() {
        for (text, here, everywhere) in [
            ("0.0.0.0:1080", false, false),
            ("127.0.0.1:1080", false, false),
            ("127.0.0.1:1081=cpe-1", true, true),
            ("[::1]:1081=cpe-1", true, true),
            ("[::]:1081=cpe-1", false, true),
        ] {
            let port: ProxyPort = text.parse().unwrap();
            assert_eq!(port.to_string(), text);
            assert_eq!((port.is_open(false), port.is_open(true)), (here, everywhere), "{text}");
        }
    }

    #[test]
    fn bad_ports_are_named() {
        for (text, part) in [("1080", "'1080'"), ("127.0.0.1:1=-x", "'-x'"), ("127.0.0.1:1=", "''")] {
            let error = text.parse::<ProxyPort>().unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }
}
