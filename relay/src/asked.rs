//! What mediators may ask the relay for: the policy of `--allow-publish` and `--allow-name`. Without a rule, nothing.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::str::FromStr;

use isthmus_proto::MediatorId;
use isthmus_proto::ask::{AskProto, PortAsk};
use isthmus_proto::door::name::HostName;

use crate::names::Pattern;
use crate::publish::{Proto, Publish};
use crate::trust::Glob;
use crate::upstream::Options;

/// Most ports that mediators have by asking, on the whole relay: each takes a descriptor.
pub const PORTS_TOTAL_MAX: usize = 4096;

/// Most names that mediators have by asking, on the whole relay: the table of names is made anew with each change.
pub const NAMES_TOTAL_MAX: usize = 16_384;

/// Which mediators may ask for which ports, written `GLOB=PROTO:[ADDR:]PORT[-PORT]`: `cpe-*=tcp:8000-8099`,
/// `shop-7=udp:192.0.2.1:53`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AllowPublish {
    mediators: Glob,
    proto: Proto,
    /// `None` for whatever address is asked for.
    addr: Option<IpAddr>,
    ports: RangeInclusive<u16>,
}

/// The text is no rule; the message says which part, and how to write it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}; write MEDIATOR-GLOB=PROTO:[ADDR:]PORT[-PORT], as in 'cpe-*=tcp:8000-8099' or shop-7=udp:192.0.2.1:53")]
pub struct BadAllowPublish(String);

impl AllowPublish {
    /// Where that mediator's ask listens if this rule covers it.
    fn listen(&self, mediator: &MediatorId, ask: &PortAsk) -> Option<SocketAddr> {
        let covers =
            self.proto == proto(ask.proto) && self.ports.contains(&ask.port) && self.mediators.matches(mediator);
        let addr = match (covers, self.addr, ask.addr) {
            (false, ..) => return None,
            (true, Some(rule), Some(asked)) if rule != asked => return None,
            (true, Some(addr), _) | (true, None, Some(addr)) => addr,
            (true, None, None) => Ipv6Addr::UNSPECIFIED.into(),
        };
        Some(SocketAddr::new(addr, ask.port))
    }
}

impl FromStr for AllowPublish {
    type Err = BadAllowPublish;
    fn from_str(text: &str) -> Result<Self, BadAllowPublish> {
        let bad = |part: &str, why: &dyn fmt::Display| BadAllowPublish(format!("'{part}': {why}"));
        let (mediators, rest) = text.split_once('=').ok_or_else(|| BadAllowPublish("there is no '='".into()))?;
        let mediators = mediators.trim().parse::<Glob>().map_err(|error| bad(mediators, &error))?;
        let (proto, rest) =
            rest.trim().split_once(':').ok_or_else(|| BadAllowPublish("there is no PROTO: before the port".into()))?;
        let proto = match proto {
            "tcp" => Proto::Tcp,
            "udp" => Proto::Udp,
            other => return Err(bad(other, &"neither tcp nor udp")),
        };
        let (addr, numbers) = rest.rsplit_once(':').map_or((None, rest), |(addr, numbers)| (Some(addr), numbers));
        let addr = addr.map(|addr| address(addr).ok_or_else(|| bad(addr, &"not an IP address (IPv6 in brackets)")));
        let (first, last) = numbers.split_once('-').unwrap_or((numbers, numbers));
        let ports = match (first.parse(), last.parse()) {
            (Ok(first), Ok(last)) if 0 < first && first <= last => first..=last,
            _ => return Err(bad(numbers, &"neither a port number nor a range of them")),
        };
        Ok(Self { mediators, proto, addr: addr.transpose()?, ports })
    }
}

fn address(text: &str) -> Option<IpAddr> {
    match text.strip_prefix('[') {
        Some(rest) => rest.strip_suffix(']')?.parse().ok().map(IpAddr::V6),
        None => text.parse().ok().map(IpAddr::V4),
    }
}

fn proto(asked: AskProto) -> Proto {
    match asked {
        AskProto::Tcp => Proto::Tcp,
        AskProto::Udp => Proto::Udp,
    }
}

/// What an ask is published as, if a rule covers it. Without an address, the first such rule gives it; if that has none
/// either, it is every address of the relay.
pub fn permitted(rules: &[AllowPublish], mediator: &MediatorId, ask: &PortAsk) -> Option<Publish> {
    let listen = rules.iter().find_map(|rule| rule.listen(mediator, ask))?;
    Some(Publish {
        proto: proto(ask.proto),
        listen,
        mediator: mediator.clone(),
        others: Vec::new(),
        host: ask.target.ip(),
        port: ask.target.port(),
        options: Options { proxy: ask.proxy },
    })
}

