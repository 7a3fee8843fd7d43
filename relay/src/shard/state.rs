//! How a shard itself is, and its flows, for the management plane.

use std::time::Duration;

use isthmus_engine::{Engine, FlowView};
use isthmus_proto::limits::SHARD_QUEUED_MAX;
use isthmus_ring::{PoolConfig, PoolStats};

use super::tag::Door;
use super::{Party, Shard};
use crate::admin::{FlowPage, FlowRow, PoolRow, ShardState};
use crate::trust::Glob;

/// The pools, as [`isthmus_ring::Ring::pool_stats`] has them: received bytes of plain connections, of tunnels, datagrams,
/// and tunnels' while little comes.
const POOLS: [&str; 4] = ["stream", "bulk", "datagram", "small"];

/// Places of the table of flows that are looked at in one turn of the loop: a fraction of a millisecond's work.
const PLACES: u32 = 2000;

impl Shard {
    pub(super) fn state(&self, engine: &Engine) -> ShardState {
        let ring = engine.ring();
        let (links, streams, flows) = engine.sizes();
        let pool = |((name, stats), config): ((&str, PoolStats), PoolConfig)| PoolRow {
            pool: name.to_owned(),
            block_bytes: config.block_bytes() as u64,
            live: stats.live as u64,
            live_max: config.blocks_max as u64,
            free: stats.free as u64,
            lent: stats.provided as u64,
            held: stats.held as u64,
            held_most: stats.held_max as u64,
            exhausted: stats.exhausted,
        };
        ShardState {
            shard: self.seat.id,
            cpu_us: thread_time().as_micros() as u64,
            links: links as u64,
            streams: streams as u64,
            flows: flows as u64,
            queued_bytes: engine.queued() as u64,
            queued_bytes_max: SHARD_QUEUED_MAX as u64,
            operations: ring.in_flight() as u64,
            direct_descriptors: ring.direct_count() as u64,
            pools: POOLS.into_iter().zip(ring.pool_stats()).zip(ring.pool_configs()).map(pool).collect(),
        }
    }

    pub(super) fn flows(&self, engine: &Engine, from: u32, glob: &Glob) -> FlowPage {
        let (flows, next) = engine.flows_from(from, PLACES);
        let rows =
            flows.iter().filter_map(|flow| self.flow_row(flow)).filter(|row| glob.matches(&row.mediator)).collect();
        FlowPage { rows, next }
    }

    fn flow_row(&self, flow: &FlowView) -> Option<FlowRow> {
        let Some(Party::Tunnel(tunnel)) = self.links.get(&flow.link) else { return None };
        let (door, from, to) = match Door::of(flow.tag)? {
            Door::Published => {
                let publish = &self.published.get(flow.tag)?.publish;
                (format!("published {}:{}", publish.proto, publish.listen), flow.peer, flow.remote)
            }
            Door::Exposed => (format!("exposed {}", self.exposed_at(flow.tag)?.server), flow.remote, flow.peer),
            _ => return None,
        };
        Some(FlowRow {
            mediator: tunnel.id.clone(),
            shard: self.seat.id,
            door,
            from,
            to,
            idle_s: flow.idle.as_secs(),
            // At the relay's socket "in" is what goes to the mediator.
            bytes_in: flow.carried.bytes_out,
            bytes_out: flow.carried.bytes_in,
            datagrams_in: flow.carried.datagrams_out,
            datagrams_out: flow.carried.datagrams_in,
        })
    }
}

/// Processor time of the calling thread.
fn thread_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.try_into().unwrap_or(0), time.tv_nsec.try_into().unwrap_or(0))
}
