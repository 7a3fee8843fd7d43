//! What a shard counts, and how others read it without a lock.
//!
//! The shard adds to plain `u64`s ([`Counters`]) and publishes them once a turn into atomics that it alone
//! writes ([`ShardCounters`]); readers sum over the shards. A reader may see two counters from different
//! turns; each by itself is right.

use std::sync::atomic::{AtomicU64, Ordering};

use isthmus_proto::Code;

use super::histogram::Histograms;

/// What a counter's value means over time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Goes up and down: what is there now.
    Gauge,
    /// Only goes up: what happened since the start.
    Total,
}

macro_rules! counters {
    ($($name:ident = $word:literal, $kind:ident, $help:literal;)*) => {
        /// One figure of a shard.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(usize)]
        pub enum Counter { $(#[doc = $help] $name,)* }

        impl Counter {
            /// Every counter, in the order of display.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// Its name, for operators and scripts.
            pub fn word(self) -> &'static str {
                match self { $(Self::$name => $word,)* }
            }

            /// What it counts.
            pub fn help(self) -> &'static str {
                match self { $(Self::$name => $help,)* }
            }

            /// Gauge or total.
            pub fn kind(self) -> Kind {
                match self { $(Self::$name => Kind::$kind,)* }
            }
        }
    };
}

