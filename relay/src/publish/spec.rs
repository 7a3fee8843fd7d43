//! Several published ports in one text: a range of port numbers, several addresses to listen on.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::str::FromStr;

use super::{BadPublish, Proto, Publish};

/// Most ports of one text. Each takes a descriptor.
pub const PORTS_MAX: usize = 4096;

/// The ports that visitors come to, written `PROTO:ADDR[,ADDR]...:PORT[-PORT]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ports {
    proto: Proto,
    addresses: Vec<IpAddr>,
    numbers: RangeInclusive<u16>,
}

impl Ports {
    /// Each port by itself.
    pub fn iter(&self) -> impl Iterator<Item = (Proto, SocketAddr)> + '_ {
        let proto = self.proto;
        let of = move |addr: IpAddr| self.numbers.clone().map(move |number| (proto, SocketAddr::new(addr, number)));
        self.addresses.iter().copied().flat_map(of)
    }
}

impl FromStr for Ports {
    type Err = BadPublish;
    fn from_str(text: &str) -> Result<Self, BadPublish> {
        let (proto, rest) =
            text.split_once(':').ok_or_else(|| BadPublish("there is no PROTO: before the address".into()))?;
        let proto = proto.parse()?;
        let (addresses, numbers) = rest
            .rsplit_once(':')
            .ok_or_else(|| BadPublish(format!("'{rest}' is not an IP address with a port number")))?;
        let addresses: Vec<IpAddr> = addresses.split(',').map(address).collect::<Result<_, _>>()?;
        if addresses.iter().collect::<BTreeSet<_>>().len() != addresses.len() {
            return Err(BadPublish("an address is named twice".into()));
        }
        let numbers = range(numbers)?;
        if addresses.len() * numbers.len() > PORTS_MAX {
            return Err(BadPublish(format!("these are more than {PORTS_MAX} ports")));
        }
        Ok(Self { proto, addresses, numbers })
    }
}

impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.proto)?;
        for (n, addr) in self.addresses.iter().enumerate() {
            let comma = if n == 0 { "" } else { "," };
            match addr {
                IpAddr::V4(v4) => write!(f, "{comma}{v4}")?,
                IpAddr::V6(v6) => write!(f, "{comma}[{v6}]")?,
            }
        }
        write!(f, ":{}", self.numbers.start())?;
        if self.numbers.len() > 1 { write!(f, "-{}", self.numbers.end()) } else { Ok(()) }
    }
}

/// One or more published ports, written `PROTO:ADDR[,ADDR]...:PORT[-PORT]=MEDIATOR/HOST:PORT[-PORT]`. The host's port
/// is the same for all, or a range as long as the first one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublishSpec {
    text: String,
    publishes: Vec<Publish>,
}

impl PublishSpec {
    /// Each published port by itself, at least one.
    pub fn publishes(&self) -> &[Publish] {
        &self.publishes
    }
}

impl FromStr for PublishSpec {
    type Err = BadPublish;
    fn from_str(text: &str) -> Result<Self, BadPublish> {
        let (front, back) = text.split_once('=').ok_or_else(|| BadPublish("there is no '='".into()))?;
        let ports: Ports = front.parse()?;
        let (mediator, back) =
            back.split_once('/').ok_or_else(|| BadPublish("there is no '/' between mediator and host".into()))?;
        // What follows the target, if anything, is the same for each.
        let (target, options) = back.split_at(back.find([',', ' ']).unwrap_or(back.len()));
        let (host, numbers) = target
            .rsplit_once(':')
            .ok_or_else(|| BadPublish(format!("'{target}' is not an IP address with a port number")))?;
        let targets = range(numbers)?;
        if targets.len() != 1 && targets.len() != ports.numbers.len() {
            return Err(BadPublish(format!(
                "{} ports cannot lead to {} ports of the host",
                ports.numbers.len(),
                targets.len()
            )));
        }
        let one = |(proto, listen): (Proto, SocketAddr)| {
            let number = match targets.len() {
                1 => *targets.start(),
                _ => targets.start() + (listen.port() - ports.numbers.start()),
            };
            format!("{proto}:{listen}={mediator}/{host}:{number}{options}").parse()
        };
        let publishes = ports.iter().map(one).collect::<Result<_, _>>()?;
        Ok(Self { text: text.to_owned(), publishes })
    }
}

