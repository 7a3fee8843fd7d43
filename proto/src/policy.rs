//! Allow-lists of destinations: `CIDR[:PORTS]`.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::str::FromStr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// One allowed destination range: a network and port numbers.
///
/// Written `10.0.0.0/8`, `10.0.0.5:80`, `10.0.0.0/24:8000-8999`, `[fd00::/8]:22`, `fd00::/8`, `*`, `*:22`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct AllowRule {
    /// Networks; both zero-length ones for `*`.
    net: Option<IpNet>,
    ports: RangeInclusive<u16>,
}

/// The text is not a rule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "'{0}' is not an allow rule; write CIDR[:PORTS], as in 10.0.0.0/8, 192.168.1.5:22, [fd00::/8]:8000-8999 or *:443"
)]
pub struct BadRule(String);

impl AllowRule {
    /// Every port of a network.
    pub fn network(net: IpNet) -> Self {
        Self { net: Some(net.trunc()), ports: 0..=u16::MAX }
    }

    /// Whether this rule allows `to`. An IPv4-mapped IPv6 address counts as the IPv4 one.
    pub fn allows(&self, to: SocketAddr) -> bool {
        self.covers(to.ip()) && self.ports.contains(&to.port())
    }

    fn covers(&self, ip: IpAddr) -> bool {
        self.net.is_none_or(|net| net.contains(&ip.to_canonical()))
    }
}

/// Whether any of `rules` allows `to`.
pub fn allows(rules: &[AllowRule], to: SocketAddr) -> bool {
    rules.iter().any(|rule| rule.allows(to))
}

impl FromStr for AllowRule {
    type Err = BadRule;
    fn from_str(text: &str) -> Result<Self, BadRule> {
        let bad = || BadRule(text.to_owned());
        let (net, ports) = if let Some(rest) = text.strip_prefix('[') {
            let (net, tail) = rest.split_once(']').ok_or_else(bad)?;
            (net, if tail.is_empty() { None } else { Some(tail.strip_prefix(':').ok_or_else(bad)?) })
        } else if text.matches(':').count() == 1 {
            text.split_once(':').map(|(net, ports)| (net, Some(ports))).ok_or_else(bad)?
        } else {
            (text, None)
        };
        let net = match net {
            "*" => None,
            net => Some(
                net.parse::<IpNet>().or_else(|_| net.parse::<IpAddr>().map(IpNet::from)).map_err(|_| bad())?.trunc(),
            ),
        };
        let ports = match ports {
            None => 0..=u16::MAX,
            Some(ports) => {
                let (first, last) = ports.split_once('-').unwrap_or((ports, ports));
                let range = first.parse().map_err(|_| bad())?..=last.parse().map_err(|_| bad())?;
                if range.is_empty() {
                    return Err(bad());
                }
                range
            }
        };
        Ok(Self { net, ports })
    }
}

impl fmt::Display for AllowRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = self.ports == (0..=u16::MAX);
        match self.net {
            None => f.write_str("*")?,
            Some(IpNet::V6(net)) if !all => write!(f, "[{net}]")?,
            Some(net) => write!(f, "{net}")?,
        }
        match (all, self.ports.start() == self.ports.end()) {
            (true, _) => Ok(()),
            (false, true) => write!(f, ":{}", self.ports.start()),
            (false, false) => write!(f, ":{}-{}", self.ports.start(), self.ports.end()),
        }
    }
}

impl TryFrom<String> for AllowRule {
    type Error = BadRule;
    fn try_from(text: String) -> Result<Self, BadRule> {
        text.parse()
    }
}

impl From<AllowRule> for String {
    fn from(rule: AllowRule) -> Self {
        rule.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(text: &str) -> AllowRule {
        text.parse().unwrap()
    }

    #[test]
    fn rules_print_as_they_are_written() {
        for text in ["10.0.0.0/8", "10.0.0.5/32:80", "10.0.0.0/24:8000-8999", "[fd00::/8]:22", "fd00::/8", "*", "*:22"]
        {
            assert_eq!(rule(text).to_string(), text);
        }
    }

    #[test]
    fn rules_allow_on_both_sides_of_their_edges() {
        let r = rule("10.1.0.0/16:80-81");
        for (to, want) in [
            ("10.1.0.0:80", true),
            ("10.1.255.255:81", true),
            ("10.2.0.0:80", false),
            ("10.1.0.1:79", false),
            ("10.1.0.1:82", false),
            ("[::ffff:10.1.0.1]:80", true),
            ("[fd00::1]:80", false),
        ] {
            assert_eq!(r.allows(to.parse().unwrap()), want, "{to}");
        }
    }

    #[test]
    fn bad_rules_are_named() {
        for text in ["", "10.0.0.0/33", "10.0.0.1:", "10.0.0.1:99999", "10.0.0.1:9-8", "[fd00::/8", "host:80"] {
            assert_eq!(text.parse::<AllowRule>(), Err(BadRule(text.to_owned())));
        }
    }
}