counters! {
    TunnelsLive = "tunnels_live", Gauge, "Mediators connected now";
    TunnelsTotal = "tunnels_total", Total, "Tunnels established";
    GhostsReplaced = "ghosts_replaced", Total, "Tunnels replaced by a newer session of the same mediator";
    MediatorsContended = "mediators_contended", Total, "Replacements in which two mediators with one token alternate";
    RenewalsRefused = "renewals_refused", Total, "Newer tokens of live sessions that were refused";
    Draining = "draining", Gauge, "Shards that send their mediators away now";
    TerminalsLive = "terminals_live", Gauge, "Terminals connected now";
    TerminalsTotal = "terminals_total", Total, "Terminals that connected";

    HalfOpen = "half_open", Gauge, "Handshakes going on now";
    HandshakesTotal = "handshakes_total", Total, "Handshakes begun";
    HandshakesResumed = "handshakes_resumed_total", Total, "Handshakes shortened by a ticket of an earlier connection";
    HandshakesFailedTls = "handshakes_failed_tls", Total, "Handshakes that failed in TLS";
    HandshakesFailedTimeout = "handshakes_failed_timeout", Total, "Handshakes that did not end in time";
    HandshakesFailedToken = "handshakes_failed_token", Total, "Handshakes with a token that is wrong, expired or for something else";
    HandshakesFailedVersion = "handshakes_failed_version", Total, "Handshakes in another protocol version";
    HandshakesFailedPlaintext = "handshakes_failed_plaintext", Total, "Handshakes in which only one side asked for plaintext";
    HandshakesFailedHello = "handshakes_failed_hello", Total, "Handshakes whose first message could not be understood";
    HandshakesFailedOverload = "handshakes_failed_overload", Total, "Handshakes refused at a limit";
    SentAway = "callers_sent_away", Total, "Mediators and terminals sent away while the relay is drained or ends";
    HandshakesFailedLost = "handshakes_failed_lost", Total, "Handshakes whose connection was lost";

    VisitorsLive = "visitors_live", Gauge, "TCP visitors of published ports now";
    VisitorsTotal = "visitors_total", Total, "TCP visitors of published ports";
    VisitorsRefusedAway = "visitors_refused_away", Total, "Visitors refused since the mediator was not connected";
    VisitorsRefusedLimit = "visitors_refused_limit", Total, "Visitors refused at a limit";
    NamesLed = "names_led", Total, "Visitors led to a mediator by the name that they asked for";
    NamesUnknown = "names_unknown", Total, "Visitors refused since they asked for no name, or for one that leads nowhere";
    NamesBad = "names_bad", Total, "Visitors of a name listener refused: their first bytes were no valid TLS or HTTP/1";
    NewcomersLive = "newcomers_live", Gauge, "Visitors of whom something has to be read before they are led on, now";
    NewcomersSlow = "newcomers_slow", Total, "Visitors cut off since they did not say in time what they want";
    RefusalsCut = "refusals_cut", Total, "Refused visitors and clients reset without their last reply, since too many others were reading theirs";
    ProxyHeadersBad = "proxy_headers_bad", Total, "Connections of load balancers refused: no valid PROXY header";
    ConnectFailed = "connect_failed", Total, "Connections that the host or the mediator refused";

    SocksLive = "socks_live", Gauge, "Streams of SOCKS5 and HTTP CONNECT clients now";
    SocksTotal = "socks_total", Total, "Streams of SOCKS5 and HTTP CONNECT clients";
    SocksAssociationsLive = "socks_associations_live", Gauge, "UDP associations of SOCKS5 clients now";
    SocksRefusedLogin = "socks_refused_login", Total, "SOCKS5 and HTTP clients without a good token";
    SocksRefusedProtocol = "socks_refused_protocol", Total, "SOCKS5 and HTTP clients that asked for what is not understood or not known";
    SocksRefusedRules = "socks_refused_rules", Total, "Requests of SOCKS5 and HTTP clients that a token or a mediator's list forbids";
    SocksRefusedAway = "socks_refused_away", Total, "Requests of SOCKS5 and HTTP clients for mediators that are not connected";
    SocksRefusedLimit = "socks_refused_limit", Total, "SOCKS5 and HTTP clients refused at a limit";
    SocksFailed = "socks_failed", Total, "Requests of SOCKS5 and HTTP clients that the host or the mediator refused";
    SocksFragments = "socks_datagrams_dropped_fragment", Total, "Fragments of SOCKS5 clients' datagrams, dropped";
    SocksDatagramsRefused = "socks_datagrams_refused", Total, "SOCKS5 clients' datagrams dropped: from elsewhere, malformed, to a name, or forbidden";

    ExposedLive = "exposed_live", Gauge, "Connections of hosts to exposed services now";
    ExposedTotal = "exposed_total", Total, "Connections of hosts to exposed services";
    ExposedFlowsLive = "exposed_flows_live", Gauge, "UDP flows of hosts to exposed services now";
    ExposedFlowsTotal = "exposed_flows_total", Total, "UDP flows of hosts to exposed services";
    ExposedFailed = "exposed_failed", Total, "Of both, those that the public address did not take";
    ExposedRefusedLimit = "exposed_refused_limit", Total, "Connections, and datagrams without a flow, of hosts to exposed services refused at a limit";
    ExposesRefused = "exposes_refused", Total, "Times that a mediator refused the port of an exposed service";

    AsksGranted = "asks_granted", Total, "Ports and names given to mediators that asked for them";
    AsksRefused = "asks_refused", Total, "Ports and names refused to mediators that asked for them";

    BytesToMediators = "bytes_to_mediators", Total, "Payload bytes to mediators";
    BytesFromMediators = "bytes_from_mediators", Total, "Payload bytes from mediators";
    DatagramsToMediators = "datagrams_to_mediators", Total, "Datagrams to mediators";
    DatagramsFromMediators = "datagrams_from_mediators", Total, "Datagrams from mediators";
    DatagramsOversizeTcp = "datagrams_oversize_tcp", Total, "Datagrams that went over TCP since they did not fit a UDP channel";
    DatagramsForged = "datagrams_dropped_forged", Total, "Channel datagrams dropped: authentication failed";
    DatagramsEpochLimited = "datagrams_dropped_epoch_limit", Total, "Channel datagrams dropped: too many claimed a new key epoch in one second";
    DatagramsReplayed = "datagrams_dropped_replayed", Total, "Channel datagrams dropped: seen before or too old";
    DatagramsUnknownChannel = "datagrams_dropped_unknown_channel", Total, "Channel datagrams dropped: no such channel";
    DatagramsUnknownFlow = "datagrams_dropped_unknown_flow", Total, "Datagrams from mediators dropped: the visitor's flow has ended";
    DatagramsNoChannel = "datagrams_dropped_no_channel", Total, "Datagrams dropped: no UDP channel works";
    DatagramsFlowLimit = "datagrams_dropped_flow_limit", Total, "Datagrams of new flows dropped at the limit of flows";
    DatagramsQueueFull = "datagrams_dropped_queue_full", Total, "Datagrams dropped at a full queue";
    DatagramsSendFailed = "datagrams_dropped_send_failed", Total, "Datagrams that the system refused to send";
    DatagramsTruncated = "datagrams_dropped_truncated", Total, "Datagrams dropped: larger than what is received at once";
    FlowsLive = "flows_live", Gauge, "UDP flows of visitors now";
    FlowsTotal = "flows_total", Total, "UDP flows of visitors";
    ChannelsLive = "channels_live", Gauge, "UDP channels of all tunnels now, whether they work or not";
    Roamed = "roamed", Total, "UDP channels whose peer address changed";
    FarewellsCut = "farewells_cut", Total, "Links that ended without telling the other end why: it did not read on, or too many did not";
    StunAnswered = "stun_answered", Total, "Questions about the way to the relay (STUN) answered";
    StunRefusedLimit = "stun_refused_limit", Total, "Such questions not answered, since there were too many in a second";
    KeyUpdates = "key_updates", Total, "TLS key updates, both ways";

    ChecksAsked = "checks_asked", Total, "Tunnels asked by 'check tunnels'";
    ChecksAnswered = "checks_answered", Total, "Of them, those whose mediators answered";
    ChecksFailed = "checks_failed", Total, "Of them, those that refused or ended";
    ChecksUnanswered = "checks_unanswered", Total, "Of them, those that did not answer in time";
    ChecksSkipped = "checks_skipped", Total, "Tunnels not asked since the others took too long";

    BufferExhausted = "buffer_exhausted", Total, "Times that a receive waited for a buffer";
    RecordsCopied = "records_copied", Total, "Records that straddled a buffer's end, whose first part was copied";
    AcceptErrors = "accept_errors", Total, "Connections that the system could not hand over";
    Loops = "loops", Total, "Turns of the loop";
    LoopsShort = "loops_short", Total, "Those that moved less at a time, for small messages to be quick";
    RingEnters = "ring_enters", Total, "System calls to enter the ring";
}

