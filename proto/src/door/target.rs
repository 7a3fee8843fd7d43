//! Where a client wants to go: an address, or a name that is resolved in the private network; and the names that carry
//! the mediator in themselves.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use crate::MediatorId;
use crate::wire::NAME_LEN_MAX;

/// The last label of names that carry a mediator.
pub const DOMAIN: &str = "isthmus";

/// A host of a private network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Host {
    /// By its address.
    Ip(IpAddr),
    /// By a name that the mediator resolves.
    Name(Box<str>),
}

/// A host and a port number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The host.
    pub host: Host,
    /// The port number; 0 where a protocol leaves it open.
    pub port: u16,
}

impl Host {
    /// A host as people write it: an address (an IPv6 one may stand in brackets), or a name of 1 to 255 bytes without
    /// spaces and control characters.
    pub fn parse(text: &str) -> Option<Self> {
        let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
        if let Some(bare) = bare {
            return bare.parse().ok().map(|ip: std::net::Ipv6Addr| Self::Ip(IpAddr::V6(ip).to_canonical()));
        }
        if let Ok(ip) = text.parse::<IpAddr>() {
            return Some(Self::Ip(ip.to_canonical()));
        }
        let good = |c: char| !c.is_whitespace() && !c.is_control() && !matches!(c, '/' | '[' | ']' | ':' | '@');
        let fits = !text.is_empty() && text.len() <= NAME_LEN_MAX;
        (fits && text.chars().all(good)).then(|| Self::Name(text.into()))
    }

    /// Takes a name apart that carries its mediator: `10-0-0-5.cpe-1.isthmus`, `fd00--5.cpe-1.isthmus`,
    /// `printer.lan.cpe-1.isthmus`. The mediator is the label before the last one, so that one whose own name has a dot
    /// cannot be named in this way. `None`: the name carries none.
    pub fn mediator(&self) -> Option<(Self, MediatorId)> {
        let Self::Name(name) = self else { return None };
        let name = name.strip_suffix('.').unwrap_or(name);
        let (rest, domain) = name.rsplit_once('.')?;
        let (inner, mediator) = rest.rsplit_once('.')?;
        if !domain.eq_ignore_ascii_case(DOMAIN) {
            return None;
        }
        let mediator = mediator.parse().ok()?;
        let inner = dashed(inner).map(Self::Ip).or_else(|| Self::parse(inner))?;
        Some((inner, mediator))
    }
}

/// An address with dashes in place of dots or colons.
fn dashed(label: &str) -> Option<IpAddr> {
    let v4 = label.replace('-', ".").parse().map(IpAddr::V4);
    v4.or_else(|_| label.replace('-', ":").parse().map(IpAddr::V6)).ok().map(|ip| ip.to_canonical())
}

impl Target {
    /// The address, if the host is given by one.
    pub fn address(&self) -> Option<SocketAddr> {
        match &self.host {
            Host::Ip(ip) => Some(SocketAddr::new(*ip, self.port)),
            Host::Name(_) => None,
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Ip(ip) => SocketAddr::new(*ip, self.port).fmt(f),
            Host::Name(name) => write!(f, "{name}:{}", self.port),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Host {
        Host::Name(text.into())
    }

    #[test]
    fn addresses_are_told_from_names() {
        for (text, host) in [
            ("10.0.0.5", Some(Host::Ip("10.0.0.5".parse().unwrap()))),
            ("fd00::5", Some(Host::Ip("fd00::5".parse().unwrap()))),
            ("[fd00::5]", Some(Host::Ip("fd00::5".parse().unwrap()))),
            ("::ffff:10.0.0.5", Some(Host::Ip("10.0.0.5".parse().unwrap()))),
            ("printer", Some(name("printer"))),
            ("drucker.büro", Some(name("drucker.büro"))),
            ("10.0.0.5.6", Some(name("10.0.0.5.6"))),
            ("", None),
            ("a b", None),
            ("a\0", None),
            ("[printer]", None),
            ("printer:80", None),
        ] {
            assert_eq!(Host::parse(text), host, "{text}");
        }
        assert!(Host::parse(&"a".repeat(255)).is_some() && Host::parse(&"a".repeat(256)).is_none());
    }

    #[test]
    fn names_carry_their_mediators() {
        let ip = |text: &str| Some(Host::Ip(text.parse().unwrap()));
        for (text, inner) in [
            ("10-0-0-5.cpe-1.isthmus", ip("10.0.0.5")),
            ("10.0.0.5.cpe-1.isthmus", ip("10.0.0.5")),
            ("fd00--5.cpe-1.ISTHMUS.", ip("fd00::5")),
            ("fd00-1-2-3-4-5-6-7.cpe-1.isthmus", ip("fd00:1:2:3:4:5:6:7")),
            ("printer.cpe-1.isthmus", Some(name("printer"))),
            ("printer-2.lan.cpe-1.isthmus", Some(name("printer-2.lan"))),
            ("10-0-0.cpe-1.isthmus", Some(name("10-0-0"))),
            ("cpe-1.isthmus", None),
            (".cpe-1.isthmus", None),
            ("printer.-cpe.isthmus", None),
            ("printer.cpe-1.example", None),
        ] {
            let want = inner.map(|inner| (inner, "cpe-1".parse().unwrap()));
            assert_eq!(name(text).mediator(), want, "{text}");
        }
        assert_eq!(Host::Ip("10.0.0.5".parse().unwrap()).mediator(), None);
    }
}
