//! What the shards tell of themselves and of what they own: rows of the stats socket's answers.

use std::net::SocketAddr;

use isthmus_proto::{MediatorId, ShardId};
use serde::{Deserialize, Serialize};

use crate::expose::Expose;
use crate::publish::{Origin, Publish};
use crate::report::PackedReport;

/// One tunnel. "In" is from the mediator to the relay, "out" the other way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TunnelRow {
    /// The mediator.
    pub id: MediatorId,
    /// Session number.
    pub session: u64,
    /// The shard that owns it.
    pub shard: ShardId,
    /// The mediator's public address, as the relay sees its TCP channel.
    pub observed: SocketAddr,
    /// Seconds since it connected.
    pub age_s: u64,
    /// Seconds since payload last travelled on it.
    pub idle_s: u64,
    /// Ports open now.
    pub ports: u32,
    /// Terminals attached now.
    pub terminals: u32,
    /// UDP channels granted.
    pub udp_channels: u32,
    /// Of them, those that answered within the dead time.
    pub udp_channels_live: u32,
    /// Seconds between maintain packets on its resting UDP channels, as it has learned; zero without channels.
    pub udp_period_s: u64,
    /// Smoothed round trip on the TCP channel in microseconds, if measured.
    pub rtt_us: Option<u64>,
    /// Payload bits a second both ways, where they were asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bps: Option<u64>,
    /// Payload bytes from the mediator.
    pub bytes_in: u64,
    /// Payload bytes to the mediator.
    pub bytes_out: u64,
    /// Datagrams from the mediator.
    pub datagrams_in: u64,
    /// Datagrams to the mediator.
    pub datagrams_out: u64,
    /// Datagrams that travelled over the TCP channel since they did not fit a UDP one.
    pub oversize: u64,
    /// What the mediator last reported.
    pub report: PackedReport,
}

/// How a shard itself is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardState {
    /// Which.
    pub shard: ShardId,
    /// Processor time of its thread since it started, in microseconds.
    pub cpu_us: u64,
    /// Tunnels, terminals and handshakes.
    pub links: u64,
    /// TCP connections of visitors, clients and hosts.
    pub streams: u64,
    /// UDP flows.
    pub flows: u64,
    /// Bytes that wait in all queues.
    pub queued_bytes: u64,
    /// Above this no new port is opened.
    pub queued_bytes_max: u64,
    /// io_uring operations in flight.
    pub operations: u64,
    /// Descriptors in the ring's own table, which the process's limit does not count.
    pub direct_descriptors: u64,
    /// Its buffers.
    pub pools: Vec<PoolRow>,
}

/// One pool of buffers: `live = free + lent + held` blocks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolRow {
    /// `stream`, `bulk`, `datagram` or `small`.
    pub pool: String,
    /// Bytes of one block.
    pub block_bytes: u64,
    /// Blocks in existence.
    pub live: u64,
    /// Most blocks that may exist.
    pub live_max: u64,
    /// Blocks that nobody uses.
    pub free: u64,
    /// Blocks lent to the kernel to receive into.
    pub lent: u64,
    /// Blocks with bytes that are on their way.
    pub held: u64,
    /// Most blocks ever held at once.
    pub held_most: u64,
    /// Receives that had to wait for a block.
    pub exhausted: u64,
}

/// Some of a shard's UDP flows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowPage {
    /// Flows.
    pub rows: Vec<FlowRow>,
    /// Where to go on, if there may be more.
    pub next: Option<u32>,
}

/// One UDP flow of a published port or an exposed service. "In" is from the mediator to the relay.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowRow {
    /// The mediator.
    pub mediator: MediatorId,
    /// The shard that owns it.
    pub shard: ShardId,
    /// `published PROTO:ADDR:PORT` or `exposed PROTO:MEDIATOR/IP:PORT`.
    pub door: String,
    /// Who began it.
    pub from: SocketAddr,
    /// Where it leads.
    pub to: SocketAddr,
    /// Seconds since its last datagram.
    pub idle_s: u64,
    /// Payload bytes from the mediator.
    pub bytes_in: u64,
    /// Payload bytes to the mediator.
    pub bytes_out: u64,
    /// Datagrams from the mediator.
    pub datagrams_in: u64,
    /// Datagrams to the mediator.
    pub datagrams_out: u64,
}

/// Most ports of one mediator that are shown.
pub const PORT_ROWS_MAX: usize = 200;

/// One mediator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TunnelDetail {
    /// Its tunnel.
    pub tunnel: TunnelRow,
    /// Terminals that are attached to it.
    pub terminals: Vec<TerminalRow>,
    /// Ports that are open, at most [`PORT_ROWS_MAX`].
    pub ports: Vec<PortRow>,
    /// There are more.
    pub ports_more: bool,
}

/// A terminal that is attached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TerminalRow {
    /// Its token's name.
    pub name: String,
    /// Its public address.
    pub observed: Option<SocketAddr>,
}

/// A port of a tunnel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortRow {
    /// Its number on the tunnel.
    pub id: u32,
    /// `tcp` or `udp`.
    pub kind: String,
    /// What it belongs to: `visitor`, `flow`, `terminal`, `client`, `association` or `relay`.
    pub of: String,
}

/// How far an exposed service's server port is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ExposeState {
    /// The mediator is not connected.
    Away,
    /// The mediator is asked.
    Opening,
    /// Hosts can connect.
    Open,
    /// The mediator refused; it is asked again later.
    Refused,
}

impl ExposeState {
    /// In one word.
    pub fn word(self) -> &'static str {
        match self {
            Self::Away => "away",
            Self::Opening => "opening",
            Self::Open => "open",
            Self::Refused => "refused",
        }
    }
}

/// One exposed service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExposeRow {
    /// What is exposed.
    pub expose: Expose,
    /// The shard that owns the mediator.
    pub shard: ShardId,
    /// Who exposed it.
    pub origin: Origin,
    /// How far it is.
    pub state: ExposeState,
    /// The mediator's address that hosts reach it at, with the real port number.
    pub bound: Option<SocketAddr>,
    /// Why it was refused, in one word ([`isthmus_proto::Code::word`]).
    pub reason: Option<String>,
    /// The same for a person, with the cure.
    pub cure: Option<String>,
    /// Seconds to the next try after a refusal.
    pub retry_s: Option<u64>,
    /// Hosts' connections now; with UDP their flows, here and below.
    pub connections_live: u64,
    /// Hosts' connections since it was exposed.
    pub connections_total: u64,
    /// Of them, those that the public address did not take.
    pub connections_failed: u64,
}

/// One published port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublishRow {
    /// What is published, with the real port number where 0 was asked for.
    pub publish: Publish,
    /// The shard that listens.
    pub shard: ShardId,
    /// The address that was asked for; its port may be 0.
    pub asked: SocketAddr,
    /// Who published it.
    pub origin: Origin,
    /// It was unpublished, and has visitors or flows still.
    pub leaving: bool,
    /// Whether the mediator is connected now.
    pub connected: bool,
    /// TCP visitors now.
    pub visitors_live: u64,
    /// TCP visitors since the start.
    pub visitors_total: u64,
    /// UDP flows now.
    pub flows_live: u64,
    /// UDP flows since the start.
    pub flows_total: u64,
}