impl Counter {
    /// Whether it counts what went wrong for somebody.
    pub fn is_trouble(self) -> bool {
        const WORDS: [&str; 14] = [
            "failed",
            "refused",
            "dropped",
            "errors",
            "exhausted",
            "bad",
            "unknown",
            "unanswered",
            "skipped",
            "slow",
            "cut",
            "contended",
            "truncated",
            "full",
        ];
        self.kind() == Kind::Total && self.word().split('_').any(|word| WORDS.contains(&word))
    }
}

const COUNT: usize = Counter::ALL.len();
const CODES: usize = Code::ALL.len();

/// A shard's own figures, not shared.
#[derive(Clone, Debug)]
pub struct Counters {
    values: [u64; COUNT],
    closed: [u64; CODES],
    closed_changed: bool,
}

impl Default for Counters {
    fn default() -> Self {
        Self { values: [0; COUNT], closed: [0; CODES], closed_changed: false }
    }
}

impl Counters {
    /// Adds to a counter.
    #[inline]
    pub fn add(&mut self, counter: Counter, n: u64) {
        let value = &mut self.values[counter as usize];
        *value = value.wrapping_add(n);
    }

    /// Takes from a gauge.
    #[inline]
    pub fn sub(&mut self, counter: Counter, n: u64) {
        let value = &mut self.values[counter as usize];
        debug_assert!(counter.kind() == Kind::Gauge && *value >= n, "{} falls below zero", counter.word());
        *value = value.saturating_sub(n);
    }

    /// Sets a gauge, or a total that is kept elsewhere.
    #[inline]
    pub fn set(&mut self, counter: Counter, value: u64) {
        self.values[counter as usize] = value;
    }

    /// The value now.
    #[inline]
    pub fn get(&self, counter: Counter) -> u64 {
        self.values[counter as usize]
    }

    /// Counts a link's end by its reason.
    pub fn link_closed(&mut self, reason: Code) {
        self.closed[position(reason)] += 1;
        self.closed_changed = true;
    }

