//! The mediator's own allow-list: what its owner did not allow, the relay cannot make it do.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use ipnet::IpNet;
use isthmus_proto::hello::Interface;
use isthmus_proto::policy::{AllowRule, allows};

/// Which destinations may be reached and which addresses may be bound.
///
/// The owner's rules replace the default. The default is every port of the subnets that the mediator is attached to,
/// without loopback and link-local addresses. With or without rules, unspecified, multicast and broadcast addresses
/// are never reached: the system takes an unspecified destination for this machine itself, past every rule on
/// loopback, and the others reach hosts that no rule names.
#[derive(Clone, Debug)]
pub struct Policy {
    /// The owner's rules; the default holds while there are none.
    explicit: Vec<AllowRule>,
    /// The default: attached subnets, each once.
    attached: Vec<AllowRule>,
    /// Own addresses, all interfaces'.
    local: Vec<IpAddr>,
    /// Directed broadcast addresses of the attached IPv4 subnets.
    broadcasts: Vec<Ipv4Addr>,
}

impl Policy {
    /// A policy of the owner's rules, or of the default if there are none, on a machine with these interfaces
    /// (loopback left out, as [`crate::environment::interfaces`] gives them).
    pub fn new(allow: &[AllowRule], interfaces: &[Interface]) -> Self {
        let mut policy =
            Self { explicit: allow.to_vec(), attached: Vec::new(), local: Vec::new(), broadcasts: Vec::new() };
        policy.update(interfaces);
        policy
    }

    /// Takes the interfaces as they are now in place of the former ones. What was permitted before and is no longer
    /// is for the caller to close.
    pub fn update(&mut self, interfaces: &[Interface]) {
        self.attached.clear();
        self.local.clear();
        self.broadcasts.clear();
        for &net in interfaces.iter().flat_map(|interface| &interface.addresses) {
            self.local.push(net.addr().to_canonical());
            self.broadcasts.extend(directed_broadcast(net));
            let rule = AllowRule::network(net);
            if !only_by_rule(net.addr()) && !self.attached.contains(&rule) {
                self.attached.push(rule);
            }
        }
    }

    /// Takes the owner's rules as they are now in place of the former ones. What was permitted before and is no longer
    /// is for the caller to close.
    pub fn set_rules(&mut self, allow: &[AllowRule]) {
        self.explicit = allow.to_vec();
    }

    /// Whether a port that is bound to the local address `ip` is one that the owner has not allowed, or does not any
    /// more. An address that the machine has lost is none: it may come back, and nobody is reached by it meanwhile.
    pub fn forbids_bound(&self, ip: IpAddr) -> bool {
        ip.to_canonical().is_loopback() && !self.may_bind(ip)
    }

    /// Whether a packet or a connection may go to `to`. An IPv4-mapped IPv6 address counts as the IPv4 one.
    pub fn permits(&self, to: SocketAddr) -> bool {
        let ip = to.ip().to_canonical();
        if self.is_never(ip) {
            return false;
        }
        if self.explicit.is_empty() {
            !only_by_rule(ip) && allows(&self.attached, to)
        } else {
            allows(&self.explicit, to)
        }
    }

    /// Whether a port may be opened at the local address `ip`: unspecified, an interface's, or a loopback address that
    /// one of the owner's rules covers on any port (the port's own number is the system's choice, or a client's).
    pub fn may_bind(&self, ip: IpAddr) -> bool {
        let ip = ip.to_canonical();
        if ip.is_loopback() {
            self.explicit.iter().any(|rule| rule.allows(SocketAddr::new(ip, first_port(rule))))
        } else {
            ip.is_unspecified() || self.local.contains(&ip)
        }
    }

    /// The rules in force, for the report.
    pub fn effective(&self) -> Vec<AllowRule> {
        if self.explicit.is_empty() { self.attached.clone() } else { self.explicit.clone() }
    }

    fn is_never(&self, ip: IpAddr) -> bool {
        ip.is_unspecified()
            || ip.is_multicast()
            || matches!(ip, IpAddr::V4(v4) if v4.is_broadcast() || self.broadcasts.contains(&v4))
    }
}

/// Addresses that only the owner's rule can allow: loopback holds this machine's private services, link-local
/// addresses such things as a cloud's metadata service with its credentials.
fn only_by_rule(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => v4.is_loopback() || v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_loopback() || v6.is_unicast_link_local(),
    }
}

/// The address that reaches a whole subnet; /31 and /32 have none (RFC 3021).
fn directed_broadcast(net: IpNet) -> Option<Ipv4Addr> {
    match net {
        IpNet::V4(v4) if v4.prefix_len() <= 30 => Some(v4.broadcast()),
        IpNet::V4(_) | IpNet::V6(_) => None,
    }
}

