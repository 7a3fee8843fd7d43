//! The library against a relay of the same machines, over real sockets.

mod cli;
mod greeting;
mod relay;
mod request;
mod stream;
mod udp;
