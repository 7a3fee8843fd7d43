//! The mediator's environment: what the report tells the relay, and a watch that says when to look again.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use ipnet::IpNet;
use isthmus_proto::hello::{Interface, Report};
use nix::net::if_::InterfaceFlags;
use nix::sys::socket::SockaddrStorage;
use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, bind, recv, socket_with};

use crate::policy::Policy;

/// Most addresses, of all interfaces together, that are reported: a report must fit one frame, token and rules
/// included. Link-local addresses, which a machine with many containers has by the thousand, are left out first.
pub const ADDRESSES_MAX: usize = 64;

/// Most gateways that are reported.
pub const GATEWAYS_MAX: usize = 16;

/// Most notifications that one [`Watch::drain`] takes; the rest keeps the socket readable.
const NOTIFICATIONS_PER_DRAIN_MAX: usize = 256;

/// Gathers the report, after it gave the policy the interfaces as they are now. What cannot be read but for the
/// addresses is left empty or 0.
///
/// Two reports of an unchanged environment are equal: whatever the system lists is put in an order of its own.
///
/// # Errors
/// The system's, when it does not tell the addresses; the policy is then as it was.
pub fn gather(policy: &mut Policy, service: &str) -> io::Result<Report> {
    let interfaces = interfaces()?;
    policy.update(&interfaces);
    let uname = rustix::system::uname();
    Ok(Report {
        interfaces,
        gateways: gateways(),
        os: format!("{} {}", uname.sysname().to_string_lossy(), uname.release().to_string_lossy()),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        hostname: uname.nodename().to_string_lossy().into_owned(),
        policy: policy.effective(),
        service: service.to_owned(),
        offers: Vec::new(),
        asks: Vec::new(),
    })
}

/// Every interface that has an address, in the order of names, but for loopback; addresses with their prefix lengths.
/// At most [`ADDRESSES_MAX`] addresses.
///
/// # Errors
/// The system's, when it does not tell the addresses.
pub fn interfaces() -> io::Result<Vec<Interface>> {
    let mut found = Vec::new();
    for entry in nix::ifaddrs::getifaddrs()? {
        if entry.flags.contains(InterfaceFlags::IFF_LOOPBACK) {
            continue;
        }
        if let Some(net) = network(entry.address.as_ref(), entry.netmask.as_ref()) {
            found.push((entry.interface_name, net));
        }
    }
    Ok(by_interface(found, mtu))
}

/// A netlink socket that hears when links, addresses or routes change.
///
/// It tells only that something changed: the event loop gathers again and compares, so that nothing depends on the
/// notifications' content, or on none being lost.
pub struct Watch {
    socket: OwnedFd,
}

impl Watch {
    /// Begins to listen; changes from here on are heard.
    ///
    /// # Errors
    /// The system's, when it has no netlink sockets (some sandboxes) or no descriptors left.
    pub fn new() -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        // No protocol is protocol 0, NETLINK_ROUTE.
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?;
        bind(&socket, &SocketAddrNetlink::new(0, GROUPS))?;
        Ok(Self { socket })
    }

    /// Takes what has come, and says whether anything has. Never blocks. The descriptor stays readable where much came.
    pub fn drain(&mut self) -> bool {
        let mut changed = false;
        // A longer notification is cut; its content is not read.
        let mut buffer = [0u8; 64];
        for _ in 0..NOTIFICATIONS_PER_DRAIN_MAX {
            match recv(&self.socket, &mut buffer, RecvFlags::empty()) {
                // An overrun: notifications were lost, which is itself the news of a change.
                Ok(_) | Err(Errno::NOBUFS) => changed = true,
                Err(Errno::INTR) => {}
                Err(_) => break,
            }
        }
        changed
    }
}

impl AsFd for Watch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// `RTMGRP_LINK | _IPV4_IFADDR | _IPV4_ROUTE | _IPV6_IFADDR | _IPV6_ROUTE` (linux/rtnetlink.h).
const GROUPS: u32 = 0x1 | 0x10 | 0x40 | 0x100 | 0x400;

