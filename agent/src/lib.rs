//! The mediation system: runs in a private network and lends its IP interface to the relay, within
//! what its owner allows.
//!
//! **Invariant:** nothing here blocks the event loop: names are resolved on a thread of their own.

mod asking;
mod audit;
pub mod config;
pub mod doctor;
pub mod enroll;
pub mod environment;
pub mod log;
pub mod policy;
pub mod resolve;
pub mod token;

mod bind;
mod channels;
mod manager;
mod mediator;
mod names;
mod offer;
mod ports;
mod reload;
mod session;
mod signals;

pub use mediator::run;