impl fmt::Display for PublishSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

fn address(text: &str) -> Result<IpAddr, BadPublish> {
    let inner = match text.strip_prefix('[') {
        Some(rest) => rest.strip_suffix(']').filter(|inner| inner.contains(':')),
        None => Some(text).filter(|text| !text.contains(':')),
    };
    inner
        .and_then(|inner| inner.parse().ok())
        .ok_or_else(|| BadPublish(format!("'{text}' is not an IP address (IPv6 in brackets)")))
}

fn range(text: &str) -> Result<RangeInclusive<u16>, BadPublish> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    match (first.parse::<u16>(), last.parse::<u16>()) {
        // Port 0 asks for a free one: there is no range of those.
        (Ok(first), Ok(last)) if first < last && first > 0 => Ok(first..=last),
        (Ok(first), Ok(last)) if first == last => Ok(first..=last),
        _ => Err(BadPublish(format!("'{text}' is neither a port number nor a range of them such as 8000-8010"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str) -> Vec<String> {
        text.parse::<PublishSpec>().unwrap().publishes().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn one_port_is_a_spec_too() {
        let text = "udp:[::]:5353=cpe-1/[fd00::5]:53";
        assert_eq!(shown(text), [text]);
        assert_eq!(text.parse::<PublishSpec>().unwrap().to_string(), text);
    }

    #[test]
    fn range_leads_to_one_port_or_to_as_many() {
        assert_eq!(
            shown("tcp:0.0.0.0:8000-8001=m/10.0.0.5:80"),
            ["tcp:0.0.0.0:8000=m/10.0.0.5:80", "tcp:0.0.0.0:8001=m/10.0.0.5:80"]
        );
        assert_eq!(
            shown("tcp:127.0.0.1,[::1]:8000-8001=m/10.0.0.5:90-91"),
            [
                "tcp:127.0.0.1:8000=m/10.0.0.5:90",
                "tcp:127.0.0.1:8001=m/10.0.0.5:91",
                "tcp:[::1]:8000=m/10.0.0.5:90",
                "tcp:[::1]:8001=m/10.0.0.5:91",
            ]
        );
        let whole = "tcp:0.0.0.0:61440-65535=m/10.0.0.5:80".parse::<PublishSpec>().unwrap();
        assert_eq!(whole.publishes().len(), PORTS_MAX);
    }

    #[test]
    fn each_bad_part_is_named() {
        for (text, part) in [
            ("tcp:0.0.0.0:80", "no '='"),
            ("0.0.0.0:80=m/10.0.0.5:80", "'0.0.0.0' is neither tcp nor udp"),
            ("80=m/10.0.0.5:80", "no PROTO:"),
            ("tcp:0.0.0.0=m/10.0.0.5:80", "'0.0.0.0' is not an IP address with"),
            ("tcp:::1:80=m/10.0.0.5:80", "brackets"),
            ("tcp:[10.0.0.1]:80=m/10.0.0.5:80", "brackets"),
            ("tcp:0.0.0.0,0.0.0.0:80=m/10.0.0.5:80", "twice"),
            ("tcp:0.0.0.0:90-80=m/10.0.0.5:80", "'90-80'"),
            ("tcp:0.0.0.0:0-80=m/10.0.0.5:80", "'0-80'"),
            ("tcp:0.0.0.0:80-82=m/10.0.0.5:80-81", "3 ports cannot lead to 2"),
            ("tcp:0.0.0.0:61439-65535=m/10.0.0.5:80", "more than 4096"),
            ("tcp:0.0.0.0:80=m", "no '/'"),
            ("tcp:0.0.0.0:80=m/10.0.0.5", "'10.0.0.5'"),
            ("tcp:0.0.0.0:80=m/host:80", "'host:80'"),
        ] {
            let error = text.parse::<PublishSpec>().unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn ports_print_as_they_are_written() {
        for text in ["tcp:127.0.0.1,[::1]:8000-8001", "udp:[::]:53"] {
            assert_eq!(text.parse::<Ports>().unwrap().to_string(), text);
        }
    }
}
