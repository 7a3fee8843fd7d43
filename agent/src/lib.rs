//! The mediation system: runs in a private network and lends its IP interface to the relay, within
//! what its owner allows.
//!
//! **Invariant:** nothing here blocks the event loop: names are resolved on a thread of their own.

pub mod config;
pub mod environment;
pub mod policy;
pub mod resolve;

mod bind;
mod mediator;
mod names;
mod ports;
mod session;

pub use mediator::run;