    /// Shows the figures to others; once a turn. The shard is the only writer, so plain stores are enough, and
    /// a value that is stale by one turn harms no reader.
    pub fn publish(&mut self, shared: &ShardCounters) {
        for (value, shown) in self.values.iter().zip(&shared.values) {
            shown.store(*value, Ordering::Relaxed);
        }
        if self.closed_changed {
            self.closed_changed = false;
            for (value, shown) in self.closed.iter().zip(&shared.closed) {
                shown.store(*value, Ordering::Relaxed);
            }
        }
    }
}

/// A shard's figures as others see them. On cache lines of its own, since it is written every turn.
#[derive(Debug)]
#[repr(align(128))]
pub struct ShardCounters {
    values: [AtomicU64; COUNT],
    closed: [AtomicU64; CODES],
    /// How values are spread.
    pub histograms: Histograms,
}

impl Default for ShardCounters {
    fn default() -> Self {
        Self {
            values: [const { AtomicU64::new(0) }; COUNT],
            closed: [const { AtomicU64::new(0) }; CODES],
            histograms: Histograms::default(),
        }
    }
}

impl ShardCounters {
    /// The value that was last published.
    pub fn get(&self, counter: Counter) -> u64 {
        self.values[counter as usize].load(Ordering::Relaxed)
    }

    /// Links that ended for this reason.
    pub fn links_closed(&self, reason: Code) -> u64 {
        self.closed[position(reason)].load(Ordering::Relaxed)
    }
}

/// A code's place in [`Code::ALL`]; its number would leave gaps.
fn position(code: Code) -> usize {
    // `ALL` is sorted by number and holds every code, so the search finds it.
    Code::ALL.partition_point(|&other| other < code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn others_see_what_was_published_and_nothing_later() {
        let (mut own, shared) = (Counters::default(), ShardCounters::default());
        own.add(Counter::TunnelsLive, 3);
        own.sub(Counter::TunnelsLive, 1);
        own.set(Counter::Loops, 9);
        own.link_closed(Code::Silent);
        assert_eq!(shared.get(Counter::TunnelsLive), 0);
        own.publish(&shared);
        own.add(Counter::TunnelsLive, 5);
        own.link_closed(Code::Silent);
        assert_eq!((shared.get(Counter::TunnelsLive), shared.get(Counter::Loops)), (2, 9));
        assert_eq!((shared.links_closed(Code::Silent), shared.links_closed(Code::Killed)), (1, 0));
        own.publish(&shared);
        assert_eq!((shared.get(Counter::TunnelsLive), shared.links_closed(Code::Silent)), (7, 2));
    }

    #[test]
    fn every_counter_has_its_own_word_and_place() {
        let mut own = Counters::default();
        for (n, &counter) in Counter::ALL.iter().enumerate() {
            assert_eq!(counter as usize, n);
            assert_eq!(Counter::ALL.iter().filter(|other| other.word() == counter.word()).count(), 1);
            assert!(counter.word().bytes().all(|b| b.is_ascii_lowercase() || b == b'_') && !counter.help().is_empty());
            own.set(counter, n as u64 + 1);
        }
        assert!(Counter::ALL.iter().enumerate().all(|(n, &counter)| own.get(counter) == n as u64 + 1));
    }

    #[test]
    fn counters_of_the_operators_guide_are_those_of_the_relay() {
        let text = include_str!("../../../docs/operations.md");
        let table = text.split("\n## ").find(|section| section.starts_with("Too much\n")).unwrap();
        let last_cells = table.lines().filter_map(|line| line.strip_suffix('|')?.rsplit('|').next());
        let named: Vec<&str> = last_cells.flat_map(|cell| cell.split('`').skip(1).step_by(2)).collect();
        assert!(named.len() > 20, "{named:?}");
        for word in named.into_iter().filter(|word| !word.contains(' ')) {
            assert!(Counter::ALL.iter().any(|counter| counter.word() == word), "{word}");
        }
    }

    #[test]
    fn every_reason_has_its_own_place() {
        for (n, &code) in Code::ALL.iter().enumerate() {
            assert_eq!(position(code), n, "{}", code.word());
        }
    }
}
