//! The relay: the public machine that drives mediators and relays packets for terminals and visitors.
//!
//! The data plane (`shard`) and the management plane (`admin`) meet in [`admin::command`] only:
//! commands travel to the shards over bounded channels, counters come back through single-writer
//! atomics. **Invariant:** the management plane never waits on a lock that a shard holds.

pub mod admin;
pub mod asked;
pub mod config;
pub mod doctor;
pub mod expose;
pub mod http;
pub mod journal;
pub mod log;
pub mod names;
pub mod proxy;
pub mod publish;
pub mod records;
pub mod report;
pub mod run;
pub mod shard;
pub mod token_cmd;
pub mod top;
pub mod trust;
pub mod upstream;

pub use run::run;
