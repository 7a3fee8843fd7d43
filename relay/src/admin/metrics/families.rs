//! The shards' counters under Prometheus's names: those that say one thing of several kinds are one family with a label.
//!
//! A counter that is not mentioned here is a family of its own, of the name that it has in `show stat`.

use crate::admin::counters::{Counter, Kind};

/// Samples of one name.
#[derive(Debug)]
pub(super) struct Family {
    pub(super) name: String,
    pub(super) help: &'static str,
    /// What tells the members apart, beside the shard.
    pub(super) label: Option<&'static str>,
    /// With the label's value; at least one.
    pub(super) members: Vec<(&'static str, Counter)>,
}

struct Group {
    name: &'static str,
    help: &'static str,
    label: &'static str,
    members: &'static [(&'static str, Counter)],
}

use Counter as C;

static GROUPS: &[Group] = &[
    Group {
        name: "isthmus_handshakes_failed_total",
        help: "Handshakes that failed, by reason",
        label: "reason",
        members: &[
            ("tls", C::HandshakesFailedTls),
            ("timeout", C::HandshakesFailedTimeout),
            ("token", C::HandshakesFailedToken),
            ("version", C::HandshakesFailedVersion),
            ("plaintext", C::HandshakesFailedPlaintext),
            ("hello", C::HandshakesFailedHello),
            ("overload", C::HandshakesFailedOverload),
            ("lost", C::HandshakesFailedLost),
        ],
    },
    Group {
        name: "isthmus_visitors_refused_total",
        help: "Visitors of published ports and of names that were refused, by reason",
        label: "reason",
        members: &[
            ("away", C::VisitorsRefusedAway),
            ("limit", C::VisitorsRefusedLimit),
            ("unknown_name", C::NamesUnknown),
            ("bad_first_bytes", C::NamesBad),
            ("slow", C::NewcomersSlow),
            ("bad_proxy_header", C::ProxyHeadersBad),
        ],
    },
    Group {
        name: "isthmus_socks_refused_total",
        help: "SOCKS5 and HTTP CONNECT clients, or requests of theirs, that were refused, by reason",
        label: "reason",
        members: &[
            ("login", C::SocksRefusedLogin),
            ("protocol", C::SocksRefusedProtocol),
            ("rules", C::SocksRefusedRules),
            ("away", C::SocksRefusedAway),
            ("limit", C::SocksRefusedLimit),
        ],
    },
    Group {
        name: "isthmus_payload_bytes_total",
        help: "Stream bytes to and from mediators",
        label: "direction",
        members: &[("to_mediators", C::BytesToMediators), ("from_mediators", C::BytesFromMediators)],
    },
    Group {
        name: "isthmus_datagrams_total",
        help: "Datagrams to and from mediators",
        label: "direction",
        members: &[("to_mediators", C::DatagramsToMediators), ("from_mediators", C::DatagramsFromMediators)],
    },
    Group {
        name: "isthmus_datagrams_dropped_total",
        help: "Datagrams that were dropped, by reason",
        label: "reason",
        members: &[
            ("forged", C::DatagramsForged),
            ("epoch_limit", C::DatagramsEpochLimited),
            ("replayed", C::DatagramsReplayed),
            ("unknown_channel", C::DatagramsUnknownChannel),
            ("unknown_flow", C::DatagramsUnknownFlow),
            ("no_channel", C::DatagramsNoChannel),
            ("flow_limit", C::DatagramsFlowLimit),
            ("queue_full", C::DatagramsQueueFull),
            ("send_failed", C::DatagramsSendFailed),
            ("truncated", C::DatagramsTruncated),
            ("socks_fragment", C::SocksFragments),
            ("socks_refused", C::SocksDatagramsRefused),
        ],
    },
    Group {
        name: "isthmus_asks_total",
        help: "Ports and names that mediators asked for, by outcome",
        label: "outcome",
        members: &[("granted", C::AsksGranted), ("refused", C::AsksRefused)],
    },
    Group {
        name: "isthmus_tunnel_checks_total",
        help: "Tunnels asked by 'check tunnels', by result",
        label: "result",
        members: &[
            ("answered", C::ChecksAnswered),
            ("failed", C::ChecksFailed),
            ("unanswered", C::ChecksUnanswered),
            ("skipped", C::ChecksSkipped),
        ],
    },
];

/// What is there now has the plain name, and what ever came says so: the two may not differ by `_total` alone, which
/// some readers take off.
static NAMES: &[(Counter, &str)] = &[
    (C::TunnelsTotal, "tunnels_opened_total"),
    (C::TerminalsTotal, "terminals_opened_total"),
    (C::VisitorsTotal, "visitors_opened_total"),
    (C::FlowsTotal, "flows_opened_total"),
    (C::HalfOpen, "handshakes_in_progress"),
    (C::SocksLive, "socks_streams"),
    (C::SocksTotal, "socks_streams_opened_total"),
    (C::ExposedLive, "exposed_connections"),
    (C::ExposedTotal, "exposed_connections_opened_total"),
    (C::ExposedFlowsTotal, "exposed_flows_opened_total"),
    (C::ChannelsLive, "udp_channels"),
    (C::Roamed, "udp_channels_roamed_total"),
    (C::StunAnswered, "stun_answered_total"),
    (C::StunRefusedLimit, "stun_refused_total"),
    (C::Loops, "loop_turns_total"),
    (C::LoopsShort, "loop_turns_short_total"),
];

/// All of them: the groups, then the others in the counters' order.
pub(super) fn families() -> Vec<Family> {
    let groups = GROUPS.iter().map(|group| Family {
        name: group.name.to_owned(),
        help: group.help,
        label: Some(group.label),
        members: group.members.to_vec(),
    });
    let grouped = |counter| GROUPS.iter().any(|group| group.members.iter().any(|&(_, member)| member == counter));
    let alone = Counter::ALL.iter().filter(|&&counter| !grouped(counter)).map(|&counter| Family {
        name: format!("isthmus_{}", name_of(counter)),
        help: counter.help(),
        label: None,
        members: vec![("", counter)],
    });
    groups.chain(alone).collect()
}

fn name_of(counter: Counter) -> String {
    if let Some((_, name)) = NAMES.iter().find(|(named, _)| *named == counter) {
        return (*name).to_owned();
    }
    let word = counter.word();
    match counter.kind() {
        Kind::Gauge => word.strip_suffix("_live").unwrap_or(word).to_owned(),
        Kind::Total => format!("{}_total", word.strip_suffix("_total").unwrap_or(word)),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_counter_is_in_one_family_of_its_own_kind_and_name() {
        let families = families();
        let members: Vec<Counter> = families.iter().flat_map(|family| &family.members).map(|&(_, c)| c).collect();
        for &counter in Counter::ALL {
            assert_eq!(members.iter().filter(|&&other| other == counter).count(), 1, "{}", counter.word());
        }
        let names: BTreeSet<&str> = families.iter().map(|family| family.name.as_str()).collect();
        assert_eq!(names.len(), families.len());
        for family in &families {
            let kind = family.members[0].1.kind();
            assert!(family.members.iter().all(|(_, counter)| counter.kind() == kind), "{}", family.name);
            match family.name.strip_suffix("_total") {
                Some(stem) => assert!(kind == Kind::Total && !names.contains(stem), "{}", family.name),
                None => assert_eq!(kind, Kind::Gauge, "{}", family.name),
            }
        }
    }
}