/// Which mediators may ask for which names, written `GLOB=NAME` or `GLOB=*.NAME`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AllowName {
    mediators: Glob,
    names: Pattern,
}

/// The text is no rule; the message says which part, and how to write it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}; write MEDIATOR-GLOB=NAME, as in shop-7=www.example.net or 'cpe-*=*.example.net'")]
pub struct BadAllowName(String);

impl FromStr for AllowName {
    type Err = BadAllowName;
    fn from_str(text: &str) -> Result<Self, BadAllowName> {
        let (mediators, names) = text.split_once('=').ok_or_else(|| BadAllowName("there is no '='".into()))?;
        let mediators = mediators.trim();
        let mediators = mediators.parse::<Glob>().map_err(|error| BadAllowName(format!("'{mediators}': {error}")))?;
        let names = names.trim();
        let names: Pattern = names.parse().map_err(|_| BadAllowName(format!("'{names}' is no name")))?;
        Ok(Self { mediators, names })
    }
}

/// Whether a rule lets that mediator have that name.
pub fn permits_name(rules: &[AllowName], mediator: &MediatorId, name: &HostName) -> bool {
    rules.iter().any(|rule| rule.names.covers(name) && rule.mediators.matches(mediator))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listen(rules: &[&str], mediator: &str, ask: &str) -> Option<String> {
        let rules: Vec<AllowPublish> = rules.iter().map(|rule| rule.parse().unwrap()).collect();
        permitted(&rules, &mediator.parse().unwrap(), &ask.parse().unwrap()).map(|publish| publish.to_string())
    }

    #[test]
    fn nothing_is_permitted_without_a_rule_and_what_a_rule_covers_is() {
        assert_eq!(listen(&[], "cpe-1", "tcp:8080=10.0.0.5:80"), None);
        let rules = ["cpe-*=tcp:8000-8099", "shop=udp:192.0.2.1:53", "shop=udp:[2001:db8::1]:53"];
        for (mediator, ask, want) in [
            ("cpe-1", "tcp:8000=10.0.0.5:80", Some("tcp:[::]:8000=cpe-1/10.0.0.5:80")),
            ("cpe-1", "tcp:8099=10.0.0.5:80,proxy=v2", Some("tcp:[::]:8099=cpe-1/10.0.0.5:80,proxy=v2")),
            ("cpe-1", "tcp:7999=10.0.0.5:80", None),
            ("cpe-1", "tcp:8100=10.0.0.5:80", None),
            ("cpe-1", "udp:8000=10.0.0.5:80", None),
            ("cpe-1", "tcp:127.0.0.1:8000=10.0.0.5:80", Some("tcp:127.0.0.1:8000=cpe-1/10.0.0.5:80")),
            ("shop", "tcp:8000=10.0.0.5:80", None),
            ("shop", "udp:53=10.0.0.5:53", Some("udp:192.0.2.1:53=shop/10.0.0.5:53")),
            ("shop", "udp:[2001:db8::1]:53=10.0.0.5:53", Some("udp:[2001:db8::1]:53=shop/10.0.0.5:53")),
            ("shop", "udp:0.0.0.0:53=10.0.0.5:53", None),
        ] {
            assert_eq!(listen(&rules, mediator, ask).as_deref(), want, "{mediator} {ask}");
        }
    }

    #[test]
    fn each_bad_part_of_a_rule_is_named() {
        for (text, part) in [
            ("tcp:80", "no '='"),
            ("a/b=tcp:80", "'a/b'"),
            ("a=80", "no PROTO:"),
            ("a=sctp:80", "'sctp'"),
            ("a=tcp:0", "'0'"),
            ("a=tcp:9-8", "'9-8'"),
            ("a=tcp:host:80", "'host'"),
            ("a=tcp:::1:80", "brackets"),
        ] {
            let error = text.parse::<AllowPublish>().unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
        for (text, part) in [("a", "no '='"), ("a/b=x.y", "'a/b'"), ("a=x_*", "'x_*'")] {
            assert!(text.parse::<AllowName>().unwrap_err().to_string().contains(part), "{text}");
        }
    }

    #[test]
    fn names_are_permitted_by_mediator_and_pattern() {
        let rules: Vec<AllowName> = ["cpe-*=*.a.test", "shop=www.b.test"].map(|rule| rule.parse().unwrap()).into();
        let permits = |id: &str, name: &str| permits_name(&rules, &id.parse().unwrap(), &name.parse().unwrap());
        assert!(permits("cpe-1", "x.a.test") && permits("shop", "WWW.b.test"));
        assert!(!permits("cpe-1", "a.test") && !permits("cpe-1", "www.b.test") && !permits("shop", "x.a.test"));
    }
}
