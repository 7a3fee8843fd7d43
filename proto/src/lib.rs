//! The tunnel's wire format and state machines.
//!
//! **Invariant:** nothing here does I/O, reads a clock, starts a thread or uses `unsafe`. Time is
//! given by the caller as an [`Instant`]; payload bytes stay with the caller and only their lengths
//! and identifiers come in.
#![forbid(unsafe_code)]

pub mod ask;
pub mod code;
pub mod dialer;
pub mod door;
pub mod enroll;
pub mod hello;
pub mod id;
pub mod limits;
pub mod link;
pub mod policy;
pub mod rare;
pub mod record;
pub mod stun;
pub mod time;
pub mod timer;
pub mod wire;

pub use code::Code;
pub use id::{ChannelId, MediatorId, PortId, ShardId};
pub use time::Instant;
