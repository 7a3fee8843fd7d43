//! What the two ends tell each other first: JSON, since it is read once a session and must be able
//! to grow. Unknown fields are passed over; the version stands before the JSON in the frame.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::id::{ChannelId, MediatorId, ShardId};
use crate::policy::AllowRule;

/// The protocol version that this crate speaks; the other end must speak the same.
pub const VERSION: u16 = 1;

/// The name in a relay's certificate. Relays move and have many addresses; callers that trust an
/// authority verify this name.
pub const SERVER_NAME: &str = "isthmus-relay";

/// Who is calling the relay, with what right.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Signed token (JWT) that names the caller; empty where its TLS certificate does.
    #[serde(default)]
    pub token: String,
    /// In which role.
    pub role: Role,
    /// How many UDP channels the caller would like.
    #[serde(default)]
    pub udp_channels: u8,
    /// A random number that the caller's process keeps while it runs; zero for none. It tells one that comes back
    /// from another one that uses the same token.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub instance: u64,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_none(ms: &u32) -> bool {
    *ms == 0
}

/// A caller's role.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// A mediator, with its report.
    Mediator {
        /// Its name; the token must name it too.
        id: MediatorId,
        /// Its state and environment.
        report: Box<Report>,
    },
    /// A terminal; it attaches to one mediator, or to none, to ask the relay alone.
    Terminal {
        /// The mediator that it would use.
        mediator: Option<MediatorId>,
    },
}

/// A mediator's state and environment, repeated when it changes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Report {
    /// Private addresses with their masks and interfaces.
    pub interfaces: Vec<Interface>,
    /// Default gateways.
    pub gateways: Vec<IpAddr>,
    /// Operating system and release.
    pub os: String,
    /// Version of the mediator's software.
    pub version: String,
    /// Host name.
    pub hostname: String,
    /// What its owner allows: the effective allow-list.
    pub policy: Vec<AllowRule>,
    /// The service that it wishes to use, in its owner's words.
    pub service: String,
    /// What it offers by name, for the relay's named routes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub offers: Vec<Offer>,
    /// What it asks the relay for, each the text of an [`crate::ask::Ask`].
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub asks: Vec<String>,
}

/// A host that a mediator offers under a name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    /// The name, in lower case; `*` for every name that the relay leads to this mediator.
    pub name: String,
    /// The host.
    pub target: SocketAddr,
}

/// One interface of a mediator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// MTU in bytes.
    pub mtu: u32,
    /// Addresses with their prefix lengths.
    pub addresses: Vec<IpNet>,
}

/// The relay's answer to a [`Hello`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// Session number, unique while the relay runs.
    pub session: u64,
    /// The caller's address as the relay sees it.
    pub observed: SocketAddr,
    /// The relay's version.
    pub version: String,
    /// The shard that owns the tunnel: first byte of every UDP channel datagram.
    pub shard: ShardId,
    /// UDP channels granted.
    pub channels: Vec<ChannelId>,
    /// Milliseconds that a mediator leaves these channels unopened, unless something needs them: many come at once. Zero: none.
    #[serde(default, skip_serializing_if = "is_none")]
    pub udp_after_ms: u32,
    /// In plaintext mode only: the secret (64 hex digits) that UDP channels use instead of the TLS exporter's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub udp_secret: Option<String>,
    /// Milliseconds between maintain packets on the TCP channel.
    pub keepalive_tcp_ms: u32,
    /// Milliseconds between maintain packets on each UDP channel.
    pub keepalive_udp_ms: u32,
    /// Longest silence in milliseconds that the relay answers a probe after; zero: it answers none.
    #[serde(default)]
    pub keepalive_udp_max_ms: u32,
    /// Milliseconds without any answer after which a channel is dead.
    pub dead_ms: u32,
    /// Most ports at once on this link.
    pub ports_max: u32,
    /// Most things that the relay gives a mediator that asks for them; zero: it understands no asking.
    #[serde(default)]
    pub asks_max: u32,
    /// The attached mediator's report (to terminals).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub report: Option<Box<Report>>,
}

/// What became of all that a mediator asks for, told anew when it changes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcomes {
    /// One for each of [`Report::asks`], in their order, as far as the relay takes them.
    #[serde(default)]
    pub outcomes: Vec<Outcome>,
}

/// What became of one thing that was asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// Its text, as it came.
    pub ask: String,
    /// Where visitors come in now: an address with a port number, or the name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub granted: Option<String>,
    /// Why not, in one word ([`crate::ask::AskRefusal::word`]).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
    /// The same for a person, with the cure.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub text: String,
}

/// A question that a terminal asks the relay itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Query {
    /// All about the attached mediator.
    Info,
    /// The mediators that the token names, connected now.
    List {
        /// Names greater than this one only (paging).
        #[serde(default)]
        after: Option<MediatorId>,
    },
}

/// The relay's answer to a [`Query`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum QueryAnswer {
    /// To [`Query::Info`].
    Info(Box<MediatorInfo>),
    /// To [`Query::List`], in the order of names.
    List {
        /// This page.
        mediators: Vec<MediatorSummary>,
        /// Whether there are more.
        more: bool,
    },
    /// It could not be answered.
    Error {
        /// [`crate::Code::word`].
        code: String,
    },
}

/// One line of a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MediatorSummary {
    /// Its name.
    pub id: MediatorId,
    /// Its public address.
    pub observed: SocketAddr,
    /// Seconds since it connected.
    pub age_s: u64,
    /// Its wished service.
    pub service: String,
}

/// All about one mediator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MediatorInfo {
    /// Its summary.
    #[serde(flatten)]
    pub summary: MediatorSummary,
    /// Its report.
    pub report: Report,
    /// Session number.
    pub session: u64,
    /// Ports live now.
    pub ports: u32,
    /// UDP channels that answered within the dead time.
    pub udp_channels_live: u32,
    /// Smoothed round trip on the TCP channel in microseconds, if measured.
    pub rtt_us: Option<u64>,
    /// Payload bytes towards the mediator.
    pub bytes_to_mediator: u64,
    /// Payload bytes from the mediator.
    pub bytes_from_mediator: u64,
}