/// A port number that `rule` allows. A rule tells its ports in its text alone; a text without ports ends in a prefix
/// length (`/8`, or `:1/128` in IPv6) or `*`, none of which is a number.
fn first_port(rule: &AllowRule) -> u16 {
    let text = rule.to_string();
    let ports = text.rsplit_once(':').map_or("", |(_, ports)| ports);
    ports.split('-').next().and_then(|first| first.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(allow: &[&str], addresses: &[&str]) -> Policy {
        Policy::new(&rules(allow), &interfaces(addresses))
    }

    fn rules(texts: &[&str]) -> Vec<AllowRule> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn interfaces(addresses: &[&str]) -> Vec<Interface> {
        let addresses = addresses.iter().map(|text| text.parse().unwrap()).collect();
        vec![Interface { name: "eth0".into(), mtu: 1500, addresses }]
    }

    #[track_caller]
    fn check(policy: &Policy, cases: &[(&str, bool)]) {
        for (to, want) in cases {
            assert_eq!(policy.permits(to.parse().unwrap()), *want, "{to}");
        }
    }

    const ATTACHED: &[&str] =
        &["10.1.2.3/24", "fd00:1::3/64", "169.254.7.7/16", "fe80::1/64", "127.0.0.9/8", "::1/128"];

    #[test]
    fn default_is_the_attached_subnets_on_all_ports() {
        check(
            &policy(&[], ATTACHED),
            &[
                ("10.1.2.0:1", true),
                ("10.1.2.3:22", true),
                ("10.1.2.254:65535", true),
                ("10.1.1.255:80", false),
                ("10.1.3.0:80", false),
                ("[fd00:1::ffff]:80", true),
                ("[fd00:1:0:1::]:80", false),
                ("8.8.8.8:53", false),
            ],
        );
    }

    #[test]
    fn default_has_no_loopback_and_no_link_local_even_on_an_interface() {
        check(
            &policy(&[], ATTACHED),
            &[
                ("127.0.0.1:80", false),
                ("127.0.0.9:80", false),
                ("[::1]:80", false),
                ("169.254.7.8:80", false),
                ("169.254.169.254:80", false),
                ("[fe80::2]:80", false),
            ],
        );
    }

    #[test]
    fn default_subnet_that_spans_everything_still_has_no_loopback_and_no_link_local() {
        let wide = policy(&[], &["10.1.2.3/0", "fd00::1/0"]);
        check(
            &wide,
            &[
                ("8.8.8.8:53", true),
                ("127.0.0.1:80", false),
                ("169.254.169.254:80", false),
                ("[2001:db8::1]:80", true),
                ("[::1]:80", false),
                ("[fe80::2]:80", false),
            ],
        );
    }

    #[test]
    fn mapped_addresses_count_as_ipv4() {
        check(
            &policy(&[], ATTACHED),
            &[
                ("[::ffff:10.1.2.9]:80", true),
                ("[::ffff:10.1.3.9]:80", false),
                ("[::ffff:127.0.0.1]:80", false),
                ("[::ffff:0.0.0.0]:80", false),
                ("[::ffff:169.254.169.254]:80", false),
            ],
        );
        check(&policy(&["*"], ATTACHED), &[("[::ffff:0.0.0.0]:80", false), ("[::ffff:255.255.255.255]:80", false)]);
        // A rule for IPv6 alone opens no IPv4 by way of the mapped form.
        check(&policy(&["::/0"], ATTACHED), &[("[2001:db8::1]:80", true), ("[::ffff:10.1.2.9]:80", false)]);
    }

    #[test]
    fn rules_replace_the_default() {
        let narrow = policy(&["192.168.0.0/16:80-81", "[fd00:9::/32]:22"], ATTACHED);
        check(
            &narrow,
            &[
                ("10.1.2.9:80", false),
                ("192.168.4.4:80", true),
                ("192.168.4.4:81", true),
                ("192.168.4.4:79", false),
                ("192.168.4.4:82", false),
                ("[fd00:9::1]:22", true),
                ("[fd00:9::1]:23", false),
            ],
        );
        assert_eq!(narrow.effective(), rules(&["192.168.0.0/16:80-81", "[fd00:9::/32]:22"]));
    }

    #[test]
    fn a_rule_can_allow_loopback_and_link_local() {
        check(
            &policy(&["127.0.0.1:8080", "::1", "169.254.169.254:80"], ATTACHED),
            &[
                ("127.0.0.1:8080", true),
                ("[::ffff:127.0.0.1]:8080", true),
                ("127.0.0.1:8081", false),
                ("127.0.0.2:8080", false),
                ("[::1]:1", true),
                ("169.254.169.254:80", true),
                ("169.254.169.253:80", false),
            ],
        );
    }

    #[test]
    fn unspecified_multicast_and_broadcast_are_never_reached() {
        for allow in [&[][..], &["*"], &["0.0.0.0/0", "::/0"], &["0.0.0.0", "::", "224.0.0.0/4", "10.1.2.255"]] {
            check(
                &policy(allow, &["10.1.2.3/24", "0.0.0.0/0", "::/0"]),
                &[
                    ("0.0.0.0:80", false),
                    ("[::]:80", false),
                    ("224.0.0.1:80", false),
                    ("239.255.255.255:80", false),
                    ("[ff02::1]:80", false),
                    ("255.255.255.255:67", false),
                    ("10.1.2.255:67", false),
                    ("[::ffff:10.1.2.255]:67", false),
                ],
            );
        }
    }

    #[test]
    fn both_addresses_of_a_point_to_point_subnet_are_hosts() {
        check(&policy(&[], &["10.9.0.0/31"]), &[("10.9.0.0:1", true), ("10.9.0.1:1", true), ("10.9.0.2:1", false)]);
        check(&policy(&[], &["10.9.0.1/30"]), &[("10.9.0.2:1", true), ("10.9.0.3:1", false)]);
    }

    #[test]
    fn effective_default_names_each_subnet_once() {
        let both = policy(&[], &["10.1.2.3/24", "10.1.2.4/24", "fd00:1::3/64", "fe80::1/64"]);
        assert_eq!(both.effective(), rules(&["10.1.2.0/24", "fd00:1::/64"]));
        assert_eq!(policy(&[], &[]).effective(), []);
    }

    #[test]
    fn update_forgets_the_former_interfaces() {
        let mut moved = policy(&[], &["10.1.2.3/24"]);
        moved.update(&interfaces(&["10.7.0.3/16"]));
        check(&moved, &[("10.1.2.9:80", false), ("10.7.200.9:80", true), ("10.7.255.255:80", false)]);
        assert!(!moved.may_bind("10.1.2.3".parse().unwrap()));
        assert!(moved.may_bind("10.7.0.3".parse().unwrap()));
        assert_eq!(moved.effective(), rules(&["10.7.0.0/16"]));
        let mut ruled = policy(&["10.0.0.0/8"], &["10.1.2.3/24"]);
        ruled.update(&interfaces(&["192.168.0.3/16"]));
        assert_eq!(ruled.effective(), rules(&["10.0.0.0/8"]));
    }

    #[test]
    fn new_rules_take_the_place_of_the_former_ones() {
        let mut policy = policy(&["127.0.0.0/8"], &["10.1.2.3/24"]);
        let (loopback, gone) = ("127.0.0.1".parse().unwrap(), "10.1.2.99".parse().unwrap());
        assert!(!policy.forbids_bound(loopback) && !policy.forbids_bound(gone));
        policy.set_rules(&rules(&["10.9.0.0/16"]));
        check(&policy, &[("127.0.0.1:80", false), ("10.9.0.1:80", true), ("10.1.2.9:80", false)]);
        assert!(policy.forbids_bound(loopback) && !policy.forbids_bound(gone));
        policy.set_rules(&[]);
        check(&policy, &[("127.0.0.1:80", false), ("10.9.0.1:80", false), ("10.1.2.9:80", true)]);
    }

    #[test]
    fn binds_are_limited_to_local_addresses() {
        let default = policy(&[], &["10.1.2.3/24", "fd00:1::3/64", "fe80::1/64", "127.0.0.9/8"]);
        for (ip, want) in [
            ("0.0.0.0", true),
            ("::", true),
            ("10.1.2.3", true),
            ("::ffff:10.1.2.3", true),
            ("10.1.2.4", false),
            ("fd00:1::3", true),
            ("fd00:1::4", false),
            ("fe80::1", true),
            ("127.0.0.1", false),
            ("::1", false),
            ("::ffff:127.0.0.1", false),
            ("127.0.0.9", false),
            ("224.0.0.1", false),
            ("255.255.255.255", false),
        ] {
            assert_eq!(default.may_bind(ip.parse().unwrap()), want, "{ip}");
        }
        assert!(!policy(&["*"], &["10.1.2.3/24"]).may_bind("10.1.2.4".parse().unwrap()));
    }

    #[test]
    fn a_loopback_bind_needs_a_rule_whatever_its_ports() {
        for (rule, v4, v6) in [
            ("10.0.0.0/8", false, false),
            ("127.0.0.1", true, false),
            ("127.0.0.0/8:8080", true, false),
            ("127.0.0.0/8:8000-8999", true, false),
            ("127.0.0.2:80", false, false),
            ("::1", false, true),
            ("[::1]:22", false, true),
            ("[::/0]:22-23", false, true),
            ("*", true, true),
            ("*:443", true, true),
        ] {
            let ruled = policy(&[rule], &["10.1.2.3/24"]);
            assert_eq!(ruled.may_bind("127.0.0.1".parse().unwrap()), v4, "{rule}");
            assert_eq!(ruled.may_bind("::1".parse().unwrap()), v6, "{rule}");
        }
    }
}
