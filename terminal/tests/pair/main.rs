//! The library against a relay of the same machines, over real sockets.

mod cancel;
#[cfg(feature = "cli")]
mod cli;
mod greeting;
#[cfg(feature = "hyper")]
mod http;
mod reconnect;
mod relay;
mod request;
mod stream;
mod udp;