/// An address and its mask; `None` for other families.
fn network(address: Option<&SockaddrStorage>, mask: Option<&SockaddrStorage>) -> Option<IpNet> {
    let (ip, mask) = (ip(address?)?, ip(mask?)?);
    IpNet::with_netmask(ip, mask).ok()
}

fn ip(address: &SockaddrStorage) -> Option<IpAddr> {
    let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
    v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
}

fn by_interface(mut found: Vec<(String, IpNet)>, mtu: impl Fn(&str) -> u32) -> Vec<Interface> {
    let link_local = |net: &IpNet| match net.addr() {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    found.sort_by(|(a_name, a), (b_name, b)| (link_local(a), a_name, a).cmp(&(link_local(b), b_name, b)));
    found.dedup();
    if found.len() > ADDRESSES_MAX {
        let left_out = found.len() - ADDRESSES_MAX;
        tracing::warn!(left_out, "more than {ADDRESSES_MAX} addresses; allow the others' subnets with --allow");
        found.truncate(ADDRESSES_MAX);
    }
    let mut named: BTreeMap<String, Vec<IpNet>> = BTreeMap::new();
    for (name, net) in found {
        named.entry(name).or_default().push(net);
    }
    named.into_iter().map(|(name, addresses)| Interface { mtu: mtu(&name), name, addresses }).collect()
}

/// An interface's MTU in bytes; 0 where it cannot be read.
fn mtu(name: &str) -> u32 {
    // The second one is for sandboxes without /sys. It is the MTU of IPv6, which a router can lower, so not the first.
    [format!("/sys/class/net/{name}/mtu"), format!("/proc/sys/net/ipv6/conf/{name}/mtu")]
        .into_iter()
        .find_map(|path| fs::read_to_string(path).ok()?.trim().parse().ok())
        .unwrap_or(0)
}

/// Default gateways, IPv4 before IPv6, each by falling preference.
fn gateways() -> Vec<IpAddr> {
    let v4 = fs::read_to_string("/proc/net/route").unwrap_or_default();
    let v6 = fs::read_to_string("/proc/net/ipv6_route").unwrap_or_default();
    let mut gateways = Vec::new();
    for gateway in default_gateways_v4(&v4).into_iter().chain(default_gateways_v6(&v6)) {
        if gateways.len() < GATEWAYS_MAX && !gateways.contains(&gateway) {
            gateways.push(gateway);
        }
    }
    gateways
}

/// Route flags: the route is usable, and has a gateway (linux/route.h).
const RTF_UP_GATEWAY: u32 = 0x1 | 0x2;

/// From the text of `/proc/net/route`: a heading, then `Iface Destination Gateway Flags RefCnt Use Metric Mask ...`,
/// addresses as hexadecimal words in the machine's byte order. Other lines are passed over.
fn default_gateways_v4(text: &str) -> Vec<IpAddr> {
    by_metric(text.lines().skip(1).filter_map(|line| {
        let mut fields = line.split_ascii_whitespace().skip(1);
        let (destination, gateway, flags) = (hex(fields.next()?)?, hex(fields.next()?)?, hex(fields.next()?)?);
        let metric: u32 = fields.nth(2)?.parse().ok()?;
        let mask = hex(fields.next()?)?;
        let good = destination == 0 && mask == 0 && gateway != 0 && flags & RTF_UP_GATEWAY == RTF_UP_GATEWAY;
        good.then(|| (metric, IpAddr::from(Ipv4Addr::from(gateway.to_ne_bytes()))))
    }))
}

/// From the text of `/proc/net/ipv6_route`: `destination length source length gateway metric refcnt use flags iface`,
/// all hexadecimal, addresses in network order. Other lines are passed over.
fn default_gateways_v6(text: &str) -> Vec<IpAddr> {
    by_metric(text.lines().filter_map(|line| {
        let mut fields = line.split_ascii_whitespace();
        let (destination, length) = (hex128(fields.next()?)?, hex(fields.next()?)?);
        let (gateway, metric) = (hex128(fields.nth(2)?)?, hex(fields.next()?)?);
        let flags = hex(fields.nth(2)?)?;
        let good = destination == 0 && length == 0 && gateway != 0 && flags & RTF_UP_GATEWAY == RTF_UP_GATEWAY;
        good.then(|| (metric, IpAddr::from(Ipv6Addr::from(gateway))))
    }))
}

fn by_metric(routes: impl Iterator<Item = (u32, IpAddr)>) -> Vec<IpAddr> {
    let mut routes: Vec<_> = routes.collect();
    routes.sort();
    routes.into_iter().map(|(_, gateway)| gateway).collect()
}

fn hex(text: &str) -> Option<u32> {
    u32::from_str_radix(text, 16).ok()
}

fn hex128(text: &str) -> Option<u128> {
    u128::from_str_radix(text, 16).ok()
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    use super::*;

    fn ips(texts: &[&str]) -> Vec<IpAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[cfg(target_endian = "little")]
    #[test]
    fn ipv4_gateways_come_from_usable_default_routes_by_metric() {
        let text = "\
Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
wlan0\t00000000\t0101A8C0\t0003\t0\t0\t600\t00000000\t0\t0\t0
eth0\t00000000\t0102000A\t0003\t0\t0\t100\t00000000\t0\t0\t0
eth0\t0002000A\t00000000\t0001\t0\t0\t100\t00FFFFFF\t0\t0\t0
eth1\t00000000\t0103000A\t0002\t0\t0\t1\t00000000\t0\t0\t0
eth2\t00000000\t0104000A\t0003\t0\t0\t1\t00000080\t0\t0\t0
tun0\t00000000\t00000000\t0001\t0\t0\t50\t00000000\t0\t0\t0
eth3\t0005000A\t0105000A\t0003\t0\t0\t1\t00FFFFFF\t0\t0\t0
";
        assert_eq!(default_gateways_v4(text), ips(&["10.0.2.1", "192.168.1.1"]));
    }

    #[test]
    fn ipv6_gateways_come_from_usable_default_routes_by_metric() {
        let none = "00000000000000000000000000000000";
        let text = format!(
            "\
{none} 00 {none} 00 fe800000000000000000000000000001 00000400 00000001 00000000 00450003     eth0
{none} 00 {none} 00 20010db8000000000000000000000001 00000064 00000001 00000000 00000003     eth1
{none} 00 {none} 00 {none} ffffffff 00000001 00000000 00200200       lo
{none} 00 {none} 00 fe800000000000000000000000000002 00000001 00000001 00000000 00000002     eth2
20010db8000000010000000000000000 40 {none} 00 fe800000000000000000000000000003 00000001 00000001 00000000 00000003 eth0
{none} 03 {none} 00 fe800000000000000000000000000004 00000001 00000001 00000000 00000003     eth0
"
        );
        assert_eq!(default_gateways_v6(&text), ips(&["2001:db8::1", "fe80::1"]));
    }

    #[test]
    fn strange_route_lines_are_passed_over() {
        for text in
            ["", "\n\n", "x", "heading\neth0", "heading\neth0 00000000 zz 0003 0 0 0 0", "0 0 0 0 0 0 0 0 0", "é é é"]
        {
            assert!(default_gateways_v4(text).is_empty(), "{text}");
            assert!(default_gateways_v6(text).is_empty(), "{text}");
        }
    }

    fn found(list: &[(&str, &str)]) -> Vec<(String, IpNet)> {
        list.iter().map(|(name, net)| ((*name).to_owned(), net.parse().unwrap())).collect()
    }

    #[test]
    fn interfaces_are_in_one_order_whatever_the_system_gives() {
        let list = [("eth1", "10.1.0.2/16"), ("eth0", "fe80::1/64"), ("eth0", "10.0.0.2/24"), ("eth0", "fd00::2/64")];
        let mut turned = list;
        turned.reverse();
        let mtu = |name: &str| if name == "eth0" { 1500 } else { 9000 };
        let got = by_interface(found(&list), mtu);
        assert_eq!(got, by_interface(found(&turned), mtu));
        let net = |text: &str| text.parse::<IpNet>().unwrap();
        let eth0 = vec![net("10.0.0.2/24"), net("fd00::2/64"), net("fe80::1/64")];
        assert_eq!(
            got,
            [
                Interface { name: "eth0".into(), mtu: 1500, addresses: eth0 },
                Interface { name: "eth1".into(), mtu: 9000, addresses: vec![net("10.1.0.2/16")] },
            ]
        );
    }

    #[test]
    fn link_local_addresses_are_the_first_to_be_left_out() {
        let mut list: Vec<_> = (0..ADDRESSES_MAX).map(|i| format!("fe80::{i:x}/64")).collect();
        let count = |list: &[String]| {
            let found = list.iter().map(|net| ("veth".to_owned(), net.parse().unwrap())).collect();
            by_interface(found, |_| 1500).into_iter().flat_map(|interface| interface.addresses).collect::<Vec<_>>()
        };
        assert_eq!(count(&list).len(), ADDRESSES_MAX);
        list.push("10.0.0.2/24".to_owned());
        let got = count(&list);
        assert_eq!(got.len(), ADDRESSES_MAX);
        assert_eq!(got[0], "10.0.0.2/24".parse().unwrap());
    }

    /// Runs this very test again inside a network namespace of its own, where it answers `Inside`. Elsewhere `Outside`:
    /// after that run, or after a word about what stood in its way.
    fn in_own_namespace(test: &str) -> Place {
        const MARK: &str = "ISTHMUS_TEST_IN_NAMESPACE";
        if std::env::var_os(MARK).is_some() {
            return Place::Inside;
        }
        let probe = "mount -t sysfs sysfs /sys && ip link add probe0 type veth peer name probe1";
        let obstacle = match Command::new("unshare").args(["-n", "-m", "sh", "-c", probe]).output() {
            Ok(output) if output.status.success() => None,
            Ok(output) => Some(String::from_utf8_lossy(&output.stderr).into_owned()),
            Err(error) => Some(error.to_string()),
        };
        if let Some(obstacle) = obstacle {
            println!("skipped: making network namespaces needs root, unshare and ip: {obstacle}");
            return Place::Outside;
        }
        let binary = std::env::current_exe().unwrap();
        let output = Command::new("unshare")
            .args(["-n", "-m"])
            .arg(binary)
            .args(["--exact", test, "--nocapture"])
            .env(MARK, "1")
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && text.contains("1 passed"), "{text}\n{errors}");
        Place::Outside
    }

    #[derive(PartialEq, Eq)]
    enum Place {
        Inside,
        Outside,
    }

    fn run(command: &str) {
        let mut words = command.split(' ');
        let output = Command::new(words.next().unwrap()).args(words).output().unwrap();
        assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// Waits until the watch is readable, far longer than any test machine stalls.
    fn await_readable(watch: &Watch) {
        let patience = Timespec { tv_sec: 30, tv_nsec: 0 };
        assert_eq!(poll(&mut [PollFd::new(watch, PollFlags::IN)], Some(&patience)), Ok(1));
    }

    /// Message types (linux/rtnetlink.h) and families.
    const LINK: (u16, u8) = (16, 0);
    const ADDRESS_V4: (u16, u8) = (20, 2);
    const ADDRESS_V6: (u16, u8) = (20, 10);
    const ROUTE_V4: (u16, u8) = (24, 2);
    const ROUTE_V6: (u16, u8) = (24, 10);

    /// Takes notifications until one of this type and family comes: the type stands at 4, the family after the
    /// header of 16 bytes.
    fn await_notification(watch: &Watch, want: (u16, u8)) {
        let mut message = [0u8; 64];
        loop {
            await_readable(watch);
            recv(&watch.socket, &mut message[..], RecvFlags::empty()).unwrap();
            if (u16::from_ne_bytes([message[4], message[5]]), message[16]) == want {
                return;
            }
        }
    }

    #[test]
    fn changes_of_links_addresses_and_routes_are_heard_and_reported() {
        if in_own_namespace("environment::tests::changes_of_links_addresses_and_routes_are_heard_and_reported")
            == Place::Outside
        {
            return;
        }
        // The mounted /sys shows the namespace that it was mounted in.
        run("mount -t sysfs sysfs /sys");
        let mut watch = Watch::new().unwrap();
        let mut policy = Policy::new(&[], &[]);
        let empty = gather(&mut policy, "tests").unwrap();
        assert_eq!((empty.interfaces.len(), empty.gateways.len(), empty.policy.len()), (0, 0, 0));
        assert!(!watch.drain());

        for (command, notification) in [
            ("ip link add test0 mtu 1400 type veth peer name peer0", LINK),
            ("ip addr add 10.77.0.2/24 dev test0", ADDRESS_V4),
            ("ip addr add fd77::2/64 dev test0 nodad", ADDRESS_V6),
            ("ip link set peer0 up", LINK),
            ("ip link set test0 up", LINK),
            ("ip route add default via 10.77.0.1", ROUTE_V4),
            ("ip -6 route add default via fd77::1", ROUTE_V6),
        ] {
            run(command);
            await_notification(&watch, notification);
        }
        // Addresses on the loopback interface, private ones too, are not reported.
        run("ip link set lo up");
        run("ip addr add 10.78.0.1/24 dev lo");

        let full = gather(&mut policy, "tests").unwrap();
        assert!(full.interfaces.iter().all(|interface| interface.name != "lo"), "{:?}", full.interfaces);
        let test0 = full.interfaces.iter().find(|interface| interface.name == "test0").unwrap();
        assert_eq!(test0.mtu, 1400);
        for net in ["10.77.0.2/24", "fd77::2/64"] {
            assert!(test0.addresses.contains(&net.parse().unwrap()), "{net}: {:?}", test0.addresses);
        }
        assert_eq!(full.gateways, ips(&["10.77.0.1", "fd77::1"]));
        assert_eq!(full.policy.iter().map(ToString::to_string).collect::<Vec<_>>(), ["10.77.0.0/24", "fd77::/64"]);
        assert!(full.os.starts_with("Linux ") && full.os.len() > "Linux ".len(), "{}", full.os);
        assert!(!full.hostname.is_empty());
        assert_eq!((full.version.as_str(), full.service.as_str()), (env!("CARGO_PKG_VERSION"), "tests"));
        assert!(policy.permits("10.77.0.9:80".parse().unwrap()));

        while watch.drain() {}
        run("ip addr del 10.77.0.2/24 dev test0");
        await_readable(&watch);
        assert!(watch.drain());
        let less = gather(&mut policy, "tests").unwrap();
        assert_ne!(less, full);
        assert!(!policy.permits("10.77.0.9:80".parse().unwrap()));
    }

    #[test]
    fn an_overrun_counts_as_a_change() {
        if in_own_namespace("environment::tests::an_overrun_counts_as_a_change") == Place::Outside {
            return;
        }
        let (mut watch, witness) = (Watch::new().unwrap(), Watch::new().unwrap());
        for each in [&watch, &witness] {
            rustix::net::sockopt::set_socket_recv_buffer_size(each, 1).unwrap();
        }
        for number in 0..8 {
            run(&format!("ip link add test{number} type veth peer name peer{number}"));
        }
        // The overrun stands before what is queued, so one that ended the drain would leave it at "nothing came".
        let overrun = recv(&witness.socket, &mut [0u8; 1][..], RecvFlags::PEEK);
        assert_eq!(overrun.err(), Some(Errno::NOBUFS));
        assert!(watch.drain());
        assert!(!watch.drain());
    }
}
