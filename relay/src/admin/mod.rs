//! The management plane: one thread outside the shards, on io_uring through `tokio-uring`.
//!
//! It reads the shards' counters, sends them commands by message, and answers operators on the stats
//! socket. **Invariant:** nothing that an operator or a stuck reader does can hold up a shard.

mod answer;
mod asking;
pub mod command;
pub mod counters;
pub mod ctl;
mod dispatch;
mod events;
mod exposing;
pub mod histogram;
mod level;
mod listener;
mod manager;
mod metrics;
mod naming;
mod pages;
mod publishing;
mod reload;
pub mod rows;
mod serve;
mod session;
mod show;
mod state;
mod stats;
mod trust;
mod tunnels;
mod web;

pub(crate) use answer::{hidden, phrase};
pub use command::{Asking, Command, ShardHandle, Told, TunnelFilter, Unpublish, Unpublished};
pub use counters::{Counter, Counters, ShardCounters};
pub use histogram::{Histograms, Series};
pub use level::Level;
pub use listener::StatsSocket;
pub use rows::{
    ExposeRow, ExposeState, FlowPage, FlowRow, PoolRow, PortRow, PublishRow, ShardState, TerminalRow, TunnelDetail,
    TunnelRow,
};
pub use serve::{Admin, Limits, RelayInfo, Stop, serve};
